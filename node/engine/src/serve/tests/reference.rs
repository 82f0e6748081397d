//! What a request must be answered, computed the plain way: one at a time, everything from the beginning
//! for every token, no pages.

use super::super::{Job, Words};
use super::recorder::logits;
use crate::request::{Finish, Likelihood, Logprobs, PromptToken, Token};
use crate::sampling::{History, Logits};
use crate::text::{Released, TextStream};

/// Token 0 ends an answer; others are letters, or halves of one.
pub(super) struct Letters;

impl Words for Letters {
    fn is_end(&self, id: u32) -> bool {
        id == 0
    }

    fn bytes(&self, id: u32) -> Vec<u8> {
        match id {
            0 => Vec::new(),
            90 => vec![0xc3],
            91 => vec![0xa9],
            id => vec![b'a' + (id % 26) as u8],
        }
    }
}

/// Everything that can be told of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) tokens: Vec<Token>,
    pub(super) prompt: Vec<PromptToken>,
    pub(super) finish: Option<Finish>,
}

pub(super) fn answer(job: &Job) -> Answer {
    let (request, adapter) = (&job.request, job.adapter.as_ref().map(|(_, adapter)| adapter));
    let mut sequence = job.prompt.clone();
    let mut history = History::new(&request.sampling, &job.prompt);
    let mut text = TextStream::new(&request.stop).unwrap();
    let mut answer = Answer { prompt: echo(job), ..Answer::default() };
    for index in 0..request.max_tokens {
        let mut values = logits(&sequence, adapter);
        let forced = request.forced.get(index as usize);
        let id = match forced {
            Some(&id) => id,
            None => Logits::new(&mut values.clone(), index).unwrap().choose(
                &request.sampling,
                &history,
                index,
            ),
        };
        history.push(id);
        sequence.push(id);
        let mut finish = None;
        let shown = if id == 0 {
            finish = Some(Finish::Stop);
            text.finish()
        } else {
            match text.push(&Letters.bytes(id)) {
                Released::Stopped(shown) => {
                    finish = Some(Finish::StopString);
                    shown
                }
                Released::Text(shown) if index + 1 == request.max_tokens => {
                    finish = Some(Finish::Length);
                    shown + &text.finish()
                }
                Released::Text(shown) => shown,
            }
        };
        if forced.is_none() {
            let logprobs = request.logprobs.map(|top| log_probs(&mut values, id, top));
            answer.tokens.push(Token { index, id, text: shown, logprobs });
        }
        if finish.is_some() {
            answer.finish = finish;
            break;
        }
    }
    answer
}

fn echo(job: &Job) -> Vec<PromptToken> {
    if !job.request.echo {
        return Vec::new();
    }
    let mut text = TextStream::new(&[]).unwrap();
    let adapter = job.adapter.as_ref().map(|(_, adapter)| adapter);
    let mut tokens = Vec::new();
    for (index, &id) in job.prompt.iter().enumerate().skip(job.request.echo_from as usize) {
        let Released::Text(mut shown) = text.push(&Letters.bytes(id)) else { unreachable!() };
        if index + 1 == job.prompt.len() {
            shown.push_str(&text.finish());
        }
        let logprobs = job
            .request
            .logprobs
            .filter(|_| index > 0)
            .map(|top| log_probs(&mut logits(&job.prompt[..index], adapter), id, top));
        tokens.push(PromptToken { index: index as u32, id, text: shown, logprobs });
    }
    tokens
}

fn log_probs(values: &mut [f32], id: u32, top: u32) -> Logprobs {
    let (own, top) = Logits::new(values, 0).unwrap().log_probs(id, top as usize);
    let likelihood =
        |(id, micro)| Likelihood { id, bytes: Letters.bytes(id), logprob_micro: micro };
    let top = top.into_iter().map(likelihood).collect();
    Logprobs { chosen: likelihood(own), top, weighed_micro: Vec::new() }
}
