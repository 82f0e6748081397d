//! Trees that grow to the right: one that keeps only its edge, one that keeps every hash.

use std::convert::Infallible;

use super::hash::TreeHash;
use super::proof::HashSource;

/// The largest tree this code speaks of. C2SP sizes are signed 64-bit in practice.
pub const SIZE_MAX: u64 = i64::MAX as u64;

/// The right edge of a log's tree: enough to append and to name the root, nothing more.
///
/// Holds at most 63 hashes whatever the size: one per set bit of the size, largest subtree first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    edge: Vec<TreeHash>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A tree without leaves.
    #[must_use]
    pub const fn new() -> Self {
        Self { size: 0, edge: Vec::new() }
    }

    /// Number of leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf hash and returns its index.
    pub fn append(&mut self, leaf: TreeHash) -> u64 {
        self.append_with(leaf, |_, _, _| {})
    }

    /// Appends a leaf hash; `completed(level, index, hash)` hears of every perfect subtree that
    /// is finished by it, the leaf itself (level 0) first.
    ///
    /// # Panics
    /// At 2^63 - 1 leaves, which no disk holds.
    pub fn append_with(
        &mut self,
        leaf: TreeHash,
        mut completed: impl FnMut(u32, u64, TreeHash),
    ) -> u64 {
        assert!(self.size < SIZE_MAX, "a tree holds at most 2^63 - 1 leaves");
        let index = self.size;
        completed(0, index, leaf);
        let mut hash = leaf;
        for level in 0..index.trailing_ones() {
            let Some(left) = self.edge.pop() else { break };
            hash = TreeHash::node(&left, &hash);
            completed(level + 1, index >> (level + 1), hash);
        }
        self.edge.push(hash);
        self.size += 1;
        index
    }

    /// The root over all leaves so far.
    #[must_use]
    pub fn root(&self) -> TreeHash {
        let mut hashes = self.edge.iter().rev();
        let Some(last) = hashes.next() else {
            return TreeHash::empty();
        };
        hashes.fold(*last, |right, left| TreeHash::node(left, &right))
    }
}

/// A tree that remembers every perfect subtree; a source of hashes for proofs.
///
/// # Units
/// 64 bytes of memory per leaf.
#[derive(Clone, Debug, Default)]
pub struct FullTree {
    edge: Tree,
    levels: Vec<Vec<TreeHash>>,
}

impl FullTree {
    /// A tree without leaves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The root over all leaves so far.
    #[must_use]
    pub fn root(&self) -> TreeHash {
        self.edge.root()
    }

    /// Appends a leaf hash and returns its index.
    pub fn append(&mut self, leaf: TreeHash) -> u64 {
        let Self { edge, levels } = self;
        edge.append_with(leaf, |level, _, hash| {
            let level = level as usize;
            if levels.len() <= level {
                levels.resize_with(level + 1, Vec::new);
            }
            levels[level].push(hash);
        })
    }

    /// The hash of the perfect subtree `index` of `2^level` leaves, if it is complete.
    #[must_use]
    pub fn hash(&self, level: u32, index: u64) -> Option<TreeHash> {
        let row = self.levels.get(level as usize)?;
        row.get(usize::try_from(index).ok()?).copied()
    }
}

impl FromIterator<TreeHash> for FullTree {
    fn from_iter<I: IntoIterator<Item = TreeHash>>(leaves: I) -> Self {
        let mut tree = Self::new();
        for leaf in leaves {
            tree.append(leaf);
        }
        tree
    }
}

impl HashSource for FullTree {
    type Error = Infallible;

    fn subtree(&self, level: u32, index: u64) -> Result<Option<TreeHash>, Infallible> {
        Ok(self.hash(level, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962 §2.1 as it is written, for comparison.
    fn by_definition(leaves: &[TreeHash]) -> TreeHash {
        match leaves {
            [] => TreeHash::empty(),
            [one] => *one,
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                let (left, right) = leaves.split_at(split);
                TreeHash::node(&by_definition(left), &by_definition(right))
            }
        }
    }

    #[test]
    fn edge_and_full_tree_follow_the_definition() {
        let leaves: Vec<_> = (0..300_u32).map(|n| TreeHash::leaf(&n.to_be_bytes())).collect();
        let (mut edge, mut full) = (Tree::new(), FullTree::new());
        assert_eq!(edge.root(), TreeHash::empty());
        for (n, leaf) in leaves.iter().enumerate() {
            assert_eq!(edge.append(*leaf), n as u64);
            full.append(*leaf);
            let expected = by_definition(&leaves[..=n]);
            assert_eq!(edge.root(), expected);
            assert_eq!(full.root(), expected);
        }
        assert_eq!(full.hash(8, 0), Some(by_definition(&leaves[..256])));
        assert_eq!(full.hash(8, 1), None);
        assert_eq!(full.hash(70, 0), None);
    }
}
