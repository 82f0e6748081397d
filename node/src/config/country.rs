//! Two-letter country codes, ISO 3166-1 alpha-2.

use std::fmt;
use std::str::FromStr;

/// An assigned country code such as `CH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

/// Officially assigned codes (ISO 3166-1, 249 entries), sorted.
const ASSIGNED: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ \
    BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE \
    DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR \
    GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP \
    KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT \
    MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW \
    PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG \
    TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW";

/// Why a text is no [`Country`]; prints as a hint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCountry {
    /// Not two letters.
    #[error("use the two-letter code of ISO 3166-1, such as CH, NO or DE")]
    NotTwoLetters,
    /// Two letters in lower case.
    #[error("write it in capitals: {0}")]
    LowerCase(Country),
    /// Often taken for a code, but another one is meant.
    #[error("the code is {0}")]
    Meant(Country),
    /// Two capitals that are not assigned.
    #[error("no country has this code in ISO 3166-1")]
    Unassigned,
}

impl Country {
    /// The two letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only built from entries of the ASCII list above.
        std::str::from_utf8(&self.0).unwrap_or("??")
    }

    fn assigned(code: &str) -> Option<Self> {
        let bytes: [u8; 2] = code.as_bytes().try_into().ok()?;
        ASSIGNED.split(' ').any(|known| known == code).then_some(Self(bytes))
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Country {
    type Err = NoCountry;

    fn from_str(text: &str) -> Result<Self, NoCountry> {
        if let Some(country) = Self::assigned(text) {
            return Ok(country);
        }
        if text.len() != 2 || !text.bytes().all(|b| b.is_ascii_alphabetic()) {
            return Err(NoCountry::NotTwoLetters);
        }
        let upper = text.to_ascii_uppercase();
        let meant = match upper.as_str() {
            "UK" => Self::assigned("GB"),
            "EL" => Self::assigned("GR"),
            _ => None,
        };
        Err(match (meant, Self::assigned(&upper)) {
            (Some(meant), _) => NoCountry::Meant(meant),
            (None, Some(country)) => NoCountry::LowerCase(country),
            (None, None) => NoCountry::Unassigned,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_list_is_whole_and_sorted() {
        let codes: Vec<_> = ASSIGNED.split(' ').filter(|code| !code.is_empty()).collect();
        assert_eq!(codes.len(), 249);
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(codes.iter().all(|code| code.len() == 2));
    }

    #[test]
    fn says_what_was_meant() {
        assert_eq!("CH".parse::<Country>().unwrap().to_string(), "CH");
        assert_eq!("ch".parse::<Country>().unwrap_err().to_string(), "write it in capitals: CH");
        assert_eq!("UK".parse::<Country>().unwrap_err().to_string(), "the code is GB");
        assert_eq!("XX".parse::<Country>(), Err(NoCountry::Unassigned));
        assert_eq!("Schweiz".parse::<Country>(), Err(NoCountry::NotTwoLetters));
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = text.parse::<Country>();
        }
    }
}
