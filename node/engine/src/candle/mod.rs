//! The decoder on plain candle operations: any [`Device`], and clear before fast.
//!
//! It is the oracle that the fused path is compared with, the way to GPUs, and what training starts from;
//! so norms, softmax, rotations and activations are composed of operations that have a backward pass, and
//! none of candle's fused ones (which silently have none) is used. Everything is computed in F32.
//!
//! Weights stay as the file stores them. On a CPU they are expanded for each product, which is exact and
//! takes the memory of one matrix, not of a second model; on a GPU candle's own quantised kernels are used,
//! which round activations to eight bits, because expanding there would cost the speed one has a GPU for.

mod adapters;
mod attention;
mod ops;
mod pages;
mod weights;

use std::ops::Range;

use candle_core::{Device, Tensor};

use self::adapters::{Adapters, Span};
use self::attention::Attended;
use self::ops::Angles;
use self::pages::Pages;
pub(crate) use self::pages::cache_bytes_per_token;
use self::weights::{Matrix, NormWeight};
use crate::adapter::Target;
use crate::decoder::{Batch, Decoder, Output, PAGE_TOKENS, Row};
use crate::error::EngineError;
use crate::files::checkpoint::Checkpoint;
use crate::spec::names::{Part, Slot};
use crate::spec::{Head, Kind, ModelSpec, Placement};

/// Rows of a causal model computed at once: enough to use the matrix kernels well, few enough to bound
/// activations.
const DECODER_ROWS_MAX: usize = 256;
/// An encoder computes a text at once: at least one of the longest known ones (8,192 tokens) where the model
/// takes it, and several short ones together.
const ENCODER_ROWS: std::ops::RangeInclusive<usize> = 1_024..=8_192;
/// Elements of the widest activation of a batch: 256 MiB, whatever widths a file claims.
const ACTIVATION_MAX: usize = 1 << 26;

/// A model on one device, with the memory of its pages.
pub(crate) struct CandleDecoder {
    spec: ModelSpec,
    device: Device,
    embedding: Embedding,
    layers: Vec<Layer>,
    output_norm: Option<NormWeight>,
    head: Option<MaskedHead>,
    /// None when the model ends in hidden states.
    output: Option<Matrix>,
    pages: Pages,
    adapters: Adapters,
}

struct Embedding {
    tokens: Matrix,
    positions: Option<Matrix>,
    /// The row of type 0, which all tokens have.
    kind: Option<Tensor>,
    norm: Option<NormWeight>,
}

struct Layer {
    attention_norm: Option<NormWeight>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    query_norm: Option<NormWeight>,
    key_norm: Option<NormWeight>,
    attention_output: Matrix,
    attention_out_norm: Option<NormWeight>,
    mlp_norm: Option<NormWeight>,
    gate: Option<Matrix>,
    up: Matrix,
    down: Matrix,
    mlp_out_norm: Option<NormWeight>,
}

/// What a masked-LM head has before the output projection.
struct MaskedHead {
    dense: Matrix,
    norm: NormWeight,
}

/// What the rows of one batch share in every layer.
struct Step<'a> {
    spans: Vec<Span<'a>>,
    /// One per rotation of the model.
    angles: Vec<Angles>,
}

impl CandleDecoder {
    /// Copies the weights to `device` and makes room for `pages` pages.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen, or there is one that the description does not explain.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        device: &Device,
        pages: usize,
    ) -> Result<Self, EngineError> {
        let spec = checkpoint.spec().clone();
        let loader = Loader { checkpoint, device };
        let embedding = Embedding::load(&loader, &spec)?;
        let layers = (0..spec.layers.len())
            .map(|index| Layer::load(&loader, &spec, index))
            .collect::<Result<_, _>>()?;
        let output_norm =
            loader.norm_if(spec.placement.before_output(), Slot::model(Part::OutputNorm))?;
        let head = match spec.output.head {
            Head::MaskedLm => Some(MaskedHead {
                dense: loader.matrix(Slot::model(Part::HeadDense))?,
                norm: loader.norm(Slot::model(Part::HeadNorm))?,
            }),
            Head::Lm | Head::None => None,
        };
        let output = match spec.output.head {
            Head::None => None,
            Head::Lm | Head::MaskedLm => Some(match spec.output.tied {
                true => embedding.tokens.sharing(loader.bias(Slot::model(Part::Output))?),
                false => loader.matrix(Slot::model(Part::Output))?,
            }),
        };
        checkpoint.finish()?;
        let pages = Pages::new(&spec, pages, device)?;
        let (device, adapters) = (device.clone(), Adapters::default());
        Ok(Self { spec, device, embedding, layers, output_norm, head, output, pages, adapters })
    }

    /// Everything that must hold of a batch before anything is written.
    fn check(&self, batch: &Batch<'_>, output: Output) -> Result<(), EngineError> {
        let wrong = |problem: &str| Err(EngineError::InvalidRequest(problem.to_owned()));
        if batch.rows.is_empty() || batch.rows.len() > self.rows_max() {
            return wrong("a batch has no rows, or more than the decoder takes");
        }
        if output == Output::Logits && self.output.is_none() {
            return wrong("the model has no head: it gives hidden states only");
        }
        let mut seen = vec![false; batch.sequences.len()];
        let mut before: Option<&Row> = None;
        for row in batch.rows {
            let Some(sequence) = batch.sequences.get(row.sequence) else {
                return wrong("a row belongs to no sequence of the batch");
            };
            let follows = before.filter(|before| before.sequence == row.sequence);
            match (follows, seen.get_mut(row.sequence)) {
                (Some(before), _) if before.position + 1 != row.position => {
                    return wrong("positions of a sequence do not increase by one");
                }
                (None, Some(true)) => return wrong("rows of a sequence stand apart"),
                (None, _) if self.spec.kind == Kind::Encoder && row.position != 0 => {
                    return wrong("an encoder computes a sequence at once");
                }
                (_, Some(seen)) => *seen = true,
                (_, None) => {}
            }
            if row.token as usize >= self.spec.vocab {
                return wrong("a token is not in the vocabulary");
            }
            if row.position >= self.spec.context {
                return wrong("a position is beyond the model's context");
            }
            let page = sequence.pages.get(row.position / PAGE_TOKENS);
            if page.is_none_or(|&page| page as usize >= self.pages.count()) {
                return wrong("a position has no page");
            }
            if let Some(adapter) = sequence.adapter
                && !adapter.fits(&self.spec)
            {
                return wrong("the adapter was made for another model");
            }
            before = Some(row);
        }
        Ok(())
    }

    fn embed(&self, rows: &[Row]) -> candle_core::Result<Tensor> {
        let ids: Vec<u32> = rows.iter().map(|row| row.token).collect();
        let hidden = self.embedding.tokens.rows(&ids, &self.device)?;
        let mut hidden = (hidden * f64::from(self.spec.embedding.scale))?;
        if let (Some(table), Some(positions)) =
            (&self.embedding.positions, self.spec.embedding.positions)
        {
            // `check` keeps positions below the context, which the table covers with its offset.
            let ids: Vec<u32> =
                rows.iter().map(|row| (row.position + positions.offset) as u32).collect();
            hidden = (hidden + table.rows(&ids, &self.device)?)?;
        }
        if let Some(kind) = &self.embedding.kind {
            hidden = hidden.broadcast_add(kind)?;
        }
        self.norm(&self.embedding.norm, hidden)
    }

    /// # Shapes
    /// `hidden`: (rows, width). Returns the same shape.
    fn layer(&self, index: usize, hidden: &Tensor, step: &Step<'_>) -> candle_core::Result<Tensor> {
        let layer = &self.layers[index];
        let read = self.norm(&layer.attention_norm, hidden.clone())?;
        let attended = self.attend(index, &read, step)?;
        if self.spec.placement == Placement::Parallel {
            return (hidden + attended)? + self.mlp(index, &read, step)?;
        }
        let after_sum = self.spec.placement == Placement::AfterSum;
        let add = |hidden: &Tensor, change: Tensor, norm: &Option<NormWeight>| match after_sum {
            true => self.norm(norm, (hidden + change)?),
            false => hidden + self.norm(norm, change)?,
        };
        let hidden = add(hidden, attended, &layer.attention_out_norm)?;
        let read = self.norm(&layer.mlp_norm, hidden.clone())?;
        add(&hidden, self.mlp(index, &read, step)?, &layer.mlp_out_norm)
    }

    fn attend(&self, index: usize, read: &Tensor, step: &Step<'_>) -> candle_core::Result<Tensor> {
        let (layer, spec) = (&self.layers[index], &self.spec);
        let rows = read.dim(0)?;
        let linear = |matrix: &Matrix, target| self.linear(matrix, index, target, read, step);
        let query = linear(&layer.query, Target::Query)?;
        let key = linear(&layer.key, Target::Key)?;
        let value = linear(&layer.value, Target::Value)?;
        let query = self.heads(query, (rows, spec.heads), &layer.query_norm, index, step)?;
        let key = self.heads(key, (rows, spec.kv_heads), &layer.key_norm, index, step)?;
        let value = value.reshape((rows, spec.kv_heads, spec.head_dim))?;
        for span in &step.spans {
            self.pages.write(index, span, &key, &value)?;
        }
        let attended = Attended { spec, layer: index, pages: &self.pages };
        let parts = step
            .spans
            .iter()
            .map(|span| attended.span(span, &query.narrow(0, span.rows.start, span.rows.len())?))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let attended = Tensor::cat(&parts, 0)?;
        self.linear(&layer.attention_output, index, Target::AttentionOutput, &attended, step)
    }

    /// Splits rows into heads, normalises where the model does, and rotates.
    fn heads(
        &self,
        input: Tensor,
        (rows, heads): (usize, usize),
        norm: &Option<NormWeight>,
        layer: usize,
        step: &Step<'_>,
    ) -> candle_core::Result<Tensor> {
        let shape = (rows, heads, self.spec.head_dim);
        // A norm over a vector acts on the last dimension, which is the head only once split.
        let split = match self.spec.qk_norm {
            crate::spec::QkNorm::Whole => self.norm(norm, input)?.reshape(shape)?,
            _ => self.norm(norm, input.reshape(shape)?)?,
        };
        match self.spec.layers[layer].rope.and_then(|rope| step.angles.get(rope)) {
            Some(angles) => angles.rotate(&split),
            None => Ok(split),
        }
    }

    fn mlp(&self, index: usize, read: &Tensor, step: &Step<'_>) -> candle_core::Result<Tensor> {
        let layer = &self.layers[index];
        let activation = self.spec.layers[index].activation;
        let up = self.linear(&layer.up, index, Target::Up, read, step)?;
        let inner = match &layer.gate {
            Some(gate) => {
                let gate = self.linear(gate, index, Target::Gate, read, step)?;
                (ops::activate(activation, &gate)? * up)?
            }
            None => ops::activate(activation, &up)?,
        };
        self.linear(&layer.down, index, Target::Down, &inner, step)
    }

    /// A product with a matrix and, for rows of sequences that have one, their adapter.
    fn linear(
        &self,
        matrix: &Matrix,
        layer: usize,
        target: Target,
        input: &Tensor,
        step: &Step<'_>,
    ) -> candle_core::Result<Tensor> {
        self.adapters.apply(matrix.apply(input)?, input, layer, target, &step.spans)
    }

    fn norm(&self, norm: &Option<NormWeight>, input: Tensor) -> candle_core::Result<Tensor> {
        match norm {
            Some(norm) => norm.apply(self.spec.norm, &input),
            None => Ok(input),
        }
    }

    /// # Shapes
    /// `hidden`: (wanted, width), normalised. Returns (wanted, vocab).
    fn logits(&self, hidden: Tensor) -> candle_core::Result<Tensor> {
        let hidden = match &self.head {
            Some(head) => {
                let dense = head.dense.apply(&hidden)?.gelu_erf()?;
                head.norm.apply(self.spec.norm, &dense)?
            }
            None => hidden,
        };
        let Some(output) = &self.output else { candle_core::bail!("the model has no head") };
        let logits = output.apply(&hidden)?;
        match self.spec.output.soft_cap {
            Some(cap) => ops::soft_cap(&logits, cap),
            None => Ok(logits),
        }
    }
}

impl Decoder for CandleDecoder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn rows_max(&self) -> usize {
        rows_max(&self.spec)
    }

    fn pages(&self) -> usize {
        self.pages.count()
    }

    /// Matrix kernels are chosen by the number of rows.
    fn batch_invariant(&self) -> bool {
        false
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        output: Output,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.check(batch, output)?;
        out.clear();
        let spans = spans(batch);
        self.adapters.prepare(&spans, &self.device)?;
        let angles = self
            .spec
            .ropes
            .iter()
            .map(|rope| Angles::new(rope, batch.rows, &self.device))
            .collect::<candle_core::Result<_>>()?;
        let step = Step { spans, angles };
        let mut hidden = self.embed(batch.rows)?;
        for index in 0..self.layers.len() {
            hidden = self.layer(index, &hidden, &step)?;
        }
        let wanted: Vec<u32> = (0u32..)
            .zip(batch.rows)
            .filter_map(|(index, row)| row.wanted.then_some(index))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let hidden = hidden.index_select(&Tensor::new(wanted, &self.device)?, 0)?;
        let hidden = self.norm(&self.output_norm, hidden)?;
        let result = match output {
            Output::Hidden => hidden,
            Output::Logits => self.logits(hidden)?,
        };
        out.extend(result.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}

/// Most rows in one batch, at least one.
pub(crate) fn rows_max(spec: &ModelSpec) -> usize {
    let rows = match spec.kind {
        Kind::Decoder => DECODER_ROWS_MAX,
        Kind::Encoder => spec.context.clamp(*ENCODER_ROWS.start(), *ENCODER_ROWS.end()),
    };
    // All rows may be wanted, so logits count.
    let widest = spec.vocab.max(spec.mlp_width).max(spec.query_width()).max(spec.width);
    rows.min(ACTIVATION_MAX / widest.max(1)).max(1)
}

/// Runs of rows that belong together.
fn spans<'a>(batch: &Batch<'a>) -> Vec<Span<'a>> {
    let mut spans: Vec<Span<'a>> = Vec::new();
    for (index, row) in batch.rows.iter().enumerate() {
        match spans.last_mut() {
            Some(span) if span.sequence == row.sequence => span.rows.end = index + 1,
            _ => spans.push(Span {
                sequence: row.sequence,
                view: batch.sequences[row.sequence],
                rows: Range { start: index, end: index + 1 },
                position: row.position,
            }),
        }
    }
    spans
}

impl Embedding {
    fn load(loader: &Loader<'_>, spec: &ModelSpec) -> Result<Self, EngineError> {
        let slot = Slot::model;
        let positions = match spec.embedding.positions {
            Some(_) => Some(loader.matrix(slot(Part::PositionEmbedding))?),
            None => None,
        };
        let kind = match spec.embedding.token_types {
            Some(_) => Some(loader.matrix(slot(Part::TypeEmbedding))?.rows(&[0], loader.device)?),
            None => None,
        };
        Ok(Self {
            tokens: loader.matrix(slot(Part::TokenEmbedding))?,
            positions,
            kind,
            norm: loader.norm_if(spec.embedding.norm, slot(Part::EmbeddingNorm))?,
        })
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, spec: &ModelSpec, index: usize) -> Result<Self, EngineError> {
        let parts = spec.layer_parts();
        let matrix = |part| loader.matrix(Slot::layer(index, part));
        let norm = |part| loader.norm_if(parts.contains(&part), Slot::layer(index, part));
        Ok(Self {
            attention_norm: norm(Part::AttentionNorm)?,
            query: matrix(Part::Query)?,
            key: matrix(Part::Key)?,
            value: matrix(Part::Value)?,
            query_norm: norm(Part::QueryNorm)?,
            key_norm: norm(Part::KeyNorm)?,
            attention_output: matrix(Part::AttentionOutput)?,
            attention_out_norm: norm(Part::AttentionOutNorm)?,
            mlp_norm: norm(Part::MlpNorm)?,
            gate: if spec.gated { Some(matrix(Part::Gate)?) } else { None },
            up: matrix(Part::Up)?,
            down: matrix(Part::Down)?,
            mlp_out_norm: norm(Part::MlpOutNorm)?,
        })
    }
}

/// Takes parts out of a checkpoint onto a device.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
}

impl Loader<'_> {
    fn matrix(&self, slot: Slot) -> Result<Matrix, EngineError> {
        let raw = self.checkpoint.matrix(slot)?;
        self.checkpoint.fetch(&raw.bytes);
        Ok(Matrix::new(raw, self.bias(slot)?, self.device)?)
    }

    fn bias(&self, slot: Slot) -> Result<Option<Tensor>, EngineError> {
        match self.checkpoint.bias(slot)? {
            Some(bias) => Ok(Some(Tensor::new(bias, self.device)?)),
            None => Ok(None),
        }
    }

    fn norm(&self, slot: Slot) -> Result<NormWeight, EngineError> {
        let weight = Tensor::new(self.checkpoint.vector(slot)?, self.device)?;
        Ok(NormWeight::new(self.checkpoint.spec().norm.kind, weight, self.bias(slot)?)?)
    }

    fn norm_if(&self, present: bool, slot: Slot) -> Result<Option<NormWeight>, EngineError> {
        if present { Ok(Some(self.norm(slot)?)) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests;
