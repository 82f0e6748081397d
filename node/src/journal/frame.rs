//! Bytes of a segment file: a header, then frames, each one append (specs/journal.md §2).

use super::record::{APPEND_BYTES_MAX, RECORDS_MAX, Record};

/// Bytes before the first frame of a segment.
pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
const SEGMENT_MAGIC: &[u8; 8] = b"ALLMENDJ";
const SEGMENT_VERSION: u32 = 1;

/// Bytes before the records of a frame.
pub(super) const FRAME_HEADER_BYTES: usize = 32;
/// Bytes before the contents of a record.
pub(super) const RECORD_HEADER_BYTES: usize = 12;
/// Begins each frame; found again when looking for frames behind a damaged one.
const FRAME_MAGIC: [u8; 4] = *b"\xA1LMF";
/// A frame of the largest append.
pub(super) const FRAME_BYTES_MAX: usize =
    FRAME_HEADER_BYTES + APPEND_BYTES_MAX + RECORDS_MAX * RECORD_HEADER_BYTES;

/// What stands at the start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u32,
    /// Number of its first frame.
    pub(super) first_frame: u64,
    /// Leaves in all segments before it.
    pub(super) first_leaf: u64,
    /// Random name of this journal, to tell copies of different journals apart.
    pub(super) journal_id: [u8; 16],
    /// Start of SHA-256 of the log's verifier key line.
    pub(super) log_id: [u8; 12],
}

impl SegmentHeader {
    pub(super) fn to_bytes(self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_frame.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_leaf.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.journal_id);
        bytes[48..60].copy_from_slice(&self.log_id);
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<SEGMENT_HEADER_BYTES>()?;
        let version = u32::from_le_bytes(array(&bytes[8..])?);
        let checksum = u32::from_le_bytes(array(&bytes[60..])?);
        let whole = bytes.starts_with(SEGMENT_MAGIC)
            && version == SEGMENT_VERSION
            && crc32c::crc32c(&bytes[..60]) == checksum;
        if !whole {
            return None;
        }
        Some(Self {
            number: u32::from_le_bytes(array(&bytes[12..])?),
            first_frame: u64::from_le_bytes(array(&bytes[16..])?),
            first_leaf: u64::from_le_bytes(array(&bytes[24..])?),
            journal_id: array(&bytes[32..])?,
            log_id: array(&bytes[48..])?,
        })
    }
}

/// One frame that has been found whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    /// Its number in the journal, from 0.
    pub(super) number: u64,
    /// Frames that were known to be on the platter when this one was written. A damaged frame
    /// below that number cannot be the remains of a crash.
    pub(super) durable: u64,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame at the start of `bytes`; `None` if it is not whole.
    pub(super) fn at_start(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        if !header.starts_with(&FRAME_MAGIC) {
            return None;
        }
        let checksum = u32::from_le_bytes(array(&header[4..])?);
        let body_len = u32::from_le_bytes(array(&header[24..])?) as usize;
        if body_len > FRAME_BYTES_MAX - FRAME_HEADER_BYTES {
            return None;
        }
        let body = rest.get(..body_len)?;
        if crc32c::crc32c_append(crc32c::crc32c(&header[8..]), body) != checksum {
            return None;
        }
        Some(Self {
            number: u64::from_le_bytes(array(&header[8..])?),
            durable: u64::from_le_bytes(array(&header[16..])?),
            body,
        })
    }

    /// Bytes it takes up.
    pub(super) const fn len(&self) -> usize {
        FRAME_HEADER_BYTES + self.body.len()
    }

    /// Its records: offset from the start of the frame, kind, contents. `None` ends a body whose
    /// lengths do not add up, which a whole frame of ours does not have.
    pub(super) fn records(&self) -> impl Iterator<Item = Option<(usize, u16, &'a [u8])>> + use<'a> {
        let body = self.body;
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= body.len() {
                return None;
            }
            let Some((kind, bytes)) = record_at_start(&body[at..]) else {
                at = body.len();
                return Some(None);
            };
            let offset = FRAME_HEADER_BYTES + at;
            at += RECORD_HEADER_BYTES + bytes.len();
            Some(Some((offset, kind, bytes)))
        })
    }
}

/// Finds the next whole frame in `bytes`, at any offset.
pub(super) fn next_whole_frame(bytes: &[u8]) -> Option<(usize, Frame<'_>)> {
    let candidates = bytes.windows(FRAME_MAGIC.len()).enumerate();
    candidates
        .filter(|(_, window)| *window == FRAME_MAGIC)
        .find_map(|(at, _)| Some((at, Frame::at_start(&bytes[at..])?)))
}

/// Appends the frame of `records` to `buffer` and returns the records' offsets from its start.
pub(super) fn encode(
    buffer: &mut Vec<u8>,
    number: u64,
    durable: u64,
    records: &[Record],
) -> Vec<usize> {
    let start = buffer.len();
    let mut offsets = Vec::with_capacity(records.len());
    buffer.resize(start + FRAME_HEADER_BYTES, 0);
    for record in records {
        offsets.push(buffer.len() - start);
        let bytes = record.bytes();
        buffer.extend_from_slice(&record_checksum(record.kind(), bytes).to_le_bytes());
        // `check` bounds each length far below 2^32.
        buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        buffer.extend_from_slice(&record.kind().to_le_bytes());
        buffer.extend_from_slice(&[0; 2]);
        buffer.extend_from_slice(bytes);
    }
    let frame = &mut buffer[start..];
    let body_len = (frame.len() - FRAME_HEADER_BYTES) as u32;
    frame[..4].copy_from_slice(&FRAME_MAGIC);
    frame[8..16].copy_from_slice(&number.to_le_bytes());
    frame[16..24].copy_from_slice(&durable.to_le_bytes());
    frame[24..28].copy_from_slice(&body_len.to_le_bytes());
    frame[28..32].copy_from_slice(&(records.len() as u32).to_le_bytes());
    let checksum = crc32c::crc32c(&frame[8..]);
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    offsets
}

/// The kind and length in a record's header, unchecked.
pub(super) fn record_header(header: &[u8; RECORD_HEADER_BYTES]) -> (u32, usize, u16) {
    let [c0, c1, c2, c3, l0, l1, l2, l3, k0, k1, ..] = *header;
    let checksum = u32::from_le_bytes([c0, c1, c2, c3]);
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    (checksum, len, u16::from_le_bytes([k0, k1]))
}

pub(super) fn record_checksum(kind: u16, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&kind.to_le_bytes()), bytes)
}

fn record_at_start(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>()?;
    let (checksum, len, kind) = record_header(header);
    let bytes = rest.get(..len)?;
    (record_checksum(kind, bytes) == checksum).then_some((kind, bytes))
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Record> {
        vec![Record::Leaf(b"leaf".to_vec()), Record::Private { kind: 7, bytes: vec![] }]
    }

    #[test]
    fn frames_round_trip() {
        let mut buffer = b"before".to_vec();
        let offsets = encode(&mut buffer, 5, 3, &sample());
        let (at, frame) = next_whole_frame(&buffer).unwrap();
        assert_eq!((at, frame.number, frame.durable), (6, 5, 3));
        assert_eq!(at + frame.len(), buffer.len());
        let back: Vec<_> = frame.records().map(Option::unwrap).collect();
        assert_eq!(back[0], (offsets[0], 0, &b"leaf"[..]));
        assert_eq!(back[1], (offsets[1], 7, &b""[..]));
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let mut buffer = Vec::new();
        encode(&mut buffer, 5, 3, &sample());
        for bit in 0..buffer.len() * 8 {
            buffer[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::at_start(&buffer).is_none(), "bit {bit}");
            buffer[bit / 8] ^= 1 << (bit % 8);
        }
        let header = SegmentHeader {
            number: 1,
            first_frame: 2,
            first_leaf: 3,
            journal_id: [4; 16],
            log_id: [5; 12],
        };
        let mut bytes = header.to_bytes();
        assert_eq!(SegmentHeader::from_bytes(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::from_bytes(&bytes), None);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
