//! The table of settings, and the validated configuration made from it.

use std::net::SocketAddr;
use std::path::PathBuf;

use allmend_protocol::units::{Jurisdiction, Rates};
use libp2p::Multiaddr;

/// What values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One line of text of at most `bytes_max` bytes; empty means unset.
    Text {
        /// Longest accepted value, in bytes of UTF-8.
        bytes_max: usize,
    },
    /// An ISO 3166-1 alpha-2 code; empty means unset.
    Country,
    /// A list of multiaddrs.
    Multiaddrs(AddressUse),
    /// `IP:PORT`.
    Socket,
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Count {
        /// Smallest accepted value.
        min: u64,
        /// Largest accepted value.
        max: u64,
        /// What `"auto"` means, where it is accepted.
        auto: Option<&'static str>,
    },
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A directory; empty means unset.
    Path,
    /// A table that another part reads.
    Table,
}

/// What a list of multiaddrs is for, hence what each must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressUse {
    /// To listen on: an IP address.
    Listen,
    /// To be told to others: an IP address or a DNS name.
    Announce,
    /// To be dialled: as above, and the peer's id.
    Dial,
}

/// One setting: its key, its values, and the words that explain it.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Dotted key, as in the file.
    pub key: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Default, as a TOML literal.
    pub default: &'static str,
    /// Unit of the value; empty if it has none.
    pub unit: &'static str,
    /// What it does, in whole sentences.
    pub doc: &'static str,
}

impl Setting {
    /// The environment variable of this setting; none for a table.
    #[must_use]
    pub fn env(&self) -> Option<String> {
        (self.kind != Kind::Table)
            .then(|| format!("ALLMEND_{}", self.key.replace('.', "_").to_ascii_uppercase()))
    }

    /// The section and the key within it; the section of a top-level setting is empty, and a table
    /// is a section without keys that we know.
    #[must_use]
    pub fn section(&self) -> (&'static str, &'static str) {
        if self.kind == Kind::Table {
            return (self.key, "");
        }
        self.key.rsplit_once('.').unwrap_or(("", self.key))
    }
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max, auto: None }
}

const fn count_or_auto(min: u64, max: u64, auto: &'static str) -> Kind {
    Kind::Count { min, max, auto: Some(auto) }
}

/// 64 TiB: a typing error above this is likelier than a disk that large.
const DISK_MIB_MAX: u64 = 64 * 1024 * 1024;
/// One thousand credits per thousand tokens, beyond any sensible price.
const PRICE_MAX: u64 = 1_000_000_000;

/// Every setting, in the order of the file: top-level ones first, then section by section.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "name",
        kind: Kind::Text { bytes_max: 64 },
        default: r#""""#,
        unit: "",
        doc: "The node's name as people see it. Empty: the host name.",
    },
    Setting {
        key: "institution",
        kind: Kind::Text { bytes_max: 128 },
        default: r#""""#,
        unit: "",
        doc: "The institution's name as people see it. What counts is its key in the charter.",
    },
    Setting {
        key: "jurisdiction",
        kind: Kind::Country,
        default: r#""""#,
        unit: "ISO 3166-1 alpha-2",
        doc: "The country whose law applies where this node stands, such as CH. Empty: not declared, \
              so jobs limited to jurisdictions do not come here.",
    },
    Setting {
        key: "control_listen",
        kind: Kind::Multiaddrs(AddressUse::Listen),
        default: r#"["/ip4/0.0.0.0/tcp/7700", "/ip4/0.0.0.0/udp/7700/quic-v1"]"#,
        unit: "multiaddrs",
        doc: "Where the control plane listens. UDP entries are left out when transport.udp is false.",
    },
    Setting {
        key: "bulk_listen",
        kind: Kind::Socket,
        default: r#""0.0.0.0:7701""#,
        unit: "IP:PORT (UDP)",
        doc: "Where the bulk plane (prompts, tokens, results, models) listens.",
    },
    Setting {
        key: "external_addresses",
        kind: Kind::Multiaddrs(AddressUse::Announce),
        default: "[]",
        unit: "multiaddrs",
        doc: "Addresses under which others reach this node, if a firewall or NAT translates them. \
              Empty: what peers observe.",
    },
    Setting {
        key: "bootstrap",
        kind: Kind::Multiaddrs(AddressUse::Dial),
        default: "[]",
        unit: "multiaddrs with /p2p/",
        doc: "Members to dial at start. `allmend join` fills this in.",
    },
    Setting {
        key: "log_level",
        kind: Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        default: r#""info""#,
        unit: "",
        doc: "How much the daemon tells. A healthy node is silent at warn.",
    },
    Setting {
        key: "transport.udp",
        kind: Kind::Switch,
        default: "true",
        unit: "",
        doc: "Use QUIC over UDP. With false everything travels over TCP, which is slower for streams.",
    },
    Setting {
        key: "transport.gso",
        kind: Kind::Switch,
        default: "true",
        unit: "",
        doc: "Let the kernel split large UDP sends. Turn it off if a network driver garbles them.",
    },
    Setting {
        key: "limits.slots",
        kind: count(0, 64),
        default: "8",
        unit: "jobs",
        doc: "How many jobs of others and of your own run here at once, all models together. Jobs for the same model are computed together, one pass over its weights serving all of them: eight at once are answered much sooner than one after the other, and each somewhat later than alone. 0: this node only serves as home.",
    },
    Setting {
        key: "limits.models_loaded",
        kind: count(1, 16),
        default: "1",
        unit: "models",
        doc: "How many models are loaded at once, each in a worker process with an equal share of memory and threads. A job for another model waits until one is idle, and takes its place.",
    },
    Setting {
        key: "limits.threads",
        kind: count_or_auto(
            1,
            1024,
            "the cores this process may use, shared among the models loaded",
        ),
        default: r#""auto""#,
        unit: "threads per worker",
        doc: "Threads that one worker computes with.",
    },
    Setting {
        key: "limits.memory_mib",
        kind: count_or_auto(
            64,
            16 * 1024 * 1024,
            "three quarters of the memory this process may use",
        ),
        default: r#""auto""#,
        unit: "MiB",
        doc: "Memory that all workers together may use, for weights and the contexts of running jobs. A model that needs more than its share is refused.",
    },
    Setting {
        key: "limits.context_tokens_max",
        kind: count(128, 1_048_576),
        default: "8192",
        unit: "tokens",
        doc: "Longest prompt plus answer accepted, whatever the model could do.",
    },
    Setting {
        key: "limits.prompt_bytes_max",
        kind: count(1024, 64 * 1024 * 1024),
        default: "1048576",
        unit: "bytes",
        doc: "Largest prompt accepted.",
    },
    Setting {
        key: "limits.jobs_open_max",
        kind: count(1, 1_000_000),
        default: "1000",
        unit: "jobs",
        doc: "Unfinished jobs that this node looks after as home. Beyond it, submissions are refused.",
    },
    Setting {
        key: "storage.models_cap_mib",
        kind: count(64, DISK_MIB_MAX),
        default: "20480",
        unit: "MiB",
        doc: "Disk for models. Beyond it, those unused for longest are removed.",
    },
    Setting {
        key: "storage.spool_cap_mib",
        kind: count(16, DISK_MIB_MAX),
        default: "2048",
        unit: "MiB",
        doc: "Disk for sealed prompts and results of open and recent jobs. When it is full of jobs that \
              must be kept, the node drains.",
    },
    Setting {
        key: "storage.log_cap_mib",
        kind: count(64, DISK_MIB_MAX),
        default: "4096",
        unit: "MiB",
        doc: "Disk for the log and its index. The log is never cut: near the cap the node warns, at the \
              cap it drains.",
    },
    Setting {
        key: "storage.reserve_mib",
        kind: count(64, DISK_MIB_MAX),
        default: "1024",
        unit: "MiB",
        doc: "Free space to keep on the disk so that the log can always be written. Below it the node \
              evicts, then drains.",
    },
    Setting {
        key: "storage.retention_hours",
        kind: count(0, 24 * 366),
        default: "24",
        unit: "hours",
        doc: "How long a job's sealed prompt and result stay in the spool after settlement.",
    },
    Setting {
        key: "timing.advert_interval_ms",
        kind: count(200, 60_000),
        default: "5000",
        unit: "ms",
        doc: "How often the node announces its capacity. It also does so when the capacity changes.",
    },
    Setting {
        key: "timing.drain_timeout_s",
        kind: count(0, 7 * 86_400),
        default: "300",
        unit: "s",
        doc: "How long `allmend node drain` and an orderly stop wait for running jobs before they end them.",
    },
    Setting {
        key: "prices.prompt_microcredits_per_1000",
        kind: count(0, PRICE_MAX),
        default: "1000",
        unit: "micro-credits per 1,000 tokens",
        doc: "What this node asks for reading a prompt.",
    },
    Setting {
        key: "prices.completion_microcredits_per_1000",
        kind: count(0, PRICE_MAX),
        default: "4000",
        unit: "micro-credits per 1,000 tokens",
        doc: "What this node asks for writing an answer.",
    },
    Setting {
        key: "stewards.notify",
        kind: Kind::Path,
        default: r#""""#,
        unit: "program",
        doc: "Started whenever a question waits for a data steward, with the question as JSON on its standard \
              input: for a mail or a call to a web service. Empty: nobody is told.",
    },
    Setting {
        key: "debug.tap_dir",
        kind: Kind::Path,
        default: r#""""#,
        unit: "directory",
        doc: "Write every frame, before encryption, into this directory. For tests only: THE FILES HOLD \
              WHAT THE NETWORK MUST NOT SEE. Empty: off.",
    },
    Setting {
        key: "debug.training_fault",
        kind: Kind::Text { bytes_max: 32 },
        default: r#""""#,
        unit: "",
        doc: "Make every training fail, to see what follows: not-finite:STEP, loss-times-ten:STEP, hang:STEP \
              or idle:STEP. For tests only. Empty: off.",
    },
    Setting {
        key: "policy",
        kind: Kind::Table,
        default: "{}",
        unit: "",
        doc: "Whose jobs this node accepts and when; see docs/operate.md. Without it, only prompts of \
              your own institution are read here.",
    },
];

/// How much the daemon tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// Also what is odd.
    Warn,
    /// Also what changed.
    Info,
    /// Also what was decided.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word in the file, which `tracing` filters understand too.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    pub(super) fn parse(word: &str) -> Option<Self> {
        [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace]
            .into_iter()
            .find(|level| level.as_str() == word)
    }
}

/// The validated configuration; see [`SETTINGS`] for what each field means.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// `name`, or the host name.
    pub name: String,
    /// `institution`; empty if not given.
    pub institution: String,
    /// `jurisdiction`.
    pub jurisdiction: Option<Jurisdiction>,
    /// `control_listen`, without UDP entries if UDP is off; never empty.
    pub control_listen: Vec<Multiaddr>,
    /// `bulk_listen`.
    pub bulk_listen: SocketAddr,
    /// `external_addresses`.
    pub external_addresses: Vec<Multiaddr>,
    /// `bootstrap`; each names its peer.
    pub bootstrap: Vec<Multiaddr>,
    /// `log_level`.
    pub log_level: LogLevel,
    /// `[transport]`.
    pub transport: Transport,
    /// `[limits]`.
    pub limits: Limits,
    /// `[storage]`.
    pub storage: Storage,
    /// `[timing]`.
    pub timing: Timing,
    /// `[prices]`.
    pub rates: Rates,
    /// `[stewards]`.
    pub stewards: StewardsSettings,
    /// `[debug]`.
    pub debug: Debug,
    /// `[policy]`, unchecked: the scheduler crate reads it.
    pub policy: toml::Table,
}

/// `[transport]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Whether QUIC over UDP is used.
    pub udp: bool,
    /// Whether the kernel splits large UDP sends.
    pub gso: bool,
}

/// `[limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Jobs at once.
    pub slots: u32,
    /// Models, and thus workers, at once.
    pub models_loaded: u32,
    /// Threads per worker; `None` is automatic, see [`crate::device::Device::threads_per_worker`].
    pub threads: Option<u32>,
    /// MiB for all workers; `None` is automatic, see [`crate::device::Device::memory_for_workers_mib`].
    pub memory_mib: Option<u64>,
    /// Tokens of prompt plus answer.
    pub context_tokens_max: u32,
    /// Bytes of a prompt.
    pub prompt_bytes_max: u64,
    /// Unfinished jobs of this home node.
    pub jobs_open_max: u32,
}

/// `[storage]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// MiB of models.
    pub models_cap_mib: u64,
    /// MiB of spool.
    pub spool_cap_mib: u64,
    /// MiB of log and index.
    pub log_cap_mib: u64,
    /// MiB to keep free.
    pub reserve_mib: u64,
    /// Hours in the spool after settlement.
    pub retention_hours: u64,
}

/// `[timing]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Milliseconds between adverts.
    pub advert_interval_ms: u64,
    /// Seconds given to running jobs when draining.
    pub drain_timeout_s: u64,
}

/// `[debug]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debug {
    /// Where frames are written before encryption.
    pub tap_dir: Option<PathBuf>,
    /// Which fault every training is to have.
    pub training_fault: String,
}

/// `[stewards]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StewardsSettings {
    /// Started when a question waits.
    pub notify: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_sections_contiguous() {
        let mut sections: Vec<&str> = Vec::new();
        for (index, setting) in SETTINGS.iter().enumerate() {
            assert!(SETTINGS[..index].iter().all(|other| other.key != setting.key));
            let section = setting.section().0;
            if sections.last() != Some(&section) {
                assert!(!sections.contains(&section), "{section} is split");
                sections.push(section);
            }
        }
        assert_eq!(sections.first(), Some(&""));
    }

    #[test]
    fn environment_names_are_unique() {
        let mut names: Vec<_> = SETTINGS.iter().filter_map(Setting::env).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(names.contains(&"ALLMEND_LIMITS_SLOTS".to_owned()));
    }
}
