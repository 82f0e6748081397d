//! What can be wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::ui::{ExitClass, Explain, Explanation};

/// A position in the configuration file; line and column count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl Place {
    /// The place of byte `offset` of `text`.
    pub(super) fn at(file: &std::path::Path, text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// Where a value came from; later ones win.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The table of settings.
    Default,
    /// The configuration file.
    File(Place),
    /// This environment variable.
    Env(String),
    /// The command line, with the flag as it was given.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(place) => place.fmt(f),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub origin: Origin,
    /// The setting, or what was taken for one; empty if the text is no TOML at all.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "`{}`: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists but cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in it, or in the environment or the flags, is wrong.
    #[error("{}", problem_list(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// What is wrong, one by one; empty if the file could not be read.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Unreadable { .. } => &[],
            Self::Invalid(problems) => problems,
        }
    }
}

fn problem_list(problems: &[Problem]) -> String {
    match problems {
        [one] => one.to_string(),
        many => {
            let mut text = format!("the configuration has {} problems", many.len());
            for problem in many {
                text.push_str(&format!("\n{problem}"));
                if let Some(hint) = &problem.hint {
                    text.push_str(&format!(" ({hint})"));
                }
            }
            text
        }
    }
}

impl Explain for ConfigError {
    fn explain(&self) -> Explanation {
        let hint = match self {
            Self::Unreadable { .. } => None,
            Self::Invalid(problems) => match problems.as_slice() {
                [one] => one.hint.clone(),
                _ => Some("docs/config.md lists every setting".to_owned()),
            },
        };
        Explanation { class: ExitClass::Config, hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    #[test]
    fn places_count_characters() {
        let place = Place::at(Path::new("c.toml"), "a = 1\nü = 2\n", 9);
        assert_eq!(place.to_string(), "c.toml:2:3");
    }

    proptest! {
        #[test]
        fn any_offset_has_a_place(text: String, offset in 0usize..200) {
            let place = Place::at(Path::new("c"), &text, offset);
            prop_assert!(place.line >= 1 && place.column >= 1);
        }
    }
}
