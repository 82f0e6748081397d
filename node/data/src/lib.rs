//! Datasets that a node's stewards keep (specs/dataset.md): rows and their validation, versions as
//! digests, metadata, forgetting and withdrawal. Data stays where it is; what is here never sends it.
//!
//! Where to start: [`Row`] is what a dataset consists of, [`Rows`] reads the one file that a worker
//! is given, [`read_source`] validates what a steward hands in, [`Registry`] keeps it on disk, and
//! [`Metadata`] is what may be said about it.
//!
//! Nothing here prints, logs or puts into an error or a `Debug` form what a row holds.

mod disk;
mod error;
mod metadata;
mod portable;
mod registry;
mod row;
mod rows;
mod source;
mod version;

pub use error::{AddError, RegistryError};
pub use metadata::{
    Croissant, CroissantError, LanguageTag, Licence, Metadata, MetadataError, Sensitivity,
};
pub use portable::{
    Deleted, Manifest, PACK_BYTES_MAX, PackError, Packed, Placed, Unpacked, pack, unpack,
};
pub use registry::{
    Added, Advertised, Affected, Damaged, Dataset, DatasetName, Destroyed, Forgotten, Held,
    Listing, NameError, NewDataset, Policy, PolicyError, Registry, Release, Run, VersionRecord,
    Withdrawal, Withdrawn,
};
pub use row::{
    Content, Kind, MESSAGES_MAX, Message, ROW_BYTES_MAX, Role, Row, RowFault, SUBJECT_BYTES_MAX,
};
pub use rows::{Rows, RowsError, RowsWriter};
pub use source::{
    COMPLAINTS_KEPT, Complaint, FileReport, Format, LINE_BYTES_MAX, ReadOptions, Report,
    SourceError, read_source,
};
pub use version::{Counts, SUBJECTS_MAX, Salt, VersionHeader};
