//! The pass against the reference models, and bits against bits: cuts, companions, threads, instruction sets.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use super::*;
use crate::compute::Compute;
use crate::decoder::{PageId, Row, SequenceView};
use crate::spec::Kind;

const FAMILIES: [&str; 15] = [
    "apertus",
    "bloom",
    "gemma2",
    "gemma3",
    "glm4",
    "gpt2",
    "gptj",
    "llama",
    "llama3_rope",
    "llama_tied",
    "olmo2",
    "olmo3",
    "qwen2",
    "qwen3",
    "xlm_roberta",
];

fn fixture(family: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family)
}

fn decoder(path: &Path, threads: usize, isa: Isa) -> CpuDecoder {
    decoder_with(path, threads, isa, 64, 256)
}
pub(super) fn decoder_with(
    path: &Path,
    threads: usize,
    isa: Isa,
    pages: usize,
    rows: usize,
) -> CpuDecoder {
    let checkpoint = Checkpoint::open(path).unwrap();
    CpuDecoder::new(&checkpoint, threads, isa, pages, rows).unwrap()
}

/// Sequences on their way through a decoder, with pages that are scattered over its memory.
struct Run<'a> {
    decoder: &'a mut CpuDecoder,
    sequences: Vec<Vec<u32>>,
    tables: Vec<Vec<PageId>>,
    done: Vec<usize>,
    /// Outputs of all positions so far, for each sequence.
    outputs: Vec<Vec<Vec<f32>>>,
    adapters: Vec<Option<Arc<crate::adapter::Adapter>>>,
}

impl<'a> Run<'a> {
    fn new(decoder: &'a mut CpuDecoder, sequences: &[Vec<u32>]) -> Self {
        let count = sequences.len();
        let table = |sequence: usize| {
            let pages = sequences[sequence].len().div_ceil(16);
            (0..pages).rev().map(|page| (page * count + sequence) as PageId).collect()
        };
        Self {
            decoder,
            sequences: sequences.to_vec(),
            tables: (0..count).map(table).collect(),
            done: vec![0; count],
            outputs: vec![Vec::new(); count],
            adapters: vec![None; count],
        }
    }

    /// Computes the next rows of some sequences: (sequence, rows).
    fn step(&mut self, parts: &[(usize, usize)], output: Output) {
        let mut rows = Vec::new();
        let mut views = Vec::new();
        for (index, &(sequence, count)) in parts.iter().enumerate() {
            let done = self.done[sequence];
            views.push(SequenceView {
                pages: &self.tables[sequence],
                adapter: self.adapters[sequence].as_ref(),
            });
            for position in done..done + count {
                let token = self.sequences[sequence][position];
                rows.push(Row { sequence: index, position, token, wanted: true });
            }
        }
        let mut out = vec![f32::NAN; 3];
        let batch = Batch { sequences: &views, rows: &rows };
        self.decoder.forward(&batch, output, &mut out).unwrap();
        let mut out = out.chunks_exact(output.width(self.decoder.spec()));
        for &(sequence, count) in parts {
            self.done[sequence] += count;
            self.outputs[sequence].extend(out.by_ref().take(count).map(<[f32]>::to_vec));
        }
        assert_eq!(out.next(), None);
    }

    /// Computes one sequence alone, `chunk` rows at a time.
    fn chunked(mut self, chunk: usize) -> Vec<Vec<f32>> {
        while self.done[0] < self.sequences[0].len() {
            let rows = chunk.min(self.sequences[0].len() - self.done[0]);
            self.step(&[(0, rows)], Output::Logits);
        }
        self.outputs.swap_remove(0)
    }

    /// Computes all sequences in one batch after the other, each in chunks of its own length, most of the time
    /// together, in changing order.
    fn together(mut self) -> Vec<Vec<Vec<f32>>> {
        let mut turn = 0;
        while self.sequences.iter().zip(&self.done).any(|(ids, done)| *done < ids.len()) {
            let mut parts = Vec::new();
            for (sequence, ids) in self.sequences.iter().enumerate() {
                let rows = (5 * sequence + 3 * (turn % 3) + 1).min(ids.len() - self.done[sequence]);
                if rows > 0 && (turn + sequence) % 4 != 3 {
                    parts.push((sequence, rows));
                }
            }
            if turn % 2 == 1 {
                parts.reverse();
            }
            self.step(&parts, Output::Logits);
            turn += 1;
        }
        self.outputs
    }
}

fn rows<T: candle_core::WithDType>(tensor: &Tensor) -> Vec<Vec<T>> {
    tensor.to_vec2().unwrap()
}

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    // A maximum that does not lose what is not a number.
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d <= m { m } else { d })
}

fn strangers(vocab: usize) -> Vec<Vec<u32>> {
    let text =
        |len: usize, seed: usize| (0..len).map(|i| ((i * i + seed) % vocab) as u32).collect();
    vec![text(33, 1), text(1, 5), text(50, 9)]
}

/// Goal: logits of all positions within 1e-4 of the reference for all families; and exactly the same bits when the
/// sequence is cut into chunks of 1, 7 and 16, and when it is computed among strangers.
#[test]
fn all_families_agree_with_the_reference() {
    for family in FAMILIES {
        let path = fixture(family);
        let expected =
            candle_core::safetensors::load(path.join("expected.safetensors"), &Device::Cpu)
                .unwrap();
        let ids = rows::<i64>(&expected["ids"]);
        let mut decoder = decoder(&path, 2, Isa::detect());
        let vocab = decoder.spec().vocab;
        for (index, ids) in ids.iter().enumerate() {
            let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
            let reference: Vec<Vec<f32>> = rows(&expected["logits"].get(index).unwrap());
            let whole = Run::new(&mut decoder, std::slice::from_ref(&ids)).chunked(ids.len());
            let error = difference(&whole, &reference);
            assert!(error <= 1e-4, "{family} {index}: {error:e}");
            let mut all = strangers(vocab);
            all.insert(1, ids.clone());
            if decoder.spec().kind == Kind::Encoder {
                let mut run = Run::new(&mut decoder, &all);
                run.step(&[(0, 33), (1, ids.len()), (2, 1), (3, 50)], Output::Logits);
                assert!(run.outputs[1] == whole, "{family} {index}: among strangers");
                continue;
            }
            for chunk in [1, 7, 16] {
                let run = Run::new(&mut decoder, std::slice::from_ref(&ids));
                assert!(run.chunked(chunk) == whole, "{family} {index}: chunks of {chunk}");
            }
            let together = Run::new(&mut decoder, &all).together();
            assert!(together[1] == whole, "{family} {index}: among strangers");
        }
    }
}

/// Goal: the same bits on every instruction set and any number of threads.
#[test]
fn bits_depend_on_neither_threads_nor_instructions() {
    for family in FAMILIES {
        let path = fixture(family);
        let vocab = Checkpoint::open(&path).unwrap().spec().vocab;
        let ids: Vec<u32> = (0..60).map(|i| (i * 7 % vocab) as u32).collect();
        let mut results = Vec::new();
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                let mut decoder = decoder(&path, threads, isa);
                let chunk = if decoder.spec().kind == Kind::Encoder { ids.len() } else { 29 };
                let run = Run::new(&mut decoder, std::slice::from_ref(&ids));
                results.push(((isa, threads), run.chunked(chunk)));
            }
        }
        let (_, first) = &results[0];
        for (way, result) in &results {
            assert!(result == first, "{family}: {way:?}");
        }
    }
}

/// Goal: base and adapter together give what PEFT gives.
#[test]
fn adapters_agree_with_the_reference() {
    let mut families = 0;
    for family in FAMILIES {
        let path = fixture(family);
        if !path.join("lora").exists() {
            continue;
        }
        families += 1;
        let load = |name| candle_core::safetensors::load(path.join(name), &Device::Cpu).unwrap();
        let ids = rows::<i64>(&load("expected.safetensors")["ids"]);
        let expected = &load("lora/expected.safetensors")["logits"];
        let mut decoder = decoder(&path, 2, Isa::detect());
        let adapter =
            crate::adapter::Adapter::read(&path.join("lora/start"), decoder.spec()).unwrap();
        let adapter = Arc::new(adapter);
        for (index, ids) in ids.iter().enumerate() {
            let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
            let reference: Vec<Vec<f32>> = rows(&expected.get(index).unwrap());
            let mut run = Run::new(&mut decoder, std::slice::from_ref(&ids));
            run.adapters[0] = Some(Arc::clone(&adapter));
            let error = difference(&run.chunked(ids.len()), &reference);
            assert!(error <= 1e-4, "{family} {index}: {error:e}");
        }
    }
    assert_eq!(families, 7);
}

/// Goal: sequences with and without adapters share batches and get, bit for bit, what they get alone; the adapter
/// does change something, and is forgotten when nobody holds it.
#[test]
fn adapters_of_some_sequences_leave_the_others_alone() {
    for family in ["llama", "gemma3", "olmo2", "gpt2"] {
        let path = fixture(family);
        let mut decoder = decoder(&path, 2, Isa::detect());
        let adapter =
            crate::adapter::Adapter::read(&path.join("lora/start"), decoder.spec()).unwrap();
        let adapter = Arc::new(adapter);
        let texts = strangers(decoder.spec().vocab);
        let mut alone = |text: &Vec<u32>, adapted: bool, chunk: usize| {
            let mut run = Run::new(&mut decoder, std::slice::from_ref(text));
            run.adapters[0] = adapted.then(|| Arc::clone(&adapter));
            run.chunked(chunk)
        };
        let expected = [
            alone(&texts[0], true, 33),
            alone(&texts[1], false, 1),
            alone(&texts[2], false, 50),
            alone(&texts[2], true, 50),
        ];
        assert!(
            difference(&expected[2], &expected[3]) > 1e-3,
            "{family}: the adapter does nothing"
        );
        for chunk in [1, 7] {
            assert!(alone(&texts[0], true, chunk) == expected[0], "{family}: chunks of {chunk}");
        }
        let four = [&texts[..], &texts[2..]].concat();
        let mut run = Run::new(&mut decoder, &four);
        run.adapters[0] = Some(Arc::clone(&adapter));
        run.adapters[3] = Some(Arc::clone(&adapter));
        assert!(run.together() == expected, "{family}: together");
        assert_eq!(decoder.adapters.len(), 1);
        drop(adapter);
        Run::new(&mut decoder, &texts[..1]).chunked(33);
        assert_eq!(decoder.adapters.len(), 0, "{family}: forgotten when nobody holds it");
    }
}

/// A llama of 64 dimensions with random weights, as a GGUF file of the given type, and another one with the values that
/// its weights stand for in F32.
fn quantised(dtype: GgmlDType, path: &Path, exact: &Path) {
    let mut state = 1u32;
    let mut noise = |rows: usize, columns: usize, scale: f32| {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
        };
        let values: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    let width = if dtype.block_size() == 256 { 256 } else { 64 };
    let mut matrix = |name: &str, rows: usize, columns: usize| {
        let tensor = noise(rows, columns, 2.0 / (columns as f32).sqrt());
        tensors.push((name.to_owned(), QTensor::quantize(&tensor, dtype).unwrap()));
    };
    matrix("token_embd.weight", 90, width);
    for layer in 0..2 {
        for (name, rows, columns) in [
            ("attn_q", width, width),
            ("attn_k", width / 2, width),
            ("attn_v", width / 2, width),
            ("attn_output", width, width),
            ("ffn_gate", 2 * width, width),
            ("ffn_up", 2 * width, width),
            ("ffn_down", width, 2 * width),
        ] {
            matrix(&format!("blk.{layer}.{name}.weight"), rows, columns);
        }
    }
    let ones = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
    let norms =
        ["blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm", "output_norm"];
    for name in norms {
        let ones = QTensor::quantize(&ones, GgmlDType::F32).unwrap();
        tensors.push((format!("{name}.weight"), ones));
    }
    let metadata = [
        ("general.architecture", Value::String("llama".to_owned())),
        ("llama.block_count", Value::U32(2)),
        ("llama.context_length", Value::U32(256)),
        ("llama.embedding_length", Value::U32(width as u32)),
        ("llama.feed_forward_length", Value::U32(2 * width as u32)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("llama.vocab_size", Value::U32(90)),
    ];
    let metadata: HashMap<&str, Value> = metadata.into_iter().collect();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let floats: Vec<(String, QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let floats = tensor.dequantize(&Device::Cpu).unwrap();
            (name.clone(), QTensor::quantize(&floats, GgmlDType::F32).unwrap())
        })
        .collect();
    for (path, tensors) in [(path, &tensors), (exact, &floats)] {
        let tensors: Vec<(&str, &QTensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut file = std::fs::File::create(path).unwrap();
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    }
}

/// Root mean square of the difference, as a share of that of `b`.
fn relative_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    assert_eq!(a.len(), b.len());
    let mut apart = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| a - b);
    (squares(&mut apart) / squares(&mut b.iter().flatten().copied())).sqrt()
}

/// Goal: with quantised weights, too, results depend on neither cuts nor companions, threads nor instructions; and lie
/// as near to what plain candle operations make of the same weights in F32 as eight bits of activations allow.
#[test]
fn quantised_models_are_as_invariant() {
    use GgmlDType::*;
    let dir = tempfile::tempdir().unwrap();
    for dtype in [F16, Q4_0, Q4_1, Q8_0, Q4K, Q6K] {
        let path = dir.path().join(format!("{dtype:?}.gguf"));
        let exact = dir.path().join("exact.gguf");
        quantised(dtype, &path, &exact);
        let ids: Vec<u32> = (0..60).map(|i| (i * 7 % 90) as u32).collect();
        let mut all = strangers(90);
        all.insert(2, ids.clone());
        let mut whole = None;
        for isa in Isa::available() {
            for threads in [1, 2] {
                let mut decoder = decoder(&path, threads, isa);
                let mut run =
                    |chunk| Run::new(&mut decoder, std::slice::from_ref(&ids)).chunked(chunk);
                let result = run(60);
                let whole = whole.get_or_insert_with(|| result.clone());
                assert!(*whole == result, "{dtype:?} {isa:?} {threads}");
                for chunk in [1, 2, 7, 16] {
                    assert!(run(chunk) == *whole, "{dtype:?} {chunk}");
                }
                let together = Run::new(&mut decoder, &all).together();
                assert!(together[2] == *whole, "{dtype:?} {isa:?} {threads}: among strangers");
            }
        }
        let mut oracle = crate::parity::Model::open(&exact, Compute::Candle, 64).unwrap();
        let exact = oracle.logits(&[&ids], NonZeroUsize::MAX).unwrap().swap_remove(0);
        let error = relative_difference(&whole.unwrap(), &exact);
        // Rounding a block to 127 steps errs by about half a percent of what is typical in it, at each of the
        // fourteen products that a logit comes out of. Float weights have float activations.
        let most = if dtype == F16 { 1e-5 } else { 0.03 };
        assert!(error <= most, "{dtype:?}: {error:e}");
    }
}

/// Goal: beyond the length from which heads are divided among members that would otherwise be unevenly busy, an answer
/// token by token is still, bit for bit, the text computed at once.
#[test]
fn long_answers_do_not_depend_on_how_heads_are_divided() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    quantised(GgmlDType::Q4K, &path, &dir.path().join("exact.gguf"));
    let ids: Vec<u32> = (0..150).map(|i| (i * 11 % 90) as u32).collect();
    let mut whole = None;
    for threads in [1, 2, 3, 5] {
        let mut decoder = decoder(&path, threads, Isa::detect());
        let mut run = |chunk| Run::new(&mut decoder, std::slice::from_ref(&ids)).chunked(chunk);
        let at_once = run(150);
        assert!(run(1) == at_once, "{threads} threads, one by one");
        assert!(*whole.get_or_insert_with(|| at_once.clone()) == at_once, "{threads} threads");
    }
}

/// Goal: a batch that contradicts itself is refused in words, and the decoder goes on.
#[test]
fn contradictory_batches_are_refused() {
    let mut decoder = decoder(&fixture("llama"), 2, Isa::detect());
    let pages = [3, 64];
    let view = SequenceView { pages: &pages, adapter: None };
    let row = Row { sequence: 0, position: 0, token: 1, wanted: true };
    let two = [view, view];
    for (rows, problem) in [
        (vec![Row { sequence: 2, ..row }], "sequence of its own"),
        (vec![row, Row { position: 2, ..row }], "out of order"),
        (vec![row, Row { sequence: 1, ..row }, Row { position: 1, ..row }], "sequence of its own"),
        (vec![Row { position: 16, ..row }], "a page too many"),
        (vec![Row { position: 32, ..row }], "too few pages"),
        (vec![Row { token: 1 << 20, ..row }], "token"),
        (vec![row; 257], "at most 256"),
    ] {
        let batch = Batch { sequences: &two, rows: &rows };
        let error = decoder.forward(&batch, Output::Logits, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    let mut out = Vec::new();
    let batch = Batch { sequences: &two[..1], rows: &[row] };
    decoder.forward(&batch, Output::Logits, &mut out).unwrap();
    assert_eq!(out.len(), decoder.spec().vocab);
    decoder.forward(&Batch { sequences: &[], rows: &[] }, Output::Logits, &mut out).unwrap();
    assert!(out.is_empty());
}
