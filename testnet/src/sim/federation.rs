//! The members of the simulated federation: the same for every seed, made once.

use std::sync::OnceLock;

use allmend_protocol::cert::{NodeCert, ResearcherCert};
use allmend_protocol::charter::{Charter, Member, Timing};
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{FederationId, InstitutionId, NodeId, ResearcherId, SealingKey};
use allmend_protocol::roster::Roster;
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Jurisdiction;
use ed25519_dalek::SigningKey;

/// Institutions.
pub(crate) const INSTITUTIONS: usize = 8;
/// Nodes of each; the first is home to its researcher.
pub(crate) const NODES_PER_INSTITUTION: usize = 4;
/// Nodes in all.
pub(crate) const NODES: usize = INSTITUTIONS * NODES_PER_INSTITUTION;
/// The simulation's beginning on a true clock.
pub(crate) const START: Timestamp = Timestamp::from_ms(1_795_422_000_000);
/// How far honest clocks may differ from one another.
pub(crate) const SKEW_MS: u64 = 2_000;

const JURISDICTIONS: [&str; INSTITUTIONS] = ["CH", "NO", "DE", "CH", "FR", "NO", "DE", "IT"];

/// Everything that does not change between seeds.
#[derive(Debug)]
pub(crate) struct Federation {
    /// All members.
    pub(crate) roster: Roster,
    /// Which federation.
    pub(crate) id: FederationId,
    /// Institutions by index.
    pub(crate) institutions: Vec<InstitutionId>,
    /// Where each institution and its nodes are.
    pub(crate) jurisdictions: Vec<Jurisdiction>,
    /// Node keys by index.
    pub(crate) node_keys: Vec<SigningKey>,
    /// Nodes by index; node `i` belongs to institution `i / NODES_PER_INSTITUTION`.
    pub(crate) nodes: Vec<NodeId>,
    /// Researcher keys, one per institution.
    pub(crate) researcher_keys: Vec<SigningKey>,
    /// Their certificates.
    pub(crate) researcher_certs: Vec<Verified<ResearcherCert>>,
}

impl Federation {
    /// The one federation of all simulations.
    pub(crate) fn shared() -> &'static Federation {
        static SHARED: OnceLock<Federation> = OnceLock::new();
        SHARED.get_or_init(Federation::build)
    }

    /// The index of the institution that runs node `index`.
    pub(crate) fn institution_of(&self, index: usize) -> usize {
        index / NODES_PER_INSTITUTION
    }

    /// The node that is home to the researcher of an institution.
    pub(crate) fn home_of(&self, institution: usize) -> usize {
        institution * NODES_PER_INSTITUTION
    }

    /// A node's index.
    pub(crate) fn index_of(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|known| *known == node)
    }

    fn build() -> Federation {
        let keys = |role: u8, count: usize| -> Vec<SigningKey> {
            (0..count)
                .map(|index| {
                    let mut seed = [role; 32];
                    seed[1..9].copy_from_slice(&(index as u64).to_be_bytes());
                    SigningKey::from_bytes(&seed)
                })
                .collect()
        };
        let public = |key: &SigningKey| key.verifying_key().to_bytes();
        let seats = keys(1, INSTITUTIONS);
        let node_keys = keys(2, NODES);
        let researcher_keys = keys(3, INSTITUTIONS);
        let jurisdictions: Vec<Jurisdiction> = JURISDICTIONS
            .iter()
            .map(|code| Jurisdiction::new(code).expect("two capitals"))
            .collect();
        let institutions: Vec<InstitutionId> =
            seats.iter().map(|key| InstitutionId::from_bytes(public(key))).collect();
        let (from, to) =
            (START.minus(DurationMs::from_secs(3_600)), START.plus(DurationMs::from_secs(86_400)));

        let mut members: Vec<Member> = (0..INSTITUTIONS)
            .map(|index| Member {
                key: institutions[index],
                name: format!("institution {index}"),
                jurisdiction: jurisdictions[index],
            })
            .collect();
        members.sort_by_key(|member| member.key);
        let charter = Charter {
            federation: None,
            signer: institutions[0],
            name: "simulated".into(),
            version: 1,
            previous: None,
            not_before: from,
            expires: to,
            institutions: members,
            members_may_sponsor: false,
            sequencer: None,
            skew_ms: DurationMs::from_ms(SKEW_MS),
            timing: Timing { settle_slack_ms: DurationMs::from_secs(30), ..Timing::default() },
        };
        let charter = Verified::sign(&seats[0], charter).expect("a valid charter");
        let mut roster = Roster::new(charter.clone());
        let id = roster.federation();
        let nodes: Vec<NodeId> =
            node_keys.iter().map(|key| NodeId::from_bytes(public(key))).collect();
        for (index, node) in nodes.iter().enumerate() {
            let institution = index / NODES_PER_INSTITUTION;
            let cert = NodeCert {
                federation: id,
                signer: institutions[institution],
                charter: charter.id(),
                node: *node,
                sealing: SealingKey::from_bytes([1; 32]),
                name: format!("node {index}"),
                jurisdiction: jurisdictions[institution],
                serial: index as u64,
                not_before: from,
                expires: to,
            };
            let cert = Verified::sign(&seats[institution], cert).expect("a valid certificate");
            roster.admit_node(START, cert).expect("a member");
        }
        let researcher_certs = (0..INSTITUTIONS)
            .map(|index| {
                let cert = ResearcherCert {
                    federation: id,
                    signer: institutions[index],
                    charter: charter.id(),
                    researcher: ResearcherId::from_bytes(public(&researcher_keys[index])),
                    sealing: SealingKey::from_bytes([2; 32]),
                    home: nodes[index * NODES_PER_INSTITUTION],
                    credentials: Vec::new(),
                    serial: 1_000 + index as u64,
                    not_before: from,
                    expires: to,
                };
                Verified::sign(&seats[index], cert).expect("a valid certificate")
            })
            .collect();
        Federation {
            roster,
            id,
            institutions,
            jurisdictions,
            node_keys,
            nodes,
            researcher_keys,
            researcher_certs,
        }
    }
}
