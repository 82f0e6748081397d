//! Every kernel against the portable one (equal bits), and that one against f64 and candle (within
//! rounding).

use candle_core::quantized::GgmlDType;
use proptest::prelude::*;

use super::*;
use crate::cpu::isa::{Isa, Work};
use crate::cpu::math::Activation;
use crate::cpu::pack::mapped::MappedRows;
use crate::cpu::pack::tests::{TYPES, weights};
use crate::cpu::pack::{InputKind, Order, PackedMatrix, RawMatrix, blocks_per_row};

/// Every value rounded to half precision.
struct Halve<'a>(&'a [f32]);

impl Work for Halve<'_> {
    type Output = Vec<u16>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u16> {
        let mut out = vec![0u16; self.0.len()];
        assert!(out.len().is_multiple_of(16), "whole vectors");
        for at in (0..out.len()).step_by(S::LANES) {
            // SAFETY: as many values follow in both.
            unsafe {
                s.store_f16(out.as_mut_ptr().add(at).cast(), s.load(self.0.as_ptr().add(at)))
            };
        }
        out
    }
}

/// Goal: rounding to half precision is the nearest one, ties to even, on every instruction set. Method: against the crate `half`, at
/// every half-precision value, halfway between neighbours, and a bit beside both.
#[test]
fn rounding_to_half_precision_is_exact() {
    let steps = (0..=0x7bffu16).flat_map(|bits| {
        let (here, next) = (f16_to_f32(bits), f16_to_f32(bits + 1));
        let between = match next.is_finite() {
            true => (here + next) / 2.0,
            false => 65_520.0,
        };
        let beside = |x: f32| [x.next_down(), x, x.next_up(), -x];
        [beside(here), beside(between)].concat()
    });
    let extremes =
        [1e30, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, 1e-45, -0.0, 0.0];
    let values: Vec<f32> = steps.chain(extremes).chain([1.0; 8]).collect();
    for isa in Isa::available() {
        for (value, out) in values.iter().zip(isa.run(Halve(&values))) {
            let expected = half::f16::from_f32_const(*value).to_bits();
            assert_eq!(out, expected, "{value:e} on {isa:?}");
        }
        let none = isa.run(Halve(&[f32::NAN; 16]));
        assert!(none.iter().all(|bits| f16_to_f32(*bits).is_nan()), "{isa:?}");
    }
}

/// Rows of `columns` activations of very different sizes, the same for the same arguments.
fn activations(rows: usize, columns: usize) -> Vec<f32> {
    let value = |i: usize| (i * 7919 % 1009) as f32 / 504.5 - 1.0;
    (0..rows * columns).map(|i| value(i) * [0.01, 1.0, 30.0][i / 64 % 3]).collect()
}

fn quantised(isa: Isa, x: &[f32], columns: usize) -> Vec<QuantBlock> {
    let per_row = blocks_per_row(columns);
    let mut out = vec![QuantBlock::default(); x.len() / columns * per_row];
    for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(per_row)) {
        quantise_row(isa, x, out);
    }
    out
}

fn pack(dtype: GgmlDType, rows: usize, columns: usize, order: Order) -> PackedMatrix {
    let bytes = weights(dtype, rows, columns, 11);
    let raw = RawMatrix { dtype, rows, columns, bytes: &bytes };
    match order {
        Order::Concatenated => PackedMatrix::pack(&[raw], order),
        Order::Gated => {
            let bytes = weights(dtype, rows, columns, 12);
            PackedMatrix::pack(&[raw, RawMatrix { bytes: &bytes, ..raw }], order)
        }
    }
    .expect("packs")
}

/// The product of the first `rows` rows of `x`, on top of ones.
fn product(
    isa: Isa,
    weights: &PackedMatrix,
    x: &[f32],
    rows: usize,
    bias: Option<&[f32]>,
    then: Then,
) -> Vec<f32> {
    let width = weights.rows() / if matches!(then, Then::Gate(_)) { 2 } else { 1 };
    let mut out = vec![1.0; rows * width];
    let blocks;
    let input = match weights.input() {
        InputKind::Float => Input::Float(x),
        InputKind::Quantised => {
            blocks = quantised(isa, x, weights.columns());
            Input::Quantised(&blocks)
        }
    };
    let output = Output::new(&mut out, width);
    Product { weights, input, rows, bias, then, output }.run_alone(isa);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Goal: one result per (weights, activations): whatever the instruction set and however many rows
/// go through together.
#[test]
fn bits_depend_on_neither_instructions_nor_company() {
    for dtype in TYPES {
        let weights = pack(dtype, 75, 512, Order::Concatenated);
        let x = activations(17, 512);
        let alone: Vec<Vec<u32>> = (0..17)
            .map(|r| bits(&product(Isa::Portable, &weights, &x[r * 512..], 1, None, Then::Store)))
            .collect();
        for isa in Isa::available() {
            for rows in 1..=17 {
                let together = product(isa, &weights, &x, rows, None, Then::Store);
                assert_eq!(bits(&together), alone[..rows].concat(), "{dtype:?} {isa:?} {rows}");
            }
        }
    }
}

/// Goal: the sums are those of the weights and activations as they are represented, in f64, up to
/// the rounding of one f32 accumulator; and those of the activations as given, up to their
/// quantisation.
#[test]
fn portable_products_agree_with_f64() {
    for dtype in TYPES {
        let weights = pack(dtype, 40, 768, Order::Concatenated);
        let x = activations(2, 768);
        let blocks = quantised(Isa::Portable, &x, 768);
        let seen: Vec<f64> = match weights.input() {
            InputKind::Float => x.iter().map(|x| f64::from(*x)).collect(),
            InputKind::Quantised => blocks
                .iter()
                .flat_map(|b| b.quants.map(|q| f64::from(q) * f64::from(b.scale)))
                .collect(),
        };
        let found = product(Isa::Portable, &weights, &x, 2, None, Then::Store);
        let mut row = vec![0.0; 768];
        for output in 0..40 {
            weights.row_into(output, &mut row);
            for r in 0..2 {
                let terms = || row.iter().zip(&seen[r * 768..]).map(|(w, x)| f64::from(*w) * x);
                let expected: f64 = terms().sum();
                // Formats with minima sum codes and minima apart, which may cancel.
                let magnitude: f64 = terms().map(f64::abs).sum();
                let error = (f64::from(found[r * 40 + output]) - expected).abs();
                assert!(error <= 2e-6 * magnitude, "{dtype:?}: {error} of {magnitude}");
                let given: f64 =
                    row.iter().zip(&x[r * 768..]).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let error = (f64::from(found[r * 40 + output]) - given).abs();
                assert!(error <= 1e-2 * magnitude, "{dtype:?}: {error} of {magnitude}");
            }
        }
    }
}

/// Goal: sums of the largest codes and activations, of either sign, do not saturate or overflow
/// anywhere.
#[test]
fn extreme_codes_are_exact() {
    let quantised_types = TYPES.into_iter().filter(|dtype| dtype.block_size() > 1);
    for dtype in quantised_types {
        for fill in [0x00, 0x7f, 0x80, 0xff, 0x0f, 0xf0] {
            let mut bytes = weights(dtype, 32, 512, 1);
            let codes = match dtype {
                GgmlDType::Q4_1 | GgmlDType::Q5_1 => 4..dtype.type_size(),
                GgmlDType::Q4K | GgmlDType::Q5K => 4..dtype.type_size(),
                GgmlDType::Q2K => 0..80,
                GgmlDType::Q3K => 0..108,
                GgmlDType::Q6K => 0..208,
                _ => 2..dtype.type_size(),
            };
            for block in bytes.chunks_exact_mut(dtype.type_size()) {
                block[codes.clone()].fill(fill);
            }
            let raw = RawMatrix { dtype, rows: 32, columns: 512, bytes: &bytes };
            let weights = PackedMatrix::pack(&[raw], Order::Concatenated).expect("packs");
            for sign in [1.0, -1.0] {
                let x = vec![sign; 7 * 512];
                let portable = product(Isa::Portable, &weights, &x, 7, None, Then::Store);
                let mut row = vec![0.0; 512];
                for (output, found) in portable[..32].iter().enumerate() {
                    weights.row_into(output, &mut row);
                    let expected: f64 = row.iter().map(|w| f64::from(*w) * f64::from(sign)).sum();
                    let magnitude: f64 = row.iter().map(|w| f64::from(w.abs())).sum::<f64>() + 1.0;
                    let error = (f64::from(*found) - expected).abs();
                    // The minimum's share may be much larger than the sum that remains.
                    assert!(error <= 1e-4 * magnitude, "{dtype:?} {fill:#x}: {error}");
                }
                for isa in Isa::available() {
                    let found = product(isa, &weights, &x, 7, None, Then::Store);
                    assert_eq!(bits(&found), bits(&portable), "{dtype:?} {isa:?} {fill:#x} {sign}");
                }
            }
        }
    }
}

#[test]
fn what_follows_a_product_is_applied() {
    for dtype in [GgmlDType::F32, GgmlDType::Q4_1] {
        // 20 outputs leave a partial tile, and gated a partial half.
        let weights = pack(dtype, 20, 64, Order::Concatenated);
        let gated = pack(dtype, 20, 64, Order::Gated);
        let x = activations(5, 64);
        let bias: Vec<f32> = (0..40).map(|i| i as f32 * 0.25 - 3.0).collect();
        for isa in Isa::available() {
            let plain = product(isa, &weights, &x, 5, None, Then::Store);
            let biased: Vec<f32> =
                plain.iter().enumerate().map(|(i, y)| y + bias[i % 20]).collect();
            let found = product(isa, &weights, &x, 5, Some(&bias[..20]), Then::Store);
            assert_eq!(bits(&found), bits(&biased), "{isa:?}");
            let found = product(isa, &weights, &x, 5, Some(&bias[..20]), Then::Add);
            let added: Vec<f32> = biased.iter().map(|y| 1.0 + y).collect();
            assert_eq!(bits(&found), bits(&added), "{isa:?}");
            let relu = Then::Activate(Activation::Relu);
            let found = product(isa, &weights, &x, 5, Some(&bias[..20]), relu);
            let expected: Vec<f32> = biased.iter().map(|y| y.max(0.0)).collect();
            assert_eq!(found, expected, "{isa:?}");

            let found = product(isa, &gated, &x, 5, Some(&bias), Then::Gate(Activation::Relu));
            let mut rows = (vec![0.0; 64], vec![0.0; 64]);
            let blocks = quantised(isa, &x, 64);
            for (i, found) in found.iter().enumerate() {
                let (r, output) = (i / 20, i % 20);
                gated.row_into(output, &mut rows.0);
                gated.row_into(20 + output, &mut rows.1);
                let x: Vec<f64> = match gated.input() {
                    InputKind::Float => x[r * 64..].iter().map(|x| f64::from(*x)).collect(),
                    InputKind::Quantised => blocks[2 * r..]
                        .iter()
                        .flat_map(|b| b.quants.map(|q| f64::from(q) * f64::from(b.scale)))
                        .collect(),
                };
                let sum =
                    |w: &[f32]| -> f64 { w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum() };
                let gate = (sum(&rows.0) + f64::from(bias[output])).max(0.0);
                let expected = gate * (sum(&rows.1) + f64::from(bias[20 + output]));
                let error = (f64::from(*found) - expected).abs();
                assert!(error <= 1e-4 * (1.0 + expected.abs()), "{isa:?} {found} {expected}");
            }
        }
    }
}

/// Goal: more rows than one pass over the weights takes, and tiles computed by several threads,
/// change nothing.
#[test]
fn passes_and_threads_leave_no_trace() {
    for dtype in [GgmlDType::F32, GgmlDType::Q4_0] {
        let weights = pack(dtype, 100, 8192, Order::Concatenated);
        let x = activations(61, 8192);
        let isa = Isa::detect();
        let whole = product(isa, &weights, &x, 61, None, Then::Store);
        let last = product(isa, &weights, &x[60 * 8192..], 1, None, Then::Store);
        assert_eq!(bits(&whole[60 * 100..]), bits(&last));
        let mut out = vec![0.0; 61 * 100];
        let blocks = quantised(isa, &x, 8192);
        let input = match weights.input() {
            InputKind::Float => Input::Float(&x),
            InputKind::Quantised => Input::Quantised(&blocks),
        };
        let output = Output::new(&mut out, 100);
        let then = Then::Store;
        let product = Product { weights: &weights, input, rows: 61, bias: None, then, output };
        let product = &product;
        std::thread::scope(|scope| {
            for tile in 0..weights.tiles() {
                // SAFETY: each thread has a tile of its own.
                scope.spawn(move || unsafe { product.run(isa, tile..tile + 1) });
            }
        });
        assert_eq!(bits(&out), bits(&whole));
    }
}

/// Goal: parts of several types in one matrix give what each gives alone.
#[test]
fn mixed_types_multiply_as_they_do_alone() {
    let bytes = (weights(GgmlDType::Q4K, 40, 256, 1), weights(GgmlDType::Q6K, 9, 256, 2));
    let parts = [
        RawMatrix { dtype: GgmlDType::Q4K, rows: 40, columns: 256, bytes: &bytes.0 },
        RawMatrix { dtype: GgmlDType::Q6K, rows: 9, columns: 256, bytes: &bytes.1 },
    ];
    let both = PackedMatrix::pack(&parts, Order::Concatenated).expect("packs");
    let x = activations(3, 256);
    for isa in Isa::available() {
        let found = product(isa, &both, &x, 3, None, Then::Store);
        for (part, columns) in parts.iter().zip([0..40, 40..49]) {
            let alone = PackedMatrix::pack(&[*part], Order::Concatenated).expect("packs");
            let alone = product(isa, &alone, &x, 3, None, Then::Store);
            for (found, alone) in found.chunks_exact(49).zip(alone.chunks_exact(part.rows)) {
                assert_eq!(bits(&found[columns.clone()]), bits(alone), "{isa:?}");
            }
        }
    }
}

#[test]
fn damaged_activations_stay_visible() {
    for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = activations(2, 64);
        x[70] = damage;
        for dtype in [GgmlDType::F32, GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0] {
            let weights = pack(dtype, 8, 64, Order::Concatenated);
            for isa in Isa::available() {
                let found = product(isa, &weights, &x, 2, None, Then::Store);
                assert!(found[..8].iter().all(|y| y.is_finite()), "{dtype:?} {isa:?}");
                assert!(found[8..].iter().all(|y| !y.is_finite()), "{dtype:?} {isa:?}");
            }
        }
    }
}

/// The documented formula, value by value.
fn quantise_as_documented(x: &[f32; 32]) -> QuantBlock {
    let amax = x.iter().fold(0f32, |amax, x| amax.max(x.abs()));
    let inverse = 127.0 / amax;
    if !inverse.is_finite() {
        return QuantBlock::default();
    }
    let quants = x.map(|x| (x * inverse).round_ties_even() as i8);
    let sum = |quants: &[i8]| quants.iter().map(|q| i32::from(*q)).sum::<i32>();
    let scale = amax / 127.0;
    QuantBlock {
        quants,
        scale,
        scaled_sum: scale * sum(&quants) as f32,
        neg_sum: -sum(&quants),
        neg_half: -sum(&quants[..16]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn activations_are_quantised_as_documented(
        x in prop::array::uniform32(prop_oneof![
            8 => -100f32..100f32,
            1 => Just(0f32),
            1 => prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
        ]),
        small in any::<bool>(),
    ) {
        // Some blocks without the huge values that a random exponent brings.
        let x = if small { x.map(|x| x % 128.0) } else { x };
        for isa in Isa::available() {
            let mut out = [QuantBlock::default()];
            quantise_row(isa, &x, &mut out);
            prop_assert_eq!(out[0], quantise_as_documented(&x), "{:?}", isa);
        }
    }

    /// Any bytes at all as weights (but for scales that are not finite), any shape: the same bits
    /// everywhere.
    #[test]
    fn any_weights_give_the_same_bits_everywhere(
        kind in 0..TYPES.len(),
        outputs in 1usize..70,
        blocks in 1usize..4,
        rows in 1usize..14,
        seed in any::<u64>(),
        shift in 0usize..1000,
    ) {
        let dtype = TYPES[kind];
        let columns = blocks * dtype.block_size().max(7);
        let bytes = weights(dtype, outputs, columns, seed);
        let raw = RawMatrix { dtype, rows: outputs, columns, bytes: &bytes };
        let weights = PackedMatrix::pack(&[raw], Order::Concatenated).expect("packs");
        let x = activations(rows + 1, columns + shift)[shift..][..rows * columns].to_vec();
        let expected = product(Isa::Portable, &weights, &x, rows, None, Then::Store);
        for isa in Isa::available() {
            let found = product(isa, &weights, &x, rows, None, Then::Store);
            prop_assert_eq!(bits(&found), bits(&expected), "{:?}", isa);
        }
    }
}

/// Goal: weights used where a file has them give the bits of packed ones, on every instruction set, for few rows and many, for parts
/// put together in both ways; and rows are read back alike.
#[test]
fn weights_in_place_are_as_good_as_packed() {
    let dtype = GgmlDType::F32;
    // Columns that are no multiple of what is turned at a time; a file in which nothing is aligned.
    let columns = 144;
    let bytes: Vec<u8> =
        [vec![7; 3], weights(dtype, 64, columns, 1), weights(dtype, 64, columns, 2)].concat();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &bytes).expect("written");
    let map = std::sync::Arc::new(crate::files::map::map(file.path()).expect("mapped"));
    let size = 4 * 64 * columns;
    let ranges = [3..3 + size, 3 + size..3 + 2 * size];
    for order in [Order::Concatenated, Order::Gated] {
        let raw = ranges.clone().map(|range| RawMatrix {
            dtype,
            rows: 64,
            columns,
            bytes: &bytes[range],
        });
        let packed = PackedMatrix::pack(&raw, order).expect("packs");
        let mapped = ranges.clone().map(|range| {
            let file = std::sync::Arc::clone(&map);
            MappedRows { file, range, rows: 64 }
        });
        let in_place = PackedMatrix::in_place(&mapped, columns, order).expect("whole tiles");
        assert_eq!((in_place.rows(), in_place.bytes()), (packed.rows(), packed.bytes()));
        let (mut a, mut b) = (vec![0.0; columns], vec![0.0; columns]);
        for row in 0..128 {
            packed.row_into(row, &mut a);
            in_place.row_into(row, &mut b);
            assert_eq!(bits(&a), bits(&b), "{order:?} row {row}");
        }
        let then = if order == Order::Gated { Then::Gate(Activation::Silu) } else { Then::Add };
        let x = activations(17, columns);
        for rows in [1, 2, 3, 4, 5, 6, 8, 17] {
            let expected = bits(&product(Isa::Portable, &packed, &x, rows, None, then));
            for isa in Isa::available() {
                let found = bits(&product(isa, &in_place, &x, rows, None, then));
                assert_eq!(found, expected, "{isa:?} {order:?} {rows} rows");
            }
        }
    }
    let odd = MappedRows { file: map, range: 0..4 * 33 * columns, rows: 33 };
    assert!(PackedMatrix::in_place(&[odd], columns, Order::Concatenated).is_none());
}
