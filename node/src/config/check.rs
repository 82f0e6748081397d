//! One written value against its setting: the right type, range and shape, or words that say why not.

use std::net::SocketAddr;
use std::path::PathBuf;

use allmend_protocol::units::Jurisdiction;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use super::country;
use super::settings::{AddressUse, Kind, LogLevel, Setting};

/// A value as somebody wrote it, whatever the setting.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Written {
    Text(String),
    /// `None` if it does not fit any integer we use.
    Integer(Option<i128>),
    Switch(bool),
    List(Vec<Written>),
    Table,
    /// A float or a date, which no setting takes.
    Other(&'static str),
}

impl Written {
    /// Reads a flag or an environment variable for `kind`; lists are separated by commas.
    pub(super) fn from_text(kind: Kind, text: &str) -> Self {
        let text = text.trim();
        match kind {
            Kind::Count { .. } => match text.replace('_', "").parse::<i128>() {
                Ok(number) => Self::Integer(Some(number)),
                Err(_) => Self::Text(text.to_owned()),
            },
            Kind::Switch => match text {
                "true" | "1" | "yes" | "on" => Self::Switch(true),
                "false" | "0" | "no" | "off" => Self::Switch(false),
                _ => Self::Text(text.to_owned()),
            },
            Kind::Multiaddrs(_) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Self::List(parts.map(|part| Self::Text(part.to_owned())).collect())
            }
            _ => Self::Text(text.to_owned()),
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a number",
            Self::Switch(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table => "a table",
            Self::Other(what) => what,
        }
    }
}

/// A value that fits its setting.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Country(Option<Jurisdiction>),
    Addresses(Vec<Multiaddr>),
    Socket(SocketAddr),
    Switch(bool),
    /// `None` is `"auto"`.
    Count(Option<u64>),
    Level(LogLevel),
    Path(Option<PathBuf>),
}

/// Why a written value does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Which element of a list, if one is to blame.
    pub(super) element: Option<usize>,
    pub(super) what: String,
    pub(super) hint: Option<String>,
}

impl Wrong {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { element: None, what: what.into(), hint: Some(hint.into()) }
    }
}

/// Checks `written` against `setting`.
pub(super) fn check(setting: &Setting, written: &Written) -> Result<Value, Wrong> {
    match (setting.kind, written) {
        (Kind::Text { bytes_max }, Written::Text(text)) => line(text, bytes_max).map(Value::Text),
        (Kind::Country, Written::Text(text)) if text.is_empty() => Ok(Value::Country(None)),
        (Kind::Country, Written::Text(text)) => match country::parse(text) {
            Ok(country) => Ok(Value::Country(Some(country))),
            Err(why) => Err(Wrong::new(format!("{text:?} is not a country code"), why.to_string())),
        },
        (Kind::Multiaddrs(role), Written::List(items)) => addresses(role, items),
        (Kind::Socket, Written::Text(text)) => text.parse().map(Value::Socket).map_err(|_| {
            Wrong::new(
                format!("{text:?} is not an IP address with a port"),
                format!("write it like {} or \"[::]:7701\"", setting.default),
            )
        }),
        (Kind::Switch, Written::Switch(on)) => Ok(Value::Switch(*on)),
        (Kind::Count { auto: Some(_), .. }, Written::Text(text)) if text == "auto" => {
            Ok(Value::Count(None))
        }
        (Kind::Count { min, max, .. }, Written::Integer(number)) => {
            let fits =
                number.and_then(|n| u64::try_from(n).ok()).filter(|n| (min..=max).contains(n));
            fits.map(|n| Value::Count(Some(n))).ok_or_else(|| {
                let side =
                    if number.is_some_and(|n| n < i128::from(min)) { "small" } else { "large" };
                let shown = number.map_or_else(|| "the number".to_owned(), |n| n.to_string());
                Wrong::new(format!("{shown} is too {side}"), expected(setting))
            })
        }
        (Kind::Choice(words), Written::Text(text)) => match LogLevel::parse(text) {
            Some(level) => Ok(Value::Level(level)),
            None => Err(Wrong::new(
                format!("{text:?} is not a choice"),
                nearest(text, words.iter().copied())
                    .map_or_else(|| expected(setting), |word| format!("did you mean {word:?}?")),
            )),
        },
        (Kind::Path, Written::Text(text)) => {
            line(text, PATH_BYTES_MAX)?;
            Ok(Value::Path((!text.is_empty()).then(|| PathBuf::from(text))))
        }
        (_, other) => Err(Wrong::new(
            format!("expected {}, found {}", kind_in_words(setting.kind), other.what()),
            expected(setting),
        )),
    }
}

/// Linux accepts no longer path.
const PATH_BYTES_MAX: usize = 4096;
/// More addresses than this in one list help nobody and would bloat every message that carries them.
const ADDRESSES_MAX: usize = 64;

/// What values the setting takes, as a hint.
pub(super) fn expected(setting: &Setting) -> String {
    let unit = if setting.unit.is_empty() { String::new() } else { format!(" {}", setting.unit) };
    match setting.kind {
        Kind::Count { min, max, auto: None } => format!("allowed: {min} to {max}{unit}"),
        Kind::Count { min, max, auto: Some(_) } => {
            format!("allowed: {min} to {max}{unit}, or \"auto\"")
        }
        Kind::Choice(words) => format!("allowed: {}", words.join(", ")),
        Kind::Switch => "allowed: true or false".to_owned(),
        _ => format!("for example: {} = {}", setting.key, setting.default),
    }
}

/// The one of `known` that `typed` most likely meant, if any is close.
pub(super) fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Keys are short; a longer text is no typo, and the distance is quadratic.
    if typed.len() > 64 {
        return None;
    }
    known
        .map(|word| (strsim::damerau_levenshtein(typed, word), word))
        .filter(|(distance, word)| *distance <= 1 + word.len().min(typed.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

fn kind_in_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Text { .. } | Kind::Country | Kind::Socket | Kind::Path => "text in quotes",
        Kind::Multiaddrs(_) => "a list of addresses",
        Kind::Switch => "true or false",
        Kind::Count { auto: None, .. } => "a whole number",
        Kind::Count { auto: Some(_), .. } => "a whole number or \"auto\"",
        Kind::Choice(_) => "a word in quotes",
        Kind::Table => "a table",
    }
}

fn line(text: &str, bytes_max: usize) -> Result<String, Wrong> {
    if text.len() > bytes_max {
        return Err(Wrong::new(
            format!("{} bytes are too many", text.len()),
            format!("allowed: at most {bytes_max} bytes"),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Wrong::new(
            "it holds a line break or another control character",
            "write one line",
        ));
    }
    Ok(text.to_owned())
}

fn addresses(role: AddressUse, items: &[Written]) -> Result<Value, Wrong> {
    if items.len() > ADDRESSES_MAX {
        return Err(Wrong::new(
            format!("{} addresses are too many", items.len()),
            format!("allowed: at most {ADDRESSES_MAX}"),
        ));
    }
    let parse = |(index, item): (usize, &Written)| {
        let Written::Text(text) = item else {
            return Err(Wrong::new(
                format!("expected addresses in quotes, found {}", item.what()),
                "for example: [\"/ip4/192.0.2.7/tcp/7700\"]",
            ));
        };
        address(role, text).map_err(|wrong| Wrong { element: Some(index), ..wrong })
    };
    items.iter().enumerate().map(parse).collect::<Result<_, _>>().map(Value::Addresses)
}

fn address(role: AddressUse, text: &str) -> Result<Multiaddr, Wrong> {
    let example = match role {
        AddressUse::Listen => "/ip4/0.0.0.0/tcp/7700 or /ip4/0.0.0.0/udp/7700/quic-v1",
        AddressUse::Announce => "/ip4/192.0.2.7/tcp/7700 or /dns/node.example.org/udp/7700/quic-v1",
        AddressUse::Dial => "/dns/node.example.org/tcp/7700/p2p/12D3KooW…",
    };
    let wrong =
        |what: &str| Wrong::new(format!("{text:?} {what}"), format!("write it like {example}"));
    let address: Multiaddr = text.parse().map_err(|_| wrong("is not a multiaddr"))?;
    let mut rest: Vec<Protocol<'_>> = address.iter().collect();
    let named_peer = matches!(rest.last(), Some(Protocol::P2p(_)));
    match (role, named_peer) {
        (AddressUse::Dial, false) => return Err(wrong("does not name the peer")),
        (AddressUse::Dial, true) => {
            rest.pop();
        }
        (_, true) => return Err(wrong("names a peer, which belongs into bootstrap only")),
        (_, false) => {}
    }
    let host = match rest.first() {
        Some(Protocol::Ip4(_) | Protocol::Ip6(_)) => true,
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => {
            role != AddressUse::Listen
        }
        _ => false,
    };
    let transport =
        matches!(rest.get(1..), Some([Protocol::Tcp(_)] | [Protocol::Udp(_), Protocol::QuicV1]));
    match (host, transport) {
        (true, true) => Ok(address),
        (false, _) => Err(wrong("does not start with a host that fits here")),
        (_, false) => Err(wrong("is neither TCP nor QUIC")),
    }
}

/// Whether `address` is one of QUIC over UDP.
pub(super) fn is_udp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Udp(_)))
}

/// The UDP port of `address`, if it has one.
pub(super) fn udp_port(address: &Multiaddr) -> Option<u16> {
    address.iter().find_map(|part| if let Protocol::Udp(port) = part { Some(port) } else { None })
}
