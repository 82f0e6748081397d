//! Where a model comes from: a name of the catalogue, a file of the Hugging Face Hub, a local file.

use std::fmt;
use std::path::PathBuf;

use super::catalogue::{CATALOGUE, CatalogueEntry};
use super::error::ModelError;

/// A parsed argument of `models pull`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Known by name.
    Catalogue(&'static CatalogueEntry),
    /// `hf:REPO/FILE@REV`.
    Hub(HubFile),
    /// A file on this machine.
    Path(PathBuf),
}

/// One file in a repository of the Hugging Face Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// `owner`.
    pub owner: String,
    /// `name` of the repository.
    pub repo: String,
    /// Path in it.
    pub file: String,
    /// Branch, tag or commit; `None` is the main branch. What it resolves to is recorded.
    pub revision: Option<String>,
}

/// Longer arguments are no sources.
const SOURCE_BYTES_MAX: usize = 4096;
const HUB_PREFIX: &str = "hf:";

impl Source {
    /// Parses what a person types.
    ///
    /// Anything with a `/`, or ending in `.gguf`, is a path; anything else a name of the catalogue.
    ///
    /// # Errors
    /// [`ModelError::BadSource`] with what to type instead.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        if text.len() > SOURCE_BYTES_MAX {
            return Err(bad("…", "it is too long", "give a name, hf:REPO/FILE@REV or a file"));
        }
        if let Some(rest) = text.strip_prefix(HUB_PREFIX) {
            return HubFile::parse(rest).map(Self::Hub).map_err(|why| {
                bad(text, why, "write it like hf:owner/repository/file.gguf@revision")
            });
        }
        if let Some(entry) = CATALOGUE.iter().find(|entry| entry.name == text) {
            return Ok(Self::Catalogue(entry));
        }
        if text.contains('/') || text.to_ascii_lowercase().ends_with(".gguf") {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        let names: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
        let hint = format!(
            "known names: {}; or give hf:owner/repository/file.gguf@revision or the path of a file",
            names.join(", ")
        );
        Err(bad(text, "it is not in the catalogue", &hint))
    }
}

fn bad(text: &str, why: &str, hint: &str) -> ModelError {
    ModelError::BadSource { text: text.to_owned(), why: why.to_owned(), hint: hint.to_owned() }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalogue(entry) => f.write_str(entry.name),
            Self::Hub(file) => file.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

impl HubFile {
    /// Parses `OWNER/REPO/FILE[@REV]`.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (path, revision) = match text.rsplit_once('@') {
            Some((_, "")) => return Err("the revision is empty"),
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let mut parts = path.splitn(3, '/');
        let (Some(owner), Some(repo), Some(file)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err("owner, repository or file is missing");
        };
        // These become parts of a URL and of nothing else, yet `..` has no business there.
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.chars().all(fits);
        if ![owner, repo].into_iter().all(segment) || !file.split('/').all(segment) {
            return Err("names hold letters, digits, '.', '_', '-' and '+' only");
        }
        if !revision.is_none_or(|revision| revision.split('/').all(segment)) {
            return Err("this is no branch, tag or commit");
        }
        if !file.to_ascii_lowercase().ends_with(".gguf") {
            return Err("only .gguf files can be run");
        }
        Ok(Self {
            owner: owner.to_owned(),
            repo: repo.to_owned(),
            file: file.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }

    /// The same file at the commit that the revision turned out to be.
    #[must_use]
    pub fn at(&self, commit: &str) -> Self {
        Self { revision: Some(commit.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HUB_PREFIX}{}/{}/{}", self.owner, self.repo, self.file)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_three_kinds_are_told_apart() {
        assert!(matches!(Source::parse("smollm2-135m").unwrap(), Source::Catalogue(_)));
        assert!(matches!(Source::parse("./smollm2-135m").unwrap(), Source::Path(_)));
        assert!(matches!(Source::parse("my.gguf").unwrap(), Source::Path(_)));
        let Source::Hub(file) = Source::parse("hf:org/Repo-GGUF/sub/m.Q4_0.gguf@v1/x").unwrap()
        else {
            panic!("not a hub file")
        };
        assert_eq!((file.owner.as_str(), file.repo.as_str()), ("org", "Repo-GGUF"));
        assert_eq!(
            (file.file.as_str(), file.revision.as_deref()),
            ("sub/m.Q4_0.gguf", Some("v1/x"))
        );
        assert_eq!(file.at("abc").to_string(), "hf:org/Repo-GGUF/sub/m.Q4_0.gguf@abc");
    }

    #[test]
    fn what_is_none_is_told_with_a_hint() {
        let cases = [
            ("smollm", "not in the catalogue"),
            ("hf:org/repo", "is missing"),
            ("hf:org/repo/m.gguf@", "revision is empty"),
            ("hf:org/../m.gguf", "letters, digits"),
            ("hf:org/repo/../../m.gguf", "letters, digits"),
            ("hf:org/repo/m.gguf@a b", "no branch"),
            ("hf:org/repo/m.safetensors@main", "only .gguf"),
        ];
        for (text, why) in cases {
            let Err(error) = Source::parse(text) else { panic!("{text} was accepted") };
            assert!(error.to_string().contains(why), "{error}");
        }
        assert!(matches!(
            Source::parse("smollm"),
            Err(ModelError::BadSource { hint, .. }) if hint.contains("smollm2-135m")
        ));
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = Source::parse(&text);
            let _ = Source::parse(&format!("hf:{text}"));
        }

        #[test]
        fn hub_files_round_trip(text in r"hf:[a-zA-Z0-9]{1,5}/[a-zA-Z0-9]{1,5}/[a-z]{1,5}\.gguf(@[a-z0-9]{1,6})?") {
            prop_assert_eq!(Source::parse(&text).unwrap().to_string(), text);
        }
    }
}
