//! Downloading one file from the Hugging Face Hub, continued where it stopped.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use allmend_protocol::ids::Digest;
use futures::StreamExt;
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFError, HFRepository, RepoTypeModel};

use super::error::ModelError;
use super::hashing::hash_watched;
use super::pull::{Fetched, Job};
use super::source::HubFile;

/// A Hub that says nothing for this long is taken for unreachable.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Downloads `file` into `staging`.
///
/// The revision is resolved to a commit first, which becomes part of the recorded source. The
/// digest is compared with the one the Hub declares, where it does, and with `expect`.
pub(super) fn fetch(
    file: &HubFile,
    endpoint: Option<&str>,
    expect: Option<Digest>,
    staging: &Path,
    job: &Job<'_>,
) -> Result<Fetched, ModelError> {
    // The client is asynchronous and a pull is not. A thread of its own may run a runtime even if
    // our caller is inside one.
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ModelError::io("start a runtime for", staging))?;
        runtime.block_on(download(file, endpoint, expect, staging, job))
    };
    thread::scope(|scope| match scope.spawn(run).join() {
        Ok(fetched) => fetched,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// What the Hub says about the file before we fetch it.
struct Announced {
    file: HubFile,
    commit: String,
    bytes: u64,
    digest: Option<Digest>,
    licence: Option<String>,
}

async fn download(
    file: &HubFile,
    endpoint: Option<&str>,
    expect: Option<Digest>,
    staging: &Path,
    job: &Job<'_>,
) -> Result<Fetched, ModelError> {
    job.watch.step(&format!("asking the Hub for {file}"));
    let mut builder = HFClient::builder().cache_enabled(false);
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint(endpoint);
    }
    let client = builder.build().map_err(|error| hub(file, error))?;
    let repository = client.model(&file.owner, &file.repo);
    let announced = announce(&repository, file).await?;
    job.room_for(announced.bytes, announced.bytes, staging)?;
    if let (Some(expected), Some(found)) = (expect, announced.digest)
        && expected != found
    {
        return Err(ModelError::WrongDigest { what: file.to_string(), expected, found });
    }

    let partial = staging.join(format!("partial-{}", announced.commit));
    receive(&repository, &announced, &partial, job).await?;

    job.watch.step("checking the model");
    let digest = hash_watched(&partial, job)?;
    if let Some(expected) = expect.or(announced.digest).filter(|expected| *expected != digest) {
        // Continuing from wrong bytes would never end well.
        let _ = fs::remove_file(&partial);
        let what = announced.file.to_string();
        return Err(ModelError::WrongDigest { what, expected, found: digest });
    }
    Ok(Fetched {
        file: partial,
        digest,
        bytes: announced.bytes,
        source: announced.file.to_string(),
        licence: announced.licence,
    })
}

async fn announce(
    repository: &HFRepository<RepoTypeModel>,
    file: &HubFile,
) -> Result<Announced, ModelError> {
    let odd = |why: &str| ModelError::HubAnswer { file: file.to_string(), why: why.to_owned() };
    let silent = |_| odd("it does not answer");
    let info = repository.info().maybe_revision(file.revision.clone()).send();
    let info = tokio::time::timeout(SILENCE_MAX, info).await.map_err(silent)?;
    let info = info.map_err(|error| hub(file, error))?;
    // The commit becomes a file name here and a revision there, so it must be one.
    let commit = info
        .sha
        .filter(|sha| sha.len() == 40 && sha.bytes().all(|b| b.is_ascii_hexdigit()))
        .ok_or_else(|| odd("it does not say which commit the revision is"))?;
    let licence = info
        .tags
        .unwrap_or_default()
        .iter()
        .find_map(|tag| tag.strip_prefix("license:").map(str::to_owned));

    let entries =
        repository.get_paths_info().paths(vec![file.file.clone()]).revision(commit.clone()).send();
    let entries = tokio::time::timeout(SILENCE_MAX, entries).await.map_err(silent)?;
    let entries = entries.map_err(|error| hub(file, error))?;
    let found = entries.into_iter().find_map(|entry| match entry {
        RepoTreeEntry::File { path, size, lfs, .. } if path == file.file => Some((size, lfs)),
        _ => None,
    });
    let Some((bytes, lfs)) = found else {
        let missing = HFError::EntryNotFound {
            path: file.file.clone(),
            repo_id: format!("{}/{}", file.owner, file.repo),
            context: None,
        };
        return Err(hub(file, missing));
    };
    let digest = lfs.and_then(|lfs| lfs.sha256).and_then(|sha256| sha256.parse().ok());
    Ok(Announced { file: file.at(&commit), commit, bytes, digest, licence })
}

/// Appends to `partial` what is missing of the file.
async fn receive(
    repository: &HFRepository<RepoTypeModel>,
    announced: &Announced,
    partial: &Path,
    job: &Job<'_>,
) -> Result<(), ModelError> {
    let file = &announced.file;
    let write = || ModelError::io("write", partial);
    let mut out = File::options().create(true).append(true).open(partial).map_err(write())?;
    let mut done = out.metadata().map_err(write())?.len();
    if done > announced.bytes {
        out.set_len(0).map_err(write())?;
        done = 0;
    }
    job.watch.step(&format!("downloading {file}"));
    if done == announced.bytes {
        return Ok(());
    }
    let range = (done > 0).then_some(done..announced.bytes);
    let odd = |why: &str| ModelError::HubAnswer { file: file.to_string(), why: why.to_owned() };
    let stream = repository
        .download_file_stream()
        .filename(file.file.clone())
        .revision(announced.commit.clone())
        .maybe_range(range)
        .send();
    let stream = tokio::time::timeout(SILENCE_MAX, stream).await;
    let (_, mut stream) =
        stream.map_err(|_| odd("it does not answer"))?.map_err(|error| hub(file, error))?;
    loop {
        job.check()?;
        let chunk = tokio::time::timeout(SILENCE_MAX, stream.next()).await;
        let Some(chunk) = chunk.map_err(|_| odd("it stopped sending"))? else { break };
        let chunk = chunk.map_err(|error| hub(file, error))?;
        done = done.saturating_add(chunk.len() as u64);
        if done > announced.bytes {
            // More than announced, for example because the range was ignored: start anew next time.
            let _ = fs::remove_file(partial);
            return Err(odd("it sent more than it announced"));
        }
        out.write_all(&chunk).map_err(write())?;
        job.watch.bytes(done, Some(announced.bytes));
    }
    out.sync_all().map_err(write())?;
    if done < announced.bytes { Err(odd("it stopped early")) } else { Ok(()) }
}

fn hub(file: &HubFile, error: HFError) -> ModelError {
    ModelError::Hub { file: file.to_string(), source: Box::new(error) }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
