//! Requests and replies on the control plane: one length-prefixed byte string each way.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{StreamProtocol, request_response};

use super::limits::MESSAGE_BYTES_MAX;

/// Bytes that the transport puts in front of an application message: its kind or status.
const PREFIX: usize = 1;

/// Opaque bytes, bounded, without a second encoding around them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RawCodec;

impl request_response::Codec for RawCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &bytes).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &bytes).await
    }
}

/// Memory grows with the bytes that arrive, never with the length announced.
async fn read<T: AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length);
    if usize::try_from(length).map_or(true, |length| length > MESSAGE_BYTES_MAX + PREFIX) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too large"));
    }
    let mut bytes = Vec::new();
    io.take(u64::from(length)).read_to_end(&mut bytes).await?;
    if u32::try_from(bytes.len()) != Ok(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

async fn write<T: AsyncWrite + Unpin + Send>(io: &mut T, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= MESSAGE_BYTES_MAX + PREFIX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message too large"))?;
    let mut frame = Vec::with_capacity(bytes.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(bytes);
    io.write_all(&frame).await?;
    io.flush().await
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};

    use super::*;

    #[test]
    fn a_message_survives_and_its_truncation_does_not() {
        let mut wire = Vec::new();
        block_on(write(&mut wire, b"hello")).unwrap();
        assert_eq!(block_on(read(&mut Cursor::new(wire.clone()))).unwrap(), b"hello");
        for end in 0..wire.len() {
            assert!(block_on(read(&mut Cursor::new(wire[..end].to_vec()))).is_err());
        }
    }

    #[test]
    fn an_announced_length_beyond_the_bound_is_refused() {
        let wire = u32::MAX.to_be_bytes().to_vec();
        let error = block_on(read(&mut Cursor::new(wire))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let large = vec![0; MESSAGE_BYTES_MAX + 2];
        assert!(block_on(write(&mut Vec::new(), &large)).is_err());
    }
}
