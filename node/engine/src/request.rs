//! What is asked of the engine and what it answers.

use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::sampling::Sampling;
use crate::template::ChatMessage;

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// A conversation, rendered with the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Text as it stands; special tokens in it are recognised.
    Prompt(String),
}

/// One thing to generate. Equal requests give equal answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What to continue.
    pub input: Input,
    /// Most tokens to generate, forced ones included; at least 1. Together with the prompt they must
    /// fit the context.
    pub max_tokens: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts at which to stop; neither they nor anything after them is reported. At most 16 of at most
    /// 256 bytes.
    pub stop: Vec<String>,
    /// Tokens of this very answer that an earlier attempt has already reported, in order.
    pub forced: Vec<u32>,
    /// The time that templates see, in seconds since the Unix epoch, UTC.
    pub clock: i64,
    /// Whose request this is: computed prompts may be used again for later requests of the same
    /// researcher. None shares with nobody.
    pub researcher: Option<[u8; 32]>,
    /// Leading messages of a chat that are declared public: what was computed for them may be used for
    /// other researchers' requests too.
    /// Raw prompts have none.
    pub public_messages: u32,
    /// The adapter to compute with, by the digest under which it was loaded; None is the plain model.
    pub adapter: Option<[u8; 32]>,
    /// Report how likely each token was, and this many of the most likely alternatives, at most
    /// [`Request::LOGPROBS_MAX`].
    pub logprobs: Option<u32>,
    /// With `logprobs`, report also how likely these tokens were in place of each chosen one, at most
    /// [`Request::WEIGHED_MAX`].
    #[serde(default)]
    pub weighed: Vec<u32>,
    /// Report the prompt's tokens too ([`Event::Prompt`]); with `logprobs`, also how likely they were,
    /// for which they are computed anew.
    pub echo: bool,
    /// The first prompt token to report; those before it may come from the prefix cache.
    pub echo_from: u32,
}

impl Request {
    /// Most alternatives to report per token.
    pub const LOGPROBS_MAX: u32 = 20;
    /// Most tokens to weigh.
    pub const WEIGHED_MAX: usize = 4_096;

    /// A greedy request that shares with nobody and asks for nothing special; change what is to differ.
    pub fn new(input: Input, max_tokens: u32) -> Self {
        Self {
            input,
            max_tokens,
            sampling: Sampling::GREEDY,
            stop: Vec::new(),
            forced: Vec::new(),
            clock: 0,
            researcher: None,
            public_messages: 0,
            adapter: None,
            logprobs: None,
            weighed: Vec::new(),
            echo: false,
            echo_from: 0,
        }
    }
}

/// Names a request from [`crate::Engine::submit`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

/// Something that happened to a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Another part of prompt and forced tokens has been computed.
    Prefilled {
        /// Tokens computed so far.
        done_tokens: u32,
        /// Tokens to compute before the first new one.
        total_tokens: u32,
    },
    /// The next tokens of a prompt that is to be echoed.
    Prompt(Vec<PromptToken>),
    /// A token was chosen.
    Token(Token),
    /// The answer is complete; nothing follows.
    Done(Completion),
    /// The request could not be finished; nothing follows. Other requests go on.
    Failed(EngineError),
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Position in the answer, from 0; forced tokens count.
    pub index: u32,
    /// Id in the model's vocabulary.
    pub id: u32,
    /// Text that can now be shown: nothing, part of this token's text, or also text of earlier tokens
    /// that was held back. The texts of all tokens together are the answer.
    pub text: String,
    /// How likely it was, if that was asked for.
    pub logprobs: Option<Logprobs>,
}

/// A token of an echoed prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptToken {
    /// Position in the prompt, from 0. A request that is tried again reports from 0 again.
    pub index: u32,
    /// Id in the model's vocabulary.
    pub id: u32,
    /// Text as in [`Token`]; the texts of all tokens together are the prompt, without control tokens.
    pub text: String,
    /// How likely it was, if that was asked for; nothing is said of the first.
    pub logprobs: Option<Logprobs>,
}

/// How likely a token was, and what else was likely, by the model's own softmax: before temperature,
/// penalties and biases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logprobs {
    /// The token itself.
    pub chosen: Likelihood,
    /// The most likely ones in descending order; the token itself may be among them.
    pub top: Vec<Likelihood>,
    /// Those that the request wanted to be weighed, in its order; natural logarithms in millionths. Empty
    /// for a prompt's tokens.
    pub weighed_micro: Vec<i32>,
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Likelihood {
    /// Id in the model's vocabulary.
    pub id: u32,
    /// The bytes that it stands for: nothing for control tokens, possibly part of a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, in millionths; an integer, so that it travels in signed
    /// messages.
    pub logprob_micro: i32,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The model ended its turn; the token that says so is the last one and has no text of its own.
    Stop,
    /// A stop string appeared.
    StopString,
    /// `max_tokens` were generated.
    Length,
    /// The caller cancelled.
    Cancelled,
}

/// Tokens counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer, forced ones and the end token included.
    pub completion_tokens: u32,
    /// Prompt tokens that had been computed for an earlier request.
    pub cached_tokens: u32,
}

/// Where the time went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Template, tokenizer, prompt and forced tokens, until the first new token could be chosen.
    pub prefill_us: u64,
    /// Everything after.
    pub decode_us: u64,
}

/// How an answer ended and what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens counted.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
}
