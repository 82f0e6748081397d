//! Answers to probes. Asking is free and holds nothing, so how often a peer may ask is bounded.

use std::collections::BTreeMap;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::message::{AnyMessage, Kind};
use allmend_protocol::offer::{
    OBLIGATIONS_MAX, Offer, Pending, Probe, Reason, ReasonClass, Refusal, RefusalV1,
};
use allmend_protocol::roster::ROSTER_MAX;
use allmend_protocol::time::{DurationMs, Timestamp};

use super::LeaseBook;
use super::chain::{Asked, No, check_data, check_fit, check_job, fit};
use crate::ctx::Ctx;
use crate::settings::fit_text;
use crate::stewards::{DataVerdict, Occasion};

/// An offer holds nothing; it says so by ending soon.
const OFFER_VALID: DurationMs = DurationMs::from_secs(5);
/// Waiting for a model that must be fetched first, as an estimate for people.
const FETCH_ESTIMATE: DurationMs = DurationMs::from_secs(60);

/// What this node would say to a job, before anybody submits it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quote {
    /// Every reason against it.
    pub reasons: Vec<Reason>,
    /// Whose approval it would have to wait for.
    pub obligations: Vec<String>,
    /// The job, if it could run here.
    pub job: Option<Verified<JobSpec>>,
}

/// How many probes each peer has sent in the current second. At most one entry per member.
#[derive(Clone, Debug, Default)]
pub struct ProbeRates {
    counts: BTreeMap<NodeId, (u64, u32)>,
    /// Probes that were not answered because their sender asks too often.
    pub dropped: u64,
}

impl ProbeRates {
    fn admits(&mut self, now: Timestamp, from: NodeId, per_second_max: u32) -> bool {
        let second = now.as_ms() / 1_000;
        if self.counts.len() >= ROSTER_MAX && !self.counts.contains_key(&from) {
            self.counts.retain(|_, (at, _)| *at == second);
        }
        let (at, count) = self.counts.entry(from).or_insert((second, 0));
        if *at != second {
            (*at, *count) = (second, 0);
        }
        *count = count.saturating_add(1);
        let admits = *count <= per_second_max;
        if !admits {
            self.dropped = self.dropped.saturating_add(1);
        }
        admits
    }
}

impl LeaseBook {
    /// Probes that were not answered because their sender asks too often.
    pub fn probes_dropped(&self) -> u64 {
        self.probes.dropped
    }

    /// What this node would say to a job, without bothering a person or keeping anything. None when its
    /// asker asks too often.
    pub(crate) fn quote(
        &mut self,
        ctx: &Ctx<'_>,
        probe: &Verified<Probe>,
        attached: &[AnyMessage],
    ) -> Option<Quote> {
        let per_second_max = ctx.settings.limits.probes_per_peer_per_second_max;
        if !self.probes.admits(ctx.now, probe.signer, per_second_max) {
            return None;
        }
        let no = |reasons| Quote { reasons: fit(reasons), ..Quote::default() };
        let asked = match check_job(ctx, probe.signer, probe.job, attached) {
            Ok(asked) => asked,
            Err(why) => return Some(no(why.reasons)),
        };
        // What is busy now may not be when the job comes.
        if let Err(why) = check_fit(ctx, &asked, asked.job.cap, asked.job.deadline, 1) {
            return Some(no(why.reasons));
        }
        let Asked { job, cert, task } = asked;
        let obligations = match check_data(ctx, &job, &cert, &task, Occasion::Quote) {
            DataVerdict::Refuse(reasons) => return Some(no(reasons)),
            DataVerdict::Allow => Vec::new(),
            DataVerdict::Pending { mut obligations, .. } => {
                obligations.truncate(OBLIGATIONS_MAX);
                obligations
            }
        };
        Some(Quote { reasons: Vec::new(), obligations, job: Some(job) })
    }

    /// A broker asks whether this node would run a job.
    pub(crate) fn probe(
        &mut self,
        ctx: &mut Ctx<'_>,
        probe: &Verified<Probe>,
        attached: &[AnyMessage],
    ) {
        let per_second_max = ctx.settings.limits.probes_per_peer_per_second_max;
        if !self.probes.admits(ctx.now, probe.signer, per_second_max) {
            return;
        }
        let slots_free = self.slots_free(ctx.local.slots_total);
        let verdict = check_job(ctx, probe.signer, probe.job, attached).and_then(|asked| {
            // Nobody is asked about a job that could not run here. A question for a person may be put
            // while every slot is taken: it holds none.
            check_fit(ctx, &asked, asked.job.cap, asked.job.deadline, 1)?;
            let verdict = check_data(ctx, &asked.job, &asked.cert, &asked.task, Occasion::Start);
            if verdict == DataVerdict::Allow {
                check_fit(ctx, &asked, asked.job.cap, asked.job.deadline, slots_free)?;
            }
            Ok((asked.job.model, verdict))
        });
        match verdict {
            Ok((_, DataVerdict::Refuse(reasons))) => {
                let no = No { reasons: fit(reasons), retry_after: None };
                refuse(ctx, probe.signer, probe.id(), probe.job, no);
            }
            Ok((_, DataVerdict::Pending { obligations, .. })) if obligations.is_empty() => {
                let no =
                    No::because(ReasonClass::Policy, "a person must decide, and nobody says who");
                refuse(ctx, probe.signer, probe.id(), probe.job, no);
            }
            Ok((_, DataVerdict::Pending { obligations, ticket, expires })) => {
                let obligations = obligations.iter().take(OBLIGATIONS_MAX);
                let pending = ctx.sign(Pending {
                    federation: ctx.me.federation,
                    signer: ctx.me.node,
                    charter: ctx.charter(),
                    probe: probe.id(),
                    job: probe.job,
                    obligations: obligations.map(|who| fit_text(who, 64)).collect(),
                    ticket: ByteString(ticket.into_iter().take(64).collect()),
                    expires,
                });
                ctx.send(probe.signer, pending, vec![]);
            }
            Ok((model, DataVerdict::Allow)) => {
                let held = ctx.local.models.iter().any(|held| held.digest == model);
                let offer = ctx.sign(Offer {
                    federation: ctx.me.federation,
                    signer: ctx.me.node,
                    charter: ctx.charter(),
                    probe: probe.id(),
                    job: probe.job,
                    start_in_ms: if held { DurationMs::default() } else { FETCH_ESTIMATE },
                    rates: ctx.local.rates,
                    advert: ctx.own_order,
                    expires: ctx.now.plus(OFFER_VALID),
                });
                ctx.send(probe.signer, offer, vec![]);
            }
            Err(no) => refuse(ctx, probe.signer, probe.id(), probe.job, no),
        }
    }
}

/// Says no in the highest version that both sides know.
pub(super) fn refuse(ctx: &mut Ctx<'_>, to: NodeId, about: MessageId, job: MessageId, no: No) {
    let refusal = Refusal {
        federation: ctx.me.federation,
        signer: ctx.me.node,
        charter: ctx.charter(),
        about,
        job,
        reasons: no.reasons,
        retry_after_ms: no.retry_after,
    };
    match ctx.settings.versions.common(&ctx.view.versions(to), Kind::Refusal) {
        Some(2) => {
            let refusal = ctx.sign(refusal);
            ctx.send(to, refusal, vec![]);
        }
        Some(1) => {
            let refusal = ctx.sign(RefusalV1::from(refusal));
            ctx.send(to, refusal, vec![]);
        }
        // No version in common: silence is what the broker expects least but understands.
        _ => {}
    }
}
