//! Three institutions, one job that is interrupted at the second and finished at the third.

use std::path::{Path, PathBuf};

use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::{NodeCert, ResearcherCert};
use allmend_protocol::charter::{Charter, Member, SKEW_DEFAULT, Timing};
use allmend_protocol::envelope::Verified;
use allmend_protocol::grant::{Assign, BrokerRange, Grant};
use allmend_protocol::ids::{
    Digest, FederationId, InstitutionId, MessageId, NodeId, ResearcherId, SealingKey,
};
use allmend_protocol::job::{JobSpec, Placement, SealedInput, Work};
use allmend_protocol::lease::{Fence, Lease};
use allmend_protocol::message::{AnyMessage, Message};
use allmend_protocol::receipt::{JobOutcome, Outcome, Receipt, Settlement, Share, Usage};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::{Credits, Jurisdiction, Rates};
use ed25519_dalek::SigningKey;
use tempfile::TempDir;

use super::data::{Data, Run};
use crate::audit::{Report, verify_dirs};
use crate::journal::{Journal, JournalOptions, Priority, Record};

pub(super) const T0: u64 = 1_800_000_000_000;

pub(super) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_ms(T0 + seconds * 1_000)
}

pub(super) fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub(super) fn public(n: u8) -> [u8; 32] {
    key(n).verifying_key().to_bytes()
}

pub(super) fn node(n: u8) -> NodeId {
    NodeId::from_bytes(public(n))
}

pub(super) fn institution(n: u8) -> InstitutionId {
    InstitutionId::from_bytes(public(10 + n))
}

const RESEARCHER: u8 = 30;

/// What goes into the three logs. Tests change a body, and everything that names it follows.
pub(super) struct World {
    pub(super) federation: FederationId,
    pub(super) charter: Verified<Charter>,
    pub(super) certs: Vec<Verified<NodeCert>>,
    /// Leaves of the logs of nodes 1, 2 and 3.
    pub(super) leaves: [Vec<Vec<u8>>; 3],
}

/// Changes to the bodies before they are signed.
#[derive(Default)]
pub(super) struct Twist {
    pub(super) job: Option<fn(&mut JobSpec)>,
    pub(super) grant: Option<fn(&mut Grant)>,
    pub(super) assign: Option<fn(&mut Assign)>,
    pub(super) lease: Option<fn(&mut Lease)>,
    pub(super) receipt: Option<fn(&mut Receipt)>,
    pub(super) settlement: Option<fn(&mut Settlement)>,
    pub(super) node_cert: Option<fn(&mut NodeCert)>,
    pub(super) researcher_cert: Option<fn(&mut ResearcherCert)>,
    /// The job is fine-tuning, and each attempt has its contract.
    pub(super) data: Option<Data>,
}

pub(super) fn apply<T>(twist: Option<fn(&mut T)>, mut body: T) -> T {
    if let Some(twist) = twist {
        twist(&mut body);
    }
    body
}

pub(super) fn sign<T: Message>(n: u8, body: T) -> Verified<T> {
    Verified::sign(&key(n), body).unwrap()
}

pub(super) fn bytes<T: Message>(message: &Verified<T>) -> Vec<u8> {
    message.envelope().as_bytes().to_vec()
}

impl World {
    pub(super) fn new() -> Self {
        Self::twisted(&Twist::default())
    }

    pub(super) fn twisted(twist: &Twist) -> Self {
        let charter = charter("Test");
        let federation = FederationId::from(charter.id());
        let certs: Vec<_> = (1..=3)
            .map(|n| {
                let cert = node_cert(federation, &charter, n);
                sign(10 + n, if n == 3 { apply(twist.node_cert, cert) } else { cert })
            })
            .collect();
        let mut world = Self { federation, charter, certs, leaves: Default::default() };
        world.run_job(twist);
        world
    }

    fn run_job(&mut self, twist: &Twist) {
        let (federation, charter) = (self.federation, self.charter.id());
        let researcher = ResearcherId::from_bytes(public(RESEARCHER));
        let cert = sign(
            11,
            apply(
                twist.researcher_cert,
                ResearcherCert {
                    federation,
                    signer: institution(1),
                    charter,
                    researcher,
                    sealing: SealingKey::from_bytes([1; 32]),
                    home: node(1),
                    credentials: Vec::new(),
                    serial: 9,
                    not_before: at(0),
                    expires: at(100_000),
                },
            ),
        );
        let mut job = job(federation, &self.charter, &cert);
        if twist.data.is_some() {
            super::data::make_finetuning(&mut job);
        }
        let job = sign(RESEARCHER, apply(twist.job, job));
        let grant = sign(
            1,
            apply(
                twist.grant,
                Grant {
                    federation,
                    signer: node(1),
                    charter,
                    governance: None,
                    job: job.id(),
                    researcher,
                    cap: Credits::from_micro(1_000),
                    attempts: 3,
                    brokers: vec![BrokerRange { node: node(1), first: 1, last: 3 }],
                    issued: at(11),
                    deadline: at(60),
                    settle_by: at(90),
                },
            ),
        );
        let [home, ..] = &mut self.leaves;
        home.extend([bytes(&cert), bytes(&job), bytes(&grant)]);
        let mut shares = Vec::new();
        for attempt in [1, 2] {
            let worker = attempt as u8 + 1;
            let assign = Assign {
                federation,
                signer: node(1),
                charter,
                job: job.id(),
                grant: grant.id(),
                attempt,
                node: node(worker),
                offer: MessageId::from_bytes([4; 32]),
                considered: Digest::of(b"considered"),
                issued: at(12 + u64::from(attempt)),
                respond_by: at(20 + u64::from(attempt)),
            };
            let assign = sign(1, if attempt == 2 { apply(twist.assign, assign) } else { assign });
            self.leaves[0].push(bytes(&assign));
            let lease = Lease {
                federation,
                signer: node(worker),
                charter,
                job: job.id(),
                grant: grant.id(),
                assign: assign.id(),
                attempt,
                fence: Fence { epoch: 0, incarnation: 1, sequence: 1 },
                slot: 0,
                rates: Rates { prompt: 1_000, completion: 2_000 },
                ttl_ms: DurationMs::from_secs(6),
                issued: at(13 + u64::from(attempt)),
            };
            let lease = sign(worker, if attempt == 2 { apply(twist.lease, lease) } else { lease });
            let run = twist.data.as_ref().map(|data| {
                let plain = Data::default();
                Run::new(if attempt == 2 { data } else { &plain }, &job, &lease, attempt == 2)
            });
            let receipt = Receipt {
                federation,
                signer: node(worker),
                charter,
                job: job.id(),
                grant: grant.id(),
                lease: lease.id(),
                attempt,
                outcome: match attempt {
                    1 => Outcome::Interrupted,
                    _ => Outcome::Finished { reason: "stop".to_owned() },
                },
                usage: Usage { prompt_tokens: 10, completion_tokens: 20, ..Usage::default() },
                cost: Credits::from_micro(50),
                output: None,
                model: Digest::of(b"model"),
                model_licence: None,
                numerics: "test-1".to_owned(),
                contract: run.as_ref().map(|run| run.contract.id()),
                started: lease.issued,
                ended: at(30),
            };
            let receipt = if attempt == 2 { apply(twist.receipt, receipt) } else { receipt };
            let receipt = sign(worker, receipt);
            let log = &mut self.leaves[usize::from(attempt)];
            log.push(bytes(&lease));
            log.extend(run.map_or(Vec::new(), |run| run.leaves()));
            log.push(bytes(&receipt));
            shares.push(Share {
                lease: lease.id(),
                receipt: receipt.id(),
                node: node(worker),
                institution: institution(worker),
                cost: Credits::from_micro(50),
            });
        }
        shares.sort_by_key(|share| share.lease);
        let settlement = Settlement {
            federation,
            signer: node(1),
            charter,
            job: job.id(),
            grant: grant.id(),
            payer: institution(1),
            outcome: JobOutcome::Finished,
            shares,
            total: Credits::from_micro(100),
            refunded: Credits::from_micro(900),
            issued: at(40),
        };
        self.leaves[0].push(bytes(&sign(1, apply(twist.settlement, settlement))));
    }

    /// The message at an entry of the log of node `n`.
    pub(super) fn message(&self, n: usize, entry: usize) -> AnyMessage {
        let envelope = allmend_protocol::envelope::Envelope::from_bytes(&self.leaves[n - 1][entry]);
        AnyMessage::verify(&envelope.unwrap(), &self.federation).unwrap()
    }

    /// Writes the three logs as nodes do.
    pub(super) fn write(&self) -> Written {
        let written = Written { dir: TempDir::new().unwrap() };
        for n in 1..=3 {
            let leaves = self.leaves[n - 1].clone();
            let blobs = [bytes(&self.charter), bytes(&self.certs[n - 1])];
            write_log(&written.node_dir(n), n as u8, leaves, &blobs);
        }
        written
    }

    pub(super) fn audit(&self) -> Report {
        verify_dirs(&self.write().dirs())
    }
}

pub(super) fn write_log(dir: &Path, n: u8, leaves: Vec<Vec<u8>>, blobs: &[Vec<u8>]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let origin = format!("node-{n}.test/log/0");
        let options = JournalOptions::new(dir.to_owned(), origin, key(n));
        let (journal, _) = Journal::open(options).unwrap();
        for blob in blobs {
            let digest = *Digest::of(blob).as_bytes();
            journal.put_blob(digest, blob.clone()).await.unwrap();
        }
        for leaf in leaves {
            journal.append(vec![Record::Leaf(leaf)], Priority::Ordinary).await.unwrap();
        }
        journal.close().await.unwrap();
    });
}

pub(super) struct Written {
    dir: TempDir,
}

impl Written {
    pub(super) fn node_dir(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("node-{n}"))
    }

    pub(super) fn log(&self, n: usize, path: &str) -> PathBuf {
        self.node_dir(n).join("log").join(path)
    }

    pub(super) fn dirs(&self) -> Vec<PathBuf> {
        (1..=3).map(|n| self.node_dir(n)).collect()
    }

    pub(super) fn audit(&self) -> Report {
        verify_dirs(&self.dirs())
    }
}

pub(super) fn charter(name: &str) -> Verified<Charter> {
    let mut institutions: Vec<_> = (1..=3)
        .map(|n| Member {
            key: institution(n),
            name: format!("Institution {n}"),
            jurisdiction: Jurisdiction::new("CH").unwrap(),
        })
        .collect();
    institutions.sort_by_key(|member| member.key);
    sign(
        11,
        Charter {
            federation: None,
            signer: institution(1),
            name: name.to_owned(),
            version: 1,
            previous: None,
            not_before: at(0),
            expires: at(1_000_000),
            institutions,
            members_may_sponsor: false,
            sequencer: None,
            skew_ms: SKEW_DEFAULT,
            timing: Timing::default(),
        },
    )
}

fn node_cert(federation: FederationId, charter: &Verified<Charter>, n: u8) -> NodeCert {
    NodeCert {
        federation,
        signer: institution(n),
        charter: charter.id(),
        node: node(n),
        sealing: SealingKey::from_bytes([n; 32]),
        name: format!("node-{n}"),
        jurisdiction: Jurisdiction::new("CH").unwrap(),
        serial: 1,
        not_before: at(0),
        expires: at(100_000),
    }
}

fn job(
    federation: FederationId,
    charter: &Verified<Charter>,
    cert: &Verified<ResearcherCert>,
) -> JobSpec {
    JobSpec {
        federation,
        signer: ResearcherId::from_bytes(public(RESEARCHER)),
        certificate: cert.id(),
        charter: charter.id(),
        governance: None,
        home: node(1),
        nonce: [7; 16],
        project: "test".to_owned(),
        purpose: "research".to_owned(),
        work: Work { kind: "infer.v1".to_owned(), bytes: ByteString(vec![0xa0]) },
        model: Digest::of(b"model"),
        dataset: None,
        input: SealedInput { digest: Digest::of(b"input"), bytes: 5, wraps: vec![] },
        placement: Placement::default(),
        cap: Credits::from_micro(1_000),
        attempts: 3,
        issued: at(10),
        deadline: at(60),
        terms: None,
        delegation: None,
    }
}
