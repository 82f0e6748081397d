//! The command line: what people and scripts type (docs/operate.md, docs/researcher.md).
//!
//! Answers go to standard output, everything else to standard error; `--json` on every reading
//! command; exit codes by class; `error:`, `cause:`, `hint:`.

mod adapters;
mod args;
mod audit;
mod context;
mod curve;
mod data;
mod desk;
mod doctor;
mod finetune;
mod follow;
mod found;
mod jobs;
mod look;
mod models;
mod node;
mod policy;
mod portable;
mod stewards;
mod submit;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use self::args::{Args, Command, NodeCommand};
use self::context::Context;
use crate::ui::{Failure, Terminal};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // A room is sealed before anything else happens in its process.
    if std::env::args_os().nth(1).is_some_and(|command| command == crate::worker::SEALED_COMMAND) {
        return crate::worker::train::main();
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    if matches!(args.command, Command::Worker) {
        return match crate::worker::main() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if let Command::ProbeGpu { index } = args.command {
        return probe_gpu(index);
    }
    let terminal = Terminal::detect(args.json);
    match run(args, &terminal) {
        Ok(code) => code,
        Err(error) => {
            let mut explainers: Vec<crate::ui::Explainer> =
                vec![crate::ui::explainer::<crate::client::CallError>];
            explainers.extend(data::EXPLAINERS);
            terminal.fail(&Failure::from_error_with(&error, &explainers))
        }
    }
}

/// Answers the node that has started this process to try a GPU (`device::probe`): JSON, or why not.
fn probe_gpu(index: usize) -> ExitCode {
    use std::io::Write as _;
    let (answer, code) = match crate::device::probe_here(index) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(why) => (why, ExitCode::FAILURE),
    };
    match writeln!(std::io::stdout(), "{answer}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(args: Args, terminal: &Terminal) -> anyhow::Result<ExitCode> {
    let Args { dir, json: _, command } = args;
    if let Command::Completions { shell } = command {
        clap_complete::generate(shell, &mut Args::command(), "allmend", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let context = Context::new(dir.as_deref(), terminal)?;
    if let Command::Node(NodeCommand::Run(options)) = command {
        return node::run(&context, options);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(async {
        match command {
            Command::Init(options) => found::init(&context, &options),
            Command::Join(options) => found::join(&context, options).await,
            Command::Invite(options) => found::invite(&context, options).await,
            Command::Members(command) => look::members(&context, command).await,
            Command::Status => look::status(&context).await,
            Command::Nodes => look::nodes(&context).await,
            Command::Storage(_) => look::storage(&context).await,
            Command::Doctor(options) => doctor::run(&context, &options).await,
            Command::Node(command) => node::control(&context, command).await,
            Command::Models(command) => models::run(&context, command).await,
            Command::Policy(command) => policy::run(&context, command),
            Command::Data(command) => data::run(&context, command).await,
            Command::Chat(options) => submit::chat(&context, *options).await,
            Command::Submit(command) => submit::submit(&context, command).await,
            Command::Jobs { limit } => jobs::list(&context, limit).await,
            Command::Show { job, signed } => jobs::show(&context, &job, signed).await,
            Command::Logs { job } => jobs::logs(&context, &job).await,
            Command::Watch { job } => jobs::watch(&context, &job).await,
            Command::Cancel { job } => jobs::cancel(&context, &job).await,
            Command::Result { job, output } => jobs::result(&context, &job, output).await,
            Command::Inbox => stewards::inbox(&context).await,
            Command::Approve(options) => stewards::approve(&context, options).await,
            Command::Refuse { question, why } => stewards::refuse(&context, &question, why).await,
            Command::Recall { adapter, why } => stewards::recall(&context, adapter.zip(why)).await,
            Command::Adapters(command) => adapters::run(&context, command).await,
            Command::Audit(command) => audit::run(&context, command),
            Command::Completions { .. }
            | Command::Worker
            | Command::Room
            | Command::ProbeGpu { .. } => Ok(ExitCode::SUCCESS),
        }
    });
    // A download's helper thread may still be winding down; nothing of it matters any more.
    runtime.shutdown_background();
    code
}
