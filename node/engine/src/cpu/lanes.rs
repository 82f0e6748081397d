//! Reductions over vectors in the one order that all instruction sets can follow: sixteen lanes, lane `i % 16`
//! for element `i`, joined at the end as 8 + 8, 4 + 4, 2 + 2 and 1 + 1.

use super::kernels::{Element, Simd};

/// Lanes of every reduction, however many a register has.
pub(crate) const LANES: usize = 16;

/// Sixteen lanes in as many vectors as the instruction set needs; what is over stays unused.
pub(crate) type Sixteen<S> = [<S as Simd>::F; 2];

/// Sixteen times `x`.
#[inline(always)]
pub(crate) fn splat<S: Simd>(s: S, x: f32) -> Sixteen<S> {
    [s.splat(x); 2]
}

/// Applies `f` to each pair of vectors.
#[inline(always)]
pub(crate) fn zip<S: Simd>(
    mut a: Sixteen<S>,
    b: Sixteen<S>,
    f: impl Fn(S::F, S::F) -> S::F,
) -> Sixteen<S> {
    for i in 0..LANES / S::LANES {
        a[i] = f(a[i], b[i]);
    }
    a
}

/// Reads sixteen values.
#[inline(always)]
pub(crate) fn load<S: Simd>(s: S, from: &[f32; LANES]) -> Sixteen<S> {
    // SAFETY: the array has sixteen values.
    unsafe { load_at(s, from.as_ptr()) }
}

/// Writes sixteen values.
#[inline(always)]
pub(crate) fn store<S: Simd>(s: S, x: Sixteen<S>, to: &mut [f32; LANES]) {
    // SAFETY: the array has sixteen values.
    unsafe { store_at(s, x, to.as_mut_ptr()) }
}

/// Reads sixteen values.
///
/// # Safety
/// `from` is valid for reads of sixteen f32.
#[inline(always)]
pub(crate) unsafe fn load_at<S: Simd>(s: S, from: *const f32) -> Sixteen<S> {
    let mut out = splat(s, 0.0);
    for (i, out) in out.iter_mut().enumerate().take(LANES / S::LANES) {
        // SAFETY: `(i + 1) * S::LANES <= 16`.
        *out = unsafe { s.load(from.add(i * S::LANES)) };
    }
    out
}

/// Reads sixteen values of type `E`, widened.
///
/// # Safety
/// `from` is valid for reads of sixteen of them.
#[inline(always)]
pub(crate) unsafe fn load_as<S: Simd, E: Element>(s: S, from: *const u8) -> Sixteen<S> {
    let mut out = splat(s, 0.0);
    for (i, out) in out.iter_mut().enumerate().take(LANES / S::LANES) {
        // SAFETY: `(i + 1) * S::LANES <= 16`.
        *out = unsafe { E::load(s, from.add(i * S::LANES * E::BYTES)) };
    }
    out
}

/// Writes sixteen values.
///
/// # Safety
/// `to` is valid for writes of sixteen f32.
#[inline(always)]
pub(crate) unsafe fn store_at<S: Simd>(s: S, x: Sixteen<S>, to: *mut f32) {
    for (i, x) in x.into_iter().enumerate().take(LANES / S::LANES) {
        // SAFETY: `(i + 1) * S::LANES <= 16`.
        unsafe { s.store(to.add(i * S::LANES), x) };
    }
}

/// Joins the lanes with `f`.
#[inline(always)]
pub(crate) fn join<S: Simd>(s: S, x: Sixteen<S>, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    store(s, x, &mut lanes);
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// Folds all elements of `x` into lanes; the lanes that the last elements leave empty are not touched
/// if `f` leaves its first argument alone where the second is zero.
#[inline(always)]
pub(crate) fn fold<S: Simd>(
    s: S,
    x: &[f32],
    start: f32,
    f: impl Fn(S::F, S::F) -> S::F,
) -> Sixteen<S> {
    let mut acc = splat(s, start);
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        acc = zip::<S>(acc, load(s, chunk), &f);
    }
    if !rest.is_empty() {
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        acc = zip::<S>(acc, load(s, &padded), &f);
    }
    acc
}
