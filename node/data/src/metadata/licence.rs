//! Under what licence a dataset is: SPDX's names, so that programs can compare them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::MetadataError;

/// Where SPDX describes its licences.
const SPDX_BASE: &str = "https://spdx.org/licenses/";
/// SPDX's mark of a licence that is not in its list.
const OWN: &str = "LicenseRef-";
/// The longest name or address.
const BYTES_MAX: usize = 200;

/// A licence: an SPDX identifier, a `LicenseRef-` of the owner's own, or the address of its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Licence(String);

impl Licence {
    /// As SPDX writes it, or the address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As Croissant wants it: an address where there is one.
    #[must_use]
    pub fn url(&self) -> String {
        if is_url(&self.0) || self.0.starts_with(OWN) {
            self.0.clone()
        } else {
            format!("{SPDX_BASE}{}.html", self.0)
        }
    }
}

/// Whether `text` is a web address of one line.
pub(super) fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let visible = |c: char| !c.is_whitespace() && !c.is_control();
    text.len() <= BYTES_MAX
        && rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(visible))
}

impl FromStr for Licence {
    type Err = MetadataError;

    fn from_str(text: &str) -> Result<Self, MetadataError> {
        if let Some(page) = text.strip_prefix(SPDX_BASE) {
            let name = page.strip_suffix(".html").or_else(|| page.strip_suffix(".json"));
            return name.unwrap_or(page).parse();
        }
        let own = text.strip_prefix(OWN).is_some_and(|name| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
        });
        // SPDX's function takes "GPL-2.0+" for "GPL-2.0".
        let listed = spdx::license_id(text).is_some_and(|id| id.name == text);
        if listed || is_url(text) || (own && text.len() <= BYTES_MAX) {
            Ok(Self(text.to_owned()))
        } else {
            Err(MetadataError::Licence { given: text.chars().take(60).collect(), hint: hint(text) })
        }
    }
}

/// The nearest licence of the list, or what else may be written.
fn hint(text: &str) -> String {
    let wanted: String = text.to_ascii_lowercase().replace([' ', '_'], "-");
    let near = spdx::identifiers::LICENSES
        .iter()
        .map(|licence| {
            (strsim::jaro_winkler(&licence.name.to_ascii_lowercase(), &wanted), licence.name)
        })
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let other = "use SPDX's name such as CC-BY-4.0, the https address of its text, or \
                 LicenseRef-NAME for one of your own";
    match near.or(spdx::imprecise_license_id(text).map(|(licence, _)| (1.0, licence.name))) {
        Some((_, name)) if !text.is_empty() => format!("did you mean {name}? Otherwise {other}"),
        _ => other.to_owned(),
    }
}

impl fmt::Display for Licence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Licence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Licence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Licence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_licences_and_addresses() {
        for text in
            ["CC-BY-4.0", "CC0-1.0", "ODbL-1.0", "LicenseRef-archive-1", "https://x.example/l"]
        {
            let licence: Licence = text.parse().unwrap();
            assert_eq!(licence.as_str(), text);
            assert_eq!(licence.url().parse::<Licence>().unwrap(), licence, "Croissant and back");
        }
        assert_eq!(
            "CC-BY-4.0".parse::<Licence>().unwrap().url(),
            "https://spdx.org/licenses/CC-BY-4.0.html"
        );
    }

    #[test]
    fn others_are_refused_with_a_hint() {
        for (text, hinted) in [
            ("cc-by-4.0", "CC-BY-4.0"),
            ("CC BY 4.0", "CC-BY-4.0"),
            ("apache 2.0", "Apache-2.0"),
            ("GPL-2.0+", "GPL-2.0"),
            ("free", "LicenseRef-NAME"),
            ("LicenseRef-", "LicenseRef-NAME"),
            ("https://", "https"),
            ("", "SPDX"),
        ] {
            let error = text.parse::<Licence>().unwrap_err();
            assert!(error.hint().unwrap().contains(hinted), "{text}: {:?}", error.hint());
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<Licence>();
        }
    }
}
