//! Two-letter country codes, ISO 3166-1 alpha-2.

use allmend_protocol::units::Jurisdiction;

/// Officially assigned codes (ISO 3166-1, 249 entries), sorted.
const ASSIGNED: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ \
    BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE \
    DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR \
    GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP \
    KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT \
    MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW \
    PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG \
    TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW";

/// Why a text is no country; prints as a hint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoCountry {
    /// Not two letters.
    #[error("use the two-letter code of ISO 3166-1, such as CH, NO or DE")]
    NotTwoLetters,
    /// Two letters in lower case.
    #[error("write it in capitals: {0}")]
    LowerCase(Jurisdiction),
    /// Often taken for a code, but another one is meant.
    #[error("the code is {0}")]
    Meant(Jurisdiction),
    /// Two capitals that are not assigned.
    #[error("no country has this code in ISO 3166-1")]
    Unassigned,
}

/// Parses an assigned code, and says what was probably meant if it is none.
///
/// The protocol accepts any two letters; here a person types them, so a slip is worth catching.
pub(super) fn parse(text: &str) -> Result<Jurisdiction, NoCountry> {
    if let Some(country) = assigned(text) {
        return Ok(country);
    }
    if text.len() != 2 || !text.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(NoCountry::NotTwoLetters);
    }
    let upper = text.to_ascii_uppercase();
    let meant = match upper.as_str() {
        "UK" => assigned("GB"),
        "EL" => assigned("GR"),
        _ => None,
    };
    Err(match (meant, assigned(&upper)) {
        (Some(meant), _) => NoCountry::Meant(meant),
        (None, Some(country)) => NoCountry::LowerCase(country),
        (None, None) => NoCountry::Unassigned,
    })
}

fn assigned(code: &str) -> Option<Jurisdiction> {
    ASSIGNED.split(' ').any(|known| known == code).then(|| Jurisdiction::new(code)).flatten()
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
        assert_eq!(parse("CH").unwrap().to_string(), "CH");
        assert_eq!(parse("ch").unwrap_err().to_string(), "write it in capitals: CH");
        assert_eq!(parse("UK").unwrap_err().to_string(), "the code is GB");
        assert_eq!(parse("XX"), Err(NoCountry::Unassigned));
        assert_eq!(parse("Schweiz"), Err(NoCountry::NotTwoLetters));
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
