//! Worlds of real processes on loopback: institutions with keys, nodes and researchers of their own.
//!
//! Everything is done through the command line of the `allmend` executable, as an operator would.
//! Deliberately not a simulation (that is [`crate::sim`]) and without knowledge of the node's inside.
//! Nothing outlives a world: see [`reap`].

mod cli;
mod executable;
mod member;
mod model;
mod ports;
pub mod reap;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

pub use self::cli::{Cli, Output, Streamed};
pub use self::executable::{Executable, Origin, target_dir};
pub use self::member::{Member, Plan};
pub use self::model::{MODEL, Model, PulledFrom};
pub use self::ports::Ports;

/// Tests that start programs, and tests that must not share sockets with one: a child that was forked and has not become its program
/// yet holds a copy of every socket.
#[cfg(test)]
static FORKS: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// How long a condition is waited for that needs no computing, such as a node being up.
pub const SOON: Duration = Duration::from_secs(30);
/// How long the processes of a node that has ended may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How often a condition is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// …and how often when it takes long.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// `name` in the policy of a node that serves the whole federation.
const OPEN_POLICY: &str = "\n[[policy.allow]]\nname = \"members\"\ninstitutions = [\"*\"]\n";

/// A federation in one directory.
#[derive(Debug)]
pub struct World {
    dir: PathBuf,
    program: PathBuf,
    members: Vec<Member>,
}

impl World {
    /// An empty world below `dir`, which is made if it is missing and must hold nothing yet.
    ///
    /// # Errors
    /// When the directory cannot be made or is in use.
    pub fn new(program: &Path, dir: &Path) -> anyhow::Result<World> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut entries = std::fs::read_dir(dir)?;
        ensure!(entries.next().is_none(), "{} is not empty; name another directory", dir.display());
        let dir = dir.canonicalize()?;
        Ok(World { dir, program: program.to_owned(), members: Vec::new() })
    }

    /// Where everything is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The executable under test.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The command line on the data directory `name` of this world.
    pub fn cli(&self, name: &str) -> Cli {
        Cli::new(&self.program, &self.dir.join(name))
    }

    /// Founds the federation `name` with one institution and one node per plan; the first founds.
    ///
    /// Nodes know each other's addresses, and without a policy of their own serve all members.
    ///
    /// # Errors
    /// When a command fails.
    pub fn found(&mut self, name: &str, plans: &[Plan]) -> anyhow::Result<()> {
        ensure!(self.members.is_empty(), "this world has a federation already");
        let (founder, others) = plans.split_first().context("a federation needs a founder")?;
        // The others make their keys first, since the charter lists them.
        let mut members = Vec::new();
        for plan in others {
            members.push(Member::init(self, plan, &[])?);
        }
        let mut options = vec!["--found".to_owned(), name.to_owned()];
        for (plan, member) in others.iter().zip(&members) {
            let listed =
                format!("{},{},{}", member.institution_key(), plan.jurisdiction, plan.institution);
            options.extend(["--member".to_owned(), listed]);
        }
        let founding = Member::init(self, founder, &options)?;
        let charter = founding.dir().join("charter");
        for member in &members {
            let charter = charter.to_str().context("the directory's name is no text")?;
            member.cli().ok(&["init", "--charter", charter])?;
        }
        members.insert(0, founding);
        let addresses: Vec<String> =
            members.iter().map(Member::control_address).collect::<anyhow::Result<_>>()?;
        for (index, (member, plan)) in members.iter().zip(plans).enumerate() {
            let bootstrap: Vec<&String> =
                addresses.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, a)| a).collect();
            member.configure(&bootstrap, plan.policy.as_deref().unwrap_or(OPEN_POLICY))?;
        }
        self.members = members;
        Ok(())
    }

    /// All institutions, the founder first.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The institution whose directory is `name`.
    ///
    /// # Panics
    /// If there is none.
    pub fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|member| member.name() == name).expect("a member of this world")
    }

    /// As [`World::member`], to start and stop it.
    ///
    /// # Panics
    /// If there is none.
    pub fn member_mut(&mut self, name: &str) -> &mut Member {
        self.members
            .iter_mut()
            .find(|member| member.name() == name)
            .expect("a member of this world")
    }

    /// Takes in a further institution that has been made outside (for instance by invitation).
    pub fn adopt(&mut self, member: Member) {
        self.members.push(member);
    }

    /// Starts every node that does not run and waits until each is up.
    ///
    /// # Errors
    /// When a node ends at once or is not up in time.
    pub fn start(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            if !member.is_running() {
                member.start()?;
            }
        }
        self.members.iter_mut().try_for_each(Member::wait_up)
    }

    /// Waits until every running node has a fresh advert of every running node, with free slots
    /// and `models_min` models.
    ///
    /// # Errors
    /// When that is not so in time; says who misses whom.
    pub fn wait_acquainted(&mut self, models_min: usize) -> anyhow::Result<()> {
        let running: Vec<String> = self
            .members
            .iter_mut()
            .filter_map(|member| member.is_running().then(|| member.node_key().to_owned()))
            .collect();
        for member in &mut self.members {
            if !member.is_running() {
                continue;
            }
            let cli = member.cli();
            wait_for(&format!("{} to know its peers", member.name()), SOON, || {
                member.check_alive()?;
                let nodes = cli.json(&["nodes"])?;
                let knows = |key: &String| {
                    nodes.as_array().into_iter().flatten().any(|row| {
                        row["node"] == key.as_str()
                            && row["connected"] == true
                            && row["slots_free"].as_u64() > Some(0)
                            && row["models"].as_array().map_or(0, Vec::len) >= models_min
                    })
                };
                Ok(running.iter().all(knows).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Makes a researcher at the institution `home`, with the data directory `name`.
    ///
    /// # Errors
    /// When the invitation or joining fails.
    pub fn researcher(&self, name: &str, person: &str, home: &str) -> anyhow::Result<Cli> {
        Ok(self.person(name, person, home)?.0)
    }

    /// As [`World::researcher`], with the person's public key in hexadecimal.
    ///
    /// # Errors
    /// When the invitation or joining fails.
    pub fn person(&self, name: &str, person: &str, home: &str) -> anyhow::Result<(Cli, String)> {
        let invitation = self.member(home).cli().json(&["invite", "researcher"])?;
        let invitation = invitation["invitation"].as_str().context("no invitation was printed")?;
        let cli = self.cli(name);
        let joined = cli.json(&["join", invitation, "--name", person])?;
        let key = text(&joined, "key").to_owned();
        ensure!(!key.is_empty(), "joining gave no key: {joined}");
        Ok((cli, key))
    }

    /// Stops every node in an orderly way.
    ///
    /// # Errors
    /// When a node does not end in time, or not with exit code 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.ask_to_stop();
        }
        for member in &mut self.members {
            member.wait_stopped()?;
        }
        Ok(())
    }

    /// What is still there a moment after everything was ended: processes that nobody owns any more,
    /// and ports that somebody holds.
    ///
    /// Empty after an orderly stop.
    pub fn leftovers(&self) -> Vec<String> {
        let since = Instant::now();
        loop {
            let left = self.left_now();
            // A worker may still be giving its memory back when its node has gone.
            if left.is_empty() || since.elapsed() > GONE_WITHIN {
                return left;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn left_now(&self) -> Vec<String> {
        let mut left = reap::left_behind();
        for member in &self.members {
            let held = member.ports().held();
            left.extend(
                held.into_iter().map(|port| format!("{port} of {} is taken", member.name())),
            );
        }
        left
    }
}

/// Calls `look` until it gives something.
///
/// # Errors
/// Those of `look`, at once; and when `limit` is over.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let since = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if since.elapsed() > limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        // Each look starts a process: what takes long is not slowed down by being looked at.
        std::thread::sleep((since.elapsed() / 50).clamp(LOOK_EVERY, LOOK_AT_LEAST_EVERY));
    }
}

/// The text at `key`, or nothing.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
