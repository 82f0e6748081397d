//! What can be typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use allmend_protocol::cert::Role;
use allmend_protocol::ids::PublicKey;
use allmend_protocol::units::Jurisdiction;

/// Federated compute sharing: submit jobs, run a node, audit what happened.
#[derive(Debug, Parser)]
#[command(name = "allmend", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Data directory [default: $XDG_DATA_HOME/allmend or ~/.local/share/allmend]
    #[arg(long, global = true, env = "ALLMEND_DIR", value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 internal fault, 2 usage, 3 configuration, 4 not found, 5 refused,
6 unreachable, 7 job failed, 8 audit or check found problems, 9 conflict, 10 no room, 11 unhealthy,
130 interrupted.

First steps, as a researcher:   allmend join INVITE, then allmend chat
First steps, as an institution: allmend join INVITE, allmend doctor, allmend node run
To found a federation:          allmend init --found \"NAME\"";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a node's directory, keys and configuration; with --found also a new federation
    Init(InitOptions),
    /// Join with an invitation: as researcher, as a further node, or as an institution
    Join(JoinOptions),
    /// Invite a researcher, a node of yours, or an institution
    Invite(InviteOptions),
    /// The register of researchers and the roster of institutions
    #[command(subcommand)]
    Members(MembersCommand),
    /// The node's state
    Status,
    /// What works on this machine, and what to do about what does not
    Doctor(DoctorOptions),
    /// Run and steer this machine's node
    #[command(subcommand)]
    Node(NodeCommand),
    /// Nodes of the federation and their capacity
    Nodes,
    /// Models on this machine
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Policies of datasets: write, check, try
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Datasets that this node's stewards keep
    #[command(subcommand)]
    Data(DataCommand),
    /// Chat with a model
    Chat(Box<ChatOptions>),
    /// Submit a job
    #[command(subcommand)]
    Submit(SubmitCommand),
    /// Your jobs, newest first
    Jobs {
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Where a job is and why: nodes asked, attempts, cost
    Show {
        /// The job, or the start of its id
        job: String,
        /// With the signed messages themselves
        #[arg(long)]
        signed: bool,
    },
    /// What was signed for a job, in order
    Logs {
        /// The job, or the start of its id
        job: String,
    },
    /// Follow a job until it is over
    Watch {
        /// The job, or the start of its id
        job: String,
    },
    /// Cancel a job
    Cancel {
        /// The job, or the start of its id
        job: String,
    },
    /// Fetch and open a job's result
    Result {
        /// The job, or the start of its id
        job: String,
        /// Write the text to a file instead
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// What waits for your decision as a data steward
    Inbox,
    /// Approve what waits; the question's number is in the inbox
    Approve(ApproveOptions),
    /// Refuse what waits; the researcher is told why
    Refuse {
        /// The question, or the start of its id
        question: String,
        /// Why, in words
        #[arg(long, value_name = "TEXT")]
        why: String,
    },
    /// Take a released adapter back: every node stops serving it and deletes it
    Recall {
        /// The adapter's id; without one, the recalls so far and who has answered them
        #[arg(requires = "why")]
        adapter: Option<allmend_protocol::ids::Digest>,
        /// Why, in words
        #[arg(long, value_name = "TEXT", requires = "adapter")]
        why: Option<String>,
    },
    /// Adapters that this machine's node serves
    #[command(subcommand)]
    Adapters(AdaptersCommand),
    /// Disk use against its caps
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Check logs offline
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// The engine's process; started by the node
    #[command(hide = true)]
    Worker,
    /// A training room; started by the node
    #[command(hide = true)]
    Room,
    /// Computes something on one GPU; started by the node
    #[command(name = crate::device::PROBE_COMMAND, hide = true)]
    ProbeGpu {
        /// Which one, as the driver counts them
        index: usize,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct InitOptions {
    /// Found a new federation of this name, with this institution as its first member
    #[arg(long, value_name = "NAME")]
    pub(super) found: Option<String>,
    /// The institution's name
    #[arg(long, value_name = "NAME")]
    pub(super) institution: Option<String>,
    /// Where the node stands: two letters of ISO 3166, e.g. CH
    #[arg(long, value_name = "CC")]
    pub(super) jurisdiction: Option<Jurisdiction>,
    /// The node's name [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// List a further founding institution in the charter: KEY,CC,NAME (repeatable)
    #[arg(long = "member", value_name = "KEY,CC,NAME", requires = "found")]
    pub(super) members: Vec<String>,
    /// Take part in a federation whose charter lists this institution already
    #[arg(long, value_name = "FILE", conflicts_with = "found")]
    pub(super) charter: Option<PathBuf>,
    /// Set a configuration value in the new config.toml (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct JoinOptions {
    /// The invitation, as text or as the name of a file that holds it
    pub(super) invitation: String,
    /// Your name, the institution's or the node's; for a researcher it stays at the home node
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Where the node stands: two letters of ISO 3166, e.g. CH
    #[arg(long, value_name = "CC")]
    pub(super) jurisdiction: Option<Jurisdiction>,
    /// Set a configuration value in the new config.toml (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum InviteRole {
    Researcher,
    Node,
    Institution,
}

impl From<InviteRole> for Role {
    fn from(role: InviteRole) -> Role {
        match role {
            InviteRole::Researcher => Role::Researcher,
            InviteRole::Node => Role::Node,
            InviteRole::Institution => Role::Institution,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(super) struct InviteOptions {
    /// As what
    pub(super) role: InviteRole,
    /// How long it holds, e.g. 30m, 12h, 7d
    #[arg(long, default_value = "48h", value_name = "TIME", value_parser = super::context::parse_duration)]
    pub(super) expires: std::time::Duration,
    /// What a researcher's certificate is to say of them, as policies ask (repeatable)
    #[arg(long = "credential", value_name = "WORD")]
    pub(super) credentials: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum MembersCommand {
    /// List institutions and researchers
    Ls,
    /// Forget a researcher: name, salts, kept inputs and results; every log goes on verifying
    Erase {
        /// The researcher's key, or its start
        researcher: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct DoctorOptions {
    /// Do not ask another member whether this node can be reached
    #[arg(long)]
    pub(super) offline: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Run the node in the foreground until stopped
    Run(RunOptions),
    /// Finish what runs, take nothing new
    Drain {
        /// Why, for whoever is refused
        #[arg(long, default_value = "the operator is draining this node")]
        why: String,
    },
    /// Take work again
    Resume,
    /// Stop the running node
    Stop {
        /// Now, without waiting for running work
        #[arg(long)]
        now: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct RunOptions {
    /// Override a configuration value (repeatable); stronger than environment and file
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Log as JSON lines
    #[arg(long)]
    pub(super) log_json: bool,
    /// Stop when standard input closes, as it does when the process that started this one is gone
    #[arg(long)]
    pub(super) with_parent: bool,
    /// Speak only the first version of every message
    #[arg(long, hide = true)]
    pub(super) first_versions: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum DataCommand {
    /// Add a dataset, or a new version of one: JSONL (chat, prompt/completion, text) or text files
    Add(Box<DataAddOptions>),
    /// Say whether a file or directory could be added, with line numbers; adds nothing
    Check {
        /// A file that ends in .jsonl, .ndjson, .txt, .text or .md, or a directory of such files
        source: PathBuf,
        /// Allow files of different formats
        #[arg(long)]
        mixed: bool,
    },
    /// List datasets
    Ls,
    /// One dataset in detail
    Show {
        /// Name, or the start of a version's digest
        dataset: String,
        /// As MLCommons Croissant (JSON-LD)
        #[arg(long)]
        croissant: bool,
    },
    /// Forget one subject: a new version without their rows; every version that has some is destroyed
    Forget {
        /// Name, or the start of a version's digest
        dataset: String,
        /// The subject id [default: read from standard input, which leaves no trace in a history]
        #[arg(long, value_name = "ID")]
        subject: Option<String>,
    },
    /// Take a dataset back: running jobs stop, no new ones start, released adapters are listed
    Withdraw {
        /// Name, or the start of a version's digest
        dataset: String,
        /// Why, for whoever's jobs stop
        #[arg(long)]
        why: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct DataAddOptions {
    /// A file that ends in .jsonl, .ndjson, .txt, .text or .md, or a directory of such files
    pub(super) source: PathBuf,
    /// Call it this
    #[arg(long, value_name = "NAME")]
    pub(super) name: String,
    /// Add a version to the dataset of this name; all else stays as it is
    #[arg(long, conflicts_with_all = ["policy", "croissant", "title", "licence", "language", "purpose",
        "sensitivity", "steward", "public", "min_subjects", "runs_max"])]
    pub(super) new_version: bool,
    /// Who may do what with it (Cedar)
    #[arg(long, value_name = "P.cedar")]
    pub(super) policy: Option<PathBuf>,
    /// Take title, licence and so on from a Croissant file; options given beside it win
    #[arg(long, value_name = "FILE.json")]
    pub(super) croissant: Option<PathBuf>,
    /// What people call it
    #[arg(long)]
    pub(super) title: Option<String>,
    /// What it is, in a few sentences
    #[arg(long)]
    pub(super) description: Option<String>,
    /// The organisation that made it
    #[arg(long, value_name = "ORGANISATION")]
    pub(super) creator: Option<String>,
    /// Where it is described
    #[arg(long)]
    pub(super) url: Option<String>,
    /// Its licence as SPDX writes it, an https address, or LicenseRef-NAME
    #[arg(long)]
    pub(super) licence: Option<String>,
    /// Language and script, e.g. deu_Latn (repeatable)
    #[arg(long, value_name = "TAG")]
    pub(super) language: Vec<String>,
    /// For what it may be used, in the words that jobs use (repeatable)
    #[arg(long)]
    pub(super) purpose: Vec<String>,
    /// open, internal, personal or special
    #[arg(long)]
    pub(super) sensitivity: Option<String>,
    /// Public key of the steward, then of deputies (repeatable)
    #[arg(long, value_name = "KEY")]
    pub(super) steward: Vec<PublicKey>,
    /// Let the federation know of it: title, licence, languages, purposes, sensitivity, number of rows
    #[arg(long)]
    pub(super) public: bool,
    /// Release nothing learnt from fewer distinct subjects
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) min_subjects: u64,
    /// How many runs each requester may have [default: any number]
    #[arg(long, value_name = "N")]
    pub(super) runs_max: Option<u32>,
    /// Allow files of different formats
    #[arg(long)]
    pub(super) mixed: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ModelsCommand {
    /// Fetch a model: a catalogue name, hf:REPO/FILE@REV, or a file
    Pull {
        /// E.g. smollm2-135m
        source: String,
        /// Call it this
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Refuse anything but this SHA-256
        #[arg(long, value_name = "HEX")]
        digest: Option<String>,
        /// Link a local file instead of copying it
        #[arg(long)]
        link: bool,
    },
    /// List models
    Ls,
    /// One model in detail
    Show {
        /// Name or start of its digest
        model: String,
    },
    /// Remove a model
    Rm {
        /// Name or start of its digest
        model: String,
        /// Even if it is in use
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Write a policy from a few questions in plain words
    New(PolicyNewOptions),
    /// Say what is wrong with policies, with line numbers
    Check {
        /// Policies
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Run a table of expected decisions against a policy
    Test {
        /// The table
        table: PathBuf,
        /// The policy [default: the table's name with .cedar]
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
}

#[derive(Debug, ClapArgs)]
pub(super) struct PolicyNewOptions {
    /// Write it to this file, which must not exist yet [default: standard output]
    pub(super) file: Option<PathBuf>,
    /// Take the answers from a TOML file instead of asking
    #[arg(long, value_name = "FILE")]
    pub(super) answers: Option<PathBuf>,
    /// Begin with what is shipped: open-data, consortium-only, strictly-consented, charter, institution
    #[arg(long, value_name = "NAME", conflicts_with = "answers")]
    pub(super) example: Option<String>,
    /// Language of the questions and of the reasons in the policy: en, de
    #[arg(long, default_value = "en", value_name = "LANGUAGE")]
    pub(super) language: String,
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Asking {
    /// Model: name, digest or its start [default: the only one that nodes offer]
    #[arg(long, short, value_name = "MODEL")]
    pub(super) model: Option<String>,
    /// What the assistant is told first
    #[arg(long, value_name = "TEXT")]
    pub(super) system: Option<String>,
    /// Longest answer
    #[arg(long, default_value_t = 256, value_name = "TOKENS")]
    pub(super) max_tokens: u32,
    /// 0 is always the likeliest token
    #[arg(long, default_value = "0", value_name = "T")]
    pub(super) temperature: String,
    /// Choose among the likeliest K tokens; 0 is all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub(super) top_k: u32,
    /// Choose among the likeliest tokens that together have probability P
    #[arg(long, default_value = "1", value_name = "P")]
    pub(super) top_p: String,
    /// Equal seeds give equal answers [default: random when the temperature is not 0]
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// Stop at this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub(super) stop: Vec<String>,
    /// Serve this adapter beside the model, by its id
    #[arg(long, value_name = "ID")]
    pub(super) adapter: Option<allmend_protocol::ids::Digest>,
    /// Jurisdictions in which it may run, e.g. CH,NO [default: your own institution only]
    #[arg(long, value_delimiter = ',', value_name = "CC,…")]
    pub(super) jurisdiction: Vec<Jurisdiction>,
    /// Jurisdictions in which it may not run
    #[arg(long, value_delimiter = ',', value_name = "CC,…")]
    pub(super) not_jurisdiction: Vec<Jurisdiction>,
    /// Institutions that may run it, by name or key
    #[arg(long, value_delimiter = ',', value_name = "WHO,…")]
    pub(super) at: Vec<String>,
    /// Institutions that may not run it, by name or key
    #[arg(long, value_delimiter = ',', value_name = "WHO,…")]
    pub(super) not_at: Vec<String>,
    /// Project that it is for
    #[arg(long, default_value = "default")]
    pub(super) project: String,
    /// Purpose, as policies name them
    #[arg(long, default_value = "research")]
    pub(super) purpose: String,
    /// The most it may cost, in credits
    #[arg(long, default_value = "1", value_name = "CREDITS")]
    pub(super) cap: String,
    /// Of no use after this long
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = super::context::parse_duration)]
    pub(super) deadline: std::time::Duration,
    /// How often it may be tried
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(super) attempts: u16,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ChatOptions {
    /// Say this and end; without it, chat line by line
    pub(super) prompt: Option<String>,
    #[command(flatten)]
    pub(super) asking: Asking,
}

#[derive(Debug, Subcommand)]
pub(super) enum SubmitCommand {
    /// Inference: a prompt in, an answer out
    Infer(Box<InferOptions>),
    /// Fine-tuning: a dataset where it lives, an adapter out
    Finetune(FinetuneOptions),
}

#[derive(Debug, ClapArgs)]
pub(super) struct FinetuneOptions {
    /// The job, as TOML; --example prints one
    #[arg(required_unless_present = "example")]
    pub(super) job: Option<PathBuf>,
    /// Print a commented job to begin with
    #[arg(long, conflicts_with_all = ["job", "dry_run", "detach"])]
    pub(super) example: bool,
    /// Only estimate time, memory and cost, and say who would have to approve
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print the job's id and do not wait
    #[arg(long)]
    pub(super) detach: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct InferOptions {
    /// The prompt; - reads it from standard input
    #[arg(required_unless_present = "file")]
    pub(super) prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(long, short, value_name = "FILE", conflicts_with = "prompt")]
    pub(super) file: Option<PathBuf>,
    /// Give the text to the model as it is, without its chat template
    #[arg(long)]
    pub(super) raw: bool,
    /// Print the job's id and do not wait
    #[arg(long)]
    pub(super) detach: bool,
    /// Only say where it could run, and why not elsewhere
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) asking: Asking,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ApproveOptions {
    /// The question, or the start of its id
    pub(super) question: String,
    /// How many runs it covers
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(super) runs: u16,
    /// How long it holds, e.g. 12h, 30d
    #[arg(long, default_value = "30d", value_name = "TIME", value_parser = super::context::parse_duration)]
    pub(super) expires: std::time::Duration,
    /// The agreement that it rests on; its digest is signed
    #[arg(long, value_name = "FILE")]
    pub(super) agreement: Option<PathBuf>,
    /// The ethics document that it rests on; its digest is signed
    #[arg(long, value_name = "FILE")]
    pub(super) ethics: Option<PathBuf>,
    /// Do not ask again before signing
    #[arg(long)]
    pub(super) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum AdaptersCommand {
    /// List them
    Ls,
    /// Serve an adapter that was released to you: the folder that `allmend result` wrote
    Add {
        /// The folder
        folder: PathBuf,
    },
    /// Stop serving one and delete it
    Rm {
        /// Its id, or the start of it
        adapter: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum StorageCommand {
    /// Disk use against its caps
    Show,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Verify the logs in these directories, each alone and against the others
    Verify {
        /// Log directories (the `log` of a node's data directory, or a copy), or data directories
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;

    /// Goal: no command has an argument that clap would take for a global option because both have one id.
    #[test]
    fn no_argument_hides_a_global_option() {
        fn walk(command: &clap::Command, globals: &BTreeSet<String>, hidden: &mut Vec<String>) {
            for inner in command.get_subcommands() {
                let own = inner.get_arguments().map(|argument| argument.get_id().to_string());
                let clash = own.filter(|id| globals.contains(id));
                hidden.extend(clash.map(|id| format!("{} {id}", inner.get_name())));
                walk(inner, globals, hidden);
            }
        }
        let command = Args::command();
        command.clone().debug_assert();
        let globals = command.get_arguments().filter(|argument| argument.is_global_set());
        let globals = globals.map(|argument| argument.get_id().to_string()).collect();
        let mut hidden = Vec::new();
        walk(&command, &globals, &mut hidden);
        assert!(globals.len() >= 2 && hidden.is_empty(), "{hidden:?}");
    }
}
