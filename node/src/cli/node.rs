//! Running and steering the node of this directory.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::args::{NodeCommand, RunOptions};
use super::context::{As, Context};
use crate::client::proto::Ask;
use crate::config::LogLevel;

/// How long a node without its parent may take for an orderly end.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// Its exit code if it took longer: as after SIGTERM.
const ORPHANED: i32 = 143;

pub(super) fn run(context: &Context<'_>, options: RunOptions) -> anyhow::Result<ExitCode> {
    context.layout.require()?;
    let config = context.config(&options.set)?;
    log_to_stderr(config.log_level, options.log_json);
    if options.with_parent {
        end_with_parent();
    }
    let program = std::env::current_exe().context("this program's own file cannot be found")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(crate::daemon::run(crate::daemon::RunOptions {
        layout: context.layout.clone(),
        config,
        program,
        first_versions: options.first_versions,
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// Stops this node when its standard input closes: in an orderly way for a moment, then at once.
fn end_with_parent() {
    std::thread::spawn(|| {
        // What is said there means nothing; only that it ends.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
        std::thread::sleep(ORPHAN_GRACE);
        std::process::exit(ORPHANED);
    });
}

/// Logs of our own crates at `level`, of libraries from warnings up; `ALLMEND_LOG` overrides with
/// a filter of the `tracing` kind.
fn log_to_stderr(level: LogLevel, json: bool) {
    let level = level.as_str();
    let filter = std::env::var("ALLMEND_LOG")
        .unwrap_or_else(|_| format!("warn,allmend={level},allmend_node={level}"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    // A second subscriber in one process (a test) is no reason not to run.
    let _ =
        if json { subscriber.json().try_init() } else { subscriber.with_target(false).try_init() };
}

pub(super) async fn control(
    context: &Context<'_>,
    command: NodeCommand,
) -> anyhow::Result<ExitCode> {
    let (ask, said) = match command {
        NodeCommand::Run(_) => bail!("handled before"),
        NodeCommand::Drain { why } => {
            (Ask::Drain { why }, "draining: what runs is finished, nothing new is taken")
        }
        NodeCommand::Resume => (Ask::Resume {}, "taking work again"),
        NodeCommand::Stop { now: true } => (Ask::Stop { drain: false }, "stopping now"),
        NodeCommand::Stop { now: false } => {
            (Ask::Stop { drain: true }, "stopping once running work is done")
        }
    };
    let caller = context.connect(As::Operator).await?;
    caller.ask(&ask).await?;
    caller.close().await;
    context.terminal.note(said);
    Ok(ExitCode::SUCCESS)
}
