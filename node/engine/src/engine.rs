//! Loads a model and answers requests with it, one at a time.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use candle_core::Tensor;

use crate::cache::Cache;
use crate::error::{EngineError, TemplateError};
use crate::files::gguf::Gguf;
use crate::files::map;
use crate::info::{self, ModelInfo};
use crate::request::{Completion, Event, Finish, Input, Request, Ticket, Timings, Token, Usage};
use crate::spec;
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
    /// Requests to work on at once; further ones wait. None lets the engine choose.
    pub slots: Option<NonZeroUsize>,
}

/// Requests worked on at once unless the caller says otherwise.
const SLOTS_DEFAULT: usize = 8;

/// A loaded model.
pub struct Engine {
    info: ModelInfo,
    context_tokens: u32,
    tokenizer: Tokenizer,
    /// A broken template only matters to chats, so its error waits for the first.
    template: Result<ChatTemplate, TemplateError>,
    trunk: Trunk,
    slots: usize,
    next_ticket: u64,
    waiting: VecDeque<(Ticket, Request, Vec<u32>)>,
    running: Vec<Run>,
}

impl Engine {
    /// Loads a GGUF file. The file is mapped while its weights are copied and not used afterwards.
    ///
    /// # Errors
    /// Everything that can be wrong with a model file, in words; [`EngineError::Memory`] with numbers
    /// before any weight is copied; [`EngineError::Threads`] when the thread count is not the wanted one.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, EngineError> {
        check_threads(options.threads)?;
        let map = map::map(path)?;
        let gguf = Gguf::parse(&map)?;
        let spec = spec::gguf::read(&gguf)?.0;
        if spec.family != "llama" {
            return Err(EngineError::UnsupportedArchitecture {
                name: spec.family.to_owned(),
                supported: "llama".to_owned(),
            });
        }
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
        let slots = options.slots.map_or(SLOTS_DEFAULT, NonZeroUsize::get);
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Ok(Self {
            info,
            context_tokens,
            tokenizer,
            template,
            trunk,
            slots,
            next_ticket: 0,
            waiting,
            running,
        })
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

    /// Queues a request; its events come out of [`Engine::step`].
    ///
    /// # Errors
    /// Refusals (context limit, bounds, template) come now, before any work.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, EngineError> {
        let prompt = self.check(&request)?;
        // Refused here rather than when the request's turn comes.
        TextStream::new(&request.stop)?;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.push_back((ticket, request, prompt));
        Ok(ticket)
    }

    /// Stops a request; [`Event::Done`] with [`Finish::Cancelled`] comes out of the next step. Does
    /// nothing when the request has ended.
    pub fn cancel(&mut self, ticket: Ticket) {
        if let Some(at) = self.waiting.iter().position(|(waiting, ..)| *waiting == ticket)
            && let Some((ticket, request, prompt)) = self.waiting.remove(at)
            && let Ok(mut run) = Run::new(&self.trunk, ticket, request, prompt)
        {
            run.cancelled = true;
            self.running.push(run);
        }
        if let Some(run) = self.running.iter_mut().find(|run| run.ticket == ticket) {
            run.cancelled = true;
        }
    }

    /// Moves every running request on by one token or one part of its prompt, and appends what happened.
    /// Returns whether there is more to do.
    ///
    /// # Errors
    /// Only what concerns the engine as a whole; the failure of one request is [`Event::Failed`].
    pub fn step(&mut self, out: &mut Vec<(Ticket, Event)>) -> Result<bool, EngineError> {
        while self.running.len() < self.slots
            && let Some((ticket, request, prompt)) = self.waiting.pop_front()
        {
            match Run::new(&self.trunk, ticket, request, prompt) {
                Ok(run) => self.running.push(run),
                Err(error) => out.push((ticket, Event::Failed(error))),
            }
        }
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|run| {
            let (ticket, mut over) = (run.ticket, false);
            let outcome = run.advance(self, &mut |event| {
                over |= matches!(event, Event::Done(_));
                out.push((ticket, event));
            });
            match outcome {
                Ok(()) => !over,
                Err(error) => {
                    out.push((ticket, Event::Failed(error)));
                    false
                }
            }
        });
        self.running = running;
        Ok(!(self.running.is_empty() && self.waiting.is_empty()))
    }

    /// Answers one request, reporting progress and tokens as they come. Returning
    /// [`ControlFlow::Break`] from `on_event` cancels: after a token, or between two parts of the prompt.
    /// Other requests that were submitted move on with it; their events are lost.
    ///
    /// Equal requests give equal tokens on the same build and processor type. Tokens of an interrupted
    /// answer given as `forced` are counted but not reported again; the rest is what it would have been.
    ///
    /// # Errors
    /// Refusals (context limit, bounds, template) come before any work and leave the engine unchanged.
    pub fn generate(
        &mut self,
        request: &Request,
        on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Completion, EngineError> {
        let ticket = self.submit(request.clone())?;
        let mut events = Vec::new();
        loop {
            self.step(&mut events)?;
            for (of, event) in events.drain(..).filter(|(of, _)| *of == ticket) {
                debug_assert_eq!(of, ticket);
                match event {
                    Event::Done(completion) => return Ok(completion),
                    Event::Failed(error) => return Err(error),
                    event => {
                        if on_event(&event).is_break() {
                            self.cancel(ticket);
                        }
                    }
                }
            }
        }
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
                Ok(template) => self.tokenizer.encode_prompt(&template.render(messages, clock)?),
                Err(error) => Err(error.clone().into()),
            },
        }
    }
}

/// One request being answered.
struct Run {
    ticket: Ticket,
    request: Request,
    cache: Cache,
    text: TextStream,
    usage: Usage,
    timings: Timings,
    begun: Instant,
    cancelled: bool,
    /// Tokens of the prompt not computed yet.
    prompt: VecDeque<u32>,
    /// Forced tokens computed so far.
    forced: usize,
    /// Logits for the next token, once prompt and forced tokens are computed.
    logits: Option<Tensor>,
}

impl Run {
    fn new(
        trunk: &Trunk,
        ticket: Ticket,
        request: Request,
        prompt: Vec<u32>,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            ticket,
            text: TextStream::new(&request.stop)?,
            cache: trunk.new_cache(prompt.len() + request.max_tokens as usize)?,
            usage: Usage { prompt_tokens: prompt.len() as u32, ..Usage::default() },
            request,
            timings: Timings::default(),
            begun: Instant::now(),
            cancelled: false,
            prompt: prompt.into(),
            forced: 0,
            logits: None,
        })
    }

    /// Computes the next part of the prompt, the next forced token, or the next token.
    fn advance(&mut self, engine: &Engine, out: &mut dyn FnMut(Event)) -> Result<(), EngineError> {
        if self.cancelled {
            out(self.done(Finish::Cancelled));
            return Ok(());
        }
        if !self.prompt.is_empty() {
            let part: Vec<u32> =
                self.prompt.drain(..self.prompt.len().min(PREFILL_CHUNK_TOKENS)).collect();
            self.logits = Some(self.forward(engine, &part, Product::Expanded)?);
            out(self.progress());
        } else if let Some(&id) = self.request.forced.get(self.forced) {
            self.forced += 1;
            self.usage.completion_tokens += 1;
            // What earlier attempts showed is dropped; what they held back is still held back.
            if let Some(finish) = self.accept(engine, id).1 {
                out(self.done(finish));
                return Ok(());
            }
            self.logits = Some(self.forward(engine, &[id], Product::Quantised)?);
            out(self.progress());
        } else if let Some(logits) = self.logits.take() {
            let index = self.usage.completion_tokens;
            if index as usize == self.request.forced.len() {
                self.timings.prefill_us = micros(self.begun);
                self.begun = Instant::now();
            }
            let row = logits.flatten_all()?.to_vec1::<f32>()?;
            let id = self.request.sampling.choose(&row, index)?;
            self.usage.completion_tokens += 1;
            let (text, finish) = self.accept(engine, id);
            out(Event::Token(Token { index, id, text }));
            match finish {
                Some(finish) => out(self.done(finish)),
                None => self.logits = Some(self.forward(engine, &[id], Product::Quantised)?),
            }
        }
        Ok(())
    }

    fn done(&mut self, finish: Finish) -> Event {
        match self.usage.completion_tokens as usize > self.request.forced.len() {
            true => self.timings.decode_us = micros(self.begun),
            false => self.timings.prefill_us = micros(self.begun),
        }
        Event::Done(Completion { finish, usage: self.usage, timings: self.timings })
    }

    fn forward(
        &mut self,
        engine: &Engine,
        tokens: &[u32],
        product: Product,
    ) -> Result<Tensor, EngineError> {
        Ok(engine.trunk.forward(tokens, &mut self.cache, Rows::Last, product)?)
    }

    fn progress(&self) -> Event {
        Event::Prefilled {
            done_tokens: self.cache.len() as u32,
            total_tokens: self.usage.prompt_tokens + self.request.forced.len() as u32,
        }
    }

    /// Takes the next token of the answer: the text that it sets free, and whether it is the last.
    /// The text of a last token includes everything that was held back.
    fn accept(&mut self, engine: &Engine, id: u32) -> (String, Option<Finish>) {
        if engine.tokenizer.is_end(id) {
            return (self.text.finish(), Some(Finish::Stop));
        }
        match self.text.push(&engine.tokenizer.bytes(id)) {
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
