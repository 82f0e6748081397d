//! Ordeals: what a federation must live through, tried on real processes.
//!
//! Each ordeal builds a [`World`] of its own, does its worst, and fails with the first promise that was
//! not kept. Deliberately no oracle of our own for what logs mean: that is `allmend audit verify`; an
//! ordeal adds what only a witness of the run can know, such as what had been acknowledged before a kill.

pub mod crash;
pub mod finetune;
mod hosts;
pub mod leaves;
pub mod netns;
pub mod privacy;
pub mod reckoning;
pub mod stranger;
pub mod strangers;
pub mod taps;
pub mod versions;
pub mod worker;
mod wrapper;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ed25519_dalek::SigningKey;
use serde::Serialize;
use serde_json::Value;

use self::wrapper::Case;
use crate::world::reap::Scratch;
use crate::world::{Cli, Executable, Member, Model, Plan, World, text};

/// Threads of one worker: three nodes share what are often two cores.
const THREADS: u32 = 1;

/// The ordeals, as subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Ordeal {
    /// Kill nodes at random instants during jobs; nothing may be lost or counted twice
    Crash(crash::Options),
    /// Meet strangers, expired members, other federations and random bytes
    Strangers,
    /// Look for a planted text wherever it must not be
    Privacy,
    /// A federation across network namespaces, with one site behind a strict firewall (needs root)
    Netns,
    /// Nodes of two protocol versions together
    Versions,
    /// Kill a worker under several jobs; each goes on, with the same answer
    Worker,
    /// Fine-tuning where the data lives, at its worst
    #[command(subcommand)]
    Finetune(finetune::Scenario),
}

impl Ordeal {
    /// Goes through with it and prints the report as JSON; progress goes to standard error.
    ///
    /// # Errors
    /// With the first promise that was not kept.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Ordeal::Crash(options) => print(&crash::run(options)?),
            Ordeal::Strangers => print(&strangers::run()?),
            Ordeal::Privacy => print(&privacy::run()?),
            Ordeal::Netns => print(&netns::run()?),
            Ordeal::Versions => print(&versions::run()?),
            Ordeal::Worker => print(&worker::run()?),
            Ordeal::Finetune(scenario) => scenario.run(),
        }
    }
}

fn print(report: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, report)?;
    writeln!(out)?;
    Ok(())
}

/// Tells whoever watches how far it is.
fn say(what: impl std::fmt::Display) {
    // Standard error may be closed; that is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "{what}");
}

/// A world with its model, in a directory that goes away with it.
#[derive(Debug)]
struct Stage {
    world: World,
    /// Last, so that processes are gone before their directory.
    _scratch: Scratch,
}

impl Stage {
    /// Founds a federation with these institutions, each with the model; nothing runs yet.
    fn set(federation: &str, plans: &[Plan]) -> anyhow::Result<Stage> {
        Stage::set_with(&[], federation, plans)
    }

    /// As [`Stage::set`], with commands on some directories started differently.
    fn set_with(cases: &[Case], federation: &str, plans: &[Plan]) -> anyhow::Result<Stage> {
        let scratch = scratch()?;
        let program = Executable::find()?.path;
        let model = Model::pull(&program)?;
        let program = match cases {
            [] => program,
            cases => wrapper::write(&scratch.path().join("allmend"), &program, cases)?,
        };
        let mut world = World::new(&program, &scratch.path().join("world"))?;
        world.found(federation, plans)?;
        for member in world.members() {
            model.give(&member.cli())?;
        }
        Ok(Stage { world, _scratch: scratch })
    }

    /// Starts all nodes and waits until they know one another.
    fn start(&mut self) -> anyhow::Result<()> {
        self.world.start()?;
        self.world.wait_acquainted(1)
    }

    /// Stops all nodes and audits all logs together.
    fn stop_and_audit(&mut self) -> anyhow::Result<()> {
        self.world.stop()?;
        audit(&self.world)
    }
}

/// A scratch directory; `ALLMEND_KEEP` leaves it for a look.
fn scratch() -> anyhow::Result<Scratch> {
    let mut scratch = Scratch::new()?;
    if std::env::var_os("ALLMEND_KEEP").is_some() {
        say(format_args!("everything is kept in {}", scratch.path().display()));
        scratch.keep();
    }
    Ok(scratch)
}

/// Audits the logs of all members.
fn audit(world: &World) -> anyhow::Result<()> {
    let dirs: Vec<_> = world.members().iter().map(|member| member.log_dir()).collect();
    let mut arguments = vec!["audit", "verify"];
    for dir in &dirs {
        arguments.push(dir.to_str().context("the directory's name is no text")?);
    }
    let audited = world.members()[0].cli().run(&arguments)?;
    // What it found is on standard output.
    anyhow::ensure!(audited.code == Some(0), "the audit found problems: {}", audited.stdout);
    Ok(())
}

/// Where a tapped node writes its frames.
fn tap_dir(member: &Member) -> PathBuf {
    member.dir().join("tap")
}

/// Has a node that does not run yet write every frame in clear into [`tap_dir`].
fn tap(member: &Member) -> anyhow::Result<()> {
    let config = member.dir().join("config.toml");
    let written = std::fs::read_to_string(&config)?;
    let default = "#tap_dir = \"\"";
    anyhow::ensure!(written.contains(default), "{} has no line {default}", config.display());
    let dir = tap_dir(member);
    let line = format!("tap_dir = {:?}", dir.to_str().context("the directory's name is no text")?);
    std::fs::write(&config, written.replace(default, &line))?;
    Ok(())
}

/// An institution with one node.
fn plan(name: &str, institution: &str, jurisdiction: &str) -> Plan {
    Plan::new(name, institution, jurisdiction, THREADS)
}

/// Names of all institutions, as `--at` takes them.
fn everywhere(world: &World) -> String {
    let names: Vec<&str> = world.members().iter().map(|member| member.institution()).collect();
    names.join(",")
}

/// The answer of a job run to its end at `at`; it must finish.
fn ask(researcher: &Cli, at: &str, prompt: &str, max_tokens: u32) -> anyhow::Result<Value> {
    let tokens = max_tokens.to_string();
    let answer = researcher.json(&[
        "submit",
        "infer",
        prompt,
        "--at",
        at,
        "--max-tokens",
        tokens.as_str(),
    ])?;
    anyhow::ensure!(text(&answer, "phase") == "finished", "the job did not finish: {answer}");
    anyhow::ensure!(!text(&answer, "text").is_empty(), "the answer is empty: {answer}");
    Ok(answer)
}

/// The signing key of a key file.
fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let text = std::fs::read_to_string(path)?;
    let seed = text.lines().next().and_then(|line| line.split_once(':')).context("no key file")?.1;
    let seed = data_encoding::HEXLOWER.decode(seed.as_bytes())?;
    Ok(SigningKey::from_bytes(&seed.try_into().ok().context("no seed of 32 bytes")?))
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| u64::try_from(since.as_millis()).ok()).unwrap_or_default()
}

/// Pseudo-random numbers from a seed (SplitMix64, Steele, Lea and Flood 2014): small, and the same for
/// ever, so that a seed that found a fault finds it again.
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `range`, which must not be empty; the bias of the remainder does not matter here.
    fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
