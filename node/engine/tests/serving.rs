//! Many requests at once over a real model's arithmetic: answers, what is shared, what is reported.

mod support;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use allmend_engine::{
    ChatMessage, Completion, Compute, Engine, Event, Fault, Finish, Input, LoadOptions, Logprobs,
    PromptToken, Request, Sampling, ServeOptions, Ticket, Token,
};

const ANNA: Option<[u8; 32]> = Some([1; 32]);
const BORIS: Option<[u8; 32]> = Some([2; 32]);

fn engine_with(options: &LoadOptions) -> Engine {
    let (_dir, path) = support::file(&support::tiny_model("llama").to_bytes());
    Engine::load(&path, options).unwrap()
}

fn engine() -> Engine {
    engine_with(&LoadOptions::default())
}

fn prompt(text: &str, max_tokens: u32) -> Request {
    Request::new(Input::Prompt(text.to_owned()), max_tokens)
}

fn chat(contents: &[&str], max_tokens: u32) -> Request {
    let roles = ["system", "user", "assistant", "user"];
    let messages = contents.iter().zip(roles).map(|(content, role)| ChatMessage {
        role: role.to_owned(),
        content: (*content).to_owned(),
    });
    Request::new(Input::Chat(messages.collect()), max_tokens)
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<Token>,
    prompt: Vec<PromptToken>,
    completion: Option<Completion>,
}

impl Answer {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Token(token) => self.tokens.push(token.clone()),
            Event::Prompt(tokens) => self.prompt.extend(tokens.iter().cloned()),
            Event::Done(completion) => self.completion = Some(*completion),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

/// One request alone.
fn alone(engine: &mut Engine, request: &Request) -> Answer {
    let mut answer = Answer::default();
    let completion = engine.generate(request, &mut |event| {
        answer.take(event);
        ControlFlow::Continue(())
    });
    answer.completion = Some(completion.unwrap());
    answer
}

fn cached(engine: &mut Engine, request: &Request) -> u32 {
    alone(engine, request).completion.unwrap().usage.cached_tokens
}

/// Goal: requests that share the engine, on too little memory for all of them, are answered as alone.
#[test]
fn answers_together_are_those_alone() {
    let requests: Vec<Request> = (0..24u64)
        .map(|at| {
            let sampling = match at % 3 {
                0 => Sampling::GREEDY,
                1 => Sampling { temperature_milli: 900, seed: at, ..Sampling::GREEDY },
                _ => Sampling {
                    temperature_milli: 1_200,
                    top_k: 50,
                    repetition_milli: 1_100,
                    seed: at,
                    ..Sampling::GREEDY
                },
            };
            let researcher = [None, ANNA, BORIS][at as usize % 3];
            let text = format!("{at} common lands of the village");
            Request { sampling, researcher, ..prompt(&text, 60 + (at as u32 * 7) % 50) }
        })
        .collect();
    let mut one = engine();
    let expected: Vec<Answer> = requests.iter().map(|request| alone(&mut one, request)).collect();
    let mut many = engine_with(&LoadOptions {
        cache_tokens: Some(400),
        slots: NonZeroUsize::new(16),
        ..LoadOptions::default()
    });
    let mut answers: BTreeMap<Ticket, Answer> = BTreeMap::new();
    let mut tickets = Vec::new();
    let mut events = Vec::new();
    let mut later = requests.iter();
    loop {
        // Two join in every step.
        for request in later.by_ref().take(2) {
            let ticket = many.submit(request.clone()).unwrap();
            tickets.push(ticket);
            answers.insert(ticket, Answer::default());
        }
        let more = many.step(&mut events).unwrap();
        for (ticket, event) in events.drain(..) {
            answers.get_mut(&ticket).unwrap().take(&event);
        }
        if !more && later.len() == 0 {
            break;
        }
    }
    for (ticket, expected) in tickets.iter().zip(&expected) {
        let got = &answers[ticket];
        assert_eq!(got.tokens, expected.tokens);
        let (got, expected) = (got.completion.unwrap(), expected.completion.unwrap());
        assert_eq!(got.finish, expected.finish);
        assert_eq!(got.usage.completion_tokens, expected.usage.completion_tokens);
    }
    let stats = many.stats();
    assert!(stats.preemptions > 0 && stats.finished == 24, "{stats:?}");
    assert_eq!((stats.running, stats.waiting, stats.pages_used, stats.pages), (0, 0, 0, 25));
    assert!(stats.stall_rows <= many.serve_options().stall_rows_max());
}

/// Goal: what was computed for a chat is used again for its next turn, by the same researcher only, unless
/// its leading messages were declared public.
#[test]
fn prefixes_are_shared_with_the_right_people() {
    let system = "You help with questions on common land.";
    let first = Request { researcher: ANNA, ..chat(&[system, "Who may graze?"], 4) };
    let mut engine = engine();
    assert_eq!(cached(&mut engine, &first), 0);
    // <s>system: (system text)</s> and so on, in pages of sixteen; see the fixture's template.
    let second = Request { researcher: ANNA, ..chat(&[system, "And who may mow?"], 4) };
    assert_eq!(cached(&mut engine, &second), 48);
    assert_eq!(cached(&mut engine, &Request { researcher: BORIS, ..second.clone() }), 0);
    assert_eq!(cached(&mut engine, &Request { researcher: None, ..second.clone() }), 0);
    let public = |researcher, question| Request {
        researcher,
        public_messages: 1,
        ..chat(&[system, question], 4)
    };
    assert_eq!(cached(&mut engine, &public(ANNA, "Who fells?")), 0);
    assert_eq!(cached(&mut engine, &public(BORIS, "Who sows?")), 48);
    assert_eq!(cached(&mut engine, &public(None, "Who reaps?")), 48);
}

#[test]
fn sharing_changes_no_answer() {
    let (mut fresh, mut used) = (engine(), engine());
    for question in ["Who may graze?", "Who may graze here?", "Who may graze?"] {
        let request = Request { researcher: ANNA, ..prompt(&question.repeat(3), 30) };
        let expected = alone(&mut fresh, &Request { researcher: None, ..request.clone() });
        assert_eq!(alone(&mut used, &request).tokens, expected.tokens);
    }
    assert!(used.stats().cached_tokens > 0);
}

/// Goal: log-probabilities are those of the model's logits, for prompt and answer, at any temperature.
#[test]
fn log_probabilities_are_the_models() {
    let mut engine = engine();
    let request = Request {
        logprobs: Some(3),
        echo: true,
        sampling: Sampling {
            temperature_milli: 2_000,
            repetition_milli: 1_500,
            logit_bias: vec![(2, -100_000)],
            ..Sampling::GREEDY
        },
        ..prompt("Once upon a time", 12)
    };
    let answer = alone(&mut engine, &request);
    assert_eq!((answer.prompt.len(), answer.tokens.len()), (16, 12));
    let text: String = answer.prompt.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(text, "Once upon a time");
    assert_eq!(answer.prompt[0].logprobs, None);
    let told = answer.prompt.iter().map(|token| (token.id, token.logprobs.clone()));
    let told: Vec<(u32, Option<Logprobs>)> =
        told.chain(answer.tokens.iter().map(|token| (token.id, token.logprobs.clone()))).collect();
    let ids: Vec<u32> = told.iter().map(|(id, _)| *id).collect();
    let logits = engine.logits(&ids, NonZeroUsize::new(16).unwrap()).unwrap();
    for (row, (id, logprobs)) in logits.iter().zip(&told[1..]) {
        let logprobs = logprobs.as_ref().unwrap();
        let total = row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
        let near = |id: u32, micro: i32| {
            let exact = (f64::from(row[id as usize]) - total) * 1e6;
            assert!((exact - f64::from(micro)).abs() < 20.0, "{exact} {micro}");
        };
        assert_eq!(logprobs.chosen.id, *id);
        near(*id, logprobs.chosen.logprob_micro);
        assert_eq!(logprobs.top.len(), 3);
        logprobs.top.iter().for_each(|other| near(other.id, other.logprob_micro));
        assert!(logprobs.top.is_sorted_by(|a, b| a.logprob_micro >= b.logprob_micro));
        let best = row.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(row[logprobs.top[0].id as usize], best);
    }
    // Nothing of it is reported unless it is asked for.
    let plain = alone(&mut engine, &Request { logprobs: None, echo: false, ..request });
    assert!(plain.prompt.is_empty() && plain.tokens.iter().all(|token| token.logprobs.is_none()));
    assert!(plain.tokens.iter().map(|token| token.id).eq(ids[16..].iter().copied()));
}

/// Goal: an adapter changes the answers of the requests that name it and no others, in one batch.
#[test]
fn adapters_apply_to_their_own_requests() {
    let mut engine = engine();
    let folder = support::fixture("llama/lora/start");
    engine.load_adapter([5; 32], &folder).unwrap();
    let plain = Request { researcher: ANNA, ..prompt("Once upon a time", 30) };
    let tuned = Request { adapter: Some([5; 32]), ..plain.clone() };
    let expected = [alone(&mut engine, &plain), alone(&mut engine, &tuned)];
    assert_ne!(expected[0].tokens, expected[1].tokens);
    let mut events = Vec::new();
    let tickets = [plain, tuned.clone()].map(|request| engine.submit(request).unwrap());
    while engine.step(&mut events).unwrap() {}
    for (ticket, expected) in tickets.iter().zip(&expected) {
        let mut got = Answer::default();
        let own = events.iter().filter(|(of, _)| of == ticket);
        own.for_each(|(_, event)| got.take(event));
        assert_eq!(got.tokens, expected.tokens);
    }
    engine.unload_adapter(&[5; 32]);
    assert_eq!(engine.submit(tuned).unwrap_err().fault(), Fault::Request);
}

/// Goal: texts are embedded as their tokens are, and nothing else can be asked of an encoder.
#[test]
fn an_encoder_embeds_texts() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: serde_json::Value| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.to_string()).unwrap();
    };
    for name in ["config.json", "model.safetensors"] {
        let from = support::fixture("xlm_roberta").join(name);
        std::fs::copy(from, folder.path().join(name)).unwrap();
    }
    let module = |at: u32, name: &str, path: &str| {
        serde_json::json!({
            "idx": at, "name": at.to_string(), "path": path,
            "type": format!("sentence_transformers.models.{name}"),
        })
    };
    let modules = [module(0, "Transformer", ""), module(1, "Pooling", "1_Pooling")];
    write("modules.json", modules.to_vec().into());
    write("1_Pooling/config.json", serde_json::json!({ "pooling_mode_mean_tokens": true }));
    let words = ["[UNK]", "[CLS]", "[SEP]", "common", "land", "village"];
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..).zip(words).map(|(id, word)| (word.to_owned(), serde_json::Value::from(id))).collect();
    write(
        "tokenizer.json",
        serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    { "SpecialToken": { "id": "[CLS]", "type_id": 0 } },
                    { "Sequence": { "id": "A", "type_id": 0 } },
                    { "SpecialToken": { "id": "[SEP]", "type_id": 0 } },
                ],
                "pair": [],
                "special_tokens": {
                    "[CLS]": { "id": "[CLS]", "ids": [1], "tokens": ["[CLS]"] },
                    "[SEP]": { "id": "[SEP]", "ids": [2], "tokens": ["[SEP]"] },
                },
            },
            "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab,
            },
        }),
    );
    let mut engine = Engine::load(folder.path(), &LoadOptions::default()).unwrap();
    let texts = ["common land".to_owned(), "village".to_owned()];
    // The default way for both: its results do not depend on what is computed together.
    let way = Compute::default();
    let mut model = allmend_engine::parity::Model::open(folder.path(), way, 64).unwrap();
    let expected = model.embed(&[vec![1, 3, 4, 2], vec![1, 5, 2]]).unwrap();
    assert_eq!(engine.embed(&texts).unwrap(), expected);
    assert_ne!(expected[0], expected[1]);
    assert!(engine.embed(&vec![texts[0].clone(); 1_025]).is_err());
    let error = engine.submit(prompt("common land", 2)).unwrap_err();
    assert_eq!(error.fault(), Fault::Request);
    assert!(self::engine().embed(&texts).unwrap_err().to_string().contains("modules.json"));
}

#[test]
fn requests_are_cancelled_one_by_one() {
    let mut engine = engine();
    let [first, second] = [(); 2].map(|()| engine.submit(prompt("Once upon a time", 100)).unwrap());
    let mut events = Vec::new();
    for _ in 0..5 {
        assert!(engine.step(&mut events).unwrap());
    }
    engine.cancel(first);
    events.clear();
    engine.step(&mut events).unwrap();
    let done = events.iter().find_map(|(ticket, event)| match event {
        Event::Done(completion) => Some((*ticket, *completion)),
        _ => None,
    });
    let (ticket, completion) = done.unwrap();
    assert_eq!((ticket, completion.finish), (first, Finish::Cancelled));
    assert!(completion.timings.prefill_us > 0 && completion.timings.decode_us > 0);
    assert!(
        events
            .iter()
            .any(|(ticket, event)| { *ticket == second && matches!(event, Event::Token(_)) })
    );
    let pages = engine.stats().pages_used;
    engine.cancel(second);
    assert!(!engine.step(&mut events).unwrap());
    assert!(pages > 0 && engine.stats().pages_used == 0);
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let mut engine = engine_with(&LoadOptions { cache_tokens: Some(64), ..LoadOptions::default() });
    let base = prompt("Once upon a time", 10);
    for (wrong, part, fault) in [
        (Request { logprobs: Some(21), ..base.clone() }, "logprobs 21", Fault::Request),
        (Request { public_messages: 1, ..base.clone() }, "public_messages is 1", Fault::Request),
        (Request { public_messages: 3, ..chat(&["a", "b"], 2) }, "are 2 messages", Fault::Request),
        (Request { adapter: Some([0; 32]), ..base.clone() }, "adapter", Fault::Request),
        (
            Request {
                sampling: Sampling { logit_bias: vec![(128, 0)], ..Sampling::GREEDY },
                ..base.clone()
            },
            "logit_bias",
            Fault::Request,
        ),
        (prompt("Once upon a time", 49), "65 tokens of cache", Fault::Machine),
    ] {
        let error = engine.submit(wrong).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.fault(), fault);
    }
    let serve = ServeOptions { waiting_max: 2, ..ServeOptions::default() };
    let mut engine = engine_with(&LoadOptions { serve, ..LoadOptions::default() });
    engine.submit(base.clone()).unwrap();
    engine.submit(base.clone()).unwrap();
    assert_eq!(engine.submit(base).unwrap_err().fault(), Fault::Machine);
}
