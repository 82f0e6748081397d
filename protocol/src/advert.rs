//! A node's signed capacity (specs/advert.md).

use serde::{Deserialize, Serialize};

use crate::cert::check_addresses;
use crate::ids::{Digest, FederationId, InstitutionId, MessageId, NodeId, PublicKey};
use crate::message::{Invalid, Kind, Message, Versions, require, require_text};
use crate::time::{DurationMs, Timestamp};
use crate::units::{Jurisdiction, Rates};

/// The most devices, models or datasets in one advert.
pub const ADVERT_LIST_MAX: usize = 64;

/// Which of a node's adverts is newer: ordered by log epoch, then start, then count.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(deny_unknown_fields)]
pub struct AdvertOrder {
    /// The node's log epoch.
    pub epoch: u32,
    /// Counts the node's starts within the epoch.
    pub incarnation: u32,
    /// Counts adverts within the incarnation.
    pub sequence: u64,
}

/// What a node can do at the moment, and whom to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacityAdvert {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// Its institution.
    pub institution: InstitutionId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// Where in the sequence of the node's adverts this one stands.
    pub order: AdvertOrder,
    /// When it was said.
    pub issued: Timestamp,
    /// When to stop believing it.
    pub expires: Timestamp,
    /// Message versions that the node reads.
    pub versions: Versions,
    /// Where the machine stands.
    pub jurisdiction: Jurisdiction,
    /// What it computes on.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub devices: Vec<DeviceCapacity>,
    /// How many jobs it runs at once.
    pub slots_total: u16,
    /// How many more it would start now.
    pub slots_free: u16,
    /// How long a job accepted now would wait to start.
    pub queue_ms: DurationMs,
    /// Models on its disk, by digest, sorted.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub models: Vec<ModelHeld>,
    /// Whether it fetches a model that it does not hold.
    pub fetches_models: bool,
    /// Datasets that its stewards let be known, by digest, sorted.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub datasets: Vec<Digest>,
    /// Adapters that it serves, by id, sorted; absent when there are none.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "crate::encoding::list"
    )]
    pub adapters: Vec<Digest>,
    /// What it asks for its work.
    pub rates: Rates,
    /// Whether it finishes what it has and takes nothing new.
    pub draining: bool,
    /// Control addresses (multiaddr).
    #[serde(deserialize_with = "crate::encoding::list")]
    pub addresses: Vec<String>,
}

/// One device of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceCapacity {
    /// `cpu`, `cuda` or `metal`.
    pub kind: DeviceKind,
    /// As the device calls itself.
    pub name: String,
    /// Memory that jobs may use.
    pub memory_mib: u64,
    /// Cores (CPU) or multiprocessors (GPU) that jobs may use.
    pub cores: u32,
}

/// What sort of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// Central processor.
    Cpu,
    /// NVIDIA GPU.
    Cuda,
    /// Apple GPU.
    Metal,
}

/// One model on a node's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelHeld {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Memory that one worker needs for it, with a full context.
    pub memory_mib: u64,
    /// Longest context that this node offers.
    pub context_tokens: u32,
    /// Whether a worker has it loaded.
    pub warm: bool,
}

impl Message for CapacityAdvert {
    const KIND: Kind = Kind::CapacityAdvert;
    const VERSION: u16 = 1;

    fn federation(&self) -> Option<FederationId> {
        Some(self.federation)
    }

    fn signer(&self) -> PublicKey {
        self.signer.into()
    }

    fn check(&self) -> Result<(), Invalid> {
        require(self.issued < self.expires, "expires", "after issued")?;
        self.versions.check()?;
        require(self.slots_free <= self.slots_total, "slots_free", "at most slots_total")?;
        require(self.devices.len() <= ADVERT_LIST_MAX, "devices", "at most 64")?;
        for device in &self.devices {
            require_text(&device.name, 120, "devices.name")?;
        }
        require(self.models.len() <= ADVERT_LIST_MAX, "models", "at most 64")?;
        require(
            self.models.windows(2).all(|pair| pair[0].digest < pair[1].digest),
            "models",
            "sorted by digest, no repeats",
        )?;
        require(self.datasets.len() <= ADVERT_LIST_MAX, "datasets", "at most 64")?;
        require(
            self.datasets.windows(2).all(|pair| pair[0] < pair[1]),
            "datasets",
            "sorted, no repeats",
        )?;
        require(self.adapters.len() <= ADVERT_LIST_MAX, "adapters", "at most 64")?;
        let sorted = self.adapters.windows(2).all(|pair| pair[0] < pair[1]);
        require(sorted, "adapters", "sorted, no repeats")?;
        check_addresses(&self.addresses, "addresses")
    }
}
