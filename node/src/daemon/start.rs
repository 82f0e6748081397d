//! Bringing a node up: everything is opened and checked before a socket listens.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use allmend_protocol::envelope::Envelope;
use allmend_protocol::ids::{Digest, InstitutionId, NodeId};
use allmend_protocol::message::{AnyMessage, Versions};
use allmend_room::{EmptyRoom, Strength};
use allmend_scheduler::core::Core;
use allmend_scheduler::io::{Entry, Record as CoreRecord};
use allmend_scheduler::policy::OperatorPolicy;
use allmend_scheduler::settings::{Identity as CoreIdentity, Settings};
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::capacity::Capacity;
use super::effects::KIND_CORE;
use super::index::ByJob;
use super::recalls::Recalls;
use super::register::Register;
use super::running::Running;
use super::serve::KnownClients;
use super::training::TrainingPlace;
use super::{Daemon, EVENTS_MAX, Event, Local, tap};
use crate::config::{Config, Identity, Layout, write_private};
use crate::device::Device;
use crate::journal::{Journal, JournalOptions, Record, Replay};
use crate::membership::Membership;
use crate::net::{Admitted, Gossip, ListenAddresses, Members, Net, NetOptions, peer_of};
use crate::spool::Spool;
use crate::stewards::Stewardship;
use crate::ui::{Advice, ExitClass};
use crate::worker::Pool;
use crate::worker::train::pipe::Fault;

/// How to run a node.
#[derive(Debug)]
pub struct RunOptions {
    /// Its data directory.
    pub layout: Layout,
    /// Its configuration.
    pub config: Config,
    /// The binary to start as worker, normally this very one.
    pub program: std::path::PathBuf,
    /// Speak the first version of every message only, as a node of the first release would.
    pub first_versions: bool,
}

/// What the command line needs to find a running daemon; `run/daemon.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Process id.
    pub pid: u32,
    /// The node.
    pub node: NodeId,
    /// Where clients connect, `host:port`.
    pub bulk: Vec<String>,
    /// Where members connect.
    pub control: Vec<String>,
}

/// The log epoch of a node that never lost its log.
const FIRST_EPOCH: u32 = 1;

/// The network's questions, answered by roster and register.
struct Doorkeeper {
    membership: Arc<Membership>,
    clients: Arc<KnownClients>,
}

impl Members for Doorkeeper {
    fn hello(&self) -> Vec<u8> {
        self.membership.hello()
    }

    fn admit(&self, peer: NodeId, hello: &[u8]) -> Result<Admitted, String> {
        self.membership.admit(peer, hello)
    }

    fn validate_gossip(&self, bytes: &[u8]) -> Gossip {
        self.membership.validate_gossip(bytes)
    }

    fn knows_client(&self, key: &[u8; 32]) -> bool {
        self.clients.knows(key)
    }
}

/// Runs a node until it is asked to stop by a client or a signal.
///
/// # Errors
/// When anything it needs is missing, damaged or in use; and when the journal fails.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    let RunOptions { layout, config, program, first_versions } = options;
    layout.require()?;
    // Held until the process ends; the journal has a lock of its own.
    let Some(_lock) = layout.lock_daemon().context("the daemon's lock file")? else {
        return Err(Advice::new(
            ExitClass::Conflict,
            "a node is running in this directory already",
        )
        .hint("see it: allmend status; stop it: allmend node stop")
        .into());
    };
    let identity = Identity::load(&layout.node_key())?;
    let node = NodeId::from(identity.public());
    let institution_key = match Identity::load(&layout.institution_key()) {
        Ok(key) => Some(key),
        Err(crate::config::KeyError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let policy = OperatorPolicy::from_toml(&config.policy)
        .with_context(|| format!("[policy] in {}", layout.config_file().display()))?;
    let versions = if first_versions { Versions::first() } else { Versions::of_this_release() };
    let membership =
        Membership::load(&layout.charter(), &layout.certs_dir(), node, versions.clone())?;
    let roster = membership.roster();
    let cert = roster.node_at(crate::membership::now(), node)?.clone();
    let institution: InstitutionId = cert.signer;
    let federation = membership.federation();
    let register = Register::load(layout.register(), federation)?;
    let clients = Arc::new(KnownClients::default());
    clients.set(register.keys());

    let mut journal_options = JournalOptions::new(
        layout.root().to_owned(),
        format!("allmend/{}/{}/{FIRST_EPOCH}", federation, node),
        identity.signing().clone(),
    );
    journal_options.cap_bytes = config.storage.log_cap_mib.saturating_mul(1 << 20);
    journal_options.indexer = Arc::new(ByJob);
    let (journal, recovered) = tokio::task::spawn_blocking(move || Journal::open(journal_options))
        .await
        .context("the journal's opening was interrupted")??;
    if recovered.torn_bytes > 0 {
        tracing::info!(bytes = recovered.torn_bytes, "an unfinished append was cut off");
    }
    let entries = entries(recovered.records, membership.as_ref())?;
    let device = Device::probe(layout.root());
    let room = room_here(program.clone()).await;
    let leaves = || {
        entries.iter().filter_map(|entry| match entry {
            Entry::Leaf(message) => Some(message),
            Entry::Private(_) => None,
        })
    };
    let recalls = Recalls::open(node, leaves());
    let stewards = {
        let here = (node, institution, cert.jurisdiction);
        let notify = config.stewards.notify.clone();
        Arc::new(Stewardship::open(&layout, here, room, notify, leaves())?)
    };
    let settings = Settings {
        policy,
        versions,
        stewards: Some(Arc::clone(&stewards) as Arc<dyn allmend_scheduler::stewards::Stewards>),
        numerics: device.numerics().to_owned(),
        limits: allmend_scheduler::settings::Limits {
            jobs_open_max: config.limits.jobs_open_max as usize,
            max_tokens_max: config.limits.context_tokens_max,
            prompt_tokens_max: config.limits.context_tokens_max,
            ..Default::default()
        },
        ..Settings::default()
    };
    let core_identity = CoreIdentity {
        key: identity.signing().clone(),
        node,
        institution,
        jurisdiction: cert.jurisdiction,
        federation,
        epoch: FIRST_EPOCH,
    };
    let core = Core::recover(core_identity, settings, roster, entries)
        .context("the journal does not rebuild this node's state")?;

    let tap = match &config.debug.tap_dir {
        Some(dir) => {
            tracing::warn!(dir = %dir.display(), "debug.tap_dir: every frame is written in clear");
            Some(tap::FileTap::create(dir)?)
        }
        None => None,
    };
    let doorkeeper =
        Arc::new(Doorkeeper { membership: Arc::clone(&membership), clients: Arc::clone(&clients) });
    let (net, net_events) = Net::start(
        NetOptions {
            key: identity.signing().clone(),
            federation: *federation.as_bytes(),
            control_listen: config.control_listen.clone(),
            bulk_listen: config.bulk_listen,
            control_external: config.external_addresses.clone(),
            bulk_external: Vec::new(),
            bootstrap: config.bootstrap.clone(),
            advertise: true,
            disable_udp: !config.transport.udp,
            gso: config.transport.gso,
            tap: tap.map(|tap| tap as Arc<dyn crate::net::Tap>),
        },
        doorkeeper,
    )
    .await?;

    let (events, event_queue) = mpsc::channel::<Event>(EVENTS_MAX);
    let capacity = Capacity::survey(
        &layout,
        &config,
        device,
        control_addresses(&net.listen_addresses(), node),
    )?;
    let pool_options = capacity.pool_options(program.clone());
    let (threads, memory_mib) = (pool_options.threads, pool_options.memory_mib);
    let pool = Pool::new(pool_options);
    capacity.licences().for_each(|(model, licence)| stewards.learn_licence(model, licence));
    let listening = net.listen_addresses();
    let local = Arc::new(Local {
        node,
        institution,
        federation,
        identity,
        institution_key,
        config,
        layout,
        started: Instant::now(),
    });
    let fault = Fault::parse(&local.config.debug.training_fault)
        .map_err(|why| Advice::new(ExitClass::Config, format!("debug.training_fault: {why}")))?;
    let training = Arc::new(TrainingPlace {
        store: capacity.store().clone(),
        stewards: Arc::clone(&stewards),
        adapters: capacity.adapters().clone(),
        program,
        threads,
        memory_mib,
        fault,
        events: events.clone(),
    });
    let running =
        Running::new(Arc::clone(&local), capacity.store().clone(), pool, events.clone(), training);
    let found = DaemonInfo {
        pid: std::process::id(),
        node,
        bulk: bulk_addresses(&listening),
        control: control_addresses(&listening, node),
    };
    let mut daemon = Daemon {
        core,
        journal,
        net,
        membership,
        register,
        clients,
        spool: Spool::new(local.layout.spool_dir()),
        running,
        stewards,
        recalls,
        capacity,
        events: events.clone(),
        outputs: BTreeMap::new(),
        streams: BTreeMap::new(),
        held: BTreeMap::new(),
        draining: None,
        stopping: None,
        unpublished: false,
        published: Instant::now(),
        housekeeping: Instant::now(),
        local: Arc::clone(&local),
    };
    daemon.publish_membership().await?;
    daemon.finish_results();
    daemon.warm_models();
    daemon.forget_counted();
    tokio::spawn(on_signals(events));
    let path = local.layout.daemon_file();
    write_private(&path, &serde_json::to_vec_pretty(&found)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    tracing::info!(node = %node, bulk = ?found.bulk, control = ?found.control, "node is up");
    let ended = daemon.run(net_events, event_queue).await;
    let _ = std::fs::remove_file(&path);
    ended
}

/// The class of rooms that this machine builds: one is built and thrown away. Where none can be, no
/// dataset whose policy asks for one is opened here.
async fn room_here(program: std::path::PathBuf) -> Strength {
    let built = tokio::task::spawn_blocking(move || {
        let mut command = std::process::Command::new(program);
        command.arg(crate::worker::SEALED_COMMAND);
        let spec = allmend_room::Spec { least: Strength::Process, ..Default::default() };
        EmptyRoom::build(&mut command, &spec).map(|room| {
            let lacking = room.facts().lacking(Strength::Sealed);
            (room.strength(), lacking)
        })
    });
    match built.await {
        Ok(Ok((strength, lacking))) => {
            tracing::info!(room = %strength, lacking = lacking.len(), "rooms for training");
            for what in lacking {
                tracing::warn!(room = %strength, %what, "the room is not sealed");
            }
            strength
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "no room for training can be built");
            Strength::Process
        }
        Err(_) => Strength::Process,
    }
}

impl Daemon {
    /// Charter and certificates lie beside the log, so that an auditor needs nothing else.
    async fn publish_membership(&self) -> anyhow::Result<()> {
        let charter = self.core.roster().charter().envelope().clone();
        put_blob(&self.journal, charter.as_bytes()).await?;
        for message in self.membership.certificates() {
            put_blob(&self.journal, message.envelope().as_bytes()).await?;
        }
        for (key, _) in self.register.researchers() {
            if let Some(cert) = self.register.cert(key) {
                put_blob(&self.journal, cert.envelope().as_bytes()).await?;
            }
        }
        self.journal.publish().await?;
        Ok(())
    }
}

/// Where members reach the control plane, each address with the peer's id as libp2p writes it.
pub(super) fn control_addresses(listening: &ListenAddresses, node: NodeId) -> Vec<String> {
    let peer = peer_of(&node);
    listening
        .control
        .iter()
        .filter_map(|address| Some(address.clone().with_p2p(peer?).ok()?.to_string()))
        .take(allmend_protocol::cert::ADDRESSES_MAX)
        .collect()
}

/// Where clients and members reach the bulk plane: a wildcard address stands for those of every
/// interface that the control plane listens on.
pub(super) fn bulk_addresses(listening: &ListenAddresses) -> Vec<String> {
    let Some(bound) = listening.bulk else { return Vec::new() };
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    let mut addresses = vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), bound.port())];
    for address in &listening.control {
        let ip = address.iter().find_map(|part| match part {
            libp2p::multiaddr::Protocol::Ip4(ip) => Some(IpAddr::from(ip)),
            libp2p::multiaddr::Protocol::Ip6(ip) if bound.is_ipv6() => Some(IpAddr::from(ip)),
            _ => None,
        });
        let address = ip.map(|ip| SocketAddr::new(ip, bound.port()));
        if let Some(address) = address.filter(|address| !addresses.contains(address)) {
            addresses.push(address);
        }
    }
    // An invitation carries no more; loopback is of no use to others and comes last.
    addresses.rotate_left(1);
    addresses.truncate(allmend_protocol::cert::ADDRESSES_MAX);
    addresses.iter().map(ToString::to_string).collect()
}

/// Stores bytes beside the log under their SHA-256.
pub(super) async fn put_blob(journal: &Journal, bytes: &[u8]) -> anyhow::Result<()> {
    journal.put_blob(*Digest::of(bytes).as_bytes(), bytes.to_vec()).await?;
    Ok(())
}

/// The journal's records as the machines read them.
fn entries(records: Replay, membership: &Membership) -> anyhow::Result<Vec<Entry>> {
    let federation = membership.federation();
    let mut entries = Vec::new();
    for stored in records {
        let stored = stored?;
        let entry = match &stored.record {
            Record::Leaf(bytes) => {
                let envelope = Envelope::from_bytes(bytes)?;
                Entry::Leaf(AnyMessage::verify(&envelope, &federation)?)
            }
            Record::Private { kind: KIND_CORE, bytes } => {
                Entry::Private(CoreRecord::from_bytes(bytes)?)
            }
            Record::Private { kind, .. } => bail!("the journal holds a record of kind {kind}"),
        };
        entries.push(entry);
    }
    Ok(entries)
}

async fn on_signals(events: mpsc::Sender<Event>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be caught; stop the node with `allmend node stop`");
        return;
    };
    loop {
        // The first asks for an orderly end after running work, the second for one now.
        tokio::select! {
            got = terminate.recv() => if got.is_none() { return },
            got = interrupt.recv() => if got.is_none() { return },
        }
        if events.send(Event::Stop { drain: true }).await.is_err() {
            return;
        }
    }
}
