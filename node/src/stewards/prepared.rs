//! A run that may begin: what it reads, on which terms, and by which rules its output will be judged.

use std::fs::File;
use std::io;

use allmend_data::Held;
use allmend_gate::{
    Base, CardFacts, Memorisation, PrivacyFacts, RecipeFacts, Rules, RunFacts, Source,
};
use allmend_policy::Stage;
use allmend_protocol::bytes::ByteString;
use allmend_protocol::finetune::{FinetuneWork, Schedule};
use allmend_protocol::ids::{Digest, MessageId, PublicKey};
use allmend_protocol::stewardship::{Contract, FACTS_MAX, PolicyInForce, PrivacyTerms};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Jurisdiction;
use allmend_room::Strength;
use allmend_scheduler::io::{Terms, Work};
use allmend_scheduler::stewards::{DataQuestion, Occasion};

use super::Stewardship;
use super::judge::{Judged, reservation, subjects};

/// See the module.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The terms, but for the room.
    pub(crate) terms: Terms,
    /// Files of rows with their weights.
    rows: Vec<(File, u32)>,
    held: Vec<Held>,
    /// One for each dataset: the gate's rules and what this node knows.
    pub(crate) rules: Vec<allmend_gate::Terms>,
    /// Of the canaries.
    pub(crate) canary_seed: [u8; 32],
    /// Of the noise; every attempt of a job has the same, so that going on reveals nothing more.
    pub(crate) noise_key: Option<[u8; 32]>,
    /// Stewards of what is read.
    pub(crate) stewards: Vec<PublicKey>,
}

impl Stewardship {
    /// Everything that a run needs, when every layer allows it in a room of class `room`; its privacy
    /// budget is set aside and its run counted, durably.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn prepare(
        &self,
        work: &Work,
        jurisdiction: Jurisdiction,
        room: Strength,
        portable: Option<ByteString>,
        now: Timestamp,
    ) -> Result<Prepared, String> {
        let finetune =
            FinetuneWork::from_work(&work.job.work).map_err(|error| error.to_string())?;
        let job = work.job.id();
        let canary_seed = self.shelf.canary_seed(job).map_err(|error| error.to_string())?;
        let noise_key = match finetune.privacy {
            Some(_) => Some(self.shelf.noise_key(job).map_err(|error| error.to_string())?),
            None => None,
        };
        if finetune.datasets.is_empty() {
            return self.prepare_portable(work, &finetune, portable, (canary_seed, noise_key));
        }
        if portable.is_some() {
            return Err(
                "the job names datasets and brings rows of its own: one of the two".to_owned()
            );
        }
        let question = self.asked(work, &finetune, jurisdiction, now);
        let mut state = self.lock();
        let output = self.shelf.waiting(job);
        let stage = if output.is_some() { Stage::Release } else { Stage::Run };
        let judged = state
            .judge(self.node, &question, room, stage, output)
            .map_err(|reasons| reasons.first().map_or(String::new(), |r| r.text.clone()))?;
        if let Some(waits) = judged.waits.first() {
            return Err(format!("a person must decide first: {}", waits.obligation));
        }
        let Judged { decisions, held, approvals, privacy, waits: _ } = judged;
        if let Some(reservation) = reservation(&question, &held)? {
            state.budgets.reserve(reservation)?;
        }
        let requester = work.job.signer;
        let mut counted = Vec::new();
        for held in &held {
            let dataset = state.registry.record_run(&held.version.digest, job, requester, now);
            counted.push(dataset.map_err(|error| error.to_string())?.runs_of(&requester));
        }
        let rows = finetune.datasets.iter().zip(&held);
        let rows = rows.map(|(part, held)| Ok((File::open(&held.path)?, part.weight)));
        let rows = rows
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| format!("the rows cannot be opened: {error}"))?;
        let mut stewards: Vec<PublicKey> =
            held.iter().flat_map(|held| held.dataset.stewards.iter().copied()).collect();
        stewards.sort();
        stewards.dedup();
        let rules = held
            .iter()
            .zip(counted)
            .map(|(held, runs)| rules(held, runs, finetune.privacy.is_some()));
        Ok(Prepared {
            terms: Terms {
                datasets: finetune.datasets.iter().map(|part| part.dataset).collect(),
                policies: policies(&decisions),
                reasons: reasons(&decisions),
                approvals,
                model_licence: state.licences.get(&work.job.model).cloned(),
                output: "adapter".to_owned(),
                room: String::new(),
                room_facts: Vec::new(),
                privacy,
            },
            rows,
            rules: rules.collect(),
            held,
            canary_seed,
            noise_key,
            stewards,
        })
    }

    /// A run on rows that the job brought: no steward but the researcher, no dataset but theirs.
    fn prepare_portable(
        &self,
        work: &Work,
        finetune: &FinetuneWork,
        portable: Option<ByteString>,
        (canary_seed, noise_key): ([u8; 32], Option<[u8; 32]>),
    ) -> Result<Prepared, String> {
        let Some(packed) = portable else {
            return Err("the job names no dataset and brings no rows".to_owned());
        };
        let unpacked = allmend_data::unpack(&packed.0, self.jurisdiction)
            .map_err(|error| error.to_string())?;
        if unpacked.manifest.researcher != work.job.signer {
            return Err("the rows were declared portable by somebody else".to_owned());
        }
        let placed =
            self.shelf.place(work.job.id(), &unpacked).map_err(|error| error.to_string())?;
        let rows = File::open(&placed.path)
            .map_err(|error| format!("the rows cannot be opened: {error}"))?;
        let counts = unpacked.manifest.counts;
        Ok(Prepared {
            terms: Terms {
                datasets: Vec::new(),
                policies: Vec::new(),
                reasons: vec!["portable".to_owned()],
                approvals: Vec::new(),
                model_licence: self.lock().licences.get(&work.job.model).cloned(),
                output: "adapter".to_owned(),
                room: String::new(),
                room_facts: Vec::new(),
                privacy: None,
            },
            rows: vec![(rows, 1)],
            held: Vec::new(),
            rules: vec![allmend_gate::Terms {
                rules: own_rows(),
                facts: RunFacts {
                    rows: counts.rows(),
                    subjects: counts.subjects.saturating_add(counts.unattributed),
                    runs: 1,
                    private: finetune.privacy.is_some(),
                },
            }],
            canary_seed,
            noise_key,
            stewards: Vec::new(),
        })
    }

    /// A lease as a question to policies.
    pub(super) fn asked<'a>(
        &self,
        work: &'a Work,
        finetune: &'a FinetuneWork,
        jurisdiction: Jurisdiction,
        now: Timestamp,
    ) -> DataQuestion<'a> {
        DataQuestion {
            job: work.job.id(),
            spec: &work.job,
            work: finetune,
            cert: &work.cert,
            jurisdiction,
            node_institution: self.institution,
            node_jurisdiction: self.jurisdiction,
            occasion: Occasion::Start,
            now,
        }
    }
}

/// What a dataset asks of an output, and what this node knows of the run.
fn rules(held: &Held, runs: u64, private: bool) -> allmend_gate::Terms {
    let dataset = &held.dataset;
    allmend_gate::Terms {
        rules: Rules {
            subjects_min: dataset.subjects_min,
            runs_max: dataset.runs_max,
            ..Rules::default()
        },
        facts: RunFacts {
            rows: held.version.counts.rows(),
            subjects: subjects(&held.version),
            runs: u32::try_from(runs).unwrap_or(u32::MAX),
            private,
        },
    }
}

/// What is the researcher's own may be remembered by what they get back.
fn own_rows() -> Rules {
    let anything = Memorisation {
        rows_tested_min: 0,
        extraction_excess_permille_max: 1_000,
        longest_run_tokens_max: None,
        canaries_min: 0,
        exposure_max_milli_bits: u32::MAX,
        exposure_mean_max_milli_bits: u32::MAX,
    };
    Rules {
        rows_min: 0,
        subjects_min: 0,
        memorisation: anything,
        memorisation_private: anything,
        metrics_beside_privacy: true,
        ..Rules::default()
    }
}

fn policies(decisions: &[allmend_policy::Decision]) -> Vec<PolicyInForce> {
    let mut policies = Vec::new();
    for decision in decisions {
        let used = &decision.policies;
        let layers = [
            ("charter", used.charter),
            ("institution", used.institution),
            ("dataset", used.dataset),
        ];
        for (layer, digest) in layers {
            let in_force = digest.map(|digest| PolicyInForce { layer: layer.to_owned(), digest });
            policies.extend(in_force.filter(|in_force| !policies.contains(in_force)));
        }
    }
    policies
}

fn reasons(decisions: &[allmend_policy::Decision]) -> Vec<String> {
    let mut reasons: Vec<String> = Vec::new();
    for layer in decisions.iter().flat_map(|decision| &decision.layers) {
        for id in &layer.decided_by {
            let reason = format!("{}/{id}", layer.layer);
            if !reasons.contains(&reason) && reasons.len() < FACTS_MAX {
                reasons.push(reason);
            }
        }
    }
    reasons
}

impl Prepared {
    /// Distinct subjects of all rows, as the datasets publish them.
    pub(crate) fn subjects(&self) -> u64 {
        self.rules.iter().fold(0, |sum: u64, terms| sum.saturating_add(terms.facts.subjects))
    }

    /// The weight of each file of rows.
    pub(crate) fn weights(&self) -> Vec<u32> {
        self.rows.iter().map(|(_, weight)| *weight).collect()
    }

    /// The files of rows, under the names by which the room knows them.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub(crate) fn files(&self) -> io::Result<Vec<(String, File)>> {
        let named = self.rows.iter().enumerate();
        named.map(|(at, (file, _))| Ok((format!("rows-{at}"), file.try_clone()?))).collect()
    }

    /// Who may use the adapter: its requester.
    pub(crate) fn users(&self, work: &Work) -> Vec<PublicKey> {
        vec![work.job.signer.into()]
    }

    /// What the adapter's card says, but for what was counted and measured.
    pub(crate) fn card(
        &self,
        id: MessageId,
        contract: &Contract,
        work: &FinetuneWork,
        model_name: &str,
    ) -> CardFacts {
        let privacy = work.privacy.as_ref().zip(self.terms.privacy.as_ref());
        CardFacts {
            job: contract.job,
            contract: id,
            base: Base {
                name: model_name.to_owned(),
                digest: contract.model,
                licence: contract.model_licence.clone(),
            },
            sources: self.held.iter().map(source).collect(),
            recipe: recipe(contract.recipe, work),
            privacy: privacy.map(|(privacy, terms)| PrivacyFacts {
                noise_multiplier: privacy.noise_multiplier,
                sampling_rate: privacy.sampling_rate,
                clip_norm: privacy.clip_norm,
                delta: privacy.delta,
                milli_epsilon: terms.milli_epsilon_job,
                milli_epsilon_after: PrivacyTerms::clone(terms).milli_epsilon_after,
            }),
            second_approval: false,
        }
    }
}

fn source(held: &Held) -> Source {
    let metadata = &held.dataset.metadata;
    Source {
        title: metadata.title.clone(),
        version: held.version.digest,
        licence: metadata.licence.as_str().to_owned(),
        languages: metadata.languages.iter().map(|tag| tag.as_str().to_owned()).collect(),
    }
}

fn recipe(digest: Digest, work: &FinetuneWork) -> RecipeFacts {
    RecipeFacts {
        digest,
        targets: work.lora.targets.clone(),
        dropout: work.lora.dropout,
        steps: u64::from(work.steps),
        rows_per_step: u64::from(work.batch) * u64::from(work.accumulate),
        sequence_tokens: u64::from(work.sequence_tokens),
        learning_rate: work.optimiser.learning_rate,
        schedule: match work.optimiser.schedule {
            Schedule::Constant => "constant",
            Schedule::Cosine => "cosine",
        }
        .to_owned(),
    }
}
