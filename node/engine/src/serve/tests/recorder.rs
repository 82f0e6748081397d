//! A decoder whose page memory holds tokens, and whose outputs depend on the whole sequence as it is read
//! back through the page table: whoever mixes up a page, a position or a table gets other answers.

use std::sync::{Arc, Mutex};

use crate::adapter::Adapter;
use crate::decoder::{Batch, Decoder, Output, PAGE_TOKENS, Row};
use crate::error::EngineError;
use crate::files::gguf::Gguf;
use crate::gguf_writer::GgufWriter;
use crate::spec::{self, ModelSpec};

pub(super) const VOCAB: usize = 96;
/// Outputs after this token are not numbers.
pub(super) const POISON: u32 = 95;
/// The arithmetic fails on batches that hold this token.
pub(super) const BREAKING: u32 = 94;
/// Larger than any ordinary token.
pub(super) const ORDINARY: u32 = 94;

const NEVER_WRITTEN: u32 = u32::MAX;

/// What was computed, for tests to look at.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Rows of each batch: (token, position).
    pub(super) batches: Vec<Vec<(u32, usize)>>,
}

pub(super) struct Recorder {
    spec: ModelSpec,
    memory: Vec<u32>,
    rows_max: usize,
    pub(super) log: Arc<Mutex<Log>>,
}

impl Recorder {
    pub(super) fn new(pages: usize, rows_max: usize) -> Self {
        let memory = vec![NEVER_WRITTEN; pages * PAGE_TOKENS];
        Self { spec: spec(), memory, rows_max, log: Arc::default() }
    }

    fn slot(batch: &Batch<'_>, row: &Row, position: usize) -> usize {
        let page = batch.sequences[row.sequence].pages[position / PAGE_TOKENS];
        page as usize * PAGE_TOKENS + position % PAGE_TOKENS
    }

    /// Nobody writes what somebody else may read.
    fn check_sharing(batch: &Batch<'_>) {
        for row in batch.rows {
            let page = batch.sequences[row.sequence].pages[row.position / PAGE_TOKENS];
            for (other, view) in batch.sequences.iter().enumerate() {
                assert!(other == row.sequence || !view.pages.contains(&page), "{page} is shared");
            }
        }
    }
}

impl Decoder for Recorder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn rows_max(&self) -> usize {
        self.rows_max
    }

    fn pages(&self) -> usize {
        self.memory.len() / PAGE_TOKENS
    }

    fn batch_invariant(&self) -> bool {
        true
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        output: Output,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        assert_eq!(output, Output::Logits);
        assert!(!batch.rows.is_empty() && batch.rows.len() <= self.rows_max);
        for pair in batch.rows.windows(2) {
            let next = match pair[1].sequence == pair[0].sequence {
                true => pair[1].position == pair[0].position + 1,
                false => pair[1].sequence > pair[0].sequence,
            };
            assert!(next, "{pair:?}");
        }
        Self::check_sharing(batch);
        let rows = batch.rows.iter().map(|row| (row.token, row.position)).collect();
        self.log.lock().unwrap().batches.push(rows);
        if batch.rows.iter().any(|row| row.token == BREAKING) {
            // As a real one may: the pages of the batch are left in disorder.
            for row in batch.rows {
                self.memory[Self::slot(batch, row, row.position)] = NEVER_WRITTEN;
            }
            return Err(EngineError::Tokenizer("the arithmetic failed".to_owned()));
        }
        for row in batch.rows {
            self.memory[Self::slot(batch, row, row.position)] = row.token;
        }
        out.clear();
        for row in batch.rows.iter().filter(|row| row.wanted) {
            let tokens: Vec<u32> = (0..=row.position)
                .map(|position| self.memory[Self::slot(batch, row, position)])
                .collect();
            assert!(!tokens.contains(&NEVER_WRITTEN), "a position that was never written is read");
            out.extend(logits(&tokens, batch.sequences[row.sequence].adapter));
        }
        Ok(())
    }
}

/// The outputs after `tokens`: three times out of four one token follows from the last, so that texts
/// repeat themselves and guesses come true; otherwise from everything before.
pub(super) fn logits(tokens: &[u32], adapter: Option<&Arc<Adapter>>) -> Vec<f32> {
    let mut hash = if adapter.is_some() { 17 } else { 0 };
    for &token in tokens {
        hash = mix(hash ^ u64::from(token));
    }
    let last = tokens.last().copied().unwrap_or(0);
    if tokens.contains(&POISON) {
        return vec![f32::NAN; VOCAB];
    }
    let favourite = match hash % 4 {
        0 => (hash >> 8) % u64::from(ORDINARY),
        _ => 1 + u64::from(last * 7 + 3) % 11,
    };
    (0..VOCAB as u64)
        .map(|id| {
            let noise = (mix(hash.wrapping_add(id)) >> 40) as f32 / (1 << 22) as f32;
            let favour = if id == favourite { 6.0 } else { 0.0 };
            if id >= u64::from(ORDINARY) { -1_000.0 } else { noise + favour }
        })
        .collect()
}

pub(super) fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Some description with our vocabulary; nothing else of it matters here.
fn spec() -> ModelSpec {
    let tokens: Vec<String> = (0..VOCAB).map(|id| id.to_string()).collect();
    let bytes = GgufWriter::default()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 1 << 16)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 8)
        .u32("llama.attention.head_count", 1)
        .u32("llama.attention.head_count_kv", 1)
        .u32("llama.rope.dimension_count", 8)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .strings("tokenizer.ggml.tokens", &tokens)
        .tensor("token_embd.weight", &[VOCAB, 8], &[0.0; 8 * VOCAB])
        .to_bytes();
    spec::gguf::read(&Gguf::parse(&bytes).unwrap()).unwrap().0
}
