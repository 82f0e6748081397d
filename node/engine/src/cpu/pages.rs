//! The memory of the key-value cache: pages of sixteen positions, laid out for attention.
//!
//! A page holds, for every layer and key-value head, the keys with positions side by side — entry
//! (dimension, position) — so that one vector holds a dimension of all sixteen, and the values as
//! they are: (position, dimension). Heads are padded with zeros to a multiple of sixteen dimensions. Who may use which page
//! is not known here.

use std::cell::UnsafeCell;

use memmap2::{MmapMut, MmapOptions};

use super::lanes::LANES;
use crate::decoder::{PAGE_TOKENS, PageId};

const _: () = assert!(PAGE_TOKENS == LANES, "a page is one vector of positions");

/// All pages of one decoder, in f32.
#[derive(Debug)]
pub(crate) struct Pages {
    memory: UnsafeCell<MmapMut>,
    count: usize,
    layers: usize,
    kv_heads: usize,
    /// Dimensions of a head, padding included.
    stride: usize,
}

// SAFETY: the memory is only reached through `keys` and `values`, whose callers promise not to race.
unsafe impl Sync for Pages {}

impl Pages {
    /// Reserves address space for `count` pages; the system gives memory when a page is first written.
    ///
    /// # Errors
    /// When even the address space is refused.
    pub(crate) fn new(
        count: usize,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> std::io::Result<Self> {
        let bytes = u64::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(Self::bytes_per_page(layers, kv_heads, head_dim)))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|bytes| *bytes <= isize::MAX as usize)
            .ok_or(std::io::ErrorKind::OutOfMemory)?;
        let memory = MmapOptions::new().len(bytes.max(1)).map_anon()?;
        // Pages are read in the order of a table, not of addresses; larger translation units help where the
        // system has them, and nothing depends on it.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let stride = padded(head_dim);
        Ok(Self { memory: UnsafeCell::new(memory), count, layers, kv_heads, stride })
    }

    /// Memory of one page over all layers: for planning.
    pub(crate) fn bytes_per_page(layers: usize, kv_heads: usize, head_dim: usize) -> u64 {
        let elements = 2 * PAGE_TOKENS as u64 * padded(head_dim) as u64;
        // Descriptions bound every factor far below what could overflow together.
        elements * kv_heads as u64 * layers as u64 * size_of::<f32>() as u64
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Dimensions of a head with padding: values from one dimension of keys to the same one of the next position.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Keys of one head: (stride, 16) f32.
    ///
    /// # Panics
    /// When page, layer or head do not exist.
    pub(crate) fn keys(&self, page: PageId, layer: usize, head: usize) -> *mut f32 {
        let page = page as usize;
        assert!(
            page < self.count && layer < self.layers && head < self.kv_heads,
            "page {page}, layer {layer}, head {head}"
        );
        let block = (page * self.layers + layer) * self.kv_heads + head;
        // The pointer is made without a reference to the whole memory, of which others use other parts.
        // SAFETY: `UnsafeCell::get` is valid; the map itself is not changed after construction.
        let start = unsafe { (*self.memory.get()).as_ptr() }.cast::<f32>().cast_mut();
        // SAFETY: inside the memory by the assertion; maps are aligned to whole system pages.
        unsafe { start.add(block * 2 * PAGE_TOKENS * self.stride) }
    }

    /// Values of one head: (16, stride) f32, right behind its keys.
    ///
    /// # Panics
    /// As [`Pages::keys`].
    pub(crate) fn values(&self, page: PageId, layer: usize, head: usize) -> *mut f32 {
        // SAFETY: the second half of the block that `keys` starts.
        unsafe { self.keys(page, layer, head).add(PAGE_TOKENS * self.stride) }
    }

    /// Writes one position of one head; padding becomes zero.
    ///
    /// # Safety
    /// Nobody else uses this page's layer and head meanwhile.
    ///
    /// # Panics
    /// When the place does not exist or key and value are longer than a head.
    pub(crate) unsafe fn write(
        &self,
        page: PageId,
        layer: usize,
        head: usize,
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        assert!(slot < PAGE_TOKENS, "slot {slot}");
        assert!(key.len() <= self.stride && value.len() <= self.stride, "longer than a head");
        let (keys, values) = (self.keys(page, layer, head), self.values(page, layer, head));
        let pad = |x: &[f32], i: usize| x.get(i).copied().unwrap_or(0.0);
        for i in 0..self.stride {
            // SAFETY: `i < stride` and `slot < 16`; exclusive by the caller's promise.
            unsafe {
                keys.add(i * PAGE_TOKENS + slot).write(pad(key, i));
                values.add(slot * self.stride + i).write(pad(value, i));
            }
        }
    }
}

/// Dimensions of a head in memory.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planning_knows_the_size() {
        // SmolLM2-135M: 30 layers, 3 heads of 64: 720 KiB for 16 tokens.
        assert_eq!(Pages::bytes_per_page(30, 3, 64), 737_280);
        assert_eq!(Pages::bytes_per_page(1, 1, 8), Pages::bytes_per_page(1, 1, 16));
        let refused = Pages::new(usize::MAX, 1, 1, 64).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::OutOfMemory);
    }

    #[test]
    fn writing_transposes_keys_and_pads() {
        let pages = Pages::new(2, 2, 2, 3).unwrap();
        // SAFETY: one thread.
        unsafe {
            pages.write(1, 1, 1, 5, &[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]);
            let keys = std::slice::from_raw_parts(pages.keys(1, 1, 1), 16 * 16);
            let values = std::slice::from_raw_parts(pages.values(1, 1, 1), 16 * 16);
            let column: Vec<f32> = keys.iter().skip(5).step_by(16).copied().collect();
            assert_eq!(column[..4], [1.0, 2.0, 3.0, 0.0]);
            assert_eq!(values[5 * 16..5 * 16 + 4], [4.0, 5.0, 6.0, 0.0]);
            assert_eq!(keys.iter().chain(values).filter(|x| **x != 0.0).count(), 6);
        }
    }
}
