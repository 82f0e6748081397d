//! A model's weights, packed for the kernels once at load.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use candle_core::quantized::GgmlDType;

use super::isa::Isa;
use super::math::Activation;
use super::norm::Norm;
use super::pack::layout::TILE_ROWS;
use super::pack::mapped::MappedRows;
use super::pack::{Arena, InputKind, Order, PackError, PackedMatrix, Packing, RawMatrix};
use super::team::Team;
use crate::error::EngineError;
use crate::files::checkpoint::{self, Checkpoint};
use crate::spec::names::{Part, Slot};
use crate::spec::{self, Head, ModelSpec, NormKind, QkNorm};

/// `y = W x + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weights: PackedMatrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// Whether it reads quantised activations.
    pub(crate) fn quantised(&self) -> bool {
        self.weights.input() == InputKind::Quantised
    }
}

/// One layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Option<Norm>,
    /// Queries, keys and values side by side.
    pub(crate) query_key_value: Linear,
    pub(crate) query_norm: Option<Norm>,
    pub(crate) key_norm: Option<Norm>,
    pub(crate) attention_output: Linear,
    pub(crate) attention_out_norm: Option<Norm>,
    pub(crate) mlp_norm: Option<Norm>,
    /// Gate and up, alternating, or up alone.
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) mlp_out_norm: Option<Norm>,
    pub(crate) activation: Activation,
}

/// What turns token ids into the residual stream.
#[derive(Debug)]
pub(crate) struct Embedding {
    /// None where the output projection is the table.
    table: Option<PackedMatrix>,
    /// (positions, width), and the row of position 0.
    positions: Option<(Vec<f32>, usize)>,
    /// The row of type 0.
    token_type: Option<Vec<f32>>,
    norm: Option<Norm>,
    scale: f32,
}

/// First half of a masked-LM head.
#[derive(Debug)]
pub(crate) struct HeadDense {
    pub(crate) dense: Linear,
    pub(crate) norm: Norm,
}

/// All weights of one model.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Embedding,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Option<Norm>,
    pub(crate) head_dense: Option<HeadDense>,
    /// To logits; None where the model ends in hidden states.
    pub(crate) output: Option<Linear>,
}

impl Weights {
    /// Reads and packs everything, with all members of the team.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or of a type without kernel, when the checkpoint has a tensor that the
    /// model does not use, or when memory is refused.
    pub(crate) fn load(checkpoint: &Checkpoint, team: &mut Team) -> Result<Self, EngineError> {
        let spec = checkpoint.spec();
        let arena = Arena::for_model();
        let mut loader = Loader { checkpoint, spec, team, arena, unreleased: Vec::new() };
        let output = match spec.output.head {
            Head::None => None,
            Head::Lm | Head::MaskedLm => {
                Some(loader.linear(&[Slot::model(Part::Output)], Order::Concatenated)?)
            }
        };
        let tied = spec.output.tied && output.is_some();
        let embedding = loader.embedding(tied)?;
        let layers = (0..spec.layers.len()).map(|index| loader.layer(index));
        let layers = layers.collect::<Result<_, _>>()?;
        let placement = spec.placement;
        let output_norm = loader.norm(placement.before_output(), Slot::model(Part::OutputNorm))?;
        let head_dense = match spec.output.head {
            Head::MaskedLm => {
                let norm = loader.norm(true, Slot::model(Part::HeadNorm))?;
                let dense = loader.linear(&[Slot::model(Part::HeadDense)], Order::Concatenated)?;
                norm.map(|norm| HeadDense { dense, norm })
            }
            Head::Lm | Head::None => None,
        };
        checkpoint.finish()?;
        loader.release();
        loader.arena.filled();
        Ok(Self { embedding, layers, output_norm, head_dense, output })
    }

    /// Values of a row of gate and up before the activation function, as they are packed.
    pub(crate) fn raw_width(&self) -> usize {
        self.layers.first().map_or(0, |layer| match layer.up.weights.order() {
            Order::Gated => layer.up.weights.tiles() * TILE_ROWS,
            Order::Concatenated => layer.up.weights.rows(),
        })
    }

    /// Writes the embedding of a token at a position.
    ///
    /// # Panics
    /// When token or position do not exist, or `out` has not the model's width.
    pub(crate) fn embed(&self, isa: Isa, token: u32, position: usize, out: &mut [f32]) {
        let embedding = &self.embedding;
        let output = self.output.as_ref().map(|output| &output.weights);
        if let Some(table) = embedding.table.as_ref().or(output) {
            table.row_into(token as usize, out);
        }
        if embedding.scale != 1.0 {
            out.iter_mut().for_each(|x| *x *= embedding.scale);
        }
        let mut add = |row: &[f32]| out.iter_mut().zip(row).for_each(|(x, row)| *x += row);
        if let Some(row) = &embedding.token_type {
            add(row);
        }
        if let Some((rows, offset)) = &embedding.positions {
            let width = self.width();
            add(&rows[(position + offset) * width..][..width]);
        }
        if let Some(norm) = &embedding.norm {
            norm.apply_in_place(isa, out);
        }
    }

    fn width(&self) -> usize {
        match (&self.embedding.table, &self.output) {
            (Some(table), _) => table.columns(),
            (None, Some(output)) => output.weights.columns(),
            (None, None) => 0,
        }
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    spec: &'a ModelSpec,
    team: &'a mut Team,
    arena: Arena,
    /// What was packed since memory of the files was last given back.
    unreleased: Vec<&'a [u8]>,
}

/// Bytes of the source that one job packs: some hundred system pages to be asked for at once, and few enough that both the
/// source and what becomes of it stay in a core's second-level cache.
const JOB_BYTES: usize = 256 << 10;

/// Bytes of weights used in place that are asked for at a time.
const FETCH_BYTES: usize = 4 << 20;

/// Bytes of the files that may stay in memory beside what was packed of them. Giving memory back makes all members
/// forget their address translations, so it is not done for every matrix; and a loaded model needs as much anyway
/// as soon as it works.
const UNRELEASED_BYTES_MAX: usize = 16 << 20;

impl<'a> Loader<'a> {
    fn embedding(&mut self, tied: bool) -> Result<Embedding, EngineError> {
        let embedding = self.spec.embedding;
        let table = match tied {
            true => None,
            false => Some(self.pack(&[Slot::model(Part::TokenEmbedding)], Order::Concatenated)?),
        };
        let positions = match embedding.positions {
            None => None,
            Some(positions) => Some((self.table(Part::PositionEmbedding)?, positions.offset)),
        };
        let token_type = match embedding.token_types {
            None => None,
            Some(_) => {
                let mut row = self.table(Part::TypeEmbedding)?;
                row.truncate(self.spec.width);
                Some(row)
            }
        };
        let norm = self.norm(embedding.norm, Slot::model(Part::EmbeddingNorm))?;
        Ok(Embedding { table, positions, token_type, norm, scale: embedding.scale })
    }

    fn layer(&mut self, index: usize) -> Result<Layer, EngineError> {
        let slot = |part| Slot::layer(index, part);
        let (placement, qk) = (self.spec.placement, self.spec.qk_norm != QkNorm::None);
        let up = match self.spec.gated {
            true => self.linear(&[slot(Part::Gate), slot(Part::Up)], Order::Gated)?,
            false => self.linear(&[slot(Part::Up)], Order::Concatenated)?,
        };
        let query_key_value = [slot(Part::Query), slot(Part::Key), slot(Part::Value)];
        Ok(Layer {
            attention_norm: self.norm(placement.before_attention(), slot(Part::AttentionNorm))?,
            query_key_value: self.linear(&query_key_value, Order::Concatenated)?,
            query_norm: self.norm(qk, slot(Part::QueryNorm))?,
            key_norm: self.norm(qk, slot(Part::KeyNorm))?,
            attention_output: self.linear(&[slot(Part::AttentionOutput)], Order::Concatenated)?,
            attention_out_norm: self
                .norm(placement.after_blocks(), slot(Part::AttentionOutNorm))?,
            mlp_norm: self.norm(placement.before_mlp(), slot(Part::MlpNorm))?,
            up,
            down: self.linear(&[slot(Part::Down)], Order::Concatenated)?,
            mlp_out_norm: self.norm(placement.after_blocks(), slot(Part::MlpOutNorm))?,
            activation: activation(&self.spec.layers[index].activation),
        })
    }

    fn norm(&self, present: bool, slot: Slot) -> Result<Option<Norm>, EngineError> {
        if !present {
            return Ok(None);
        }
        let mut weight = self.checkpoint.vector(slot)?;
        let spec::Norm { kind, epsilon } = self.spec.norm;
        if kind == NormKind::RmsPlusOne {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        let bias = self.checkpoint.bias(slot)?;
        Ok(Some(Norm { centred: kind == NormKind::Layer, epsilon, weight, bias }))
    }

    fn linear(&mut self, slots: &[Slot], order: Order) -> Result<Linear, EngineError> {
        let weights = self.pack(slots, order)?;
        let biases = slots.iter().map(|slot| self.checkpoint.bias(*slot));
        let biases = biases.collect::<Result<Vec<_>, _>>()?;
        // A description has biases for all parts that are packed together, or for none.
        let biases: Option<Vec<Vec<f32>>> = biases.into_iter().collect();
        Ok(Linear { weights, bias: biases.map(|biases| biases.concat()) })
    }

    fn pack(&mut self, slots: &[Slot], order: Order) -> Result<PackedMatrix, EngineError> {
        let checkpoint = self.checkpoint;
        let raw = slots.iter().map(|slot| checkpoint.matrix(*slot));
        let raw = raw.collect::<Result<Vec<_>, _>>()?;
        if let Some(matrix) = self.in_place(&raw, order) {
            return Ok(matrix);
        }
        let parts: Vec<RawMatrix<'_>> = raw
            .iter()
            .map(|raw| RawMatrix {
                dtype: raw.dtype,
                rows: raw.rows,
                columns: raw.columns,
                bytes: &raw.bytes,
            })
            .collect();
        let packing = Packing::new(&parts, order, &mut self.arena);
        let mut packing = packing.map_err(|error| self.pack_error(slots, error))?;
        let bytes: usize = parts.iter().map(|part| part.bytes.len()).sum();
        // Some more jobs than members, because they are not equally long.
        let jobs = packing.jobs((bytes / JOB_BYTES).max(4 * self.team.members())).into_iter();
        let jobs: Vec<_> = jobs.map(|job| Mutex::new(Some(job))).collect();
        self.team.run(|member| {
            while let Some(index) = member.take(jobs.len()) {
                // Each index is taken once, so the lock is never contended nor poisoned.
                if let Some(job) = jobs[index].lock().ok().and_then(|mut job| job.take()) {
                    job.sources().for_each(|bytes| checkpoint.fetch(bytes));
                    job.run();
                }
            }
        });
        drop(jobs);
        let packed = packing.finish();
        self.unreleased.extend(raw.iter().filter_map(|raw| match raw.bytes {
            Cow::Borrowed(bytes) => Some(bytes),
            Cow::Owned(_) => None,
        }));
        if self.unreleased.iter().map(|bytes| bytes.len()).sum::<usize>() > UNRELEASED_BYTES_MAX {
            self.release();
        }
        Ok(packed)
    }

    /// Gives back the memory of the file's pages that have been read once and are not needed again.
    fn release(&mut self) {
        self.unreleased.drain(..).for_each(|bytes| self.checkpoint.release(bytes));
    }

    /// The matrix as the file has it, where that is as good as packed.
    fn in_place(
        &mut self,
        raw: &[checkpoint::RawMatrix<'a>],
        order: Order,
    ) -> Option<PackedMatrix> {
        let checkpoint = self.checkpoint;
        // Numbers in files are little-endian.
        if cfg!(target_endian = "big") || raw.iter().any(|raw| raw.dtype != GgmlDType::F32) {
            return None;
        }
        let mapped = raw.iter().map(|raw| {
            let (file, range) = checkpoint.locate(&raw.bytes)?;
            Some(MappedRows { file: Arc::clone(file), range, rows: raw.rows })
        });
        let mapped = mapped.collect::<Option<Vec<_>>>()?;
        let matrix = PackedMatrix::in_place(&mapped, raw.first()?.columns, order)?;
        let pieces: Vec<&[u8]> = raw.iter().flat_map(|raw| raw.bytes.chunks(FETCH_BYTES)).collect();
        self.team.run(|member| {
            while let Some(index) = member.take(pieces.len()) {
                checkpoint.fetch(pieces[index]);
            }
        });
        Some(matrix)
    }

    /// A small table of floats, widened.
    fn table(&self, part: Part) -> Result<Vec<f32>, EngineError> {
        let slot = Slot::model(part);
        let raw = self.checkpoint.matrix(slot)?;
        if let Some(values) = raw.to_f32() {
            return Ok(values);
        }
        let (rows, columns) = (raw.rows, raw.columns);
        let part = RawMatrix { dtype: raw.dtype, rows, columns, bytes: &raw.bytes };
        let packed = PackedMatrix::pack(&[part], Order::Concatenated)
            .map_err(|error| self.pack_error(&[slot], error))?;
        let mut values = vec![0.0; rows * columns];
        for (row, out) in values.chunks_exact_mut(columns).enumerate() {
            packed.row_into(row, out);
        }
        Ok(values)
    }

    fn pack_error(&self, slots: &[Slot], error: PackError) -> EngineError {
        match error {
            PackError::Memory { bytes, source } => EngineError::Io {
                path: self.checkpoint.path().to_owned(),
                source: std::io::Error::new(
                    source.kind(),
                    format!("no memory for {bytes} bytes of packed weights: {source}"),
                ),
            },
            error => {
                let place = slots.first().and_then(|slot| self.checkpoint.names().place(*slot));
                let name = place.map_or_else(|| format!("{slots:?}"), |place| place.name);
                EngineError::tensor(name, error.to_string())
            }
        }
    }
}

fn activation(activation: &spec::Activation) -> Activation {
    match *activation {
        spec::Activation::Silu => Activation::Silu,
        spec::Activation::GeluTanh => Activation::GeluTanh,
        spec::Activation::GeluErf => Activation::GeluErf,
        spec::Activation::Relu => Activation::Relu,
        spec::Activation::Xielu(spec::Xielu { alpha_p, alpha_n, beta, epsilon }) => {
            Activation::Xielu { alpha_p, alpha_n, beta, epsilon }
        }
    }
}
