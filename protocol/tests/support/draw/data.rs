//! Arbitrary valid bodies around data that stays where it is, and fine-tuning as work.

use allmend_protocol::finetune::{
    FinetuneWork, Lora, LossOn, MixPart, Optimiser, Precision, Privacy, Schedule,
};
use allmend_protocol::stewardship::{
    Approval, ApprovalDecision, Contract, Deletion, GateReport, GateStop, LAYERS, PolicyInForce,
    PrivacyTerms, Recall, RecallAnswer, RecallDone,
};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Decimal;

use super::{Draw, signer};

impl Draw {
    /// Text of at least one byte.
    fn words(&mut self, bytes_max: usize) -> String {
        self.text(bytes_max - 1) + "x"
    }

    /// `low` to `high`, times a power of ten.
    fn scaled(&mut self, low: u64, high: u64, exp10: i8) -> Decimal {
        Decimal { mantissa: self.between(low, high) as i64, exp10 }
    }

    pub(crate) fn finetune_work(&mut self) -> FinetuneWork {
        let mut datasets = self
            .list(16, |d| MixPart { dataset: d.digest(), weight: d.between(1, 1_000_000) as u32 });
        datasets.sort_by_key(|part| part.dataset);
        // Long, wide or many, and not all of them.
        let (steps, batch, accumulate, length) = match self.below(3) {
            0 => (self.between(1, 10_000_000), 1, 1, self.between(8, 400)),
            1 => (1, self.between(1, 4_096), 1, self.between(8, 1 << 20)),
            _ => (self.between(1, 30), self.between(1, 30), self.between(1, 4_096), 1_024),
        };
        let private = self.flag();
        FinetuneWork {
            datasets,
            lora: self.lora(),
            optimiser: self.optimiser(steps as u32),
            steps: steps as u32,
            batch: batch.min(4_095) as u16,
            accumulate: accumulate as u16,
            sequence_tokens: length as u32,
            loss_on: self.one_of(&[LossOn::Assistant, LossOn::All]),
            packing: !private && self.flag(),
            validation: self.scaled(0, 500, -3),
            seed: self.u64(),
            snapshot_every: self.u32().max(1),
            recompute: self.flag(),
            clock: self.time(),
            privacy: private.then(|| Privacy {
                noise_multiplier: self.scaled(10, 1_000_000, -3),
                clip_norm: self.scaled(1, 1_000_000_000, -3),
                sampling_rate: self.scaled(1, 1_000_000, -6),
                delta: self.scaled(1, 100_000_000_000, -12),
            }),
            plateau_steps: if private { None } else { self.maybe(|d| d.u32().max(1)) },
            precision: self.maybe(|_| Precision::Bf16),
        }
    }

    fn lora(&mut self) -> Lora {
        let mut targets = self.set(15, |d| {
            let length = d.between(1, 63);
            (0..length).map(|_| d.one_of(&['a', 'Z', '0', '_', '.', '-'])).collect::<String>()
        });
        // Longer than any other, so it is never one of them.
        targets.push("q".repeat(64));
        targets.sort_unstable();
        Lora {
            rank: self.between(1, 512) as u16,
            alpha: self.between(1, 4_096) as u16,
            dropout: self.scaled(0, 95, -2),
            targets,
        }
    }

    fn optimiser(&mut self, steps: u32) -> Optimiser {
        Optimiser {
            learning_rate: self.scaled(1, 9_999_999, -6),
            warmup_steps: self.between(0, steps.into()) as u32,
            schedule: self.one_of(&[Schedule::Constant, Schedule::Cosine]),
            weight_decay: self.scaled(0, 10, 0),
            beta1: self.scaled(0, 999, -3),
            beta2: self.scaled(0, 9_999, -4),
            epsilon: self.scaled(1, 1_000_000, -9),
            clip_norm: self.scaled(0, 1_000_000, 0),
        }
    }

    pub(super) fn approval(&mut self) -> Approval {
        let issued = self.between(0, u64::MAX - 1);
        let latest = issued.saturating_add(366 * 86_400_000);
        let decision = match self.below(2) {
            0 => ApprovalDecision::Approved {},
            _ => ApprovalDecision::Refused { why: self.words(240) },
        };
        Approval {
            federation: self.federation(),
            signer: signer(),
            node: self.node(),
            job: self.message(),
            dataset: self.digest(),
            policy: self.digest(),
            obligation: self.words(64),
            output: self.maybe(Draw::digest),
            decision,
            runs_max: self.u16().max(1),
            agreement: self.maybe(Draw::digest),
            ethics: self.maybe(Draw::digest),
            issued: Timestamp::from_ms(issued),
            expires: Timestamp::from_ms(self.between(issued + 1, latest)),
        }
    }

    pub(super) fn contract(&mut self) -> Contract {
        let datasets = self.set(16, Draw::digest);
        let mut policies = self.list(15, |d| PolicyInForce {
            layer: d.one_of(&LAYERS).to_owned(),
            digest: d.digest(),
        });
        if !datasets.is_empty() {
            policies.extend(
                LAYERS
                    .map(|layer| PolicyInForce { layer: layer.to_owned(), digest: self.digest() }),
            );
        }
        policies.sort_by(|a, b| (&a.layer, a.digest).cmp(&(&b.layer, b.digest)));
        Contract {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            job: self.message(),
            lease: self.message(),
            recipe: self.digest(),
            datasets,
            policies,
            reasons: self.list(32, |d| d.text(120)),
            approvals: self.set(64, Draw::message),
            model: self.digest(),
            model_licence: self.maybe(|d| d.text(120)),
            output: self.text(32),
            room: self.text(32),
            room_facts: self.list(32, |d| d.text(120)),
            privacy: self.maybe(|d| {
                let (job, before) = (d.u64(), d.u64());
                PrivacyTerms {
                    milli_epsilon_job: job,
                    milli_epsilon_before: before,
                    milli_epsilon_after: d.between(job.max(before), u64::MAX),
                    delta_exp10: d.between(1, 18) as u8,
                }
            }),
            issued: self.time(),
        }
    }

    pub(super) fn gate_report(&mut self) -> GateReport {
        let released = self.maybe(Draw::digest);
        let mut stops = Vec::new();
        if released.is_none() {
            stops = self.list(31, |d| GateStop { rule: d.words(64), text: d.words(240) });
            stops.push(GateStop { rule: self.words(64), text: self.words(240) });
        }
        GateReport {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            job: self.message(),
            contract: self.message(),
            released,
            stops,
            approvals: self.set(8, Draw::message),
            issued: self.time(),
        }
    }

    pub(super) fn recall(&mut self) -> Recall {
        Recall {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            steward: self.key(),
            adapter: self.digest(),
            report: self.message(),
            why: self.words(240),
            issued: self.time(),
        }
    }

    pub(super) fn recall_answer(&mut self) -> RecallAnswer {
        RecallAnswer {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            recall: self.message(),
            adapter: self.digest(),
            done: self.one_of(&[RecallDone::Deleted, RecallDone::NotHeld]),
            issued: self.time(),
        }
    }

    pub(super) fn deletion(&mut self) -> Deletion {
        Deletion {
            federation: self.federation(),
            signer: signer().into(),
            charter: self.message(),
            job: self.message(),
            input: self.digest(),
            bytes: self.u64(),
            issued: self.time(),
        }
    }
}
