//! How the tiles of a product are shared out among members, and how those who wait fetch what they will need next.
//!
//! With few rows a product takes as long as its weights take to come from memory. So every member has a part of the tiles
//! for its own, in one piece, known before anybody begins: memory is read in one stream, and members that wait at the barrier
//! before the product ask for the beginning of their part meanwhile. The rest goes in small pieces to whoever has time. With many
//! rows it takes long enough for a member to be interrupted meanwhile, so little is owned then.

use std::ops::Range;

use super::kernels::prefetch;
use super::pack::PackedMatrix;
use super::team::Member;

/// Pieces per member of what nobody owns: few enough that taking them costs little, small enough that members end together.
const PIECES: usize = 8;

/// Up to how many rows a product mostly waits for its weights.
const FEW_ROWS: usize = 16;

/// What is fetched of one's part before a product begins at most: a fraction of a core's second-level cache, in which
/// what the phase itself reads has to stay.
const AHEAD_BYTES: usize = 128 << 10;

/// What is asked for between two looks at a barrier.
const STEP_BYTES: usize = 512;

/// The tiles of one product, shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    tiles: usize,
    members: usize,
    /// Tiles that each member has for its own.
    own: usize,
}

impl Shares {
    /// Shares of a product over `rows` rows of activations.
    pub(super) fn new(tiles: usize, members: usize, rows: usize) -> Self {
        let quarters = if rows <= FEW_ROWS { 3 } else { 1 };
        let own = if members == 1 { tiles } else { tiles * quarters / (4 * members) };
        Self { tiles, members, own }
    }

    /// The tiles of one member.
    pub(super) fn own(&self, index: usize) -> Range<usize> {
        index * self.own..(index + 1) * self.own
    }

    /// Into how many pieces the rest is cut.
    pub(super) fn pieces(&self) -> usize {
        (self.tiles - self.members * self.own).min(PIECES * self.members)
    }

    /// The tiles of one piece.
    pub(super) fn piece(&self, piece: usize) -> Range<usize> {
        let first = self.members * self.own;
        let (rest, pieces) = (self.tiles - first, self.pieces());
        first + rest * piece / pieces..first + rest * (piece + 1) / pieces
    }
}

/// Waits for all members, and meanwhile fetches what the caller will read of `next` for a product over `rows` rows.
pub(super) fn barrier_before(member: &mut Member<'_>, next: &PackedMatrix, rows: usize) {
    let own = Shares::new(next.tiles(), member.members(), rows).own(member.index());
    let bytes = next.bytes_of(own);
    let mut steps = bytes[..bytes.len().min(AHEAD_BYTES)].chunks(STEP_BYTES);
    member.barrier_meanwhile(|| {
        if let Some(step) = steps.next() {
            step.chunks(64).for_each(|line| prefetch(line.as_ptr()));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every tile is in exactly one share, for any numbers of tiles and members.
    #[test]
    fn tiles_are_shared_out_once() {
        for tiles in 0..200 {
            for members in 1..9 {
                let shares = Shares::new(tiles, members, tiles % 2 * 100);
                let own = (0..members).flat_map(|index| shares.own(index));
                let pieces = (0..shares.pieces()).flat_map(|piece| shares.piece(piece));
                let all: Vec<usize> = own.chain(pieces).collect();
                assert_eq!(all, Vec::from_iter(0..tiles), "{tiles} tiles, {members} members");
                assert!((0..shares.pieces()).all(|piece| !shares.piece(piece).is_empty()));
            }
        }
    }
}
