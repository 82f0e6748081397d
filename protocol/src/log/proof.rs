//! Inclusion and consistency proofs: made from any source of subtree hashes, checked from bytes.
//!
//! Making follows RFC 6962 §2.1.1 and §2.1.2, checking follows RFC 9162 §2.1.3.2 and §2.1.4.2.

use super::hash::TreeHash;
use super::tree::SIZE_MAX;

/// More hashes than any valid proof has; longer ones are refused unread.
pub const PROOF_HASHES_MAX: usize = 64;

/// Gives hashes of complete, aligned subtrees, from memory or from tiles.
pub trait HashSource {
    /// What reading may fail with.
    type Error;

    /// The hash over leaves `index * 2^level .. (index + 1) * 2^level`, `None` if not all exist.
    ///
    /// # Errors
    /// When the source cannot be read.
    fn subtree(&self, level: u32, index: u64) -> Result<Option<TreeHash>, Self::Error>;
}

/// Why a proof could not be made or does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError<E = std::convert::Infallible> {
    /// The index is not in the tree, or the sizes are in the wrong order or too large.
    #[error("the proof speaks of a place outside the tree")]
    OutOfRange,
    /// The proof has too few or too many hashes for these sizes.
    #[error("the proof has the wrong number of hashes")]
    WrongLength,
    /// The computed root is another one.
    #[error("the proof leads to another root")]
    RootMismatch,
    /// The source lacks a subtree that a tree of this size has.
    #[error("the hash source lacks a subtree of the tree")]
    Missing,
    /// The source could not be read.
    #[error("the hash source cannot be read")]
    Source(E),
}

type Made<S> = Result<Vec<TreeHash>, ProofError<<S as HashSource>::Error>>;

/// Proves that leaf `index` is in the tree of `size` leaves.
///
/// # Errors
/// `OutOfRange` unless `index < size`; `Missing` and `Source` from the source.
pub fn inclusion_proof<S: HashSource>(source: &S, index: u64, size: u64) -> Made<S> {
    if index >= size || size > SIZE_MAX {
        return Err(ProofError::OutOfRange);
    }
    let (mut low, mut high) = (0, size);
    let mut proof = Vec::new();
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            proof.push(range_hash(source, middle, high)?);
            high = middle;
        } else {
            proof.push(range_hash(source, low, middle)?);
            low = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Proves that the tree of `old` leaves is a prefix of the tree of `new` leaves.
///
/// # Errors
/// `OutOfRange` unless `0 < old <= new`; `Missing` and `Source` from the source.
pub fn consistency_proof<S: HashSource>(source: &S, old: u64, new: u64) -> Made<S> {
    if old == 0 || old > new || new > SIZE_MAX {
        return Err(ProofError::OutOfRange);
    }
    let (mut low, mut high) = (0, new);
    let mut proof = Vec::new();
    // RFC 6962's flag b: the old root itself needs no mention, the verifier has it.
    while old != high {
        let middle = low + split(high - low);
        if old <= middle {
            proof.push(range_hash(source, middle, high)?);
            high = middle;
        } else {
            proof.push(range_hash(source, low, middle)?);
            low = middle;
        }
    }
    if low != 0 {
        proof.push(range_hash(source, low, high)?);
    }
    proof.reverse();
    Ok(proof)
}

/// The root of the first `size` leaves of a source.
///
/// # Errors
/// `OutOfRange` above the largest size; `Missing` and `Source` from the source.
pub fn root_of<S: HashSource>(source: &S, size: u64) -> Result<TreeHash, ProofError<S::Error>> {
    if size > SIZE_MAX {
        return Err(ProofError::OutOfRange);
    }
    if size == 0 {
        return Ok(TreeHash::empty());
    }
    range_hash(source, 0, size)
}

/// Checks that `leaf` is leaf `index` of the tree with `size` leaves and this `root`.
///
/// # Errors
/// `OutOfRange`, `WrongLength` or `RootMismatch`.
pub fn verify_inclusion(
    leaf: &TreeHash,
    index: u64,
    size: u64,
    proof: &[TreeHash],
    root: &TreeHash,
) -> Result<(), ProofError> {
    if index >= size || size > SIZE_MAX {
        return Err(ProofError::OutOfRange);
    }
    let mut walk = Walk::new(index, size - 1, proof)?;
    let mut hash = *leaf;
    for sibling in proof {
        hash = match walk.up()? {
            Side::Left => TreeHash::node(sibling, &hash),
            Side::Right => TreeHash::node(&hash, sibling),
        };
    }
    walk.finish()?;
    same(&hash, root)
}

/// Checks that the tree (`old`, `old_root`) is a prefix of the tree (`new`, `new_root`).
///
/// Two empty trees are consistent; from an empty tree to a larger one nothing can be proved and
/// the answer is an error.
///
/// # Errors
/// `OutOfRange`, `WrongLength` or `RootMismatch`.
pub fn verify_consistency(
    old: u64,
    new: u64,
    proof: &[TreeHash],
    old_root: &TreeHash,
    new_root: &TreeHash,
) -> Result<(), ProofError> {
    if old > new || new > SIZE_MAX {
        return Err(ProofError::OutOfRange);
    }
    if old == new {
        if !proof.is_empty() {
            return Err(ProofError::WrongLength);
        }
        if old == 0 {
            same(old_root, &TreeHash::empty())?;
        }
        return same(old_root, new_root);
    }
    if old == 0 {
        return Err(ProofError::OutOfRange);
    }
    // When the old tree is one perfect subtree its root starts the path and is left out of it.
    let (start, rest) = if old.is_power_of_two() {
        (old_root, proof)
    } else {
        proof.split_first().ok_or(ProofError::WrongLength)?
    };
    let mut walk = Walk::new(old - 1, new - 1, rest)?;
    walk.skip_right_turns();
    let (mut old_hash, mut new_hash) = (*start, *start);
    for sibling in rest {
        match walk.up()? {
            Side::Left => {
                old_hash = TreeHash::node(sibling, &old_hash);
                new_hash = TreeHash::node(sibling, &new_hash);
            }
            Side::Right => new_hash = TreeHash::node(&new_hash, sibling),
        }
    }
    walk.finish()?;
    same(&old_hash, old_root)?;
    same(&new_hash, new_root)
}

/// On which side of the path the next sibling hangs.
enum Side {
    Left,
    Right,
}

/// The climb from a leaf to the root in a tree that need not be perfect (RFC 9162's fn and sn).
struct Walk {
    at: u64,
    last: u64,
}

impl Walk {
    fn new(at: u64, last: u64, proof: &[TreeHash]) -> Result<Self, ProofError> {
        if proof.len() > PROOF_HASHES_MAX {
            return Err(ProofError::WrongLength);
        }
        Ok(Self { at, last })
    }

    fn skip_right_turns(&mut self) {
        let steps = self.at.trailing_ones();
        self.at >>= steps;
        self.last >>= steps;
    }

    fn up(&mut self) -> Result<Side, ProofError> {
        if self.last == 0 {
            return Err(ProofError::WrongLength);
        }
        let side = if self.at & 1 == 1 || self.at == self.last {
            // At the ragged right edge, levels without a sibling are passed over.
            while self.at & 1 == 0 && self.at != 0 {
                self.at >>= 1;
                self.last >>= 1;
            }
            Side::Left
        } else {
            Side::Right
        };
        self.at >>= 1;
        self.last >>= 1;
        Ok(side)
    }

    const fn finish(&self) -> Result<(), ProofError> {
        if self.last == 0 { Ok(()) } else { Err(ProofError::WrongLength) }
    }
}

fn same(computed: &TreeHash, claimed: &TreeHash) -> Result<(), ProofError> {
    if computed == claimed { Ok(()) } else { Err(ProofError::RootMismatch) }
}

/// The largest power of two smaller than `width`; `width` is at least 2.
const fn split(width: u64) -> u64 {
    1 << (width - 1).ilog2()
}

/// Hashes the range `low..high`, which a proof only asks for when `low` is a multiple of the
/// smallest power of two that covers the range.
fn range_hash<S: HashSource>(
    source: &S,
    mut low: u64,
    high: u64,
) -> Result<TreeHash, ProofError<S::Error>> {
    // Perfect subtrees from left to right: the set bits of the width, largest first.
    let mut parts = Vec::new();
    while low < high {
        let level = (high - low).ilog2();
        let hash = source
            .subtree(level, low >> level)
            .map_err(ProofError::Source)?
            .ok_or(ProofError::Missing)?;
        parts.push(hash);
        low += 1 << level;
    }
    let last = parts.pop().ok_or(ProofError::OutOfRange)?;
    Ok(parts.iter().rev().fold(last, |right, left| TreeHash::node(left, &right)))
}
