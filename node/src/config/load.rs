//! From file, environment and flags to one validated [`Config`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use allmend_protocol::units::{Jurisdiction, Rates};
use libp2p::Multiaddr;

use super::check::{self, Value, Written};
use super::error::{ConfigError, Origin, Place, Problem};
use super::file::{self, FILE_BYTES_MAX, Parsed};
use super::settings::{
    Config, Debug, Kind, Limits, LogLevel, SETTINGS, Setting, StewardsSettings, Storage, Timing,
    Transport,
};

/// Variables with our prefix that are not settings of the file.
const ENV_OTHER: &[&str] = &["ALLMEND_DIR", "ALLMEND_JSON", "ALLMEND_LOG"];
const ENV_PREFIX: &str = "ALLMEND_";

/// Settings given on the command line.
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<Override>);

#[derive(Clone, Debug)]
struct Override {
    key: String,
    value: String,
    flag: String,
}

impl Overrides {
    /// Sets `key` to `value`, as if by `flag` (which an error names). Lists are separated by commas.
    pub fn set(&mut self, key: &str, value: impl Into<String>, flag: impl Into<String>) {
        self.0.push(Override { key: key.to_owned(), value: value.into(), flag: flag.into() });
    }

    /// Adds the argument of a `--set KEY=VALUE`.
    ///
    /// # Errors
    /// If there is no `=`.
    pub fn assign(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let flag = format!("--set {assignment}");
        match assignment.split_once('=') {
            Some((key, value)) => {
                self.set(key.trim(), value, flag);
                Ok(())
            }
            None => Err(ConfigError::Invalid(vec![Problem {
                origin: Origin::Flag(flag),
                key: String::new(),
                what: "there is no `=`".to_owned(),
                hint: Some("write it like --set limits.slots=2".to_owned()),
            }])),
        }
    }
}

/// One setting as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The setting's key.
    pub key: &'static str,
    /// Where its value came from.
    pub origin: Origin,
}

/// A configuration, and what is worth saying about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where each setting came from, in the table's order.
    pub origins: Vec<Effective>,
    /// What is odd but not wrong, in whole sentences.
    pub warnings: Vec<String>,
}

/// Reads and checks the configuration.
///
/// `file` may be absent: then every setting has its default unless `vars` or `overrides` set it.
///
/// # Errors
/// All problems at once, as far as they can be found together.
pub fn load(
    file: &Path,
    vars: impl IntoIterator<Item = (OsString, OsString)>,
    overrides: &Overrides,
) -> Result<Loaded, ConfigError> {
    let text = read(file)?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    combine(file, &text, vars, overrides, &host).map_err(ConfigError::Invalid)
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: file.to_owned(), source };
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut text = String::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other(format!(
            "it is larger than {FILE_BYTES_MAX} bytes"
        ))));
    }
    Ok(text)
}

fn combine(
    file: &Path,
    text: &str,
    vars: impl IntoIterator<Item = (OsString, OsString)>,
    overrides: &Overrides,
    host: &str,
) -> Result<Loaded, Vec<Problem>> {
    let mut values = Values::defaults();
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let Parsed { entries, policy } = match file::parse(file, text) {
        Ok(parsed) => parsed,
        Err(found) => {
            problems = found;
            Parsed::default()
        }
    };
    for entry in entries {
        let origin = Origin::File(entry.place);
        problems.extend(values.put(entry.setting, &entry.written, origin, &entry.elements));
    }
    for (name, value) in ours(vars) {
        let setting = SETTINGS.iter().find(|setting| setting.env().as_ref() == Some(&name));
        let Some(setting) = setting else {
            warnings.push(unknown_variable(&name));
            continue;
        };
        let written = Written::from_text(setting.kind, &value.to_string_lossy());
        problems.extend(values.put(setting, &written, Origin::Env(name), &[]));
    }
    for Override { key, value, flag } in &overrides.0 {
        let origin = Origin::Flag(flag.clone());
        match SETTINGS.iter().find(|setting| setting.key == key && setting.kind != Kind::Table) {
            Some(setting) => {
                let written = Written::from_text(setting.kind, value);
                problems.extend(values.put(setting, &written, origin, &[]));
            }
            None => problems.push(Problem {
                origin,
                key: key.clone(),
                what: "there is no such setting".to_owned(),
                hint: file::meant(key),
            }),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let config = values.build(policy, host);
    let problems = contradictions(&config, &values);
    if !problems.is_empty() {
        return Err(problems);
    }
    if let Some(dir) = &config.debug.tap_dir {
        warnings.push(format!(
            "debug.tap_dir is set: every frame is written UNENCRYPTED to {}",
            dir.display()
        ));
    }
    Ok(Loaded { config, origins: values.origins(), warnings })
}

fn ours(
    vars: impl IntoIterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (String, OsString)> {
    vars.into_iter().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        // An empty variable counts as unset, as in most shells' habits.
        let ours = name.starts_with(ENV_PREFIX) && !ENV_OTHER.contains(&name.as_str());
        (ours && !value.is_empty()).then_some((name, value))
    })
}

fn unknown_variable(name: &str) -> String {
    let known: Vec<String> = SETTINGS.iter().filter_map(Setting::env).collect();
    match check::nearest(name, known.iter().map(String::as_str)) {
        Some(meant) => format!("{name} in the environment is no setting; did you mean {meant}?"),
        None => format!("{name} in the environment is no setting and is ignored"),
    }
}

/// Settings that are fine each but not together.
fn contradictions(config: &Config, values: &Values) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut say = |key: &str, what: &str, hint: &str| {
        problems.push(Problem {
            origin: values.origin(key),
            key: key.to_owned(),
            what: what.to_owned(),
            hint: Some(hint.to_owned()),
        });
    };
    if config.control_listen.is_empty() {
        let what = "no address is left to listen on";
        say("control_listen", what, "add one like /ip4/0.0.0.0/tcp/7700");
    }
    let bulk = config.bulk_listen.port();
    if bulk != 0 && config.control_listen.iter().any(|a| check::udp_port(a) == Some(bulk)) {
        let what = format!("UDP port {bulk} is taken by control_listen");
        say("bulk_listen", &what, "the two planes need two ports; use 7700 and 7701");
    }
    problems
}

/// Checked values by key, each with its origin.
struct Values(BTreeMap<&'static str, (Value, Origin)>);

impl Values {
    fn defaults() -> Self {
        let mut values = Self(BTreeMap::new());
        for setting in SETTINGS.iter().filter(|setting| setting.kind != Kind::Table) {
            let document = format!("{} = {}", setting.key, setting.default);
            let parsed = file::parse(Path::new("defaults"), &document);
            let entry = parsed.ok().and_then(|mut parsed| parsed.entries.pop());
            let wrong = match entry {
                Some(entry) => values.put(setting, &entry.written, Origin::Default, &[]).is_some(),
                None => true,
            };
            assert!(!wrong, "the default of {} is wrong", setting.key);
        }
        values
    }

    /// Checks and keeps a value, or says what is wrong with it: at the element of `elements` that is
    /// to blame, if one is.
    fn put(
        &mut self,
        setting: &'static Setting,
        written: &Written,
        origin: Origin,
        elements: &[Place],
    ) -> Option<Problem> {
        match check::check(setting, written) {
            Ok(value) => {
                self.0.insert(setting.key, (value, origin));
                None
            }
            Err(wrong) => {
                let place = wrong.element.and_then(|index| elements.get(index));
                let origin = place.map_or(origin, |place| Origin::File(place.clone()));
                let key = setting.key.to_owned();
                Some(Problem { origin, key, what: wrong.what, hint: wrong.hint })
            }
        }
    }

    fn origin(&self, key: &str) -> Origin {
        self.0.get(key).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    fn origins(&self) -> Vec<Effective> {
        let known = SETTINGS.iter().filter(|setting| self.0.contains_key(setting.key));
        known
            .map(|setting| Effective { key: setting.key, origin: self.origin(setting.key) })
            .collect()
    }

    fn build(&self, policy: toml::Table, host: &str) -> Config {
        let name = self.text("name");
        let udp = self.switch("transport.udp");
        let mut control_listen = self.addresses("control_listen");
        control_listen.retain(|address| udp || !check::is_udp(address));
        Config {
            name: if name.is_empty() { host.to_owned() } else { name },
            institution: self.text("institution"),
            jurisdiction: self.country("jurisdiction"),
            control_listen,
            bulk_listen: self.socket("bulk_listen"),
            external_addresses: self.addresses("external_addresses"),
            bootstrap: self.addresses("bootstrap"),
            log_level: self.level("log_level"),
            transport: Transport { udp, gso: self.switch("transport.gso") },
            limits: Limits {
                slots: self.count("limits.slots"),
                models_loaded: self.count("limits.models_loaded"),
                threads: self.count_or_auto("limits.threads").map(narrow),
                memory_mib: self.count_or_auto("limits.memory_mib"),
                context_tokens_max: self.count("limits.context_tokens_max"),
                prompt_bytes_max: self.count("limits.prompt_bytes_max"),
                jobs_open_max: self.count("limits.jobs_open_max"),
            },
            storage: Storage {
                models_cap_mib: self.count("storage.models_cap_mib"),
                spool_cap_mib: self.count("storage.spool_cap_mib"),
                log_cap_mib: self.count("storage.log_cap_mib"),
                reserve_mib: self.count("storage.reserve_mib"),
                retention_hours: self.count("storage.retention_hours"),
            },
            timing: Timing {
                advert_interval_ms: self.count("timing.advert_interval_ms"),
                drain_timeout_s: self.count("timing.drain_timeout_s"),
            },
            rates: Rates {
                prompt: self.count("prices.prompt_microcredits_per_1000"),
                completion: self.count("prices.completion_microcredits_per_1000"),
            },
            stewards: StewardsSettings { notify: self.path("stewards.notify") },
            debug: Debug {
                tap_dir: self.path("debug.tap_dir"),
                training_fault: self.text("debug.training_fault"),
            },
            policy,
        }
    }
}

/// Reads a value of a known kind. A mismatch is a fault of the table, found by any test that loads.
macro_rules! read_as {
    ($($name:ident: $variant:ident -> $type:ty;)*) => {
        impl Values {
            $(fn $name(&self, key: &str) -> $type {
                match self.0.get(key) {
                    Some((Value::$variant(value), _)) => value.clone(),
                    other => unreachable!("setting {key} is {other:?}"),
                }
            })*
        }
    };
}

read_as! {
    text: Text -> String;
    country: Country -> Option<Jurisdiction>;
    addresses: Addresses -> Vec<Multiaddr>;
    socket: Socket -> SocketAddr;
    switch: Switch -> bool;
    count_or_auto: Count -> Option<u64>;
    level: Level -> LogLevel;
    path: Path -> Option<PathBuf>;
}

impl Values {
    fn count<N: TryFrom<u64>>(&self, key: &str) -> N {
        match self.count_or_auto(key).and_then(|number| N::try_from(number).ok()) {
            Some(number) => number,
            None => unreachable!("setting {key} has a range that its type does not hold"),
        }
    }
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
