//! One job before the policies: every dataset that it reads, three layers each, with the approvals that
//! hold, the privacy that it costs and the room that this machine has.

use allmend_data::{Dataset, Held, Registry, RegistryError, Run, VersionRecord};
use allmend_policy::{
    Action, Approval as PolicyApproval, Decision, Layers, Obligation, OutputKind, Principal,
    Request, Room, Ruling, Stage, Subject, Verdict, valid_approvals,
};
use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::finetune::FinetuneWork;
use allmend_protocol::ids::{Digest, MessageId, NodeId, PublicKey};
use allmend_protocol::job::JobSpec;
use allmend_protocol::offer::{Reason, ReasonClass};
use allmend_protocol::stewardship::{ApprovalDecision, PrivacyTerms};
use allmend_protocol::units::{Decimal, Jurisdiction};
use allmend_room::Strength;
use allmend_scheduler::privacy::{Charge, Delta, Lineage, Mechanism, Reservation};
use allmend_scheduler::stewards::{DataQuestion, Occasion};

use super::State;
use super::inbox::{Question, question_id};

/// Jobs whose last decisions are kept.
const DECISIONS_MAX: usize = 1_024;

/// What policies said about a job that they do not refuse.
pub(super) struct Judged {
    /// One for each dataset, in their order.
    pub(super) decisions: Vec<Decision>,
    /// The dataset versions.
    pub(super) held: Vec<Held>,
    /// The approvals that count.
    pub(super) approvals: Vec<MessageId>,
    /// What it costs of privacy budgets.
    pub(super) privacy: Option<PrivacyTerms>,
    /// Questions for people, if any are open.
    pub(super) waits: Vec<Question>,
}

impl State {
    /// Judges a job at `stage`, in a room of class `room`; at a release the adapter is named.
    pub(super) fn judge(
        &mut self,
        node: NodeId,
        question: &DataQuestion<'_>,
        room: Strength,
        stage: Stage,
        output: Option<Digest>,
    ) -> Result<Judged, Vec<Reason>> {
        let held = self.held(question.work)?;
        self.check_terms(question, room, &held)?;
        let privacy = self
            .privacy_terms(question, &held)
            .map_err(|why| vec![Reason::new(ReasonClass::Policy, format!("privacy: {why}"))])?;
        let mut judged = Judged {
            decisions: Vec::new(),
            held,
            approvals: Vec::new(),
            privacy,
            waits: Vec::new(),
        };
        let mut reasons = Vec::new();
        for index in 0..judged.held.len() {
            let held = &judged.held[index];
            let (approvals, counted) = self.approvals(node, question, held, output);
            let request =
                self.request(node, question, room, stage, held, &judged.privacy, approvals);
            let decision = allmend_policy::decide(&self.layers(&held.dataset), &request);
            match &decision.verdict {
                Verdict::Refuse(why) => reasons
                    .extend(why.iter().map(|why| Reason::new(ReasonClass::Policy, why.sentence()))),
                Verdict::Pending(obligations) => {
                    let asked = obligations.iter().map(|obligation| {
                        self.question(node, question, held, &decision, obligation, output)
                    });
                    judged.waits.extend(asked.collect::<Vec<_>>());
                }
                Verdict::Allow => {}
            }
            judged.approvals.extend(counted);
            judged.decisions.push(decision);
        }
        if question.occasion != Occasion::Quote {
            self.remember(question.job, judged.decisions.clone());
        }
        if reasons.is_empty() { Ok(judged) } else { Err(reasons) }
    }

    /// Keeps the last decisions on a job, for whoever asks why.
    fn remember(&mut self, job: MessageId, decisions: Vec<Decision>) {
        while self.decisions.len() >= DECISIONS_MAX && !self.decisions.contains_key(&job) {
            // Which one goes hardly matters: brokers ask again, and then it is back.
            self.decisions.pop_first();
        }
        self.decisions.insert(job, decisions);
    }

    /// The dataset versions that a job names, with their rows.
    fn held(&self, work: &FinetuneWork) -> Result<Vec<Held>, Vec<Reason>> {
        let find = |registry: &Registry, digest: &Digest| {
            registry.version(digest).map_err(|error| {
                let class = match &error {
                    RegistryError::Withdrawn { .. } => ReasonClass::Policy,
                    _ => ReasonClass::Dataset,
                };
                // What is not there says no more about what is.
                let text = match &error {
                    RegistryError::NotFound(_) => format!("dataset {} is not here", digest.short()),
                    other => other.to_string(),
                };
                vec![Reason::new(class, text)]
            })
        };
        work.datasets.iter().map(|part| find(&self.registry, &part.dataset)).collect()
    }

    /// The approvals that hold for one dataset, and which messages they are.
    fn approvals(
        &self,
        node: NodeId,
        question: &DataQuestion<'_>,
        held: &Held,
        output: Option<Digest>,
    ) -> (allmend_policy::Approvals, Vec<MessageId>) {
        let mut known = Vec::new();
        let mut ids = Vec::new();
        for (approval, uses) in self.inbox.decisions(question.job) {
            // Whose word counts is the dataset's affair; what was shown is part of what was approved.
            let may = deciders(node, held, &approval.obligation).contains(&approval.signer);
            if !may || approval.output != output {
                continue;
            }
            ids.push((approval.id(), approval.obligation.clone(), approval.signer));
            known.push(PolicyApproval {
                job: approval.job,
                policy: approval.policy,
                dataset: approval.dataset,
                node: approval.node,
                obligation: approval.obligation.clone(),
                ruling: match &approval.decision {
                    ApprovalDecision::Approved {} => Ruling::Approve,
                    ApprovalDecision::Refused { why } => Ruling::Refuse(why.clone()),
                },
                by: approval.signer,
                issued: approval.issued,
                expires: approval.expires,
                runs_max: u32::from(approval.runs_max),
                // A run that is under way has been counted already.
                runs_used: if question.occasion == Occasion::Renewal { 0 } else { uses },
                documents: approval.agreement.into_iter().chain(approval.ethics).collect(),
            });
        }
        let subject = Subject {
            job: question.job,
            policy: self.layers(&held.dataset).digest(),
            dataset: held.version.digest,
            node,
        };
        let (valid, rejected) = valid_approvals(&known, &subject, question.now);
        let counted = known
            .iter()
            .zip(&ids)
            .filter(|(approval, _)| approval.ruling == Ruling::Approve)
            .filter(|(approval, _)| !rejected.iter().any(|no| std::ptr::eq(no.approval, *approval)))
            .map(|(_, (id, ..))| *id);
        let counted = counted.collect();
        (valid, counted)
    }

    #[allow(clippy::too_many_arguments, reason = "a request has this many sides")]
    fn request(
        &self,
        node: NodeId,
        question: &DataQuestion<'_>,
        room: Strength,
        stage: Stage,
        held: &Held,
        privacy: &Option<PrivacyTerms>,
        approvals: allmend_policy::Approvals,
    ) -> Request {
        let (spec, dataset) = (question.spec, &held.dataset);
        let rows = held.version.counts.rows();
        Request {
            action: Action::Finetune,
            principal: principal(spec, question.cert, question.jurisdiction),
            dataset: facts(dataset, &held.version),
            run: allmend_policy::Run {
                purpose: spec.purpose.clone(),
                project: spec.project.clone(),
                stage,
                model: allmend_policy::Model {
                    digest: spec.model,
                    licence: self.licences.get(&spec.model).cloned(),
                },
                adapter: None,
                node: allmend_policy::Node {
                    key: node,
                    institution: question.node_institution,
                    jurisdiction: question.node_jurisdiction,
                },
                output: OutputKind::Adapter,
                // What comes out goes to the researcher, under the law of their institution.
                result_jurisdiction: question.jurisdiction,
                // Room and gate are Rust: nothing but the result can leave, whatever a policy says.
                egress: false,
                room: Room::from_name(room.name()),
                approvals,
                privacy: privacy.as_ref().map(|terms| allmend_policy::Privacy {
                    epsilon_milli: terms.milli_epsilon_job,
                    epsilon_after_milli: terms.milli_epsilon_after,
                    delta_exponent: -i64::from(terms.delta_exp10),
                }),
                rows,
                // A run that is under way is not one that was had.
                runs: had(dataset, question),
                now: question.now,
            },
        }
    }

    /// The question to a person that an obligation means.
    fn question(
        &self,
        node: NodeId,
        question: &DataQuestion<'_>,
        held: &Held,
        decision: &Decision,
        obligation: &Obligation,
        output: Option<Digest>,
    ) -> Question {
        let (policy, dataset) = (decision.policies.all, held.version.digest);
        Question {
            question: question_id(question.job, dataset, policy, &obligation.name, output),
            node,
            job: question.job,
            dataset,
            dataset_name: held.dataset.name.to_string(),
            policy,
            obligation: obligation.name.clone(),
            reason: obligation.reason.clone(),
            output,
            asker: question.cert.signer,
            purpose: question.spec.purpose.clone(),
            model: question.spec.model.to_string(),
            words: in_words(question, held),
            stewards: deciders(node, held, &obligation.name),
            since: question.now,
            expires: question.spec.deadline,
            heard: question.now,
        }
    }

    /// What the researcher has accepted beforehand must be what is here.
    fn check_terms(
        &self,
        question: &DataQuestion<'_>,
        room: Strength,
        held: &[Held],
    ) -> Result<(), Vec<Reason>> {
        let no = |text: String| Err(vec![Reason::new(ReasonClass::Policy, text)]);
        if question.work.precision.is_some() && !allmend_engine::train::bf16_available() {
            let text = "this processor has no bfloat16 instructions; leave training.precision out";
            return Err(vec![Reason::new(ReasonClass::Device, text)]);
        }
        let Some(terms) = &question.spec.terms else {
            return no("the job accepts no terms; submit it with a [terms] section".to_owned());
        };
        if terms.output != "adapter" {
            return no(format!("the job accepts {:?}, what comes out is an adapter", terms.output));
        }
        match Strength::from_name(&terms.room) {
            None => return no(format!("no room is called {:?}", terms.room)),
            Some(least) if !room.at_least(least) => {
                return no(format!(
                    "this node's rooms are {room}, the job accepts nothing weaker than {least}; \
                     change terms.room if the weaker one will do"
                ));
            }
            Some(_) => {}
        }
        if let Some(accepted) = terms.dataset
            && held.iter().any(|held| held.version.digest != accepted)
        {
            return no("the job reads another dataset version than its terms accept".to_owned());
        }
        let Some(accepted) = terms.policy else { return Ok(()) };
        for held in held {
            let now = self.layers(&held.dataset).digest();
            if now != accepted {
                return no(format!(
                    "the policy in force is {}, the job accepts {}: read the new one, submit again",
                    now.short(),
                    accepted.short()
                ));
            }
        }
        Ok(())
    }

    /// The three policies that a dataset is under.
    pub(super) fn layers<'a>(&'a self, dataset: &'a Dataset) -> Layers<'a> {
        Layers {
            charter: self.charter.as_deref(),
            institution: self.institution.as_deref(),
            dataset: Some(&dataset.policy.text),
        }
    }

    /// What a job costs of the privacy budgets: the worst of its datasets.
    fn privacy_terms(
        &self,
        question: &DataQuestion<'_>,
        held: &[Held],
    ) -> Result<Option<PrivacyTerms>, String> {
        let Some(privacy) = &question.work.privacy else { return Ok(None) };
        let Some(reservation) = reservation(question, held)? else { return Ok(None) };
        // A power of ten no larger than the job's δ: what is stated at it holds at the job's, too.
        let exponent = delta_exp10(privacy.delta);
        let delta = Delta::power_of_ten(exponent).map_err(|error| error.to_string())?;
        let quotes = self.budgets.quote(&reservation, delta);
        let worst = quotes.iter().max_by_key(|quote| quote.milli_epsilon_after);
        Ok(worst.map(|quote| PrivacyTerms {
            milli_epsilon_job: quote.milli_epsilon_job,
            milli_epsilon_before: quote.milli_epsilon_before,
            milli_epsilon_after: quote.milli_epsilon_after,
            delta_exp10: exponent,
        }))
    }
}

/// What a job would set aside; none for one that reads no dataset of this node.
pub(super) fn reservation(
    question: &DataQuestion<'_>,
    held: &[Held],
) -> Result<Option<Reservation>, String> {
    if held.is_empty() {
        return Ok(None);
    }
    let per_step = match &question.work.privacy {
        Some(privacy) => {
            let step = Mechanism::from_decimals(privacy.sampling_rate, privacy.noise_multiplier);
            Some(step.map_err(|error| error.to_string())?.vector())
        }
        None => None,
    };
    let mut charges: Vec<Charge> = held
        .iter()
        .map(|held| Charge { lineage: Lineage::of_name(held.dataset.name.as_str()), budget: None })
        .collect();
    charges.sort_by_key(|charge| charge.lineage);
    charges.dedup_by_key(|charge| charge.lineage);
    Ok(Some(Reservation {
        job: question.job,
        requester: question.spec.signer,
        steps: question.work.steps,
        per_step,
        charges,
    }))
}

/// The least n with 10^−n ≤ δ.
fn delta_exp10(delta: Decimal) -> u8 {
    let mut exponent = 0u8;
    while exponent < 18 && Decimal::new(1, -(exponent as i8)).compare(delta).is_gt() {
        exponent += 1;
    }
    exponent
}

/// Who may meet an obligation: the operator what is the operator's, else the dataset's stewards, who bring
/// the decisions of others (ethics, law, data protection) as documents.
fn deciders(node: NodeId, held: &Held, obligation: &str) -> Vec<PublicKey> {
    match obligation {
        "approve:operator" => vec![node.into()],
        _ => held.dataset.stewards.clone(),
    }
}

/// Runs that the requester has had on a dataset, without this job's.
fn had(dataset: &Dataset, question: &DataQuestion<'_>) -> u64 {
    let theirs = |run: &&Run| run.requester == question.spec.signer && run.job != question.job;
    dataset.runs.iter().filter(theirs).count() as u64
}

/// Distinct subjects; a row that names none counts for itself.
pub(super) fn subjects(version: &VersionRecord) -> u64 {
    version.counts.subjects.saturating_add(version.counts.unattributed)
}

/// Who asks, as policies see them.
pub(super) fn principal(
    spec: &JobSpec,
    cert: &ResearcherCert,
    jurisdiction: Jurisdiction,
) -> Principal {
    Principal {
        key: spec.signer,
        institution: cert.signer,
        jurisdiction,
        credentials: cert.credentials.clone(),
    }
}

/// A dataset in one version, as policies see it.
pub(super) fn facts(dataset: &Dataset, version: &VersionRecord) -> allmend_policy::Dataset {
    allmend_policy::Dataset {
        digest: version.digest,
        licence: dataset.metadata.licence.as_str().to_owned(),
        sensitivity: match dataset.metadata.sensitivity {
            allmend_data::Sensitivity::Open => allmend_policy::Sensitivity::Open,
            allmend_data::Sensitivity::Internal => allmend_policy::Sensitivity::Internal,
            allmend_data::Sensitivity::Personal => allmend_policy::Sensitivity::Personal,
            allmend_data::Sensitivity::Special => allmend_policy::Sensitivity::Special,
        },
        consent_purposes: dataset.metadata.purposes.clone(),
        languages: dataset.metadata.languages.iter().map(|l| l.as_str().to_owned()).collect(),
        rows: version.counts.rows(),
        subjects: subjects(version),
        withdrawn: dataset.withdrawn.is_some(),
    }
}

/// What a job does, for a person who must decide.
fn in_words(question: &DataQuestion<'_>, held: &Held) -> Vec<String> {
    let work: &FinetuneWork = question.work;
    let privacy = match &work.privacy {
        Some(privacy) => format!(
            "It is differentially private: noise {} times the clipping norm.",
            privacy.noise_multiplier.to_f64()
        ),
        None => "It is not private: the adapter may remember single rows.".to_owned(),
    };
    vec![
        format!(
            "A model is adapted to {} rows of {}, about {} people or other subjects.",
            held.version.counts.rows(),
            held.dataset.name,
            subjects(&held.version)
        ),
        format!("It takes {} steps over at most {} tokens.", work.steps, work.tokens_max()),
        "What comes out is an adapter of the model; no row leaves this node.".to_owned(),
        privacy,
    ]
}
