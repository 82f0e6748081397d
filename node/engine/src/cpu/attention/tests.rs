//! Against a naive reference in f64, and bits against bits: instruction sets, companions, stale memory.

use super::*;
use crate::cpu::isa::Isa;
use crate::cpu::pages::CacheShape;
use crate::cpu::pages::tests::shape;

struct Noise(u32);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as f32 / u32::MAX as f32 * 2.0 - 1.0
    }

    fn vector(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// One head's keys and values for `len` positions, in scattered pages; all other memory is not a number.
struct Cache {
    memory: Pages,
    table: Vec<PageId>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// What is left of values when they are kept.
fn kept_as(kept: CacheType, values: Vec<f32>) -> Vec<f32> {
    match kept {
        CacheType::F32 => values,
        CacheType::F16 => values.into_iter().map(|x| half::f16::from_f32(x).to_f32()).collect(),
    }
}

const TYPES: [CacheType; 2] = [CacheType::F32, CacheType::F16];

const LAYER: usize = 1;
const HEAD: usize = 1;

impl Cache {
    fn new(len: usize, head_dim: usize, kept: CacheType, noise: &mut Noise) -> Self {
        let pages = len.div_ceil(16);
        let shape = CacheShape { kept, ..shape(2, 2, head_dim) };
        let memory = Pages::new(2 * pages + 1, shape).unwrap();
        let table: Vec<PageId> = (0..pages as PageId).rev().map(|page| 2 * page + 1).collect();
        let garbage = vec![f32::NAN; memory.stride()];
        let (keys, values): (Vec<_>, Vec<_>) = (0..len)
            .map(|_| [(); 2].map(|()| kept_as(kept, noise.vector(head_dim))).into())
            .unzip();
        // SAFETY: one thread.
        unsafe {
            for page in 0..memory.count() as PageId {
                for slot in 0..16 {
                    memory.write(Isa::Portable, (page, LAYER, HEAD), slot, &garbage, &garbage);
                }
            }
            for position in 0..len {
                let (page, slot) = (table[position / 16], position % 16);
                let (key, value) = (&keys[position], &values[position]);
                memory.write(Isa::Portable, (page, LAYER, HEAD), slot, key, value);
            }
        }
        Self { memory, table, keys, values }
    }

    fn attend(
        &self,
        isa: Isa,
        scoring: Scoring,
        sights: &[Sight],
        queries: &[Vec<f32>],
    ) -> Vec<Vec<f32>> {
        let stride = self.memory.stride();
        let mut padded = vec![0.0; sights.len() * stride];
        for (to, query) in padded.chunks_exact_mut(stride).zip(queries) {
            to[..query.len()].copy_from_slice(query);
        }
        let mut scores = vec![f32::NAN; scores_len(sights.len(), self.table.len())];
        let mut out = vec![f32::NAN; sights.len() * stride];
        isa.run(Attention {
            memory: &self.memory,
            pages: &self.table,
            layer: LAYER,
            head: HEAD,
            scoring,
            sights,
            queries: &padded,
            scores: &mut scores,
            out: &mut out,
        });
        let head_dim = self.keys[0].len();
        out.chunks_exact(stride).map(|row| row[..head_dim].to_vec()).collect()
    }

    fn naive(&self, scoring: Scoring, sight: Sight, query: &[f32]) -> Vec<f64> {
        let score = |position: usize| {
            let products = query.iter().zip(&self.keys[position]);
            let dot: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let scaled = dot * f64::from(scoring.scale);
            let capped = scoring.soft_cap.map_or(scaled, |cap| {
                let cap = f64::from(cap);
                cap * (scaled / cap).tanh()
            });
            capped - f64::from(sight.slope) * (sight.last - position) as f64
        };
        let scores: Vec<f64> = (sight.first..=sight.last).map(score).collect();
        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut out = vec![0.0; query.len()];
        for (position, score) in (sight.first..=sight.last).zip(scores) {
            for (out, value) in out.iter_mut().zip(&self.values[position]) {
                *out += (score - largest).exp() / sum * f64::from(*value);
            }
        }
        out
    }
}

/// Sights whose edges lie on, before and after the edges of pages.
fn sights(len: usize) -> Vec<Sight> {
    let mut out = Vec::new();
    for last in [0, 1, 14, 15, 16, 17, 31, 32, 40, 47, 63, len - 1] {
        for window in [1, 2, 15, 16, 17, 33, usize::MAX] {
            if last < len {
                let first = (last + 1).saturating_sub(window);
                out.push(Sight { first, last, slope: 0.0 });
            }
        }
    }
    out
}

const PLAIN: Scoring = Scoring { scale: 0.125, soft_cap: None };

/// Goal: windows that begin and end anywhere, soft-caps and slopes give what the formula says; memory that is
/// not seen does not matter, not even if it is not a number.
#[test]
fn agrees_with_the_formula_at_every_edge() {
    let dims = [8, 16, 24, 64, 80, 96, 128];
    for (head_dim, kept) in dims.into_iter().flat_map(|dim| TYPES.map(|kept| (dim, kept))) {
        let mut noise = Noise(7 + head_dim as u32);
        let cache = Cache::new(70, head_dim, kept, &mut noise);
        let capped = Scoring { scale: 0.3, soft_cap: Some(2.0) };
        for (scoring, slope) in [(PLAIN, 0.0), (capped, 0.0), (PLAIN, 0.25)] {
            for sight in sights(70) {
                let sight = Sight { slope, ..sight };
                let query = noise.vector(head_dim);
                let expected = cache.naive(scoring, sight, &query);
                let out = cache.attend(Isa::detect(), scoring, &[sight], &[query]);
                for (a, b) in out[0].iter().zip(expected) {
                    assert!((f64::from(*a) - b).abs() < 2e-6, "{head_dim} {sight:?}: {a}, not {b}");
                }
            }
        }
    }
}

/// Goal: a query's bits depend neither on those it is taken together with, nor on the instruction set.
#[test]
fn bits_depend_on_the_query_alone() {
    for (head_dim, kept) in [8, 64, 80].into_iter().flat_map(|dim| TYPES.map(|kept| (dim, kept))) {
        let mut noise = Noise(3);
        let cache = Cache::new(70, head_dim, kept, &mut noise);
        for count in [1, 2, 3, 5, 7, 8, 13, 24] {
            // Rows of a prompt, some with a window: together they see pages that some of them do not.
            let sights: Vec<Sight> = (0..count)
                .map(|i| {
                    let last = 20 + 2 * i;
                    let first = if i % 2 == 0 { 0 } else { last - 9 };
                    Sight { first, last, slope: if i % 3 == 0 { 0.5 } else { 0.0 } }
                })
                .collect();
            let queries: Vec<Vec<f32>> = (0..count).map(|_| noise.vector(head_dim)).collect();
            let alone: Vec<Vec<f32>> = sights
                .iter()
                .zip(&queries)
                .flat_map(|(sight, query)| {
                    cache.attend(Isa::Portable, PLAIN, &[*sight], std::slice::from_ref(query))
                })
                .collect();
            for isa in Isa::available() {
                assert_eq!(cache.attend(isa, PLAIN, &sights, &queries), alone, "{isa:?} {count}");
            }
        }
    }
}
