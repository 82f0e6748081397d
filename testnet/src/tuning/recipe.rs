//! A fine-tuning job as a file.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::ROOM;

/// What is trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A dataset version where it lives.
    Dataset(String),
    /// Rows of the researcher's own, and where they may travel.
    Portable {
        /// The file.
        file: PathBuf,
        /// Two letters of ISO 3166 each.
        jurisdictions: Vec<String>,
    },
}

/// What a researcher asks for; the rest is as `allmend submit finetune --example` has it.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Institutions that may run it.
    pub at: Vec<String>,
    /// What is trained on.
    pub source: Source,
    /// Steps of the optimiser.
    pub steps: u32,
    /// Rows at once.
    pub batch: u32,
    /// Longest row, in tokens.
    pub sequence_tokens: u32,
    /// Step width.
    pub learning_rate: f64,
    /// Rank of the adapter; its alpha is twice as much.
    pub rank: u32,
    /// Layers that are adapted, as PEFT names them.
    pub targets: Vec<String>,
    /// Share of the rows that is held out.
    pub validation: f64,
    /// Steps between two snapshots.
    pub snapshot_every: u32,
    /// Of order and initial values.
    pub seed: u64,
    /// DP-SGD: noise multiplier, clipping norm, sampling rate, delta.
    pub privacy: Option<(f64, f64, f64, f64)>,
    /// How often it may be tried.
    pub attempts: u32,
    /// The weakest room that the researcher accepts.
    pub room: String,
}

impl Recipe {
    /// A short run on `source` at the institution `at`.
    pub fn short(at: &str, source: Source) -> Recipe {
        Recipe {
            at: vec![at.to_owned()],
            source,
            steps: 36,
            batch: 4,
            sequence_tokens: 128,
            learning_rate: 2e-3,
            rank: 8,
            targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            validation: 0.1,
            snapshot_every: 10,
            seed: 7,
            privacy: None,
            attempts: 16,
            room: ROOM.to_owned(),
        }
    }

    /// The job file.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut text = format!(
            "at = {:?}\npurpose = \"research\"\ndeadline = \"6h\"\nattempts = {}\n",
            self.at, self.attempts
        );
        text.push_str(&match &self.source {
            Source::Dataset(version) => format!("\n[[dataset]]\nversion = {version:?}\n"),
            Source::Portable { file, jurisdictions } => {
                format!(
                    "\n[portable]\nfile = {:?}\njurisdictions = {jurisdictions:?}\n",
                    file.display().to_string()
                )
            }
        });
        let Recipe { rank, targets, .. } = self;
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n[adapter]\nrank = {rank}\nalpha = {}\ntargets = {targets:?}\n\n[training]\nsteps = {}\n\
             batch = {}\nsequence_tokens = {}\nlearning_rate = {:e}\nwarmup_steps = {}\n\
             validation = {:?}\nsnapshot_every = {}\nseed = {}\n",
            rank * 2,
            self.steps,
            self.batch,
            self.sequence_tokens,
            self.learning_rate,
            (self.steps / 10).min(10),
            self.validation,
            self.snapshot_every,
            self.seed,
        );
        if let Some((noise, clip, rate, delta)) = self.privacy {
            let _ = write!(
                text,
                "\n[privacy]\nnoise_multiplier = {noise:?}\nclip_norm = {clip:?}\n\
                 sampling_rate = {rate:?}\ndelta = {delta:e}\n"
            );
        }
        let _ = write!(text, "\n[terms]\nroom = {:?}\n", self.room);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_file_is_toml_with_all_that_was_asked_for() {
        let mut recipe = Recipe::short("Alpine", Source::Dataset("ab".repeat(32)));
        recipe.privacy = Some((1.5, 0.5, 0.1, 1e-5));
        let read: toml::Table = recipe.toml().parse().unwrap();
        assert_eq!(read["training"]["learning_rate"].as_float(), Some(2e-3));
        assert_eq!(read["dataset"][0]["version"].as_str(), Some("ab".repeat(32).as_str()));
        assert_eq!(read["privacy"]["delta"].as_float(), Some(1e-5));
        assert_eq!(read["adapter"]["alpha"].as_integer(), Some(16));
        let source = Source::Portable {
            file: PathBuf::from("a \"b\""),
            jurisdictions: vec!["CH".to_owned()],
        };
        let read: toml::Table = Recipe::short("Alpine", source).toml().parse().unwrap();
        assert_eq!(read["portable"]["file"].as_str(), Some("a \"b\""));
    }
}
