//! The questions themselves: when each is asked, and what an answer to it means.

use allmend_protocol::ids::InstitutionId;
use allmend_protocol::units::Jurisdiction;

use super::{
    AnswerError, Answers, NUMBER_MAX, PurposeRule, RoomRule, TITLE_BYTES_MAX, Who, length, word,
};

/// One question.
pub(super) struct Question {
    /// The key of [`Answers`] that it fills in, and part of its message ids.
    pub(super) id: &'static str,
    /// What can be chosen; empty when the answer is free.
    pub(super) choices: &'static [&'static str],
    /// What an empty answer means.
    pub(super) default: &'static str,
    /// Whether it makes sense after the answers so far.
    pub(super) asked: fn(&Answers) -> bool,
    /// Puts an answer into place.
    pub(super) take: fn(&mut Answers, &str) -> Result<(), AnswerError>,
}

/// The choices of a question that is answered with yes or no.
pub(super) const YES_NO: &[&str] = &["yes", "no"];

/// All questions, in their order.
pub(super) const QUESTIONS: [Question; 20] = [
    Question { id: "title", choices: &[], default: "dataset", asked: always, take: title },
    Question {
        id: "who",
        choices: &["institutions", "anybody"],
        default: "institutions",
        asked: always,
        take: |answers, text| {
            answers.who = if text == "anybody" { Who::Anybody } else { Who::Institutions };
            Ok(())
        },
    },
    Question {
        id: "institutions",
        choices: &[],
        default: "",
        asked: |answers| answers.who == Who::Institutions,
        take: institutions,
    },
    Question {
        id: "purpose_rule",
        choices: &["consented", "listed", "any"],
        default: "consented",
        asked: always,
        take: |answers, text| {
            answers.purpose_rule = match text {
                "listed" => PurposeRule::Listed,
                "any" => PurposeRule::Any,
                _ => PurposeRule::Consented,
            };
            Ok(())
        },
    },
    Question {
        id: "purposes",
        choices: &[],
        default: "research",
        asked: |answers| answers.purpose_rule == PurposeRule::Listed,
        take: |answers, text| {
            answers.purposes = words("purposes", text)?;
            needed("purposes", answers.purposes.len())
        },
    },
    Question {
        id: "actions",
        choices: &["finetune", "evaluate", "infer"],
        default: "finetune",
        asked: always,
        take: |answers, text| {
            answers.actions = words("actions", text)?;
            needed("actions", answers.actions.len())
        },
    },
    Question { id: "jurisdictions", choices: &[], default: "", asked: always, take: jurisdictions },
    Question {
        id: "model_licences",
        choices: &[],
        default: "",
        asked: finetunes,
        take: |answers, text| {
            answers.model_licences = words("model_licences", text)?;
            Ok(())
        },
    },
    Question {
        id: "credentials",
        choices: &[],
        default: "",
        asked: always,
        take: |answers, text| {
            answers.credentials = words("credentials", text)?;
            Ok(())
        },
    },
    Question {
        id: "room",
        choices: &["sealed", "confined", "process"],
        default: "sealed",
        asked: always,
        take: |answers, text| {
            answers.room = match text {
                "process" => RoomRule::Process,
                "confined" => RoomRule::Confined,
                _ => RoomRule::Sealed,
            };
            Ok(())
        },
    },
    Question {
        id: "privacy",
        choices: YES_NO,
        default: "yes",
        asked: finetunes,
        take: |answers, text| {
            answers.privacy = text == "yes";
            Ok(())
        },
    },
    Question {
        id: "epsilon_milli",
        choices: &[],
        default: "2",
        asked: private,
        take: |answers, text| {
            answers.epsilon_milli = thousandths("epsilon_milli", text)?;
            Ok(())
        },
    },
    Question {
        id: "epsilon_total_milli",
        choices: &[],
        default: "8",
        asked: private,
        take: |answers, text| {
            let total = thousandths("epsilon_total_milli", text)?;
            if total < answers.epsilon_milli {
                return Err(AnswerError::new(
                    "epsilon_total_milli",
                    "at least what one job may use",
                ));
            }
            answers.epsilon_total_milli = total;
            Ok(())
        },
    },
    Question {
        id: "delta_digits",
        choices: &[],
        default: "5",
        asked: private,
        take: |answers, text| {
            let digits = number("delta_digits", text)?;
            if !(1..=18).contains(&digits) {
                return Err(AnswerError::new("delta_digits", "1 to 18"));
            }
            answers.delta_digits = digits;
            Ok(())
        },
    },
    Question {
        id: "subjects_min",
        choices: &[],
        default: "100",
        asked: always,
        take: |answers, text| {
            answers.subjects_min = number("subjects_min", text)?;
            Ok(())
        },
    },
    Question {
        id: "runs_max",
        choices: &[],
        default: "10",
        asked: always,
        take: |answers, text| {
            answers.runs_max = number("runs_max", text)?;
            Ok(())
        },
    },
    Question {
        id: "approvals",
        choices: &[
            "approve:data-steward",
            "approve:ethics",
            "approve:data-protection",
            "approve:legal",
            "approve:operator",
            "approve:council",
            "none",
        ],
        default: "approve:data-steward",
        asked: always,
        take: |answers, text| {
            let mut names = words("approvals", text)?;
            if names.len() > 1 && names.iter().any(|name| name == "none") {
                return Err(AnswerError::new("approvals", "none goes with nothing else"));
            }
            names.retain(|name| name != "none");
            answers.approvals = names;
            Ok(())
        },
    },
    Question {
        id: "first_run_only",
        choices: YES_NO,
        default: "no",
        asked: |answers| !answers.approvals.is_empty(),
        take: |answers, text| {
            answers.first_run_only = text == "yes";
            Ok(())
        },
    },
    Question {
        id: "look_at_output",
        choices: YES_NO,
        default: "yes",
        asked: finetunes,
        take: |answers, text| {
            answers.look_at_output = text == "yes";
            Ok(())
        },
    },
    Question {
        id: "adapters_outlive_withdrawal",
        choices: YES_NO,
        default: "no",
        asked: finetunes,
        take: |answers, text| {
            answers.adapters_outlive_withdrawal = text == "yes";
            Ok(())
        },
    },
];

/// Questions where several things may be chosen at once.
pub(super) const SEVERAL: [&str; 2] = ["actions", "approvals"];

/// The parts of a list.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ';', ' ', '\t']).map(str::trim).filter(|part| !part.is_empty())
}

fn always(_: &Answers) -> bool {
    true
}

pub(super) fn finetunes(answers: &Answers) -> bool {
    answers.actions.iter().any(|action| action == "finetune")
}

fn private(answers: &Answers) -> bool {
    finetunes(answers) && answers.privacy
}

fn title(answers: &mut Answers, text: &str) -> Result<(), AnswerError> {
    if text.len() > TITLE_BYTES_MAX {
        return Err(AnswerError::new("title", format!("at most {TITLE_BYTES_MAX} bytes")));
    }
    answers.title = text.to_owned();
    Ok(())
}

fn institutions(answers: &mut Answers, text: &str) -> Result<(), AnswerError> {
    let parse = |part: &str| {
        part.parse::<InstitutionId>().map_err(|error| {
            AnswerError::new("institutions", format!("{error}; allmend members ls shows keys"))
        })
    };
    answers.institutions = split(text).map(parse).collect::<Result<_, _>>()?;
    needed("institutions", answers.institutions.len())
}

fn jurisdictions(answers: &mut Answers, text: &str) -> Result<(), AnswerError> {
    let parse = |part: &str| {
        Jurisdiction::new(&part.to_ascii_uppercase())
            .ok_or_else(|| AnswerError::new("jurisdictions", "two letters each, e.g. CH, NO"))
    };
    answers.jurisdictions = split(text).map(parse).collect::<Result<_, _>>()?;
    length("jurisdictions", answers.jurisdictions.len())
}

fn words(key: &str, text: &str) -> Result<Vec<String>, AnswerError> {
    let mut words: Vec<String> = Vec::new();
    for part in split(text) {
        word(key, part)?;
        if !words.iter().any(|known| known == part) {
            words.push(part.to_owned());
        }
    }
    length(key, words.len())?;
    Ok(words)
}

fn needed(key: &str, count: usize) -> Result<(), AnswerError> {
    length(key, count)?;
    (count > 0).then_some(()).ok_or_else(|| AnswerError::new(key, "name at least one"))
}

fn number(key: &str, text: &str) -> Result<u64, AnswerError> {
    text.parse()
        .ok()
        .filter(|number| *number <= NUMBER_MAX)
        .ok_or_else(|| AnswerError::new(key, format!("a whole number from 0 to {NUMBER_MAX}")))
}

/// `1.5` as 1500: no fractions in policies.
pub(super) fn thousandths(key: &str, text: &str) -> Result<u64, AnswerError> {
    let wrong = || AnswerError::new(key, "a number above 0 with at most three decimals, e.g. 1.5");
    let (whole, fraction) = text.split_once(['.', ',']).unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || whole.len() > 6
        || fraction.len() > 3
        || !digits(whole)
        || !digits(fraction)
    {
        return Err(wrong());
    }
    let milli: u64 = format!("{whole}{fraction:0<3}").parse().map_err(|_| wrong())?;
    (milli > 0).then_some(milli).ok_or_else(wrong)
}
