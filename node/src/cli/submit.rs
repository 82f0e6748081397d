//! Asking: `submit infer` and `chat`. The prompt is sealed here, before it leaves this machine.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::job::{ChatMessage, InferInput};
use anyhow::{Context as _, bail};
use serde_json::Value;

use super::args::{Asking, ChatOptions, InferOptions, SubmitCommand};
use super::context::Context;
use super::desk::{Desk, Job};
use super::follow::{Followed, follow};
use super::look::{list, text};
use crate::client::proto::{Answer, Ask};
use crate::ui::{Advice, Align, ExitClass, Table};

/// The longest prompt read from a file or standard input; the home node's own limit is smaller.
const PROMPT_BYTES_MAX: u64 = 64 * 1024 * 1024;
pub(super) async fn submit(
    context: &Context<'_>,
    command: SubmitCommand,
) -> anyhow::Result<ExitCode> {
    let options = match command {
        SubmitCommand::Infer(options) => options,
        SubmitCommand::Finetune(options) => return super::finetune::run(context, options).await,
    };
    let prompt = read_prompt(&options)?;
    let input = if options.raw {
        InferInput { messages: Vec::new(), prompt: Some(prompt), stop: options.asking.stop.clone() }
    } else {
        conversation(&options.asking, &[("user", prompt)])
    };
    let desk = Desk::open(context).await?;
    let job = desk.infer(&options.asking, &input)?;
    if options.dry_run {
        return explain(context, &desk, &job).await;
    }
    send(context, desk, job, options.detach).await
}

/// Submits a job and follows it, unless it is to be left alone.
pub(super) async fn send(
    context: &Context<'_>,
    desk: Desk,
    job: Job,
    detach: bool,
) -> anyhow::Result<ExitCode> {
    let mut answers = desk.caller.open(&job.ask(!detach), Some(&job.sealed)).await?;
    if detach {
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
            let could = match (why.is_empty(), row["answered"] == true) {
                (true, true) => "yes",
                (true, false) => "no answer",
                (false, _) => "no",
            };
            table.row([text(row, "node_name"), could, &why.join("; ")]);
        }
        terminal.table(&table)?;
        terminal.note("nothing has been submitted; each node decides anew when the job comes");
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
        let job = desk.infer(&options.asking, &input)?;
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
