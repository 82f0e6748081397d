//! Following a job: tokens to standard output, everything else to standard error; Ctrl-C cancels.

use std::process::ExitCode;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::MessageId;
use allmend_protocol::lease::{Cancel, CancelWhy};
use allmend_scheduler::io::Phase;
use anyhow::Context as _;

use super::context::Context;
use super::curve::Curve;
use crate::client::proto::{Answer, Ask, JobEvent};
use crate::client::report::Report;
use crate::client::{Answers, Caller};
use crate::config::Identity;
use crate::membership::{now, read_charter};
use crate::ui::{ExitClass, Failure};

/// How following ended.
pub(super) enum Followed {
    /// The job is over.
    Over {
        job: MessageId,
        phase: Phase,
        why: String,
        text: String,
        tokens: u32,
        attempts: u16,
        verdicts: Vec<(String, String)>,
    },
    /// The person interrupted it; the job is being cancelled.
    Interrupted { job: MessageId, text: String },
}

/// Follows a job to its end; an interruption cancels it.
pub(super) async fn follow(
    context: &Context<'_>,
    caller: &Caller,
    identity: &Identity,
    answers: Answers,
    job: MessageId,
) -> anyhow::Result<Followed> {
    let interrupted = async {
        // Where signals cannot be caught, nothing interrupts but the job's end.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::pin!(interrupted);
    let mut seen = Seen::default();
    tokio::select! {
        followed = watch_until_over(context, answers, job, &mut seen) => return followed,
        () = &mut interrupted => {}
    }
    cancel(context, caller, identity, job).await?;
    if !context.terminal.is_json() {
        context.terminal.stream("\n")?;
    }
    Ok(Followed::Interrupted { job, text: seen.text })
}

/// Follows a job to its end; an interruption ends the watching only.
pub(super) async fn watch(
    context: &Context<'_>,
    answers: Answers,
    job: MessageId,
) -> anyhow::Result<Followed> {
    watch_until_over(context, answers, job, &mut Seen::default()).await
}

/// What has arrived so far.
#[derive(Default)]
struct Seen {
    text: String,
    tokens: u32,
    attempts: u16,
}

async fn watch_until_over(
    context: &Context<'_>,
    mut answers: Answers,
    job: MessageId,
    seen: &mut Seen,
) -> anyhow::Result<Followed> {
    let terminal = context.terminal;
    let live = !terminal.is_json();
    let mut last_node = None;
    let mut curve = Curve::new(live);
    loop {
        match answers.next().await? {
            None => anyhow::bail!("the node closed the stream before the job was over"),
            Some(Answer::Submitted { job }) => {
                if terminal.is_interactive() && live {
                    terminal.note(format!("job {}", job.short()));
                }
            }
            Some(Answer::Event(JobEvent::Phase { phase, why, attempt, node })) => {
                seen.attempts = seen.attempts.max(attempt);
                let moved = phase == Phase::Running && node.is_some() && last_node != node;
                if phase == Phase::Running && last_node.is_some() && moved && live {
                    terminal.note(format!("\n[attempt {attempt}: {why}]"));
                } else if phase == Phase::Queued && live {
                    terminal.note(format!("[waiting: {why}]"));
                }
                if phase == Phase::Running {
                    last_node = node;
                }
            }
            Some(Answer::Event(JobEvent::Token { text, index, attempt, .. })) => {
                seen.tokens = index.saturating_add(1);
                seen.attempts = seen.attempts.max(attempt);
                if live {
                    terminal.stream(&text)?;
                }
                seen.text.push_str(&text);
            }
            Some(Answer::Event(JobEvent::Progress { attempt, report, tokens, .. })) => {
                seen.attempts = seen.attempts.max(attempt);
                seen.tokens = seen.tokens.saturating_add(tokens);
                if let Some(report) = Report::from_json(&report) {
                    curve.take(terminal, report, attempt);
                }
            }
            Some(Answer::Event(JobEvent::Over { phase, why, verdicts })) => {
                if live && !seen.text.is_empty() {
                    terminal.stream("\n")?;
                }
                let Seen { text, tokens, attempts } = std::mem::take(seen);
                return Ok(Followed::Over { job, phase, why, text, tokens, attempts, verdicts });
            }
            Some(_) => anyhow::bail!("the node's answer is no event"),
        }
    }
}

/// Signs and sends a cancellation.
pub(super) async fn cancel(
    context: &Context<'_>,
    caller: &Caller,
    identity: &Identity,
    job: MessageId,
) -> anyhow::Result<()> {
    let charter = read_charter(&context.layout.charter())?;
    let body = Cancel {
        federation: charter.federation.unwrap_or_else(|| charter.id().into()),
        signer: identity.public(),
        job,
        attempt: None,
        why: CancelWhy::Researcher,
        issued: now(),
    };
    let cancel = Verified::sign(identity.signing(), body).context("the cancellation")?;
    let cancel = ByteString(cancel.envelope().as_bytes().to_vec());
    caller.ask(&Ask::Cancel { cancel }).await?;
    Ok(())
}

impl Followed {
    /// What was written.
    pub(super) fn text(&self) -> &str {
        match self {
            Followed::Over { text, .. } | Followed::Interrupted { text, .. } => text,
        }
    }

    /// Whether the job finished without a token having been seen here.
    pub(super) fn finished_unseen(&self) -> bool {
        matches!(self, Followed::Over { phase: Phase::Finished, text, .. } if text.is_empty())
    }

    /// Says how a turn of a conversation ended, unless well.
    pub(super) fn report(self, context: &Context<'_>) -> anyhow::Result<ExitCode> {
        match self.failure() {
            Some(failure) => Ok(context.terminal.fail(&failure)),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// Ends the command: the answer as JSON if that was asked for, and the exit code.
    pub(super) fn finish(self, context: &Context<'_>) -> anyhow::Result<ExitCode> {
        if let Followed::Over { job, phase, why, text, tokens, attempts, verdicts } = &self
            && context.terminal.is_json()
        {
            let verdicts: Vec<_> = verdicts
                .iter()
                .map(|(node, verdict)| serde_json::json!({ "node": node, "verdict": verdict }))
                .collect();
            context.terminal.json(&serde_json::json!({
                "job": job, "phase": phase, "why": why, "text": text, "tokens": tokens,
                "attempts": attempts, "verdicts": verdicts,
            }))?;
        }
        self.report(context)
    }

    fn failure(&self) -> Option<Failure> {
        match self {
            Followed::Interrupted { job, .. } => Some(
                Failure::new(ExitClass::Interrupted, format!("cancelled job {}", job.short()))
                    .hint(format!("see what it cost: allmend show {}", job.short())),
            ),
            Followed::Over { phase: Phase::Finished, .. } => None,
            Followed::Over { job, phase, why, verdicts, .. } => {
                let (class, said) = match phase {
                    Phase::Refused => (ExitClass::Refused, "no node may or will run this job"),
                    Phase::Cancelled => (ExitClass::JobFailed, "the job was cancelled"),
                    Phase::Expired => (ExitClass::JobFailed, "the job's deadline passed"),
                    _ => (ExitClass::JobFailed, "the job failed"),
                };
                let mut failure = Failure::new(class, said).cause(why.clone());
                for (node, verdict) in verdicts {
                    failure = failure.cause(format!("{node}: {verdict}"));
                }
                let hint = match phase {
                    Phase::Refused => {
                        "where it may run is yours to widen: --at, --jurisdiction".to_owned()
                    }
                    _ => format!("see what happened: allmend show {}", job.short()),
                };
                Some(failure.hint(hint))
            }
        }
    }
}
