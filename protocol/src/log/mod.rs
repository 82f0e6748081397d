//! Transparency-log mathematics: tree hashes, proofs, tiles, entry bundles, signed checkpoints.
//!
//! This is the pure half of `specs/log.md`: it reads and makes bytes and paths, and touches no
//! disk. Where files lie and when they are written is the node's journal (`specs/journal.md`).
//! Formats are those of RFC 6962 and of C2SP `tlog-tiles`, `tlog-checkpoint` and `signed-note`,
//! so that tools written for other transparency logs read ours.

pub mod bundle;
pub mod checkpoint;
pub mod hash;
pub mod note;
pub mod proof;
pub mod tile;
pub mod tree;

pub use bundle::{BundleError, ENTRY_BYTES_MAX, Entries};
pub use checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
pub use hash::{HASH_BYTES, TreeHash};
pub use note::{KeyName, Note, NoteError, NoteSignature, NoteSigner, NoteVerifier};
pub use proof::{
    HashSource, ProofError, consistency_proof, inclusion_proof, root_of, verify_consistency,
    verify_inclusion,
};
pub use tile::{TILE_WIDTH, Tile, TileKind, TilePathError};
pub use tree::{FullTree, Tree};
