//! A small adapter, and everything that goes with it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;

use allmend_gate::{
    Base, CardFacts, Declared, Dtype, Exposure, Extraction, Measures, Metrics, PeftConfig,
    PrivacyFacts, RecipeFacts, Rules, RunFacts, Source, Terms, Validation,
};
use allmend_protocol::ids::{Digest, MessageId};
use allmend_protocol::units::Decimal;
use safetensors::tensor::TensorView;

pub(crate) const RANK: usize = 4;

/// Names and shapes, in no particular order.
pub(crate) fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    for layer in [10, 0, 2] {
        for (module, inputs, outputs) in [("v_proj", 32, 16), ("q_proj", 32, 32)] {
            let name = format!("base_model.model.model.layers.{layer}.self_attn.{module}");
            tensors.push((format!("{name}.lora_B.weight"), vec![outputs, RANK]));
            tensors.push((format!("{name}.lora_A.weight"), vec![RANK, inputs]));
        }
    }
    tensors
}

pub(crate) fn declared() -> Declared {
    let all = tensors().into_iter().map(|(name, shape)| (name, shape, Dtype::F32));
    Declared::new(RANK as u32, 8, all).unwrap()
}

/// Values of a tensor: small, of both signs, different everywhere.
pub(crate) fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let salt = name.bytes().fold(7u32, |salt, byte| salt.wrapping_mul(31) + u32::from(byte));
    let value = |at: usize| ((at as u32).wrapping_mul(2_654_435_761) ^ salt) as f32 / 4e9 - 0.5;
    (0..shape.iter().product()).map(value).collect()
}

/// A file as the reference library writes it.
pub(crate) fn written(
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    metadata: &[(&str, &str)],
) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

pub(crate) fn filled() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let filled = |(name, shape): (String, Vec<usize>)| {
        let values = values(&name, &shape);
        (name, shape, values)
    };
    tensors().into_iter().map(filled).collect()
}

/// The adapter that is declared.
pub(crate) fn adapter() -> Vec<u8> {
    written(&filled(), &[("format", "pt")])
}

pub(crate) fn metrics() -> Metrics {
    Metrics {
        rows: 400,
        subjects: 40,
        steps: 100,
        tokens: 51_200,
        epoch_loss_milli_nats: Some(vec![3_100, 2_700]),
        validation: Some(Validation {
            rows: 20,
            tokens: 900,
            perplexity_before_milli: 24_500,
            perplexity_after_milli: 15_250,
        }),
    }
}

pub(crate) fn measures() -> Measures {
    Measures {
        extraction: Extraction {
            rows_tested: 64,
            extracted_base: 2,
            extracted_adapter: 2,
            longest_run_tokens: 9,
        },
        exposure: Exposure {
            canaries: 8,
            alternatives: 4_095,
            max_milli_bits: 4_321,
            mean_milli_bits: 1_440,
        },
    }
}

pub(crate) fn terms() -> Terms {
    let facts = RunFacts { rows: 420, subjects: 42, runs: 1, private: false };
    Terms { rules: Rules::default(), facts }
}

pub(crate) fn config() -> PeftConfig {
    PeftConfig {
        base_model_name_or_path: "tiny/llama".to_owned(),
        fan_in_fan_out: false,
        lora_alpha: 8,
        lora_dropout: 0.05,
        r: RANK as u32,
        target_modules: vec!["v_proj".to_owned(), "q_proj".to_owned()],
    }
}

pub(crate) fn card() -> CardFacts {
    let decimal = |mantissa, exp10| Decimal { mantissa, exp10 };
    CardFacts {
        job: MessageId::from_bytes([1; 32]),
        contract: MessageId::from_bytes([2; 32]),
        base: Base {
            name: "tiny/llama".to_owned(),
            digest: Digest::of(b"weights"),
            licence: Some("Apache-2.0".to_owned()),
        },
        sources: vec![Source {
            title: "Letters, 1900 | 1910".to_owned(),
            version: Digest::of(b"version"),
            licence: "CC-BY-4.0".to_owned(),
            languages: vec!["deu_Latn".to_owned()],
        }],
        recipe: RecipeFacts {
            digest: Digest::of(b"recipe"),
            targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            dropout: decimal(5, -2),
            steps: 100,
            rows_per_step: 8,
            sequence_tokens: 128,
            learning_rate: decimal(2, -4),
            schedule: "cosine".to_owned(),
        },
        privacy: None,
        second_approval: false,
    }
}

pub(crate) fn privacy() -> PrivacyFacts {
    let decimal = |mantissa, exp10| Decimal { mantissa, exp10 };
    PrivacyFacts {
        noise_multiplier: decimal(11, -1),
        sampling_rate: decimal(15_625, -6),
        clip_norm: decimal(1, 0),
        delta: decimal(1, -6),
        milli_epsilon: 1_973,
        milli_epsilon_after: 2_500,
    }
}
