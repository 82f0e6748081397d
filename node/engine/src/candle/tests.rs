use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Var};

use super::*;
use crate::adapter::Adapter;
use crate::decoder::SequenceView;
use crate::gguf_writer::{GgufWriter, RawTensor};
use crate::spec::{Activation, Norm, NormKind, Pairing, Rope, Xielu};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn decoder(path: &Path, pages: usize) -> CandleDecoder {
    CandleDecoder::load(&Checkpoint::open(path).unwrap(), &Device::Cpu, pages).unwrap()
}

fn rows(sequence: usize, tokens: &[u32], first: usize) -> Vec<Row> {
    let row = |(position, &token)| Row { sequence, position, token, wanted: true };
    (first..).zip(tokens).map(row).collect()
}

fn forward(decoder: &mut CandleDecoder, sequences: &[SequenceView<'_>], rows: &[Row]) -> Vec<f32> {
    let mut out = Vec::new();
    decoder.forward(&Batch { sequences, rows }, Output::Logits, &mut out).unwrap();
    out
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Goal: sequences with different adapters, and without, share a batch and do not share their changes.
#[test]
fn adapters_belong_to_their_sequence() {
    let spec = decoder(&fixture("llama"), 1).spec().clone();
    let start = Arc::new(Adapter::read(&fixture("llama/lora/start"), &spec).unwrap());
    let mut other = Adapter::clone(&start);
    for low in other.layers.iter_mut().flat_map(|layer| layer.values_mut()) {
        low.scale = -low.scale;
    }
    let other = Arc::new(other);
    let tokens = [5, 17, 99, 3, 64];
    let alone = |adapter: Option<&Arc<Adapter>>| {
        let mut decoder = decoder(&fixture("llama"), 1);
        let view = SequenceView { pages: &[0], adapter };
        forward(&mut decoder, &[view], &rows(0, &tokens, 0))
    };
    let expected = [alone(Some(&start)), alone(None), alone(Some(&other))];
    assert!(worst(&expected[0], &expected[1]) > 1e-2 && worst(&expected[0], &expected[2]) > 1e-2);
    let mut decoder = decoder(&fixture("llama"), 3);
    let views = [
        SequenceView { pages: &[2], adapter: Some(&start) },
        SequenceView { pages: &[0], adapter: None },
        SequenceView { pages: &[1], adapter: Some(&other) },
    ];
    let batch: Vec<Row> = (0..3).flat_map(|sequence| rows(sequence, &tokens, 0)).collect();
    let together = forward(&mut decoder, &views, &batch);
    for (ours, expected) in together.chunks_exact(tokens.len() * 128).zip(&expected) {
        assert!(worst(ours, expected) < 1e-5);
    }
    // What nobody holds any more is dropped with the next batch.
    assert_eq!(decoder.adapters.loaded(), 2);
    drop((start, other));
    forward(&mut decoder, &[SequenceView { pages: &[0], adapter: None }], &rows(0, &tokens, 0));
    assert_eq!(decoder.adapters.loaded(), 0);
}

/// Goal: full pages of a common prefix are read by a sequence that did not compute them.
#[test]
fn pages_are_shared() {
    let mut decoder = decoder(&fixture("gemma3"), 8);
    let tokens: Vec<u32> = (0..40).map(|at| (at * 37 + 5) % 127).collect();
    let whole = SequenceView { pages: &[0, 1, 2], adapter: None };
    let expected = forward(&mut decoder, &[whole], &rows(0, &tokens, 0));
    let sharing = SequenceView { pages: &[0, 1, 7], adapter: None };
    let ours = forward(&mut decoder, &[sharing], &rows(0, &tokens[32..], 32));
    assert!(worst(&ours, &expected[32 * 128..]) < 1e-5);
}

#[test]
fn contradictory_batches_are_refused() {
    let mut decoder = decoder(&fixture("llama"), 2);
    let view = SequenceView { pages: &[0, 1], adapter: None };
    let beyond = SequenceView { pages: &[2], adapter: None };
    let ok = rows(0, &[1, 2], 0);
    let apart = [rows(0, &[1], 0), rows(1, &[1], 0), rows(0, &[2], 1)].concat();
    let cases: [(&[SequenceView<'_>], Vec<Row>, &str); 8] = [
        (&[view], vec![], "no rows"),
        (&[view], rows(0, &vec![1; 257], 0), "more than the decoder takes"),
        (&[], ok.clone(), "no sequence"),
        (&[view], [rows(0, &[1], 0), rows(0, &[1], 2)].concat(), "increase by one"),
        (&[view, view], apart, "stand apart"),
        (&[view], rows(0, &[128], 0), "not in the vocabulary"),
        (&[view], rows(0, &[1], 160), "beyond the model's context"),
        (&[beyond], ok, "has no page"),
    ];
    for (sequences, rows, part) in cases {
        let batch = Batch { sequences, rows: &rows };
        let error = decoder.forward(&batch, Output::Logits, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
    }
    let mut encoder = self::decoder(&fixture("xlm_roberta"), 2);
    let later = Batch { sequences: &[view], rows: &rows(0, &[1], 3) };
    let error = encoder.forward(&later, Output::Logits, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("at once"), "{error}");
}

/// A model of one layer, its matrices stored as `dtype`, or as F32 with the values that `dtype` gave.
fn stored(dtype: GgmlDType, type_id: u32, expanded: bool) -> Vec<u8> {
    let shapes: [(&str, &[usize]); 12] = [
        ("token_embd.weight", &[64, 256]),
        ("output.weight", &[64, 256]),
        ("output_norm.weight", &[256]),
        ("blk.0.attn_norm.weight", &[256]),
        ("blk.0.ffn_norm.weight", &[256]),
        ("blk.0.attn_q.weight", &[256, 256]),
        ("blk.0.attn_k.weight", &[128, 256]),
        ("blk.0.attn_v.weight", &[128, 256]),
        ("blk.0.attn_output.weight", &[256, 256]),
        ("blk.0.ffn_gate.weight", &[256, 256]),
        ("blk.0.ffn_up.weight", &[256, 256]),
        ("blk.0.ffn_down.weight", &[256, 256]),
    ];
    let mut writer = GgufWriter::default()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 256)
        .u32("llama.feed_forward_length", 256)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    // Noise that is the same in every run.
    let mut state = 1u32;
    for (name, shape) in shapes {
        let len: usize = shape.iter().product();
        let values: Vec<f32> = (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 * 0.2 - 0.1
            })
            .collect();
        if shape.len() == 1 {
            writer = writer.tensor(name, shape, &values);
            continue;
        }
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        let quantised = QTensor::quantize(&tensor, dtype).unwrap();
        if expanded {
            let values = quantised.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            writer = writer.tensor(name, shape, &values.to_vec1::<f32>().unwrap());
        } else {
            let bytes = quantised.data().unwrap().into_owned();
            let (name, shape) = (name.to_owned(), shape.to_vec());
            writer.tensors.push(RawTensor { name, shape, type_id, bytes });
        }
    }
    writer.to_bytes()
}

/// Goal: every storage type is computed with as if it had been expanded beforehand.
#[test]
fn quantised_weights_are_exactly_their_expansion() {
    let types = [
        (GgmlDType::F16, 1),
        (GgmlDType::Q4_0, 2),
        (GgmlDType::Q4_1, 3),
        (GgmlDType::Q5_0, 6),
        (GgmlDType::Q5_1, 7),
        (GgmlDType::Q8_0, 8),
        (GgmlDType::Q2K, 10),
        (GgmlDType::Q3K, 11),
        (GgmlDType::Q4K, 12),
        (GgmlDType::Q5K, 13),
        (GgmlDType::Q6K, 14),
        (GgmlDType::BF16, 30),
    ];
    let logits = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let view = SequenceView { pages: &[0], adapter: None };
        forward(&mut decoder(file.path(), 1), &[view], &rows(0, &[1, 60, 7, 33], 0))
    };
    for (dtype, type_id) in types {
        let ours = logits(&stored(dtype, type_id, false));
        let expanded = logits(&stored(dtype, type_id, true));
        assert!(ours.iter().any(|logit| logit.abs() > 0.1));
        assert_eq!(worst(&ours, &expanded), 0.0, "{dtype:?}");
    }
}

/// The derivative of a sum of `f`, by candle and by differences.
fn assert_differentiable(what: &str, f: impl Fn(&Tensor) -> candle_core::Result<Tensor>) {
    // Away from the corners of piecewise functions.
    let at: Vec<f32> = (0..16).map(|index| (index as f32 * 0.37 - 2.9) * 0.7 + 0.011).collect();
    let shape = (2, 1, 8);
    // Weights make sums of normalised things depend on their parts.
    let weights: Vec<f32> = (0..16).map(|index| 0.3 + (index * index % 7) as f32).collect();
    let weights = Tensor::from_vec(weights, shape, &Device::Cpu).unwrap();
    let sum = |input: &Tensor| (f(input)? * &weights)?.to_dtype(DType::F64)?.sum_all();
    let var =
        Var::from_tensor(&Tensor::from_vec(at.clone(), shape, &Device::Cpu).unwrap()).unwrap();
    let gradients = sum(&var).unwrap().backward().unwrap();
    let gradient = gradients.get(&var).unwrap_or_else(|| panic!("{what} has no gradient"));
    let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (index, ours) in gradient.iter().enumerate() {
        let value = |step: f32| {
            let mut at = at.clone();
            at[index] += step;
            let input = Tensor::from_vec(at, shape, &Device::Cpu).unwrap();
            sum(&input).unwrap().to_scalar::<f64>().unwrap()
        };
        let expected = (value(1e-2) - value(-1e-2)) / 2e-2;
        let difference = (f64::from(*ours) - expected).abs();
        assert!(difference < 2e-2 * (1.0 + expected.abs()), "{what} {index}: {ours}, {expected}");
    }
}

/// Goal: nothing here cuts gradients silently, as candle's fused operations do.
#[test]
fn everything_has_a_backward_pass() {
    let xielu = Activation::Xielu(Xielu::from_stored(0.8, 0.3, 0.5, -1e-6));
    for activation in
        [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu, xielu]
    {
        assert_differentiable(&format!("{activation:?}"), |x| ops::activate(activation, x));
    }
    assert_differentiable("softmax", ops::softmax);
    assert_differentiable("soft cap", |x| ops::soft_cap(x, 2.0));
    for kind in [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer] {
        let weight = Tensor::arange(1f32, 9.0, &Device::Cpu).unwrap();
        let norm = NormWeight::new(kind, weight, None).unwrap();
        let of = Norm { kind, epsilon: 1e-5 };
        assert_differentiable(&format!("{kind:?}"), |x| norm.apply(of, x));
    }
    for pairing in [Pairing::Halves, Pairing::Adjacent] {
        let rope = Rope { pairing, frequencies: vec![0.7, 0.1], amplitude: 1.0 };
        let angles = Angles::new(&rope, &rows(0, &[1, 1], 3), &Device::Cpu).unwrap();
        assert_differentiable(&format!("{pairing:?}"), |x| angles.rotate(x));
    }
}
