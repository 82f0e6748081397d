//! The questions one after the other: what to ask next, and what an answer means. Who prints and reads is elsewhere.

use super::questions::{QUESTIONS, Question, SEVERAL, YES_NO, finetunes, split};
use super::{AnswerError, Answers, Catalogue};

/// The longest line of input that is looked at, in bytes: a list of institutions' keys fits.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// A question, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its id, the key of [`Answers`] that it fills in.
    pub id: &'static str,
    /// The question.
    pub text: String,
    /// What it is about, for somebody who has never thought of it.
    pub help: String,
    /// What can be chosen; empty when the answer is free. People may type the number, from 1, or the word.
    pub choices: Vec<Choice>,
    /// What an empty answer means; empty when an answer is needed or nothing is chosen.
    pub default: String,
}

/// One thing to choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// As an answer file writes it.
    pub value: &'static str,
    /// In words.
    pub label: String,
}

/// A questionnaire on its way.
#[derive(Clone, Debug)]
pub struct Interview<'a> {
    catalogue: &'a Catalogue,
    answers: Answers,
    next: usize,
}

impl<'a> Interview<'a> {
    /// Begins.
    pub fn new(catalogue: &'a Catalogue) -> Interview<'a> {
        Interview { catalogue, answers: Answers::default(), next: 0 }
    }

    /// The next question; `None` when everything has been answered.
    pub fn prompt(&self) -> Option<Prompt> {
        let question = self.question()?;
        let id = question.id;
        let text = |kind: &str| self.catalogue.text(&format!("{kind}.{id}")).to_owned();
        let label = |value: &str| {
            let (key, word) = match id {
                _ if question.choices == YES_NO => ("choice", value),
                "approvals" if value != "none" => ("who", value.trim_start_matches("approve:")),
                _ => ("", ""),
            };
            let own = format!("choice.{id}.{value}");
            let id = if key.is_empty() { own } else { format!("{key}.{word}") };
            self.catalogue.text(&id).to_owned()
        };
        Some(Prompt {
            id,
            text: text("question"),
            help: text("help"),
            choices: question
                .choices
                .iter()
                .map(|value| Choice { value, label: label(value) })
                .collect(),
            default: question.default.to_owned(),
        })
    }

    /// Takes the answer to the question that [`Interview::prompt`] shows; an empty one is its default.
    ///
    /// # Errors
    /// [`AnswerError`] when it cannot be used; the question stays.
    pub fn answer(&mut self, input: &str) -> Result<(), AnswerError> {
        let Some(question) = self.question() else { return Ok(()) };
        if input.len() > INPUT_BYTES_MAX {
            return Err(AnswerError::new(question.id, format!("at most {INPUT_BYTES_MAX} bytes")));
        }
        let input = input.trim();
        let input = if input.is_empty() { question.default } else { input };
        let (take, place) = (question.take, self.next);
        let input = choose(question, input, self.catalogue)?;
        let mut answers = self.answers.clone();
        take(&mut answers, &input)?;
        self.answers = answers;
        self.next = place + 1;
        while QUESTIONS.get(self.next).is_some_and(|question| !(question.asked)(&self.answers)) {
            self.next += 1;
        }
        Ok(())
    }

    /// All answers, once there is no question left.
    pub fn finish(self) -> Option<Answers> {
        let mut answers = self.question().is_none().then_some(self.answers)?;
        if !finetunes(&answers) {
            // These were not asked: without adapters they are about nothing.
            answers.privacy = false;
            answers.look_at_output = false;
        }
        Some(answers)
    }

    fn question(&self) -> Option<&'static Question> {
        QUESTIONS.get(self.next)
    }
}

/// Replaces numbers and translated words by the values that they stand for.
fn choose(question: &Question, input: &str, catalogue: &Catalogue) -> Result<String, AnswerError> {
    if question.choices.is_empty() {
        return Ok(input.to_owned());
    }
    let parts: Vec<&str> = split(input).collect();
    if parts.len() != 1 && !SEVERAL.contains(&question.id) {
        return Err(AnswerError::new(question.id, "choose one"));
    }
    let one = |part: &str| {
        let numbered =
            part.parse::<usize>().ok().and_then(|n| question.choices.get(n.checked_sub(1)?));
        let named = question.choices.iter().find(|value| {
            part.eq_ignore_ascii_case(value)
                || (question.choices == YES_NO
                    && catalogue.text(&format!("choice.{value}")).eq_ignore_ascii_case(part))
        });
        numbered.or(named).copied().ok_or_else(|| {
            AnswerError::new(
                question.id,
                format!("choose 1 to {}, or a word", question.choices.len()),
            )
        })
    };
    let chosen: Vec<&str> = parts.into_iter().map(one).collect::<Result<_, _>>()?;
    Ok(chosen.join(","))
}

#[cfg(test)]
mod tests {
    use allmend_protocol::ids::InstitutionId;

    use super::super::questions::thousandths;
    use super::super::{RoomRule, Who};
    use super::*;

    fn interview(answers: &[(&str, &str)]) -> Answers {
        let catalogue = Catalogue::built_in("de").expect("German");
        let mut interview = Interview::new(&catalogue);
        while let Some(prompt) = interview.prompt() {
            assert!(!prompt.text.starts_with("question."), "{prompt:?}");
            assert!(!prompt.help.starts_with("help."), "{prompt:?}");
            for choice in &prompt.choices {
                assert!(!choice.label.contains("choice."), "{prompt:?}");
                assert!(!choice.label.starts_with("who."), "{prompt:?}");
            }
            let given =
                answers.iter().find(|(id, _)| *id == prompt.id).map_or("", |(_, text)| text);
            interview.answer(given).unwrap_or_else(|error| panic!("{error}"));
        }
        interview.finish().expect("all answered")
    }

    #[test]
    fn empty_answers_are_the_strict_ones() {
        let key = InstitutionId::from_bytes([0xaa; 32]);
        let answers = interview(&[("institutions", &key.to_string())]);
        assert_eq!(answers, Answers { institutions: vec![key], ..Answers::default() });
    }

    #[test]
    fn numbers_words_and_the_language_of_the_house_all_choose() {
        let answers = interview(&[
            ("who", "2"),
            ("actions", "2, 3"),
            ("jurisdictions", "ch NO"),
            ("room", "Confined"),
            ("approvals", "none"),
        ]);
        assert_eq!(answers.who, Who::Anybody);
        assert_eq!(answers.actions, ["evaluate", "infer"]);
        assert_eq!(answers.room, RoomRule::Confined);
        assert!(answers.approvals.is_empty() && !answers.privacy && !answers.look_at_output);
        let answers = interview(&[("who", "2"), ("privacy", "Nein"), ("look_at_output", "NO")]);
        assert!(!answers.privacy && !answers.look_at_output);
    }

    #[test]
    fn what_cannot_be_used_is_asked_again() {
        let catalogue = Catalogue::built_in("en").expect("English");
        let mut interview = Interview::new(&catalogue);
        interview.answer("Dialects").unwrap();
        assert!(interview.answer("3").is_err() && interview.answer("everybody").is_err());
        interview.answer("1").unwrap();
        assert_eq!(interview.prompt().map(|prompt| prompt.id), Some("institutions"));
        for bad in ["", "ab", "\"]) }; permit"] {
            assert!(interview.answer(bad).is_err(), "{bad}");
        }
        assert!(interview.clone().finish().is_none());
        for bad in ["0", "1.2345", "-1", "1e3", "9999999", ".5", "１"] {
            assert!(thousandths("x", bad).is_err(), "{bad}");
        }
        assert_eq!(thousandths("x", "1.5"), Ok(1_500));
        assert_eq!(thousandths("x", "0,25"), Ok(250));
    }
}
