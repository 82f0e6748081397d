//! A data steward's part: what waits, approving and refusing it, taking a released adapter back.
//!
//! A decision is signed here, with the person's own key; the node only keeps and checks it.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::Digest;
use allmend_protocol::stewardship::{Approval, ApprovalDecision};
use allmend_protocol::time::{DurationMs, Timestamp};
use anyhow::Context as _;
use serde_json::Value;

use super::args::ApproveOptions;
use super::context::{As, Context};
use super::look::{list, number, text};
use crate::client::Caller;
use crate::client::proto::Ask;
use crate::config::Identity;
use crate::membership::{now, read_charter};
use crate::ui::{self, Advice, Align, ExitClass, Table, Terminal};

/// The largest document whose digest is signed.
const DOCUMENT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// A refusal holds for so long: asking again in the meantime changes nothing.
const REFUSAL_HOLDS: DurationMs = DurationMs::from_secs(30 * 86_400);

/// How long the first answers to a recall are waited for, and how often they are looked at.
const ANSWERS_WAIT: Duration = Duration::from_secs(5);
const ANSWERS_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn inbox(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    let (_, caller) = connect(context).await?;
    let document = caller.document(&Ask::Inbox {}).await?;
    caller.close().await;
    context.terminal.answer(&document, |terminal, questions| {
        let questions = questions.as_array().map_or(&[][..], Vec::as_slice);
        if questions.is_empty() {
            return terminal.line("nothing waits for you");
        }
        for (at, question) in questions.iter().enumerate() {
            if at > 0 {
                terminal.line("")?;
            }
            print_question(terminal, question)?;
        }
        let first = ui::short_id(text(&questions[0], "question"));
        terminal
            .note(format!("decide: allmend approve {first}, or allmend refuse {first} --why …"));
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What is asked, in plain words.
fn print_question(terminal: &Terminal, question: &Value) -> std::io::Result<()> {
    let line = |label: &str, value: &str| terminal.line(format!("{label:<12}{value}"));
    line("question", ui::short_id(text(question, "question")))?;
    for (label, key) in [
        ("asks for", "obligation"),
        ("because", "reason"),
        ("asked by", "asker"),
        ("purpose", "purpose"),
        ("dataset", "dataset_name"),
        ("version", "dataset"),
        ("model", "model"),
        ("job", "job"),
    ] {
        if !text(question, key).is_empty() {
            line(label, text(question, key))?;
        }
    }
    for words in list(question, "words").iter().filter_map(Value::as_str) {
        line("", words)?;
    }
    line("policy", text(question, "policy"))?;
    line("asked", &ui::ago(Timestamp::from_ms(number(question, "since")), now()))?;
    line("lapses", &Timestamp::from_ms(number(question, "expires")).to_string())
}

pub(super) async fn approve(
    context: &Context<'_>,
    options: ApproveOptions,
) -> anyhow::Result<ExitCode> {
    let (identity, caller) = connect(context).await?;
    let question = find(&caller, &options.question).await?;
    if !options.yes && !confirmed(context, &question)? {
        caller.close().await;
        context.terminal.note("nothing was signed");
        return Ok(ExitCode::SUCCESS);
    }
    let lifetime = u64::try_from(options.expires.as_millis()).unwrap_or(u64::MAX);
    let mut approval = draft(context, &identity, &question, ApprovalDecision::Approved {})?;
    approval.runs_max = options.runs;
    approval.expires = approval.issued.plus(DurationMs::from_ms(lifetime));
    approval.agreement = options.agreement.as_deref().map(digest_of).transpose()?;
    approval.ethics = options.ethics.as_deref().map(digest_of).transpose()?;
    let expires = approval.expires;
    send(&identity, &caller, approval).await?;
    caller.close().await;
    context.terminal.note(format!(
        "approved job {} for {} runs until {expires}",
        ui::short_id(text(&question, "job")),
        options.runs
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn refuse(
    context: &Context<'_>,
    reference: &str,
    why: String,
) -> anyhow::Result<ExitCode> {
    let (identity, caller) = connect(context).await?;
    let question = find(&caller, reference).await?;
    let approval = draft(context, &identity, &question, ApprovalDecision::Refused { why })?;
    send(&identity, &caller, approval).await?;
    caller.close().await;
    let job = ui::short_id(text(&question, "job"));
    context.terminal.note(format!("refused job {job}; its researcher is told why"));
    Ok(ExitCode::SUCCESS)
}

/// Takes an adapter back and waits a moment for the answers; without one, shows what was taken back before.
pub(super) async fn recall(
    context: &Context<'_>,
    wanted: Option<(Digest, String)>,
) -> anyhow::Result<ExitCode> {
    let (_, caller) = connect(context).await?;
    let only = wanted.as_ref().map(|(adapter, _)| adapter.to_string());
    if let Some((adapter, why)) = wanted {
        caller.document(&Ask::Recall { adapter, why }).await?;
    }
    let begun = tokio::time::Instant::now();
    let rows = loop {
        let all = caller.document(&Ask::Recalls {}).await?;
        let rows = all.as_array().into_iter().flatten();
        let rows: Vec<Value> = rows
            .filter(|row| only.as_deref().is_none_or(|only| text(row, "adapter") == only))
            .cloned()
            .collect();
        let missing = rows.iter().any(|row| !list(row, "missing").is_empty());
        if only.is_none() || !missing || begun.elapsed() > ANSWERS_WAIT {
            break rows;
        }
        tokio::time::sleep(ANSWERS_EVERY).await;
    };
    caller.close().await;
    context.terminal.answer(&Value::Array(rows), |terminal, rows| {
        let mut table = Table::new()
            .column("ADAPTER", Align::Left)
            .squeezable("NODE")
            .column("SAID", Align::Left);
        for row in rows.as_array().into_iter().flatten() {
            let adapter = ui::short_id(text(row, "adapter"));
            for answer in list(row, "answers") {
                let said = match text(answer, "done") {
                    "deleted" => "deleted it",
                    "not-held" => "did not have it",
                    other => other,
                };
                table.row([adapter, text(answer, "node_name"), said]);
            }
            for name in list(row, "missing").iter().filter_map(Value::as_str) {
                table.row([adapter, name, "no answer yet; it is asked again"]);
            }
        }
        if table.is_empty() {
            return terminal.line("no recalls yet: allmend recall ADAPTER --why …");
        }
        terminal.table(&table)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The person's own key, and a connection to the node under it.
async fn connect(context: &Context<'_>) -> anyhow::Result<(Identity, Caller)> {
    if context.layout.researcher_key().exists() {
        let (identity, _) = context.researcher()?;
        return Ok((identity, context.connect(As::Researcher).await?));
    }
    context.layout.require()?;
    let identity = Identity::load(&context.layout.node_key())?;
    Ok((identity, context.connect(As::Operator).await?))
}

/// The question that `reference` means: an id, or the unique start of one.
async fn find(caller: &Caller, reference: &str) -> anyhow::Result<Value> {
    let document = caller.document(&Ask::Inbox {}).await?;
    let wanted = reference.to_ascii_lowercase();
    let matching: Vec<&Value> = document
        .as_array()
        .into_iter()
        .flatten()
        .filter(|question| {
            wanted.len() >= 4
                && (text(question, "question").starts_with(&wanted)
                    || text(question, "job").starts_with(&wanted))
        })
        .collect();
    match matching.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Advice::new(
            ExitClass::NotFound,
            format!("no question {reference:?} waits for you"),
        )
        .hint("see what waits: allmend inbox")
        .into()),
        _ => Err(Advice::new(
            ExitClass::Conflict,
            format!("several questions begin with {reference}"),
        )
        .hint("give more digits")
        .into()),
    }
}

fn confirmed(context: &Context<'_>, question: &Value) -> anyhow::Result<bool> {
    if context.terminal.is_json() || !std::io::stdin().is_terminal() {
        return Err(Advice::new(ExitClass::Usage, "nobody is here to ask")
            .hint("read the question first (allmend inbox), then say --yes")
            .into());
    }
    print_question(context.terminal, question)?;
    write!(std::io::stderr(), "Approve this? Type yes: ")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim().eq_ignore_ascii_case("yes"))
}

fn draft(
    context: &Context<'_>,
    identity: &Identity,
    question: &Value,
    decision: ApprovalDecision,
) -> anyhow::Result<Approval> {
    let charter = read_charter(&context.layout.charter())?;
    let issued = now();
    let read = |key: &'static str| format!("the node's question has no {key}");
    let output = match text(question, "output") {
        "" => None,
        digest => Some(digest.parse().with_context(|| read("output"))?),
    };
    Ok(Approval {
        federation: charter.federation.unwrap_or_else(|| charter.id().into()),
        signer: identity.public(),
        node: text(question, "node").parse().with_context(|| read("node"))?,
        job: text(question, "job").parse().with_context(|| read("job"))?,
        dataset: text(question, "dataset").parse().with_context(|| read("dataset"))?,
        policy: text(question, "policy").parse().with_context(|| read("policy"))?,
        obligation: text(question, "obligation").to_owned(),
        output,
        decision,
        runs_max: 1,
        agreement: None,
        ethics: None,
        issued,
        expires: issued.plus(REFUSAL_HOLDS),
    })
}

async fn send(identity: &Identity, caller: &Caller, approval: Approval) -> anyhow::Result<()> {
    let approval = Verified::sign(identity.signing(), approval).map_err(|error| {
        Advice::new(ExitClass::Usage, format!("this cannot be signed: {error}"))
    })?;
    let approval = ByteString(approval.envelope().as_bytes().to_vec());
    caller.ask(&Ask::Approve { approval }).await?;
    Ok(())
}

/// The digest of a document.
fn digest_of(path: &Path) -> anyhow::Result<Digest> {
    let read = || format!("cannot read {}", path.display());
    let size = std::fs::metadata(path).with_context(read)?.len();
    anyhow::ensure!(size <= DOCUMENT_BYTES_MAX, "{} is too large for a document", path.display());
    Ok(Digest::of(&std::fs::read(path).with_context(read)?))
}
