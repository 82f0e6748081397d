//! Forgetting a subject: a new version without their rows, and the end of every version that has them.
//!
//! What this can do and what not (docs/steward.md): the files are overwritten with zeros before they
//! are removed, so a worker that still has one open reads nothing more. A file system that copies on
//! write, an SSD's spare blocks, backups, and the file that the steward handed in are beyond its reach;
//! and an adapter that was released has learnt what it has learnt, so those are named.

use std::collections::BTreeSet;

use allmend_protocol::ids::Digest;
use allmend_protocol::time::Timestamp;
use serde::Serialize;

use super::record::VERSIONS_MAX;
use super::{Dataset, DatasetName, Destroyed, Registry, Release, each_row, open_rows};
use crate::error::RegistryError;
use crate::rows::RowsError;

/// An adapter that may have learnt from the forgotten rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Affected {
    /// Which, and who has it.
    pub release: Release,
    /// Whether the version it was made from is known to have held the subject. The rows of versions
    /// destroyed earlier cannot be asked any more, so their adapters are listed with `false`.
    pub certain: bool,
}

/// What forgetting did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// The dataset as it is now.
    pub dataset: Dataset,
    /// The present version; a new one if the one before it held the subject.
    pub version: Digest,
    /// Versions whose rows were destroyed.
    pub destroyed: Vec<Digest>,
    /// How many rows of the subject the version before had.
    pub rows: u64,
    /// Adapters that may have learnt from them.
    pub affected: Vec<Affected>,
}

impl Registry {
    /// Forgets a subject: makes a version without their rows and destroys every version that has any.
    ///
    /// Nothing of the subject is kept, not even that they were forgotten. Works on a withdrawn
    /// dataset too.
    ///
    /// # Errors
    /// [`RegistryError::NoSuchSubject`] if no version holds them; [`RegistryError::Changed`] if the
    /// dataset was changed meanwhile, and then nothing has happened; [`RegistryError::Io`] after the
    /// new version is in force means that old rows may still be there: they are destroyed when the
    /// registry is next opened.
    pub fn forget(
        &self,
        name: &DatasetName,
        subject: &str,
        now: Timestamp,
    ) -> Result<Forgotten, RegistryError> {
        let before = self.read(name)?;
        let Some(current) = before.current().map(|version| version.digest) else {
            return Err(RegistryError::NotFound(name.to_string()));
        };
        let older: BTreeSet<Digest> = self.older_with(&before, &current, subject)?;

        let staging = self.stage()?;
        let mut writer = staging.rows()?;
        let mut rows = 0;
        let reader = open_rows(&self.rows_path(name, &current), &current)?;
        each_row(reader, &current, |row| {
            if row.subject.as_deref() == Some(subject) {
                rows += 1;
                return Ok(());
            }
            writer.push(row).map_err(|error| match error {
                RowsError::Io(error) => RegistryError::io("write", staging.dir())(error),
                source => RegistryError::Rows { digest: current, source },
            })
        })?;
        if rows == 0 && older.is_empty() {
            return Err(RegistryError::NoSuchSubject(name.to_string()));
        }

        let mut doomed = older;
        let mut successor = current;
        let mut version = None;
        if rows > 0 {
            let made = staging.finish(writer, Some(current), now)?;
            successor = made.digest;
            version = Some(made);
            doomed.insert(current);
        }
        let affected = affected(&before, &doomed);
        let dataset = self.change(name, |dataset| {
            if dataset.versions != before.versions || dataset.releases != before.releases {
                return Err(RegistryError::Changed(name.to_string()));
            }
            for record in dataset.versions.iter_mut().filter(|v| doomed.contains(&v.digest)) {
                record.destroyed = Some(Destroyed { when: now, successor });
            }
            if let Some(version) = version {
                super::change::room(name, "versions", dataset.versions.len(), VERSIONS_MAX)?;
                let to = self.rows_path(name, &successor);
                self.disk
                    .rename(&staging.path(&successor), &to)
                    .map_err(RegistryError::io("create", &to))?;
                dataset.versions.push(version);
            }
            Ok(())
        })?;
        let _lock = self.lock()?;
        self.sweep_dataset(&dataset)?;
        let destroyed = doomed.into_iter().collect();
        Ok(Forgotten { dataset, version: successor, destroyed, rows, affected })
    }

    /// Versions before the present one that still have rows of the subject.
    fn older_with(
        &self,
        dataset: &Dataset,
        current: &Digest,
        subject: &str,
    ) -> Result<BTreeSet<Digest>, RegistryError> {
        let mut with = BTreeSet::new();
        for version in &dataset.versions {
            if version.destroyed.is_some() || version.digest == *current {
                continue;
            }
            let path = self.rows_path(&dataset.name, &version.digest);
            let mut found = false;
            each_row(open_rows(&path, &version.digest)?, &version.digest, |row| {
                found |= row.subject.as_deref() == Some(subject);
                Ok(())
            })?;
            if found {
                with.insert(version.digest);
            }
        }
        Ok(with)
    }
}

/// Adapters of versions that held the subject, and of those that nobody can ask any more.
fn affected(dataset: &Dataset, with: &BTreeSet<Digest>) -> Vec<Affected> {
    // What forgetting left of a version was in that version: parents of a version with the subject
    // had them too.
    let mut certain = with.clone();
    for version in dataset.versions.iter().rev() {
        if certain.contains(&version.digest) {
            certain.extend(version.parent);
        }
    }
    dataset
        .releases
        .iter()
        .filter_map(|release| {
            let is_certain = certain.contains(&release.version);
            let unknown =
                dataset.version(&release.version).is_none_or(|(_, v)| v.destroyed.is_some());
            (is_certain || unknown)
                .then(|| Affected { release: release.clone(), certain: is_certain })
        })
        .collect()
}
