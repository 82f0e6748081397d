use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family)
}

/// A folder with another config or other files than a fixture has.
fn folder(family: &str, change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(family).join(file), folder.path().join(file)).unwrap();
    }
    change(folder.path());
    folder
}

fn values(checkpoint: &Checkpoint, part: Part) -> Vec<f32> {
    checkpoint.matrix(Slot::layer(1, part)).unwrap().to_f32().unwrap()
}

/// Elements of a tensor by its own name.
fn stored(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let shape = checkpoint.tensors[name].shape.clone();
    checkpoint.floats(name, &shape).unwrap()
}

#[test]
fn columns_are_turned_and_split() {
    let checkpoint = Checkpoint::open(&fixture("gpt2")).unwrap();
    let fused = stored(&checkpoint, "transformer.h.1.attn.c_attn.weight");
    let value = values(&checkpoint, Part::Value);
    for (row, column) in [(0, 0), (0, 31), (31, 0), (17, 5)] {
        assert_eq!(value[row * 32 + column], fused[column * 96 + 64 + row]);
    }
    let bias = stored(&checkpoint, "transformer.h.1.attn.c_attn.bias");
    let key = checkpoint.bias(Slot::layer(1, Part::Key)).unwrap().unwrap();
    assert_eq!(key, bias[32..64]);
}

#[test]
fn heads_are_gathered() {
    let checkpoint = Checkpoint::open(&fixture("bloom")).unwrap();
    let fused = stored(&checkpoint, "transformer.h.1.self_attention.query_key_value.weight");
    let key = values(&checkpoint, Part::Key);
    // Row 3 of head 2: heads are 8 long, and each has query, key and value.
    let from = (2 * 24 + 8 + 3) * 32;
    assert_eq!(key[(2 * 8 + 3) * 32..][..32], fused[from..from + 32]);
    let bias = stored(&checkpoint, "transformer.h.1.self_attention.query_key_value.bias");
    let value = checkpoint.bias(Slot::layer(1, Part::Value)).unwrap().unwrap();
    assert_eq!(value[2 * 8 + 3], bias[2 * 24 + 16 + 3]);
}

#[test]
fn stacked_rows_are_split() {
    let checkpoint = Checkpoint::open(&fixture("glm4")).unwrap();
    let fused = stored(&checkpoint, "model.layers.1.mlp.gate_up_proj.weight");
    assert_eq!(values(&checkpoint, Part::Gate), fused[..64 * 32]);
    assert_eq!(values(&checkpoint, Part::Up), fused[64 * 32..]);
}

#[test]
fn a_tied_output_is_the_embedding() {
    let checkpoint = Checkpoint::open(&fixture("llama_tied")).unwrap();
    let of = |part| checkpoint.matrix(Slot::model(part)).unwrap().to_f32().unwrap();
    assert_eq!(of(Part::Output), of(Part::TokenEmbedding));
}

/// Goal: shards and a single file are the same model; an index cannot lead out of the folder.
#[test]
fn shards_are_joined() {
    let single = Checkpoint::open(&fixture("llama")).unwrap();
    let map = map::map(&fixture("llama").join("model.safetensors")).unwrap();
    let entries = safetensors::parse(&map).unwrap();
    let shard = |names: Vec<&String>| {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for name in names {
            let entry = &entries[name];
            let start = data.len();
            data.extend(&map[entry.range.clone()]);
            header.insert(
                name.clone(),
                serde_json::json!({
                    "dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, data.len()]
                }),
            );
        }
        let header = serde_json::to_vec(&header).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    };
    let names: Vec<&String> = entries.keys().collect();
    let index = |first: &str, second: &str| {
        let of = |at: usize| if at.is_multiple_of(2) { first } else { second };
        let map: serde_json::Map<String, serde_json::Value> =
            names.iter().enumerate().map(|(at, name)| ((*name).clone(), of(at).into())).collect();
        serde_json::json!({ "metadata": {}, "weight_map": map }).to_string()
    };
    let (one, two) = ("model-1-of-2.safetensors", "model-2-of-2.safetensors");
    let folder = folder("llama", |folder| {
        std::fs::remove_file(folder.join("model.safetensors")).unwrap();
        for (file, parity) in [(one, 0), (two, 1)] {
            let names = names.iter().copied().skip(parity).step_by(2).collect();
            std::fs::write(folder.join(file), shard(names)).unwrap();
        }
        std::fs::write(folder.join("model.safetensors.index.json"), index(one, two)).unwrap();
    });
    let sharded = Checkpoint::open(folder.path()).unwrap();
    for part in [Part::Query, Part::Down] {
        assert_eq!(values(&single, part), values(&sharded, part));
    }
    for (bad, part) in [
        (index(one, "../../outside.safetensors"), "names a shard"),
        (index(one, "/etc/passwd"), "names a shard"),
        (index(one, "missing.safetensors"), "missing.safetensors"),
        ("{}".to_owned(), "has no object weight_map"),
        (r#"{"weight_map":{}}"#.to_owned(), "names no shard"),
    ] {
        std::fs::write(folder.path().join("model.safetensors.index.json"), bad).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[test]
fn tensors_nobody_asked_for_are_refused() {
    let open = |family: &str, change: serde_json::Value| {
        let folder = folder(family, |folder| {
            let path = folder.join("config.json");
            let mut config: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let object = config.as_object_mut().unwrap();
            object.extend(change.as_object().unwrap().clone());
            std::fs::write(path, config.to_string()).unwrap();
        });
        let checkpoint = Checkpoint::open(folder.path())?;
        crate::candle::CandleDecoder::load(&checkpoint, &candle_core::Device::Cpu, 1).map(|_| ())
    };
    let message = |family: &str, change| open(family, change).unwrap_err().to_string();
    assert!(open("llama", serde_json::json!({})).is_ok());
    let fewer = message("llama", serde_json::json!({ "num_hidden_layers": 3 }));
    assert!(fewer.contains("model.layers.3.input_layernorm.weight: is not part of"), "{fewer}");
    let more = message("llama", serde_json::json!({ "num_hidden_layers": 5 }));
    assert!(more.contains("model.layers.4.input_layernorm.weight: is missing"), "{more}");
    let biased = message("llama", serde_json::json!({ "attention_bias": true }));
    assert!(biased.contains("q_proj.bias: is missing"), "{biased}");
    let wide = message("llama", serde_json::json!({ "intermediate_size": 65 }));
    assert!(wide.contains("has shape [64, 32], expected [65, 32]"), "{wide}");
    // A head repeated beside a tied embedding is common and harmless.
    assert!(open("llama", serde_json::json!({ "tie_word_embeddings": true })).is_ok());
}

#[test]
fn half_floats_are_widened_exactly() {
    let values = [1.5f32, -0.0, f32::INFINITY, 2f32.powi(-130)];
    let bf16: Vec<u8> =
        values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect();
    assert_eq!(floats(GgmlDType::BF16, &bf16).unwrap(), values);
    let f16: Vec<u8> = [0x3e00u16, 0x8000, 0x0001].iter().flat_map(|h| h.to_le_bytes()).collect();
    assert_eq!(floats(GgmlDType::F16, &f16).unwrap(), [1.5, -0.0, 2f32.powi(-24)]);
    assert_eq!(floats(GgmlDType::Q4_0, &[0; 18]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Goal: no change of header bytes panics in what reads the tensors.
    #[test]
    fn changed_headers_are_harmless(
        family in prop::sample::select(vec!["llama", "gpt2", "bloom", "glm4", "apertus", "xlm_roberta"]),
        changes in prop::collection::vec((0usize..4_096, any::<u8>()), 1..4),
    ) {
        let folder = folder(family, |folder| {
            let path = folder.join("model.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            std::fs::write(path, bytes).unwrap();
        });
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            let device = candle_core::Device::Cpu;
            let _: Result<_, _> = crate::candle::CandleDecoder::load(&checkpoint, &device, 1);
        }
    }
}
