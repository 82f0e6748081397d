//! Which modules a recipe changes, and where the numbers of each lie in one flat vector.
//!
//! All parameters of an adapter are one vector, as are its gradient and both moments of the optimiser: what
//! acts on every number alike (optimiser, norm, clipping, noise, snapshot) need not know what it means.
//! Rows of `B` are in the engine's order; the reference's order is made on the way in and out.

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::TrainError;
use super::random;
use super::recipe::Recipe;
use crate::adapter;
use crate::spec::names::{self, Layout, Names, Part, Shape, Slot};
use crate::spec::{Kind, ModelSpec, Pairing};

/// The parameters of a whole adapter.
#[derive(Clone, Debug)]
pub(crate) struct Lora {
    pub(crate) rank: usize,
    /// `alpha / rank`
    pub(crate) scale: f32,
    pub(crate) modules: Vec<Module>,
    /// One map per layer.
    layers: Vec<BTreeMap<Part, Changed>>,
    len: usize,
}

/// One changed module of the reference implementation: `y += scale * B (A x)`.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    /// As inside the model with its head, for instance `model.layers.3.self_attn.q_proj`.
    pub(crate) name: String,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// The base stores this module's weight transposed (`Conv1D`).
    pub(crate) transposed: bool,
    /// `A`: (rank, inputs), row-major.
    pub(crate) a: Range<usize>,
    /// `B`: (outputs, rank), row-major.
    pub(crate) b: Range<usize>,
    /// For each row of `B`, its row in the reference's order.
    pub(crate) rows: Vec<usize>,
}

/// How one matrix is changed: by a module, or by some of its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Number of the module, for instance for its dropout mask.
    pub(crate) module: u32,
    pub(crate) a: Range<usize>,
    /// The rows of `B` that belong to this matrix.
    pub(crate) b: Range<usize>,
}

impl Lora {
    /// Finds the modules that the recipe names.
    ///
    /// # Errors
    /// When a target names none, or the model cannot be trained.
    pub(crate) fn new(spec: &ModelSpec, recipe: &Recipe) -> Result<Self, TrainError> {
        recipe.check()?;
        let (names, pairing) = reference(spec)?;
        let rank = recipe.rank as usize;
        let mut lora = Self {
            rank,
            scale: (recipe.alpha / f64::from(recipe.rank)) as f32,
            modules: Vec::new(),
            layers: vec![BTreeMap::new(); spec.layers.len()],
            len: 0,
        };
        let mut found = vec![false; recipe.targets.len()];
        for layer in 0..spec.layers.len() {
            for part in spec.layer_parts() {
                let Shape::Matrix { columns, .. } = spec.shape(part) else { continue };
                let Some(place) = names.place(Slot::layer(layer, part)) else { continue };
                let module = |target: &String| {
                    let head = place.name.strip_suffix(target.as_str());
                    head.is_some_and(|head| head.is_empty() || head.ends_with('.'))
                };
                let mut wanted = false;
                for (found, target) in found.iter_mut().zip(&recipe.targets) {
                    let hit = module(target);
                    *found |= hit;
                    wanted |= hit;
                }
                // A fused module comes by with each of its parts.
                if wanted && place.parts.first() == Some(&part) {
                    let fused = Fused { layer, name: place.name, layout: place.layout };
                    lora.push(spec, pairing, fused, place.parts, columns);
                }
            }
        }
        match found.iter().position(|&found| !found) {
            None => Ok(lora),
            Some(at) => Err(TrainError::Target {
                name: recipe.targets[at].chars().take(64).collect(),
                family: spec.family.to_owned(),
                known: known(spec, &names).join(", "),
            }),
        }
    }

    fn push(
        &mut self,
        spec: &ModelSpec,
        pairing: Pairing,
        fused: Fused,
        parts: &'static [Part],
        inputs: usize,
    ) {
        let Fused { layer, name, layout } = fused;
        let module = self.modules.len() as u32;
        let a = self.len..self.len + self.rank * inputs;
        let mut rows = Vec::new();
        for &part in parts {
            let start = a.end + rows.len() * self.rank;
            rows.extend(adapter::reference_rows(spec, pairing, layout, parts, part));
            let b = start..a.end + rows.len() * self.rank;
            self.layers[layer].insert(part, Changed { module, a: a.clone(), b });
        }
        let b = a.end..a.end + rows.len() * self.rank;
        self.len = b.end;
        let transposed = layout == Layout::Columns;
        let outputs = rows.len();
        self.modules.push(Module { name, inputs, outputs, transposed, a, b, rows });
    }

    /// How many numbers there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How a matrix is changed, if it is.
    pub(crate) fn changed(&self, layer: usize, part: Part) -> Option<&Changed> {
        self.layers.get(layer)?.get(&part)
    }

    /// The lowest layer that is changed: nothing below it needs a gradient.
    pub(crate) fn first_layer(&self) -> usize {
        self.layers.iter().position(|layer| !layer.is_empty()).unwrap_or(self.layers.len())
    }

    /// Parameters to begin with: `A` uniform in ±1/sqrt(inputs), as PEFT's Kaiming initialisation has it, and
    /// `B` zero, so that the model begins unchanged.
    pub(crate) fn initial(&self, seed: u64) -> Vec<f32> {
        let mut parameters = vec![0.0; self.len];
        for (number, module) in (0u32..).zip(&self.modules) {
            let limit = 1.0 / (module.inputs as f32).sqrt();
            let values = random::uniform(seed, number, limit);
            for (to, value) in parameters[module.a.clone()].iter_mut().zip(values) {
                *to = value;
            }
        }
        parameters
    }
}

/// A module on its way in.
struct Fused {
    layer: usize,
    name: String,
    layout: Layout,
}

/// The reference's names of a model that can be trained.
fn reference(spec: &ModelSpec) -> Result<(Names, Pairing), TrainError> {
    let refuse = |reason| TrainError::Unsupported { family: spec.family.to_owned(), reason };
    match names::reference(spec.family) {
        _ if spec.kind == Kind::Encoder => {
            Err(refuse("it is an encoder; fine-tunes learn to continue a text"))
        }
        None => Err(refuse("this build does not know the names of its modules")),
        Some(reference) => Ok(reference),
    }
}

/// Last names of all modules that could be changed.
fn known(spec: &ModelSpec, names: &Names) -> Vec<String> {
    let matrix = |part: &Part| matches!(spec.shape(*part), Shape::Matrix { .. });
    let mut known: Vec<String> = Vec::new();
    for part in spec.layer_parts().into_iter().filter(matrix) {
        let place = names.place(Slot::layer(0, part));
        let name = place.and_then(|place| Some(place.name.rsplit_once('.')?.1.to_owned()));
        known.extend(name.filter(|name| !known.contains(name)));
    }
    known
}
