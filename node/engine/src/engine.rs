//! Loads a model and answers requests with it, many at once.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::adapter::Adapter;
use crate::compute::Compute;
use crate::decoder::{Output, PAGE_TOKENS};
use crate::embed;
use crate::error::{EngineError, TemplateError};
use crate::files::checkpoint::Checkpoint;
use crate::info::{self, ModelInfo};
use crate::request::{Completion, Event, Finish, Input, Request, Ticket};
use crate::serve::{Job, ServeOptions, Server, Stats, Words};
use crate::spec::Kind;
use crate::spec::pooling::Pooling;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// What a caller decides about loading.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// How to compute.
    pub compute: Compute,
    /// Threads to compute with, by default as many as processors may be used. Candle
    /// ([`Compute::Candle`] and the like) counts its own once per process, from the environment variable
    /// [`crate::THREADS_ENV`], which whoever starts the process sets; then this only checks that it took.
    pub threads: Option<NonZeroUsize>,
    /// Longest sequence to serve, prompt and answer together; at most, and by default, the model's own.
    pub context_tokens: Option<u32>,
    /// Memory that weights, buffers and a full cache may take, in MiB. By default what the operating
    /// system says is available now, where it says so.
    pub memory_mib: Option<u64>,
    /// Tokens that the cache holds, over all requests and what is kept for later ones. By default four
    /// contexts, or as many as the memory allows, but one at least.
    pub cache_tokens: Option<u32>,
    /// Requests to work on at once; further ones wait. None leaves it to `serve`.
    pub slots: Option<NonZeroUsize>,
    /// How requests share the engine.
    pub serve: ServeOptions,
}

/// Texts embedded in one call. They are computed before anything else, so this bounds how long that takes.
const EMBED_TEXTS_MAX: usize = 1_024;

/// Contexts that the cache holds unless the caller says otherwise.
const CACHE_CONTEXTS_DEFAULT: u32 = 4;

/// A loaded model.
pub struct Engine {
    info: ModelInfo,
    context_tokens: u32,
    tokenizer: Tokenizer,
    /// A broken template only matters to chats, so its error waits for the first.
    template: Result<ChatTemplate, TemplateError>,
    server: Server,
    adapters: BTreeMap<[u8; 32], Arc<Adapter>>,
    /// How texts become vectors; None when the model says nothing about it.
    pooling: Option<Pooling>,
    /// Serving has no clock; this adds the times to what it reports.
    times: BTreeMap<Ticket, Times>,
}

/// When a request came, and when it had its first new token.
struct Times {
    begun: Instant,
    first: Option<Instant>,
}

impl Words for Tokenizer {
    fn is_end(&self, id: u32) -> bool {
        Tokenizer::is_end(self, id)
    }

    fn bytes(&self, id: u32) -> Vec<u8> {
        Tokenizer::bytes(self, id)
    }
}

impl Engine {
    /// Loads a GGUF file, or a folder with `config.json`, safetensors and `tokenizer.json`. The files are
    /// mapped while their weights are copied and not used afterwards.
    ///
    /// # Errors
    /// Everything that can be wrong with a model file, in words; [`EngineError::Memory`] with numbers
    /// before any weight is copied; [`EngineError::Threads`] when the thread count is not the wanted one.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, EngineError> {
        let checkpoint = Checkpoint::open(path)?;
        let mut info = ModelInfo::of(&checkpoint)?;
        info.cache_bytes_per_token = options.compute.cache_bytes_per_token(&checkpoint);
        let context_tokens =
            options.context_tokens.map_or(info.context_tokens, |cap| cap.min(info.context_tokens));
        let cache_tokens = plan_cache(&info, context_tokens, options)?;
        let (tokenizer, template) = match checkpoint.gguf() {
            Some(gguf) => {
                let template = gguf.string("tokenizer.chat_template")?.map(str::to_owned);
                (Tokenizer::from_gguf(&gguf)?, template)
            }
            None => Tokenizer::from_folder(path)?,
        };
        let template = match template {
            Some(source) => {
                ChatTemplate::compile(&source, tokenizer.bos_text(), tokenizer.eos_text())
            }
            None => Err(TemplateError::Missing),
        };
        let pages = (cache_tokens as usize).div_ceil(PAGE_TOKENS);
        let decoder = options.compute.load(&checkpoint, options.threads, pages)?;
        let mut serve = options.serve;
        if let Some(slots) = options.slots {
            serve.sequences_max = slots.get();
        }
        Ok(Self {
            info,
            context_tokens,
            tokenizer,
            template,
            server: Server::new(decoder, &serve),
            adapters: BTreeMap::new(),
            pooling: if path.is_dir() { Pooling::read(path)? } else { None },
            times: BTreeMap::new(),
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

    /// How requests share this engine: the options as they are in effect.
    pub fn serve_options(&self) -> &ServeOptions {
        self.server.options()
    }

    /// What serving has done and is doing.
    pub fn stats(&self) -> Stats {
        self.server.stats()
    }

    /// Loads an adapter in PEFT's format from its folder; requests then name it by `digest`, which must
    /// stand for its contents: cached pages are known by it too. One that is loaded already stays.
    ///
    /// # Errors
    /// When it is damaged, or was made for another model.
    pub fn load_adapter(&mut self, digest: [u8; 32], folder: &Path) -> Result<(), EngineError> {
        if !self.adapters.contains_key(&digest) {
            let adapter = Adapter::read(folder, self.server.decoder().spec())?;
            self.adapters.insert(digest, Arc::new(adapter));
        }
        Ok(())
    }

    /// The same from the contents of an adapter's two files: `adapter_config.json` and
    /// `adapter_model.safetensors`.
    ///
    /// # Errors
    /// As [`Engine::load_adapter`].
    pub fn load_adapter_files(
        &mut self,
        digest: [u8; 32],
        config: &[u8],
        tensors: &[u8],
    ) -> Result<(), EngineError> {
        if !self.adapters.contains_key(&digest) {
            let (path, spec) =
                (Path::new("adapter_model.safetensors"), self.server.decoder().spec());
            let adapter = Adapter::parse(config, tensors, path, spec)?;
            self.adapters.insert(digest, Arc::new(adapter));
        }
        Ok(())
    }

    /// Forgets an adapter; requests that were submitted keep it until they end.
    pub fn unload_adapter(&mut self, digest: &[u8; 32]) {
        self.adapters.remove(digest);
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
    /// Refusals (context limit, bounds, template, a full queue) come now, before any work.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, EngineError> {
        self.submit_prompt(request, None)
    }

    /// The same with the prompt's tokens given, whatever the request's input says: for rows that are
    /// tokens already.
    ///
    /// # Errors
    /// As [`Engine::submit`], and for tokens that are not in the vocabulary.
    pub(crate) fn submit_ids(
        &mut self,
        ids: Vec<u32>,
        request: Request,
    ) -> Result<Ticket, EngineError> {
        self.submit_prompt(request, Some(ids))
    }

    fn submit_prompt(
        &mut self,
        request: Request,
        ids: Option<Vec<u32>>,
    ) -> Result<Ticket, EngineError> {
        let begun = Instant::now();
        let prompt = self.check(&request, ids)?;
        let public_tokens = self.public_tokens(&request, &prompt)?;
        let adapter = match request.adapter {
            None => None,
            Some(digest) => match self.adapters.get(&digest) {
                Some(adapter) => Some((digest, Arc::clone(adapter))),
                None => {
                    let problem = "the adapter that it names is not loaded".to_owned();
                    return Err(EngineError::InvalidRequest(problem));
                }
            },
        };
        let job = Job { request, prompt, public_tokens, adapter };
        let ticket = self.server.submit(job, &self.tokenizer)?;
        self.times.insert(ticket, Times { begun, first: None });
        Ok(ticket)
    }

    /// Stops a request; [`Event::Done`] with [`Finish::Cancelled`] comes out of the next step, at whose
    /// beginning its memory is freed. Does nothing when the request has ended.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.server.cancel(ticket);
    }

    /// Computes one batch for all requests together and appends what happened. Returns whether there is
    /// more to do. How long a step may take for those who wait is told by [`ServeOptions`].
    ///
    /// # Errors
    /// Only what concerns the engine as a whole; the failure of one request is [`Event::Failed`].
    pub fn step(&mut self, out: &mut Vec<(Ticket, Event)>) -> Result<bool, EngineError> {
        let before = out.len();
        let more = self.server.step(&self.tokenizer, out);
        let now = Instant::now();
        for (ticket, event) in out.iter_mut().skip(before) {
            match event {
                Event::Token(_) => {
                    if let Some(times) = self.times.get_mut(ticket) {
                        times.first.get_or_insert(now);
                    }
                }
                Event::Done(completion) => {
                    if let Some(times) = self.times.remove(ticket) {
                        let first = times.first.unwrap_or(now);
                        completion.timings.prefill_us = micros(first - times.begun);
                        completion.timings.decode_us = micros(now - first);
                    }
                }
                Event::Failed(_) => {
                    self.times.remove(ticket);
                }
                Event::Prefilled { .. } | Event::Prompt(_) => {}
            }
        }
        Ok(more)
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
        // Tokens of the answer that the caller has seen when it cancels. A step may bring several.
        let mut seen = request.forced.len() as u32;
        let mut cancelled = false;
        loop {
            self.step(&mut events)?;
            for (_, event) in events.drain(..).filter(|(of, _)| *of == ticket) {
                match event {
                    Event::Done(mut completion) => {
                        if cancelled && completion.usage.completion_tokens > seen {
                            completion.finish = Finish::Cancelled;
                            completion.usage.completion_tokens = seen;
                        }
                        return Ok(completion);
                    }
                    Event::Failed(error) => return Err(error),
                    _ if cancelled => {}
                    event => {
                        if let Event::Token(token) = &event {
                            seen = token.index + 1;
                        }
                        if on_event(&event).is_break() {
                            cancelled = true;
                            self.server.cancel(ticket);
                        }
                    }
                }
            }
        }
    }

    /// Embeds texts. Nothing else may be running, because they take all pages; what the prefix cache
    /// held is given up.
    ///
    /// # Shapes
    /// Returns a vector of the model's width per text.
    ///
    /// # Errors
    /// When the model says nothing about pooling, there are more than 1,024 texts, one of them is empty
    /// or too long, or [`EngineError::Busy`] when requests are running.
    pub fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, EngineError> {
        let Some(pooling) = self.pooling else {
            let problem = "this model says nothing about embeddings (modules.json is missing)";
            return Err(EngineError::InvalidRequest(problem.to_owned()));
        };
        if texts.len() > EMBED_TEXTS_MAX {
            let problem = format!("{} texts, at most {EMBED_TEXTS_MAX}", texts.len());
            return Err(EngineError::InvalidRequest(problem));
        }
        let documents: Vec<Vec<u32>> = texts
            .iter()
            .map(|text| self.tokenizer.encode_document(text))
            .collect::<Result<_, _>>()?;
        embed::embed(self.server.whole_decoder()?, pooling, &documents)
    }

    /// Logits after each of `tokens`, computed `chunk` at a time as a prompt is: for comparing
    /// implementations.
    ///
    /// # Shapes
    /// Returns one row of vocabulary length per token.
    ///
    /// # Errors
    /// When `tokens` is empty, exceeds the context or what running requests leave of the cache, or
    /// contains an id outside the vocabulary.
    pub fn logits(
        &mut self,
        tokens: &[u32],
        chunk: NonZeroUsize,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        self.check_ids(tokens)?;
        if tokens.is_empty() || tokens.len() > self.context_tokens as usize {
            let problem = format!("{} tokens are not in 1..={}", tokens.len(), self.context_tokens);
            return Err(EngineError::InvalidRequest(problem));
        }
        let flat = self.server.outputs(tokens, chunk.get(), Output::Logits)?;
        let width = Output::Logits.width(self.server.decoder().spec());
        Ok(flat.chunks(width.max(1)).map(<[f32]>::to_vec).collect())
    }

    /// Everything about a request that can be refused without computing; returns its prompt.
    fn check(&self, request: &Request, ids: Option<Vec<u32>>) -> Result<Vec<u32>, EngineError> {
        let wrong = |problem: String| Err(EngineError::InvalidRequest(problem));
        if self.server.decoder().spec().kind == Kind::Encoder {
            return wrong("this model embeds texts and does not continue them".to_owned());
        }
        request.sampling.check(self.info.vocabulary_tokens as usize)?;
        if request.max_tokens == 0 {
            return wrong("max_tokens is 0".to_owned());
        }
        if request.forced.len() > request.max_tokens as usize {
            let (forced, most) = (request.forced.len(), request.max_tokens);
            return wrong(format!("{forced} forced tokens exceed max_tokens {most}"));
        }
        if let Some(top) = request.logprobs.filter(|top| *top > Request::LOGPROBS_MAX) {
            return wrong(format!("logprobs {top} is not in 0..={}", Request::LOGPROBS_MAX));
        }
        if request.weighed.len() > Request::WEIGHED_MAX {
            let (weighed, most) = (request.weighed.len(), Request::WEIGHED_MAX);
            return wrong(format!("{weighed} tokens to weigh exceed {most}"));
        }
        self.check_ids(&request.weighed)?;
        self.check_ids(&request.forced)?;
        let prompt = match ids {
            Some(ids) => {
                self.check_ids(&ids)?;
                ids
            }
            None => self.tokenise(&request.input, request.clock)?,
        };
        if prompt.is_empty() {
            return wrong("the prompt is empty".to_owned());
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

    /// Leading tokens of the prompt that the leading messages declared public account for: what their
    /// rendering by themselves has in common with that of the whole.
    fn public_tokens(&self, request: &Request, prompt: &[u32]) -> Result<usize, EngineError> {
        let public = request.public_messages as usize;
        let messages: &[_] = match &request.input {
            Input::Chat(messages) => messages,
            Input::Prompt(_) => &[],
        };
        let Some(leading) = messages.get(..public) else {
            return Err(EngineError::InvalidRequest(format!(
                "public_messages is {public}, but there are {} messages",
                messages.len()
            )));
        };
        let (Ok(template), 1..) = (&self.template, public) else { return Ok(0) };
        // A template may refuse half a conversation; then nothing of it is known to be public.
        let Ok(text) = template.render(leading, request.clock, false) else { return Ok(0) };
        let tokens = self.tokenizer.encode_prompt(&text)?;
        Ok(tokens.iter().zip(prompt).take_while(|(one, other)| one == other).count())
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

/// Tokens that the cache is to hold.
///
/// # Errors
/// [`EngineError::Memory`] when weights and that much cache exceed the budget.
fn plan_cache(
    info: &ModelInfo,
    context_tokens: u32,
    options: &LoadOptions,
) -> Result<u32, EngineError> {
    let budget_mib = options.memory_mib.or_else(info::available_mib);
    let need_tokens = options.cache_tokens.unwrap_or(context_tokens);
    let need_mib = info.memory_mib(need_tokens);
    let Some(budget_mib) = budget_mib else { return Ok(need_tokens) };
    if need_mib > budget_mib {
        let weights_mib = info.memory_mib(0);
        return Err(EngineError::Memory {
            need_mib,
            weights_mib,
            cache_mib: need_mib - weights_mib,
            context_tokens: need_tokens,
            budget_mib,
            context_fits: info.context_that_fits(budget_mib),
        });
    }
    if options.cache_tokens.is_some() {
        return Ok(need_tokens);
    }
    let room_bytes = budget_mib.saturating_mul(1 << 20).saturating_sub(info.weights_bytes);
    let fits = room_bytes / info.cache_bytes_per_token.max(1);
    let wanted = u64::from(context_tokens) * u64::from(CACHE_CONTEXTS_DEFAULT);
    Ok(u32::try_from(wanted.min(fits)).unwrap_or(u32::MAX).max(context_tokens))
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
