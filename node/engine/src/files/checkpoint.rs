//! A model's weights by [`Slot`], whatever file they come from, as plain row-major matrices.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::quantized::GgmlDType;
use memmap2::Mmap;

use crate::error::EngineError;
use crate::files::gguf::{Gguf, dtype_name};
use crate::files::{map, safetensors};
use crate::spec::names::{Layout, Names, Part, Place, Shape, Slot};
use crate::spec::{Activation, Kind, ModelSpec, Xielu, config};

/// An index has about a hundred bytes per tensor.
const INDEX_BYTES_MAX: u64 = 16 << 20;
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The largest known models come in some two hundred.
const SHARDS_LEN_MAX: usize = 1_024;

/// Weights of one model, mapped, with the description that they were checked against.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    format: Format,
    spec: ModelSpec,
    names: Names,
    files: Vec<Arc<Mmap>>,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gguf,
    Folder,
}

/// Where one tensor lies, and whether anybody has asked for it.
#[derive(Debug)]
struct Stored {
    dtype: Result<GgmlDType, String>,
    shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
    taken: AtomicBool,
}

/// A matrix `W` of `y = W x`, or a table with a row per entry.
#[derive(Clone, Debug)]
pub(crate) struct RawMatrix<'a> {
    pub(crate) dtype: GgmlDType,
    /// Outputs.
    pub(crate) rows: usize,
    /// Inputs.
    pub(crate) columns: usize,
    /// Row after row. They start at any address: read elements through `from_le_bytes`.
    pub(crate) bytes: Cow<'a, [u8]>,
}

impl RawMatrix<'_> {
    /// All elements of a matrix of floats, row after row; None if it is quantised.
    pub(crate) fn to_f32(&self) -> Option<Vec<f32>> {
        floats(self.dtype, &self.bytes)
    }
}

impl Checkpoint {
    /// Opens a GGUF file, or a folder with `config.json` and `model.safetensors` (or its shards).
    ///
    /// # Errors
    /// Everything that can be wrong with the headers and the description. No weight is touched but a
    /// few scalars.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        if path.is_dir() { Self::open_folder(path) } else { Self::open_gguf(path) }
    }

    fn open_gguf(path: &Path) -> Result<Self, EngineError> {
        let map = map::map(path)?;
        let gguf = Gguf::parse(&map)?;
        let (spec, names) = crate::spec::gguf::read(&gguf)?;
        let stored = |info: &crate::files::gguf::TensorInfo| Stored {
            dtype: Ok(info.dtype),
            shape: info.shape.clone(),
            file: 0,
            range: info.range.clone(),
            taken: AtomicBool::new(false),
        };
        let tensors: BTreeMap<String, Stored> =
            gguf.tensors.iter().map(|(name, info)| ((*name).to_owned(), stored(info))).collect();
        let mut checkpoint = Self {
            path: path.to_owned(),
            format: Format::Gguf,
            spec,
            names,
            files: vec![Arc::new(map)],
            tensors,
        };
        checkpoint.divide_frequencies()?;
        Ok(checkpoint)
    }

    fn open_folder(path: &Path) -> Result<Self, EngineError> {
        let text = map::read_small(&path.join("config.json"), CONFIG_BYTES_MAX)?;
        let (spec, names) = config::read(&text)?;
        let single = path.join("model.safetensors");
        let shards = match single.exists() {
            true => vec![single],
            false => shards(path)?,
        };
        let (mut files, mut tensors) = (Vec::with_capacity(shards.len()), BTreeMap::new());
        for shard in shards {
            let map = map::map(&shard)?;
            let entries = safetensors::parse(&map)
                .map_err(|source| EngineError::Safetensors { path: shard.clone(), source })?;
            for (name, entry) in entries {
                let stored = Stored {
                    dtype: dtype_of(&entry.dtype).ok_or(entry.dtype),
                    shape: entry.shape,
                    file: files.len(),
                    range: entry.range,
                    taken: AtomicBool::new(false),
                };
                if tensors.insert(name.clone(), stored).is_some() {
                    return Err(EngineError::tensor(name, "is in two shards"));
                }
            }
            files.push(Arc::new(map));
        }
        let names = names.for_tensors(|name| tensors.contains_key(name));
        let mut checkpoint =
            Self { path: path.to_owned(), format: Format::Folder, spec, names, files, tensors };
        checkpoint.read_xielu()?;
        Ok(checkpoint)
    }

    /// What the weights are for.
    pub(crate) fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// How the family calls its modules.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// The file or folder it was opened from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The header of the GGUF file, for tokenizer and template; None for a folder.
    pub(crate) fn gguf(&self) -> Option<Gguf<'_>> {
        let bytes = self.files.first()?;
        // It was parsed when the checkpoint was opened, so it parses again.
        (self.format == Format::Gguf).then(|| Gguf::parse(bytes).ok()).flatten()
    }

    /// Whether any weights are stored in blocks of small integers.
    pub(crate) fn quantised(&self) -> bool {
        let mut types = self.tensors.values().filter_map(|stored| stored.dtype.as_ref().ok());
        types.any(|dtype| dtype.block_size() > 1)
    }

    /// Storage type, elements and bytes of every tensor, for planning memory.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.tensors.values().map(|stored| {
            let dtype = match &stored.dtype {
                Ok(dtype) => dtype_name(*dtype),
                Err(name) => name,
            };
            // Each tensor lies inside its file, so neither number can overflow.
            let elements = stored.shape.iter().map(|&dimension| dimension as u64).product();
            (dtype, elements, stored.range.len() as u64)
        })
    }

    /// The weight of a matrix part; the embedding's for a tied output.
    ///
    /// # Errors
    /// When it is missing, misshapen, or stored in a type that this build does not compute with.
    pub(crate) fn matrix(&self, slot: Slot) -> Result<RawMatrix<'_>, EngineError> {
        let slot = match slot.part {
            Part::Output if self.spec.output.tied => Slot::model(Part::TokenEmbedding),
            _ => slot,
        };
        let place = self.place(slot)?;
        let name = format!("{}.weight", place.name);
        let (mut columns, mut total) = (0, 0);
        let mut rows = 0..0;
        for &part in place.parts {
            let Shape::Matrix { rows: height, columns: length } = self.spec.shape(part) else {
                return Err(EngineError::tensor(name, "is not a matrix"));
            };
            if part == slot.part {
                rows = total..total + height;
            }
            (columns, total) = (length, total + height);
        }
        let shape = match place.layout {
            Layout::Columns => [columns, total],
            Layout::Rows | Layout::PerHead => [total, columns],
        };
        let (stored, bytes) = self.take(&name, &shape)?;
        let dtype = computable(&name, &stored.dtype)?;
        // Both readers have checked that rows are whole blocks, and sizes that they lie in the file.
        let block = dtype.block_size();
        if !columns.is_multiple_of(block) {
            let kind = dtype_name(dtype);
            return Err(EngineError::tensor(name, format!("{kind} rows of {columns} elements")));
        }
        let row_bytes = columns / block * dtype.type_size();
        if place.layout != Layout::Rows {
            self.fetch(bytes);
        }
        let bytes = match place.layout {
            Layout::Rows => slice(bytes, rows.start * row_bytes..rows.end * row_bytes),
            Layout::PerHead => self.gather_heads(bytes, row_bytes, rows.start / rows.len().max(1)),
            Layout::Columns if block == 1 => {
                turn(bytes, total, rows.clone(), columns, dtype.type_size())
            }
            Layout::Columns => {
                return Err(EngineError::tensor(name, "is quantised along its outputs"));
            }
        };
        Ok(RawMatrix { dtype, rows: rows.len(), columns, bytes })
    }

    /// The weight of a norm.
    ///
    /// # Errors
    /// When it is missing, misshapen, or not stored as floats.
    pub(crate) fn vector(&self, slot: Slot) -> Result<Vec<f32>, EngineError> {
        let place = self.place(slot)?;
        let name = self.either(&place.name, "weight", "gamma");
        match self.spec.shape(slot.part) {
            Shape::Vector(len) => self.floats(&name, &[len]),
            Shape::Matrix { .. } => Err(EngineError::tensor(name, "is not a vector")),
        }
    }

    /// The bias of a part, or None where the model has none.
    ///
    /// # Errors
    /// As [`Checkpoint::vector`].
    pub(crate) fn bias(&self, slot: Slot) -> Result<Option<Vec<f32>>, EngineError> {
        if !self.spec.biased(slot.part) {
            return Ok(None);
        }
        let place = self.place(slot)?;
        let name = self.either(&place.name, "bias", "beta");
        let len = |part| match self.spec.shape(part) {
            Shape::Matrix { rows, .. } => rows,
            Shape::Vector(len) => len,
        };
        let total = place.parts.iter().map(|&part| len(part)).sum();
        let all = self.floats(&name, &[total])?;
        let before = place.parts.iter().take_while(|part| **part != slot.part);
        let start: usize = before.map(|&part| len(part)).sum();
        let own = start..start + len(slot.part);
        let own = match place.layout {
            Layout::Rows | Layout::Columns => all.get(own).unwrap_or_default().to_vec(),
            Layout::PerHead => {
                let (dim, parts) = (self.spec.head_dim, place.parts.len());
                let at = start / len(slot.part).max(1);
                let heads = all.chunks_exact(dim).skip(at).step_by(parts);
                heads.flatten().copied().collect()
            }
        };
        Ok(Some(own))
    }

    /// Asks for bytes of a mapped file that are about to be read, all at once instead of a few pages at a time. Bytes
    /// from elsewhere, such as a matrix that had to be turned, are there already.
    pub(crate) fn fetch(&self, bytes: &[u8]) {
        if let Some((file, range)) = self.locate(bytes) {
            map::fetch(file, &range);
        }
    }

    /// The file that bytes are mapped from, and where it has them; None for bytes from elsewhere.
    pub(crate) fn locate(&self, bytes: &[u8]) -> Option<(&Arc<Mmap>, Range<usize>)> {
        let start = bytes.as_ptr().addr();
        let file = self.files.iter().find(|file| {
            let first = file.as_ptr().addr();
            first <= start && start - first < file.len()
        })?;
        let first = start - file.as_ptr().addr();
        Some((file, first..first + bytes.len()))
    }

    /// Gives back the memory of bytes of a mapped file of which there is a copy now.
    pub(crate) fn release(&self, bytes: &[u8]) {
        if let Some((file, range)) = self.locate(bytes) {
            map::release(file, &range);
        }
    }

    /// Refuses checkpoints with tensors that nobody asked for: computing without them would be computing
    /// another model.
    ///
    /// # Errors
    /// Names the first one.
    pub(crate) fn finish(&self) -> Result<(), EngineError> {
        let tied = self.spec.output.tied;
        let unexplained = self.tensors.iter().find(|(name, stored)| {
            // Some writers repeat a tied embedding.
            let repeated = tied && self.format == Format::Folder && *name == "lm_head.weight";
            !stored.taken.load(Ordering::Relaxed) && !repeated && !self.names.idle(name)
        });
        match unexplained {
            None => Ok(()),
            Some((name, _)) => Err(EngineError::tensor(
                name,
                "is not part of this architecture as this build knows it",
            )),
        }
    }

    fn place(&self, slot: Slot) -> Result<Place, EngineError> {
        self.names.place(slot).ok_or_else(|| {
            EngineError::tensor(format!("{:?}", slot.part), "has no name in this family")
        })
    }

    /// The name of a module's tensor; the first BERT checkpoints name norms as the paper does.
    fn either(&self, module: &str, usual: &str, old: &str) -> String {
        let old = format!("{module}.{old}");
        match self.tensors.contains_key(&old) && self.spec.kind == Kind::Encoder {
            true => old,
            false => format!("{module}.{usual}"),
        }
    }

    fn take(&self, name: &str, shape: &[usize]) -> Result<(&Stored, &[u8]), EngineError> {
        let stored =
            self.tensors.get(name).ok_or_else(|| EngineError::tensor(name, "is missing"))?;
        if stored.shape != shape {
            let problem = format!("has shape {:?}, expected {shape:?}", stored.shape);
            return Err(EngineError::tensor(name, problem));
        }
        stored.taken.store(true, Ordering::Relaxed);
        let Some(file) = self.files.get(stored.file) else { return Ok((stored, &[])) };
        Ok((stored, file.get(stored.range.clone()).unwrap_or_default()))
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        let (stored, bytes) = self.take(name, shape)?;
        let dtype = computable(name, &stored.dtype)?;
        floats(dtype, bytes).ok_or_else(|| {
            EngineError::tensor(name, format!("is stored as {}, not as floats", dtype_name(dtype)))
        })
    }

    /// Rows of part `at` of each head, which has as many rows of every part as a head is long.
    fn gather_heads(&self, bytes: &[u8], row_bytes: usize, at: usize) -> Cow<'static, [u8]> {
        let head = self.spec.head_dim * row_bytes;
        let heads = bytes.chunks_exact(head.max(1)).skip(at).step_by(3);
        Cow::Owned(heads.flatten().copied().collect())
    }

    /// Llama 3 scaling in GGUF is a tensor of divisors, of all layers or (the same) of each.
    fn divide_frequencies(&mut self) -> Result<(), EngineError> {
        let name = "rope_freqs.weight";
        let Some(stored) = self.tensors.get(name) else { return Ok(()) };
        let shape = stored.shape.clone();
        let divisors = self.floats(name, &shape)?;
        for rope in &mut self.spec.ropes {
            *rope = rope.clone().divided_by(&divisors)?;
        }
        match self.spec.ropes.is_empty() {
            true => Err(EngineError::tensor(name, "but nothing is rotated")),
            false => Ok(()),
        }
    }

    /// The scalars of xIELU are tensors of one element, per layer.
    fn read_xielu(&mut self) -> Result<(), EngineError> {
        let mut layers = std::mem::take(&mut self.spec.layers);
        for (index, layer) in layers.iter_mut().enumerate() {
            if !matches!(layer.activation, Activation::Xielu(_)) {
                continue;
            }
            let place = self.place(Slot::layer(index, Part::Up))?;
            let module = place.name.strip_suffix("up_proj").unwrap_or(&place.name);
            let scalar = |name: &str| -> Result<f32, EngineError> {
                let name = format!("{module}act_fn.{name}");
                let rank = self.tensors.get(&name).map_or(0, |stored| stored.shape.len().min(1));
                Ok(self.floats(&name, &[1][..rank])?.first().copied().unwrap_or_default())
            };
            let (alpha_p, alpha_n) = (scalar("alpha_p")?, scalar("alpha_n")?);
            let xielu = Xielu::from_stored(alpha_p, alpha_n, scalar("beta")?, scalar("eps")?);
            layer.activation = Activation::Xielu(xielu);
        }
        self.spec.layers = layers;
        Ok(())
    }
}

/// Files named by `model.safetensors.index.json`, each once, in order of their names.
fn shards(folder: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let file = "model.safetensors.index.json";
    let wrong = |problem: &str| EngineError::metadata(file, problem);
    let path = folder.join(file);
    if !path.exists() {
        let source = std::io::Error::other("holds neither model.safetensors nor its index");
        return Err(EngineError::Io { path: folder.to_owned(), source });
    }
    let text = map::read_small(&path, INDEX_BYTES_MAX)?;
    let index: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| wrong(&format!("is not JSON: {error}")))?;
    let map = index.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.ok_or_else(|| wrong("has no object weight_map"))?;
    let mut files = std::collections::BTreeSet::new();
    for name in map.values() {
        let name =
            name.as_str().ok_or_else(|| wrong("names a file by something else than text"))?;
        // A hostile index must not lead out of the folder.
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !plain || name.starts_with('.') || !name.ends_with(".safetensors") {
            let name: String = name.chars().take(64).collect();
            return Err(wrong(&format!("names a shard {name:?}")));
        }
        files.insert(name);
        if files.len() > SHARDS_LEN_MAX {
            return Err(wrong("names more than 1024 shards"));
        }
    }
    if files.is_empty() {
        return Err(wrong("names no shard"));
    }
    Ok(files.into_iter().map(|name| folder.join(name)).collect())
}

fn dtype_of(name: &str) -> Option<GgmlDType> {
    match name {
        "F32" => Some(GgmlDType::F32),
        "F16" => Some(GgmlDType::F16),
        "BF16" => Some(GgmlDType::BF16),
        _ => None,
    }
}

fn computable(name: &str, dtype: &Result<GgmlDType, String>) -> Result<GgmlDType, EngineError> {
    dtype.clone().map_err(|kind| {
        EngineError::tensor(name, format!("is stored as {kind} (supported: F32, F16, BF16)"))
    })
}

/// Elements as F32; None for quantised types. F16 and BF16 are widened exactly.
pub(crate) fn floats(dtype: GgmlDType, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        GgmlDType::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        GgmlDType::F16 => {
            let halves = bytes.as_chunks::<2>().0.iter();
            halves.map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
        }
        GgmlDType::BF16 => {
            let halves = bytes.as_chunks::<2>().0.iter();
            halves.map(|&b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)).collect()
        }
        _ => return None,
    })
}

fn slice(bytes: &[u8], range: Range<usize>) -> Cow<'_, [u8]> {
    Cow::Borrowed(bytes.get(range).unwrap_or_default())
}

/// Columns `wanted` of a matrix of elements of `size` bytes and `width` columns, as rows of `height`.
fn turn(
    bytes: &[u8],
    width: usize,
    wanted: Range<usize>,
    height: usize,
    size: usize,
) -> Cow<'static, [u8]> {
    let mut out = vec![0; wanted.len() * height * size];
    // Blocks of columns keep what is written in the cache while rows are read in order.
    const BLOCK: usize = 16;
    for block in wanted.clone().step_by(BLOCK) {
        for row in 0..height {
            for column in block..(block + BLOCK).min(wanted.end) {
                let from = (row * width + column) * size;
                let to = ((column - wanted.start) * height + row) * size;
                if let (Some(from), Some(to)) =
                    (bytes.get(from..from + size), out.get_mut(to..to + size))
                {
                    to.copy_from_slice(from);
                }
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests;
