//! One benchmark per kernel: each weight format on each instruction set that the processor has.
//!
//! Throughput of `product/*` is in multiply-accumulates (1 Gelem/s = 1 GMAC/s) on one thread; that
//! of `stream/*` in bytes of packed weights, one row of activations times a matrix larger than the
//! last cache, on one and two threads. Compare figures of one run with each other; absolute ones
//! depend on who shares the machine.
//!
//! `cargo bench -p allmend-engine --bench kernels -- product/Q4_1`

use std::hint::black_box;
use std::time::Duration;

use allmend_engine::cpu::isa::Isa;
use allmend_engine::cpu::kernels::{Input, Output, Product, QuantBlock, Then, quantise_row};
use allmend_engine::cpu::pack::{InputKind, Order, PackedMatrix, RawMatrix, blocks_per_row};
use candle_core::quantized::GgmlDType;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const TYPES: [GgmlDType; 13] = [
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
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
];

/// Weights of zeros: the arithmetic takes as long whatever the values are.
fn matrix(dtype: GgmlDType, rows: usize, columns: usize) -> PackedMatrix {
    let bytes = vec![0; rows * columns / dtype.block_size() * dtype.type_size()];
    let raw = RawMatrix { dtype, rows, columns, bytes: &bytes };
    PackedMatrix::pack(&[raw], Order::Concatenated).expect("a whole number of blocks")
}

/// Rows of activations in both forms.
struct Activations {
    floats: Vec<f32>,
    blocks: Vec<QuantBlock>,
}

impl Activations {
    fn new(isa: Isa, rows: usize, columns: usize) -> Self {
        let floats: Vec<f32> =
            (0..rows * columns).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
        let per_row = blocks_per_row(columns);
        let mut blocks = vec![QuantBlock::default(); rows * per_row];
        for (x, out) in floats.chunks_exact(columns).zip(blocks.chunks_exact_mut(per_row)) {
            quantise_row(isa, x, out);
        }
        Self { floats, blocks }
    }

    fn input(&self, weights: &PackedMatrix) -> Input<'_> {
        match weights.input() {
            InputKind::Float => Input::Float(&self.floats),
            InputKind::Quantised => Input::Quantised(&self.blocks),
        }
    }
}

/// Shapes of a model of 135 million parameters and of one of a billion; K-quants need rows of 256.
fn products(criterion: &mut Criterion) {
    for dtype in TYPES {
        let mut group = criterion.benchmark_group(format!("product/{dtype:?}"));
        for (outputs, columns) in [(1536, 576), (2048, 2048), (2048, 8192)] {
            if columns % dtype.block_size() != 0 {
                continue;
            }
            let weights = matrix(dtype, outputs, columns);
            for isa in Isa::available() {
                // The portable kernel is there to be right; one shape says how it stands.
                let rows_of = if isa == Isa::Portable { &[4][..] } else { &[1, 4, 16, 128] };
                for rows in rows_of.iter().copied() {
                    let x = Activations::new(isa, rows, columns);
                    let mut out = vec![0.0; rows * outputs];
                    let work = rows * outputs * columns;
                    group.throughput(Throughput::Elements(work as u64));
                    let name = format!("{}/{outputs}x{columns}", isa.name());
                    group.bench_function(BenchmarkId::new(name, rows), |bencher| {
                        bencher.iter(|| {
                            let output = Output::new(black_box(&mut out), outputs);
                            let (input, bias, then) = (x.input(&weights), None, Then::Store);
                            let weights = &weights;
                            Product { weights, input, rows, bias, then, output }.run_alone(isa);
                        });
                    });
                }
            }
        }
        group.finish();
    }
}

fn streams(criterion: &mut Criterion) {
    const COLUMNS: usize = 2048;
    const BYTES: usize = 128 << 20;
    for dtype in TYPES {
        let mut group = criterion.benchmark_group(format!("stream/{dtype:?}"));
        let row_bytes = COLUMNS / dtype.block_size() * dtype.type_size();
        let weights = matrix(dtype, BYTES / row_bytes / 64 * 64, COLUMNS);
        let mut out = vec![0.0; weights.rows()];
        group.throughput(Throughput::Bytes(weights.bytes() as u64));
        for isa in Isa::available().filter(|isa| *isa != Isa::Portable) {
            let x = Activations::new(isa, 1, COLUMNS);
            for threads in [1, 2] {
                let tiles = weights.tiles() / threads;
                group.bench_function(BenchmarkId::new(isa.name(), threads), |bencher| {
                    bencher.iter(|| {
                        let output = Output::new(black_box(&mut out), weights.rows());
                        let (input, bias, then) = (x.input(&weights), None, Then::Store);
                        let weights = &weights;
                        let product = Product { weights, input, rows: 1, bias, then, output };
                        let product = &product;
                        std::thread::scope(|scope| {
                            for first in (0..threads).map(|thread| thread * tiles) {
                                let run = move || {
                                    // SAFETY: each thread has tiles of its own.
                                    #[allow(unsafe_code, reason = "the contract of shared outputs")]
                                    unsafe {
                                        product.run(isa, first..first + tiles);
                                    }
                                };
                                scope.spawn(run);
                            }
                        });
                    });
                });
            }
        }
        group.finish();
    }
}

fn quantisation(criterion: &mut Criterion) {
    const COLUMNS: usize = 2048;
    let row: Vec<f32> = (0..COLUMNS).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
    let mut out = vec![QuantBlock::default(); blocks_per_row(COLUMNS)];
    let mut group = criterion.benchmark_group("quantise");
    group.throughput(Throughput::Elements(COLUMNS as u64));
    for isa in Isa::available() {
        group.bench_function(isa.name(), |bencher| {
            bencher.iter(|| quantise_row(isa, black_box(&row), black_box(&mut out)));
        });
    }
    group.finish();
}

fn packing(criterion: &mut Criterion) {
    const SHAPE: (usize, usize) = (4096, 2048);
    for dtype in TYPES {
        let mut group = criterion.benchmark_group("pack");
        let bytes = vec![0; SHAPE.0 * SHAPE.1 / dtype.block_size() * dtype.type_size()];
        let raw = RawMatrix { dtype, rows: SHAPE.0, columns: SHAPE.1, bytes: &bytes };
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("{dtype:?}"), |bencher| {
            bencher.iter(|| PackedMatrix::pack(black_box(&[raw]), Order::Concatenated));
        });
        group.finish();
    }
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = products, streams, quantisation, packing
}
criterion_main!(kernels);
