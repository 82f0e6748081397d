//! Asking: `submit infer` and `chat`. The prompt is sealed here, before it leaves this machine.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::encoding;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{Digest, InstitutionId, MessageId, ResearcherId, SealingKey};
use allmend_protocol::job::{ChatMessage, InferInput, InferWork, JobSpec, Placement, SealedInput};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::time::DurationMs;
use allmend_protocol::units::{Credits, Decimal};
use anyhow::{Context as _, bail};
use serde_json::Value;

use super::args::{Asking, ChatOptions, InferOptions, SubmitCommand};
use super::context::{As, Context, Home};
use super::follow::{Followed, follow};
use super::look::{list, number, text};
use crate::client::Caller;
use crate::client::proto::{Answer, Ask};
use crate::config::Identity;
use crate::membership::{now, read_certificates, read_charter};
use crate::models::CATALOGUE;
use crate::seal::{ContentKey, random_bytes};
use crate::ui::{Advice, Align, ExitClass, Table};

/// The longest prompt read from a file or standard input; the home node's own limit is smaller.
const PROMPT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Tokens that a chat template adds around a message, and for good measure.
const TOKENS_PER_MESSAGE: usize = 24;

/// A researcher's connection to home, with all that a job spec needs to name.
struct Desk {
    caller: Caller,
    identity: Identity,
    home: Home,
    home_sealing: SealingKey,
    cert: Verified<ResearcherCert>,
    charter: MessageId,
    nodes: Value,
}

impl Desk {
    async fn open(context: &Context<'_>) -> anyhow::Result<Desk> {
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

    /// A signed job and its sealed input.
    fn job(&self, asking: &Asking, input: &InferInput) -> anyhow::Result<Job> {
        let model = self.model(asking.model.as_deref())?;
        let plain = encoding::encode(input);
        let key = ContentKey::random()?;
        let sealed = key.seal_input(&plain);
        let salt: [u8; 32] = random_bytes()?;
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
        let issued = now();
        let work = InferWork {
            max_tokens: asking.max_tokens,
            temperature,
            top_k: asking.top_k,
            top_p: parse_decimal(&asking.top_p, "--top-p")?,
            seed,
            clock: issued,
            prompt_tokens_max: self.prompt_tokens_max(model, words + framing, asking.max_tokens),
        };
        let deadline = u64::try_from(asking.deadline.as_millis()).unwrap_or(u64::MAX);
        let spec = JobSpec {
            federation: self.cert.federation,
            signer: ResearcherId::from(self.identity.public()),
            certificate: self.cert.id(),
            charter: self.charter,
            governance: None,
            home: self.home.node,
            nonce: random_bytes()?,
            project: asking.project.clone(),
            purpose: asking.purpose.clone(),
            work: work.to_work(),
            model,
            dataset: None,
            input: SealedInput {
                digest: Digest::salted(&salt, &sealed),
                bytes: sealed.len() as u64,
                wraps: vec![key.wrap(self.home.node, &self.home_sealing)?],
            },
            placement: self.placement(asking)?,
            cap: parse_credits(&asking.cap)?,
            attempts: asking.attempts,
            issued,
            deadline: issued.plus(DurationMs::from_ms(deadline)),
            terms: None,
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

    fn placement(&self, asking: &Asking) -> anyhow::Result<Placement> {
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

    fn institution(&self, name: &str) -> anyhow::Result<InstitutionId> {
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

    fn model(&self, name: Option<&str>) -> anyhow::Result<Digest> {
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

struct Job {
    spec: Verified<JobSpec>,
    salt: [u8; 32],
    sealed: Vec<u8>,
}

impl Job {
    fn ask(&self, follow: bool) -> Ask {
        Ask::Submit {
            spec: ByteString(self.spec.envelope().as_bytes().to_vec()),
            salt: ByteString(self.salt.to_vec()),
            follow,
        }
    }
}

pub(super) async fn submit(
    context: &Context<'_>,
    command: SubmitCommand,
) -> anyhow::Result<ExitCode> {
    let SubmitCommand::Infer(options) = command;
    let prompt = read_prompt(&options)?;
    let input = if options.raw {
        InferInput { messages: Vec::new(), prompt: Some(prompt), stop: options.asking.stop.clone() }
    } else {
        conversation(&options.asking, &[("user", prompt)])
    };
    let desk = Desk::open(context).await?;
    let job = desk.job(&options.asking, &input)?;
    if options.dry_run {
        return explain(context, &desk, &job).await;
    }
    let mut answers = desk.caller.open(&job.ask(!options.detach), Some(&job.sealed)).await?;
    if options.detach {
        let Some(Answer::Submitted { job }) = answers.next().await? else {
            bail!("the node's answer is no acknowledgement");
        };
        context.terminal.answer(&serde_json::json!({ "job": job }), |terminal, _| {
            terminal.line(job.to_string())
        })?;
        desk.caller.close().await;
        return Ok(ExitCode::SUCCESS);
    }
    let followed = follow(context, &desk.caller, &desk.identity, answers, job.spec.id()).await?;
    desk.caller.close().await;
    followed.finish(context)
}

async fn explain(context: &Context<'_>, desk: &Desk, job: &Job) -> anyhow::Result<ExitCode> {
    let spec = ByteString(job.spec.envelope().as_bytes().to_vec());
    let document = desk.caller.document(&Ask::Explain { spec }).await?;
    context.terminal.answer(&document, |terminal, rows| {
        let mut table = Table::new()
            .squeezable("NODE")
            .column("COULD RUN IT", Align::Left)
            .squeezable("WHY NOT");
        for row in rows.as_array().into_iter().flatten() {
            let why: Vec<&str> = list(row, "reasons").iter().filter_map(Value::as_str).collect();
            let could = if why.is_empty() { "yes" } else { "no" };
            table.row([text(row, "node_name"), could, &why.join("; ")]);
        }
        terminal.table(&table)?;
        terminal.note("as far as adverts tell; each node decides for itself when asked");
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn chat(context: &Context<'_>, options: ChatOptions) -> anyhow::Result<ExitCode> {
    let desk = Desk::open(context).await?;
    let interactive = options.prompt.is_none();
    let mut turns: Vec<(&'static str, String)> = Vec::new();
    if interactive && std::io::stdin().is_terminal() {
        context.terminal.note("Type a line and press Enter; /new starts afresh, Ctrl-D ends.");
    }
    let mut code = ExitCode::SUCCESS;
    let mut next = options.prompt;
    loop {
        let said = match next.take() {
            Some(said) => said,
            None if interactive => match read_line(context)? {
                Some(line) => line,
                None => return Ok(code),
            },
            None => return Ok(code),
        };
        match said.trim() {
            "" => continue,
            "/new" => {
                turns.clear();
                continue;
            }
            _ => turns.push(("user", said)),
        }
        let input = conversation(&options.asking, &turns);
        let job = desk.job(&options.asking, &input)?;
        let answers = desk.caller.open(&job.ask(true), Some(&job.sealed)).await?;
        let followed =
            follow(context, &desk.caller, &desk.identity, answers, job.spec.id()).await?;
        if interactive
            && !context.terminal.is_json()
            && !matches!(followed, Followed::Interrupted { .. })
        {
            turns.push(("assistant", followed.text().to_owned()));
            code = followed.report(context)?;
        } else {
            code = followed.finish(context)?;
        }
    }
}

fn read_line(context: &Context<'_>) -> anyhow::Result<Option<String>> {
    if std::io::stdin().is_terminal() && !context.terminal.is_json() {
        let mut out = std::io::stderr().lock();
        write!(out, "> ")?;
        out.flush()?;
    }
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line)?;
    Ok((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
}

fn conversation(asking: &Asking, turns: &[(&str, String)]) -> InferInput {
    let system = asking.system.iter().map(|text| ("system", text.clone()));
    InferInput {
        messages: system
            .chain(turns.iter().cloned())
            .map(|(role, content)| ChatMessage { role: role.to_owned(), content })
            .collect(),
        prompt: None,
        stop: asking.stop.clone(),
    }
}

fn read_prompt(options: &InferOptions) -> anyhow::Result<String> {
    let mut prompt = String::new();
    match (&options.file, options.prompt.as_deref()) {
        (Some(path), _) => {
            let file = std::fs::File::open(path)
                .with_context(|| format!("cannot read the prompt {}", path.display()))?;
            file.take(PROMPT_BYTES_MAX)
                .read_to_string(&mut prompt)
                .with_context(|| format!("the prompt {} is not text", path.display()))?;
        }
        (None, Some("-")) => {
            std::io::stdin()
                .take(PROMPT_BYTES_MAX)
                .read_to_string(&mut prompt)
                .context("the prompt on standard input is not text")?;
        }
        (None, Some(text)) => prompt.push_str(text),
        (None, None) => {}
    }
    if prompt.trim().is_empty() {
        return Err(Advice::new(ExitClass::Usage, "the prompt is empty").into());
    }
    Ok(prompt)
}

/// A decimal as typed, exactly.
fn parse_decimal(text: &str, option: &str) -> anyhow::Result<Decimal> {
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
fn parse_credits(text: &str) -> anyhow::Result<Credits> {
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
