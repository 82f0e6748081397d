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
        ("bloom", json!({ "n_embed": 64 }), "n_embed = 64"),
        ("apertus", json!({ "mlp_bias": true }), "mlp_bias"),
        ("llama", json!({ "rope_interleaved": true }), "rope_interleaved"),
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

/// Goal: the keys that published models of these families carry beside the necessary ones are known.
#[test]
fn keys_of_published_models_are_known() {
    let published = [
        // SmolLM2-135M-Instruct
        r#"{"architectures":["LlamaForCausalLM"],"attention_bias":false,"attention_dropout":0.0,
        "bos_token_id":1,"eos_token_id":2,"hidden_act":"silu","hidden_size":576,
        "initializer_range":0.041666666666666664,"intermediate_size":1536,"is_llama_config":true,
        "max_position_embeddings":8192,"mlp_bias":false,"model_type":"llama",
        "num_attention_heads":9,"num_hidden_layers":30,"num_key_value_heads":3,"pad_token_id":2,
        "pretraining_tp":1,"rms_norm_eps":1e-05,"rope_interleaved":false,"rope_scaling":null,
        "rope_theta":100000,"tie_word_embeddings":true,"torch_dtype":"bfloat16",
        "transformers.js_config":{"kv_cache_dtype":{"q4f16":"float16"}},
        "transformers_version":"4.42.3","use_cache":true,"vocab_size":49152}"#,
        // Apertus-8B
        r#"{"architectures":["ApertusForCausalLM"],"attention_bias":false,"attention_dropout":0.0,
        "bos_token_id":1,"eos_token_id":68,"hidden_act":"xielu","hidden_dropout":0.0,
        "hidden_size":4096,"initializer_range":0.02,"intermediate_size":21504,
        "max_position_embeddings":65536,"mlp_bias":false,"model_type":"apertus",
        "num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"pad_token_id":3,
        "post_norm":false,"qk_norm":true,"rms_norm_eps":1e-05,"rope_scaling":{"factor":8.0,
        "high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,
        "rope_type":"llama3","type":"llama3"},"rope_theta":12000000,"tie_word_embeddings":false,
        "torch_dtype":"bfloat16","transformers_version":"4.56.0.dev0","use_cache":true,
        "vocab_size":131072}"#,
        // Olmo-3-7B
        r#"{"architectures":["Olmo3ForCausalLM"],"attention_bias":false,"attention_dropout":0.0,
        "eos_token_id":100257,"hidden_act":"silu","hidden_size":4096,"initializer_range":0.02,
        "intermediate_size":11008,"max_position_embeddings":65536,"model_type":"olmo3",
        "num_attention_heads":32,"num_hidden_layers":4,"num_key_value_heads":32,
        "pad_token_id":100277,"rms_norm_eps":1e-06,"rope_scaling":{
        "attention_factor":1.2079441541679836,"beta_fast":32,"beta_slow":1,"factor":8.0,
        "original_max_position_embeddings":8192,"rope_type":"yarn"},"rope_theta":500000,
        "sliding_window":4096,"tie_word_embeddings":false,"torch_dtype":"bfloat16",
        "use_cache":false,"vocab_size":100278}"#,
        // BLOOM-560m
        r#"{"apply_residual_connection_post_layernorm":false,"attention_dropout":0.0,
        "attention_softmax_in_fp32":true,"bias_dropout_fusion":true,"bos_token_id":1,
        "eos_token_id":2,"pad_token_id":3,"unk_token_id":0,"hidden_dropout":0.0,
        "initializer_range":0.02,"layer_norm_epsilon":1e-05,"masked_softmax_fusion":true,
        "model_type":"bloom","n_embed":1024,"n_inner":null,"n_layer":24,"num_attention_heads":16,
        "offset_alibi":100,"pretraining_tp":1,"seq_length":2048,"skip_bias_add":true,
        "skip_bias_add_qkv":false,"slow_but_exact":false,"transformers_version":"4.20.0",
        "use_cache":true,"vocab_size":250880,"architectures":["BloomForCausalLM"]}"#,
        // GPT-J 6B
        r#"{"activation_function":"gelu_new","architectures":["GPTJForCausalLM"],"attn_pdrop":0.0,
        "bos_token_id":50256,"embd_pdrop":0.0,"eos_token_id":50256,"gradient_checkpointing":false,
        "initializer_range":0.02,"layer_norm_epsilon":1e-05,"model_type":"gptj","n_embd":4096,
        "n_head":16,"n_inner":null,"n_layer":28,"n_positions":2048,"resid_pdrop":0.0,"rotary":true,
        "rotary_dim":64,"scale_attn_weights":true,"summary_activation":null,
        "summary_first_dropout":0.1,"summary_proj_to_labels":true,"summary_type":"cls_index",
        "summary_use_proj":true,"task_specific_params":{"text-generation":{"do_sample":true}},
        "tie_word_embeddings":false,"tokenizer_class":"GPT2Tokenizer",
        "transformers_version":"4.18.0.dev0","use_cache":true,"vocab_size":50400}"#,
    ];
    for text in published {
        let (spec, _) = read(text.as_bytes()).unwrap();
        assert!(spec.vocab > 40_000, "{spec:?}");
    }
    // Only layers without a window are stretched.
    let (olmo3, _) = read(published[2].as_bytes()).unwrap();
    let amplitudes: Vec<f32> =
        olmo3.layers.iter().map(|layer| olmo3.ropes[layer.rope.unwrap()].amplitude).collect();
    assert_eq!(amplitudes, [1.0, 1.0, 1.0, 1.207_944_2]);
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
