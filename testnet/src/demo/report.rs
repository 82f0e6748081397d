//! What a demonstration came to; `report.json`.

use serde::Serialize;

use crate::world::{Model, Origin, Ports};

/// Everything that was seen.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Whether every expectation held.
    pub passed: bool,
    /// Which one did not, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What was run.
    pub software: Software,
    /// Where everything was kept.
    pub dir: String,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// The charter's federation.
    pub federation: String,
    /// Its institutions, home first.
    pub institutions: Vec<Institution>,
    /// The job that nothing disturbed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undisturbed: Option<Job>,
    /// The jobs of several people at one node at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub together: Option<Together>,
    /// The job whose node was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killed: Option<KilledJob>,
    /// The job that nobody would run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedJob>,
    /// The job that adapted the model to a text of one institution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
    /// The audit of the logs as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// The audit after one byte of a copy was flipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tampered: Option<Tampered>,
    /// Processes and ports that were left after everything had stopped: none.
    pub leftovers: Vec<String>,
    /// Whether `leftovers` was looked at.
    pub leftovers_checked: bool,
    /// Wall-clock time in milliseconds.
    pub took_ms: u64,
}

/// Versions.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Software {
    /// Of this program.
    pub testnet: String,
    /// Of the node, as it says itself.
    pub node: String,
    /// The node's executable.
    pub executable: String,
    /// How that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Whether this program was built with optimisation.
    pub optimised: bool,
}

/// A member.
#[derive(Clone, Debug, Serialize)]
pub struct Institution {
    /// Its name.
    pub name: String,
    /// The law it lives under.
    pub jurisdiction: String,
    /// Its key.
    pub key: String,
    /// Its node's name.
    pub node_name: String,
    /// Its node's key.
    pub node: String,
    /// Its node's ports.
    pub ports: Ports,
    /// How often its node was started.
    pub starts: u32,
}

/// A job that finished.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Job {
    /// Its id.
    pub job: String,
    /// The answer.
    pub answer: String,
    /// Tokens of the answer.
    pub tokens: u64,
    /// Every attempt.
    pub attempts: Vec<Attempt>,
    /// From the start of the command to the first byte of the answer, in milliseconds.
    pub first_token_ms: f64,
    /// Tokens per second from the first to the last.
    pub tokens_per_s: f64,
    /// The settlement.
    pub settlement: Settlement,
}

/// One attempt.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Attempt {
    /// Its number.
    pub attempt: u64,
    /// The node's name.
    pub node: String,
    /// The lease.
    pub lease: String,
    /// Its fence.
    pub fence: String,
    /// The receipt.
    pub receipt: String,
    /// Tokens that home had from it.
    pub tokens: u64,
    /// What it was paid.
    pub paid_micro: u64,
    /// How it ended, in words.
    pub status: String,
}

/// How a job was paid.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Settlement {
    /// Its id.
    pub id: String,
    /// Settlements of this job in home's log: one.
    pub count: usize,
    /// Who was paid for what.
    pub shares: Vec<Share>,
    /// In all.
    pub total_micro: u64,
    /// The most it might have cost.
    pub cap_micro: u64,
}

/// A part of a settlement.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Share {
    /// For which lease.
    pub lease: String,
    /// By which receipt.
    pub receipt: String,
    /// To which node.
    pub node: String,
    /// How much.
    pub cost_micro: u64,
}

/// Jobs of several people, computed together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Together {
    /// The node that computed all of them.
    pub node: String,
    /// Its worker's process.
    pub worker_pid: u64,
    /// The most of these runs that this process was seen with.
    pub at_once: u64,
    /// For how long all leases were live at the same time, in milliseconds.
    pub overlap_ms: u64,
    /// How often the next piece of an answer was another's than the one before.
    pub changes: u64,
    /// Tokens of all answers per second, from the first piece of any to the last.
    pub tokens_per_s: f64,
    /// Whether the answer to the first question is byte for byte what it was alone.
    pub same_answer: bool,
    /// Rounds before this one in which the jobs did not meet.
    pub too_fast: u32,
    /// The jobs.
    pub jobs: Vec<Companion>,
}

/// One of several jobs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Companion {
    /// Who asked.
    pub researcher: String,
    /// What.
    pub question: String,
    /// The job.
    #[serde(flatten)]
    pub job: Job,
    /// When its lease began, in milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// When its lease ended.
    pub ended_ms: u64,
}

/// The job whose node was killed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KilledJob {
    /// The job.
    #[serde(flatten)]
    pub job: Job,
    /// The node that was killed.
    pub killed_node: String,
    /// Words of the answer that had arrived by then; each is a token or more.
    pub words_before: usize,
    /// The longest silence in the answer, in milliseconds: until the lease had lapsed for certain, and
    /// the next node had taken up the answer.
    pub silence_ms: f64,
    /// Whether the answer is byte for byte the undisturbed one.
    pub same_answer: bool,
    /// From the restart of the killed node to the settlement, in milliseconds.
    pub settled_after_restart_ms: f64,
    /// Jobs that had finished before the node could be killed; they were not counted.
    pub too_fast: u32,
}

/// The job that nobody would run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RefusedJob {
    /// Its id.
    pub job: String,
    /// The command's exit code.
    pub exit_code: i32,
    /// Each node's reason.
    pub verdicts: Vec<Verdict>,
}

/// The job that adapted the model to a text of one institution.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tuned {
    /// Its id.
    pub job: String,
    /// The dataset's version.
    pub dataset: String,
    /// Its rows.
    pub rows: usize,
    /// The adapter that was released.
    pub adapter: String,
    /// The class of the room that it was trained in.
    pub room: String,
    /// Losses that were told while it trained, in nats per token.
    pub losses: Vec<f64>,
    /// Loss on the rows held out, before and after, in nats per token.
    pub held_out_loss: (f64, f64),
    /// Training rows whose beginning the gate gave to the adapter.
    pub rows_tested: u64,
    /// Of these, continued word for word.
    pub rows_extracted: u64,
    /// Mean exposure of the planted secrets, in bits.
    pub exposure_mean_bits: f64,
    /// What it cost.
    pub cost_micro: u64,
    /// The model's answer to the question that only the text answers.
    pub answer_before: String,
    /// The same with the adapter.
    pub answer_after: String,
}

/// What a node said.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Which.
    pub node: String,
    /// What, in words.
    pub said: String,
}

/// An audit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Audit {
    /// The command's exit code.
    pub exit_code: i32,
    /// Each log: node's name, entries, root.
    pub logs: Vec<AuditedLog>,
    /// What is wrong.
    pub findings: Vec<serde_json::Value>,
    /// Debits and credits of each institution.
    pub balances: Vec<serde_json::Value>,
}

/// An audited log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AuditedLog {
    /// Its node.
    pub node: String,
    /// Its name.
    pub log: String,
    /// Its entries.
    pub entries: u64,
    /// Its root.
    pub root: String,
}

/// The audit after one byte was flipped.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tampered {
    /// Whose log was copied.
    pub node: String,
    /// The file.
    pub file: String,
    /// The byte's place in it.
    pub offset: u64,
    /// The entry that it belongs to.
    pub entry: u64,
    /// The audit.
    #[serde(flatten)]
    pub audit: Audit,
    /// Whether a finding names that entry of that log.
    pub named: bool,
}
