//! `hygeia healthcheck`: checks whether the node on this machine is ready, for containers without an HTTP
//! client.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::failure::{Exit, Failure};
use crate::config::Config;
use crate::node::runtime_file::RuntimeFile;

/// The limit of the whole check, including the connection.
const LIMIT: Duration = Duration::from_secs(2);

/// Maximum number of bytes of an answer.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// Returns the answer of a ready node. A node that is not ready or does not answer in time is a failure with
/// exit code 1, as container runtimes expect.
pub(super) async fn ask(config: &Config) -> Result<String, Failure> {
    let address = address(config)?;
    let failed = |reason: String| Failure::new(Exit::Failed, format!("the node at {address} {reason}"));
    match tokio::time::timeout(LIMIT, get_ready(address)).await {
        Err(_) => Err(failed(format!("has not answered within {} ms", LIMIT.as_millis()))),
        Ok(Err(reason)) => Err(failed(format!("does not answer: {reason}"))),
        Ok(Ok((StatusCode::OK, body))) => Ok(body),
        Ok(Ok((status, body))) => Err(failed(format!("is not ready: {status} {body}"))),
    }
}

/// Returns the address of the node's HTTP server: from `runtime.json`, else from the configuration.
pub(super) fn address(config: &Config) -> Result<SocketAddr, Failure> {
    let file = RuntimeFile::read(&config.data_dir)
        .map_err(|e| Failure::new(Exit::Failed, format!("runtime.json cannot be read: {e}")))?;
    let mut address = match file.and_then(|file| file.http) {
        Some(http) => http
            .parse()
            .map_err(|_| Failure::new(Exit::Failed, "runtime.json has no address that can be read"))?,
        None => config.http.listen,
    };
    if address.port() == 0 {
        return Err(Failure::new(Exit::Failed, "the node is not running: there is no runtime.json"));
    }
    if address.ip().is_unspecified() {
        let loopback = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    Ok(address)
}

async fn get_ready(
    address: SocketAddr,
) -> Result<(StatusCode, String), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request =
        Request::get("/health/ready").header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    // The task ends once the answer is read or the peer has closed the connection.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Returns a configuration whose node answers with `answer`, or never.
    async fn node(answer: Option<&'static str>) -> (tempfile::TempDir, Config) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let http = Some(listener.local_addr().unwrap().to_string());
        RuntimeFile { http, ..RuntimeFile::default() }.write(dir.path()).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let n = stream.read(&mut request).await.unwrap();
            assert!(request[..n].starts_with(b"GET /health/ready HTTP/1.1\r\n"));
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                None => std::future::pending().await,
            }
        });
        let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        (dir, config)
    }

    #[tokio::test]
    async fn a_ready_node_is_told() {
        let (_dir, config) = node(Some("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n")).await;
        assert_eq!(ask(&config).await.unwrap(), "ready");
    }

    #[tokio::test]
    async fn one_that_is_not_ready_or_breaks_off_or_answers_nonsense_or_too_much_fails() {
        let answers: [(&'static str, &str); 4] = [
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 5\r\n\r\nstore", "is not ready: 503"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nready", "does not answer"),
            ("nonsense\r\n\r\n", "does not answer"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", "does not answer"),
        ];
        for (answer, reason) in answers {
            let (_dir, config) = node(Some(answer)).await;
            let failure = ask(&config).await.unwrap_err();
            assert!(failure.exit == Exit::Failed && failure.message.contains(reason), "{failure:?}");
        }
    }

    #[tokio::test]
    async fn one_that_is_silent_fails_within_the_limit() {
        let (_dir, config) = node(None).await;
        let started = std::time::Instant::now();
        let failure = ask(&config).await.unwrap_err();
        assert!(failure.message.contains("within 2000 ms"), "{failure:?}");
        assert!(started.elapsed() < LIMIT * 3, "{:?}", started.elapsed());
    }

    #[test]
    fn the_address_is_the_written_one_or_the_configured_one_and_reachable() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        assert_eq!(address(&config).unwrap().to_string(), "127.0.0.1:8080");
        config.http.listen = "0.0.0.0:80".parse().unwrap();
        assert_eq!(address(&config).unwrap().to_string(), "127.0.0.1:80");
        config.http.listen = "[::]:80".parse().unwrap();
        assert_eq!(address(&config).unwrap().to_string(), "[::1]:80");
        config.http.listen = "127.0.0.1:0".parse().unwrap();
        assert!(address(&config).unwrap_err().message.contains("not running"));
        let http = Some("0.0.0.0:4711".to_owned());
        RuntimeFile { http, ..RuntimeFile::default() }.write(dir.path()).unwrap();
        assert_eq!(address(&config).unwrap().to_string(), "127.0.0.1:4711");
    }
}
