//! Adding, withdrawing, setting the policy; counting runs and released adapters.

use std::path::Path;

use allmend_protocol::ids::{Digest, MessageId, PublicKey, ResearcherId};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Jurisdiction;
use serde::Serialize;

use super::record::{RELEASES_MAX, RUNS_MAX, STEWARDS_MAX, VERSIONS_MAX};
use super::stage::Staging;
use super::{
    Dataset, DatasetName, NEW_RECORD_FILE, Policy, RECORD_FILE, Registry, Release, Run,
    VersionRecord, Withdrawal, usable,
};
use crate::error::{AddError, RegistryError};
use crate::metadata::Metadata;
use crate::source::{ReadOptions, Report, read_source};

/// What a steward decides about a new dataset.
#[derive(Clone, Debug)]
pub struct NewDataset {
    /// Its name.
    pub name: DatasetName,
    /// What may be said about it.
    pub metadata: Metadata,
    /// Who may do what with it.
    pub policy: Policy,
    /// The steward's key, then those of deputies.
    pub stewards: Vec<PublicKey>,
    /// Whether its metadata may be advertised.
    pub public: bool,
    /// Where its rows may travel; nowhere when empty.
    pub portable: Vec<Jurisdiction>,
    /// The fewest distinct subjects from which an adapter may be released.
    pub subjects_min: u64,
    /// How many runs each requester may have; any number when `None`.
    pub runs_max: Option<u32>,
}

/// A dataset that has been added, or of which a version has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The dataset as it is now.
    pub dataset: Dataset,
    /// What was found in the source.
    pub report: Report,
}

/// A dataset that has been withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Withdrawn {
    /// Its name.
    pub name: DatasetName,
    /// When and why.
    pub withdrawal: Withdrawal,
    /// Its versions that jobs may be running on.
    pub versions: Vec<Digest>,
    /// Every adapter that was released from it.
    pub releases: Vec<Release>,
}

impl Registry {
    /// Adds a dataset from the file or directory at `source`.
    ///
    /// It is there whole when this returns; after an error nothing of it is.
    ///
    /// # Errors
    /// [`AddError`]; [`AddError::Invalid`] with all that must be mended in the source.
    pub fn add(
        &self,
        new: NewDataset,
        source: &Path,
        options: &ReadOptions<'_>,
        now: Timestamp,
    ) -> Result<Added, AddError> {
        new.metadata.check()?;
        if new.stewards.is_empty() || new.stewards.len() > STEWARDS_MAX {
            return Err(AddError::Stewards(STEWARDS_MAX));
        }
        self.must_not_exist(&new.name)?;
        let staging = self.stage()?;
        let (version, report) = read_into(&staging, source, options, now)?;
        let dataset = Dataset {
            format: 1,
            name: new.name,
            metadata: new.metadata,
            policy: new.policy,
            stewards: new.stewards,
            public: new.public,
            portable: new.portable,
            subjects_min: new.subjects_min,
            runs_max: new.runs_max,
            withdrawn: None,
            versions: vec![version],
            runs: Vec::new(),
            releases: Vec::new(),
        };
        self.write_record(staging.dir(), &dataset)?;
        let dir = self.dataset_dir(&dataset.name);
        let _lock = self.lock()?;
        // Somebody may have been quicker.
        self.must_not_exist(&dataset.name)?;
        self.disk.rename(staging.dir(), &dir).map_err(RegistryError::io("create", &dir))?;
        Ok(Added { dataset, report })
    }

    /// Adds a version to a dataset; older versions stay for the jobs that name them.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add_version(
        &self,
        name: &DatasetName,
        source: &Path,
        options: &ReadOptions<'_>,
        now: Timestamp,
    ) -> Result<Added, AddError> {
        let dataset = self.read(name)?;
        if let Some(current) = dataset.current() {
            usable(&dataset, current)?;
        }
        room(name, "versions", dataset.versions.len(), VERSIONS_MAX)?;
        let staging = self.stage()?;
        let (version, report) = read_into(&staging, source, options, now)?;
        let from = staging.path(&version.digest);
        let dataset = self.change(name, |dataset| {
            let to = self.rows_path(name, &version.digest);
            self.disk.rename(&from, &to).map_err(RegistryError::io("create", &to))?;
            dataset.versions.push(version);
            Ok(())
        })?;
        Ok(Added { dataset, report })
    }

    /// Takes a dataset back: no job gets its rows any more, and nothing more is released from it.
    ///
    /// Doing it again changes nothing and says the same.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn withdraw(
        &self,
        name: &DatasetName,
        why: &str,
        now: Timestamp,
    ) -> Result<Withdrawn, RegistryError> {
        let mut withdrawal = Withdrawal { when: now, why: why.to_owned() };
        let dataset = self.change(name, |dataset| {
            withdrawal = dataset.withdrawn.get_or_insert(withdrawal.clone()).clone();
            Ok(())
        })?;
        Ok(Withdrawn {
            name: dataset.name,
            withdrawal,
            versions: dataset.versions.iter().map(|version| version.digest).collect(),
            releases: dataset.releases,
        })
    }

    /// Replaces the policy. Approvals name the digest of the policy they were given under.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn set_policy(&self, name: &DatasetName, policy: Policy) -> Result<Dataset, RegistryError> {
        self.change(name, |dataset| {
            dataset.policy = policy;
            Ok(())
        })
    }

    /// Counts a run of `requester` on a version, durably, before it begins. Counting a job again, as
    /// after a failed attempt, changes nothing.
    ///
    /// # Errors
    /// [`RegistryError::RunsUsed`] when the requester has had them all, [`RegistryError::Withdrawn`],
    /// [`RegistryError::Destroyed`], [`RegistryError::NotFound`], [`RegistryError::Full`].
    pub fn record_run(
        &self,
        version: &Digest,
        job: MessageId,
        requester: ResearcherId,
        now: Timestamp,
    ) -> Result<Dataset, RegistryError> {
        let run = Run { job, requester, version: *version, when: now };
        self.change_version(version, |dataset| {
            if dataset.runs.iter().any(|known| known.job == job && known.version == *version) {
                return Ok(());
            }
            if let Some(max) = dataset.runs_max
                && dataset.runs_of(&requester) >= u64::from(max)
            {
                return Err(RegistryError::RunsUsed { name: dataset.name.to_string(), max });
            }
            room(&dataset.name, "runs", dataset.runs.len(), RUNS_MAX)?;
            dataset.runs.push(run);
            Ok(())
        })
    }

    /// Notes that an adapter is released from a version, durably, before it is. Noting it again
    /// changes nothing.
    ///
    /// # Errors
    /// As [`Registry::record_run`]: an adapter from a withdrawn or destroyed version must not leave.
    pub fn record_release(
        &self,
        version: &Digest,
        job: MessageId,
        adapter: Digest,
        requester: ResearcherId,
        now: Timestamp,
    ) -> Result<Dataset, RegistryError> {
        let release = Release { adapter, job, requester, version: *version, when: now };
        self.change_version(version, |dataset| {
            let same = |known: &Release| {
                known.job == job && known.adapter == adapter && known.version == *version
            };
            if !dataset.releases.iter().any(same) {
                room(&dataset.name, "releases", dataset.releases.len(), RELEASES_MAX)?;
                dataset.releases.push(release);
            }
            Ok(())
        })
    }

    fn change_version(
        &self,
        version: &Digest,
        change: impl FnOnce(&mut Dataset) -> Result<(), RegistryError>,
    ) -> Result<Dataset, RegistryError> {
        let name = self.version(version)?.dataset.name;
        self.change(&name, |dataset| {
            // Under the lock it may be another story.
            match dataset.version(version) {
                Some((_, record)) => usable(dataset, record)?,
                None => return Err(RegistryError::NotFound(version.to_string())),
            }
            change(dataset)
        })
    }

    /// Changes a record under the lock; nothing changes if `change` fails.
    pub(super) fn change(
        &self,
        name: &DatasetName,
        change: impl FnOnce(&mut Dataset) -> Result<(), RegistryError>,
    ) -> Result<Dataset, RegistryError> {
        let _lock = self.lock()?;
        let before = self.read(name)?;
        let mut dataset = before.clone();
        change(&mut dataset)?;
        if dataset != before {
            self.write_record(&self.dataset_dir(name), &dataset)?;
        }
        Ok(dataset)
    }

    fn write_record(&self, dir: &Path, dataset: &Dataset) -> Result<(), RegistryError> {
        let (new, path) = (dir.join(NEW_RECORD_FILE), dir.join(RECORD_FILE));
        let failed = || RegistryError::io("write", &path);
        let bytes =
            serde_json::to_vec_pretty(dataset).map_err(std::io::Error::other).map_err(failed())?;
        self.disk.write(&new, &bytes).map_err(failed())?;
        self.disk.rename(&new, &path).map_err(failed())
    }

    fn must_not_exist(&self, name: &DatasetName) -> Result<(), RegistryError> {
        if self.dataset_dir(name).exists() {
            Err(RegistryError::Exists(name.to_string()))
        } else {
            Ok(())
        }
    }
}

/// Reads a source into a staged version.
fn read_into(
    staging: &Staging<'_>,
    source: &Path,
    options: &ReadOptions<'_>,
    now: Timestamp,
) -> Result<(VersionRecord, Report), AddError> {
    let mut rows = staging.rows()?;
    let report = read_source(source, options, |row| rows.push(&row).map_err(AddError::from))?;
    if !report.is_clean() {
        return Err(AddError::Invalid(Box::new(report)));
    }
    Ok((staging.finish(rows, None, now)?, report))
}

pub(super) fn room(
    name: &DatasetName,
    what: &'static str,
    there: usize,
    max: usize,
) -> Result<(), RegistryError> {
    if there < max {
        Ok(())
    } else {
        Err(RegistryError::Full { name: name.to_string(), what, max })
    }
}
