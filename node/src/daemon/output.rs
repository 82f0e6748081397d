//! A job's output at home: tokens as they come, kept sealed at rest, read by any number of
//! watchers without losing or repeating one.

use std::sync::{Arc, Mutex, PoisonError};

use allmend_protocol::ids::NodeId;
use allmend_scheduler::io::Phase;
use tokio::sync::watch;

use crate::client::proto::JobEvent;
use crate::spool::{OutputFile, OutputToken};

/// One job's output and phase, shared between its stream and its watchers.
#[derive(Debug)]
pub(crate) struct JobOutput {
    /// Whether it consists of reports from training, each with the tokens trained on since the last.
    training: bool,
    state: Mutex<State>,
    /// Counts changes; watchers wait on it.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    tokens: Vec<OutputToken>,
    file: Option<OutputFile>,
    phases: Vec<JobEvent>,
    over: Option<JobEvent>,
}

/// The most phase changes that a late watcher is told of: two per attempt and some.
const PHASES_MAX: usize = 256;

/// What became of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    New,
    Known,
    Gap,
}

/// How far a watcher has read.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    tokens: usize,
    phases: usize,
}

impl JobOutput {
    /// Output that begins with what is at rest already.
    pub(crate) fn new(tokens: Vec<OutputToken>, file: Option<OutputFile>) -> Arc<JobOutput> {
        JobOutput::of(false, tokens, file)
    }

    /// As [`JobOutput::new`], for reports from training when `training`.
    pub(crate) fn of(
        training: bool,
        tokens: Vec<OutputToken>,
        file: Option<OutputFile>,
    ) -> Arc<JobOutput> {
        Arc::new(JobOutput {
            training,
            state: Mutex::new(State { tokens, file, ..State::default() }),
            changes: watch::Sender::new(0),
        })
    }

    /// Takes the token with that index. Says false when one before it is missing; a token that is
    /// there already is no news and no fault.
    pub(crate) fn push(&self, index: u32, token: OutputToken) -> bool {
        let taken = self.with(|state| {
            let index = index as usize;
            if index != state.tokens.len() {
                return if index < state.tokens.len() { Taken::Known } else { Taken::Gap };
            }
            if let Some(file) = &mut state.file
                && let Err(error) = file.append(&token)
            {
                // The tokens stay in memory; a restart would have them sent again.
                tracing::warn!(%error, "output not kept on disk");
                state.file = None;
            }
            state.tokens.push(token);
            Taken::New
        });
        if taken == Taken::New {
            self.changed();
        }
        taken != Taken::Gap
    }

    /// Ids of all tokens so far.
    pub(crate) fn token_ids(&self) -> Vec<u32> {
        self.with(|state| state.tokens.iter().map(|token| token.id).collect())
    }

    /// How many tokens `attempt` has written or trained on.
    pub(crate) fn written_by(&self, attempt: u16) -> u32 {
        self.with(|state| {
            let written = state.tokens.iter().filter(|token| token.attempt == attempt);
            written.fold(0, |sum: u32, token| {
                sum.saturating_add(if self.training { token.id } else { 1 })
            })
        })
    }

    /// What each report from training says, in order.
    pub(crate) fn reports(&self) -> Vec<String> {
        self.with(|state| state.tokens.iter().map(|token| token.text.clone()).collect())
    }

    /// How many tokens there are before the first of `attempt` or a later one.
    pub(crate) fn base(&self, attempt: u16) -> u32 {
        self.with(|state| {
            let base = state.tokens.iter().position(|token| token.attempt >= attempt);
            u32::try_from(base.unwrap_or(state.tokens.len())).unwrap_or(u32::MAX)
        })
    }

    /// The answer so far.
    pub(crate) fn text(&self) -> String {
        self.with(|state| state.tokens.iter().map(|token| token.text.as_str()).collect())
    }

    /// Tells watchers where the job is.
    pub(crate) fn set_phase(&self, phase: Phase, why: String, attempt: u16, node: Option<NodeId>) {
        let event = JobEvent::Phase { phase, why, attempt, node };
        let news = self.with(|state| {
            if state.over.is_some() || state.phases.len() >= PHASES_MAX {
                return false;
            }
            if let (
                Some(JobEvent::Phase { phase, why, attempt, .. }),
                JobEvent::Phase { phase: p, why: w, attempt: a, .. },
            ) = (state.phases.last(), &event)
                && (phase, why, attempt) == (p, w, a)
            {
                return false;
            }
            state.phases.push(event);
            true
        });
        if news {
            self.changed();
        }
    }

    /// Tells watchers that nothing follows, and closes the file.
    pub(crate) fn set_over(&self, phase: Phase, why: String, verdicts: Vec<(String, String)>) {
        self.with(|state| {
            state.file = None;
            state.over.get_or_insert(JobEvent::Over { phase, why, verdicts });
        });
        self.changed();
    }

    /// A cursor at that token.
    pub(crate) fn cursor(from: u32) -> Cursor {
        Cursor { tokens: from as usize, phases: 0 }
    }

    /// Waits for news behind `cursor` and takes them; empty when the job was over already.
    pub(crate) async fn news(&self, cursor: &mut Cursor) -> (Vec<JobEvent>, bool) {
        let mut changes = self.changes.subscribe();
        loop {
            let (events, over) = self.take(cursor);
            if over || !events.is_empty() {
                return (events, over);
            }
            if changes.changed().await.is_err() {
                return (Vec::new(), true);
            }
        }
    }

    fn take(&self, cursor: &mut Cursor) -> (Vec<JobEvent>, bool) {
        self.with(|state| {
            let mut events: Vec<JobEvent> =
                state.phases.get(cursor.phases..).unwrap_or_default().to_vec();
            cursor.phases = state.phases.len();
            let from = cursor.tokens.min(state.tokens.len());
            for (offset, token) in state.tokens[from..].iter().enumerate() {
                let (attempt, index) =
                    (token.attempt, u32::try_from(from + offset).unwrap_or(u32::MAX));
                let (id, text) = (token.id, token.text.clone());
                events.push(if self.training {
                    JobEvent::Progress { attempt, index, tokens: id, report: text }
                } else {
                    JobEvent::Token { attempt, index, id, text }
                });
            }
            cursor.tokens = cursor.tokens.max(state.tokens.len());
            if let Some(over) = &state.over {
                events.push(over.clone());
            }
            (events, state.over.is_some())
        })
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32) -> OutputToken {
        OutputToken { attempt: 1, id, text: format!("{id} ") }
    }

    #[tokio::test]
    async fn a_watcher_sees_every_token_once() {
        let output = JobOutput::new(vec![token(0)], None);
        let mut cursor = JobOutput::cursor(0);
        assert!(output.push(1, token(1)));
        assert!(output.push(1, token(1)), "a repeat is harmless");
        assert!(!output.push(3, token(3)), "a gap is not");
        let (events, over) = output.news(&mut cursor).await;
        assert_eq!((events.len(), over), (2, false));
        output.set_over(Phase::Finished, String::new(), Vec::new());
        let (events, over) = output.news(&mut cursor).await;
        assert_eq!((events.len(), over), (1, true));
        assert_eq!(output.text(), "0 1 ");
    }
}
