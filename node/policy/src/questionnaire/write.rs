//! From answers to a policy with comments.

use std::fmt::Write as _;

use super::{AnswerError, Answers, Catalogue, PurposeRule, RoomRule, Who};

/// Everything that reads rows.
const DATA_ACTIONS: &str =
    "action in [Action::\"finetune\", Action::\"evaluate\", Action::\"infer\"]";
const FINETUNE: &str = "action == Action::\"finetune\"";
const ANY_ACTION: &str = "action";

/// Writes the policy that the answers describe, with its reasons in the catalogue's language.
///
/// # Errors
/// [`AnswerError`] when the answers cannot be used ([`Answers::check`]).
pub fn write(answers: &Answers, catalogue: &Catalogue) -> Result<String, AnswerError> {
    answers.check()?;
    let mut policy = Text { out: String::new(), catalogue };
    let title: String = answers.title.chars().filter(|c| !c.is_control()).collect();
    policy.comment(&catalogue.filled("comment.head", &[("title", &title)]));
    policy.comment(catalogue.text("comment.how"));
    policy.permit(answers);
    policy.withdrawn(answers);
    policy.who(answers);
    policy.purposes(answers);
    policy.places(answers);
    policy.requirements(answers);
    policy.privacy(answers);
    policy.limits(answers);
    policy.approvals(answers);
    Ok(policy.out)
}

struct Text<'a> {
    out: String,
    catalogue: &'a Catalogue,
}

/// One rule that forbids.
#[derive(Default)]
struct Forbid<'a> {
    id: &'a str,
    values: &'a [(&'a str, &'a str)],
    obligation: Option<&'a str>,
    action: &'a str,
    when: Option<&'a str>,
    unless: Option<&'a str>,
}

impl Text<'_> {
    fn comment(&mut self, text: &str) {
        for line in text.lines() {
            // Writing to a String cannot fail.
            let _ = writeln!(self.out, "// {line}");
        }
    }

    /// A rule whose reason, and what to change, are the messages `reason.ID` and `change.ID`.
    fn forbid(&mut self, rule: &Forbid<'_>) {
        let Forbid { id, values, obligation, action, when, unless } = rule;
        let message = |kind: &str| quoted(&self.catalogue.filled(&format!("{kind}.{id}"), values));
        let name = match obligation {
            Some(obligation) if *id == "approval" => obligation.replace("approve:", "approved-by-"),
            _ => (*id).to_owned(),
        };
        let mut text = format!("\n@id({})\n@reason({})\n", quoted(&name), message("reason"));
        match obligation {
            Some(obligation) => text.push_str(&format!("@obligation({})\n", quoted(obligation))),
            None => text.push_str(&format!("@change({})\n", message("change"))),
        }
        text.push_str(&format!("forbid (principal, {action}, resource)"));
        if let Some(when) = when {
            text.push_str(&format!("\nwhen {{ {when} }}"));
        }
        if let Some(unless) = unless {
            text.push_str(&format!("\nunless {{ {unless} }}"));
        }
        text.push_str(";\n");
        self.out.push_str(&text);
    }

    fn permit(&mut self, answers: &Answers) {
        let mut actions: Vec<String> =
            answers.actions.iter().map(|action| format!("Action::{}", quoted(action))).collect();
        actions.push("Action::\"use-adapter\"".to_owned());
        self.out.push('\n');
        self.comment(self.catalogue.text("comment.permit"));
        let reason = quoted(self.catalogue.text("reason.permitted"));
        let _ = write!(
            self.out,
            "@id(\"permitted\")\n@reason({reason})\npermit (principal, action in [{}], resource);\n",
            actions.join(", ")
        );
    }

    fn withdrawn(&mut self, answers: &Answers) {
        let action = if answers.adapters_outlive_withdrawal { DATA_ACTIONS } else { ANY_ACTION };
        self.forbid(&Forbid {
            id: "withdrawn",
            action,
            when: Some("resource.withdrawn"),
            ..Forbid::default()
        });
    }

    fn who(&mut self, answers: &Answers) {
        if answers.who == Who::Institutions {
            let list = listed(answers.institutions.iter().map(ToString::to_string));
            self.forbid(&Forbid {
                id: "institutions",
                action: ANY_ACTION,
                unless: Some(&format!("{list}.contains(principal.institution)")),
                ..Forbid::default()
            });
        }
        if !answers.credentials.is_empty() {
            let list = listed(answers.credentials.iter().cloned());
            self.forbid(&Forbid {
                id: "credentials",
                values: &[("credentials", &answers.credentials.join(", "))],
                action: DATA_ACTIONS,
                unless: Some(&format!("principal.credentials.containsAll({list})")),
                ..Forbid::default()
            });
        }
    }

    fn purposes(&mut self, answers: &Answers) {
        match answers.purpose_rule {
            PurposeRule::Any => {}
            PurposeRule::Consented => self.forbid(&Forbid {
                id: "consented-purposes",
                action: ANY_ACTION,
                unless: Some("resource.consent_purposes.contains(context.purpose)"),
                ..Forbid::default()
            }),
            PurposeRule::Listed => {
                let list = listed(answers.purposes.iter().cloned());
                self.forbid(&Forbid {
                    id: "purposes",
                    values: &[("purposes", &answers.purposes.join(", "))],
                    action: ANY_ACTION,
                    unless: Some(&format!("{list}.contains(context.purpose)")),
                    ..Forbid::default()
                });
            }
        }
    }

    fn places(&mut self, answers: &Answers) {
        if answers.jurisdictions.is_empty() {
            return;
        }
        let codes: Vec<String> = answers.jurisdictions.iter().map(ToString::to_string).collect();
        let list = listed(codes.iter().cloned());
        self.forbid(&Forbid {
            id: "jurisdictions",
            values: &[("jurisdictions", &codes.join(", "))],
            action: ANY_ACTION,
            unless: Some(&format!(
                "\n  {list}.contains(context.node.jurisdiction) &&\n  {list}.contains(context.result.jurisdiction)\n"
            )),
            ..Forbid::default()
        });
    }

    fn requirements(&mut self, answers: &Answers) {
        if !answers.model_licences.is_empty() {
            let list = listed(answers.model_licences.iter().cloned());
            self.forbid(&Forbid {
                id: "model-licences",
                values: &[("licences", &answers.model_licences.join(", "))],
                action: FINETUNE,
                unless: Some(&format!("{list}.contains(context.model.licence)")),
                ..Forbid::default()
            });
        }
        let room = match answers.room {
            RoomRule::Process => return,
            RoomRule::Confined => ("confined-room", "context.room.strength >= 1"),
            RoomRule::Sealed => ("sealed-room", "context.room.strength >= 2"),
        };
        self.forbid(&Forbid {
            id: room.0,
            action: DATA_ACTIONS,
            unless: Some(room.1),
            ..Forbid::default()
        });
    }

    fn privacy(&mut self, answers: &Answers) {
        if !answers.privacy {
            return;
        }
        let (one, all) = (epsilon(answers.epsilon_milli), epsilon(answers.epsilon_total_milli));
        let delta = format!("1e-{}", answers.delta_digits);
        self.forbid(&Forbid {
            id: "differential-privacy",
            values: &[("epsilon", &one), ("delta", &delta)],
            action: FINETUNE,
            unless: Some(&format!(
                "\n  context.privacy.dp &&\n  context.privacy.epsilon_milli <= {} &&\n  context.privacy.delta_exponent <= -{}\n",
                answers.epsilon_milli, answers.delta_digits
            )),
            ..Forbid::default()
        });
        self.forbid(&Forbid {
            id: "privacy-budget",
            values: &[("epsilon", &all)],
            action: FINETUNE,
            unless: Some(&format!(
                "context.privacy.epsilon_after_milli <= {}",
                answers.epsilon_total_milli
            )),
            ..Forbid::default()
        });
    }

    fn limits(&mut self, answers: &Answers) {
        if answers.subjects_min > 0 {
            self.forbid(&Forbid {
                id: "enough-subjects",
                values: &[("subjects", &answers.subjects_min.to_string())],
                action: DATA_ACTIONS,
                unless: Some(&format!("resource.subjects >= {}", answers.subjects_min)),
                ..Forbid::default()
            });
        }
        if answers.runs_max > 0 {
            self.forbid(&Forbid {
                id: "enough-runs",
                values: &[("runs", &answers.runs_max.to_string())],
                action: DATA_ACTIONS,
                unless: Some(&format!("context.runs < {}", answers.runs_max)),
                ..Forbid::default()
            });
        }
    }

    fn approvals(&mut self, answers: &Answers) {
        for name in &answers.approvals {
            let who =
                self.catalogue.text(&format!("who.{}", name.replace("approve:", ""))).to_owned();
            let when = if answers.first_run_only {
                "context.stage == Stage::\"run\" && context.runs == 0"
            } else {
                "context.stage == Stage::\"run\""
            };
            self.forbid(&Forbid {
                id: "approval",
                values: &[("who", &who)],
                obligation: Some(name),
                action: DATA_ACTIONS,
                when: Some(when),
                unless: Some(&format!("context.approvals.given.contains({})", quoted(name))),
            });
        }
        if answers.look_at_output {
            self.forbid(&Forbid {
                id: "output-looked-at",
                values: &[],
                obligation: Some("approve:output"),
                action: FINETUNE,
                when: Some("context.stage == Stage::\"release\""),
                unless: Some("context.approvals.given.contains(\"approve:output\")"),
            });
        }
    }
}

/// A text of Cedar's.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A set of Cedar's, one entry a line when they are long.
fn listed(entries: impl Iterator<Item = String>) -> String {
    let entries: Vec<String> = entries.map(|entry| quoted(&entry)).collect();
    if entries.iter().map(String::len).sum::<usize>() < 60 {
        format!("[{}]", entries.join(", "))
    } else {
        format!("[\n    {}\n  ]", entries.join(",\n    "))
    }
}

/// Thousandths as people write epsilon: 1500 is 1.5.
fn epsilon(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1_000, milli % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
