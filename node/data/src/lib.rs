//! Datasets that a node's stewards keep (specs/dataset.md): rows and their validation, versions as
//! digests, metadata, forgetting and withdrawal. Data stays where it is; what is here never sends it.
