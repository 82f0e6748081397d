use std::path::Path;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const FAMILIES: [&str; 15] = [
    "llama",
    "llama_tied",
    "llama3_rope",
    "apertus",
    "olmo2",
    "olmo3",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "glm4",
    "gpt2",
    "gptj",
    "bloom",
    "xlm_roberta",
];

fn fixture(family: &str, file: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
    std::fs::read(folder.join(file)).unwrap()
}

fn object(family: &str) -> Map<String, Value> {
    serde_json::from_slice(&fixture(family, "config.json")).unwrap()
}

/// Reads a fixture's description after a change; `null` removes a key.
fn changed(family: &str, changes: Value) -> Result<ModelSpec, String> {
    let mut map = object(family);
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => map.remove(key),
            value => map.insert(key.clone(), value.clone()),
        };
    }
    let text = serde_json::to_vec(&map).unwrap();
    read(&text).map(|(spec, _)| spec).map_err(|error| error.to_string())
}

#[test]
fn both_generations_say_the_same() {
    for family in FAMILIES {
        let (new, _) = read(&fixture(family, "config.json")).unwrap();
        let (old, _) = read(&fixture(family, "config.v4.json")).unwrap();
        assert_eq!(new, old, "{family}");
    }
}

#[test]
fn windows_follow_the_layer_types_or_the_pattern() {
    for (family, key) in
        [("gemma2", "layer_types"), ("gemma3", "layer_types"), ("olmo3", "layer_types")]
    {
        let explicit = changed(family, json!({})).unwrap();
        let implied = changed(family, json!({ key: null })).unwrap();
        assert_eq!(explicit, implied, "{family}");
    }
    let spec =
        changed("gemma3", json!({ "layer_types": null, "sliding_window_pattern": 2 })).unwrap();
    let windows: Vec<bool> = spec.layers.iter().map(|layer| layer.window.is_some()).collect();
    assert_eq!(windows, [true, false, true, false, true, false, true]);
    let spec = changed(
        "qwen2",
        json!({
            "layer_types": null, "use_sliding_window": true, "sliding_window": 9,
            "max_window_layers": 3
        }),
    )
    .unwrap();
    let windows: Vec<Option<usize>> = spec.layers.iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [None, None, None, Some(9)]);
}

/// Goal: keys that older files lack mean what they mean to transformers.
#[test]
fn absent_keys_have_the_reference_defaults() {
    let spec = changed(
        "llama",
        json!({
            "head_dim": null, "num_key_value_heads": null, "rope_parameters": null,
            "rms_norm_eps": null, "tie_word_embeddings": null, "attention_bias": null,
            "mlp_bias": null, "hidden_act": null
        }),
    )
    .unwrap();
    assert_eq!((spec.head_dim, spec.kv_heads, spec.norm.epsilon), (8, 4, 1e-6));
    assert!(!spec.output.tied && !spec.biases.mlp && !spec.biases.query_key_value);
    assert!((spec.ropes[0].frequencies[1] - 0.1).abs() < 1e-7);
    let caps = json!({ "attn_logit_softcapping": null, "final_logit_softcapping": null });
    let spec = changed("gemma2", caps).unwrap();
    assert_eq!((spec.attention.soft_cap, spec.output.soft_cap), (Some(50.0), Some(30.0)));
    let spec = changed("gemma2", json!({ "tie_word_embeddings": null })).unwrap();
    assert!(spec.output.tied);
    assert_eq!(changed("bloom", json!({})).unwrap().context, 2_048);
    let spec = changed("bloom", json!({ "hidden_size": null, "n_embed": 32 })).unwrap();
    assert_eq!(spec.width, 32);
}

/// Goal: nothing that changes the arithmetic is passed over.
#[test]
fn what_is_not_understood_is_refused_by_name() {
    let cases = [
        ("llama", json!({ "model_type": "mamba" }), "\"mamba\" is not supported"),
        ("llama", json!({ "model_type": "qwen3_moe" }), "\"qwen3_moe\" is not supported"),
        ("llama", json!({ "model_type": null }), "model_type: is missing"),
        ("llama", json!({ "num_local_experts": 8 }), "num_local_experts = 8"),
        ("llama", json!({ "architectures": ["LlamaForSequenceClassification"] }), "architectures"),
        ("llama", json!({ "quantization_config": { "bits": 4 } }), "quantization_config"),
        ("llama", json!({ "auto_map": {} }), "auto_map"),
        ("llama", json!({ "hidden_act": "mish" }), "hidden_act = \"mish\""),
        ("llama", json!({ "hidden_size": null }), "hidden_size: is missing"),
        ("llama", json!({ "hidden_size": 0 }), "hidden_size: 0 is not in 1..="),
        ("llama", json!({ "hidden_size": "big" }), "hidden_size: should be a whole number"),
        ("llama", json!({ "num_hidden_layers": 1e9 }), "num_hidden_layers: 1000000000 is not in"),
        ("llama", json!({ "num_key_value_heads": 3 }), "does not divide"),
        ("llama", json!({ "rope_scaling": { "type": "linear" } }), "rope_scaling"),
        ("llama", json!({ "rms_norm_eps": -1 }), "rms_norm_eps: -1 is not in"),
        ("gpt2", json!({ "scale_attn_by_inverse_layer_idx": true }), "scale_attn_by_inverse"),
        ("gpt2", json!({ "add_cross_attention": true }), "add_cross_attention"),
        ("gpt2", json!({ "n_ctx": 64 }), "n_ctx = 64"),
        ("gptj", json!({ "rotary_dim": null }), "rotary_dim: is missing"),
        ("gptj", json!({ "rotary_dim": 16 }), "16 of 8 dimensions are rotated"),
        (
            "bloom",
            json!({ "apply_residual_connection_post_layernorm": true }),
            "apply_residual_connection_post_layernorm",
        ),
        ("bloom", json!({ "n_embed": 32 }), "n_embed"),
        ("gemma3", json!({ "use_bidirectional_attention": true }), "use_bidirectional_attention"),
        ("gemma3", json!({ "layer_types": ["full_attention"] }), "1 types for 7 layers"),
        ("gemma3", json!({ "layer_types": vec!["chunked_attention"; 7] }), "layer_types"),
        ("glm4", json!({ "attention_bias": null }), "attention_bias: is missing"),
        ("apertus", json!({ "rope_parameters": null }), "rope_parameters: is missing"),
        ("xlm_roberta", json!({ "position_embedding_type": "relative_key" }), "relative_key"),
        ("xlm_roberta", json!({ "is_decoder": true }), "is_decoder"),
        ("xlm_roberta", json!({ "pad_token_id": 129 }), "kept for padding"),
    ];
    for (family, changes, part) in cases {
        let error = changed(family, changes.clone()).unwrap_err();
        assert!(error.contains(part), "{family} {changes}: {error:?} lacks {part:?}");
    }
}

#[test]
fn other_files_are_refused() {
    let message = |text: &[u8]| read(text).unwrap_err().to_string();
    assert!(message(b"").contains("is not JSON"));
    assert!(message(b"[]").contains("is not a JSON object"));
    assert!(message(&[b'['; 100_000]).contains("is not JSON"));
    assert!(message(&vec![b' '; CONFIG_BYTES_MAX + 1]).contains("the limit is"));
}

/// Any JSON value of a small size.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..300).prop_map(Value::from),
        "[a-z_]{0,12}".prop_map(Value::from),
        Just(json!("yarn")),
        Just(json!("sliding_attention")),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,16}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Goal: any value under any key ends in a description or in an error.
    #[test]
    fn changed_values_do_not_panic(
        family in prop::sample::select(&FAMILIES),
        changes in prop::collection::vec((any::<prop::sample::Index>(), json_value()), 1..4),
    ) {
        let mut map = object(family);
        let keys: Vec<String> = map.keys().cloned().collect();
        for (key, value) in changes {
            map.insert(key.get(&keys).clone(), value);
        }
        let text = serde_json::to_vec(&map).unwrap();
        if let Ok((spec, _)) = read(&text) {
            prop_assert!(spec.layers.len() <= LAYERS_MAX as usize);
            prop_assert!(spec.ropes.len() <= 2);
        }
    }

    #[test]
    fn changed_bytes_do_not_panic(
        family in prop::sample::select(&FAMILIES),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut text = fixture(family, "config.json");
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let _: Result<_, _> = read(&text);
    }
}
