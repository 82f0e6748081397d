//! Loads a model and answers requests with it, one at a time.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use candle_core::Tensor;

use crate::cache::Cache;
use crate::error::{EngineError, TemplateError};
use crate::gguf::Gguf;
use crate::info::{self, ModelInfo};
use crate::request::{Completion, Event, Finish, Input, Request, Timings, Token, Usage};
use crate::spec::ModelSpec;
use crate::template::ChatTemplate;
use crate::text::{Released, TextStream};
use crate::tokenizer::Tokenizer;
use crate::trunk::{PREFILL_CHUNK_TOKENS, Rows, Trunk};
use crate::weights::Product;

/// What a caller decides about loading.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Threads that must be in use. They are counted once per process, from the environment variable
    /// [`crate::THREADS_ENV`], which whoever starts the process sets; this only checks that it took.
    /// None accepts what there is.
    pub threads: Option<NonZeroUsize>,
    /// Longest sequence to serve, prompt and answer together; at most, and by default, the model's own.
    pub context_tokens: Option<u32>,
    /// Memory that weights, buffers and a full cache may take, in MiB. By default what the operating
    /// system says is available now, where it says so.
    pub memory_mib: Option<u64>,
}

/// A loaded model.
pub struct Engine {
    info: ModelInfo,
    context_tokens: u32,
    tokenizer: Tokenizer,
    /// A broken template only matters to chats, so its error waits for the first.
    template: Result<ChatTemplate, TemplateError>,
    trunk: Trunk,
}

impl Engine {
    /// Loads a GGUF file. The file is mapped while its weights are copied and not used afterwards.
    ///
    /// # Errors
    /// Everything that can be wrong with a model file, in words; [`EngineError::Memory`] with numbers
    /// before any weight is copied; [`EngineError::Threads`] when the thread count is not the wanted one.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, EngineError> {
        check_threads(options.threads)?;
        let map = info::map(path)?;
        let gguf = Gguf::parse(&map)?;
        let spec = ModelSpec::from_gguf(&gguf)?;
        let info = ModelInfo::from_parts(&gguf, &spec)?;
        let context_tokens =
            options.context_tokens.map_or(info.context_tokens, |cap| cap.min(info.context_tokens));
        check_memory(&info, context_tokens, options.memory_mib.or_else(info::available_mib))?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let template = match gguf.string("tokenizer.chat_template")? {
            Some(source) => {
                ChatTemplate::compile(source, tokenizer.bos_text(), tokenizer.eos_text())
            }
            None => Err(TemplateError::Missing),
        };
        let trunk = Trunk::load(&gguf, spec)?;
        Ok(Self { info, context_tokens, tokenizer, template, trunk })
    }

    /// The model as its header describes it.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Longest sequence served, prompt and answer together.
    pub fn context_tokens(&self) -> u32 {
        self.context_tokens
    }

    /// Number of tokens that an input takes, as [`Engine::generate`] will count them.
    ///
    /// # Units
    /// `clock`: as in [`Request`].
    ///
    /// # Errors
    /// When the chat template refuses the conversation, or the input is too long to tokenise.
    pub fn count_tokens(&self, input: &Input, clock: i64) -> Result<usize, EngineError> {
        Ok(self.tokenise(input, clock)?.len())
    }

    /// Answers a request, reporting progress and tokens as they come. Returning
    /// [`ControlFlow::Break`] from `on_event` cancels: after a token, or between two parts of the prompt.
    ///
    /// Equal requests give equal tokens on the same build and processor type. Tokens of an interrupted
    /// answer given as `forced` are computed one by one, exactly as when they were first chosen, so the
    /// rest is what it would have been; they are counted but not reported again.
    ///
    /// # Errors
    /// Refusals (context limit, bounds, template) come before any work and leave the engine unchanged.
    pub fn generate(
        &mut self,
        request: &Request,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Completion, EngineError> {
        let begun = Instant::now();
        let prompt = self.check(request)?;
        let mut run = Run::new(self, request, prompt.len())?;
        let outcome = run.prefill(&prompt, on_event)?;
        run.timings.prefill_us = micros(begun);
        let begun = Instant::now();
        let finish = match outcome {
            Prefilled::Ready(logits) => run.decode(logits, on_event)?,
            Prefilled::Done(finish) => finish,
        };
        run.timings.decode_us = micros(begun);
        Ok(Completion { finish, usage: run.usage, timings: run.timings })
    }

    /// Logits after each of `tokens`, computed `chunk` at a time as a prompt is: for comparing
    /// implementations.
    ///
    /// # Shapes
    /// Returns one row of vocabulary length per token.
    ///
    /// # Errors
    /// When `tokens` is empty, exceeds the context, or contains an id outside the vocabulary.
    pub fn logits(
        &self,
        tokens: &[u32],
        chunk: NonZeroUsize,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        self.check_ids(tokens)?;
        if tokens.is_empty() || tokens.len() > self.context_tokens as usize {
            let problem = format!("{} tokens are not in 1..={}", tokens.len(), self.context_tokens);
            return Err(EngineError::InvalidRequest(problem));
        }
        let mut cache = self.trunk.new_cache(tokens.len())?;
        let mut rows = Vec::with_capacity(tokens.len());
        for part in tokens.chunks(chunk.get()) {
            rows.extend({
                let part = self.trunk.forward(part, &mut cache, Rows::All, Product::Expanded)?;
                part.to_vec2::<f32>()?
            });
        }
        Ok(rows)
    }

    /// Everything about a request that can be refused without computing; returns its prompt.
    fn check(&self, request: &Request) -> Result<Vec<u32>, EngineError> {
        request.sampling.check()?;
        if request.max_tokens == 0 {
            return Err(EngineError::InvalidRequest("max_tokens is 0".to_owned()));
        }
        if request.forced.len() > request.max_tokens as usize {
            return Err(EngineError::InvalidRequest(format!(
                "{} forced tokens exceed max_tokens {}",
                request.forced.len(),
                request.max_tokens
            )));
        }
        self.check_ids(&request.forced)?;
        let prompt = self.tokenise(&request.input, request.clock)?;
        if prompt.is_empty() {
            return Err(EngineError::InvalidRequest("the prompt is empty".to_owned()));
        }
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        if u64::from(prompt_tokens) + u64::from(request.max_tokens) > self.context_tokens.into() {
            return Err(EngineError::ContextExceeded {
                prompt_tokens,
                max_tokens: request.max_tokens,
                context_tokens: self.context_tokens,
            });
        }
        Ok(prompt)
    }

    fn check_ids(&self, ids: &[u32]) -> Result<(), EngineError> {
        match ids.iter().find(|id| **id as usize >= self.info.vocabulary_tokens as usize) {
            None => Ok(()),
            Some(id) => Err(EngineError::InvalidRequest(format!(
                "token id {id} is not in a vocabulary of {}",
                self.info.vocabulary_tokens
            ))),
        }
    }

    fn tokenise(&self, input: &Input, clock: i64) -> Result<Vec<u32>, EngineError> {
        match input {
            Input::Prompt(text) => self.tokenizer.encode_prompt(text),
            Input::Chat(messages) => match &self.template {
                Ok(template) => {
                    self.tokenizer.encode_prompt(&template.render(messages, clock, true)?)
                }
                Err(error) => Err(error.clone().into()),
            },
        }
    }
}

/// One request being answered.
struct Run<'a> {
    engine: &'a Engine,
    request: &'a Request,
    cache: Cache,
    text: TextStream,
    usage: Usage,
    timings: Timings,
}

/// Where the prompt and forced tokens led.
enum Prefilled {
    /// Logits for the next token.
    Ready(Tensor),
    /// There is nothing to generate.
    Done(Finish),
}

impl<'a> Run<'a> {
    fn new(
        engine: &'a Engine,
        request: &'a Request,
        prompt_tokens: usize,
    ) -> Result<Self, EngineError> {
        let text = TextStream::new(&request.stop)?;
        let capacity = prompt_tokens + request.max_tokens as usize;
        let cache = engine.trunk.new_cache(capacity)?;
        let usage = Usage { prompt_tokens: prompt_tokens as u32, completion_tokens: 0 };
        Ok(Self { engine, request, cache, text, usage, timings: Timings::default() })
    }

    /// Computes the prompt in chunks that depend on its length alone, then the forced tokens singly.
    fn prefill(
        &mut self,
        prompt: &[u32],
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Prefilled, EngineError> {
        let total = prompt.len() + self.request.forced.len();
        let mut logits = None;
        for part in prompt.chunks(PREFILL_CHUNK_TOKENS) {
            logits = Some(self.forward(part, Product::Expanded)?);
            if self.progress(total, on_event).is_break() {
                return Ok(Prefilled::Done(Finish::Cancelled));
            }
        }
        for &id in &self.request.forced {
            self.usage.completion_tokens += 1;
            // What earlier attempts showed is dropped; what they held back is still held back.
            if let Some(finish) = self.accept(id).1 {
                return Ok(Prefilled::Done(finish));
            }
            logits = Some(self.forward(&[id], Product::Quantised)?);
            if self.progress(total, on_event).is_break() {
                return Ok(Prefilled::Done(Finish::Cancelled));
            }
        }
        // `check` refused empty prompts.
        logits
            .map(Prefilled::Ready)
            .ok_or_else(|| EngineError::InvalidRequest("the prompt is empty".to_owned()))
    }

    fn forward(&mut self, tokens: &[u32], product: Product) -> Result<Tensor, EngineError> {
        Ok(self.engine.trunk.forward(tokens, &mut self.cache, Rows::Last, product)?)
    }

    fn progress(
        &self,
        total: usize,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        on_event(Event::Prefilled {
            done_tokens: self.cache.len() as u32,
            total_tokens: total as u32,
        })
    }

    fn decode(
        &mut self,
        mut logits: Tensor,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Finish, EngineError> {
        loop {
            let index = self.usage.completion_tokens;
            let row = logits.flatten_all()?.to_vec1::<f32>()?;
            let id = self.request.sampling.choose(&row, index)?;
            self.usage.completion_tokens += 1;
            let (text, finish) = self.accept(id);
            let token = Token { index, id, text };
            if on_event(Event::Token(&token)).is_break() {
                return Ok(finish.unwrap_or(Finish::Cancelled));
            }
            if let Some(finish) = finish {
                return Ok(finish);
            }
            logits = self.forward(&[id], Product::Quantised)?;
        }
    }

    /// Takes the next token of the answer: the text that it sets free, and whether it is the last.
    /// The text of a last token includes everything that was held back.
    fn accept(&mut self, id: u32) -> (String, Option<Finish>) {
        if self.engine.tokenizer.is_end(id) {
            return (self.text.finish(), Some(Finish::Stop));
        }
        match self.text.push(&self.engine.tokenizer.bytes(id)) {
            Released::Stopped(text) => (text, Some(Finish::StopString)),
            Released::Text(text) if self.usage.completion_tokens >= self.request.max_tokens => {
                (text + &self.text.finish(), Some(Finish::Length))
            }
            Released::Text(text) => (text, None),
        }
    }
}

fn check_threads(wanted: Option<NonZeroUsize>) -> Result<(), EngineError> {
    let effective = candle_core::utils::get_num_threads();
    match wanted {
        Some(wanted) if wanted.get() != effective => {
            Err(EngineError::Threads { wanted: wanted.get(), effective })
        }
        _ => Ok(()),
    }
}

fn check_memory(
    info: &ModelInfo,
    context_tokens: u32,
    budget_mib: Option<u64>,
) -> Result<(), EngineError> {
    let need_mib = info.memory_mib(context_tokens);
    match budget_mib {
        Some(budget_mib) if need_mib > budget_mib => {
            let weights_mib = info.memory_mib(0);
            Err(EngineError::Memory {
                need_mib,
                weights_mib,
                cache_mib: need_mib - weights_mib,
                context_tokens,
                budget_mib,
                context_fits: info.context_that_fits(budget_mib),
            })
        }
        _ => Ok(()),
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
