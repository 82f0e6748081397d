//! A researcher's desk: the connection to home and everything that a job spec must name. Inputs are
//! sealed here, before they leave this machine.

use std::time::Duration;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::encoding;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{Digest, InstitutionId, MessageId, ResearcherId, SealingKey};
use allmend_protocol::job::{InferInput, InferWork, JobSpec, Placement, SealedInput, Terms, Work};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::time::DurationMs;
use allmend_protocol::units::{Credits, Decimal, Rates};
use anyhow::Context as _;
use serde_json::Value;

use super::args::Asking;
use super::context::{As, Context, Home};
use super::look::{list, number, text};
use crate::client::Caller;
use crate::client::proto::Ask;
use crate::config::Identity;
use crate::membership::{now, read_certificates, read_charter};
use crate::models::CATALOGUE;
use crate::seal::{ContentKey, random_bytes};
use crate::ui::{Advice, ExitClass};

/// Tokens that a chat template adds around a message, and for good measure.
const TOKENS_PER_MESSAGE: usize = 24;

/// What a job is to say, besides who asks.
pub(super) struct Wanted<'a> {
    pub(super) work: Work,
    /// What the executing node reads, in clear; sealed here.
    pub(super) plain: &'a [u8],
    pub(super) model: Digest,
    pub(super) dataset: Option<Digest>,
    pub(super) terms: Option<Terms>,
    pub(super) project: &'a str,
    pub(super) purpose: &'a str,
    pub(super) placement: Placement,
    pub(super) cap: Credits,
    pub(super) attempts: u16,
    /// Of no use after this long.
    pub(super) lifetime: Duration,
}

/// A researcher's connection to home, with all that a job spec needs to name.
pub(super) struct Desk {
    pub(super) caller: Caller,
    pub(super) identity: Identity,
    home: Home,
    home_sealing: SealingKey,
    cert: Verified<ResearcherCert>,
    charter: MessageId,
    nodes: Value,
}

impl Desk {
    pub(super) async fn open(context: &Context<'_>) -> anyhow::Result<Desk> {
        let (identity, home) = context.researcher()?;
        let charter = read_charter(&context.layout.charter())?;
        let federation = charter.federation.unwrap_or_else(|| charter.id().into());
        let researcher = ResearcherId::from(identity.public());
        let cert = read_certificates(&context.layout.certs_dir(), &federation)?
            .into_iter()
            .filter_map(|message| match message {
                AnyMessage::ResearcherCert(cert) if cert.researcher == researcher => Some(cert),
                _ => None,
            })
            .max_by_key(|cert| cert.expires)
            .context("no certificate of this researcher; join again")?;
        let caller = context.connect(As::Researcher).await?;
        let hello = caller.document(&Ask::Hello {}).await?;
        let home_sealing =
            text(&hello, "sealing").parse().context("the home node names no sealing key")?;
        let nodes = caller.document(&Ask::Nodes {}).await?;
        Ok(Desk { caller, identity, home, home_sealing, cert, charter: charter.id(), nodes })
    }

    /// A signed inference job and its sealed input.
    pub(super) fn infer(&self, asking: &Asking, input: &InferInput) -> anyhow::Result<Job> {
        let model = self.model(asking.model.as_deref())?;
        let words: usize = input.messages.iter().map(|m| m.content.len()).sum::<usize>()
            + input.prompt.as_ref().map_or(0, String::len);
        let framing = TOKENS_PER_MESSAGE * (input.messages.len() + 2);
        let temperature = parse_decimal(&asking.temperature, "--temperature")?;
        let seed = match asking.seed {
            Some(seed) => seed,
            None if temperature.mantissa == 0 => 0,
            // Within 63 bits, so that every JSON reader can say it back.
            None => u64::from_be_bytes(random_bytes()?) >> 1,
        };
        let work = InferWork {
            max_tokens: asking.max_tokens,
            temperature,
            top_k: asking.top_k,
            top_p: parse_decimal(&asking.top_p, "--top-p")?,
            seed,
            clock: now(),
            prompt_tokens_max: self.prompt_tokens_max(model, words + framing, asking.max_tokens),
            adapter: asking.adapter,
        };
        self.sign(Wanted {
            work: work.to_work(),
            plain: &encoding::encode(input),
            model,
            dataset: None,
            terms: None,
            project: &asking.project,
            purpose: &asking.purpose,
            placement: self.placement(asking)?,
            cap: parse_credits(&asking.cap)?,
            attempts: asking.attempts,
            lifetime: asking.deadline,
        })
    }

    /// What a node asks for its work, as far as it is known.
    pub(super) fn rates(&self, node: &str) -> Option<Rates> {
        let rows = self.nodes.as_array()?;
        let row = rows.iter().find(|row| text(row, "node") == node)?;
        serde_json::from_value(row["rates"].clone()).ok()
    }

    /// Seals the input and signs the job.
    pub(super) fn sign(&self, wanted: Wanted<'_>) -> anyhow::Result<Job> {
        let key = ContentKey::random()?;
        let sealed = key.seal_input(wanted.plain);
        let salt: [u8; 32] = random_bytes()?;
        let issued = now();
        let lifetime = u64::try_from(wanted.lifetime.as_millis()).unwrap_or(u64::MAX);
        let spec = JobSpec {
            federation: self.cert.federation,
            signer: ResearcherId::from(self.identity.public()),
            certificate: self.cert.id(),
            charter: self.charter,
            governance: None,
            home: self.home.node,
            nonce: random_bytes()?,
            project: wanted.project.to_owned(),
            purpose: wanted.purpose.to_owned(),
            work: wanted.work,
            model: wanted.model,
            dataset: wanted.dataset,
            input: SealedInput {
                digest: Digest::salted(&salt, &sealed),
                bytes: sealed.len() as u64,
                wraps: vec![key.wrap(self.home.node, &self.home_sealing)?],
            },
            placement: wanted.placement,
            cap: wanted.cap,
            attempts: wanted.attempts,
            issued,
            deadline: issued.plus(DurationMs::from_ms(lifetime)),
            terms: wanted.terms,
            delegation: None,
        };
        let spec = Verified::sign(self.identity.signing(), spec).map_err(|error| {
            Advice::new(ExitClass::Usage, format!("the job cannot be asked like this: {error}"))
        })?;
        Ok(Job { spec, salt, sealed })
    }

    /// An upper bound on the prompt's tokens: no token has less than a byte, and no node takes more
    /// than its context leaves. The engine counts for itself and says so when it does not fit.
    fn prompt_tokens_max(&self, model: Digest, bytes: usize, max_tokens: u32) -> u32 {
        let bound = u32::try_from(bytes).unwrap_or(u32::MAX);
        let model = model.to_string();
        let context = self
            .nodes
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|row| list(row, "models"))
            .filter(|held| text(held, "digest") == model)
            .map(|held| u32::try_from(number(held, "context_tokens")).unwrap_or(u32::MAX))
            .max();
        match context.and_then(|context| context.checked_sub(max_tokens)) {
            Some(left) if left > 0 => bound.min(left),
            _ => bound,
        }
    }

    pub(super) fn placement(&self, asking: &Asking) -> anyhow::Result<Placement> {
        fn sorted<T: Ord + Clone>(list: &[T]) -> Vec<T> {
            let mut list = list.to_vec();
            list.sort();
            list.dedup();
            list
        }
        let institutions = |names: &[String]| -> anyhow::Result<Vec<InstitutionId>> {
            let keys: Vec<InstitutionId> =
                names.iter().map(|name| self.institution(name)).collect::<Result<_, _>>()?;
            Ok(sorted(&keys))
        };
        Ok(Placement {
            at: institutions(&asking.at)?,
            not_at: institutions(&asking.not_at)?,
            jurisdictions: sorted(&asking.jurisdiction),
            not_jurisdictions: sorted(&asking.not_jurisdiction),
            device: None,
            memory_mib: 0,
        })
    }

    pub(super) fn institution(&self, name: &str) -> anyhow::Result<InstitutionId> {
        if let Ok(key) = name.parse() {
            return Ok(key);
        }
        let rows = self.nodes.as_array().map_or(&[][..], Vec::as_slice);
        let mut found: Vec<&str> = rows
            .iter()
            .filter(|row| {
                text(row, "institution_name").eq_ignore_ascii_case(name)
                    || (name.len() >= 6 && text(row, "institution").starts_with(name))
            })
            .map(|row| text(row, "institution"))
            .collect();
        found.sort_unstable();
        found.dedup();
        match found.as_slice() {
            [one] => one.parse().context("the node table names no key"),
            [] => Err(Advice::new(ExitClass::NotFound, format!("no institution {name:?}"))
                .hint("see their names: allmend nodes")
                .into()),
            _ => Err(Advice::new(ExitClass::Conflict, format!("several institutions {name:?}"))
                .hint("give the key instead")
                .into()),
        }
    }

    pub(super) fn model(&self, name: Option<&str>) -> anyhow::Result<Digest> {
        let mut offered: Vec<&str> = self
            .nodes
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|row| list(row, "models"))
            .map(|model| text(model, "digest"))
            .collect();
        offered.sort_unstable();
        offered.dedup();
        let called = |digest: &str| {
            CATALOGUE.iter().find(|entry| entry.sha256 == digest).map_or_else(
                || digest[..digest.len().min(12)].to_owned(),
                |entry| entry.name.to_owned(),
            )
        };
        let Some(name) = name else {
            return match offered.as_slice() {
                [one] => one.parse().context("the node table names no digest"),
                [] => Err(Advice::new(ExitClass::NotFound, "no node offers a model")
                    .hint("an operator runs: allmend models pull smollm2-135m")
                    .into()),
                many => {
                    let names: Vec<String> = many.iter().map(|digest| called(digest)).collect();
                    Err(Advice::new(ExitClass::Usage, "several models are on offer")
                        .hint(format!("choose one with --model: {}", names.join(", ")))
                        .into())
                }
            };
        };
        if let Ok(digest) = name.parse() {
            return Ok(digest);
        }
        if let Some(entry) = CATALOGUE.iter().find(|entry| entry.name == name) {
            return entry.sha256.parse().context("the catalogue");
        }
        let matching: Vec<&&str> =
            offered.iter().filter(|digest| name.len() >= 6 && digest.starts_with(name)).collect();
        match matching.as_slice() {
            [one] => one.parse().context("the node table names no digest"),
            [] => Err(Advice::new(ExitClass::NotFound, format!("no model {name:?}"))
                .hint("see what nodes offer: allmend nodes; or give the whole digest")
                .into()),
            _ => Err(Advice::new(ExitClass::Conflict, format!("several models begin with {name}"))
                .hint("give more of the digest")
                .into()),
        }
    }
}

/// A signed job and its sealed input.
pub(super) struct Job {
    pub(super) spec: Verified<JobSpec>,
    salt: [u8; 32],
    pub(super) sealed: Vec<u8>,
}

impl Job {
    pub(super) fn ask(&self, follow: bool) -> Ask {
        Ask::Submit {
            spec: ByteString(self.spec.envelope().as_bytes().to_vec()),
            salt: ByteString(self.salt.to_vec()),
            follow,
        }
    }
}

/// A decimal as typed, exactly.
pub(super) fn parse_decimal(text: &str, option: &str) -> anyhow::Result<Decimal> {
    let wrong =
        || Advice::new(ExitClass::Usage, format!("{option} {text:?} is no number like 0.7"));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = !whole.is_empty() || !fraction.is_empty();
    let plain = whole.chars().chain(fraction.chars()).all(|c| c.is_ascii_digit());
    if !digits || !plain || fraction.len() > 9 {
        return Err(wrong().into());
    }
    let mantissa = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
    let exp10 = i8::try_from(fraction.len()).map(|places| -places).map_err(|_| wrong())?;
    Ok(Decimal { mantissa, exp10 })
}

/// Credits as typed, to the micro-credit.
pub(super) fn parse_credits(text: &str) -> anyhow::Result<Credits> {
    let wrong = || Advice::new(ExitClass::Usage, format!("--cap {text:?} is no amount like 0.25"));
    let number = parse_decimal(text, "--cap").map_err(|_| wrong())?;
    let places =
        6i8.checked_add(number.exp10).and_then(|p| u32::try_from(p).ok()).ok_or_else(wrong)?;
    let micro = u64::try_from(number.mantissa).ok().and_then(|m| m.checked_mul(10u64.pow(places)));
    Ok(Credits::from_micro(micro.ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_exactly() {
        assert_eq!(parse_decimal("0.7", "x").unwrap(), Decimal { mantissa: 7, exp10: -1 });
        assert_eq!(parse_decimal("1", "x").unwrap(), Decimal { mantissa: 1, exp10: 0 });
        assert_eq!(parse_credits("0.25").unwrap(), Credits::from_micro(250_000));
        assert_eq!(parse_credits("3").unwrap(), Credits::from_micro(3_000_000));
        for bad in ["", ".", "-1", "1e3", "0.1234567891", "nan", "99999999999999999999"] {
            assert!(parse_decimal(bad, "x").is_err(), "{bad}");
        }
        assert!(parse_credits("0.0000001").is_err());
    }
}
