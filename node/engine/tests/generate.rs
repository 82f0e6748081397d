//! Answers of tiny models: sampling, stopping, resuming, cancelling, limits.

mod support;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use allmend_engine::{
    ChatMessage, Completion, Compute, Engine, EngineError, Event, Fault, Finish, Input,
    LoadOptions, ModelInfo, Request, Sampling, ServeOptions, Token,
};

fn engine() -> Engine {
    let (_dir, path) = support::file(&support::tiny_model("llama").to_bytes());
    Engine::load(&path, &LoadOptions::default()).unwrap()
}

fn request(max_tokens: u32) -> Request {
    Request::new(Input::Prompt("Once upon a time".to_owned()), max_tokens)
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature_milli: 1_500, top_k: 60, top_p_milli: 980, seed, ..Sampling::GREEDY }
}

fn run(engine: &mut Engine, request: &Request) -> (Vec<Token>, Completion) {
    let mut tokens = Vec::new();
    let completion = engine
        .generate(request, &mut |event| {
            if let Event::Token(token) = event {
                tokens.push(token.clone());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    (tokens, completion)
}

fn ids(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| token.text.as_str()).collect()
}

fn refused(engine: &mut Engine, request: &Request) -> EngineError {
    engine.generate(request, &mut |_| panic!("work was done")).unwrap_err()
}

#[test]
fn greedy_follows_the_logits() {
    let mut engine = engine();
    let (tokens, completion) = run(&mut engine, &request(20));
    let mut sequence: Vec<u32> = vec![];
    // The prompt's ids in our vocabulary: printable ASCII from 3 on, blank 97.
    sequence.extend("Once upon a time".bytes().map(|byte| match byte {
        b' ' => 97,
        byte => u32::from(byte) - 0x21 + 3,
    }));
    assert_eq!(completion.usage.prompt_tokens as usize, sequence.len());
    for token in &tokens {
        let logits = engine.logits(&sequence, NonZeroUsize::new(16).unwrap()).unwrap();
        let last = logits.last().unwrap();
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        assert_eq!(token.id as usize, best);
        sequence.push(token.id);
    }
}

#[test]
fn equal_requests_give_equal_answers_and_seeds_matter() {
    let mut engine = engine();
    for sampling in [Sampling::GREEDY, warm(1), warm(2)] {
        let request = Request { sampling, ..request(40) };
        assert_eq!(run(&mut engine, &request).0, run(&mut engine, &request).0);
    }
    let first = run(&mut engine, &Request { sampling: warm(1), ..request(40) }).0;
    let second = run(&mut engine, &Request { sampling: warm(2), ..request(40) }).0;
    assert_ne!(first, second);
}

/// Goal: an answer cut anywhere and resumed with the tokens so far is the uninterrupted answer.
#[test]
fn resumed_answers_equal_uninterrupted_ones() {
    let mut engine = engine();
    for sampling in [Sampling::GREEDY, warm(3), warm(4), warm(5)] {
        for stop in [vec![], vec!["qz".to_owned(), "\u{fffd}\u{fffd}\u{fffd}".to_owned()]] {
            let whole = Request { sampling: sampling.clone(), stop, ..request(48) };
            let (tokens, completion) = run(&mut engine, &whole);
            for cut in 0..=tokens.len() {
                let forced = ids(&tokens[..cut]);
                let (rest, resumed) = run(&mut engine, &Request { forced, ..whole.clone() });
                // When the last token was forced, whatever it set free was reported with it.
                assert_eq!(rest, tokens[cut..], "cut at {cut}");
                assert_eq!(resumed.finish, completion.finish, "cut at {cut}");
                assert_eq!(resumed.usage, completion.usage, "cut at {cut}");
            }
        }
    }
}

#[test]
fn stop_strings_end_the_answer() {
    let mut engine = engine();
    let free = Request { sampling: warm(9), ..request(60) };
    let whole = text(&run(&mut engine, &free).0);
    let middle: Vec<char> = whole.chars().collect();
    let stop: String = middle[10..13].iter().collect();
    let (tokens, completion) =
        run(&mut engine, &Request { stop: vec![stop.clone()], ..free.clone() });
    assert_eq!(completion.finish, Finish::StopString);
    assert_eq!(text(&tokens), whole[..whole.find(&stop).unwrap()]);
    assert_eq!(completion.usage.completion_tokens as usize, tokens.len());
    // A stop string that never comes holds text back but loses none.
    let (tokens, completion) =
        run(&mut engine, &Request { stop: vec![format!("{whole}!")], ..free });
    assert!(matches!(completion.finish, Finish::Length | Finish::Stop));
    assert_eq!(text(&tokens), whole);
}

#[test]
fn the_end_token_ends_the_answer() {
    // Whatever greedy decoding chooses third becomes the end of the turn.
    let mut free = engine();
    let third = run(&mut free, &request(3)).0[2].id;
    let writer = support::tiny_model("llama").u32("tokenizer.ggml.eos_token_id", third);
    let (_dir, path) = support::file(&writer.to_bytes());
    let mut engine = Engine::load(&path, &LoadOptions::default()).unwrap();
    let (tokens, completion) = run(&mut engine, &request(10));
    let first = ids(&tokens).iter().position(|&id| id == third).unwrap();
    assert_eq!(first + 1, tokens.len());
    assert_eq!(completion.finish, Finish::Stop);
}

#[test]
fn cancelling_takes_effect_between_tokens_and_between_chunks() {
    let mut engine = engine();
    let mut seen = 0;
    let completion = engine
        .generate(&request(40), &mut |event| match event {
            Event::Token(token) if token.index == 4 => ControlFlow::Break(()),
            Event::Token(_) => {
                seen += 1;
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        })
        .unwrap();
    assert_eq!((seen, completion.finish), (4, Finish::Cancelled));
    assert_eq!(completion.usage.completion_tokens, 5);
    let (_dir, path) = support::file(&support::tiny_model("llama").to_bytes());
    let serve = ServeOptions { step_rows_max: 128, ..ServeOptions::default() };
    let options = LoadOptions { serve, ..LoadOptions::default() };
    let mut engine = Engine::load(&path, &options).unwrap();
    let long = Request { input: Input::Prompt("a".repeat(150)), ..request(4) };
    let mut steps = Vec::new();
    let completion = engine
        .generate(&long, &mut |event| {
            if let Event::Prefilled { done_tokens, total_tokens } = event {
                steps.push((*done_tokens, *total_tokens));
            }
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!(completion.finish, Finish::Cancelled);
    assert_eq!(steps, [(128, 150)]);
}

#[test]
fn context_limit_is_stated_before_any_work() {
    let mut engine = engine();
    let error = refused(&mut engine, &request(145));
    assert_eq!(error.fault(), Fault::Request);
    assert_eq!(
        error.to_string(),
        "context limit: 16 prompt tokens + 145 answer tokens exceed the context of 160 tokens by 1"
    );
    assert_eq!(run(&mut engine, &request(144)).1.usage.prompt_tokens, 16);
    let (_dir, path) = support::file(&support::tiny_model("llama").to_bytes());
    let options = LoadOptions { context_tokens: Some(32), ..LoadOptions::default() };
    let mut engine = Engine::load(&path, &options).unwrap();
    assert_eq!(engine.context_tokens(), 32);
    assert!(matches!(
        refused(&mut engine, &request(17)),
        EngineError::ContextExceeded { context_tokens: 32, .. }
    ));
}

#[test]
fn wrong_requests_are_refused() {
    let mut engine = engine();
    let base = request(10);
    for wrong in [
        Request { max_tokens: 0, ..base.clone() },
        Request { input: Input::Prompt(String::new()), ..base.clone() },
        Request { stop: vec![String::new()], ..base.clone() },
        Request { forced: vec![128], ..base.clone() },
        Request { forced: vec![5; 11], ..base.clone() },
        Request { sampling: Sampling { top_p_milli: 0, ..Sampling::GREEDY }, ..base.clone() },
        Request { max_tokens: u32::MAX, ..base.clone() },
    ] {
        assert_eq!(refused(&mut engine, &wrong).fault(), Fault::Request);
    }
    assert!(engine.logits(&[], NonZeroUsize::MIN).is_err());
    assert!(engine.logits(&[128], NonZeroUsize::MIN).is_err());
    assert!(engine.logits(&[0; 161], NonZeroUsize::MIN).is_err());
}

#[test]
fn chats_are_rendered_with_the_models_template() {
    let message = |role: &str, content: &str| ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let chat = Input::Chat(vec![message("user", "Hi"), message("assistant", "Yo")]);
    let engine = engine();
    // <s> user:_Hi </s> <s> assistant:_Yo </s> <s> assistant:
    assert_eq!(engine.count_tokens(&chat, 0).unwrap(), 1 + 8 + 1 + 1 + 13 + 1 + 1 + 10);
    let writer = support::tiny_model("llama").without("tokenizer.chat_template");
    let (_dir, path) = support::file(&writer.to_bytes());
    let mut engine = Engine::load(&path, &LoadOptions::default()).unwrap();
    let error = refused(&mut engine, &Request { input: chat, ..request(4) });
    assert!(error.to_string().contains("raw prompt"), "{error}");
}

#[test]
fn the_header_alone_tells_the_plan() {
    let (_dir, path) = support::file(&support::tiny_model("llama").to_bytes());
    let info = ModelInfo::read(&path).unwrap();
    assert_eq!(info.architecture, "llama");
    assert_eq!(info.name.as_deref(), Some("llama"));
    assert_eq!(info.license.as_deref(), Some("cc0-1.0"));
    assert_eq!((info.context_tokens, info.vocabulary_tokens), (160, 128));
    assert_eq!(info.quantisation, "F32");
    assert!(info.chat);
    // 2 x 128 x 32 embeddings, 4 layers of 9,280, and the last norm.
    assert_eq!(info.parameters, 2 * 128 * 32 + 4 * 9_280 + 32);
    // Keys and values of 4 layers and 2 heads, whose 8 dimensions are stored as 16.
    assert_eq!(info.cache_bytes_per_token, 2 * 4 * 2 * 16 * 4);
    assert_eq!(&info, Engine::load(&path, &LoadOptions::default()).unwrap().info());
    let need = info.memory_mib(160);
    assert!(info.context_that_fits(need) == 160 && info.context_that_fits(1) == 0);
    let options = LoadOptions { memory_mib: Some(10), ..LoadOptions::default() };
    let error = Engine::load(&path, &options).err().unwrap();
    assert_eq!(error.fault(), Fault::Machine);
    assert!(error.to_string().contains("10 MiB are available"), "{error}");
}

/// Prints an answer for [`answers_do_not_depend_on_threads`].
#[test]
#[ignore = "run by answers_do_not_depend_on_threads"]
fn print_an_answer() {
    let mut engine = engine();
    let logits = engine.logits(&[7; 150], NonZeroUsize::new(128).unwrap()).unwrap();
    let bits: Vec<u32> = logits[149].iter().map(|logit| logit.to_bits()).collect();
    let tokens = run(&mut engine, &Request { sampling: warm(6), ..request(30) }).0;
    std::io::Write::write_all(
        &mut std::io::stdout(),
        format!("\nANSWER {:?} {bits:?}\n", ids(&tokens)).as_bytes(),
    )
    .unwrap();
}

/// Goal: one, two or three threads give the same bits. Threads are counted once per process, so each
/// count gets a process of its own.
#[test]
fn answers_do_not_depend_on_threads() {
    let answer = |threads: &str| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "print_an_answer", "--ignored", "--nocapture"])
            .env(allmend_engine::THREADS_ENV, threads)
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        stdout.lines().find(|line| line.starts_with("ANSWER ")).unwrap().to_owned()
    };
    let one = answer("1");
    assert_eq!(answer("2"), one);
    assert_eq!(answer("3"), one);
}

#[test]
fn thread_count_is_checked() {
    let (_dir, path) = support::file(&support::tiny_model("llama").to_bytes());
    let load = |compute| {
        let threads = NonZeroUsize::new(4_097);
        let options = LoadOptions { compute, threads, ..LoadOptions::default() };
        Engine::load(&path, &options).err().unwrap().to_string()
    };
    let error = load(Compute::default());
    assert!(error.contains("4097 threads"), "{error}");
    // Candle's are counted once, from the environment.
    let error = load(Compute::Candle);
    assert!(error.contains("RAYON_NUM_THREADS=4097"), "{error}");
}
