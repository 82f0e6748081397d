//! One log directory, from bytes to entries: every hash recomputed, each fault given its entry.

use std::collections::BTreeMap;
use std::path::Path;

use allmend_protocol::envelope::Envelope;
use allmend_protocol::ids::NodeId;
use allmend_protocol::log::{
    Checkpoint, Entries, FullTree, HASH_BYTES, NoteVerifier, SignedCheckpoint, TILE_WIDTH, Tile,
    TileKind, TreeHash, bundle::BUNDLE_BYTES_MAX, note::NOTE_BYTES_MAX,
};
use allmend_protocol::message::Kind;
use sha2::{Digest as _, Sha256};

use super::dir::{Dir, Unread};
use super::members::Members;
use super::report::{Fault, LogSummary, Notes, Place};

/// Entries read of one log. Larger logs are audited in parts by a step that keeps what it knows.
const ENTRIES_MAX: u64 = 4_000_000;
/// Blobs read of one log: charters and certificates of the largest federation, many times over.
const BLOBS_MAX: usize = 16_384;
/// The longest `key` file.
const KEY_BYTES_MAX: usize = 1_024;
/// All payload types begin so; used to name the kind of an entry that cannot be read any more.
const TYPE_PREFIX: &[u8] = b"application/vnd.allmend.";

/// A log as far as it could be read.
#[derive(Debug)]
pub(super) struct ReadLog {
    pub(super) dir: String,
    /// The origin, or the directory where there is none.
    pub(super) name: String,
    /// The node whose key signs.
    pub(super) node: Option<NodeId>,
    pub(super) checkpoint: Option<Checkpoint>,
    /// Leaf hashes of all entries that were read, as they are.
    pub(super) leaves: Vec<TreeHash>,
    /// Entries that are envelopes, in order. Damaged ones are left out.
    pub(super) entries: Vec<Entry>,
    /// Entries that were signed for but are no envelopes: index and kind.
    pub(super) unreadable: Vec<(u64, String)>,
    /// Envelopes among the blobs.
    pub(super) blobs: Vec<Envelope>,
    kinds: BTreeMap<String, u64>,
}

/// An entry that is an envelope. Nothing of it has been verified but its hash.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) index: u64,
    pub(super) kind: String,
    pub(super) envelope: Envelope,
}

impl ReadLog {
    pub(super) fn place<'a>(&'a self, entry: &'a Entry) -> Place<'a> {
        Place { log: &self.name, entry: Some(entry.index), kind: Some(&entry.kind) }
    }

    pub(super) fn summary(&self, members: &Members) -> LogSummary {
        let cert = self.node.and_then(|node| members.last_cert_of(node));
        LogSummary {
            dir: self.dir.clone(),
            log: self.name.clone(),
            node: self.node,
            node_name: cert.map(|cert| cert.name.clone()),
            institution: cert.map(|cert| cert.signer),
            institution_name: cert.and_then(|cert| members.institution_name(cert.signer)),
            size: self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.size),
            root: self.checkpoint.as_ref().map(|checkpoint| checkpoint.root),
            kinds: self.kinds.clone(),
        }
    }
}

/// Reads the log in `path`, or in `path/log`.
pub(super) fn read(path: &Path, notes: &mut Notes) -> ReadLog {
    let mut log = ReadLog {
        dir: path.display().to_string(),
        name: path.display().to_string(),
        node: None,
        checkpoint: None,
        leaves: Vec::new(),
        entries: Vec::new(),
        unreadable: Vec::new(),
        blobs: Vec::new(),
        kinds: BTreeMap::new(),
    };
    let inner = path.join("log");
    let root = if inner.is_dir() { &inner } else { path };
    let dir = match Dir::open(root) {
        Ok(dir) => dir,
        Err(error) => {
            notes.find_log(&log.name, Fault::File, format!("cannot be opened: {error}"));
            return log;
        }
    };
    if let Some(verifier) = read_key(&dir, &log.name, notes) {
        log.name = verifier.name().to_string();
        log.node = Some(NodeId::from_bytes(*verifier.key_bytes()));
        log.checkpoint = read_checkpoint(&dir, &verifier, notes);
    }
    log.read_entries(&dir, notes);
    log.read_blobs(&dir, notes);
    log
}

fn read_key(dir: &Dir, log: &str, notes: &mut Notes) -> Option<NoteVerifier> {
    let bytes = match dir.read("key", KEY_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(why) => {
            notes.find_log(log, Fault::File, format!("the file key {}", in_words(why)));
            return None;
        }
    };
    let line = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n'));
    let parsed = line.and_then(|line| line.parse().ok());
    if parsed.is_none() {
        notes.find_log(log, Fault::Checkpoint, "the file key is not a verifier key line");
    }
    parsed
}

fn read_checkpoint(dir: &Dir, key: &NoteVerifier, notes: &mut Notes) -> Option<Checkpoint> {
    let log = key.name().as_str();
    let bytes = match dir.read("checkpoint", NOTE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(why) => {
            notes.find_log(log, Fault::File, format!("the checkpoint {}", in_words(why)));
            return None;
        }
    };
    match SignedCheckpoint::verify(&bytes, key) {
        Ok(signed) => Some(signed.checkpoint().clone()),
        Err(error) => {
            notes.find_log(log, Fault::Checkpoint, format!("the checkpoint is refused: {error}"));
            None
        }
    }
}

/// Where entry and level-0 tile disagree; whose fault it is shows when the root is known.
struct Disagreement {
    index: u64,
    kind: Option<String>,
    /// The entry's bytes could not even be told from their neighbours.
    unframed: bool,
}

impl ReadLog {
    fn read_entries(&mut self, dir: &Dir, notes: &mut Notes) {
        let Some(Checkpoint { size, root, .. }) = self.checkpoint.clone() else { return };
        if size > ENTRIES_MAX {
            let why = format!("{size} entries are more than the {ENTRIES_MAX} audited at once");
            notes.find_log(&self.name, Fault::File, why);
            return;
        }
        let (mut by_entries, mut by_tiles) = (FullTree::new(), FullTree::new());
        let mut disagreements = Vec::new();
        for first in (0..size).step_by(usize::from(TILE_WIDTH)) {
            let tile = |kind| Tile::holding(kind, first, size);
            let (Some(bundle), Some(row)) = (tile(TileKind::Entries), tile(TileKind::Hashes(0)))
            else {
                return;
            };
            let row = self.read_row(dir, row, notes);
            let bundle = self.read_tile(dir, bundle, BUNDLE_BYTES_MAX, notes);
            let (Some(row), Some((bundle, exact))) = (row, bundle) else { return };
            self.read_bundle(first, (&bundle, exact), &row, &mut disagreements);
            for (leaf, hash) in self.leaves[by_entries.size() as usize..].iter().zip(&row) {
                by_entries.append(*leaf);
                by_tiles.append(*hash);
            }
        }
        let agree = by_entries.root() == root;
        self.blame(&disagreements, agree, by_tiles.root() == root, notes);
        if !agree && disagreements.is_empty() {
            let why = "the entries do not lead to the root that the checkpoint signs";
            notes.find_log(&self.name, Fault::Checkpoint, why);
        }
        self.check_upper_rows(dir, size, if agree { &by_entries } else { &by_tiles }, notes);
    }

    /// Takes the entries of one bundle, comparing each with its hash in the tile.
    fn read_bundle(
        &mut self,
        first: u64,
        (bundle, exact): (&[u8], bool),
        row: &[TreeHash],
        disagreements: &mut Vec<Disagreement>,
    ) {
        let mut entries = Entries::new(bundle);
        let (mut broken, mut at) = (false, 0);
        for (index, hash) in (first..).zip(row) {
            let start = at;
            let entry = if broken { None } else { entries.next().and_then(Result::ok) };
            let Some(entry) = entry else {
                // Everything behind a changed length is unreadable; name where it begins.
                if !broken {
                    let kind = kind_of(&bundle[start..]);
                    disagreements.push(Disagreement { index, kind, unframed: true });
                }
                broken = true;
                self.leaves.push(*hash);
                continue;
            };
            at += 2 + entry.len();
            let leaf = TreeHash::leaf(entry);
            let envelope = Envelope::from_bytes(entry);
            if leaf == *hash {
                self.leaves.push(leaf);
                self.take(index, kind_of(entry), envelope.ok());
                continue;
            }
            // A wrong length shifts all that follows: only the first of the run is to blame.
            let fits = match (entries.clone().next(), row.get((index - first) as usize + 1)) {
                (Some(Ok(next)), Some(hash)) => TreeHash::leaf(next) == *hash,
                // Behind a partial tile that has been superseded, more entries follow.
                (next, None) => next.is_none() || !exact,
                _ => false,
            };
            broken = envelope.is_err() && !fits;
            let kind = kind_of(if broken { &bundle[start..] } else { entry });
            disagreements.push(Disagreement { index, kind, unframed: broken });
            self.leaves.push(if broken { *hash } else { leaf });
        }
        // Bytes behind the last entry are in no hash.
        if !broken && exact && entries.next().is_some() {
            let index = first + row.len() as u64 - 1;
            disagreements.push(Disagreement { index, kind: None, unframed: true });
        }
    }

    fn take(&mut self, index: u64, kind: Option<String>, envelope: Option<Envelope>) {
        let kind = kind.unwrap_or_else(|| "unknown".to_owned());
        *self.kinds.entry(kind.clone()).or_default() += 1;
        if let Some(envelope) = envelope {
            self.entries.push(Entry { index, kind, envelope });
        } else {
            self.unreadable.push((index, kind));
        }
    }

    fn blame(&self, found: &[Disagreement], entries: bool, tiles: bool, notes: &mut Notes) {
        for Disagreement { index, kind, unframed } in found {
            let place = Place { log: &self.name, entry: Some(*index), kind: kind.as_deref() };
            match (unframed, entries, tiles) {
                (true, ..) => {
                    let why = "the entry was changed: its length or bytes do not fit its bundle";
                    notes.find(&place, Fault::EntryChanged, why);
                }
                (_, true, _) => {
                    let why = "the hash tile was changed: the entry is the one that was signed for";
                    notes.find(&place, Fault::TileChanged, why);
                }
                (_, _, true) => {
                    let why = "the entry was changed: its hash is not the one that was signed for";
                    notes.find(&place, Fault::EntryChanged, why);
                }
                _ => {
                    let why = "entry and hash tile disagree, and the signed root is another still";
                    notes.find(&place, Fault::EntryChanged, why);
                }
            }
        }
    }

    fn check_upper_rows(&self, dir: &Dir, size: u64, tree: &FullTree, notes: &mut Notes) {
        for level in 1..8 {
            let kind = TileKind::Hashes(level);
            let Some(last) = Tile::rightmost(kind, size) else { return };
            for index in 0..=last.index() {
                let first = index * u64::from(TILE_WIDTH);
                let Some(tile) = Tile::holding(kind, first, size) else { return };
                let Some(row) = self.read_row(dir, tile, notes) else { continue };
                let expected = (first..).map(|at| tree.hash(8 * u32::from(level), at));
                if !row.iter().zip(expected).all(|(hash, expected)| Some(*hash) == expected) {
                    let why = format!("{tile} does not hold the hashes of the tiles below it");
                    notes.find_log(&self.name, Fault::TileChanged, why);
                }
            }
        }
    }

    fn read_row(&self, dir: &Dir, tile: Tile, notes: &mut Notes) -> Option<Vec<TreeHash>> {
        let bytes_max = usize::from(TILE_WIDTH) * HASH_BYTES;
        let (bytes, exact) = self.read_tile(dir, tile, bytes_max, notes)?;
        let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
        let width = usize::from(tile.width());
        if !rest.is_empty() || hashes.len() < width || (exact && hashes.len() > width) {
            let why = format!("{tile} does not hold {width} hashes");
            notes.find_log(&self.name, Fault::TileChanged, why);
            return None;
        }
        Some(hashes[..width].iter().map(|hash| TreeHash::from_bytes(*hash)).collect())
    }

    /// Reads a tile and says whether it is that very one: a partial one that was superseded since
    /// is found in the full one.
    fn read_tile(
        &self,
        dir: &Dir,
        tile: Tile,
        bytes_max: usize,
        notes: &mut Notes,
    ) -> Option<(Vec<u8>, bool)> {
        let read = match dir.read(&tile.to_string(), bytes_max) {
            Err(Unread::Missing) if tile.is_partial() => {
                dir.read(&tile.full().to_string(), bytes_max).map(|bytes| (bytes, false))
            }
            read => read.map(|bytes| (bytes, true)),
        };
        read.map_err(|why| {
            notes.find_log(&self.name, Fault::File, format!("{tile} {}", in_words(why)));
        })
        .ok()
    }

    fn read_blobs(&mut self, dir: &Dir, notes: &mut Notes) {
        let (names, more) = dir.list("blob", BLOBS_MAX);
        if more {
            let why = format!("there are more than {BLOBS_MAX} blobs");
            notes.find_log(&self.name, Fault::File, why);
        }
        for name in names.iter().filter(|name| !name.starts_with('.')) {
            let path = format!("blob/{name}");
            match dir.read(&path, crate::journal::BLOB_BYTES_MAX) {
                Ok(bytes) => self.take_blob(name, &bytes, notes),
                Err(why) => {
                    notes.find_log(&self.name, Fault::File, format!("{path} {}", in_words(why)));
                }
            }
        }
    }

    fn take_blob(&mut self, name: &str, bytes: &[u8], notes: &mut Notes) {
        let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(bytes));
        let envelope = Envelope::from_bytes(bytes).ok();
        let named = name == digest
            || envelope.as_ref().is_some_and(|envelope| envelope.id().to_string() == name);
        if !named {
            let why = format!("blob {name} was changed: its bytes have another digest");
            notes.find_log(&self.name, Fault::File, why);
            return;
        }
        self.blobs.extend(envelope);
    }
}

/// The kind of message in an entry's payload type, even if the rest is damaged.
fn kind_of(entry: &[u8]) -> Option<String> {
    let at = entry.windows(TYPE_PREFIX.len()).position(|window| window == TYPE_PREFIX)?;
    let rest = &entry[at + TYPE_PREFIX.len()..];
    let kind: Vec<u8> = rest
        .iter()
        .copied()
        .take_while(|byte| byte.is_ascii_lowercase() || *byte == b'-')
        .take(32)
        .collect();
    String::from_utf8(kind).ok().filter(|kind| Kind::from_name(kind).is_some())
}

const fn in_words(why: Unread) -> &'static str {
    match why {
        Unread::Missing => "is missing",
        Unread::Unreadable => "cannot be read as a plain file",
        Unread::TooLarge => "is larger than it can be",
    }
}
