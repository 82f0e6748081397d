//! SmolLM2-135M-Instruct end to end: a sensible answer, reproducible and resumable with quantised
//! weights.

mod support;

use std::ops::ControlFlow;

use allmend_engine::{
    ChatMessage, Completion, Compute, Engine, Event, Finish, Input, LoadOptions, ModelInfo,
    Request, Sampling, Token,
};

fn engine() -> Engine {
    support::few_threads();
    let options = LoadOptions { context_tokens: Some(2_048), ..LoadOptions::default() };
    Engine::load(&support::real_model::path(), &options).unwrap()
}

fn chat(question: &str, max_tokens: u32) -> Request {
    Request {
        clock: 1_795_444_245,
        ..Request::new(
            Input::Chat(vec![ChatMessage {
                role: "user".to_owned(),
                content: question.to_owned(),
            }]),
            max_tokens,
        )
    }
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

#[test]
fn header_describes_the_model() {
    let info = ModelInfo::read(&support::real_model::path()).unwrap();
    assert_eq!(info.architecture, "llama");
    assert_eq!(info.license.as_deref(), Some("apache-2.0"));
    assert_eq!(info.quantisation, "Q4_1");
    assert_eq!((info.parameters, info.context_tokens), (134_515_008, 8_192));
    assert_eq!((info.vocabulary_tokens, info.file_bytes), (49_152, 98_362_432));
    assert!(info.chat);
    // 30 layers, 3 heads of 64, keys and values; two bytes each, because the weights are quantised.
    assert_eq!(info.cache_bytes_per_token, 30 * 3 * 64 * 2 * 2);
}

/// Goal: a fact that the weights hold. Computed in F32, because eight-bit activations are enough to lose it in
/// a model this small.
#[test]
fn knows_a_capital_in_f32() {
    support::few_threads();
    let options = LoadOptions {
        compute: Compute::Candle,
        context_tokens: Some(2_048),
        ..LoadOptions::default()
    };
    let mut engine = Engine::load(&support::real_model::path(), &options).unwrap();
    let (tokens, completion) = run(&mut engine, &chat("What is the capital of France?", 60));
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(text.contains("Paris"), "{text}");
    assert_eq!(completion.finish, Finish::Stop);
    assert_eq!(completion.usage.prompt_tokens, 37);
}

#[test]
fn answers_a_question_sensibly() {
    let mut engine = engine();
    let question = "Explain in a few sentences why trees are important.";
    let (tokens, completion) = run(&mut engine, &chat(question, 120));
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(text.contains("oxygen") && text.contains("climate"), "{text}");
    assert!(!text.contains("<|im_end|>"), "{text}");
    assert_eq!(completion.finish, Finish::Stop);
    // The system turn that the template adds, the question, and the opening of the answer.
    assert_eq!(completion.usage.prompt_tokens, 40);
}

/// Goal: resuming is exact although quantised products differ between prompt and decoding.
#[test]
fn resumed_answers_equal_uninterrupted_ones() {
    let mut engine = engine();
    // More than one chunk of prompt.
    let long = "Tell me about the commons. ".repeat(17);
    for (sampling, cuts) in [
        (Sampling::GREEDY, [1, 12]),
        (
            Sampling {
                temperature_milli: 900,
                top_k: 40,
                top_p_milli: 950,
                seed: 42,
                ..Sampling::GREEDY
            },
            [4, 11],
        ),
    ] {
        let whole = Request { sampling, ..chat(&long, 12) };
        let (tokens, completion) = run(&mut engine, &whole);
        assert!(completion.usage.prompt_tokens > 128);
        for cut in cuts {
            let forced = tokens.iter().take(cut).map(|token| token.id).collect();
            let (rest, resumed) = run(&mut engine, &Request { forced, ..whole.clone() });
            assert_eq!(rest, tokens.get(cut..).unwrap_or_default(), "cut at {cut}");
            assert_eq!((resumed.finish, resumed.usage), (completion.finish, completion.usage));
        }
    }
}
