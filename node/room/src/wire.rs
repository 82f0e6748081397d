//! The handshake between a node and its room: one DAG-CBOR value per packet of a Unix socket, with
//! descriptors beside it. The socket is the room's standard input until it is sealed, so nothing about
//! it has to survive in the environment or in arguments.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Facts, Layer, RoomError};

/// Descriptors in one packet at most.
pub(crate) const DESCRIPTORS_MAX: usize = 32;

/// Bytes of a packet at most: a report at its longest, four times over.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// The node's first packet. With it comes one descriptor, a pipe's writing end that must not survive
/// sealing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Order {
    pub(crate) memory_max_bytes: u64,
    pub(crate) threads_max: u32,
    pub(crate) environment: Vec<String>,
    pub(crate) without: Vec<Layer>,
    /// What the node found out about the control group, since only it can see that.
    pub(crate) cgroup: Result<String, String>,
    pub(crate) targets: Targets,
}

/// What the node really offers to be reached by the probes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Targets {
    /// On 127.0.0.1.
    pub(crate) tcp_port: u16,
    /// On 127.0.0.1.
    pub(crate) udp_port: u16,
    /// An abstract name, without the zero in front.
    pub(crate) unix_name: String,
    /// A directory in which everybody may make files.
    pub(crate) directory: String,
    /// A file that everybody may read.
    pub(crate) file: String,
    /// What is in it.
    pub(crate) secret: String,
}

/// The room's answer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Report {
    /// It is sealed and waits.
    Sealed(Facts),
    /// It could not be.
    Failed(String),
}

/// The node's last packet. The descriptors beside it are the new standard input and then those named.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Opening {
    pub(crate) names: Vec<String>,
}

/// Sends one packet.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    said: &T,
    beside: &[BorrowedFd<'_>],
) -> Result<(), RoomError> {
    let bytes = serde_ipld_dagcbor::to_vec(said)
        .map_err(|error| RoomError::Malformed(error.to_string()))?;
    if bytes.len() > PACKET_BYTES_MAX || beside.len() > DESCRIPTORS_MAX {
        return Err(RoomError::Malformed("packet beyond the limit".to_owned()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !beside.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(beside));
    }
    let sending = RoomError::system("sending in the room's handshake");
    rustix::net::sendmsg(
        socket,
        &[std::io::IoSlice::new(&bytes)],
        &mut ancillary,
        // A room that is gone is an error here, not the end of the node.
        SendFlags::NOSIGNAL,
    )
    .map_err(sending)?;
    Ok(())
}

/// Receives one packet and what came beside it; `None` when the other end is closed.
pub(crate) fn receive<T: Serialize + DeserializeOwned>(
    socket: impl AsFd,
) -> Result<Option<(T, Vec<OwnedFd>)>, RoomError> {
    let mut bytes = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => {
                break other.map_err(RoomError::system("receiving in the room's handshake"))?;
            }
        }
    };
    let beside = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(RoomError::Malformed("packet beyond the limit".to_owned()));
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    let said = serde_ipld_dagcbor::from_slice(&bytes[..got.bytes])
        .map_err(|error| RoomError::Malformed(error.to_string()))?;
    Ok(Some((said, beside)))
}

/// The answer of the node's name server: the question, marked as answered, without an address in it
/// (RFC 1035 §4.1.1). None for what is no question.
pub(crate) fn answer_to(question: &[u8]) -> Option<Vec<u8>> {
    let mut answer = question.to_vec();
    // The third byte's highest bit says "response".
    let kind = answer.get_mut(2).filter(|kind| **kind & 0x80 == 0)?;
    *kind |= 0x80;
    (answer.len() >= 12).then_some(answer)
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn packets_arrive_whole_with_their_descriptors() {
        let (ours, theirs) = pair();
        let (first, second) = std::io::pipe().unwrap();
        let opening = Opening { names: vec!["model".to_owned(), "data".to_owned()] };
        send(&ours, &opening, &[first.as_fd(), second.as_fd()]).unwrap();
        send(&ours, &Report::Failed("for a reason".to_owned()), &[]).unwrap();
        let (got, beside) = receive::<Opening>(&theirs).unwrap().unwrap();
        assert_eq!((got.names, beside.len()), (opening.names, 2));
        let (got, beside) = receive::<Report>(&theirs).unwrap().unwrap();
        assert!(matches!(got, Report::Failed(why) if why == "for a reason"));
        assert!(beside.is_empty());
        drop(ours);
        assert!(receive::<Report>(&theirs).unwrap().is_none());
    }

    /// What comes out of a room is believed no more than what comes from the network.
    #[test]
    fn nonsense_is_an_error() {
        let (ours, theirs) = pair();
        let deep = vec![0x81; PACKET_BYTES_MAX];
        let long_text = [0x7b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let long_list = [0x9b, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for bytes in [&b"nonsense"[..], &[0xff], &[0xf6], &long_text, &long_list, &deep] {
            rustix::io::write(&ours, bytes).unwrap();
            assert!(matches!(receive::<Report>(&theirs), Err(RoomError::Malformed(_))));
        }
        let too_long = vec![0; PACKET_BYTES_MAX + 1];
        rustix::io::write(&ours, &too_long).unwrap();
        assert!(matches!(receive::<Report>(&theirs), Err(RoomError::Malformed(_))));
        let too_much = Report::Failed("x".repeat(PACKET_BYTES_MAX));
        assert!(matches!(send(&ours, &too_much, &[]), Err(RoomError::Malformed(_))));
    }

    #[test]
    fn only_questions_are_answered() {
        assert_eq!(answer_to(&[0; 12]), Some(vec![0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(answer_to(&[0xff; 12]), None);
        assert_eq!(answer_to(&[0; 11]), None);
        assert_eq!(answer_to(&[]), None);
    }
}
