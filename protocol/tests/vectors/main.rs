//! The golden vectors of `specs/vectors/`: what this release writes is what the files say, and what
//! the files say is what this release and a second reader, written from the pages alone, read.
//!
//! `ALLMEND_WRITE_VECTORS=1 cargo test -p allmend-protocol --test vectors` writes them anew.
#![allow(clippy::disallowed_methods, reason = "vectors are files")]

mod bad;
mod file;
mod read;
mod splice;
#[path = "../support/mod.rs"]
mod support;
mod tables;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../specs/vectors")
}

/// Every file by name with its content.
fn generated() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for vectors in bad::files() {
        files.insert(format!("{}.json", vectors.kind), vectors.to_text());
    }
    files.extend(tables::files());
    files.insert("finetune.json".to_owned(), work::file().to_text());
    files
}

/// Goal: nobody changes what is said on the wire without noticing.
#[test]
fn files_are_what_this_release_writes() {
    let write = std::env::var("ALLMEND_WRITE_VECTORS").is_ok();
    for (name, text) in generated() {
        let path = folder().join(&name);
        if write {
            std::fs::write(&path, text).unwrap();
        } else {
            let found = std::fs::read_to_string(&path).unwrap();
            assert!(found == text, "{name} differs; see the head of this test");
        }
    }
}

#[test]
fn files_stay_small() {
    let bytes: usize = generated().values().map(String::len).sum();
    // Some 15 KiB for each kind of message, most of it bad ones.
    assert!(bytes < 512 * 1024, "{bytes} bytes");
}
