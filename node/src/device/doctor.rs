//! `doctor`: what works on this machine and what does not, each with a hint.
//!
//! Looks and changes nothing. What needs other members (are you reachable, do your clocks agree)
//! comes from the daemon as further checks.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Device;
use super::accelerator::Accelerators;
use super::clock::{ClockState, clock_state};
use super::ports::{Port, ports};
use crate::config::{Config, ConfigError, Identity, Layout, Loaded};
use crate::models::{Pip, ReadHeader, Store};
use crate::storage::Caps;
use crate::ui::{self, Align, Cell, Explain, Style, Table};

/// How a check came out; the larger, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not applicable here.
    Skipped,
    /// Fine.
    Ok,
    /// Works, but look at it.
    Warn,
    /// Must be put right.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What, in a word or two.
    pub name: String,
    /// How it came out.
    pub status: Status,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Check {
    /// A check without a hint.
    pub fn new(name: impl Into<String>, status: Status, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status, detail: detail.into(), hint: None }
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn explained<E: Explain>(name: &str, status: Status, error: &E) -> Self {
        let hint = error.explain().hint;
        Self { name: name.to_owned(), status, detail: error.to_string(), hint }
    }
}

/// What to examine.
pub struct Subject<'a> {
    /// The data directory.
    pub layout: &'a Layout,
    /// The configuration, or why there is none.
    pub config: Result<&'a Loaded, &'a ConfigError>,
    /// Reads a model's header.
    pub read_header: &'a ReadHeader<'a>,
    /// Checks that others made, such as the daemon's of its reachability; they come last.
    pub extra: Vec<Check>,
}

/// All checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One by one.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst of all.
    #[must_use]
    pub fn worst(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
    }

    /// One row per check, a hint below what needs one.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table =
            Table::new().column("", Align::Left).column("CHECK", Align::Left).squeezable("FOUND");
        for check in &self.checks {
            let (mark, style) = match check.status {
                Status::Ok => ("ok", Style::Good),
                Status::Warn => ("warn", Style::Warn),
                Status::Fail => ("FAIL", Style::Bad),
                Status::Skipped => ("–", Style::Faint),
            };
            table.row([
                Cell::styled(mark, style),
                Cell::from(&check.name),
                Cell::from(&check.detail),
            ]);
            if let Some(hint) = &check.hint {
                table.row([
                    Cell::from(""),
                    Cell::from(""),
                    Cell::styled(format!("hint: {hint}"), Style::Faint),
                ]);
            }
        }
        table
    }
}

/// Looks at everything. Takes a second or so.
#[must_use]
pub fn examine(subject: Subject<'_>) -> Report {
    let Subject { layout, config, read_header, extra } = subject;
    let device = Device::probe(layout.root());
    let mut checks = vec![configuration(config), data_directory(layout)];
    checks.extend(keys(layout));
    checks.extend(devices(&device));
    checks.push(clock());
    checks.push(environment(std::env::var_os("SSLKEYLOGFILE").is_some()));
    if let Ok(loaded) = config {
        let running = layout.daemon_running();
        checks.extend(ports(&loaded.config).iter().map(|port| listening(port, running)));
        checks.push(disk(&device, layout, &loaded.config));
    }
    checks.extend(models(layout, read_header));
    checks.push(pip());
    checks.extend(extra);
    Report { checks }
}

fn configuration(config: Result<&Loaded, &ConfigError>) -> Check {
    match config {
        Err(error) => Check::explained("configuration", Status::Fail, error),
        Ok(loaded) if loaded.warnings.is_empty() => {
            Check::new("configuration", Status::Ok, format!("node {:?}", loaded.config.name))
        }
        Ok(loaded) => Check::new("configuration", Status::Warn, loaded.warnings.join("; ")),
    }
}

fn data_directory(layout: &Layout) -> Check {
    let root = layout.root().display();
    match layout.require() {
        Err(error) => Check::explained("data directory", Status::Fail, &error),
        Ok(()) => match mode(&layout.keys_dir()) {
            Ok(mode) if mode & 0o077 != 0 => {
                let keys = layout.keys_dir();
                let detail = format!("others may enter {} (mode {mode:04o})", keys.display());
                Check::new("data directory", Status::Warn, detail)
                    .hint(format!("chmod 700 {}", keys.display()))
            }
            Ok(_) => Check::new("data directory", Status::Ok, root.to_string()),
            Err(error) => Check::new("data directory", Status::Fail, format!("{root}: {error}")),
        },
    }
}

fn mode(path: &Path) -> io::Result<u32> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o777)
}

fn keys(layout: &Layout) -> Vec<Check> {
    let known = [
        ("node key", layout.node_key()),
        ("institution key", layout.institution_key()),
        ("researcher key", layout.researcher_key()),
    ];
    // A machine holds those keys that its role needs; only one without any is odd.
    let present: Vec<_> = known.iter().filter(|(_, path)| path.exists()).collect();
    if present.is_empty() {
        let none = Check::new("keys", Status::Fail, "there is no key in the data directory");
        return vec![none.hint("`allmend init` or `allmend join INVITE` makes one")];
    }
    let look = |(name, path): &&(&str, std::path::PathBuf)| match Identity::load(path) {
        Ok(identity) => Check::new(*name, Status::Ok, ui::short_id(&identity.public().to_string())),
        Err(error) => Check::explained(name, Status::Fail, &error),
    };
    present.iter().map(look).collect()
}

/// Less than this and not even the smallest catalogue model runs with a useful context.
const MEMORY_MIB_MIN: u64 = 512;

fn devices(device: &Device) -> Vec<Check> {
    let cpu = &device.cpu;
    let number = |count: Option<u32>| count.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let detail = format!(
        "{} of {} threads usable, {} cores, {}",
        cpu.allowed,
        number(cpu.logical),
        number(cpu.physical),
        if cpu.features.is_empty() { "no vector units".to_owned() } else { cpu.features.join(" ") }
    );
    let fast = cpu.features.iter().any(|feature| matches!(*feature, "avx2" | "neon"));
    let processor = if fast {
        Check::new("processor", Status::Ok, detail)
    } else {
        Check::new("processor", Status::Warn, detail).hint("without AVX2 or NEON models run slowly")
    };
    let memory = &device.memory;
    let detail = format!(
        "{} usable, {} available now",
        ui::mib(memory.allowed_mib()),
        memory.available_mib.map_or_else(|| "?".to_owned(), ui::mib)
    );
    let enough = memory.available_mib.is_none_or(|mib| mib >= MEMORY_MIB_MIN);
    let memory = if enough {
        Check::new("memory", Status::Ok, detail)
    } else {
        Check::new("memory", Status::Warn, detail)
            .hint("end other programs or lower limits.memory_mib")
    };
    vec![processor, memory, accelerator(&device.accelerators, allmend_engine::built_with_cuda())]
}

/// A GPU that this build could use and that does not compute is worth a look; one that it cannot use is not.
fn accelerator(found: &Accelerators, built_for_gpus: bool) -> Check {
    let detail = found.in_words();
    match found {
        Accelerators::Nvidia { gpus, .. } if built_for_gpus => {
            if found.usable().count() == gpus.len() {
                return Check::new("accelerator", Status::Ok, detail);
            }
            Check::new("accelerator", Status::Warn, detail).hint(
                "a GPU that does not compute a probe is not offered; `nvidia-smi` shows its state",
            )
        }
        Accelerators::Nvidia { .. } => Check::new("accelerator", Status::Skipped, detail)
            .hint("a node built with `--features cuda` computes on it"),
        Accelerators::None { .. } => Check::new("accelerator", Status::Skipped, detail),
    }
}

/// 2026-01-01: no build of this program is older, so no right clock shows less.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
/// Half of the charter's usual clock skew.
const ERROR_MAX_MS: u64 = 1000;

fn clock() -> Check {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let hint = "start a time service, such as systemd-timesyncd or chrony";
    if since_epoch < EARLIEST {
        return Check::new("clock", Status::Fail, "it is years behind").hint(hint);
    }
    match clock_state() {
        ClockState::Synchronised { error_max_ms } if error_max_ms <= ERROR_MAX_MS => {
            Check::new("clock", Status::Ok, format!("synchronised within {error_max_ms} ms"))
        }
        ClockState::Synchronised { error_max_ms } => {
            let detail = format!("synchronised, but may be off by {error_max_ms} ms");
            Check::new("clock", Status::Warn, detail).hint(hint)
        }
        ClockState::Unsynchronised => {
            Check::new("clock", Status::Warn, "no time service keeps it").hint(hint)
        }
        ClockState::Unknown { reason } => Check::new("clock", Status::Skipped, reason),
    }
}

fn environment(key_log: bool) -> Check {
    if key_log {
        let detail = "SSLKEYLOGFILE is set: it would write the keys of every connection to a file";
        return Check::new("environment", Status::Fail, detail)
            .hint("unset SSLKEYLOGFILE; the node refuses to start with it");
    }
    Check::new("environment", Status::Ok, "nothing that leaks keys")
}

fn listening(port: &Port, daemon_running: bool) -> Check {
    let name = format!("{} port", port.purpose);
    let what = port.in_words();
    match port.try_bind() {
        Ok(()) => Check::new(name, Status::Ok, format!("{what} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && daemon_running => {
            Check::new(name, Status::Ok, format!("{what} is in use by the running node"))
        }
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "another program has it; `ss -tulpn` shows which. Set control_listen or bulk_listen"
                }
                io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need a privilege; choose others"
                }
                _ => "this machine does not have that address; see control_listen and bulk_listen",
            };
            Check::new(name, Status::Fail, format!("{what}: {error}")).hint(hint)
        }
    }
}

fn disk(device: &Device, layout: &Layout, config: &Config) -> Check {
    let Some(space) = device.disk else {
        let detail = format!("{} cannot be measured", layout.root().display());
        return Check::new("disk", Status::Fail, detail);
    };
    let caps = Caps::from_config(&config.storage);
    let wanted = [caps.models_bytes, caps.spool_bytes, caps.log_bytes, caps.reserve_bytes]
        .into_iter()
        .fold(0, u64::saturating_add);
    let detail = format!(
        "{} free of {}; the caps add up to {}",
        ui::bytes(space.free_bytes),
        ui::bytes(space.total_bytes),
        ui::bytes(wanted)
    );
    if space.free_bytes < caps.reserve_bytes {
        Check::new("disk", Status::Fail, detail)
            .hint("less than storage.reserve_mib is free, so the node would drain: free some space")
    } else if space.total_bytes < wanted {
        Check::new("disk", Status::Warn, detail)
            .hint("the disk is smaller than the caps in [storage]; lower them")
    } else {
        Check::new("disk", Status::Ok, detail)
    }
}

fn models(layout: &Layout, read_header: &ReadHeader<'_>) -> Vec<Check> {
    if !layout.models_dir().is_dir() {
        return vec![Check::new("models", Status::Skipped, "there is no store yet")];
    }
    let listing = match Store::open(layout.models_dir()).and_then(|store| store.list()) {
        Ok(listing) => listing,
        Err(error) => return vec![Check::explained("models", Status::Fail, &error)],
    };
    let mut checks = Vec::new();
    for model in &listing.models {
        let (name, digest) = (&model.meta.name, model.meta.digest.to_string());
        checks.push(match read_header(&model.path) {
            Ok(header) => {
                let what = format!("{} {}", header.architecture, header.quantisation);
                let size = ui::bytes(model.meta.bytes);
                Check::new("model", Status::Ok, format!("{name}: {what}, {size}"))
            }
            Err(why) => Check::new("model", Status::Fail, format!("{name}: {why}"))
                .hint(format!("`allmend models rm {}` and pull it again", ui::short_id(&digest))),
        });
    }
    for damaged in &listing.damaged {
        let detail = format!("{}: {}", damaged.path.display(), damaged.why);
        checks.push(Check::new("model", Status::Fail, detail).hint("remove it and pull it again"));
    }
    if checks.is_empty() {
        let none = Check::new("models", Status::Warn, "there is none, so no job can run here");
        checks.push(none.hint("`allmend models pull smollm2-135m` fetches a small one"));
    }
    checks
}

fn pip() -> Check {
    match Pip::find() {
        Ok(pip) => Check::new("pip", Status::Ok, pip.version().to_owned()),
        Err(error) => Check::explained("pip", Status::Warn, &error),
    }
}

#[cfg(test)]
#[path = "doctor_tests.rs"]
mod tests;
