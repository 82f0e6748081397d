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
pub(crate) mod forward;
mod lanes;
mod lowrank;
mod norm;
mod pages;
mod pass;
mod plan;
mod rope;
mod shared;
mod team;
mod weights;
