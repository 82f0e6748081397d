//! The seam between serving and arithmetic: what is computed in one step, and by whom.
//!
//! Serving owns sequences, page tables and the free list; a [`Decoder`] owns the memory of the pages and
//! the weights. Neither knows anything else of the other.

use std::sync::Arc;

use crate::adapter::Adapter;
use crate::error::EngineError;
use crate::spec::ModelSpec;

/// Tokens whose keys and values one page of the cache holds, in every layer.
pub(crate) const PAGE_TOKENS: usize = 16;

/// Names one page of a decoder's memory, from 0.
pub(crate) type PageId = u32;

/// One token to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Which of the batch's sequences it belongs to.
    pub(crate) sequence: usize,
    /// Its place in the sequence, from 0.
    pub(crate) position: usize,
    /// Its id in the vocabulary.
    pub(crate) token: u32,
    /// Whether the caller wants the outputs of this row.
    pub(crate) wanted: bool,
}

/// What a decoder must know of one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SequenceView<'a> {
    /// Page `p` holds positions `16 p .. 16 p + 16`; there are enough for every row of the batch. Pages
    /// may be shared with other sequences as long as nobody writes them.
    pub(crate) pages: &'a [PageId],
    /// The adapter that this sequence is computed with.
    pub(crate) adapter: Option<&'a Arc<Adapter>>,
}

/// The rows of one step.
///
/// Rows of one sequence stand together and their positions increase by one; what lies before the first
/// of them is in the pages already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) sequences: &'a [SequenceView<'a>],
    pub(crate) rows: &'a [Row],
}

/// What a caller wants of the rows marked `wanted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// One value per token of the vocabulary.
    Logits,
    /// The hidden state after the output norm, one value per unit of width: for embeddings.
    Hidden,
}

impl Output {
    /// Values per wanted row.
    pub(crate) fn width(self, spec: &ModelSpec) -> usize {
        match self {
            Self::Logits => spec.vocab,
            Self::Hidden => spec.width,
        }
    }
}

/// Weights, page memory, and the arithmetic over both.
pub(crate) trait Decoder: Send {
    /// What it computes.
    fn spec(&self) -> &ModelSpec;

    /// Most rows in one batch.
    fn rows_max(&self) -> usize;

    /// Pages that it has memory for.
    fn pages(&self) -> usize;

    /// Whether a row's result is the same bits whatever else is in the batch, however its sequence is
    /// cut into batches, and whoever computed the pages that it reads.
    fn batch_invariant(&self) -> bool;

    /// Writes the keys and values of all rows to their pages, computes them, and replaces `out` by the
    /// outputs of the wanted rows, in the order of the rows.
    ///
    /// # Shapes
    /// `out`: (wanted rows, [`Output::width`]).
    ///
    /// # Errors
    /// When the batch contradicts itself or the arithmetic layer fails; page memory of the batch's own
    /// rows is then undefined, all other pages are unharmed.
    fn forward(
        &mut self,
        batch: &Batch<'_>,
        output: Output,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError>;
}
