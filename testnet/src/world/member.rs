//! An institution with one node.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use libp2p::identity::{PublicKey, ed25519};
use rustix::process::Signal;
use serde_json::Value;

use super::reap::Group;
use super::{Cli, Ports, SOON, World, text, wait_for};

/// How long an orderly stop may take when nothing runs.
const STOP_MAX: Duration = Duration::from_secs(30);
/// So much of a node's log is quoted when it ends unexpectedly.
const LOG_TAIL_LINES: usize = 15;

/// What an institution is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its directory in the world, and its node's name.
    pub name: String,
    /// Its own name.
    pub institution: String,
    /// Two letters of ISO 3166.
    pub jurisdiction: String,
    /// Settings of its node, as `KEY=VALUE`.
    pub set: Vec<String>,
    /// Its `[policy]` as TOML below that heading; none serves every member.
    pub policy: Option<String>,
}

/// An institution with one node.
#[derive(Debug)]
pub struct Member {
    name: String,
    institution: String,
    cli: Cli,
    ports: Ports,
    node_key: String,
    institution_key: String,
    process: Option<Group>,
    starts: u32,
}

impl Plan {
    /// An institution whose node serves all members with one slot and `threads` threads.
    pub fn new(name: &str, institution: &str, jurisdiction: &str, threads: u32) -> Plan {
        Plan {
            name: name.to_owned(),
            institution: institution.to_owned(),
            jurisdiction: jurisdiction.to_owned(),
            set: vec![format!("limits.threads={threads}")],
            policy: None,
        }
    }
}

impl Member {
    /// Makes keys and configuration; `options` are further ones of `init`.
    pub(super) fn init(world: &World, plan: &Plan, options: &[String]) -> anyhow::Result<Member> {
        let ports = Ports::choose()?;
        let cli = world.cli(&plan.name);
        let mut arguments: Vec<String> = [
            ("--institution", &plan.institution),
            ("--jurisdiction", &plan.jurisdiction),
            ("--name", &plan.name),
        ]
        .iter()
        .flat_map(|(option, value)| [(*option).to_owned(), (*value).clone()])
        .collect();
        arguments.insert(0, "init".to_owned());
        for set in settings(&ports).into_iter().chain(plan.set.iter().cloned()) {
            arguments.extend(["--set".to_owned(), set]);
        }
        arguments.extend_from_slice(options);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let made = cli.json(&arguments)?;
        Ok(Member {
            name: plan.name.clone(),
            institution: plan.institution.clone(),
            cli,
            ports,
            node_key: text(&made, "node").to_owned(),
            institution_key: text(&made, "institution").to_owned(),
            process: None,
            starts: 0,
        })
    }

    /// A node in a directory that `allmend join` has made with `settings` for these ports.
    pub fn existing(
        cli: Cli,
        name: &str,
        institution: &str,
        ports: Ports,
        node_key: &str,
    ) -> Member {
        Member {
            name: name.to_owned(),
            institution: institution.to_owned(),
            cli,
            ports,
            node_key: node_key.to_owned(),
            institution_key: String::new(),
            process: None,
            starts: 0,
        }
    }

    /// Its directory's and node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The institution's name.
    pub fn institution(&self) -> &str {
        &self.institution
    }

    /// The node's key, in hexadecimal.
    pub fn node_key(&self) -> &str {
        &self.node_key
    }

    /// The institution's key, in hexadecimal.
    pub fn institution_key(&self) -> &str {
        &self.institution_key
    }

    /// Its ports.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The operator's command line.
    pub fn cli(&self) -> Cli {
        self.cli.clone()
    }

    /// Its data directory.
    pub fn dir(&self) -> &Path {
        self.cli.dir()
    }

    /// Its log, as auditors read it.
    pub fn log_dir(&self) -> PathBuf {
        self.dir().join("log")
    }

    /// What its processes said, over all starts.
    pub fn log_file(&self) -> PathBuf {
        self.dir().join("node.log")
    }

    /// Where other members dial it first.
    ///
    /// # Errors
    /// When the node's key is none.
    pub fn control_address(&self) -> anyhow::Result<String> {
        let peer = peer_id(&self.node_key)?;
        Ok(format!("/ip4/127.0.0.1/tcp/{}/p2p/{peer}", self.ports.control_tcp))
    }

    /// Writes bootstrap addresses and policy into the configuration.
    pub(super) fn configure(&self, bootstrap: &[&String], policy: &str) -> anyhow::Result<()> {
        let path = self.dir().join("config.toml");
        let text = fs::read_to_string(&path)?;
        let empty = "#bootstrap = []";
        ensure!(text.contains(empty), "{} has no line {empty}", path.display());
        let addresses: Vec<String> =
            bootstrap.iter().map(|address| format!("{address:?}")).collect();
        let line = format!("bootstrap = [{}]", addresses.join(", "));
        fs::write(&path, text.replace(empty, &line) + policy)?;
        Ok(())
    }

    /// Starts its node without waiting for it.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        ensure!(!self.is_running(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = self.cli.command(&["node", "run", "--with-parent"]);
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let group = Group::spawn(&mut command).context("the node cannot be started")?;
        self.process = Some(group);
        self.starts += 1;
        Ok(())
    }

    /// Waits until its node answers; gives its status.
    ///
    /// # Errors
    /// When it ends or does not answer in time.
    pub fn wait_up(&mut self) -> anyhow::Result<()> {
        let cli = self.cli();
        wait_for(&format!("the node of {} to be up", self.name), SOON, || {
            self.check_alive()?;
            let pid = self.process.as_ref().map(Group::id);
            // A killed node leaves the file of its former life.
            let info = fs::read(cli.dir().join("run/daemon.json")).unwrap_or_default();
            let info: Value = serde_json::from_slice(&info).unwrap_or_default();
            let up = info["pid"].as_u64() == pid.map(u64::from);
            Ok((up && cli.run(&["--json", "status"])?.code == Some(0)).then_some(()))
        })
    }

    /// Whether its process is there.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|group| matches!(group.ended(), Ok(None)))
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Group::id)
    }

    /// # Errors
    /// If its node has ended although nobody asked it to; quotes its log.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        let Some(group) = &mut self.process else { bail!("{} was not started", self.name) };
        if let Some(status) = group.ended()? {
            let log = fs::read_to_string(self.log_file()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
            bail!("the node of {} has ended ({status}); its log ends:\n{tail}", self.name);
        }
        Ok(())
    }

    /// Kills node and worker at once, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(group) = &mut self.process {
            group.kill();
        }
        self.process = None;
    }

    /// Asks its node to stop once running work is done (SIGTERM).
    pub fn ask_to_stop(&mut self) {
        if let Some(group) = &mut self.process {
            group.signal(Signal::TERM);
        }
    }

    /// Waits for an orderly end.
    ///
    /// # Errors
    /// When it does not come in time, or the node ends with another exit code than 0.
    pub fn wait_stopped(&mut self) -> anyhow::Result<Duration> {
        let since = Instant::now();
        let Some(mut group) = self.process.take() else { return Ok(Duration::ZERO) };
        let ended = group.wait(STOP_MAX)?;
        let status = ended.with_context(|| format!("the node of {} does not stop", self.name))?;
        ensure!(status.success(), "the node of {} stopped with {status}", self.name);
        Ok(since.elapsed())
    }
}

/// Settings of a node on loopback, as `KEY=VALUE`.
pub(super) fn settings(ports: &Ports) -> Vec<String> {
    vec![
        format!(
            "control_listen=[\"/ip4/127.0.0.1/tcp/{}\", \"/ip4/127.0.0.1/udp/{}/quic-v1\"]",
            ports.control_tcp, ports.control_udp
        ),
        format!("bulk_listen=127.0.0.1:{}", ports.bulk_udp),
        "timing.advert_interval_ms=1000".to_owned(),
        // A world is small and goes away; it shall run on a nearly full disk too.
        "storage.reserve_mib=64".to_owned(),
    ]
}

/// The libp2p name of the node with this key.
fn peer_id(key: &str) -> anyhow::Result<libp2p::PeerId> {
    let bytes = data_encoding::HEXLOWER.decode(key.as_bytes()).context("the node's key")?;
    let key = ed25519::PublicKey::try_from_bytes(&bytes).context("the node's key")?;
    Ok(PublicKey::from(key).to_peer_id())
}
