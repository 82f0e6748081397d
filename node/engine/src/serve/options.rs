//! How requests share the engine, and the bound that follows for those who wait.

/// How requests share the engine.
///
/// # The stall bound
/// A sequence that is being answered gets a token in every step, and no step in which one is has more than
/// [`ServeOptions::stall_rows_max`] rows: one for each other sequence, the drafts, and a bounded part of
/// the prompts that wait. The longest that a reader waits for the next token is therefore the time of one
/// such step, however long the prompts are. The exception is memory: when the page budget runs out, the
/// youngest sequences make room and are taken up again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// Requests worked on at once; further ones wait.
    pub sequences_max: usize,
    /// Requests that may wait; further ones are refused.
    pub waiting_max: usize,
    /// Rows (tokens computed) of one step, all sequences together.
    pub step_rows_max: usize,
    /// Of these, rows of prompts while some other sequence is being answered.
    pub prefill_rows_while_decoding: usize,
    /// Rows of one step spent on guesses ([`ServeOptions::draft_sequences_max`]); 0 switches guessing off.
    pub draft_rows_max: usize,
    /// Tokens are guessed ahead, from repetitions in prompt and answer, only while at most this many
    /// sequences are being answered and no prompt waits: a small step is bound by reading the weights,
    /// so a few more rows cost little. Guesses are verified and change no answer.
    pub draft_sequences_max: usize,
    /// Whether computed pages are kept for later requests that begin alike.
    pub prefix_cache: bool,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            sequences_max: 32,
            waiting_max: 1_024,
            step_rows_max: 512,
            prefill_rows_while_decoding: 128,
            draft_rows_max: 8,
            draft_sequences_max: 2,
            prefix_cache: true,
        }
    }
}

impl ServeOptions {
    /// Most rows of a step in which some sequence is being answered.
    pub fn stall_rows_max(&self) -> usize {
        let rows = self.sequences_max + self.draft_rows_max.max(self.prefill_rows_while_decoding);
        rows.min(self.step_rows_max)
    }

    /// The same, made possible for a decoder that takes `rows_max` rows at once: everything is at least
    /// one, and every sequence has a row in each step.
    pub(super) fn fitted(&self, rows_max: usize) -> Self {
        let step_rows_max = self.step_rows_max.min(rows_max).max(1);
        Self {
            sequences_max: self.sequences_max.clamp(1, step_rows_max),
            waiting_max: self.waiting_max.max(1),
            step_rows_max,
            prefill_rows_while_decoding: self.prefill_rows_while_decoding.max(1),
            ..*self
        }
    }
}
