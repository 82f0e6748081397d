//! What every machine is handed at a step: who it is, what it knows, where effects go.

use allmend_protocol::advert::AdvertOrder;
use allmend_protocol::bytes::ByteString;
use allmend_protocol::charter::Timing;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::message::{AnyMessage, Message};
use allmend_protocol::roster::Roster;
use allmend_protocol::time::{DurationMs, Timestamp};

use crate::io::{Effect, Entry, LocalState, Record};
use crate::settings::{Identity, Settings};
use crate::view::View;

pub(crate) struct Ctx<'a> {
    pub(crate) now: Timestamp,
    pub(crate) me: &'a Identity,
    pub(crate) settings: &'a Settings,
    pub(crate) roster: &'a Roster,
    pub(crate) view: &'a View,
    pub(crate) local: &'a LocalState,
    /// Which start of the process this is.
    pub(crate) incarnation: u32,
    /// The newest advert of this node.
    pub(crate) own_order: AdvertOrder,
    /// Since when this process is up.
    pub(crate) started: Timestamp,
    pub(crate) out: &'a mut Vec<Effect>,
}

impl Ctx<'_> {
    pub(crate) fn charter(&self) -> MessageId {
        self.roster.charter().id()
    }

    pub(crate) fn timing(&self) -> Timing {
        self.roster.charter().timing
    }

    pub(crate) fn skew(&self) -> DurationMs {
        self.roster.skew()
    }

    pub(crate) fn sign<T: Message>(&self, body: T) -> Verified<T> {
        self.me.sign(body)
    }

    /// Appends a public leaf. The journal is one file in order: a durable append carries every
    /// append before it, so only the last of a group asks for it.
    pub(crate) fn leaf(&mut self, message: impl Into<AnyMessage>, durable: bool) {
        self.out.push(Effect::Append { entry: Entry::Leaf(message.into()), durable });
    }

    pub(crate) fn record(&mut self, record: Record, durable: bool) {
        self.out.push(Effect::Append { entry: Entry::Private(record), durable });
    }

    pub(crate) fn heard(&mut self, message: &AnyMessage, attached: &[AnyMessage], durable: bool) {
        let bytes = |message: &AnyMessage| ByteString(message.envelope().as_bytes().to_vec());
        let record = Record::Heard {
            envelope: bytes(message),
            attached: attached.iter().map(bytes).collect(),
        };
        self.record(record, durable);
    }

    pub(crate) fn send(
        &mut self,
        to: NodeId,
        message: impl Into<AnyMessage>,
        attached: Vec<AnyMessage>,
    ) {
        self.out.push(Effect::Send { to, message: message.into(), attached });
    }
}
