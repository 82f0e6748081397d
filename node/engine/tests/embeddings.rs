//! Embeddings of a real sentence-transformers model against reference values
//! (`testnet/interop/minilm_reference.py` made them from the same files).

mod support;

use allmend_engine::Compute;
use allmend_engine::parity::Model;
use serde_json::Value;

/// Goal: each coordinate within 1e-4, texts together and one by one.
#[test]
fn minilm_embeddings_match_the_reference() {
    support::few_threads();
    let text = std::fs::read(support::fixture("minilm/reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&text).unwrap();
    let texts = reference["texts"].as_array().unwrap();
    assert!(texts.len() >= 5);
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let ids: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| numbers(&text["ids"]).into_iter().map(|id| id as u32).collect())
        .collect();
    let expected: Vec<Vec<f64>> = texts.iter().map(|text| numbers(&text["embedding"])).collect();
    let folder = support::minilm::path();
    for way in Compute::on_this_processor() {
        let mut model = Model::open(&folder, way, 512).unwrap();
        let together = model.embed(&ids).unwrap();
        let alone: Vec<Vec<f32>> =
            ids.iter().flat_map(|ids| model.embed(std::slice::from_ref(ids)).unwrap()).collect();
        for ours in [together, alone] {
            assert_eq!(ours.len(), expected.len());
            for (ours, expected) in ours.iter().zip(&expected) {
                assert_eq!(ours.len(), expected.len());
                for (ours, expected) in ours.iter().zip(expected) {
                    let difference = (f64::from(*ours) - expected).abs();
                    assert!(difference <= 1e-4, "{way:?}: {ours} instead of {expected}");
                }
            }
        }
        // The model was made for 256 tokens, special ones included, although it has 512 positions.
        let error = model.embed(&[vec![101; 257]]).unwrap_err().to_string();
        assert!(error.contains("257 tokens is not in 1..=256"), "{error}");
        assert!(model.embed(&[vec![]]).is_err());
    }
}

/// Goal: models that say nothing about pooling are not guessed at.
#[test]
fn embedding_needs_a_description() {
    support::few_threads();
    let mut model = Model::open(&support::fixture("xlm_roberta"), Compute::Candle, 64).unwrap();
    let error = model.embed(&[vec![5]]).unwrap_err().to_string();
    assert!(error.contains("modules.json"), "{error}");
}
