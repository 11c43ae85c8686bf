//! The byte streams of a session as ractor sees them. They end at once when the session is ended. No message
//! reaches ractor that is longer than a frame may be, or that would make it keep too much (`control`). Frames
//! for the gate bypass ractor (`shortcut`).
//!
//! The streams must end at once, because ractor does not stop its writing task with the session. That task
//! would keep the socket of a silent peer open, and all data queued for it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use ractor_cluster::{BoxRead, BoxWrite};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::super::members::FrameSink;
use super::control::{self, About, CONTROL_BYTES_MAX, Kept};
use super::gate::Link;
use super::shortcut::{self, HEAD_BYTES};

/// Why a session ended, as far as its streams know. The first reason is kept.
pub(super) type Reason = Arc<OnceLock<String>>;

const BUFFER_BYTES: usize = 32 * 1024;
/// The most bytes per write; a longer message is written alone.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Reads until it is cancelled or a message is too long.
pub(super) struct Reading {
    inner: BoxRead,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    buffer: Buffer,
    /// The remaining bytes of a message for ractor.
    left: u64,
    frame_max_bytes: u64,
    frames: Option<Frames>,
    kept: Kept,
    reason: Reason,
}

/// The destination of a session's frames.
pub(super) struct Frames {
    pub(super) link_in: u64,
    pub(super) link: Arc<Link>,
    pub(super) sink: FrameSink,
}

/// The destination of the next message.
enum Next {
    /// For ractor; the length includes the header.
    Ractors(u64),
    /// A frame, which was delivered; the length includes the header.
    Delivered(usize),
    /// Not known yet; this many bytes are needed to tell.
    Unknown(usize),
}

impl Reading {
    pub(super) fn new(
        inner: BoxRead,
        cancel: &CancellationToken,
        frame_max_bytes: u64,
        frames: Option<Frames>,
        reason: Reason,
    ) -> Self {
        let (cancelled, buffer) = (Box::pin(cancel.clone().cancelled_owned()), Buffer::default());
        let kept = Kept::default();
        Reading { inner, cancelled, buffer, left: 0, frame_max_bytes, frames, kept, reason }
    }

    fn next(&mut self) -> io::Result<Next> {
        let bytes = self.buffer.filled();
        let Some((head, rest)) = bytes.split_first_chunk() else { return Ok(Next::Unknown(HEAD_BYTES)) };
        let length = u64::from_be_bytes(*head);
        if length > self.frame_max_bytes {
            let max = self.frame_max_bytes;
            let told = format!("a frame of {length} bytes, and {max} are the most (frame_max_bytes)");
            return Err(control::refused(told));
        }
        let whole = Next::Ractors(HEAD_BYTES as u64 + length);
        let message_bytes = usize::try_from(length).map_err(io::Error::other)?;
        let beginning = rest.get(..message_bytes).unwrap_or(rest);
        match control::about(beginning, length) {
            None => return Ok(Next::Unknown(bytes.len() + 1)),
            Some(About::Kept) if length > CONTROL_BYTES_MAX => {
                let told = format!("{length} bytes about actors, and {CONTROL_BYTES_MAX} are the most");
                return Err(control::refused(told));
            }
            Some(About::Kept) => {
                let Some(message) = rest.get(..message_bytes) else {
                    return Ok(Next::Unknown(HEAD_BYTES + message_bytes));
                };
                return self.kept.note(message).map(|()| whole);
            }
            Some(About::Passing) => {}
        }
        let Some(frames) = &self.frames else { return Ok(whole) };
        match shortcut::may_be_frame(beginning, length) {
            None => return Ok(Next::Unknown(bytes.len() + 1)),
            Some(false) => return Ok(whole),
            Some(true) => {}
        }
        let Some(message) = rest.get(..message_bytes) else {
            return Ok(Next::Unknown(HEAD_BYTES + message_bytes));
        };
        // Until the other node's gate is known, the frame goes through ractor to this node's gate, which
        // decides.
        match (shortcut::read(message, frames.link_in), frames.link.wire.get()) {
            (Some(frame), Some(wire)) => {
                (frames.sink)(&frames.link.owner, wire, frame);
                Ok(Next::Delivered(HEAD_BYTES + message_bytes))
            }
            _ => Ok(whole),
        }
    }

    fn poll_ractors(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.cancelled.as_mut().poll(cx).is_ready() {
                // End of file, as if the peer had closed the connection.
                return Poll::Ready(Ok(()));
            }
            let mut wanted = 1;
            if self.left == 0 {
                match self.next()? {
                    Next::Ractors(bytes) => self.left = bytes,
                    Next::Delivered(bytes) => {
                        self.buffer.consume(bytes);
                        continue;
                    }
                    Next::Unknown(bytes) => wanted = bytes,
                }
            }
            let here = self.buffer.filled();
            let ractors =
                here.len().min(buf.remaining()).min(usize::try_from(self.left).unwrap_or(usize::MAX));
            if let Some(bytes) = here.get(..ractors).filter(|bytes| !bytes.is_empty()) {
                buf.put_slice(bytes);
                self.buffer.consume(ractors);
                self.left -= ractors as u64;
                return Poll::Ready(Ok(()));
            }
            if ready!(self.buffer.poll_fill(&mut self.inner, wanted, cx))? == 0 {
                let _ = self.reason.set("the other side closed the connection".to_owned());
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncRead for Reading {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = ready!(this.poll_ractors(cx, buf));
        if let Err(error) = &read {
            let _ = this.reason.set(error.to_string());
        }
        Poll::Ready(read)
    }
}

/// Bytes that were read but not yet used: `bytes[begin..end]`.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Buffer {
    fn filled(&self) -> &[u8] {
        self.bytes.get(self.begin..self.end).unwrap_or_default()
    }

    fn consume(&mut self, bytes: usize) {
        self.begin = (self.begin + bytes).min(self.end);
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
            if self.bytes.len() > BUFFER_BYTES {
                // A large message was consumed. Free its memory, because the next one may take a while.
                self.bytes = Vec::new();
            }
        }
    }

    /// Reads more bytes, with room for `wanted` bytes in total. The buffer grows with the bytes received, not
    /// with the announced length.
    fn poll_fill(
        &mut self,
        inner: &mut BoxRead,
        wanted: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.begin > 0 && (self.end == self.bytes.len() || self.begin + wanted > self.bytes.len()) {
            self.bytes.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if self.end == self.bytes.len() {
            let doubled = self.bytes.len().saturating_mul(2);
            self.bytes.resize(doubled.min(wanted).max(self.end + 1).max(BUFFER_BYTES), 0);
        }
        let mut room = ReadBuf::new(self.bytes.get_mut(self.end..).unwrap_or_default());
        ready!(Pin::new(inner).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        self.end += read;
        Poll::Ready(Ok(read))
    }
}

/// The queue of messages to write, from ractor and from senders of frames. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Outgoing(mpsc::UnboundedSender<Vec<u8>>);

impl Outgoing {
    /// Writes the queue to `inner` until `cancel` is cancelled, and cancels it after a failed write. The
    /// socket is then closed at once.
    pub(super) fn start(inner: BoxWrite, cancel: CancellationToken, reason: Reason) -> Self {
        let (sender, waiting) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let written = cancel.run_until_cancelled(write(inner, waiting)).await;
            if let Some(Err(error)) = written {
                let _ = reason.set(error.to_string());
            }
            cancel.cancel();
        });
        Outgoing(sender)
    }

    /// Queues whole messages. Returns false if the session has ended.
    pub(super) fn send(&self, messages: Vec<u8>) -> bool {
        self.0.send(messages).is_ok()
    }
}

async fn write(mut inner: BoxWrite, mut waiting: mpsc::UnboundedReceiver<Vec<u8>>) -> io::Result<()> {
    while let Some(mut batch) = waiting.recv().await {
        while batch.len() < BATCH_BYTES_MAX
            && let Ok(more) = waiting.try_recv()
        {
            batch.extend_from_slice(&more);
        }
        inner.write_all(&batch).await?;
        inner.flush().await?;
    }
    Ok(())
}

/// The writer for ractor. ractor writes whole messages; the bytes of one write are never split.
pub(super) struct Writing(pub(super) Outgoing);

impl AsyncWrite for Writing {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = self.0.send(bytes.to_vec());
        Poll::Ready(if taken { Ok(bytes.len()) } else { Err(io::ErrorKind::ConnectionAborted.into()) })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::AsyncReadExt;

    use super::super::super::members::Wire;
    use super::*;

    const LINK: u64 = 258;

    /// Returns a message that announces `length` bytes, has `body` bytes, and is an authentication message if
    /// it has room for a field.
    fn message(length: u64, body: usize) -> Vec<u8> {
        let mut bytes = length.to_be_bytes().to_vec();
        let part = (0..length)
            .rev()
            .find(|part| 1 + prost::encoding::encoded_len_varint(*part) as u64 + part == length);
        if let Some(part) = part {
            bytes.push(0x0a);
            prost::encoding::encode_varint(part, &mut bytes);
        }
        bytes.resize(HEAD_BYTES + body, 0);
        bytes
    }

    type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

    fn frames() -> (Option<Frames>, Seen) {
        let seen = Seen::default();
        let see = Arc::clone(&seen);
        let link = Link { ticket: 1, owner: "a#1".into(), wire: OnceLock::new() };
        assert!(link.wire.set(Wire::nowhere()).is_ok());
        let sink: FrameSink = Arc::new(move |owner, _, frame| {
            assert_eq!(&**owner, "a#1");
            see.lock().unwrap().push(frame.to_vec());
        });
        (Some(Frames { link_in: LINK, link: Arc::new(link), sink }), seen)
    }

    /// Returns the bytes that ractor reads and the result, for a `stream` that arrives in pieces.
    async fn read(
        stream: &[u8],
        piece: usize,
        max: u64,
        frames: Option<Frames>,
    ) -> (Vec<u8>, io::Result<()>) {
        let (mut theirs, ours) = tokio::io::duplex(piece);
        let mut reading =
            Reading::new(Box::new(ours), &CancellationToken::new(), max, frames, Reason::default());
        let mut ractors = Vec::new();
        let (_, read) = tokio::join!(
            async move {
                // The reader may have stopped.
                let _ = theirs.write_all(stream).await;
            },
            async {
                let read = reading.read_to_end(&mut ractors).await.map(drop);
                drop(reading);
                read
            }
        );
        (ractors, read)
    }

    #[tokio::test]
    async fn frames_are_delivered_and_the_rest_is_ractors_however_it_is_cut() {
        let foreign = shortcut::write(7, LINK + 1, b"foreign");
        let ractors = [message(10, 10), message(0, 0), foreign, message(40, 40)];
        let stream = [
            &shortcut::write(7, LINK, b"one")[..],
            &ractors[0],
            &ractors[1],
            &shortcut::write(7, LINK, b"two"),
            &shortcut::write(7, LINK, &[3; 60]),
            &ractors[2],
            &ractors[3],
            &shortcut::write(7, LINK, b""),
        ]
        .concat();
        for piece in 1..=stream.len() {
            let (frames, seen) = frames();
            let (read, end) = read(&stream, piece, 100, frames).await;
            assert!(end.is_ok() && read == ractors.concat(), "pieces of {piece}");
            assert_eq!(*seen.lock().unwrap(), [&b"one"[..], b"two", &[3; 60], b""], "pieces of {piece}");
            let (all, _) = super::tests::read(&stream, piece, 100, None).await;
            assert_eq!(all, stream, "pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn messages_up_to_the_limit_pass() {
        for piece in [1, 7, 100_000] {
            let large = shortcut::write(7, LINK, &vec![1; 90_000]);
            let max = (large.len() - HEAD_BYTES) as u64;
            let (frames, seen) = frames();
            let stream = [&message(max, max as usize)[..], &large, &message(max + 1, 0)].concat();
            let (read, end) = read(&stream, piece, max, frames).await;
            assert_eq!(read.len(), HEAD_BYTES + max as usize);
            assert_eq!(seen.lock().unwrap().len(), 1);
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::InvalidData, "pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn what_would_have_ractor_keep_too_much_ends_the_session() {
        // A hundred actors of two bytes each, in one message of ractor's `control.proto`.
        let actors = [0x0a, 0x00].repeat(100);
        let many: Vec<u8> = (0..100u8).flat_map(|pid| [0x0a, 0x02, 0x08, pid]).collect();
        let control = |spawn: &[u8]| {
            let mut bytes = Vec::new();
            for part in [spawn.len() + 3, spawn.len()] {
                bytes.extend([if bytes.is_empty() { 0x1a } else { 0x0a }]);
                prost::encoding::encode_varint(part as u64, &mut bytes);
            }
            [&(bytes.len() as u64 + spawn.len() as u64).to_be_bytes()[..], &bytes, spawn].concat()
        };
        let end = |stream: Vec<u8>| async move { super::tests::read(&stream, 7, 1 << 20, None).await };
        let (seen, ended) = end(control(&actors)).await;
        assert!(ended.is_ok() && seen == control(&actors), "all of them the same one");
        let (seen, ended) = end(control(&many)).await;
        assert_eq!((seen.len(), ended.unwrap_err().kind()), (0, io::ErrorKind::InvalidData));
        let long = control(&[0x0a, 0x00].repeat(20_000));
        let (seen, ended) = end(long).await;
        assert_eq!((seen.len(), ended.unwrap_err().kind()), (0, io::ErrorKind::InvalidData));
    }

    #[tokio::test]
    async fn before_the_other_gate_is_known_frames_are_ractors() {
        let (mut frames, seen) = frames();
        let link = Link { ticket: 1, owner: "a#1".into(), wire: OnceLock::new() };
        frames.as_mut().unwrap().link = Arc::new(link);
        let stream = shortcut::write(7, LINK, b"early");
        assert_eq!(read(&stream, 64, 100, frames).await.0, stream);
        assert!(seen.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_cancelled_stream_ends_though_the_peer_is_silent() {
        let (silent, ours) = tokio::io::duplex(1);
        let (reader, writer) = tokio::io::split(ours);
        let cancel = CancellationToken::new();
        let mut reading = Reading::new(Box::new(reader), &cancel, 10, None, Reason::default());
        let outgoing = Outgoing::start(Box::new(writer), cancel.clone(), Reason::default());
        let mut writing = Writing(outgoing.clone());
        let read = tokio::spawn(async move { reading.read_u8().await.is_err() });
        writing.write_all(&[0; 10]).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!read.is_finished() && outgoing.send(vec![1]));
        cancel.cancel();
        assert!(read.await.unwrap());
        outgoing.0.closed().await;
        assert!(!outgoing.send(vec![1]) && writing.write_all(&[0]).await.is_err());
        drop(silent);
    }

    #[tokio::test]
    async fn a_stream_that_cannot_be_written_ends() {
        let (theirs, ours) = tokio::io::duplex(1);
        drop(theirs);
        let cancel = CancellationToken::new();
        let reason = Reason::default();
        let outgoing = Outgoing::start(Box::new(ours), cancel.clone(), Arc::clone(&reason));
        assert!(outgoing.send(vec![1; 10]));
        cancel.cancelled().await;
        assert!(reason.get().is_some());
    }
}
