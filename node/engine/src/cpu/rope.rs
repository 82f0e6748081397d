//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of single heads.

use crate::spec::{Pairing, Rope};

/// Writes cosines, then sines, of all pairs at a position.
///
/// # Shapes
/// `out`: (2, pairs).
pub(crate) fn angles_into(rope: &Rope, position: usize, out: &mut [f32]) {
    let (cosines, sines) = out.split_at_mut(out.len() / 2);
    for (angle, (cosine, sine)) in rope.angles(position).zip(cosines.iter_mut().zip(sines)) {
        (*cosine, *sine) = angle;
    }
}

/// Rotates the first dimensions of `head`, twice as many as there are pairs.
///
/// # Shapes
/// `angles`: (2, pairs), from [`angles_into`].
///
/// # Panics
/// When the head is shorter than what is to be rotated.
#[inline(always)]
pub(crate) fn rotate(pairing: Pairing, angles: &[f32], head: &mut [f32]) {
    let pairs = angles.len() / 2;
    let (cosines, sines) = angles.split_at(pairs);
    match pairing {
        Pairing::Halves => {
            let (first, second) = head[..2 * pairs].split_at_mut(pairs);
            for i in 0..pairs {
                let (a, b) = (first[i], second[i]);
                first[i] = a * cosines[i] - b * sines[i];
                second[i] = a * sines[i] + b * cosines[i];
            }
        }
        Pairing::Adjacent => {
            for (i, pair) in head[..2 * pairs].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let [a, b] = *pair;
                *pair = [a * cosines[i] - b * sines[i], a * sines[i] + b * cosines[i]];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: both pairings rotate by position times frequency and leave the rest alone.
    #[test]
    fn pairs_turn_by_their_angle() {
        for pairing in [Pairing::Halves, Pairing::Adjacent] {
            let rope = Rope { pairing, frequencies: vec![1.0, 0.25], amplitude: 1.0 };
            let mut angles = [0.0; 4];
            angles_into(&rope, 3, &mut angles);
            let mut head = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
            rotate(pairing, &angles, &mut head);
            let pairs = match pairing {
                Pairing::Halves => [(0, 2), (1, 3)],
                Pairing::Adjacent => [(0, 1), (2, 3)],
            };
            for ((a, b), angle) in pairs.into_iter().zip([3.0f64, 0.75]) {
                let (x, y) = ((a + 1) as f64, (b + 1) as f64);
                assert!((f64::from(head[a]) - (x * angle.cos() - y * angle.sin())).abs() < 1e-6);
                assert!((f64::from(head[b]) - (x * angle.sin() + y * angle.cos())).abs() < 1e-6);
            }
            assert_eq!(head[4..], [5.0, 6.0]);
        }
    }
}
