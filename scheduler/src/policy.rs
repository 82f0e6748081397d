//! What the operator of a node lets run on it (docs/operate.md "Policy").
//!
//! Default: prompts of the node's own institution only. `[[allow]]` rules open it to others,
//! `[[deny]]` rules close it to anybody; deny wins. Whatever cannot be read or decided is a
//! refusal. Deliberately not about datasets: those have policies of their own.

use allmend_protocol::ids::{Digest, InstitutionId};
use allmend_protocol::offer::{Reason, ReasonClass};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Jurisdiction;
use toml::{Table, Value};

/// The most rules of one kind: a person must be able to read them.
pub const RULES_MAX: usize = 256;
/// The most entries in one list of a rule.
pub const RULE_LIST_MAX: usize = 256;

const MINUTES_PER_DAY: u16 = 24 * 60;

/// A node's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorPolicy {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

/// Why a policy file is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy: {place}: {problem}")]
pub struct PolicyError {
    /// Which rule and key.
    pub place: String,
    /// What is wrong with it.
    pub problem: String,
}

/// One rule: it fits when every condition that it states holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    name: String,
    institutions: Option<Institutions>,
    jurisdictions: Option<Vec<Jurisdiction>>,
    purposes: Option<Vec<String>>,
    models: Option<Vec<Digest>>,
    max_tokens_max: Option<u32>,
    hours: Option<Hours>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Institutions {
    Any,
    Listed(Vec<InstitutionId>),
}

/// Hours of the day in UTC; `from > to` runs over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hours {
    from: u16,
    to: u16,
}

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The researcher's institution.
    pub institution: InstitutionId,
    /// The law that it lives under.
    pub jurisdiction: Jurisdiction,
    /// Whether it is the node's own.
    pub own: bool,
    /// The job's purpose.
    pub purpose: &'a str,
    /// The model.
    pub model: Digest,
    /// Tokens to write at most.
    pub max_tokens: u32,
    /// When.
    pub now: Timestamp,
}

/// The answer no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// In words; names the rule and what would have to differ.
    pub reason: Reason,
    /// When the answer could be another one, if only the hour is in the way.
    pub retry_after: Option<DurationMs>,
}

impl OperatorPolicy {
    /// Reads `[[allow]]` and `[[deny]]` rules.
    ///
    /// A rule has a `name` and any of `institutions` (hexadecimal keys or `"*"`), `jurisdictions`
    /// (of the asking institution), `purposes`, `models` (digests), `max_tokens_max`, and `hours`
    /// (`"22:00-06:00"`, UTC). An allow rule without `institutions` is an error: opening a node to
    /// everybody must be said.
    ///
    /// # Errors
    /// [`PolicyError`] for anything not understood, unknown keys included.
    pub fn from_toml(table: &Table) -> Result<OperatorPolicy, PolicyError> {
        let mut policy = OperatorPolicy::default();
        for (key, value) in table {
            let rules = match key.as_str() {
                "allow" => &mut policy.allow,
                "deny" => &mut policy.deny,
                _ => return Err(error(key, "unknown key; expected [[allow]] or [[deny]]")),
            };
            let list = value.as_array().ok_or_else(|| error(key, "write it as [[…]] tables"))?;
            if list.len() > RULES_MAX {
                return Err(error(key, format!("at most {RULES_MAX} rules")));
            }
            for (index, value) in list.iter().enumerate() {
                let place = format!("{key} rule {}", index + 1);
                let table = value.as_table().ok_or_else(|| error(&place, "expected a table"))?;
                rules.push(Rule::from_toml(&place, table)?);
            }
        }
        if let Some(rule) = policy.allow.iter().find(|rule| rule.institutions.is_none()) {
            return Err(error(
                &format!("allow rule {:?}", rule.name),
                "say for whom: institutions = [\"…\"] or institutions = [\"*\"]",
            ));
        }
        Ok(policy)
    }

    /// Decides on `question`.
    ///
    /// # Errors
    /// [`Denial`] when a deny rule fits, or when another institution asks and no allow rule fits.
    pub fn decide(&self, question: &Question<'_>) -> Result<(), Denial> {
        if let Some(rule) = self.deny.iter().find(|rule| rule.misfits(question).is_empty()) {
            let retry_after = rule.hours.map(|hours| hours.until_outside(question.now));
            let text = format!("deny rule {:?} of the node's owner applies", rule.name);
            let reason = Reason::new(ReasonClass::Policy, text);
            return Err(Denial { reason, retry_after: retry_after.flatten() });
        }
        if question.own {
            return Ok(());
        }
        // The rule that comes closest explains best what would have to differ.
        let mut closest: Option<(&Rule, Vec<Misfit>)> = None;
        for rule in &self.allow {
            let misfits = rule.misfits(question);
            if misfits.is_empty() {
                return Ok(());
            }
            if closest.as_ref().is_none_or(|(_, best)| misfits.len() < best.len()) {
                closest = Some((rule, misfits));
            }
        }
        let Some((rule, misfits)) = closest else {
            let text = "the node serves its own institution only (no allow rule)";
            return Err(Denial {
                reason: Reason::new(ReasonClass::Policy, text),
                retry_after: None,
            });
        };
        let retry_after = match misfits.as_slice() {
            [Misfit { hour_opens_in: Some(wait), .. }] => Some(*wait),
            _ => None,
        };
        let words: Vec<&str> = misfits.iter().map(|misfit| misfit.text.as_str()).collect();
        let text = format!("allow rule {:?} does not fit: {}", rule.name, words.join("; "));
        Err(Denial { reason: Reason::new(ReasonClass::Policy, text), retry_after })
    }
}

struct Misfit {
    text: String,
    hour_opens_in: Option<DurationMs>,
}

impl Rule {
    fn from_toml(place: &str, table: &Table) -> Result<Rule, PolicyError> {
        let mut rule = Rule {
            name: String::new(),
            institutions: None,
            jurisdictions: None,
            purposes: None,
            models: None,
            max_tokens_max: None,
            hours: None,
        };
        for (key, value) in table {
            let at = format!("{place}, {key}");
            match key.as_str() {
                "name" => rule.name = text(&at, value)?.to_owned(),
                "institutions" => {
                    let list = list(&at, value)?;
                    rule.institutions = Some(if list == ["*"] {
                        Institutions::Any
                    } else {
                        Institutions::Listed(parse_all(&at, &list, "an institution's key")?)
                    });
                }
                "jurisdictions" => {
                    let parse = |code: &&str| {
                        Jurisdiction::new(code)
                            .ok_or_else(|| error(&at, "expected two capitals, e.g. \"CH\""))
                    };
                    rule.jurisdictions =
                        Some(list(&at, value)?.iter().map(parse).collect::<Result<_, _>>()?);
                }
                "purposes" => {
                    rule.purposes =
                        Some(list(&at, value)?.into_iter().map(str::to_owned).collect());
                }
                "models" => {
                    rule.models = Some(parse_all(&at, &list(&at, value)?, "a model's digest")?);
                }
                "max_tokens_max" => {
                    let number = value.as_integer().and_then(|n| u32::try_from(n).ok());
                    rule.max_tokens_max =
                        Some(number.ok_or_else(|| error(&at, "expected a number of tokens"))?);
                }
                "hours" => rule.hours = Some(Hours::parse(&at, text(&at, value)?)?),
                _ => return Err(error(&at, "unknown key")),
            }
        }
        if rule.name.is_empty() || rule.name.len() > 60 {
            return Err(error(place, "needs a name of 1 to 60 bytes"));
        }
        Ok(rule)
    }

    fn misfits(&self, question: &Question<'_>) -> Vec<Misfit> {
        let mut misfits = Vec::new();
        let mut miss = |text: String| misfits.push(Misfit { text, hour_opens_in: None });
        if let Some(Institutions::Listed(list)) = &self.institutions
            && !list.contains(&question.institution)
        {
            miss(format!("institution {} is not listed", question.institution.short()));
        }
        if let Some(list) = &self.jurisdictions
            && !list.contains(&question.jurisdiction)
        {
            miss(format!(
                "the asking institution is in {}, the rule is for {}",
                question.jurisdiction,
                join(list)
            ));
        }
        if let Some(list) = &self.purposes
            && !list.iter().any(|purpose| purpose == question.purpose)
        {
            miss(format!("purpose {:?} is not one of {}", question.purpose, list.join(", ")));
        }
        if let Some(list) = &self.models
            && !list.contains(&question.model)
        {
            miss(format!("model {} is not listed", question.model.short()));
        }
        if let Some(max) = self.max_tokens_max
            && question.max_tokens > max
        {
            miss(format!("{} tokens asked for, at most {max}", question.max_tokens));
        }
        if let Some(hours) = self.hours
            && let Some(wait) = hours.until_inside(question.now)
        {
            misfits.push(Misfit {
                text: format!("it holds {hours} UTC only"),
                hour_opens_in: Some(wait),
            });
        }
        misfits
    }
}

fn join(list: &[Jurisdiction]) -> String {
    list.iter().map(Jurisdiction::as_str).collect::<Vec<_>>().join(", ")
}

impl Hours {
    fn parse(at: &str, value: &str) -> Result<Hours, PolicyError> {
        let wrong = || error(at, "expected hours as \"22:00-06:00\"");
        let minute = |clock: &str| {
            let (hour, minute) = clock.trim().split_once(':')?;
            let hour: u16 = hour.parse().ok().filter(|hour| *hour <= 24)?;
            let minute: u16 = minute.parse().ok().filter(|minute| *minute < 60)?;
            Some(hour * 60 + minute).filter(|minute| *minute <= MINUTES_PER_DAY)
        };
        let (from, to) = value.split_once('-').ok_or_else(wrong)?;
        let from = minute(from).ok_or_else(wrong)? % MINUTES_PER_DAY;
        let to = minute(to).ok_or_else(wrong)? % MINUTES_PER_DAY;
        Ok(Hours { from, to })
    }

    /// Equal ends mean the whole day.
    fn holds(self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }

    /// How long until the hours begin; `None` when `now` is within.
    fn until_inside(self, now: Timestamp) -> Option<DurationMs> {
        (!self.holds(minute_of_day(now))).then(|| until_minute(now, self.from))
    }

    /// How long until the hours end; `None` when they never do.
    fn until_outside(self, now: Timestamp) -> Option<DurationMs> {
        (self.from != self.to).then(|| until_minute(now, self.to))
    }
}

impl std::fmt::Display for Hours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Hours { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

fn minute_of_day(now: Timestamp) -> u16 {
    // A day has 1,440 minutes: always fits.
    (now.as_ms() / 60_000 % u64::from(MINUTES_PER_DAY)) as u16
}

fn until_minute(now: Timestamp, minute: u16) -> DurationMs {
    let day = u64::from(MINUTES_PER_DAY) * 60_000;
    let target = u64::from(minute) * 60_000;
    DurationMs::from_ms((target + day - now.as_ms() % day) % day)
}

fn error(place: &str, problem: impl Into<String>) -> PolicyError {
    PolicyError { place: place.to_owned(), problem: problem.into() }
}

fn text<'a>(at: &str, value: &'a Value) -> Result<&'a str, PolicyError> {
    value.as_str().ok_or_else(|| error(at, "expected a text"))
}

fn list<'a>(at: &str, value: &'a Value) -> Result<Vec<&'a str>, PolicyError> {
    let list = value.as_array().ok_or_else(|| error(at, "expected a list of texts"))?;
    if list.len() > RULE_LIST_MAX {
        return Err(error(at, format!("at most {RULE_LIST_MAX} entries")));
    }
    list.iter().map(|value| text(at, value)).collect()
}

fn parse_all<T: std::str::FromStr>(
    at: &str,
    list: &[&str],
    what: &str,
) -> Result<Vec<T>, PolicyError> {
    let parse = |entry: &&str| {
        entry.parse().map_err(|_| error(at, format!("{entry:?} is not {what} (64 hex digits)")))
    };
    list.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: [u8; 32] = [7; 32];

    fn policy(text: &str) -> Result<OperatorPolicy, PolicyError> {
        OperatorPolicy::from_toml(&text.parse().expect("test policies are TOML"))
    }

    fn question(own: bool, hour: u64) -> Question<'static> {
        Question {
            institution: InstitutionId::from_bytes(OTHER),
            jurisdiction: Jurisdiction::new("NO").expect("two capitals"),
            own,
            purpose: "teaching",
            model: Digest::from_bytes([9; 32]),
            max_tokens: 100,
            now: Timestamp::from_ms(1_795_392_000_000 + hour * 3_600_000),
        }
    }

    #[test]
    fn strangers_need_a_rule() {
        let none = OperatorPolicy::default();
        assert_eq!(none.decide(&question(true, 12)), Ok(()));
        let denial = none.decide(&question(false, 12)).expect_err("strangers are refused");
        assert!(denial.reason.text.contains("own institution only"));

        let open = policy("[[allow]]\nname='all'\ninstitutions=['*']").expect("valid");
        assert_eq!(open.decide(&question(false, 12)), Ok(()));
    }

    #[test]
    fn deny_wins_even_at_home() {
        let text = "[[allow]]\nname='all'\ninstitutions=['*']\n\
                    [[deny]]\nname='no teaching'\npurposes=['teaching']";
        let denial = policy(text).expect("valid").decide(&question(true, 12));
        assert!(denial.expect_err("denied").reason.text.contains("no teaching"));
    }

    #[test]
    fn a_denial_names_the_closest_rule_and_what_would_have_to_differ() {
        let text = format!(
            "[[allow]]\nname='far'\ninstitutions=['{0}']\npurposes=['x']\nmax_tokens_max=1\n\
             [[allow]]\nname='night'\ninstitutions=['{1}']\nhours='22:00-06:00'",
            "00".repeat(32),
            "07".repeat(32)
        );
        let policy = policy(&text).expect("valid");
        let denial = policy.decide(&question(false, 12)).expect_err("by day");
        assert!(denial.reason.text.contains("night"), "{}", denial.reason.text);
        assert!(denial.reason.text.contains("22:00-06:00"));
        assert_eq!(denial.retry_after, Some(DurationMs::from_secs(10 * 3_600)));
        assert_eq!(policy.decide(&question(false, 23)), Ok(()));
        assert_eq!(policy.decide(&question(false, 5)), Ok(()));
        assert!(policy.decide(&question(false, 6)).is_err());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "x = 1",
            "allow = 1",
            "[[allow]]\nname='a'",
            "[[allow]]\ninstitutions=['*']",
            "[[allow]]\nname='a'\ninstitutions=['zz']",
            "[[allow]]\nname='a'\ninstitutions=['*']\ncolour='red'",
            "[[deny]]\nname='a'\nhours='25:00-06:00'",
            "[[deny]]\nname='a'\nhours='noon'",
            "[[deny]]\nname='a'\nmax_tokens_max=-1",
            "[[deny]]\nname='a'\njurisdictions=['ch']",
        ] {
            assert!(policy(bad).is_err(), "{bad}");
        }
    }
}
