//! Tree hashes, proofs, bundles, tiles and notes against vectors and against mutation.

use allmend_protocol::log::{
    Checkpoint, CheckpointError, Entries, FullTree, KeyName, Note, NoteError, NoteSigner,
    NoteVerifier, SignedCheckpoint, Tile, TreeHash, bundle, consistency_proof, inclusion_proof,
    root_of, verify_consistency, verify_inclusion,
};
use data_encoding::BASE64;
use ed25519_dalek::SigningKey;
use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Inclusion {
    name: String,
    leaf_idx: u64,
    tree_size: u64,
    root: String,
    leaf_hash: String,
    proof: Option<Vec<String>>,
    want_err: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Consistency {
    name: String,
    size1: u64,
    size2: u64,
    root1: String,
    root2: String,
    proof: Option<Vec<String>>,
    want_err: bool,
}

/// `None` for a hash of another length, which our type cannot hold and so refuses.
fn hash(text: &str) -> Option<TreeHash> {
    let bytes = BASE64.decode(text.as_bytes()).unwrap();
    Some(TreeHash::from_bytes(bytes.try_into().ok()?))
}

/// The consistency vectors accept equal roots of any length; those become distinct hashes.
fn root(text: &str) -> TreeHash {
    let odd = || Sha256::digest(["odd length", text].concat()).into();
    hash(text).unwrap_or_else(|| TreeHash::from_bytes(odd()))
}

fn hashes(texts: Option<Vec<String>>) -> Vec<TreeHash> {
    texts.iter().flatten().map(|text| root(text)).collect()
}

#[test]
fn inclusion_vectors() {
    let text = include_str!("../../specs/vectors/merkle/inclusion.json");
    let cases: Vec<Inclusion> = serde_json::from_str(text).unwrap();
    assert_eq!(cases.len(), 98);
    for case in cases {
        let proof = hashes(case.proof);
        let holds = hash(&case.leaf_hash).zip(hash(&case.root)).is_some_and(|(leaf, root)| {
            verify_inclusion(&leaf, case.leaf_idx, case.tree_size, &proof, &root).is_ok()
        });
        assert_eq!(holds, !case.want_err, "{}", case.name);
    }
}

#[test]
fn consistency_vectors() {
    let text = include_str!("../../specs/vectors/merkle/consistency.json");
    let cases: Vec<Consistency> = serde_json::from_str(text).unwrap();
    assert_eq!(cases.len(), 98);
    for case in cases {
        let (old, new) = (root(&case.root1), root(&case.root2));
        let proof = hashes(case.proof);
        let result = verify_consistency(case.size1, case.size2, &proof, &old, &new);
        assert_eq!(result.is_err(), case.want_err, "{}: {result:?}", case.name);
    }
}

fn tree(size: u64) -> FullTree {
    let leaf = |n: u64| TreeHash::leaf(&n.to_be_bytes());
    (0..size).map(leaf).collect()
}

/// Goal: every proof of every small tree is made and holds, for its own place only.
#[test]
fn all_proofs_of_small_trees() {
    let full = tree(40);
    for size in 1..=40 {
        let root = root_of(&full, size).unwrap();
        for index in 0..size {
            let leaf = full.hash(0, index).unwrap();
            let proof = inclusion_proof(&full, index, size).unwrap();
            verify_inclusion(&leaf, index, size, &proof, &root).unwrap();
            assert!(verify_inclusion(&leaf, index + 1, size, &proof, &root).is_err());
        }
        for old in 1..=size {
            let old_root = root_of(&full, old).unwrap();
            let proof = consistency_proof(&full, old, size).unwrap();
            verify_consistency(old, size, &proof, &old_root, &root).unwrap();
        }
    }
    assert!(inclusion_proof(&full, 41, 41).is_err());
    assert!(inclusion_proof(&full, 3, 41).is_err());
    assert!(consistency_proof(&full, 0, 4).is_err());
}

fn flip(hash: &TreeHash, bit: usize) -> TreeHash {
    let mut bytes = *hash.as_bytes();
    bytes[bit / 8 % 32] ^= 1 << (bit % 8);
    TreeHash::from_bytes(bytes)
}

fn signer() -> NoteSigner {
    let name = "node.example.org/allmend/0".parse().unwrap();
    NoteSigner::new(name, SigningKey::from_bytes(&[7; 32])).unwrap()
}

fn signed(size: u64, root: TreeHash) -> SignedCheckpoint {
    let signer = signer();
    let origin = signer.verifier().name().clone();
    let checkpoint = Checkpoint { origin, size, root };
    checkpoint.sign(&signer).unwrap()
}

proptest! {
    #[test]
    fn changed_inclusion_proofs_fail(
        size in 2_u64..600, at in any::<prop::sample::Index>(), bit in 0_usize..256,
        which in any::<prop::sample::Index>(),
    ) {
        let full = tree(size);
        let index = at.index(size as usize) as u64;
        let (leaf, root) = (full.hash(0, index).unwrap(), full.root());
        let mut proof = inclusion_proof(&full, index, size).unwrap();
        prop_assert!(verify_inclusion(&flip(&leaf, bit), index, size, &proof, &root).is_err());
        let place = which.index(proof.len());
        proof[place] = flip(&proof[place], bit);
        prop_assert!(verify_inclusion(&leaf, index, size, &proof, &root).is_err());
        proof[place] = flip(&proof[place], bit);
        proof.remove(place);
        prop_assert!(verify_inclusion(&leaf, index, size, &proof, &root).is_err());
    }

    #[test]
    fn changed_consistency_proofs_fail(
        new in 2_u64..600, at in any::<prop::sample::Index>(), bit in 0_usize..256,
        which in any::<prop::sample::Index>(),
    ) {
        let full = tree(new);
        let old = at.index(new as usize - 1) as u64 + 1;
        let (old_root, root) = (root_of(&full, old).unwrap(), full.root());
        let mut proof = consistency_proof(&full, old, new).unwrap();
        verify_consistency(old, new, &proof, &old_root, &root).unwrap();
        let wrong = flip(&old_root, bit);
        prop_assert!(verify_consistency(old, new, &proof, &wrong, &root).is_err());
        let place = which.index(proof.len());
        proof[place] = flip(&proof[place], bit);
        prop_assert!(verify_consistency(old, new, &proof, &old_root, &root).is_err());
    }

    #[test]
    fn arbitrary_proofs_do_not_panic(
        a in any::<u64>(), b in any::<u64>(), proof in prop::collection::vec(any::<[u8; 32]>(), 0..80),
    ) {
        let proof: Vec<_> = proof.into_iter().map(TreeHash::from_bytes).collect();
        let root = TreeHash::empty();
        let _ = verify_inclusion(&root, a, b, &proof, &root);
        let _ = verify_consistency(a, b, &proof, &root, &root);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Note::from_bytes(&bytes);
        let count = Entries::new(&bytes).count();
        prop_assert!(count <= bytes.len());
        let text = String::from_utf8_lossy(&bytes);
        let _ = text.parse::<Tile>();
        let _ = text.parse::<NoteVerifier>();
        let _ = Checkpoint::from_text(&text);
    }

    #[test]
    fn bundles_round_trip(
        entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20),
    ) {
        let mut bytes = Vec::new();
        for entry in &entries {
            bundle::push_entry(&mut bytes, entry).unwrap();
        }
        let back: Vec<_> = Entries::new(&bytes).map(|e| e.unwrap().to_vec()).collect();
        prop_assert_eq!(back, entries);
    }

    /// Goal: whatever bit of a signed checkpoint changes, it is refused.
    #[test]
    fn changed_checkpoints_fail(at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        let good = signed(1234, TreeHash::leaf(b"x"));
        let mut bytes = good.note().to_string().into_bytes();
        let place = at.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert!(SignedCheckpoint::verify(&bytes, signer().verifier()).is_err());
    }
}

#[test]
fn a_signed_checkpoint_round_trips_and_keeps_cosignatures() {
    let root = tree(5).root();
    let good = signed(5, root);
    let mut text = good.note().to_string();
    text.push_str("\u{2014} witness.example.org AQIDBAUGBwg=\n");
    let back = SignedCheckpoint::verify(text.as_bytes(), signer().verifier()).unwrap();
    assert_eq!(back.checkpoint().size, 5);
    assert_eq!(back.checkpoint().root, root);
    let cosignature = &back.note().signatures()[1];
    assert_eq!(cosignature.key_id, [1, 2, 3, 4]);
    assert_eq!(cosignature.signature, [5, 6, 7, 8]);
    assert_eq!(back.note().to_string(), text);
}

/// Goal: the key line and the signature are those that other signed-note tools make. The values
/// are from the documentation of Go's `golang.org/x/mod/sumdb/note`.
#[test]
fn a_note_of_another_implementation_verifies() {
    let key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    let note = "If you think cryptography is the answer to your problem,\n\
                then you don't know what your problem is.\n\
                \n\
                \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    let verifier: NoteVerifier = key.parse().unwrap();
    assert_eq!(verifier.to_string(), key);
    let note = Note::from_bytes(note.as_bytes()).unwrap();
    assert_eq!(note.verify(&verifier), Ok(()));
    assert_eq!(note.verify(signer().verifier()), Err(NoteError::Unsigned));
}

#[test]
fn checkpoints_have_one_form_and_one_origin() {
    let root = TreeHash::empty().to_base64();
    assert!(Checkpoint::from_text(&format!("log\n0\n{root}\n")).is_ok());
    for text in [
        format!("log\n00\n{root}\n"),
        format!("log\n+1\n{root}\n"),
        format!("log\n9223372036854775808\n{root}\n"),
        format!("log\n0\n{root}"),
        format!("log\n0\n{root}\nextension\n"),
        format!("\n0\n{root}\n"),
        "log\n0\nAAAA\n".to_owned(),
    ] {
        assert_eq!(Checkpoint::from_text(&text), Err(CheckpointError::Malformed), "{text:?}");
    }
    let other = Checkpoint { origin: "other".parse().unwrap(), size: 0, root: TreeHash::empty() };
    assert_eq!(other.sign(&signer()), Err(CheckpointError::Origin));
    for name in ["", "a b", "a+b", "a\nb"] {
        assert_eq!(name.parse::<KeyName>(), Err(NoteError::Name));
    }
}
