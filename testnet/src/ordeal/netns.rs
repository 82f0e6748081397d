//! A federation across hosts: three institutions, a fourth that joins by invitation, and then its site
//! shuts the firewall: no UDP, nothing inbound. It must go on serving over what it dials itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;

use super::hosts::Hosts;
use super::wrapper::{self, Case};
use super::{ask, audit, plan, say, scratch};
use crate::world::{Cli, Executable, Member, Model, Plan, Ports, World, text, wait_for};

/// The ports of a host are its own: those of the documentation.
const PORTS: Ports = Ports { control_tcp: 7700, control_udp: 7700, bulk_udp: 7701 };
/// A member behind a firewall finds the way that is open after it has tried the others.
const FOUND_WITHIN: Duration = Duration::from_secs(60);
/// The researcher's directory; it lives on the founder's host.
const RESEARCHER: &str = "ruth";
const POLICY: &str = "\n[[policy.allow]]\nname = \"members\"\ninstitutions = [\"*\"]\n";

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the fourth institution's node was connected before its firewall was shut.
    pub open: Vec<String>,
    /// How afterwards.
    pub shut: Vec<String>,
    /// What another member told the founder's node about its reachability.
    pub reachable: Vec<String>,
    /// What it told the node behind the firewall.
    pub unreachable: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept, and when there are no network namespaces.
pub fn run() -> anyhow::Result<Report> {
    let plans = [
        plan("zurich", "Zurich Institute", "CH"),
        plan("oslo", "Oslo Institute", "NO"),
        plan("berlin", "Berlin Institute", "DE"),
    ];
    let hosts = Hosts::new(&["zurich", "oslo", "berlin", "paris"])?;
    let scratch = scratch()?;
    let program = Executable::find()?.path;
    let model = Model::pull(&program)?;
    let cases: Vec<Case> = ["zurich", "oslo", "berlin", "paris", RESEARCHER]
        .into_iter()
        .map(|dir| {
            let host = if dir == RESEARCHER { "zurich" } else { dir };
            let before = format!("ip netns exec {}", hosts.namespace(host));
            Case { dir: dir.to_owned(), before, run_options: String::new() }
        })
        .collect();
    let program = wrapper::write(&scratch.path().join("allmend"), &program, &cases)?;
    let mut world = World::new(&program, &scratch.path().join("world"))?;
    say("netns: three institutions on three hosts");
    for member in found(&world, &hosts, &plans)? {
        model.give(&member.cli())?;
        world.adopt(member);
    }
    world.start()?;
    world.wait_acquainted(1)?;
    say("netns: a fourth joins by invitation");
    let paris = join(&world)?;
    model.give(&paris.cli())?;
    world.adopt(paris);
    world.start()?;
    world.wait_acquainted(1)?;
    let researcher = world.researcher(RESEARCHER, "Ruth", "zurich")?;
    ask(&researcher, "Paris Institute", "What is the capital of France?", 16)?;
    let open = paths(&world.member("paris").cli())?;
    let reachable = reachability(&world.member("zurich").cli(), "ok")?;

    say("netns: the fourth's site shuts its firewall");
    hosts.shut("paris", PORTS.control_tcp)?;
    let paris = world.member_mut("paris");
    // What was open before would otherwise linger until it times out.
    paris.ask_to_stop();
    paris.wait_stopped()?;
    world.start()?;
    let cli = world.member("paris").cli();
    wait_for("paris to find everybody again", FOUND_WITHIN, || {
        Ok((paths(&cli)?.len() == 3).then_some(()))
    })?;
    world.wait_acquainted(1)?;
    ask(&researcher, "Paris Institute", "What is the capital of Norway?", 16)?;
    let shut = paths(&cli)?;
    for path in &shut {
        ensure!(path.ends_with("tcp (dialled), no bulk connection"), "paris has {path}");
    }
    let unreachable = reachability(&cli, "warn")?;
    world.stop()?;
    audit(&world)?;
    Ok(Report { open, shut, reachable, unreachable })
}

/// As [`World::found`] does on loopback, each on its own host.
fn found(world: &World, hosts: &Hosts, plans: &[Plan; 3]) -> anyhow::Result<Vec<Member>> {
    let [founder, others @ ..] = plans;
    let mut listed = Vec::new();
    for plan in others {
        let made = init(&world.cli(&plan.name), plan, &[])?;
        listed.push(format!(
            "{},{},{}",
            text(&made, "institution"),
            plan.jurisdiction,
            plan.institution
        ));
    }
    let mut options = vec!["--found", "Hosts"];
    listed.iter().for_each(|member| options.extend(["--member", member.as_str()]));
    init(&world.cli(&founder.name), founder, &options)?;
    let charter = world.cli(&founder.name).dir().join("charter");
    let charter = charter.to_str().context("the directory's name is no text")?;
    let mut members = Vec::new();
    for plan in plans {
        let cli = world.cli(&plan.name);
        let mut bootstrap = String::new();
        if plan.name != founder.name {
            cli.ok(&["init", "--charter", charter])?;
            let first: &Member = members.first().context("no founder")?;
            let peer = first.control_address()?;
            let peer = peer.rsplit('/').next().context("no peer")?;
            let address = hosts.address(&founder.name)?;
            bootstrap = format!("\"/ip4/{address}/tcp/{}/p2p/{peer}\"", PORTS.control_tcp);
        }
        configure(&cli, &bootstrap)?;
        members.push(Member::existing(
            cli.clone(),
            &plan.name,
            &plan.institution,
            PORTS,
            &node_key(&cli)?,
        ));
    }
    Ok(members)
}

fn init(cli: &Cli, plan: &Plan, options: &[&str]) -> anyhow::Result<Value> {
    let mut arguments = vec!["init", "--institution", &plan.institution];
    arguments.extend(["--jurisdiction", &plan.jurisdiction, "--name", &plan.name]);
    for set in SETTINGS.into_iter().chain(plan.set.iter().map(String::as_str)) {
        arguments.extend(["--set", set]);
    }
    arguments.extend_from_slice(options);
    cli.json(&arguments)
}

/// Those of a small world; see [`crate::world`].
const SETTINGS: [&str; 2] = ["timing.advert_interval_ms=1000", "storage.reserve_mib=64"];

fn configure(cli: &Cli, bootstrap: &str) -> anyhow::Result<()> {
    let path = cli.dir().join("config.toml");
    let written = std::fs::read_to_string(&path)?;
    let changed = written.replace("#bootstrap = []", &format!("bootstrap = [{bootstrap}]"));
    std::fs::write(&path, changed + POLICY)?;
    Ok(())
}

/// The fourth institution, admitted by the founder.
fn join(world: &World) -> anyhow::Result<Member> {
    let invited = world.member("zurich").cli().json(&["invite", "institution"])?;
    let cli = world.cli("paris");
    let mut arguments = vec!["join", text(&invited, "invitation"), "--name", "Paris Institute"];
    arguments.extend(["--jurisdiction", "FR", "--set", "name=paris", "--set", "limits.threads=1"]);
    SETTINGS.iter().for_each(|set| arguments.extend(["--set", set]));
    cli.ok(&arguments)?;
    configure(&cli, "")?;
    let key = node_key(&cli)?;
    Ok(Member::existing(cli, "paris", "Paris Institute", PORTS, &key))
}

fn node_key(cli: &Cli) -> anyhow::Result<String> {
    let key = super::read_key(&cli.dir().join("keys/node.key"))?;
    Ok(data_encoding::HEXLOWER.encode(key.verifying_key().as_bytes()))
}

/// How a node is connected with each peer.
fn paths(cli: &Cli) -> anyhow::Result<Vec<String>> {
    let status = cli.json(&["status"])?;
    let describe = |peer: &Value| {
        let control: Vec<String> = peer["control"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|path| {
                let dialled = if path["dialled"] == true { " (dialled)" } else { "" };
                format!("{}{dialled}", text(path, "transport"))
            })
            .collect();
        let bulk = peer["bulk"].as_array().map_or(0, Vec::len);
        let bulk = if bulk == 0 { "no bulk connection" } else { "bulk over UDP" };
        format!("{}: {}, {bulk}", text(peer, "name"), control.join("+"))
    };
    Ok(status["peers"].as_array().into_iter().flatten().map(describe).collect())
}

/// What `doctor` says about being reached by another member; all that was tried must have this status.
fn reachability(cli: &Cli, status: &str) -> anyhow::Result<Vec<String>> {
    let report: Value = serde_json::from_str(&cli.run(&["--json", "doctor"])?.stdout)?;
    let checks = report["checks"].as_array().context("doctor lists no checks")?;
    let mut said = Vec::new();
    let tried =
        |check: &&Value| text(check, "name") == "reachable" && text(check, "status") != "skipped";
    for check in checks.iter().filter(tried) {
        ensure!(text(check, "status") == status, "doctor says {check}, not {status}");
        said.push(text(check, "detail").to_owned());
    }
    ensure!(!said.is_empty(), "doctor does not say whether others reach the node: {report}");
    Ok(said)
}
