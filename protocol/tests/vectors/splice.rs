//! Bytes said as their difference from other bytes, so that hundreds of vectors stay readable.

use serde::{Deserialize, Serialize};

use crate::support::{hex, unhex};

/// At this place of the base, leave out so many bytes and put these in, so many times.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Splice(
    /// Place in the base.
    pub(crate) usize,
    /// Bytes left out.
    pub(crate) usize,
    /// Bytes put in, in hexadecimal…
    pub(crate) String,
    /// …so many times.
    pub(crate) usize,
);

/// Equal bytes after which two texts count as in step again.
const IN_STEP: usize = 6;

/// Runs of one byte longer than this are not written out.
const RUN_MIN: usize = 32;

/// Bytes to look ahead for that; a signature is 64.
const SEARCH_MAX: usize = 300;

/// The splices that make `wanted` out of `base`.
pub(crate) fn difference(base: &[u8], wanted: &[u8]) -> Vec<Splice> {
    let suffix = base.iter().rev().zip(wanted.iter().rev()).take_while(|(a, b)| a == b).count();
    let (mut i, mut j) = (0, 0);
    let mut splices = Vec::new();
    loop {
        while i < base.len() && j < wanted.len() && base[i] == wanted[j] {
            (i, j) = (i + 1, j + 1);
        }
        if (i, j) == (base.len(), wanted.len()) {
            return splices;
        }
        let (a, b) = step(base, wanted, i, j).unwrap_or_else(|| {
            // Nothing more in common but the end, if that has not been used up yet.
            let tail = suffix.min(base.len() - i).min(wanted.len() - j);
            (base.len() - i - tail, wanted.len() - j - tail)
        });
        push(&mut splices, i, a, &wanted[j..j + b]);
        (i, j) = (i + a, j + b);
    }
}

/// The fewest bytes to pass over on both sides until the two are in step.
fn step(base: &[u8], wanted: &[u8], i: usize, j: usize) -> Option<(usize, usize)> {
    for sum in 1..=SEARCH_MAX {
        for a in 0..=sum {
            let b = sum - a;
            // The first byte decides nearly always, and this is the innermost loop.
            if base.get(i + a).is_some_and(|left| Some(left) == wanted.get(j + b))
                && let Some(left) = base.get(i + a..i + a + IN_STEP)
                && Some(left) == wanted.get(j + b..j + b + IN_STEP)
            {
                return Some((a, b));
            }
        }
    }
    None
}

/// Splices that put `put` in place of `remove` bytes, long runs of one byte said as such.
fn push(splices: &mut Vec<Splice>, at: usize, remove: usize, put: &[u8]) {
    let run = |from: usize| put[from..].iter().take_while(|byte| **byte == put[from]).count();
    let start = (0..put.len()).find(|from| run(*from) > RUN_MIN);
    let plain = start.unwrap_or(put.len());
    if plain > 0 || remove > 0 {
        splices.push(Splice(at, remove, hex(&put[..plain]), 1));
    }
    if let Some(start) = start {
        let (at, end) = (at + remove, start + run(start));
        splices.push(Splice(at, 0, hex(&put[start..=start]), end - start));
        push(splices, at, 0, &put[end..]);
    }
}

/// `base` with its splices made, in rising order of place.
pub(crate) fn apply(base: &[u8], splices: &[Splice]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut from = 0;
    for Splice(at, remove, put, times) in splices {
        out.extend_from_slice(&base[from..*at]);
        out.extend_from_slice(&unhex(put).repeat(*times));
        from = at + remove;
    }
    out.extend_from_slice(&base[from..]);
    out
}

#[test]
fn a_difference_makes_the_wanted_bytes() {
    let base: Vec<u8> = (0..=255).collect();
    let mut changed = base.clone();
    changed[40] = 0;
    changed.splice(100..110, [7; 90]);
    for wanted in [base.clone(), changed, Vec::new(), vec![9; 1_000], base.repeat(2)] {
        assert_eq!(apply(&base, &difference(&base, &wanted)), wanted);
        assert_eq!(apply(&wanted, &difference(&wanted, &base)), base);
    }
}
