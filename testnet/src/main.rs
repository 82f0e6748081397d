//! `allmend-testnet`: tries Allmend out.

use std::path::PathBuf;
use std::process::ExitCode;

use allmend_testnet::ordeal::Ordeal;
use allmend_testnet::{bench, demo, sim, world};
use clap::{Parser, Subcommand};

/// Worlds to try Allmend in.
#[derive(Debug, Parser)]
#[command(name = "allmend-testnet", version, arg_required_else_help = true)]
struct Args {
    /// Print the report as JSON on standard output, and everything else on standard error
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Three institutions share real models: answers, a node killed, a model adapted, an auditor
    Demo {
        /// Keep everything in this directory, which must be empty or missing
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Keep the temporary directory even if all went well
        #[arg(long)]
        keep: bool,
    },
    /// What the way through the federation costs, against the engine alone
    Bench {
        /// Tokens of the prompt
        #[arg(long, default_value_t = 512)]
        prompt_tokens: u32,
        /// Tokens of the answer at most
        #[arg(long, default_value_t = 128)]
        answer_tokens: u32,
        /// Threads of the engine [default: all cores]
        #[arg(long)]
        threads: Option<u32>,
        /// Rounds that count
        #[arg(long, default_value_t = 7)]
        rounds: u32,
    },
    /// Run seeds of the simulation
    Soak {
        /// How many
        #[arg(long, default_value_t = 2_000)]
        seeds: u64,
        /// The first
        #[arg(long, default_value_t = 0)]
        start: u64,
    },
    #[command(flatten)]
    Ordeal(Ordeal),
}

fn main() -> ExitCode {
    let Args { json, command } = Args::parse();
    let outcome = match command {
        Command::Demo { dir, keep } => demo::command(&demo::Options { dir, json, keep }),
        Command::Bench { prompt_tokens, answer_tokens, threads, rounds } => {
            bench::command(&bench::Options { prompt_tokens, answer_tokens, threads, rounds, json })
        }
        Command::Soak { seeds, start } => {
            let soaked = sim::soak(seeds, start, json);
            Ok(if soaked.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Ordeal(ordeal) => {
            let gone_through = world::reap::on_signals().and_then(|()| ordeal.run());
            gone_through.map(|()| ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
