//! The state as people and scripts see it; nothing here changes anything.

use std::collections::BTreeMap;

use allmend_protocol::advert::CapacityAdvert;
use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::Task;
use allmend_protocol::grant::Grant;
use allmend_protocol::ids::{InstitutionId, MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::offer::{Probe, Reason, ReasonClass};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Jurisdiction;
use serde::Serialize;

use super::{Core, Counters};
use crate::broker::{Promised, survey};
use crate::filter::Needs;
use crate::io::JobView;
use crate::leasebook::{Held, LeaseBook, Quote};
use crate::ledger::Ledger;
use crate::settings::{Identity, Settings};
use crate::view::View;

/// One member node as this node sees it: a row of the capacity table.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// The node.
    pub node: NodeId,
    /// Its name, as certified.
    pub name: String,
    /// Its institution.
    pub institution: InstitutionId,
    /// The institution's name.
    pub institution_name: String,
    /// Where it stands.
    pub jurisdiction: Jurisdiction,
    /// Its newest advert, while it is believed.
    pub advert: Option<CapacityAdvert>,
    /// How long ago the advert arrived.
    pub age_ms: Option<DurationMs>,
    /// Whether the last message reached it.
    pub reachable: bool,
    /// Whether it has signed two contradicting adverts.
    pub distrusted: bool,
}

impl Core {
    /// A job of which this node is the home.
    pub fn job(&self, id: MessageId) -> Option<JobView> {
        self.broker.job(id).map(|job| job.view(&self.ledger))
    }

    /// Every job of which this node is the home.
    pub fn jobs(&self) -> impl Iterator<Item = (MessageId, JobView)> {
        self.broker.jobs().map(|(id, job)| (*id, job.view(&self.ledger)))
    }

    /// How many jobs are not over.
    pub fn open_jobs_count(&self) -> usize {
        self.broker.open_count()
    }

    /// The grant of a job, once there is one.
    pub fn grant(&self, job: MessageId) -> Option<&Verified<Grant>> {
        self.broker.job(job)?.grant()
    }

    /// Leases of this node that have no receipt yet.
    pub fn leases(&self) -> impl Iterator<Item = &Held> {
        self.book.live()
    }

    /// How many leases of this node have no receipt yet.
    pub fn live_leases_count(&self) -> usize {
        self.book.live_count()
    }

    /// The leases of this node.
    pub fn lease_book(&self) -> &LeaseBook {
        &self.book
    }

    /// The accounts of this home node.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What this node believes of others.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Who this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How it works.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Which start of the process this is, within the log epoch.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// What was dropped without an answer.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The capacity table: every member node whose certificate holds at `now`.
    pub fn nodes(&self, now: Timestamp) -> Vec<NodeView> {
        let rows = self.roster.nodes().filter_map(|cert| {
            let cert = self.roster.node_at(now, cert.node).ok()?;
            let institution = self.roster.institution_at(now, cert.signer).ok()?;
            let known = self.view.known(cert.node);
            Some(NodeView {
                node: cert.node,
                name: cert.name.clone(),
                institution: cert.signer,
                institution_name: institution.name.clone(),
                jurisdiction: cert.jurisdiction,
                advert: known.map(|known| known.advert.body().clone()),
                age_ms: known.map(|known| now.since(known.heard)),
                reachable: self.view.is_reachable(now, cert.node),
                distrusted: self.view.is_distrusted(cert.node),
            })
        });
        rows.collect()
    }

    /// What this node itself would say to a job of its asker's, whose probe this is; nothing is kept of it.
    /// None when it asks too often or is no member.
    pub fn quote(
        &mut self,
        now: Timestamp,
        probe: &Verified<Probe>,
        attached: &[AnyMessage],
    ) -> Option<Quote> {
        self.roster.node_at(now, probe.signer).ok()?;
        let mut nothing = Vec::new();
        let mut quote = None;
        self.with(now, &mut nothing, |_, _, book, ctx| quote = book.quote(ctx, probe, attached));
        debug_assert!(nothing.is_empty(), "a quote has no effect");
        quote
    }

    /// Why, or why not, each member node for a job of this home's researchers: a score (larger is
    /// better) or every reason against it. Owners' policies are not known before asking.
    pub fn explain(
        &self,
        now: Timestamp,
        spec: &JobSpec,
    ) -> Vec<(NodeId, Result<i64, Vec<Reason>>)> {
        let task = match Task::from_work(&spec.work) {
            Ok(task) => task,
            Err(error) => {
                let text = format!("work not understood: {error}");
                let no = vec![Reason::new(ReasonClass::Version, text)];
                return self.roster.nodes().map(|cert| (cert.node, Err(no.clone()))).collect();
            }
        };
        let needs = Needs {
            spec,
            task: &task,
            institution: self.identity.institution,
            budget: spec.cap,
            deadline: spec.deadline,
        };
        let mut nothing = Vec::new();
        let promised = Promised::default();
        let ctx = self.read_only(now, &mut nothing);
        let mut verdicts: BTreeMap<_, _> = survey(&ctx, &needs, &promised);
        for cert in self.roster.nodes() {
            if self.roster.node_at(now, cert.node).is_ok() {
                verdicts.entry(cert.node).or_insert_with(|| {
                    let text = "the node has not been heard from lately";
                    Err(vec![Reason::new(ReasonClass::Busy, text)])
                });
            }
        }
        verdicts.into_iter().collect()
    }
}
