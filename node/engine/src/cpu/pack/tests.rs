//! Packing against candle's dequantisation, and against hostile shapes.

use candle_core::quantized::{GgmlDType, ggml_file};
use candle_core::{DType, Device};
use proptest::prelude::*;

use super::*;
use crate::cpu::kernels::f16_to_f32;

/// Every type that can be packed.
pub(crate) const TYPES: [GgmlDType; 13] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// Weights of any codes whatever, with scales between 2^-9 and 2^-5: bytes from a xorshift
/// generator, but for the f16 scales and the exponents of floats.
pub(crate) fn weights(dtype: GgmlDType, rows: usize, columns: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let blocks = rows * columns / dtype.block_size();
    let mut bytes: Vec<u8> = (0..blocks * dtype.type_size()).map(|_| byte()).collect();
    for block in bytes.chunks_exact_mut(dtype.type_size()) {
        let halves: &[usize] = match dtype {
            GgmlDType::F32 => {
                block[3] = block[3] & 0x80 | 0x3c;
                &[]
            }
            GgmlDType::BF16 => {
                block[1] = block[1] & 0x80 | 0x3c;
                &[]
            }
            GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
            GgmlDType::Q2K => &[80, 82],
            GgmlDType::Q3K => &[108],
            GgmlDType::Q6K => &[208],
            _ => &[0],
        };
        for at in halves {
            block[at + 1] = block[at + 1] & 0x8b | 0x18;
        }
    }
    bytes
}

/// What candle makes of the same bytes.
fn dequantised(raw: &RawMatrix<'_>) -> Vec<f32> {
    let dims = vec![raw.rows, raw.columns];
    let tensor = match raw.dtype {
        // Candle's loader of blocks knows no bfloat16; the tensor of that type does.
        GgmlDType::BF16 => {
            let shape = (raw.rows, raw.columns);
            let halves = raw.bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half));
            let wide: Vec<f32> = halves.map(bf16_to_f32).collect();
            candle_core::Tensor::from_vec(wide, shape, &Device::Cpu).expect("a tensor")
        }
        dtype => ggml_file::qtensor_from_ggml(dtype, raw.bytes, dims, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu))
            .expect("candle dequantises"),
    };
    tensor
        .to_dtype(DType::F32)
        .and_then(|tensor| tensor.flatten_all())
        .and_then(|tensor| tensor.to_vec1())
        .expect("values")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn rows_of(packed: &PackedMatrix) -> Vec<f32> {
    let mut out = vec![0.0; packed.rows() * packed.columns()];
    for (row, out) in out.chunks_exact_mut(packed.columns()).enumerate() {
        packed.row_into(row, out);
    }
    out
}

#[test]
fn rows_read_back_as_candle_dequantises_them() {
    for dtype in TYPES {
        for (rows, columns) in [(1, 256), (16, 512), (33, 256), (75, 768)] {
            let bytes = weights(dtype, rows, columns, 3);
            let raw = RawMatrix { dtype, rows, columns, bytes: &bytes };
            let packed = PackedMatrix::pack(&[raw], Order::Concatenated).expect("packs");
            assert_eq!(bits(&rows_of(&packed)), bits(&dequantised(&raw)), "{dtype:?} {rows}");
        }
    }
}

#[test]
fn block_sizes_are_candles() {
    for dtype in TYPES.into_iter().filter(|dtype| dtype.block_size() > 1) {
        assert_eq!(ggml::block_bytes(dtype), dtype.type_size(), "{dtype:?}");
    }
}

/// Goal: an order that mixes up parts, halves or tiles shows; also with types of several kinds.
#[test]
fn parts_are_put_together_in_order() {
    let cases = [
        (GgmlDType::Q4_1, GgmlDType::Q4_1),
        (GgmlDType::Q4K, GgmlDType::Q6K),
        (GgmlDType::F16, GgmlDType::F32),
        (GgmlDType::F32, GgmlDType::Q8_0),
    ];
    for (first, second) in cases {
        for order in [Order::Concatenated, Order::Gated] {
            let other_rows = if order == Order::Gated { 41 } else { 7 };
            let bytes = (weights(first, 41, 256, 1), weights(second, other_rows, 256, 2));
            let parts = [
                RawMatrix { dtype: first, rows: 41, columns: 256, bytes: &bytes.0 },
                RawMatrix { dtype: second, rows: other_rows, columns: 256, bytes: &bytes.1 },
            ];
            let packed = PackedMatrix::pack(&parts, order).expect("packs");
            let expected = [dequantised(&parts[0]), dequantised(&parts[1])].concat();
            assert_eq!(bits(&rows_of(&packed)), bits(&expected), "{first:?} {second:?} {order:?}");
        }
    }
}

#[test]
fn jobs_write_what_one_thread_writes() {
    let bytes = weights(GgmlDType::Q4K, 200, 512, 5);
    let raw = RawMatrix { dtype: GgmlDType::Q4K, rows: 200, columns: 512, bytes: &bytes };
    let whole = PackedMatrix::pack(&[raw], Order::Concatenated).expect("packs");
    let arena = &mut Arena::for_model();
    let mut packing = Packing::new(&[raw], Order::Concatenated, arena).expect("packs");
    let jobs = packing.jobs(3);
    let sources: Vec<u8> = jobs.iter().flat_map(PackJob::sources).flatten().copied().collect();
    assert_eq!(sources, bytes, "together they say that they read everything, once");
    std::thread::scope(|scope| {
        for job in jobs {
            scope.spawn(|| job.run());
        }
    });
    let parts = packing.finish();
    assert_eq!(whole.segments()[0].packed(), parts.segments()[0].packed());
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let raw = |dtype, rows, columns, bytes| RawMatrix { dtype, rows, columns, bytes };
    let pack = |parts: &[RawMatrix<'_>], order| PackedMatrix::pack(parts, order).map(|_| ());
    let zeros = [0; 4 * 64];
    let refused = pack(&[raw(GgmlDType::Q8K, 1, 256, &zeros)], Order::Concatenated);
    assert!(matches!(refused, Err(PackError::UnsupportedType { dtype: GgmlDType::Q8K })));
    let refused = pack(&[], Order::Concatenated);
    assert!(matches!(refused, Err(PackError::Empty { .. })));
    let refused = pack(&[raw(GgmlDType::F32, 0, 8, &[])], Order::Concatenated);
    assert!(matches!(refused, Err(PackError::Empty { rows: 0, columns: 8 })));
    let refused = pack(&[raw(GgmlDType::Q4_0, 1, 33, &zeros[..18])], Order::Concatenated);
    assert!(matches!(refused, Err(PackError::PartialBlock { columns: 33, block: 32, .. })));
    let refused = pack(&[raw(GgmlDType::F32, usize::MAX / 2, 8, &zeros)], Order::Concatenated);
    assert!(matches!(refused, Err(PackError::Length { expected: usize::MAX, found: 256, .. })));
    let (a, b) = (raw(GgmlDType::F32, 2, 32, &zeros), raw(GgmlDType::F32, 4, 16, &zeros));
    let refused = pack(&[a, b], Order::Concatenated);
    assert!(matches!(refused, Err(PackError::Shapes { first: (2, 32), other: (4, 16) })));
    let refused = pack(&[a], Order::Gated);
    assert!(matches!(refused, Err(PackError::Shapes { .. })));
}

#[test]
fn not_a_number_as_a_scale_stays_visible() {
    let mut bytes = weights(GgmlDType::Q4_0, 1, 32, 1);
    bytes[..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    assert!(f16_to_f32(0x7e00).is_nan());
    let raw = RawMatrix { dtype: GgmlDType::Q4_0, rows: 1, columns: 32, bytes: &bytes };
    let packed = PackedMatrix::pack(&[raw], Order::Concatenated).expect("packs");
    assert!(rows_of(&packed).iter().all(|x| x.is_nan()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Goal: no claim about shape or length makes packing read or write out of bounds, or allocate
    /// more than the bytes given justify.
    #[test]
    fn claims_do_not_matter(
        kind in 0..TYPES.len(),
        rows in prop_oneof![0usize..70, Just(usize::MAX), Just(1 << 40)],
        columns in prop_oneof![0usize..600, Just(256usize), Just(usize::MAX), Just(1 << 40)],
        len in 0usize..20_000,
        exact in any::<bool>(),
    ) {
        let dtype = TYPES[kind];
        let block = dtype.block_size();
        let needed = (columns / block).checked_mul(dtype.type_size()).and_then(|b| b.checked_mul(rows));
        let len = match needed {
            Some(needed) if exact && needed < 1 << 20 => needed,
            _ => len,
        };
        let bytes = vec![0x5a; len];
        let raw = RawMatrix { dtype, rows, columns, bytes: &bytes };
        let fits = rows > 0 && columns > 0 && columns.is_multiple_of(block) && needed == Some(len);
        let packed = PackedMatrix::pack(&[raw], Order::Concatenated);
        prop_assert_eq!(packed.is_ok(), fits);
        if let Ok(packed) = packed {
            let padded = rows.next_multiple_of(layout::TILE_ROWS);
            prop_assert!(packed.bytes() <= len / rows * padded * 5 / 4);
            let mut row = vec![0.0; columns];
            packed.row_into(rows - 1, &mut row);
        }
    }
}
