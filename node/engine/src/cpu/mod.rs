//! The fused path for inference on processors: packed weights, kernels, and the forward over them.
//!
//! The only room of the engine that knows instruction sets, and the only one with `unsafe` code.

#![allow(
    unsafe_code,
    reason = "kernels follow pointers and use intrinsics; every block says why it is sound"
)]

pub mod isa;
pub mod kernels;
pub mod math;
pub mod pack;

mod attend;
mod attention;
mod elementwise;
pub(crate) mod forward;
pub(crate) mod lanes;
mod lowrank;
mod norm;
mod pages;
mod pass;
mod plan;
mod rope;
mod shared;
mod shares;
mod stage;
mod team;
mod weights;

use self::pages::CacheShape;
use crate::decoder::PAGE_TOKENS;
use crate::files::checkpoint::Checkpoint;

/// What one token adds to the cache, over all layers, in bytes.
pub(crate) fn cache_bytes_per_token(checkpoint: &Checkpoint) -> u64 {
    CacheShape::of(checkpoint).bytes_per_page() / PAGE_TOKENS as u64
}
