//! A report from training, as it travels home and is shown to people (specs/finetune.md §6).
//!
//! Numbers over many rows, never of one: the node that trains decides what they may tell.

use serde::{Deserialize, Serialize};

/// The longest report, in bytes of its JSON.
pub const REPORT_BYTES_MAX: usize = 4_096;

/// How far training has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// What is being done.
    pub stage: Stage,
    /// Optimiser steps taken.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Mean loss of the steps since the last report, in millionths of a nat per token; absent where a
    /// private run keeps it to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_micro: Option<i64>,
    /// Loss on the rows held out, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out_micro: Option<i64>,
    /// The step that this attempt went on from, in its first report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<u64>,
    /// Milliseconds since training began in this attempt.
    pub elapsed_ms: u64,
}

/// What is being done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Model and rows are being read.
    #[default]
    Preparing,
    /// Steps are being taken.
    Training,
    /// The rows held out are being read.
    Evaluating,
    /// The output gate measures what the adapter remembers.
    Checking,
}

impl Stage {
    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Stage::Preparing => "preparing",
            Stage::Training => "training",
            Stage::Evaluating => "evaluating",
            Stage::Checking => "checking what it remembers",
        }
    }
}

impl Report {
    /// As it travels.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads one; none for anything else, however it got here.
    pub fn from_json(text: &str) -> Option<Report> {
        (text.len() <= REPORT_BYTES_MAX).then(|| serde_json::from_str(text).ok()).flatten()
    }
}
