//! `allmend policy new`: a steward answers questions in plain words and gets a policy with comments.
//!
//! What is not answered is answered strictly: a policy from half a questionnaire allows less, never more.

mod catalogue;
mod interview;
mod questions;
mod write;

use allmend_protocol::ids::InstitutionId;
use allmend_protocol::units::Jurisdiction;
use serde::{Deserialize, Serialize};

pub use self::catalogue::{Catalogue, LANGUAGES};
pub use self::interview::{Choice, Interview, Prompt};
pub use self::write::write;
use crate::vocabulary::obligation;

/// The most entries in one answer.
pub const LIST_LEN_MAX: usize = 200;
/// The longest word in an answer, in bytes.
pub const WORD_BYTES_MAX: usize = 64;
/// The longest title, in bytes.
pub const TITLE_BYTES_MAX: usize = 120;
/// The largest number in an answer: far beyond any dataset, and far from an overflow.
pub const NUMBER_MAX: u64 = 1_000_000_000_000;
/// The largest file of answers, in bytes.
pub const ANSWERS_BYTES_MAX: usize = 64 * 1024;

/// What a steward wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answers {
    /// What the dataset is called; only in a comment.
    pub title: String,
    /// Who may ask: `anybody` in the federation, or the institutions listed.
    pub who: Who,
    /// Which institutions, when they are listed; the steward's own among them if it may.
    pub institutions: Vec<InstitutionId>,
    /// For what: `consented` purposes of the dataset, the purposes `listed`, or `any`.
    pub purpose_rule: PurposeRule,
    /// Which purposes, when they are listed.
    pub purposes: Vec<String>,
    /// What may be done: `finetune`, `evaluate`, `infer`.
    pub actions: Vec<String>,
    /// Where it may be computed and where results may go; empty is anywhere.
    pub jurisdictions: Vec<Jurisdiction>,
    /// Under which licences a model may be adapted; empty is any.
    pub model_licences: Vec<String>,
    /// What a requester's certificate must say of them, each of these.
    pub credentials: Vec<String>,
    /// The weakest room.
    pub room: RoomRule,
    /// Whether an adapter must be differentially private.
    pub privacy: bool,
    /// At most so much for one job, in thousandths of epsilon.
    pub epsilon_milli: u64,
    /// At most so much for all jobs together, in thousandths of epsilon.
    pub epsilon_total_milli: u64,
    /// Delta is at most ten to the power of minus this.
    pub delta_digits: u64,
    /// At least so many subjects; 0 is no rule.
    pub subjects_min: u64,
    /// At most so many runs for each requester; 0 is no rule.
    pub runs_max: u64,
    /// Whose approval each run needs, e.g. `approve:data-steward`.
    pub approvals: Vec<String>,
    /// Whether only a requester's first run needs it.
    pub first_run_only: bool,
    /// Whether the steward looks at the measurements before an adapter leaves.
    pub look_at_output: bool,
    /// Whether adapters may be used on once the dataset has been withdrawn.
    pub adapters_outlive_withdrawal: bool,
}

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// Every member of the federation.
    Anybody,
    /// Those listed.
    Institutions,
}

/// For what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PurposeRule {
    /// What the dataset's metadata says.
    Consented,
    /// What is listed in the answers.
    Listed,
    /// Anything.
    Any,
}

/// The weakest room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoomRule {
    /// Any process.
    Process,
    /// Confined at least.
    Confined,
    /// Sealed.
    Sealed,
}

impl Default for Answers {
    /// The strictest answers.
    fn default() -> Answers {
        Answers {
            title: "dataset".to_owned(),
            who: Who::Institutions,
            institutions: Vec::new(),
            purpose_rule: PurposeRule::Consented,
            purposes: Vec::new(),
            actions: vec!["finetune".to_owned()],
            jurisdictions: Vec::new(),
            model_licences: Vec::new(),
            credentials: Vec::new(),
            room: RoomRule::Sealed,
            privacy: true,
            epsilon_milli: 2_000,
            epsilon_total_milli: 8_000,
            delta_digits: 5,
            subjects_min: 100,
            runs_max: 10,
            approvals: vec!["approve:data-steward".to_owned()],
            first_run_only: false,
            look_at_output: true,
            adapters_outlive_withdrawal: false,
        }
    }
}

/// An answer that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct AnswerError {
    /// Which answer.
    pub key: String,
    /// What is wrong with it, and what to write.
    pub problem: String,
}

impl AnswerError {
    fn new(key: &str, problem: impl Into<String>) -> AnswerError {
        AnswerError { key: key.to_owned(), problem: problem.into() }
    }
}

impl Answers {
    /// Reads a file of answers.
    ///
    /// # Errors
    /// [`AnswerError`] for anything not understood.
    pub fn from_toml(text: &str) -> Result<Answers, AnswerError> {
        if text.len() > ANSWERS_BYTES_MAX {
            return Err(AnswerError::new("answers", format!("at most {ANSWERS_BYTES_MAX} bytes")));
        }
        let answers: Answers = toml::from_str(text)
            .map_err(|error| AnswerError::new("answers", error.to_string().trim().to_owned()))?;
        answers.check()?;
        Ok(answers)
    }

    /// Whether a policy can be written from these.
    ///
    /// # Errors
    /// [`AnswerError`] with the first answer that cannot be used.
    pub fn check(&self) -> Result<(), AnswerError> {
        if self.title.len() > TITLE_BYTES_MAX {
            return Err(AnswerError::new("title", format!("at most {TITLE_BYTES_MAX} bytes")));
        }
        if self.who == Who::Institutions && self.institutions.is_empty() {
            return Err(AnswerError::new(
                "institutions",
                "name at least one, by its key: allmend members ls",
            ));
        }
        if self.purpose_rule == PurposeRule::Listed && self.purposes.is_empty() {
            return Err(AnswerError::new("purposes", "name at least one, e.g. research"));
        }
        if self.actions.is_empty() {
            return Err(AnswerError::new(
                "actions",
                "name at least one of finetune, evaluate, infer",
            ));
        }
        let lists: [(&str, &[String]); 5] = [
            ("purposes", &self.purposes),
            ("actions", &self.actions),
            ("model_licences", &self.model_licences),
            ("credentials", &self.credentials),
            ("approvals", &self.approvals),
        ];
        for (key, list) in lists {
            length(key, list.len())?;
            list.iter().try_for_each(|entry| word(key, entry))?;
        }
        length("institutions", self.institutions.len())?;
        length("jurisdictions", self.jurisdictions.len())?;
        let known = ["finetune", "evaluate", "infer"];
        if let Some(odd) = self.actions.iter().find(|action| !known.contains(&action.as_str())) {
            return Err(AnswerError::new(
                "actions",
                format!("{odd:?} is none of finetune, evaluate, infer"),
            ));
        }
        if let Some(odd) = self
            .approvals
            .iter()
            .find(|name| obligation(name).is_none() || *name == "approve:output")
        {
            return Err(AnswerError::new(
                "approvals",
                format!("{odd:?} is no approval that a run can wait for"),
            ));
        }
        let numbers = [
            ("epsilon_milli", self.epsilon_milli),
            ("epsilon_total_milli", self.epsilon_total_milli),
            ("subjects_min", self.subjects_min),
            ("runs_max", self.runs_max),
        ];
        if let Some((key, _)) = numbers.iter().find(|(_, number)| *number > NUMBER_MAX) {
            return Err(AnswerError::new(key, format!("at most {NUMBER_MAX}")));
        }
        if !(1..=18).contains(&self.delta_digits) {
            return Err(AnswerError::new(
                "delta_digits",
                "1 to 18; 5 means that delta is at most 0.00001",
            ));
        }
        if self.privacy
            && (self.epsilon_milli == 0 || self.epsilon_total_milli < self.epsilon_milli)
        {
            return Err(AnswerError::new(
                "epsilon_total_milli",
                "all jobs together need at least what one job may use, and that is more than 0",
            ));
        }
        Ok(())
    }
}

fn length(key: &str, length: usize) -> Result<(), AnswerError> {
    (length <= LIST_LEN_MAX)
        .then_some(())
        .ok_or_else(|| AnswerError::new(key, format!("at most {LIST_LEN_MAX}")))
}

/// Purposes, licences and the like are words; nothing in them can end a text in a policy.
fn word(key: &str, word: &str) -> Result<(), AnswerError> {
    let fits = |c: char| c.is_alphanumeric() || "-_.:+".contains(c);
    if word.is_empty() || word.len() > WORD_BYTES_MAX || !word.chars().all(fits) {
        let shown: String = word.chars().take(20).collect();
        return Err(AnswerError::new(
            key,
            format!(
                "{shown:?}: write words of letters, digits and - _ . : +, {WORD_BYTES_MAX} bytes at most"
            ),
        ));
    }
    Ok(())
}
