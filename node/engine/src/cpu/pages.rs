//! The memory of the key-value cache: pages of sixteen positions, laid out for attention.
//!
//! A page holds, for every layer and key-value head, the keys with positions side by side — entry
//! (dimension, position) — so that one vector holds a dimension of all sixteen, and the values as
//! they are: (position, dimension). Heads are padded with zeros to a multiple of sixteen dimensions. Who may use which page
//! is not known here.

use std::cell::UnsafeCell;

use memmap2::{MmapMut, MmapOptions};

use super::isa::{Isa, Work};
use super::kernels::{Element, F16, F32, Simd};
use super::lanes::LANES;
use crate::decoder::{PAGE_TOKENS, PageId};
use crate::files::checkpoint::Checkpoint;

const _: () = assert!(PAGE_TOKENS == LANES, "a page is one vector of positions");

/// The type in which keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheType {
    /// As they are computed.
    F32,
    /// Rounded: half the memory, and half of what attention has to read of it.
    F16,
}

impl CacheType {
    /// Half precision where weights are quantised, because what that rounds off is far more.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        if checkpoint.quantised() { Self::F16 } else { Self::F32 }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::F32 => F32::BYTES,
            Self::F16 => F16::BYTES,
        }
    }
}

/// What the pages of one model have to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    /// Dimensions of a head, without padding.
    pub(crate) head_dim: usize,
    pub(crate) kept: CacheType,
}

impl CacheShape {
    /// What a checkpoint's model needs.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        let spec = checkpoint.spec();
        Self {
            layers: spec.layers.len(),
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            kept: CacheType::of(checkpoint),
        }
    }

    /// Memory of one page over all layers.
    pub(crate) fn bytes_per_page(&self) -> u64 {
        // Descriptions bound every factor far below what could overflow together.
        self.half_bytes() as u64 * 2 * self.kv_heads as u64 * self.layers as u64
    }

    /// Dimensions of a head with padding.
    fn stride(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Bytes of the keys, or of the values, of one page, layer and head.
    fn half_bytes(&self) -> usize {
        PAGE_TOKENS * self.stride() * self.kept.bytes()
    }
}

/// All pages of one decoder.
#[derive(Debug)]
pub(crate) struct Pages {
    memory: UnsafeCell<MmapMut>,
    count: usize,
    shape: CacheShape,
}

// SAFETY: the memory is only reached through `keys` and `values`, whose callers promise not to race.
unsafe impl Sync for Pages {}

impl Pages {
    /// Reserves address space for `count` pages; the system gives memory when a page is first written.
    ///
    /// # Errors
    /// When even the address space is refused.
    pub(crate) fn new(count: usize, shape: CacheShape) -> std::io::Result<Self> {
        let bytes = u64::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(shape.bytes_per_page()))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|bytes| *bytes <= isize::MAX as usize)
            .ok_or(std::io::ErrorKind::OutOfMemory)?;
        let memory = MmapOptions::new().len(bytes.max(1)).map_anon()?;
        // Pages are read in the order of a table, not of addresses; larger translation units help where the
        // system has them, and nothing depends on it.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self { memory: UnsafeCell::new(memory), count, shape })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The type in which keys and values are kept.
    pub(crate) fn kept(&self) -> CacheType {
        self.shape.kept
    }

    /// Dimensions of a head with padding: values from one dimension of keys to the same one of the next position.
    pub(crate) fn stride(&self) -> usize {
        self.shape.stride()
    }

    /// Keys of one head: (stride, 16) of [`Pages::kept`].
    ///
    /// # Panics
    /// When page, layer or head do not exist.
    pub(crate) fn keys(&self, page: PageId, layer: usize, head: usize) -> *mut u8 {
        let page = page as usize;
        let shape = &self.shape;
        assert!(
            page < self.count && layer < shape.layers && head < shape.kv_heads,
            "page {page}, layer {layer}, head {head}"
        );
        let block = (page * shape.layers + layer) * shape.kv_heads + head;
        // The pointer is made without a reference to the whole memory, of which others use other parts.
        // SAFETY: `UnsafeCell::get` is valid; the map itself is not changed after construction.
        let start = unsafe { (*self.memory.get()).as_ptr() }.cast_mut();
        // SAFETY: inside the memory by the assertion; maps are aligned to whole system pages.
        unsafe { start.add(block * 2 * shape.half_bytes()) }
    }

    /// Values of one head: (16, stride) of [`Pages::kept`], right behind its keys.
    ///
    /// # Panics
    /// As [`Pages::keys`].
    pub(crate) fn values(&self, page: PageId, layer: usize, head: usize) -> *mut u8 {
        // SAFETY: the second half of the block that `keys` starts.
        unsafe { self.keys(page, layer, head).add(self.shape.half_bytes()) }
    }

    /// Writes one position of one head; padding becomes zero.
    ///
    /// # Safety
    /// Nobody else uses this slot of the page's layer and head meanwhile.
    ///
    /// # Panics
    /// When the place does not exist or key and value are longer than a head.
    pub(crate) unsafe fn write(
        &self,
        isa: Isa,
        (page, layer, head): (PageId, usize, usize),
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let stride = self.stride();
        assert!(slot < PAGE_TOKENS, "slot {slot}");
        assert!(key.len() <= stride && value.len() <= stride, "longer than a head");
        let (keys, values) = (self.keys(page, layer, head), self.values(page, layer, head));
        isa.run(Write { kept: self.kept(), keys, values, stride, slot, key, value });
    }
}

/// A type that values are kept in.
trait Kept: Element {
    /// One value as it is kept.
    type Raw: Copy + Default;

    /// Writes one vector, rounded.
    ///
    /// # Safety
    /// `to` is valid for writes of `LANES` values.
    unsafe fn store<S: Simd>(s: S, to: *mut Self::Raw, x: S::F);
}

impl Kept for F32 {
    type Raw = f32;

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut f32, x: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store(to, x) }
    }
}

impl Kept for F16 {
    type Raw = u16;

    /// What is too large becomes the largest that there is: an infinite score would be no number after the softmax. What is no
    /// number stays so.
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut u16, x: S::F) {
        const LARGEST: f32 = 65_504.0;
        let x = s.min(s.splat(LARGEST), s.max(s.splat(-LARGEST), x));
        // SAFETY: the caller's promise.
        unsafe { s.store_f16(to.cast(), x) }
    }
}

/// One position on its way into a page.
struct Write<'a> {
    kept: CacheType,
    keys: *mut u8,
    values: *mut u8,
    stride: usize,
    slot: usize,
    key: &'a [f32],
    value: &'a [f32],
}

impl Work for Write<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.kept {
            CacheType::F32 => self.as_type::<S, F32>(s),
            CacheType::F16 => self.as_type::<S, F16>(s),
        }
    }
}

impl Write<'_> {
    #[inline(always)]
    fn as_type<S: Simd, E: Kept>(&self, s: S) {
        let (keys, values) = (self.keys.cast::<E::Raw>(), self.values.cast::<E::Raw>());
        for first in (0..self.stride).step_by(LANES) {
            let key = rounded::<S, E>(s, self.key, first);
            let value = rounded::<S, E>(s, self.value, first);
            for i in 0..LANES {
                // SAFETY: `first + i < stride` and `slot < 16`, as `Pages::write` has seen, whose caller promises that nobody
                // else uses these places; maps and halves are aligned.
                unsafe {
                    keys.add((first + i) * PAGE_TOKENS + self.slot).write(key[i]);
                    values.add(self.slot * self.stride + first + i).write(value[i]);
                }
            }
        }
    }
}

/// Sixteen values of `x` from `first` on, with zeros for those that it does not have.
#[inline(always)]
fn rounded<S: Simd, E: Kept>(s: S, x: &[f32], first: usize) -> [E::Raw; LANES] {
    let mut padded = [0.0; LANES];
    let there = &x[first.min(x.len())..x.len().min(first + LANES)];
    padded[..there.len()].copy_from_slice(there);
    let mut out = [E::Raw::default(); LANES];
    for i in (0..LANES).step_by(S::LANES) {
        // SAFETY: `i + S::LANES <= 16`.
        unsafe { E::store(s, out.as_mut_ptr().add(i), s.load(padded.as_ptr().add(i))) };
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cpu::kernels::f16_to_f32;

    const TYPES: [CacheType; 2] = [CacheType::F32, CacheType::F16];

    pub(crate) fn shape(layers: usize, kv_heads: usize, head_dim: usize) -> CacheShape {
        CacheShape { layers, kv_heads, head_dim, kept: CacheType::F32 }
    }

    #[test]
    fn planning_knows_the_size() {
        // SmolLM2-135M: 30 layers, 3 heads of 64: 720 KiB for 16 tokens.
        assert_eq!(shape(30, 3, 64).bytes_per_page(), 737_280);
        let half = CacheShape { kept: CacheType::F16, ..shape(30, 3, 64) };
        assert_eq!(half.bytes_per_page(), 368_640);
        assert_eq!(shape(1, 1, 8).bytes_per_page(), shape(1, 1, 16).bytes_per_page());
        let refused = Pages::new(usize::MAX, shape(1, 1, 64)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::OutOfMemory);
    }

    /// Goal: the layout, and that nothing else is written, for both types on every instruction set.
    #[test]
    fn writing_transposes_keys_and_pads() {
        for (kept, isa) in
            TYPES.into_iter().flat_map(|kept| Isa::available().map(move |isa| (kept, isa)))
        {
            let pages = Pages::new(2, CacheShape { kept, ..shape(2, 2, 3) }).unwrap();
            // SAFETY: one thread.
            let [keys, values] = unsafe {
                pages.write(isa, (1, 1, 1), 5, &[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]);
                [pages.keys(1, 1, 1), pages.values(1, 1, 1)].map(|from| -> Vec<f32> {
                    let at = |i: usize| match kept {
                        CacheType::F32 => from.cast::<f32>().add(i).read(),
                        CacheType::F16 => f16_to_f32(from.cast::<u16>().add(i).read()),
                    };
                    (0..16 * 16).map(at).collect()
                })
            };
            let column: Vec<f32> = keys.iter().skip(5).step_by(16).copied().collect();
            assert_eq!(column[..4], [1.0, 2.0, 3.0, 0.0]);
            assert_eq!(values[5 * 16..5 * 16 + 4], [4.0, 5.0, 6.0, 0.0]);
            assert_eq!(keys.iter().chain(&values).filter(|x| **x != 0.0).count(), 6);
        }
    }

    /// Goal: what half precision cannot hold is the largest that it can; what is no number is not hidden.
    #[test]
    fn half_precision_saturates() {
        for isa in Isa::available() {
            let pages =
                Pages::new(1, CacheShape { kept: CacheType::F16, ..shape(1, 1, 5) }).unwrap();
            let key = [1e30, f32::NEG_INFINITY, 65_519.0, f32::NAN, 1e-30];
            // SAFETY: one thread.
            let kept: [f32; 5] = unsafe {
                pages.write(isa, (0, 0, 0), 0, &key, &[]);
                let from = pages.keys(0, 0, 0).cast::<u16>();
                std::array::from_fn(|i| f16_to_f32(from.add(i * 16).read()))
            };
            assert_eq!(kept[..3], [65_504.0, -65_504.0, 65_504.0]);
            assert!(kept[3].is_nan() && kept[4] == 0.0);
        }
    }
}
