//! What serving has done and is doing, as numbers for metrics.

/// A snapshot; counters count from the loading of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests being worked on.
    pub running: usize,
    /// Requests that wait for a place or for pages.
    pub waiting: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Pages that running requests use.
    pub pages_used: usize,
    /// Pages that nobody uses but that are kept for requests that begin alike.
    pub pages_cached: usize,
    /// Pages that hold nothing.
    pub pages_free: usize,
    /// Kept pages given up for something else.
    pub pages_evicted: u64,
    /// Steps computed.
    pub steps: u64,
    /// Rows (tokens) computed, wrong guesses included.
    pub rows: u64,
    /// Rows of the last step.
    pub step_rows: usize,
    /// Most rows of a step in which some sequence was being answered.
    pub stall_rows: usize,
    /// Tokens chosen.
    pub tokens: u64,
    /// Prompt tokens that had been computed for an earlier request.
    pub cached_tokens: u64,
    /// Times that a request gave up its pages and was computed again later.
    pub preemptions: u64,
    /// Tokens guessed ahead.
    pub drafted: u64,
    /// Of these, how many were right.
    pub accepted: u64,
    /// Requests that ended with an answer.
    pub finished: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
}
