//! Who is no member gets nothing: strangers, expired certificates, other federations, random bytes.
//!
//! Two nodes run. What is expected of them is checked on both, and where something must *not* happen,
//! the same thing done by a rightful member must, so that a test which cannot reach the node at all
//! does not pass.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use allmend_protocol::advert::{AdvertOrder, CapacityAdvert};
use allmend_protocol::bundle::Bundle;
use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::NodeCert;
use allmend_protocol::encoding;
use allmend_protocol::envelope::{Envelope, Verified};
use allmend_protocol::ids::{FederationId, InstitutionId, MessageId, NodeId, SealingKey};
use allmend_protocol::lease::{Cancel, CancelWhy};
use allmend_protocol::message::Versions;
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Rates;
use anyhow::{Context as _, ensure};
use ed25519_dalek::SigningKey;
use libp2p::Multiaddr;
use serde::Serialize;

use super::stranger::{Greeting, Hello, Stranger, Verdict};
use super::{Dice, Stage, ask, plan, read_key, say};
use crate::world::{Cli, Member, Plan, World, text, wait_for};

/// Who says nothing is sent away after five seconds (specs/transport.md §4); machines are slow.
const CLOSED_WITHIN: Duration = Duration::from_secs(20);
/// How long the short-lived certificate lives: long enough to be admitted on a busy machine.
const SHORT_LIFE: DurationMs = DurationMs::from_secs(8);
/// Random bytes for each port.
const NOISE_BYTES: u64 = 10_000_000;
/// A UDP datagram of QUIC's usual size.
const DATAGRAM_BYTES: usize = 1_200;
/// Memory that the noise may cost a node, worker apart: caches and buffers, not a leak.
const GROWTH_MIB_MAX: u64 = 128;
/// Slots that made-up adverts claim, which no real node of this world has.
const RIGHTFUL: u16 = 11;
const WRONGFUL: u16 = 22;
const LAST: u16 = 33;
/// Where made-up nodes stand.
const JURISDICTION: &str = "NO";

/// What was tried; each was refused as it must be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Refusals, in the words of the node.
    pub refused: Vec<String>,
    /// Bytes that the kernel took for each port.
    pub noise_bytes: u64,
    /// What the noise cost in memory.
    pub growth_mib: u64,
}

/// What a made-up node needs.
struct Forge {
    federation: FederationId,
    charter: MessageId,
    institution: SigningKey,
    institution_id: InstitutionId,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run() -> anyhow::Result<Report> {
    let mut stage = Stage::set(
        "Strangers",
        &[plan("alpha", "Alpha Institute", "CH"), plan("beta", "Beta Institute", "NO")],
    )?;
    stage.start()?;
    let researcher = stage.world.researcher("ruth", "Ruth", "alpha")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = Report::default();
    runtime.block_on(async {
        no_certificate(&stage.world, &mut report).await?;
        gossip(&stage.world).await?;
        expired(&stage.world, &mut report).await?;
        other_federation(&stage.world, &mut report).await
    })?;
    other_federations_node(&mut stage, &mut report)?;
    noise(&mut stage, &mut report)?;
    say("strangers: a job after all that");
    ask(&researcher, "Beta Institute", "What is the capital of France?", 16)?;
    stage.stop_and_audit()?;
    Ok(report)
}

/// Valid keys and no certificate: with a wrong introduction, with none, and silent.
async fn no_certificate(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let forge = Forge::of(world, "beta")?;
    let node = world.member("alpha");
    for address in addresses(node)? {
        for (how, greeting) in [
            ("no introduction", Greeting::None),
            ("an introduction of random bytes", forge.greeting(random(90))),
            ("an introduction without certificates", forge.greeting(forge.hello(&[]))),
        ] {
            say(format_args!("strangers: {how}, {address}"));
            let key = new_key();
            let gossip = forge.advert(&key, WRONGFUL, 1)?;
            let mut stranger = Stranger::new(&key, &forge.federation, greeting)?;
            let verdict = stranger.dial(&address).await?;
            ensure!(verdict != Verdict::Welcome, "{how}: the node admits a stranger");
            if let Verdict::Refused(why) = verdict {
                report.refused.push(format!("{how}: {why}"));
            }
            stranger.until_closed(CLOSED_WITHIN, Some(&gossip)).await.context(how)?;
            ensure!(!knows(world, &key)?, "{how}: a stranger is listed");
        }
        say(format_args!("strangers: silence, {address}"));
        let mut mute = Stranger::new(&new_key(), &forge.federation, Greeting::Mute)?;
        let since = std::time::Instant::now();
        // Its connection never counts as made, so the end of it is a failed dial.
        ensure!(mute.dial(&address).await.is_err(), "a silent connection is kept");
        ensure!(since.elapsed() < CLOSED_WITHIN, "a silent connection is kept for too long");
    }
    Ok(())
}

/// The same gossip from a member is believed and passed on, from a stranger not.
async fn gossip(world: &World) -> anyhow::Result<()> {
    say("strangers: gossip of a member, of a stranger, and of the member again");
    let forge = Forge::of(world, "beta")?;
    let address = addresses(world.member("alpha"))?.remove(0);
    let key = new_key();
    let cert = forge.certify(&key, now(), DurationMs::from_secs(600))?;
    let member = forge.greeting(forge.hello(&[&cert]));
    // Beta believes adverts only of whom it has met.
    let mut visitor = Stranger::new(&key, &forge.federation, member.clone())?;
    let met = visitor.dial(&addresses(world.member("beta"))?[0]).await?;
    ensure!(met == Verdict::Welcome, "a member is not admitted: {met:?}");
    drop(visitor);
    for (slots, sequence, rightful) in [(RIGHTFUL, 1, true), (WRONGFUL, 2, false), (LAST, 3, true)]
    {
        let advert = forge.advert(&key, slots, sequence)?;
        if rightful {
            let mut visitor = Stranger::new(&key, &forge.federation, member.clone())?;
            ensure!(visitor.dial(&address).await? == Verdict::Welcome, "a member is not admitted");
            visitor.publish(&advert).await?;
            // Beta has it from alpha, since the visitor knows nobody else.
            let seen = tokio::task::spawn_blocking({
                let clis: Vec<Cli> = world.members().iter().map(Member::cli).collect();
                let node = node_of(&key).to_string();
                move || wait_for_slots(&clis, &node, slots)
            });
            visitor.while_doing(seen).await??;
        } else {
            // The advert itself is beyond reproach; who brings it is not a member.
            let stranger = forge.greeting(forge.hello(&[]));
            let mut stranger = Stranger::new(&new_key(), &forge.federation, stranger)?;
            stranger.dial(&address).await?;
            stranger.until_closed(CLOSED_WITHIN, Some(&advert)).await?;
            let claimed = slots_of(&world.member("alpha").cli(), &node_of(&key).to_string())?;
            ensure!(
                claimed == Some(RIGHTFUL.into()),
                "gossip of a stranger is believed: {claimed:?}"
            );
        }
    }
    Ok(())
}

/// A certificate past its expiry keeps out, and puts out whom it had let in.
async fn expired(world: &World, report: &mut Report) -> anyhow::Result<()> {
    let forge = Forge::of(world, "beta")?;
    let alpha = world.member("alpha");
    for address in addresses(alpha)? {
        say(format_args!("strangers: expired certificates, {address}"));
        let key = new_key();
        let hour = DurationMs::from_secs(3_600);
        let cert = forge.certify(&key, now().minus(hour.times(2)), hour)?;
        let greeting = forge.greeting(forge.hello(&[&cert]));
        let mut late = Stranger::new(&key, &forge.federation, greeting)?;
        let verdict = late.dial(&address).await?;
        let Verdict::Refused(why) = verdict else {
            anyhow::bail!("an expired certificate is answered with {verdict:?}");
        };
        report.refused.push(format!("expired certificate: {why}"));
        late.until_closed(CLOSED_WITHIN, None).await?;

        let key = new_key();
        let cert = forge.certify(&key, now(), SHORT_LIFE)?;
        let greeting = forge.greeting(forge.hello(&[&cert]));
        let mut visitor = Stranger::new(&key, &forge.federation, greeting.clone())?;
        ensure!(visitor.dial(&address).await? == Verdict::Welcome, "a member is not admitted");
        let limit = Duration::from_millis(SHORT_LIFE.as_ms()) + CLOSED_WITHIN;
        visitor.until_closed(limit, None).await.context("the certificate has expired")?;
        ensure!(now() >= cert.expires, "a member was put out before its certificate expired");
        ensure!(!is_peer(&alpha.cli(), &key)?, "an expired member is still a peer");
        let mut again = Stranger::new(&key, &forge.federation, greeting)?;
        let verdict = again.dial(&address).await?;
        ensure!(
            matches!(verdict, Verdict::Refused(_)),
            "an expired member comes back: {verdict:?}"
        );
    }
    Ok(())
}

/// Nothing of another federation is taken, whoever brings it.
async fn other_federation(world: &World, report: &mut Report) -> anyhow::Result<()> {
    say("strangers: another federation");
    let forge = Forge::of(world, "beta")?;
    let other = FederationId::from_bytes(random(32).try_into().unwrap_or_default());
    let address = addresses(world.member("alpha"))?.remove(0);
    let key = new_key();
    let abroad = Forge {
        federation: other,
        charter: forge.charter,
        institution: forge.institution.clone(),
        institution_id: forge.institution_id,
    };
    let cert = abroad.certify(&key, now(), DurationMs::from_secs(600))?;
    for greeting in [
        abroad.greeting(abroad.hello(&[&cert])),
        forge.greeting(abroad.hello(&[&cert])),
        forge.greeting(forge.hello(&[&cert])),
    ] {
        let mut stranger = Stranger::new(&key, &forge.federation, greeting)?;
        let verdict = stranger.dial(&address).await?;
        let Verdict::Refused(why) = verdict else {
            anyhow::bail!("a node of another federation is answered with {verdict:?}");
        };
        report.refused.push(format!("another federation: {why}"));
        stranger.until_closed(CLOSED_WITHIN, None).await?;
    }
    // A rightful member brings a message of another federation, then its twin of this one.
    let cert = forge.certify(&key, now(), DurationMs::from_secs(600))?;
    let mut member = Stranger::new(&key, &forge.federation, forge.greeting(forge.hello(&[&cert])))?;
    ensure!(member.dial(&address).await? == Verdict::Welcome, "a member is not admitted");
    let answer = member.request(&abroad.cancel(&key)?).await?;
    let words = String::from_utf8_lossy(answer.get(1..).unwrap_or_default()).into_owned();
    ensure!(answer.first() == Some(&0) && answer != TAKEN, "another federation's message is taken");
    report.refused.push(format!("message of another federation: {words}"));
    let answer = member.request(&forge.cancel(&key)?).await?;
    ensure!(answer == TAKEN, "this federation's message is not taken: {answer:?}");
    Ok(())
}

/// Answered, and the answer is that the message was taken (specs/transport.md §5).
const TAKEN: [u8; 2] = [0, 1];

/// A whole node of another federation dials one of ours.
fn other_federations_node(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    say("strangers: a real node of another federation");
    let alpha = stage.world.member("alpha");
    let mut abroad = World::new(stage.world.program(), &stage.world.dir().join("abroad"))?;
    abroad.found("Abroad", &[Plan::new("omega", "Omega Institute", "CH", 1)])?;
    let config = abroad.member("omega").dir().join("config.toml");
    let written = std::fs::read_to_string(&config)?;
    let empty = "bootstrap = []";
    ensure!(written.contains(empty), "{} has no line {empty}", config.display());
    std::fs::write(
        &config,
        written.replace(empty, &format!("bootstrap = [{:?}]", alpha.control_address()?)),
    )?;
    abroad.start()?;
    let omega = abroad.member("omega");
    let log = omega.log_file();
    let refusal = wait_for("omega to be refused", CLOSED_WITHIN, || {
        let said = std::fs::read_to_string(&log)?;
        Ok(said.lines().find(|line| line.contains("another federation")).map(str::to_owned))
    })?;
    report.refused.push(format!("node of another federation: {}", refusal.trim()));
    for (cli, other) in [(alpha.cli(), omega.node_key()), (omega.cli(), alpha.node_key())] {
        let status = cli.json(&["status"])?;
        let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(peers.iter().all(|peer| text(peer, "node") != other), "peers across federations");
    }
    abroad.stop()
}

/// Random bytes for every port; the node goes on and does not grow.
fn noise(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let alpha = stage.world.member("alpha");
    let pid = alpha.pid().context("alpha does not run")?;
    let before = resident_mib(pid)?;
    let ports = *alpha.ports();
    say("strangers: 10 MB of random bytes for the TCP port");
    report.noise_bytes += tcp_noise(ports.control_tcp)?;
    for port in [ports.control_udp, ports.bulk_udp] {
        say("strangers: 10 MB of random bytes for a UDP port");
        report.noise_bytes += udp_noise(port)?;
    }
    stage.world.wait_acquainted(1).context("after random bytes")?;
    let alpha = stage.world.member("alpha");
    ensure!(alpha.pid() == Some(pid), "alpha is another process now");
    report.growth_mib = resident_mib(pid)?.saturating_sub(before);
    ensure!(report.growth_mib <= GROWTH_MIB_MAX, "alpha grew by {} MiB", report.growth_mib);
    Ok(())
}

/// The node closes what it does not understand, so this takes many connections; how many bytes each
/// takes is the kernel's business.
fn tcp_noise(port: u16) -> anyhow::Result<u64> {
    let mut dice = Dice(u64::from(port));
    let (mut sent, mut bytes) = (0, vec![0; 64 * 1024]);
    let since = std::time::Instant::now();
    while sent < NOISE_BYTES {
        ensure!(since.elapsed() < Duration::from_secs(60), "only {sent} bytes of noise were taken");
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
        stream.set_write_timeout(Some(Duration::from_millis(500)))?;
        loop {
            dice.fill(&mut bytes);
            match stream.write(&bytes) {
                Ok(taken) => sent += taken as u64,
                Err(_) => break,
            }
            if sent >= NOISE_BYTES {
                break;
            }
        }
    }
    Ok(sent)
}

/// Every second datagram looks like the first of a QUIC connection.
fn udp_noise(port: u16) -> anyhow::Result<u64> {
    let mut dice = Dice(u64::from(port));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    let (mut sent, mut bytes) = (0, [0; DATAGRAM_BYTES]);
    while sent < NOISE_BYTES {
        dice.fill(&mut bytes);
        if sent % 2 == 0 {
            // Long header, Initial, version 1, connection ids of 8 bytes (RFC 9000 §17.2.2).
            bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            bytes[14] = 8;
        }
        // Refusals of a closed port come back as errors here; what counts is that it was sent.
        socket.send(&bytes).context("the UDP port is closed")?;
        sent += DATAGRAM_BYTES as u64 + 1;
    }
    Ok(sent)
}

impl Forge {
    /// Signs like the institution of `member`.
    fn of(world: &World, member: &str) -> anyhow::Result<Forge> {
        let dir = world.member(member).dir().to_owned();
        let charter = Envelope::from_bytes(&std::fs::read(dir.join("charter"))?)?.id();
        let institution = read_key(&dir.join("keys/institution.key"))?;
        let institution_id = InstitutionId::from_bytes(institution.verifying_key().to_bytes());
        Ok(Forge { federation: charter.into(), charter, institution, institution_id })
    }

    fn certify(
        &self,
        key: &SigningKey,
        from: Timestamp,
        life: DurationMs,
    ) -> anyhow::Result<Verified<NodeCert>> {
        let cert = NodeCert {
            federation: self.federation,
            signer: self.institution_id,
            charter: self.charter,
            node: node_of(key),
            sealing: SealingKey::from_bytes(random(32).try_into().unwrap_or_default()),
            name: "visitor".to_owned(),
            jurisdiction: JURISDICTION.parse().map_err(anyhow::Error::msg)?,
            serial: from.as_ms(),
            not_before: from,
            expires: from.plus(life),
        };
        Ok(Verified::sign(&self.institution, cert)?)
    }

    fn hello(&self, chain: &[&Verified<NodeCert>]) -> Vec<u8> {
        let envelope = |cert: &&Verified<NodeCert>| ByteString(cert.envelope().as_bytes().to_vec());
        encoding::encode(&Hello {
            federation: self.federation,
            charter: self.charter,
            chain: chain.iter().map(envelope).collect(),
            versions: Versions::of_this_release(),
        })
    }

    fn greeting(&self, hello: Vec<u8>) -> Greeting {
        Greeting::Hello { federation: *self.federation.as_bytes(), hello }
    }

    /// An advert of the node with this key, beyond reproach but for what it claims.
    fn advert(&self, key: &SigningKey, slots: u16, sequence: u64) -> anyhow::Result<Vec<u8>> {
        let issued = now();
        let advert = CapacityAdvert {
            federation: self.federation,
            signer: node_of(key),
            institution: self.institution_id,
            charter: self.charter,
            order: AdvertOrder { epoch: 1, incarnation: 1, sequence },
            issued,
            expires: issued.plus(DurationMs::from_secs(20)),
            versions: Versions::of_this_release(),
            jurisdiction: JURISDICTION.parse().map_err(anyhow::Error::msg)?,
            devices: Vec::new(),
            slots_total: slots,
            slots_free: 0,
            queue_ms: DurationMs::from_ms(0),
            models: Vec::new(),
            fetches_models: false,
            datasets: Vec::new(),
            adapters: Vec::new(),
            rates: Rates::default(),
            draining: false,
            addresses: Vec::new(),
        };
        Ok(Verified::sign(key, advert)?.envelope().as_bytes().to_vec())
    }

    /// A message that is harmless whoever gets it: it cancels a job that nobody has.
    fn cancel(&self, key: &SigningKey) -> anyhow::Result<Vec<u8>> {
        let cancel = Cancel {
            federation: self.federation,
            signer: node_of(key).into(),
            job: MessageId::from_bytes([7; 32]),
            attempt: None,
            why: CancelWhy::Deadline,
            issued: now(),
        };
        Ok(Bundle::of(Verified::sign(key, cancel)?.envelope().clone()).to_bytes())
    }
}

/// The control addresses of a node: TCP, then QUIC.
fn addresses(member: &Member) -> anyhow::Result<Vec<Multiaddr>> {
    let tcp: Multiaddr = member.control_address()?.parse()?;
    let peer = tcp.iter().last().context("no peer in the address")?;
    let quic: Multiaddr =
        format!("/ip4/127.0.0.1/udp/{}/quic-v1", member.ports().control_udp).parse()?;
    let quic = quic.with(peer);
    Ok(vec![tcp, quic])
}

fn wait_for_slots(clis: &[Cli], node: &str, slots: u16) -> anyhow::Result<()> {
    for cli in clis {
        wait_for("gossip of a member to arrive", Duration::from_secs(15), || {
            Ok((slots_of(cli, node)? == Some(slots.into())).then_some(()))
        })?;
    }
    Ok(())
}

fn slots_of(cli: &Cli, node: &str) -> anyhow::Result<Option<u64>> {
    let nodes = cli.json(&["nodes"])?;
    let row = nodes.as_array().into_iter().flatten().find(|row| text(row, "node") == node);
    Ok(row.and_then(|row| row["slots_total"].as_u64()))
}

/// Whether any node lists the node with this key, as peer or in its table.
fn knows(world: &World, key: &SigningKey) -> anyhow::Result<bool> {
    for member in world.members() {
        let listed = slots_of(&member.cli(), &node_of(key).to_string())?.is_some();
        if listed || is_peer(&member.cli(), key)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_peer(cli: &Cli, key: &SigningKey) -> anyhow::Result<bool> {
    let status = cli.json(&["status"])?;
    let node = node_of(key).to_string();
    Ok(status["peers"].as_array().into_iter().flatten().any(|peer| text(peer, "node") == node))
}

fn node_of(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

fn new_key() -> SigningKey {
    SigningKey::from_bytes(&random(32).try_into().unwrap_or_default())
}

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

fn now() -> Timestamp {
    Timestamp::from_ms(super::now_ms())
}

/// Memory of a process that is in RAM, from the kernel's table.
fn resident_mib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024)
}
