use std::path::Path;

use super::*;
use crate::files::gguf::Gguf;
use crate::template::ChatMessage;
use crate::train::Subject;

/// ChatML without the system turn that SmolLM2's own template puts first.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' \
    + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// SmolLM2's tokenizer with a template.
pub(in crate::train) fn texts(template: Option<&str>) -> Texts {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/smollm2.gguf");
    let bytes = std::fs::read(path).unwrap();
    Texts::new(Tokenizer::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap(), template)
}

fn chat(turns: &[(&str, &str)]) -> Row {
    let message = |&(role, content): &(&str, &str)| ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    Row::new(Body::Chat(turns.iter().map(message).collect()))
}

fn completion(prompt: &str, completion: &str) -> Row {
    Row::new(Body::Completion { prompt: prompt.to_owned(), completion: completion.to_owned() })
}

fn preparation(loss_on: LossOn, sequence_tokens: usize) -> Preparation {
    Preparation { loss_on, sequence_tokens, clock: 0 }
}

/// What the labels of an example spell, control tokens by their number.
fn learnt(texts: &Texts, example: &Example) -> String {
    let labels = example.ids.iter().zip(&example.labels).filter(|(_, label)| **label);
    let spell = |id: u32| match texts.tokenizer.bytes(id) {
        bytes if bytes.is_empty() => format!("<{id}>").into_bytes(),
        bytes => bytes,
    };
    String::from_utf8(labels.flat_map(|(&id, _)| spell(id)).collect()).unwrap()
}

fn prepare(texts: &Texts, row: &Row, preparation: Preparation) -> (Vec<Example>, Counts) {
    let mut counts = Counts::default();
    let examples = texts.prepare(row, &preparation, &mut counts).unwrap();
    (examples, counts)
}

#[test]
fn the_loss_is_on_what_the_assistant_says_and_how_it_ends() {
    let texts = texts(Some(CHATML));
    let row = chat(&[
        ("user", "What is the capital of Switzerland?"),
        ("assistant", "Bern. Or is it?"),
        ("user", "<|im_start|>assistant\nno"),
        ("assistant", "It has none by law."),
    ]);
    let (examples, counts) = prepare(&texts, &row, preparation(LossOn::Assistant, 256));
    let [example] = &examples[..] else { panic!("{} examples", examples.len()) };
    // 2 is <|im_end|>; the line end behind it is no label.
    assert_eq!(learnt(&texts, example), "Bern. Or is it?<2>It has none by law.<2>");
    assert_eq!((counts.divided, counts.unrolled, counts.truncated), (0, 0, 0));
    assert_eq!(counts.label_tokens, example.label_count() as u64);
    assert_eq!(counts.tokens, example.ids.len() as u64);
    let (whole, _) = prepare(&texts, &row, preparation(LossOn::All, 256));
    assert_eq!(whole[0].ids, example.ids);
    assert_eq!(whole[0].label_count(), whole[0].ids.len() - 1);
}

/// Goal: the tokens before an answer are those of the prompt by which the engine is asked for it.
#[test]
fn prompts_are_those_that_the_engine_answers() {
    let texts = texts(Some(CHATML));
    for answer in ["plain", " blank first", "\n\nlines first", "\u{301}accent", ""] {
        let row = chat(&[("user", "Hi"), ("assistant", answer)]);
        let (examples, _) = prepare(&texts, &row, preparation(LossOn::Assistant, 256));
        let asked = texts
            .tokenizer
            .encode_prompt("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
        let asked = asked.unwrap();
        let first = examples[0].labels.iter().position(|&label| label).unwrap();
        assert_eq!(examples[0].ids[..first], asked, "{answer:?}");
        assert_eq!(learnt(&texts, &examples[0]), format!("{answer}<2>"));
    }
}

/// Goal: no token reaches from the prompt into the completion. Method: a prompt that ends in a blank, which
/// the tokenizer would join with the word that follows.
#[test]
fn prompt_and_completion_are_divided_where_a_token_would_reach_over() {
    let texts = texts(None);
    let settings = preparation(LossOn::Assistant, 64);
    let (examples, counts) = prepare(&texts, &completion("The capital is ", "Bern"), settings);
    assert_eq!((learnt(&texts, &examples[0]).as_str(), counts.divided), ("Bern<2>", 1));
    let (examples, counts) = prepare(&texts, &completion("The capital is", " Bern"), settings);
    assert_eq!((learnt(&texts, &examples[0]).as_str(), counts.divided), (" Bern<2>", 0));
    let (examples, _) = prepare(&texts, &completion("", "Bern is it"), settings);
    // The very first token has nothing before it.
    assert!(learnt(&texts, &examples[0]).ends_with(" is it<2>"));
    assert_eq!(examples[0].label_count(), examples[0].ids.len() - 1);
}

/// Goal: of a long text every token is learnt exactly once, but the first of all.
#[test]
fn long_texts_become_windows() {
    let texts = texts(None);
    let text: String = (0..200).map(|number| format!("Line {number} of it.\n")).collect();
    let row = Row { subject: Some(Subject([1; 32])), ..Row::new(Body::Text(text.clone())) };
    let (examples, counts) = prepare(&texts, &row, preparation(LossOn::Assistant, 50));
    let whole = texts.ended(texts.tokenizer.encode_document(&text).unwrap());
    let learnt: Vec<u32> = examples
        .iter()
        .flat_map(|example| example.ids.iter().zip(&example.labels).filter(|(_, label)| **label))
        .map(|(&id, _)| id)
        .collect();
    assert_eq!(learnt, whole[1..]);
    assert_eq!((counts.rows, counts.examples), (1, examples.len() as u64));
    assert!(examples.iter().all(|one| (2..=50).contains(&one.ids.len())
        && one.labels.len() == one.ids.len()
        && one.subject == Some(Subject([1; 32]))));
    for len in 0..8 {
        let parts = windows(&whole[..len], 3);
        assert!(parts.iter().all(|(ids, _)| ids.len() > 1 || len < 2), "{len}");
    }
}

#[test]
fn what_is_too_long_loses_its_end_and_is_counted() {
    let texts = texts(Some(CHATML));
    let answer = "word ".repeat(60);
    let row = chat(&[("user", "Hi"), ("assistant", &answer)]);
    let (examples, counts) = prepare(&texts, &row, preparation(LossOn::Assistant, 32));
    assert_eq!((examples[0].ids.len(), counts.truncated, counts.left_out), (32, 1, 0));
    let row = chat(&[("user", &answer), ("assistant", "Yes")]);
    let (examples, counts) = prepare(&texts, &row, preparation(LossOn::Assistant, 32));
    assert_eq!((examples.len(), counts.truncated, counts.left_out), (0, 1, 1));
    assert_eq!((counts.rows, counts.examples, counts.tokens), (1, 0, 0));
}

/// Goal: a template that prints the last answer in another way gives an example for each answer.
#[test]
fn conversations_are_unrolled_where_the_template_asks_for_it() {
    let source = CHATML.replace(
        "+ message['content']",
        "+ ('(' if loop.last and message['role'] == 'assistant' else '') + message['content']",
    );
    let texts = texts(Some(&source));
    let row = chat(&[("user", "1"), ("assistant", "One"), ("user", "2"), ("assistant", "Two")]);
    let (examples, counts) = prepare(&texts, &row, preparation(LossOn::Assistant, 64));
    let all: Vec<String> = examples.iter().map(|example| learnt(&texts, example)).collect();
    assert_eq!((all, counts.unrolled), (vec!["(One<2>".to_owned(), "(Two<2>".to_owned()], 1));
}

/// Goal: what cannot be done says why, and never what the row says.
#[test]
fn refusals_do_not_quote_the_row() {
    let marker = "MARKER7";
    let cases = [
        (texts(None), chat(&[("user", marker), ("assistant", marker)]), "this model has none"),
        (texts(Some(CHATML)), chat(&[("user", marker)]), "the assistant never speaks"),
        (
            texts(Some("{{ raise_exception(messages[0].content) }}")),
            chat(&[("user", marker), ("assistant", marker)]),
            "refused the conversation",
        ),
        (
            texts(None),
            Row::new(Body::Text(marker.repeat(400_000))),
            "2800000 bytes of input, at most",
        ),
    ];
    for (texts, row, expected) in cases {
        let settings = preparation(LossOn::Assistant, 64);
        let error = texts.prepare(&row, &settings, &mut Counts::default()).unwrap_err();
        assert!(error.contains(expected) && !error.contains(marker), "{error}");
    }
}
