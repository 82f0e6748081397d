use serde_json::{Value, json};

use super::*;

fn read(value: Value, head_dim: usize) -> Result<Rope, EngineError> {
    let map = value.as_object().cloned().unwrap_or_default();
    let defaults = RopeDefaults { base: 1e4, part: 1.0, head_dim, context: 65_536 };
    let parameters = RopeParameters::from_keys(&Keys::new("rope.", &map), &defaults)?;
    Ok(Rope::new(&parameters, Pairing::Halves))
}

fn assert_close(ours: &[f32], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len());
    for (a, b) in ours.iter().zip(expected) {
        assert!((a - b).abs() <= b * 1e-6, "{a} instead of {b}");
    }
}

/// Values of transformers 5.24's `_compute_yarn_parameters`; the first are those of OLMo 3.
#[test]
fn yarn_is_as_the_reference_computes_it() {
    let rope = read(
        json!({
            "rope_type": "yarn", "rope_theta": 500000.0, "factor": 8.0,
            "original_max_position_embeddings": 8192, "beta_fast": 32.0, "beta_slow": 1.0,
            "attention_factor": 1.2079441541679836
        }),
        32,
    )
    .unwrap();
    let expected = [
        1.0,
        0.440_366_63,
        0.193_922_76,
        0.085_397_1,
        0.037_606_03,
        0.013_662_364,
        0.004_740_232_6,
        0.001_525_436_8,
        0.000_424_264,
        7.784_655_5e-5,
        3.428_102_4e-5,
        1.509_621_8e-5,
        6.647_870_6e-6,
        2.927_499_7e-6,
        1.289_173_2e-6,
        5.677_088e-7,
    ];
    assert_close(&rope.frequencies, &expected);
    assert_eq!(rope.amplitude, 1.207_944_2);
    let rope = read(
        json!({
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512,
            "truncate": false
        }),
        24,
    )
    .unwrap();
    let expected = [
        1.0,
        0.464_158_9,
        0.187_453_66,
        0.070_398_636,
        0.024_966_637,
        0.008_010_05,
        0.002_5,
        0.001_160_397_4,
        0.000_538_608_6,
        0.000_25,
        0.000_116_039_75,
        5.386_085_5e-5,
    ];
    assert_close(&rope.frequencies, &expected);
    assert_eq!(rope.amplitude, 1.138_629_4);
}

#[test]
fn linear_scaling_divides_every_frequency() {
    let plain = read(json!({}), 8).unwrap();
    assert_close(&plain.frequencies, &[1.0, 0.1, 0.01, 0.001]);
    let scaled = read(json!({ "rope_type": "linear", "factor": 4 }), 8).unwrap();
    assert_close(&scaled.frequencies, &[0.25, 0.025, 0.0025, 0.00025]);
}

#[test]
fn what_is_not_understood_is_named() {
    let message = |value: Value| read(value, 8).unwrap_err().to_string();
    assert!(message(json!({ "rope_type": "longrope" })).contains("rope.rope_type = \"longrope\""));
    assert!(message(json!({ "type": "dynamic" })).contains("rope.type = \"dynamic\""));
    assert!(message(json!({ "rope_type": "linear" })).contains("rope.factor: is missing"));
    assert!(message(json!({ "factor": 2.0 })).contains("rope.factor = 2.0"));
    assert!(message(json!({ "rope_theta": 0.0 })).contains("is not in 1"));
    assert!(
        message(json!({ "partial_rotary_factor": 0.4 })).contains("cannot be rotated in pairs")
    );
    let bounds = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0
    });
    assert!(message(bounds).contains("is not below high_freq_factor"));
}

#[test]
fn angles_carry_the_amplitude() {
    let rope = Rope { pairing: Pairing::Halves, frequencies: vec![0.5], amplitude: 2.0 };
    let (cos, sin) = rope.angles(3).next().unwrap();
    assert!((cos - 2.0 * 1.5f32.cos()).abs() < 1e-6 && (sin - 2.0 * 1.5f32.sin()).abs() < 1e-6);
}

#[test]
fn divisors_must_fit() {
    let rope = read(json!({}), 8).unwrap();
    assert!(rope.clone().divided_by(&[1.0; 3]).unwrap_err().to_string().contains("has shape"));
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = rope.clone().divided_by(&[1.0, bad, 1.0, 1.0]).unwrap_err().to_string();
        assert!(error.contains("divisor 1 is"), "{error}");
    }
}
