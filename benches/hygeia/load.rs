//! The load: a process of its own that keeps a number of connections busy, one request at a time on
//! each (a closed loop), over HTTP/1.1 with keep-alive. Every answer's status is checked.
//!
//! One thread, and no more parsing than the length of an answer asks for: what the load costs is missing
//! from what it measures, on both sides of a pair alike.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::stats::{Processors, percentile};
use crate::{Result, role};

/// What to do.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    /// The server.
    pub(crate) address: SocketAddr,
    /// A bearer token.
    pub(crate) token: String,
    /// How many connections are kept busy.
    pub(crate) connections: usize,
    /// How long; without it, until the work is done once.
    pub(crate) measured_ms: Option<u64>,
    /// With what.
    pub(crate) work: Work,
}

/// What the requests are.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Work {
    /// `GET` each path in turn, and again from the first one.
    Get { paths: Vec<String> },
    /// `POST` patients, each another one; `tag` keeps them apart from those of other runs.
    Post { tag: String, count: usize },
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) requests: usize,
    pub(crate) seconds: f64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Until the first answer on a new connection, at the slowest of them: reads only. It is no part of the others.
    pub(crate) first_answer_us: f64,
    /// The share of the time in which the processors of this machine had nothing to do.
    pub(crate) idle: f64,
}

impl Outcome {
    /// Requests per second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// Runs `task` in another process.
pub(crate) async fn run(task: Task) -> Result<Outcome> {
    role::done("load", task).await
}

/// The other process.
pub(crate) fn role() -> Result<()> {
    let task: Task = role::task()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    role::tell(&runtime.block_on(keep_busy(task))?)
}

/// What the connections of a load have in common.
struct Shared {
    task: Task,
    /// The number of the next request that is measured.
    next: AtomicUsize,
    /// Connections that are open.
    open: AtomicUsize,
    /// When the last of them was, and measuring began.
    began: OnceLock<(Instant, Processors)>,
}

async fn keep_busy(task: Task) -> Result<Outcome> {
    let connections = task.connections;
    let counter = AtomicUsize::default;
    let shared = Arc::new(Shared { task, next: counter(), open: counter(), began: OnceLock::new() });
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        clients.spawn(client(Arc::clone(&shared)));
    }
    let (mut samples_us, mut first_answer_us) = (Vec::new(), f64::NAN);
    while let Some(client) = clients.join_next().await {
        let (first_us, samples) = client??;
        first_answer_us = f64::max(first_answer_us, first_us);
        samples_us.extend(samples);
    }
    let (began, processors) = shared.began.get().ok_or("no connections")?;
    let (seconds, idle) = (began.elapsed().as_secs_f64(), Processors::now().idle_since(*processors));
    samples_us.sort_unstable();
    let sum: u64 = samples_us.iter().copied().map(u64::from).sum();
    Ok(Outcome {
        requests: samples_us.len(),
        seconds,
        mean_us: sum as f64 / samples_us.len() as f64,
        p50_us: percentile(&samples_us, 0.5),
        p99_us: percentile(&samples_us, 0.99),
        first_answer_us,
        idle,
    })
}

/// A connection over which one read has been answered, and how long it all took. Who writes asks for nothing yet.
async fn open(task: &Task) -> Result<(Connection, f64)> {
    let began = Instant::now();
    let mut connection = Connection::open(task.address).await?;
    if let Work::Get { .. } = task.work {
        ask_first(&mut connection, task).await?;
    }
    Ok((connection, began.elapsed().as_secs_f64() * 1e6))
}

/// A read that is not measured.
async fn ask_first(connection: &mut Connection, task: &Task) -> Result<()> {
    let mut request = Vec::with_capacity(1024);
    let expected = write_request(&mut request, task, 0)?;
    match connection.exchange(&request).await? {
        status if status == expected => Ok(()),
        status => Err(format!("status {status} instead of {expected} before measuring").into()),
    }
}

/// One connection; answers with how long its first answer took, and each measured request, in microseconds.
async fn client(shared: Arc<Shared>) -> Result<(f64, Vec<u32>)> {
    let Shared { task, next, open: opened, began } = &*shared;
    let (mut connection, first_us) = open(task).await?;
    opened.fetch_add(1, Ordering::AcqRel);
    // A connection that nothing comes over may be ended.
    while opened.load(Ordering::Acquire) < task.connections {
        match task.work {
            Work::Get { .. } => ask_first(&mut connection, task).await?,
            Work::Post { .. } => tokio::task::yield_now().await,
        }
    }
    let (began, _) = *began.get_or_init(|| (Instant::now(), Processors::now()));
    let (end, work_max) = match (task.measured_ms, &task.work) {
        (Some(ms), Work::Get { .. }) => (Some(Duration::from_millis(ms)), usize::MAX),
        (Some(ms), Work::Post { count, .. }) => (Some(Duration::from_millis(ms)), *count),
        (None, Work::Get { paths }) => (None, paths.len()),
        (None, Work::Post { count, .. }) => (None, *count),
    };
    let mut request = Vec::with_capacity(1024);
    let mut samples_us = Vec::new();
    while end.is_none_or(|end| began.elapsed() < end) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= work_max {
            break;
        }
        request.clear();
        let expected = write_request(&mut request, task, number)?;
        let sent = Instant::now();
        let status = connection.exchange(&request).await?;
        samples_us.push(u32::try_from(sent.elapsed().as_micros())?);
        if status != expected {
            return Err(format!("status {status} instead of {expected} for request {number}").into());
        }
    }
    Ok((first_us, samples_us))
}

/// Writes request `number`; answers with the status it should get.
fn write_request(into: &mut Vec<u8>, task: &Task, number: usize) -> Result<u16> {
    use std::io::Write;
    let (host, token) = (task.address, &task.token);
    match &task.work {
        Work::Get { paths } => {
            let path = &paths[number % paths.len()];
            write!(into, "GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\r\n")?;
            Ok(200)
        }
        Work::Post { tag, .. } => {
            let body = format!(
                r#"{{"name":"Bench Patient","email":"{tag}-{number}@example.com","address":"1 Bench Street, Benchtown","dateOfBirth":"1980-05-17","registeredDate":"2026-01-02"}}"#
            );
            write!(
                into,
                "POST /api/patients HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )?;
            Ok(201)
        }
    }
}

/// A connection with what was read from it and not yet used.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(address: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: BytesMut::with_capacity(16 * 1024) })
    }

    /// Sends a request and reads its answer to the end; answers with the status.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request).await?;
        let head_bytes = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more().await?;
        };
        let head = std::str::from_utf8(&self.buffer[..head_bytes])?;
        let status = head.get(9..12).ok_or("no status")?.parse()?;
        let length = head.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let answer_bytes = head_bytes + length.ok_or("an answer without content-length")?;
        while self.buffer.len() < answer_bytes {
            self.read_more().await?;
        }
        self.buffer.advance(answer_bytes);
        Ok(status)
    }

    async fn read_more(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err("the server closed the connection".into());
        }
        Ok(())
    }
}
