//! Logits against the reference implementation's, through GGUF.

mod support;

use std::num::NonZeroUsize;

use allmend_engine::{Engine, LoadOptions};

/// Goal: all positions within 1e-4 of the reference, whole and in chunks.
#[test]
fn logits_match_the_reference() {
    for family in support::FAMILIES {
        let (_dir, path) = support::file(&support::tiny_model(family).to_bytes());
        let mut engine = Engine::load(&path, &LoadOptions::default()).unwrap();
        let expected = support::safetensors(&format!("{family}/expected.safetensors"));
        let ids = expected["ids"].to_vec2::<i64>().unwrap();
        let logits = expected["logits"].to_vec3::<f32>().unwrap();
        for (ids, logits) in ids.iter().zip(&logits) {
            let ids: Vec<u32> = ids.iter().map(|&id| u32::try_from(id).unwrap()).collect();
            for chunk in [1, 7, 16, 60] {
                let ours = engine.logits(&ids, NonZeroUsize::new(chunk).unwrap()).unwrap();
                let worst = worst_difference(&ours, logits);
                assert!(worst <= 1e-4, "{family}, chunks of {chunk}: {worst}");
            }
        }
    }
}

/// Goal: the comparison above can fail: leaving the Llama 3 frequencies out is noticed.
#[test]
fn missing_rope_scaling_is_noticed() {
    let writer = support::tiny_model("llama3_rope").without("rope_freqs.weight");
    let (_dir, path) = support::file(&writer.to_bytes());
    let mut engine = Engine::load(&path, &LoadOptions::default()).unwrap();
    let expected = support::safetensors("llama3_rope/expected.safetensors");
    let ids: Vec<u32> = expected["ids"].to_vec2::<i64>().unwrap()[0]
        .iter()
        .map(|&id| u32::try_from(id).unwrap())
        .collect();
    let ours = engine.logits(&ids, NonZeroUsize::new(60).unwrap()).unwrap();
    assert!(worst_difference(&ours, &expected["logits"].to_vec3::<f32>().unwrap()[0]) > 1e-3);
}

fn worst_difference(ours: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    let rows = ours.iter().zip(expected);
    rows.flat_map(|(ours, expected)| {
        assert_eq!(ours.len(), expected.len());
        ours.iter().zip(expected).map(|(a, b)| (a - b).abs())
    })
    .fold(0.0, f32::max)
}
