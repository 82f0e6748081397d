//! What is signed around a run on others' data: its terms before anything is opened, the gate's decision
//! before anything leaves (specs/contract.md).

use allmend_protocol::ids::Digest;
use allmend_protocol::message::Message;
use allmend_protocol::receipt::Outcome;
use allmend_protocol::stewardship::{Contract, GateReport};

use super::Held;
use crate::ctx::Ctx;
use crate::io::{Effect, Gated, Terms};
use crate::settings::fit_text;

impl Held {
    /// Signs the terms of a run: durable before the data are opened. A lease has one contract.
    ///
    /// Terms that no contract can say stop the work: nothing is signed, so nothing is opened.
    pub(super) fn contract(&mut self, ctx: &mut Ctx<'_>, mut terms: Terms) {
        if self.contract.is_some() || self.stopping {
            return;
        }
        let (lease, job) = (&self.work.lease, &self.work.job);
        terms.datasets.sort_unstable();
        terms.datasets.dedup();
        terms.approvals.sort_unstable();
        terms.approvals.dedup();
        terms.policies.sort_by(|a, b| (&a.layer, a.digest).cmp(&(&b.layer, b.digest)));
        terms.policies.dedup();
        let contract = Contract {
            federation: ctx.me.federation,
            signer: ctx.me.node,
            charter: ctx.charter(),
            job: lease.job,
            lease: lease.id(),
            recipe: Digest::of(&job.work.bytes.0),
            datasets: terms.datasets,
            policies: terms.policies,
            reasons: terms.reasons.iter().map(|reason| fit_text(reason, 120)).collect(),
            approvals: terms.approvals,
            model: job.model,
            model_licence: terms.model_licence.map(|licence| fit_text(&licence, 120)),
            output: fit_text(&terms.output, 32),
            room: fit_text(&terms.room, 32),
            room_facts: terms.room_facts.iter().map(|fact| fit_text(fact, 120)).collect(),
            privacy: terms.privacy,
            issued: ctx.now,
        };
        if let Err(invalid) = contract.check() {
            let why = fit_text(&format!("no contract can say its terms: {invalid}"), 240);
            return self.stop(ctx, Outcome::Failed { permanent: true, why });
        }
        let contract = ctx.sign(contract);
        ctx.leaf(contract.clone(), true);
        self.contract = Some(contract.id());
        ctx.out.push(Effect::WorkContracted { lease: lease.id(), contract });
    }

    /// Signs what the gate decided: durable before anything leaves. A contract has one report.
    ///
    /// A decision without a contract, or that no report can say, stops the work: nothing is released.
    pub(super) fn gated(&mut self, ctx: &mut Ctx<'_>, mut gated: Gated) {
        // Work that is being stopped, for whatever reason, releases nothing any more.
        if self.gated || (self.stopping && gated.released.is_some()) {
            return;
        }
        let Some(contract) = self.contract else {
            let why = "the output gate decided about work without a contract".to_owned();
            return self.stop(ctx, Outcome::Failed { permanent: true, why });
        };
        let lease = &self.work.lease;
        gated.approvals.sort_unstable();
        gated.approvals.dedup();
        for stop in &mut gated.stops {
            stop.rule = fit_text(&stop.rule, 64);
            stop.text = fit_text(&stop.text, 240);
        }
        let report = GateReport {
            federation: ctx.me.federation,
            signer: ctx.me.node,
            charter: ctx.charter(),
            job: lease.job,
            contract,
            released: gated.released,
            stops: gated.stops,
            approvals: gated.approvals,
            issued: ctx.now,
        };
        if let Err(invalid) = report.check() {
            let why = fit_text(&format!("no gate report can say its decision: {invalid}"), 240);
            return self.stop(ctx, Outcome::Failed { permanent: true, why });
        }
        let report = ctx.sign(report);
        ctx.leaf(report.clone(), true);
        self.gated = true;
        ctx.out.push(Effect::WorkGated { lease: lease.id(), report });
    }
}
