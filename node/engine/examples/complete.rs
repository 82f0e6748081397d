//! Measures one model beside something else, one run at a time, when told to.
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo run --release -p allmend-engine --example complete -- MODEL.gguf PROMPT_TOKENS ANSWER_TOKENS
//! ```
//! The first line printed is `{"prompt_tokens": …}`, once the model is loaded and has answered once.
//! Each line then read from standard input is answered by one run on a prompt that begins with it:
//! `{"prompt": …, "first_token_ms": …, "tokens": …, "tokens_per_s": …, "text": …}`. Different lines have
//! no page of prompt in common, so that whoever keeps prompts has none of a new line's. Ends with its
//! input.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::io::{BufRead as _, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use allmend_engine::{Engine, EngineError, Event, Input, LoadOptions, Request};

const USAGE: &str = "usage: complete MODEL.gguf PROMPT_TOKENS ANSWER_TOKENS";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().ok_or(USAGE)?);
    let mut number = || -> Result<u32, Box<dyn std::error::Error>> {
        Ok(arguments.next().and_then(|text| text.into_string().ok()).ok_or(USAGE)?.parse()?)
    };
    let (prompt_tokens, answer_tokens) = (number()?, number()?);
    let mut engine = Engine::load(&path, &LoadOptions::default())?;
    let prompt = prompt_of(&engine, prompt_tokens as usize, "At first")?;
    run(&mut engine, &prompt, answer_tokens)?;
    say(&serde_json::json!({ "prompt_tokens": prompt_tokens }))?;
    for line in std::io::stdin().lock().lines() {
        let prompt = prompt_of(&engine, prompt_tokens as usize, &line?)?;
        say(&run(&mut engine, &prompt, answer_tokens)?)?;
    }
    Ok(())
}

fn say(value: &serde_json::Value) -> std::io::Result<()> {
    println!("{value}");
    std::io::stdout().flush()
}

fn run(
    engine: &mut Engine,
    prompt: &str,
    answer_tokens: u32,
) -> Result<serde_json::Value, EngineError> {
    let request = Request::new(Input::Prompt(prompt.to_owned()), answer_tokens);
    let begun = Instant::now();
    let (mut times, mut text) = (Vec::new(), String::new());
    engine.generate(&request, &mut |event| {
        if let Event::Token(token) = event {
            times.push(begun.elapsed().as_secs_f64());
            text.push_str(&token.text);
        }
        ControlFlow::Continue(())
    })?;
    let first = times.first().copied().unwrap_or(f64::NAN);
    let last = times.last().copied().unwrap_or(f64::NAN);
    Ok(serde_json::json!({
        "prompt": prompt,
        "first_token_ms": first * 1e3,
        "tokens": times.len(),
        "tokens_per_s": (times.len() as f64 - 1.0) / (last - first),
        "text": text,
    }))
}

/// Prose of exactly the wanted number of tokens, that begins with `start` and asks for more.
fn prompt_of(engine: &Engine, tokens: usize, start: &str) -> Result<String, EngineError> {
    let words = ["The", " common", " land", " of", " a", " village", " feeds", " many", " herds"];
    let mut text = format!("{start}:");
    for word in words.iter().cycle() {
        let longer = format!("{text}{word}");
        if engine.count_tokens(&Input::Prompt(longer.clone()), 0)? > tokens {
            break;
        }
        text = longer;
    }
    Ok(text)
}
