//! Arbitrary valid bodies of every kind, drawn from one number so that a failing case is one
//! number too. Each field takes its smallest and largest values more often than others.

mod data;

use allmend_protocol::advert::{
    AdvertOrder, CapacityAdvert, DeviceCapacity, DeviceKind, ModelHeld,
};
use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::{
    InstitutionCert, Invitation, JoinRequest, NodeCert, ResearcherCert, Role,
};
use allmend_protocol::charter::{Charter, Member, Timing};
use allmend_protocol::grant::{Assign, BrokerRange, Grant};
use allmend_protocol::ids::{
    Digest, FederationId, InstitutionId, MessageId, NodeId, PublicKey, ResearcherId, SealingKey,
};
use allmend_protocol::job::{
    Delegation, InferWork, JobSpec, KeyWrap, Placement, SealedInput, Terms, Work,
};
use allmend_protocol::lease::{Cancel, CancelWhy, Fence, Lease, LeaseRenewal};
use allmend_protocol::log_succession::LogSuccession;
use allmend_protocol::message::{AnyMessage, Body, Kind, Versions};
use allmend_protocol::offer::{Offer, Pending, Probe, Reason, ReasonClass, Refusal, RefusalV1};
use allmend_protocol::receipt::{Energy, JobOutcome, Outcome, Receipt, Settlement, Share, Usage};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::{Credits, Decimal, Jurisdiction, Rates};

use super::public;

/// Seed of the key that signs everything drawn.
pub(crate) const SIGNER: u8 = 7;

/// A source of choices (SplitMix64, S. Vigna).
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least `low`, at most `high`; the ends every fourth time each.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        match self.number() % 4 {
            0 => low,
            1 => high,
            _ => match (high - low).checked_add(1) {
                Some(span) => low + self.number() % span,
                None => self.number(),
            },
        }
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.number() % count as u64) as usize
    }

    fn u64(&mut self) -> u64 {
        self.between(0, u64::MAX)
    }

    fn u32(&mut self) -> u32 {
        self.between(0, u32::MAX.into()) as u32
    }

    fn u16(&mut self) -> u16 {
        self.between(0, u16::MAX.into()) as u16
    }

    fn flag(&mut self) -> bool {
        self.number().is_multiple_of(2)
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn maybe<T>(&mut self, value: impl FnOnce(&mut Draw) -> T) -> Option<T> {
        self.flag().then(|| value(self))
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.number() as u8)
    }

    pub(crate) fn bytes(&mut self, max: usize) -> ByteString {
        let length = self.between(0, max as u64);
        ByteString((0..length).map(|_| self.number() as u8).collect())
    }

    fn text(&mut self, bytes_max: usize) -> String {
        let wanted = self.between(0, bytes_max as u64) as usize;
        let mut text = String::new();
        loop {
            let next = self.one_of(&['a', 'Z', '0', ' ', '"', '\\', 'ø', '中', '🦙', '\u{202e}']);
            if text.len() + next.len_utf8() > wanted {
                return text;
            }
            text.push(next);
        }
    }

    fn list<T>(&mut self, max: usize, mut one: impl FnMut(&mut Draw) -> T) -> Vec<T> {
        // Long lists now and then: they are what is slow to draw and sign.
        let length = if self.below(8) == 0 { max } else { self.below(max.min(6) + 1) };
        (0..length).map(|_| one(self)).collect()
    }

    fn set<T: Ord>(&mut self, max: usize, one: impl FnMut(&mut Draw) -> T) -> Vec<T> {
        let mut list = self.list(max, one);
        list.sort_unstable();
        list.dedup();
        list
    }

    /// Two times, the first earlier.
    fn rising(&mut self) -> (Timestamp, Timestamp) {
        let first = self.between(0, u64::MAX - 1);
        (Timestamp::from_ms(first), Timestamp::from_ms(self.between(first + 1, u64::MAX)))
    }

    fn time(&mut self) -> Timestamp {
        Timestamp::from_ms(self.u64())
    }

    fn duration(&mut self, low: u64, high: u64) -> DurationMs {
        DurationMs::from_ms(self.between(low, high))
    }

    fn credits(&mut self) -> Credits {
        Credits::from_micro(self.u64())
    }

    fn rates(&mut self) -> Rates {
        Rates { prompt: self.u64(), completion: self.u64() }
    }

    fn decimal(&mut self) -> Decimal {
        let mantissa = self.between(0, i64::MAX as u64) as i64;
        Decimal { mantissa, exp10: self.between(0, 36) as i8 - 18 }
    }

    fn country(&mut self) -> Jurisdiction {
        let code: String = (0..2).map(|_| char::from(b'A' + self.below(26) as u8)).collect();
        Jurisdiction::new(&code).unwrap()
    }

    fn message(&mut self) -> MessageId {
        MessageId::from_bytes(self.array())
    }

    fn federation(&mut self) -> FederationId {
        self.message().into()
    }

    fn digest(&mut self) -> Digest {
        Digest::from_bytes(self.array())
    }

    /// A key that somebody could hold; the signer's own never.
    fn key(&mut self) -> PublicKey {
        PublicKey::from_bytes(public(10 + self.below(54) as u8))
    }

    fn node(&mut self) -> NodeId {
        NodeId::from_bytes(self.array())
    }

    fn attempt(&mut self) -> u16 {
        self.between(1, 64) as u16
    }

    fn reasons(&mut self) -> Vec<Reason> {
        const CLASSES: [ReasonClass; 16] = {
            use ReasonClass::*;
            [
                Policy,
                Jurisdiction,
                Institution,
                Model,
                Dataset,
                Memory,
                Device,
                Size,
                Busy,
                Draining,
                Disk,
                Price,
                Deadline,
                Chain,
                Version,
                Attempt,
            ]
        };
        let mut reasons = self.list(7, |d| Reason { class: d.one_of(&CLASSES), text: d.text(240) });
        reasons.push(Reason::new(ReasonClass::Busy, self.text(300)));
        reasons
    }

    /// A valid body of that kind and version, signed by [`SIGNER`].
    pub(crate) fn body(&mut self, kind: Kind, version: u16) -> Body {
        match kind {
            Kind::Charter => self.charter().into(),
            Kind::InstitutionCert | Kind::NodeCert | Kind::ResearcherCert => self.cert(kind),
            Kind::Invitation => self.invitation().into(),
            Kind::JoinRequest => self.join_request().into(),
            Kind::CapacityAdvert => self.advert().into(),
            Kind::JobSpec => self.job().into(),
            Kind::Delegation => self.delegation().into(),
            Kind::Probe => Probe {
                federation: self.federation(),
                signer: signer().into(),
                charter: self.message(),
                job: self.message(),
                attempt: self.u16().max(1),
                sequence: self.u64(),
                issued: self.time(),
            }
            .into(),
            Kind::Offer => self.offer().into(),
            Kind::Refusal if version == 1 => RefusalV1::from(self.refusal()).into(),
            Kind::Refusal => self.refusal().into(),
            Kind::Pending => self.pending().into(),
            Kind::Grant => self.grant().into(),
            Kind::Assign => self.assign().into(),
            Kind::Lease => self.lease().into(),
            Kind::LeaseRenewal => LeaseRenewal {
                federation: self.federation(),
                signer: signer().into(),
                lease: self.message(),
                job: self.message(),
                sequence: self.u32().max(1),
                tokens_done: self.u32(),
                ttl_ms: self.duration(1, u64::MAX),
                issued: self.time(),
            }
            .into(),
            Kind::Cancel => self.cancel().into(),
            Kind::Receipt => self.receipt().into(),
            Kind::Settlement => self.settlement().into(),
            Kind::LogSuccession => self.succession().into(),
            Kind::Approval => self.approval().into(),
            Kind::Contract => self.contract().into(),
            Kind::GateReport => self.gate_report().into(),
            Kind::Recall => self.recall().into(),
            Kind::RecallAnswer => self.recall_answer().into(),
            Kind::Deletion => self.deletion().into(),
        }
    }

    /// A valid body of any kind.
    pub(crate) fn any_body(&mut self) -> Body {
        let (kind, version) = self.one_of(&AnyMessage::known());
        self.body(kind, version)
    }

    fn charter(&mut self) -> Charter {
        let genesis = self.flag();
        let (not_before, expires) = self.rising();
        let mut institutions = self.list(63, |d| Member {
            key: d.key().into(),
            name: d.text(120),
            jurisdiction: d.country(),
        });
        institutions.push(Member {
            key: signer().into(),
            name: self.text(120),
            jurisdiction: self.country(),
        });
        institutions.sort_by_key(|member| member.key);
        institutions.dedup_by_key(|member| member.key);
        let day = 86_400_000;
        let (lease_ttl, advert_ttl) = (self.between(2, day), self.between(2, day));
        Charter {
            federation: (!genesis).then(|| self.federation()),
            signer: signer().into(),
            name: self.text(120),
            version: if genesis { 1 } else { self.u32().max(2) },
            previous: (!genesis).then(|| self.message()),
            not_before,
            expires,
            institutions,
            members_may_sponsor: self.flag(),
            sequencer: self.maybe(Draw::node),
            skew_ms: self.duration(0, 60_000),
            timing: Timing {
                advert_every_ms: self.duration(1, advert_ttl / 2),
                advert_ttl_ms: DurationMs::from_ms(advert_ttl),
                probe_wait_ms: self.duration(1, day),
                assign_wait_ms: self.duration(1, day),
                lease_ttl_ms: DurationMs::from_ms(lease_ttl),
                renew_every_ms: self.duration(1, lease_ttl / 2),
                settle_slack_ms: self.duration(1, day),
            },
        }
    }

    fn cert(&mut self, kind: Kind) -> Body {
        let (not_before, expires) = self.rising();
        let (federation, charter, serial) = (self.federation(), self.message(), self.u64());
        let signer: InstitutionId = signer().into();
        let (subject, name, jurisdiction) = (self.key(), self.text(120), self.country());
        let sealing = SealingKey::from_bytes(self.array());
        match kind {
            Kind::InstitutionCert => InstitutionCert {
                federation,
                signer,
                charter,
                institution: subject.into(),
                name,
                jurisdiction,
                serial,
                not_before,
                expires,
            }
            .into(),
            Kind::NodeCert => NodeCert {
                federation,
                signer,
                charter,
                node: subject.into(),
                sealing,
                name,
                jurisdiction,
                serial,
                not_before,
                expires,
            }
            .into(),
            _ => ResearcherCert {
                federation,
                signer,
                charter,
                researcher: subject.into(),
                sealing,
                home: self.node(),
                credentials: self.set(16, |d| d.text(63) + "x"),
                serial,
                not_before,
                expires,
            }
            .into(),
        }
    }

    fn invitation(&mut self) -> Invitation {
        let (not_before, expires) = self.rising();
        let mut bulk = self.list(15, |d| d.text(256));
        bulk.push(self.text(256));
        let role = self.one_of(&[Role::Researcher, Role::Node, Role::Institution]);
        let mut credentials = self.set(16, |d| d.text(63) + "x");
        if role != Role::Researcher {
            credentials.clear();
        }
        Invitation {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            role,
            credentials,
            node: self.node(),
            bulk,
            bootstrap: self.list(16, |d| d.text(256)),
            nonce: self.array(),
            not_before,
            expires,
        }
    }

    fn join_request(&mut self) -> JoinRequest {
        JoinRequest {
            federation: self.federation(),
            signer: signer(),
            invitation: self.bytes(12 * 1024),
            sealing: SealingKey::from_bytes(self.array()),
            name: self.text(120),
            jurisdiction: self.maybe(Draw::country),
            issued: self.time(),
        }
    }

    fn order(&mut self) -> AdvertOrder {
        AdvertOrder { epoch: self.u32(), incarnation: self.u32(), sequence: self.u64() }
    }

    fn versions(&mut self) -> Versions {
        let kinds: std::collections::BTreeMap<String, Vec<u16>> = self
            .list(64, |d| {
                let mut versions = d.set(16, Draw::u16);
                versions.push(u16::MAX);
                versions.dedup();
                versions.truncate(16);
                (d.text(32), versions)
            })
            .into_iter()
            .collect();
        serde_json::from_value(serde_json::to_value(kinds).unwrap()).unwrap()
    }

    fn device(&mut self) -> DeviceKind {
        self.one_of(&[DeviceKind::Cpu, DeviceKind::Cuda, DeviceKind::Metal])
    }

    fn advert(&mut self) -> CapacityAdvert {
        let (issued, expires) = self.rising();
        let slots_total = self.u16();
        let mut models = self.list(64, |d| ModelHeld {
            digest: d.digest(),
            memory_mib: d.u64(),
            context_tokens: d.u32(),
            warm: d.flag(),
        });
        models.sort_by_key(|held| held.digest);
        CapacityAdvert {
            federation: self.federation(),
            signer: signer().into(),
            institution: self.key().into(),
            charter: self.message(),
            order: self.order(),
            issued,
            expires,
            versions: self.versions(),
            jurisdiction: self.country(),
            devices: self.list(64, |d| DeviceCapacity {
                kind: d.device(),
                name: d.text(120),
                memory_mib: d.u64(),
                cores: d.u32(),
            }),
            slots_total,
            slots_free: self.between(0, slots_total.into()) as u16,
            queue_ms: self.duration(0, u64::MAX),
            models,
            fetches_models: self.flag(),
            datasets: self.set(64, Draw::digest),
            adapters: self.set(64, Draw::digest),
            rates: self.rates(),
            draining: self.flag(),
            addresses: self.list(16, |d| d.text(256)),
        }
    }

    pub(crate) fn infer_work(&mut self) -> InferWork {
        let percent = |d: &mut Draw| Decimal {
            mantissa: d.between(0, 100) as i64,
            exp10: -(d.below(19) as i8),
        };
        InferWork {
            max_tokens: self.between(1, 1 << 20) as u32,
            temperature: percent(self),
            top_k: self.u32(),
            top_p: percent(self),
            seed: self.u64(),
            clock: self.time(),
            prompt_tokens_max: self.u32(),
            adapter: self.maybe(Draw::digest),
        }
    }

    fn job(&mut self) -> JobSpec {
        let issued = self.between(0, u64::MAX - 1);
        let latest = issued.saturating_add(30 * 86_400_000);
        let work = match self.below(3) {
            0 => self.infer_work().to_work(),
            1 => self.finetune_work().to_work(),
            _ => Work { kind: self.text(32), bytes: self.bytes(8 * 1024) },
        };
        let institution = |d: &mut Draw| InstitutionId::from_bytes(d.array());
        JobSpec {
            federation: self.federation(),
            signer: ResearcherId::from(signer()),
            certificate: self.message(),
            charter: self.message(),
            governance: self.maybe(Draw::digest),
            home: self.node(),
            nonce: self.array(),
            project: self.text(120),
            purpose: self.text(120),
            work,
            model: self.digest(),
            dataset: self.maybe(Draw::digest),
            input: SealedInput {
                digest: self.digest(),
                bytes: self.u64(),
                wraps: self.list(16, |d| KeyWrap {
                    node: d.node(),
                    enc: d.array(),
                    sealed: d.array(),
                }),
            },
            placement: Placement {
                at: self.set(64, institution),
                not_at: self.set(64, institution),
                jurisdictions: self.set(64, Draw::country),
                not_jurisdictions: self.set(64, Draw::country),
                device: self.maybe(Draw::device),
                memory_mib: self.u64(),
            },
            cap: self.credits(),
            attempts: self.attempt(),
            issued: Timestamp::from_ms(issued),
            deadline: Timestamp::from_ms(self.between(issued + 1, latest)),
            terms: self.maybe(|d| Terms {
                dataset: d.maybe(Draw::digest),
                policy: d.maybe(Draw::digest),
                output: d.text(32),
                room: d.text(32),
            }),
            delegation: self.maybe(Draw::message),
        }
    }

    fn delegation(&mut self) -> Delegation {
        let (not_before, expires) = self.rising();
        Delegation {
            federation: self.federation(),
            signer: signer().into(),
            delegate: self.key(),
            project: self.maybe(|d| d.text(120)),
            cap: self.credits(),
            not_before,
            expires,
        }
    }

    fn offer(&mut self) -> Offer {
        Offer {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            probe: self.message(),
            job: self.message(),
            start_in_ms: self.duration(0, u64::MAX),
            rates: self.rates(),
            advert: self.order(),
            expires: self.time(),
        }
    }

    pub(crate) fn refusal(&mut self) -> Refusal {
        Refusal {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            about: self.message(),
            job: self.message(),
            reasons: self.reasons(),
            retry_after_ms: self.maybe(|d| d.duration(0, u64::MAX)),
        }
    }

    fn pending(&mut self) -> Pending {
        let mut obligations = self.list(7, |d| d.text(64));
        obligations.push(self.text(64));
        Pending {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            probe: self.message(),
            job: self.message(),
            obligations,
            ticket: self.bytes(64),
            expires: self.time(),
        }
    }

    fn grant(&mut self) -> Grant {
        let mut brokers: Vec<BrokerRange> = Vec::new();
        let mut next = 1;
        for _ in 0..self.between(1, 8) {
            let last = (next + self.below(8) as u16).min(64);
            brokers.push(BrokerRange { node: self.node(), first: next, last });
            next = last + 1;
        }
        let (issued, deadline) = self.rising();
        Grant {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            governance: self.maybe(Draw::digest),
            job: self.message(),
            researcher: self.key().into(),
            cap: self.credits(),
            attempts: next - 1,
            brokers,
            issued,
            deadline,
            settle_by: Timestamp::from_ms(self.between(deadline.as_ms(), u64::MAX)),
        }
    }

    fn assign(&mut self) -> Assign {
        let (issued, respond_by) = self.rising();
        Assign {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            job: self.message(),
            grant: self.message(),
            attempt: self.attempt(),
            node: self.node(),
            offer: self.message(),
            considered: self.digest(),
            issued,
            respond_by,
        }
    }

    fn lease(&mut self) -> Lease {
        let fence = Fence { epoch: self.u32(), incarnation: self.u32(), sequence: self.u64() };
        Lease {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            job: self.message(),
            grant: self.message(),
            assign: self.message(),
            attempt: self.attempt(),
            fence,
            slot: self.u16(),
            rates: self.rates(),
            ttl_ms: self.duration(1, u64::MAX),
            issued: self.time(),
        }
    }

    fn cancel(&mut self) -> Cancel {
        Cancel {
            federation: self.federation(),
            signer: signer(),
            job: self.message(),
            attempt: self.maybe(|d| d.u16().max(1)),
            why: self.one_of(&[CancelWhy::Researcher, CancelWhy::Superseded, CancelWhy::Deadline]),
            issued: self.time(),
        }
    }

    fn receipt(&mut self) -> Receipt {
        let started = self.time();
        let outcome = match self.below(5) {
            0 => Outcome::Finished { reason: self.text(32) },
            1 => Outcome::Failed { permanent: self.flag(), why: self.text(240) },
            2 => Outcome::Cancelled,
            3 => Outcome::Interrupted,
            _ => Outcome::Lapsed,
        };
        Receipt {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            job: self.message(),
            grant: self.message(),
            lease: self.message(),
            attempt: self.attempt(),
            outcome,
            usage: Usage {
                prompt_tokens: self.u64(),
                completion_tokens: self.u64(),
                forced_tokens: self.u64(),
                device_time_ms: self.duration(0, u64::MAX),
                energy: self.maybe(|d| Energy { joules: d.decimal(), source: d.text(32) }),
            },
            cost: self.credits(),
            output: self.maybe(Draw::digest),
            model: self.digest(),
            model_licence: self.maybe(|d| d.text(120)),
            numerics: self.text(64),
            contract: self.maybe(Draw::message),
            started,
            ended: Timestamp::from_ms(self.between(started.as_ms(), u64::MAX)),
        }
    }

    fn settlement(&mut self) -> Settlement {
        let mut shares = self.list(64, |d| Share {
            lease: d.message(),
            receipt: d.message(),
            node: d.node(),
            institution: d.key().into(),
            cost: Credits::from_micro(d.between(0, u64::MAX / 64)),
        });
        shares.sort_by_key(|share| share.lease);
        let total = shares.iter().map(|share| share.cost.as_micro()).sum();
        Settlement {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            job: self.message(),
            grant: self.message(),
            payer: self.key().into(),
            outcome: self.one_of(&[
                JobOutcome::Finished,
                JobOutcome::Failed,
                JobOutcome::Cancelled,
                JobOutcome::Expired,
            ]),
            shares,
            total: Credits::from_micro(total),
            refunded: Credits::from_micro(self.between(0, u64::MAX - total)),
            issued: self.time(),
        }
    }

    fn succession(&mut self) -> LogSuccession {
        let old_epoch = self.between(0, u64::from(u32::MAX) - 1);
        LogSuccession {
            federation: self.federation(),
            signer: signer().into(),
            node: self.node(),
            old_epoch: old_epoch as u32,
            new_epoch: self.between(old_epoch + 1, u32::MAX.into()) as u32,
            last_size: self.u64(),
            last_root: self.digest(),
            why: self.text(240),
            issued: self.time(),
        }
    }
}

fn signer() -> PublicKey {
    PublicKey::from_bytes(public(SIGNER))
}
