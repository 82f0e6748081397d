//! The decoder: computes logits for whatever a [`ModelSpec`] describes, with plain candle operations.
//!
//! One sequence at a time. Logits depend on the tokens, on where the calls to [`Trunk::forward`] cut them
//! and on the kind of [`Product`], never on thread count or on earlier sequences.

use candle_core::{Device, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};

use crate::cache::Cache;
use crate::error::EngineError;
use crate::files::gguf::Gguf;
use crate::rope::{Angles, Rotation};
use crate::spec::ModelSpec;
use crate::weights::{Loader, Matrix, Product};

/// Tokens of prompt computed at once: enough rows to use the matrix kernels well, few enough that
/// cancellation is noticed within a fraction of a second.
pub(crate) const PREFILL_CHUNK_TOKENS: usize = 128;

/// Which rows of logits a caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// The last token's only: all that sampling needs.
    Last,
    /// Every token's.
    All,
}

/// A model's weights, in the order in which they are used.
pub(crate) struct Trunk {
    spec: ModelSpec,
    device: Device,
    embedding: Matrix,
    layers: Vec<Layer>,
    output_norm: Tensor,
    /// None when the embedding is also the output projection.
    output: Option<Matrix>,
    rotation: Rotation,
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    mlp_norm: Tensor,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// A matrix with an optional bias.
struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    fn load(
        loader: &mut Loader<'_>,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, EngineError> {
        let weight = loader.matrix(&format!("{name}.weight"), outputs, inputs)?;
        let bias = format!("{name}.bias");
        let bias = if loader.contains(&bias) { Some(loader.vector(&bias, outputs)?) } else { None };
        Ok(Self { weight, bias })
    }

    fn apply(&self, input: &Tensor, product: Product) -> candle_core::Result<Tensor> {
        let output = self.weight.apply(input, product)?;
        match &self.bias {
            Some(bias) => output.broadcast_add(bias),
            None => Ok(output),
        }
    }
}

impl Trunk {
    /// Copies the weights out of the file.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen, or there is one that the description does not explain.
    pub(crate) fn load(gguf: &Gguf<'_>, spec: ModelSpec) -> Result<Self, EngineError> {
        let device = Device::Cpu;
        let mut loader = Loader::new(gguf, &device);
        let embedding = loader.matrix("token_embd.weight", spec.vocab, spec.width)?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for index in 0..spec.layers.len() {
            layers.push(Layer::load(&mut loader, index, &spec)?);
        }
        let output_norm = loader.vector("output_norm.weight", spec.width)?;
        let output = match spec.output.tied {
            true => None,
            false => Some(loader.matrix("output.weight", spec.vocab, spec.width)?),
        };
        let Some(rope) = spec.ropes.first() else {
            return Err(EngineError::metadata(spec.family, "rotates nothing"));
        };
        let name = "rope_freqs.weight";
        let rope = match gguf.tensors.contains_key(name) {
            true => {
                let divisors = loader.vector(name, rope.frequencies.len())?;
                rope.clone().divided_by(&divisors.to_vec1::<f32>()?)?
            }
            false => rope.clone(),
        };
        let rotation = Rotation::new(rope);
        loader.finish()?;
        Ok(Self { spec, device, embedding, layers, output_norm, output, rotation })
    }

    pub(crate) fn new_cache(&self, capacity: usize) -> candle_core::Result<Cache> {
        Cache::new(&self.spec, capacity, &self.device)
    }

    /// Computes `tokens` after those in `cache`, which grows by them.
    ///
    /// # Shapes
    /// Returns (rows, vocab): one row for [`Rows::Last`], one per token for [`Rows::All`].
    ///
    /// # Errors
    /// When a token id is outside the vocabulary or the cache has no room.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        cache: &mut Cache,
        rows: Rows,
        product: Product,
    ) -> candle_core::Result<Tensor> {
        let mut hidden = self.embedding.rows(tokens, &self.device)?;
        let angles = self.rotation.angles(cache.len(), tokens.len(), &self.device)?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&self.spec, index, &hidden, &angles, cache, product)?;
        }
        cache.advance(tokens.len());
        if rows == Rows::Last {
            hidden = hidden.narrow(0, tokens.len().saturating_sub(1), 1)?;
        }
        let hidden = norm(&self.spec, &hidden.contiguous()?, &self.output_norm)?;
        self.output.as_ref().unwrap_or(&self.embedding).apply(&hidden, product)
    }
}

impl Layer {
    fn load(loader: &mut Loader<'_>, index: usize, spec: &ModelSpec) -> Result<Self, EngineError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (width, mlp) = (spec.width, spec.mlp_width);
        let (query, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        Ok(Self {
            attention_norm: loader.vector(&name("attn_norm.weight"), width)?,
            query: Linear::load(loader, &name("attn_q"), query, width)?,
            key: Linear::load(loader, &name("attn_k"), kv, width)?,
            value: Linear::load(loader, &name("attn_v"), kv, width)?,
            attention_output: Linear::load(loader, &name("attn_output"), width, query)?,
            mlp_norm: loader.vector(&name("ffn_norm.weight"), width)?,
            gate: loader.matrix(&name("ffn_gate.weight"), mlp, width)?,
            up: loader.matrix(&name("ffn_up.weight"), mlp, width)?,
            down: loader.matrix(&name("ffn_down.weight"), width, mlp)?,
        })
    }

    /// # Shapes
    /// `hidden`: (tokens, width). Returns the same shape.
    fn forward(
        &self,
        spec: &ModelSpec,
        index: usize,
        hidden: &Tensor,
        angles: &Angles,
        cache: &Cache,
        product: Product,
    ) -> candle_core::Result<Tensor> {
        let normed = norm(spec, hidden, &self.attention_norm)?;
        let hidden = (hidden + self.attend(spec, index, &normed, angles, cache, product)?)?;
        let normed = norm(spec, &hidden, &self.mlp_norm)?;
        &hidden + self.mlp(&normed, product)?
    }

    /// Causal attention over the cache and the new tokens.
    fn attend(
        &self,
        spec: &ModelSpec,
        index: usize,
        normed: &Tensor,
        angles: &Angles,
        cache: &Cache,
        product: Product,
    ) -> candle_core::Result<Tensor> {
        let tokens = normed.dim(0)?;
        let query =
            self.query.apply(normed, product)?.reshape((tokens, spec.heads, spec.head_dim))?;
        let kv_shape = (tokens, spec.kv_heads, spec.head_dim);
        let key = self.key.apply(normed, product)?.reshape(kv_shape)?;
        let value = self.value.apply(normed, product)?.reshape(kv_shape)?;
        let query = angles.rotate(&query)?;
        let (keys, values) = cache.extend(index, &angles.rotate(&key)?, &value)?;
        let attended = flash_attn::<f32>(
            &query.unsqueeze(0)?,
            &keys.unsqueeze(0)?,
            &values.unsqueeze(0)?,
            1.0 / (spec.head_dim as f32).sqrt(),
            AttnMask::causal_with_offset(cache.len()),
            None,
            None,
        )?;
        // (1, heads, tokens, head_dim) back to one row per token.
        let attended = attended.squeeze(0)?.transpose(0, 1)?.contiguous()?;
        let attended = attended.reshape((tokens, spec.heads * spec.head_dim))?;
        self.attention_output.apply(&attended, product)
    }

    fn mlp(&self, normed: &Tensor, product: Product) -> candle_core::Result<Tensor> {
        let gated = self.gate.apply(normed, product)?.silu()?;
        self.down.apply(&(gated * self.up.apply(normed, product)?)?, product)
    }
}

fn norm(spec: &ModelSpec, input: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    candle_nn::ops::rms_norm(input, weight, spec.norm.epsilon)
}
