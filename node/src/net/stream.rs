//! One bidirectional byte stream, whichever transport carries it, and frames on it.
//!
//! The stream's end is not a message: transports also end a stream when its holder vanishes, so
//! whoever needs to know that everything came must say so in a last frame.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf,
        ReadHalf, WriteHalf,
    },
    runtime::Handle,
    time::timeout,
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _};

use super::{
    NetError,
    limits::{DRAIN_BYTES_MAX, DRAIN_TIMEOUT},
    tap::{Direction, StreamTap},
};

/// Bytes of a frame's length prefix (big-endian).
const PREFIX: usize = 4;
/// Memory set aside for a frame before its bytes arrive.
const READ_AHEAD: usize = 64 * 1024;
/// What a stream within this process holds before its writer waits.
const LOCAL_BUFFER: usize = 64 * 1024;

/// Which transport carries a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// The bulk plane's own QUIC connection.
    Quic,
    /// A substream of the control connection, because no bulk connection exists.
    ControlStream,
    /// Nothing: both ends are in this process, when a node is home and executes.
    Local,
}

/// A bidirectional stream to a member or client. Dropping it ends both directions.
#[derive(Debug)]
pub struct BulkStream {
    reader: BulkReader,
    writer: BulkWriter,
}

/// The receiving half of a [`BulkStream`].
pub struct BulkReader {
    io: ReadIo,
    /// The frame being received; survives a cancelled [`BulkReader::read_frame`].
    partial: Vec<u8>,
    ended: bool,
    ends: Arc<Ends>,
    tap: Option<StreamTap>,
    via: Via,
    _slot: Slot,
}

/// The sending half of a [`BulkStream`].
pub struct BulkWriter {
    io: WriteIo,
    ends: Arc<Ends>,
    tap: Option<StreamTap>,
    via: Via,
    _slot: Slot,
}

/// What each half of a control stream has to know of the other. yamux resets a stream that is
/// dropped unfinished, but a finished one it forgets, and a peer that waits for room to send more
/// would wait for ever; QUIC tells it to stop.
#[derive(Debug, Default)]
struct Ends {
    finished: AtomicBool,
    reader_gone: AtomicBool,
}

/// Held while a stream lives; its drop frees whatever bound the stream counts against.
pub(super) type Slot = Option<Arc<dyn Send + Sync>>;

enum ReadIo {
    Quic(quinn::RecvStream),
    /// `None` only while being dropped.
    Control(Option<ReadHalf<Compat<libp2p::Stream>>>),
    Local(ReadHalf<DuplexStream>),
}

enum WriteIo {
    Quic(quinn::SendStream),
    Control(WriteHalf<Compat<libp2p::Stream>>),
    Local(WriteHalf<DuplexStream>),
}

impl BulkStream {
    pub(super) fn quic(
        (send, recv): (quinn::SendStream, quinn::RecvStream),
        tap: Option<StreamTap>,
        slot: Slot,
    ) -> Self {
        Self::join(ReadIo::Quic(recv), WriteIo::Quic(send), Via::Quic, tap, slot)
    }

    pub(super) fn control(stream: libp2p::Stream, tap: Option<StreamTap>, slot: Slot) -> Self {
        let (read, write) = tokio::io::split(stream.compat());
        Self::join(
            ReadIo::Control(Some(read)),
            WriteIo::Control(write),
            Via::ControlStream,
            tap,
            slot,
        )
    }

    /// Two ends of a stream within this process.
    #[must_use]
    pub fn local_pair() -> (Self, Self) {
        let (one, other) = tokio::io::duplex(LOCAL_BUFFER);
        let end = |io: DuplexStream| {
            let (read, write) = tokio::io::split(io);
            Self::join(ReadIo::Local(read), WriteIo::Local(write), Via::Local, None, None)
        };
        (end(one), end(other))
    }

    fn join(read: ReadIo, write: WriteIo, via: Via, tap: Option<StreamTap>, slot: Slot) -> Self {
        let ends = Arc::new(Ends::default());
        let reader = BulkReader {
            io: read,
            partial: Vec::new(),
            ended: false,
            ends: Arc::clone(&ends),
            tap: tap.clone(),
            via,
            _slot: slot.clone(),
        };
        let writer = BulkWriter { io: write, ends, tap, via, _slot: slot };
        Self { reader, writer }
    }

    /// Which transport carries it.
    #[must_use]
    pub fn via(&self) -> Via {
        self.reader.via
    }

    /// Splits into halves that can be used from different tasks.
    #[must_use]
    pub fn into_split(self) -> (BulkReader, BulkWriter) {
        (self.reader, self.writer)
    }

    /// See [`BulkReader::read_frame`].
    ///
    /// # Errors
    /// See [`BulkReader::read_frame`].
    pub async fn read_frame(&mut self, limit: usize) -> Result<Option<Vec<u8>>, NetError> {
        self.reader.read_frame(limit).await
    }

    /// See [`BulkWriter::write_frame`].
    ///
    /// # Errors
    /// See [`BulkWriter::write_frame`].
    pub async fn write_frame(&mut self, bytes: &[u8], limit: usize) -> Result<(), NetError> {
        self.writer.write_frame(bytes, limit).await
    }

    /// See [`BulkWriter::finish`].
    ///
    /// # Errors
    /// See [`BulkWriter::finish`].
    pub async fn finish(&mut self) -> Result<(), NetError> {
        self.writer.finish().await
    }
}

impl BulkReader {
    /// Which transport carries it.
    #[must_use]
    pub fn via(&self) -> Via {
        self.via
    }

    /// Receives the next frame of at most `limit` bytes, or `None` if the stream ended before one.
    ///
    /// Cancel-safe: a frame received in part is continued by the next call. Memory grows with the
    /// bytes that arrive, not with the length announced.
    ///
    /// # Errors
    /// [`NetError::TooLarge`] for a longer frame, after which the stream is of no use, and
    /// [`NetError::Io`] if it breaks or ends inside a frame.
    pub async fn read_frame(&mut self, limit: usize) -> Result<Option<Vec<u8>>, NetError> {
        loop {
            let wanted = match self.partial.first_chunk::<PREFIX>() {
                None => PREFIX,
                Some(prefix) => {
                    let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
                    if length > limit {
                        return Err(NetError::TooLarge { length, limit });
                    }
                    length.saturating_add(PREFIX)
                }
            };
            let missing = wanted - self.partial.len();
            if missing == 0 && wanted > PREFIX || self.partial == [0; PREFIX] {
                let mut frame = std::mem::take(&mut self.partial);
                frame.drain(..PREFIX);
                return Ok(Some(frame));
            }
            self.partial.reserve(missing.min(READ_AHEAD));
            let missing = u64::try_from(missing).unwrap_or(u64::MAX);
            let read = match &mut self.io {
                ReadIo::Quic(io) => io.take(missing).read_buf(&mut self.partial).await?,
                ReadIo::Control(Some(io)) => io.take(missing).read_buf(&mut self.partial).await?,
                ReadIo::Control(None) => 0,
                ReadIo::Local(io) => io.take(missing).read_buf(&mut self.partial).await?,
            };
            if let Some(tap) = &self.tap {
                tap.piece(Direction::In, &self.partial[self.partial.len() - read..]);
            }
            if read == 0 {
                self.ended = true;
                if self.partial.is_empty() {
                    return Ok(None);
                }
                return Err(NetError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl BulkWriter {
    /// Which transport carries it.
    #[must_use]
    pub fn via(&self) -> Via {
        self.via
    }

    /// Sends one frame of at most `limit` bytes and hands it to the network at once.
    ///
    /// Not cancel-safe: a cancelled call may leave half a frame on the wire.
    ///
    /// # Errors
    /// [`NetError::TooLarge`] without having sent anything, or [`NetError::Io`].
    pub async fn write_frame(&mut self, bytes: &[u8], limit: usize) -> Result<(), NetError> {
        let length = bytes.len();
        let prefix = u32::try_from(length)
            .ok()
            .filter(|_| length <= limit)
            .ok_or(NetError::TooLarge { length, limit })?;
        // One buffer for both, so that a token does not travel in two packets.
        let mut frame = Vec::with_capacity(length.saturating_add(PREFIX));
        frame.extend_from_slice(&prefix.to_be_bytes());
        frame.extend_from_slice(bytes);
        self.write_all(&frame).await?;
        self.flush().await?;
        Ok(())
    }

    /// Ends the sending direction after what was sent; the other direction stays open.
    ///
    /// # Errors
    /// [`NetError::Io`] if the stream is broken.
    pub async fn finish(&mut self) -> Result<(), NetError> {
        self.shutdown().await?;
        Ok(())
    }
}

impl AsyncRead for BulkReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.partial.is_empty() {
            let count = self.partial.len().min(buffer.remaining());
            buffer.put_slice(&self.partial[..count]);
            self.partial.drain(..count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let outcome = match &mut self.io {
            ReadIo::Quic(io) => AsyncRead::poll_read(Pin::new(io), cx, buffer),
            ReadIo::Control(Some(io)) => Pin::new(io).poll_read(cx, buffer),
            ReadIo::Control(None) => Poll::Ready(Ok(())),
            ReadIo::Local(io) => Pin::new(io).poll_read(cx, buffer),
        };
        ready!(outcome)?;
        if buffer.filled().len() == before && buffer.remaining() > 0 {
            self.ended = true;
        }
        if let Some(tap) = &self.tap {
            tap.piece(Direction::In, &buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BulkWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = match &mut self.io {
            WriteIo::Quic(io) => AsyncWrite::poll_write(Pin::new(io), cx, bytes),
            WriteIo::Control(io) => Pin::new(io).poll_write(cx, bytes),
            WriteIo::Local(io) => Pin::new(io).poll_write(cx, bytes),
        };
        let count = ready!(outcome)?;
        if let Some(tap) = &self.tap {
            tap.piece(Direction::Out, &bytes[..count]);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            WriteIo::Quic(io) => Pin::new(io).poll_flush(cx),
            WriteIo::Control(io) => Pin::new(io).poll_flush(cx),
            WriteIo::Local(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let reader_gone = self.ends.reader_gone.load(Ordering::SeqCst);
        match &mut self.io {
            WriteIo::Quic(io) => Pin::new(io).poll_shutdown(cx),
            // Left unfinished, the stream is reset when dropped, which is what the peer must see.
            WriteIo::Control(io) if reader_gone => Pin::new(io).poll_flush(cx),
            WriteIo::Control(io) => {
                ready!(Pin::new(io).poll_shutdown(cx))?;
                self.ends.finished.store(true, Ordering::SeqCst);
                Poll::Ready(Ok(()))
            }
            WriteIo::Local(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

impl Drop for BulkReader {
    fn drop(&mut self) {
        self.ends.reader_gone.store(true, Ordering::SeqCst);
        let ReadIo::Control(io) = &mut self.io else { return };
        let unread = !self.ended && self.ends.finished.load(Ordering::SeqCst);
        if let (true, Some(io), Ok(runtime)) = (unread, io.take(), Handle::try_current()) {
            // Making room once suffices: what arrives after the drop is answered by a reset.
            runtime.spawn(timeout(DRAIN_TIMEOUT, drain(io)));
        }
    }
}

/// Reads and forgets what the peer was still allowed to send.
async fn drain(io: ReadHalf<Compat<libp2p::Stream>>) {
    tokio::io::copy(&mut io.take(DRAIN_BYTES_MAX), &mut tokio::io::sink()).await.ok();
}

impl AsyncRead for BulkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

impl AsyncWrite for BulkStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

impl std::fmt::Debug for BulkReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkReader").field("via", &self.via).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for BulkWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkWriter").field("via", &self.via).finish_non_exhaustive()
    }
}
