//! Measures what quantised arithmetic adds to the logits, and whether it ever decides a token that was clear.
//!
//! ```text
//! cargo run --release -p allmend-engine --example noise -- MODEL.gguf [--prompts N] [--tokens N] [--json]
//! ```
//! The fused kernels answer greedily, by default 16 prompts with 64 tokens each; answers may end early. The same
//! tokens are then computed in F32: every weight of the file is expanded, exactly, into a temporary file (four bytes a
//! weight), which plain candle operations compute. At each position of an answer
//!
//! - the gap is how far the best F32 logit is above the second best;
//! - the noise is by how much the kernels' logits of these two tokens are closer or further apart.
//!
//! Where the kernels choose another token than F32 would, the gap must not exceed four times the noise's root mean
//! square (RMS) over the prompts of the other half (even and odd ones): a clear choice is never changed. Otherwise it
//! exits with 1.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

#[path = "digest/prompts.rs"]
mod prompts;

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use allmend_engine::parity::Model;
use allmend_engine::{
    ChatMessage, Compute, Engine, EngineError, Event, Input, LoadOptions, NUMERICS_VERSION, Request,
};
use candle_core::Device;
use candle_core::quantized::gguf_file::{self, Content};
use candle_core::quantized::{GgmlDType, QTensor};
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

const USAGE: &str = "usage: noise MODEL.gguf [--prompts N] [--tokens N] [--json]";

/// Longest prompt and answer together.
const CONTEXT_TOKENS: u32 = 2_048;
/// A disagreement is noise up to this many times its root mean square.
const TIMES_RMS: f64 = 4.0;

fn main() -> Result<ExitCode, Failure> {
    let (mut model, mut count, mut tokens, mut json) = (None, 16, 64, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(USAGE);
        match argument.as_str() {
            "--prompts" => count = value()?.parse()?,
            "--tokens" => tokens = value()?.parse()?,
            "--json" => json = true,
            flag if flag.starts_with('-') => return Err(USAGE.into()),
            _ => model = Some(PathBuf::from(argument)),
        }
    }
    let path = model.ok_or(USAGE)?;
    if !(2..=prompts::PROMPTS.len()).contains(&count) {
        return Err(format!("--prompts {count} is not in 2..={}", prompts::PROMPTS.len()).into());
    }
    let options = LoadOptions { context_tokens: Some(CONTEXT_TOKENS), ..LoadOptions::default() };
    let mut engine = Engine::load(&path, &options)?;
    let answers = prompts::PROMPTS[..count]
        .iter()
        .enumerate()
        .map(|(index, prompt)| Answer::of(&mut engine, prompt, index % 2 == 0, tokens))
        .collect::<Result<Vec<_>, _>>()?;
    eprintln!("expanding the weights");
    let expanded = Expanded::of(&path)?;
    let mut exact = Model::open(&expanded.0, Compute::Candle, CONTEXT_TOKENS as usize)?;
    let (mut places, mut squares, mut logits) = (Vec::new(), 0.0, 0usize);
    for (prompt, answer) in answers.iter().enumerate() {
        eprintln!("prompt {} of {count}", prompt + 1);
        // Nothing is chosen after the last token.
        let known = &answer.ids[..answer.ids.len() - 1];
        let ours = engine.logits(known, NonZeroUsize::MAX)?;
        let theirs = exact.logits(&[known], NonZeroUsize::MAX)?.swap_remove(0);
        for position in answer.prompt_tokens - 1..known.len() {
            let (ours, theirs) = (&ours[position], &theirs[position]);
            let place = Place::of(prompt, ours, theirs);
            if place.chosen != answer.ids[position + 1] as usize {
                return Err("a prompt computed at once gives other logits than decoding did".into());
            }
            places.push(place);
            squares += ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            logits += ours.len();
        }
    }
    let summary = Summary::of(&places);
    let good = summary.good();
    let mut told = summary.json();
    told["model"] = json!(engine.info().name);
    told["quantisation"] = json!(engine.info().quantisation);
    told["numerics"] = json!(NUMERICS_VERSION);
    told["prompts"] = json!(count);
    told["logit_rms"] = json!((squares / logits as f64).sqrt());
    told["passed"] = json!(good);
    if json {
        println!("{told}");
    } else {
        summary.print((squares / logits as f64).sqrt());
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A prompt's tokens and the answer's.
struct Answer {
    ids: Vec<u32>,
    prompt_tokens: usize,
}

impl Answer {
    fn of(engine: &mut Engine, prompt: &str, chat: bool, tokens: u32) -> Result<Self, EngineError> {
        let content = prompt.to_owned();
        let input = match chat && engine.info().chat {
            true => Input::Chat(vec![ChatMessage { role: "user".to_owned(), content }]),
            false => Input::Prompt(content),
        };
        let request = Request { echo: true, ..Request::new(input, tokens) };
        let mut ids = Vec::new();
        let completion = engine.generate(&request, &mut |event| {
            match event {
                Event::Prompt(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                Event::Token(token) => ids.push(token.id),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        Ok(Self { ids, prompt_tokens: completion.usage.prompt_tokens as usize })
    }
}

/// A file with the same model in F32, which is removed in the end.
struct Expanded(PathBuf);

impl Expanded {
    fn of(path: &Path) -> Result<Self, Failure> {
        let mut file = File::open(path)?;
        let content = Content::read(&mut file)?;
        let names = content.tensor_infos.keys();
        let tensors: HashMap<&str, QTensor> = names
            .map(|name| {
                let tensor = content.tensor(&mut file, name, &Device::Cpu)?;
                let floats = tensor.dequantize(&Device::Cpu)?;
                Ok((name.as_str(), QTensor::quantize(&floats, GgmlDType::F32)?))
            })
            .collect::<candle_core::Result<_>>()?;
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let metadata = content.metadata.iter();
        let metadata: Vec<_> = metadata.map(|(key, value)| (key.as_str(), value)).collect();
        let name = format!("allmend-noise-{}.gguf", std::process::id());
        let expanded = Self(std::env::temp_dir().join(name));
        gguf_file::write(&mut File::create_new(&expanded.0)?, &metadata, &tensors)?;
        Ok(expanded)
    }
}

impl Drop for Expanded {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

/// A position of an answer at which a token was chosen.
struct Place {
    prompt: usize,
    /// What the kernels chose.
    chosen: usize,
    /// The best F32 logit above the second best.
    gap: f64,
    /// The best F32 logit above that of the chosen token; 0 when it was chosen.
    lost: f64,
    /// The kernels' gap between the same two tokens, less the F32 gap.
    noise: f64,
}

impl Place {
    fn of(prompt: usize, ours: &[f32], exact: &[f32]) -> Self {
        let [first, second] = best_two(exact);
        let [chosen, _] = best_two(ours);
        let apart =
            |logits: &[f32], a: usize, b: usize| f64::from(logits[a]) - f64::from(logits[b]);
        let gap = apart(exact, first, second);
        let lost = apart(exact, first, chosen);
        Self { prompt, chosen, gap, lost, noise: apart(ours, first, second) - gap }
    }

    fn agrees(&self) -> bool {
        self.lost == 0.0
    }
}

/// Indices of the two largest values; among equal ones the first, as sampling has it.
fn best_two(values: &[f32]) -> [usize; 2] {
    let (mut first, mut second) = (0, usize::MAX);
    for index in 1..values.len() {
        if values[index] > values[first] {
            (first, second) = (index, first);
        } else if second == usize::MAX || values[index] > values[second] {
            second = index;
        }
    }
    [first, second]
}

/// What was found.
struct Summary<'a> {
    places: &'a [Place],
    /// Root mean square of the noise over the prompts with even and with odd numbers.
    halves: [f64; 2],
    rms: f64,
    /// Sizes of the noise, ascending.
    sizes: Vec<f64>,
}

impl<'a> Summary<'a> {
    fn of(places: &'a [Place]) -> Self {
        let rms = |of: &dyn Fn(&Place) -> bool| {
            let squares: Vec<f64> =
                places.iter().filter(|place| of(place)).map(|place| place.noise.powi(2)).collect();
            (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
        };
        let halves = [0, 1].map(|half| rms(&|place| place.prompt % 2 == half));
        let mut sizes: Vec<f64> = places.iter().map(|place| place.noise.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        Self { places, halves, rms: rms(&|_| true), sizes }
    }

    /// The largest gap that may be decided otherwise, from prompts that this one does not belong to.
    fn limit(&self, place: &Place) -> f64 {
        TIMES_RMS * self.halves[(place.prompt + 1) % 2]
    }

    fn disagreements(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| !place.agrees())
    }

    fn good(&self) -> bool {
        !self.places.is_empty() && self.disagreements().all(|place| place.gap <= self.limit(place))
    }

    /// The size that this share of all noise does not exceed.
    fn quantile(&self, share: f64) -> f64 {
        let index = (self.sizes.len() as f64 * share).ceil() as usize;
        self.sizes.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn clear(&self) -> usize {
        self.places.iter().filter(|place| place.gap > self.limit(place)).count()
    }

    fn largest(&self, of: impl Fn(&Place) -> f64) -> f64 {
        self.disagreements().map(of).fold(0.0, f64::max)
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "positions": self.places.len(),
            "noise_rms": self.rms,
            "noise_rms_even_prompts": self.halves[0],
            "noise_rms_odd_prompts": self.halves[1],
            "noise_p999": self.quantile(0.999),
            "noise_max": self.quantile(1.0),
            "disagreements": self.disagreements().count(),
            "disagreement_gap_max": self.largest(|place| place.gap),
            "disagreement_lost_max": self.largest(|place| place.lost),
            "limit_times_rms": TIMES_RMS,
            "positions_above_limit": self.clear(),
        })
    }

    fn print(&self, logit_rms: f64) {
        let (positions, wrong) = (self.places.len(), self.disagreements().count());
        println!("{positions} positions; RMS of all logits' difference {logit_rms:.4}");
        println!(
            "noise on the gap of the best two: RMS {:.4} (even prompts {:.4}, odd {:.4}), 99.9 % {:.4}, largest {:.4}",
            self.rms,
            self.halves[0],
            self.halves[1],
            self.quantile(0.999),
            self.quantile(1.0)
        );
        println!(
            "the same token at {} positions ({:.2} %)",
            positions - wrong,
            100.0 * (positions - wrong) as f64 / positions as f64
        );
        println!(
            "another one at {wrong}: gaps up to {:.4} ({:.2} times the RMS), F32 logit lost up to {:.4}",
            self.largest(|place| place.gap),
            self.largest(|place| place.gap * TIMES_RMS / self.limit(place)),
            self.largest(|place| place.lost)
        );
        let verdict = if self.good() { "all of them the same" } else { "NOT all the same" };
        println!("{} gaps exceed {TIMES_RMS} times the RMS: {verdict}", self.clear());
    }
}
