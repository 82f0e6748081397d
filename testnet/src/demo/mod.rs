//! The demonstration: three institutions, one real model, several people at one node at once, and
//! everything that should happen when a node dies in the middle of an answer. Every sentence that it
//! prints has been checked.

mod narrator;
pub mod report;
mod tamper;
mod together;
mod tuned;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

pub use self::narrator::Narrator;
use self::report::{
    Attempt, Audit, AuditedLog, Institution, Job, KilledJob, RefusedJob, Report, Settlement, Share,
    Software, Tampered, Verdict,
};
use crate::world::reap::{self, Scratch};
use crate::world::{
    Cli, Executable, Member, Model, Plan, Streamed, World, target_dir, text, wait_for,
};

const FEDERATION: &str = "Commons of the North and the Alps";
const HOME: &str = "lakeside";
const RESEARCHER: &str = "robin";
/// Names of the institutions' directories and nodes, the institutions' own, and where they are.
const INSTITUTIONS: [(&str, &str, &str); 3] = [
    (HOME, "Lakeside University", "DE"),
    ("alpine", "Alpine Supercomputing", "CH"),
    ("nordic", "Nordic Language Lab", "NO"),
];
/// Where the jobs may run: not at home.
const JURISDICTIONS: &str = "CH,NO";
/// What the two others let run.
const POLICY: &str = "\n[[policy.allow]]\nname = \"research and teaching\"\ninstitutions = [\"*\"]\n\
                      purposes = [\"research\", \"teaching\"]\n";
const PROMPT: &str = "Explain in a few sentences why trees are important.";
/// A sensible answer has one of these.
const SENSIBLE: [&str; 4] = ["oxygen", "carbon", "climate", "habitat"];
const MAX_TOKENS: &str = "180";
/// Words of the answer to wait for before the kill. Each is a token or more, and a node's journal holds
/// its progress in steps of eight tokens, by which it is paid after a crash.
const WORDS_BEFORE_KILL: usize = 12;
/// A fast machine may finish the answer before the node is found and killed.
const KILL_TRIES_MAX: u32 = 5;
/// Longest wait for a settlement once every party is up.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// The report's name in a directory that is kept.
const REPORT: &str = "report.json";
/// Its name beside cargo's own files when the directory is not kept.
const REPORT_LAST: &str = "demo-report.json";

/// Threads of each node's engine: mostly one of the three computes.
const THREADS: u32 = 2;

/// What the caller decides.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keep everything here; it must be empty or missing.
    pub dir: Option<PathBuf>,
    /// Print the report as JSON on standard output, and the story on standard error.
    pub json: bool,
    /// Keep the directory even if all went well.
    pub keep: bool,
}

/// Runs the demonstration and says what came of it.
///
/// # Errors
/// When it could not even begin, or the report cannot be written. An expectation that fails is not an
/// error here: see [`Report::passed`].
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let mut narrator = Narrator::new(options.json);
    let mut scratch = None;
    let dir = match &options.dir {
        Some(dir) => dir.clone(),
        None => scratch.insert(Scratch::new()?).path().to_owned(),
    };
    let mut report = Report {
        software: Software {
            testnet: env!("CARGO_PKG_VERSION").to_owned(),
            optimised: !cfg!(debug_assertions),
            ..Software::default()
        },
        federation: FEDERATION.to_owned(),
        ..Report::default()
    };
    narrator.line("Allmend: three institutions share one federation, on this machine.");
    let outcome = perform(&dir, &mut narrator, &mut report);
    report.took_ms = millis(narrator.elapsed());
    report.passed = outcome.is_ok();
    report.dir = dir.display().to_string();
    let mut kept = options.dir.is_some() || options.keep;
    if let Err(error) = &outcome {
        let why = format!("{error:#}");
        narrator.stream_over();
        narrator.voices_over();
        narrator.cross(&why);
        report.failure = Some(why);
        kept = true;
    }
    if let Some(scratch) = scratch.as_mut().filter(|_| kept) {
        scratch.keep();
    }
    let path = if kept { dir.join(REPORT) } else { target_dir()?.join(REPORT_LAST) };
    std::fs::write(&path, serde_json::to_vec_pretty(&report)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    conclude(&mut narrator, &report, &path, kept);
    Ok(report)
}

fn conclude(narrator: &mut Narrator, report: &Report, path: &Path, kept: bool) {
    let seconds = report.took_ms as f64 / 1e3;
    narrator.line("");
    if report.passed {
        narrator
            .line(&format!("All of it held, in {seconds:.0} s. The report: {}", path.display()));
    } else {
        narrator.line(&format!("Not all of it held. The report: {}", path.display()));
    }
    if kept {
        narrator.line(&format!(
            "Everything is kept in {}: data directories, node.log of each node.",
            report.dir
        ));
    }
}

fn perform(dir: &Path, narrator: &mut Narrator, report: &mut Report) -> anyhow::Result<()> {
    narrator.step("The software");
    let executable = Executable::find()?;
    let world = World::new(&executable.path, dir)?;
    report.software.node = world.cli("nowhere").ok(&["--version"])?.trim().to_owned();
    report.software.executable = executable.path.display().to_string();
    report.software.origin = Some(executable.origin);
    narrator.tick(&format!("{} at {}", report.software.node, executable.path.display()));

    narrator.step("A real model");
    let model = Model::pull(&executable.path)?;
    narrator.tick(&format!(
        "{}, {} bytes, SHA-256 {}…",
        model.name,
        model.bytes,
        short(&model.digest)
    ));
    report.model = Some(model.clone());

    let mut stage = Stage { world, narrator, report };
    stage.found(&model)?;
    let researcher = stage.start()?;
    let answer = stage.undisturbed(&researcher)?;
    stage.together(&researcher, &answer)?;
    let killed = stage.killed(&researcher, &answer)?;
    stage.paid(&researcher, &killed)?;
    stage.refused(&researcher)?;
    stage.tuned(&researcher)?;
    stage.audited()?;
    stage.tampered()
}

/// The demonstration under way.
struct Stage<'a> {
    world: World,
    narrator: &'a mut Narrator,
    report: &'a mut Report,
}

impl Stage<'_> {
    fn found(&mut self, model: &Model) -> anyhow::Result<()> {
        self.narrator.step("Three institutions found a federation");
        let plans = INSTITUTIONS.map(|(name, institution, jurisdiction)| {
            let policy = (name != HOME).then(|| POLICY.to_owned());
            Plan { policy, ..Plan::new(name, institution, jurisdiction, THREADS) }
        });
        self.world.found(FEDERATION, &plans)?;
        for (member, plan) in self.world.members().iter().zip(&plans) {
            let key = short(member.institution_key());
            self.narrator.tick(&format!("{}, {}, key {key}…", plan.institution, plan.jurisdiction));
            self.report.institutions.push(Institution {
                name: plan.institution.clone(),
                jurisdiction: plan.jurisdiction.clone(),
                key: member.institution_key().to_owned(),
                node_name: member.name().to_owned(),
                node: member.node_key().to_owned(),
                ports: *member.ports(),
                starts: 0,
            });
        }
        for member in self.world.members() {
            model.give(&member.cli())?;
        }
        self.narrator.tick("each verified the model's digest for itself");
        Ok(())
    }

    fn start(&mut self) -> anyhow::Result<Cli> {
        self.narrator.step("Three nodes start");
        self.world.start()?;
        self.world.wait_acquainted(1)?;
        self.narrator.tick("each has a signed advert of every other's capacity");
        let researcher = self.world.researcher(RESEARCHER, "Robin Example", HOME)?;
        self.narrator
            .tick("Robin joined Lakeside University by invitation, with a key made on the spot");
        Ok(researcher)
    }

    /// A job that nothing disturbs; gives its answer.
    fn undisturbed(&mut self, researcher: &Cli) -> anyhow::Result<String> {
        self.narrator.step("Robin asks; it may be computed in Switzerland or Norway only");
        self.narrator
            .note(&format!("$ allmend submit infer {PROMPT:?} --jurisdiction {JURISDICTIONS}"));
        let narrator = &mut *self.narrator;
        let streamed = researcher.stream(&question(), |piece, _| {
            narrator.stream(piece);
            Ok(())
        })?;
        self.narrator.stream_over();
        succeeded(&streamed)?;
        let answer = streamed.output.stdout.trim_end().to_owned();
        let sensible = SENSIBLE.iter().any(|word| answer.to_lowercase().contains(word));
        ensure!(sensible, "the answer makes no sense: {answer:?}");
        let id = newest_job(researcher)?.0;
        let shown = settled(researcher, &id)?;
        let job = describe(researcher, &shown, &streamed)?;
        let [attempt] = job.attempts.as_slice() else {
            bail!("an undisturbed job took {} attempts", job.attempts.len())
        };
        ensure!(attempt.node != HOME, "the job ran at home, which is in neither country");
        let place = self.place(&attempt.node);
        self.narrator.tick(&format!(
            "{place} answered: first token after {:.0} ms, then {:.0} tokens/s",
            job.first_token_ms, job.tokens_per_s
        ));
        ensure!(job.settlement.count == 1, "{} settlements", job.settlement.count);
        self.narrator.tick(&format!("settled: {} micro-credits", job.settlement.total_micro));
        self.report.undisturbed = Some(job);
        Ok(answer)
    }

    /// The same question, but the node that answers is killed; gives the job's id.
    fn killed(&mut self, researcher: &Cli, undisturbed: &str) -> anyhow::Result<Killed> {
        self.narrator.step("The same question; the node that answers is killed in the middle");
        for too_fast in 0..KILL_TRIES_MAX {
            match self.kill_once(researcher)? {
                None => self.narrator.note("the answer was finished before the kill; once more"),
                Some((mut killed, streamed)) => {
                    self.narrator.stream_over();
                    succeeded(&streamed)?;
                    let shown = researcher.json(&["show", &killed.job])?;
                    let job = describe(researcher, &shown, &streamed)?;
                    let answer = streamed.output.stdout.trim_end();
                    ensure!(
                        answer == undisturbed,
                        "the answer differs from the undisturbed one: {answer:?}"
                    );
                    let [first, second] = job.attempts.as_slice() else {
                        bail!("{} attempts instead of two", job.attempts.len())
                    };
                    ensure!(
                        first.node == killed.node && second.node != killed.node,
                        "not elsewhere"
                    );
                    ensure!(
                        !second.lease.is_empty() && first.lease != second.lease,
                        "no new lease"
                    );
                    let place = self.place(&second.node);
                    self.narrator.tick(&format!(
                        "{place} took it up under a new lease after {:.1} s",
                        killed.silence.as_secs_f64()
                    ));
                    self.narrator.tick(
                        "no word was lost, repeated or taken back: the same answer as before",
                    );
                    ensure!(
                        text(&shown, "settlement").is_empty(),
                        "settled without the first receipt"
                    );
                    killed.report = KilledJob {
                        job,
                        killed_node: killed.node.clone(),
                        words_before: killed.words_before,
                        silence_ms: killed.silence.as_secs_f64() * 1e3,
                        same_answer: true,
                        settled_after_restart_ms: 0.0,
                        too_fast,
                    };
                    self.report.killed = Some(killed.report.clone());
                    return Ok(killed);
                }
            }
        }
        bail!("{KILL_TRIES_MAX} answers were finished before their node could be killed")
    }

    /// One try; nothing if the job was over too early.
    fn kill_once(&mut self, researcher: &Cli) -> anyhow::Result<Option<(Killed, Streamed)>> {
        let narrator = &mut *self.narrator;
        let world = &mut self.world;
        let mut killed: Option<Killed> = None;
        let mut last_piece = Instant::now();
        let streamed = researcher.stream(&question(), |piece, seen| {
            narrator.stream(piece);
            if let Some(killed) = &mut killed {
                killed.silence = killed.silence.max(last_piece.elapsed());
            }
            last_piece = Instant::now();
            let words_before = seen.split_whitespace().count();
            // The last word may still grow.
            if killed.is_none() && words_before > WORDS_BEFORE_KILL {
                let (job, phase, node) = newest_job(researcher)?;
                if phase == "running" {
                    world.member_mut(&node).kill();
                    last_piece = Instant::now();
                    narrator.stream(&format!(" ⚡{node} killed⚡"));
                    killed = Some(Killed {
                        job,
                        node,
                        words_before,
                        silence: Duration::ZERO,
                        report: KilledJob::default(),
                    });
                }
            }
            Ok(())
        })?;
        narrator.stream_over();
        let Some(killed) = killed else { return Ok(None) };
        let attempts =
            researcher.json(&["show", &killed.job])?["attempts"].as_array().map_or(0, Vec::len);
        if attempts == 1 && streamed.output.code == Some(0) {
            world.start()?;
            world.wait_acquainted(1)?;
            return Ok(None);
        }
        Ok(Some((killed, streamed)))
    }

    fn paid(&mut self, researcher: &Cli, killed: &Killed) -> anyhow::Result<()> {
        let place = self.place(&killed.node);
        self.narrator.step(&format!("{place} comes back and is paid for what it had done"));
        let since = Instant::now();
        let member = self.world.member_mut(&killed.node);
        member.start()?;
        member.wait_up()?;
        self.narrator.tick("restarted from its journal, without repair");
        let shown = settled(researcher, &killed.job)?;
        let mut report = killed.report.clone();
        report.job.attempts = attempts(&shown);
        report.job.settlement = settlement(researcher, &shown)?;
        report.settled_after_restart_ms = since.elapsed().as_secs_f64() * 1e3;
        self.report.killed = Some(report.clone());
        let settlement = &report.job.settlement;
        ensure!(settlement.count == 1, "{} settlements instead of one", settlement.count);
        ensure!(settlement.shares.len() == 2, "{} shares instead of two", settlement.shares.len());
        for attempt in &report.job.attempts {
            let share = settlement.shares.iter().find(|share| share.lease == attempt.lease);
            let share =
                share.with_context(|| format!("attempt {} is not paid", attempt.attempt))?;
            ensure!(share.cost_micro > 0, "attempt {} is paid nothing", attempt.attempt);
            let place = self.place(&attempt.node);
            self.narrator.tick(&format!(
                "attempt {}: lease {}…, {} tokens, {} micro-credits to {place}",
                attempt.attempt,
                short(&attempt.lease),
                attempt.tokens,
                share.cost_micro
            ));
        }
        let sum: u64 = settlement.shares.iter().map(|share| share.cost_micro).sum();
        ensure!(
            sum == settlement.total_micro && sum <= settlement.cap_micro,
            "shares of {sum} do not add up to {} under the cap {}",
            settlement.total_micro,
            settlement.cap_micro
        );
        self.narrator.tick("one settlement pays both");
        Ok(())
    }

    fn refused(&mut self, researcher: &Cli) -> anyhow::Result<()> {
        self.narrator.step("A job that no policy allows");
        self.narrator.note("$ allmend submit infer … --purpose advertising");
        self.world.wait_acquainted(1)?;
        let mut arguments = vec!["--json"];
        arguments.extend(question());
        arguments.extend(["--purpose", "advertising"]);
        let output = researcher.run(&arguments)?;
        let exit_code = output.code.unwrap_or(-1);
        let said: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let verdicts: Vec<Verdict> = list(&said, "verdicts")
            .iter()
            .map(|row| Verdict {
                node: text(row, "node").to_owned(),
                said: text(row, "verdict").to_owned(),
            })
            .collect();
        for verdict in &verdicts {
            self.narrator.note(&format!("{}: {}", verdict.node, verdict.said));
        }
        let job = text(&said, "job").to_owned();
        self.report.refused = Some(RefusedJob { job, exit_code, verdicts: verdicts.clone() });
        ensure!(exit_code == 5, "exit code {exit_code} instead of 5: {}", output.stderr.trim());
        for (name, _, _) in INSTITUTIONS.iter().filter(|(name, _, _)| *name != HOME) {
            let reason = verdicts
                .iter()
                .any(|verdict| verdict.node.contains(name) && verdict.said.contains("advertising"));
            ensure!(reason, "{name} did not say that the purpose is why it refuses");
        }
        self.narrator.tick("refused, with each node's reason; exit code 5");
        Ok(())
    }

    fn audited(&mut self) -> anyhow::Result<()> {
        self.narrator.step("The nodes stop; an auditor checks their logs");
        self.world.stop()?;
        for (institution, member) in self.report.institutions.iter_mut().zip(self.world.members()) {
            institution.starts = member.starts();
        }
        self.report.leftovers = self.world.leftovers();
        self.report.leftovers_checked = true;
        ensure!(
            self.report.leftovers.is_empty(),
            "left behind: {}",
            self.report.leftovers.join("; ")
        );
        self.narrator.tick("no process and no port is left");
        let dirs: Vec<PathBuf> = self.world.members().iter().map(Member::log_dir).collect();
        let audit = audit(&self.world, &dirs)?;
        self.report.audit = Some(audit.clone());
        ensure!(
            audit.exit_code == 0 && audit.findings.is_empty(),
            "the audit ended with {}: {}",
            audit.exit_code,
            findings(&audit)
        );
        ensure!(audit.logs.len() == INSTITUTIONS.len(), "{} logs were audited", audit.logs.len());
        for log in &audit.logs {
            let place = self.place(&log.node);
            let root = short(&log.root);
            self.narrator
                .tick(&format!("{place}: {} entries, root {root}…, all in order", log.entries));
        }
        Ok(())
    }

    fn tampered(&mut self) -> anyhow::Result<()> {
        self.narrator.step("One byte of one log is flipped, in a copy");
        let home = self.world.member(HOME);
        let copy = self.world.dir().join("tampered").join(HOME);
        let flipped = tamper::flip_one_byte(&home.log_dir(), &copy)?;
        self.narrator.note(&format!("byte {} of {}", flipped.offset, flipped.file.display()));
        let others = self.world.members().iter().filter(|member| member.name() != HOME);
        let dirs: Vec<PathBuf> = std::iter::once(copy).chain(others.map(Member::log_dir)).collect();
        let audit = audit(&self.world, &dirs)?;
        let log = audit.logs.iter().find(|log| log.node == HOME);
        let blamed = list_named(&audit, flipped.entry, log.map(|log| log.log.as_str()));
        let first = blamed.first().map(|finding| text(finding, "why").to_owned());
        self.report.tampered = Some(Tampered {
            node: HOME.to_owned(),
            file: flipped.file.display().to_string(),
            offset: u64::try_from(flipped.offset)?,
            entry: flipped.entry,
            named: first.is_some(),
            audit: audit.clone(),
        });
        ensure!(audit.exit_code == 8, "the audit ended with {} instead of 8", audit.exit_code);
        let Some(why) = first else {
            bail!("the audit does not name entry {}: {}", flipped.entry, findings(&audit))
        };
        self.narrator.tick(&format!("the audit names entry {}: {why}", flipped.entry));
        Ok(())
    }

    /// A node's institution and country.
    fn place(&self, node: &str) -> String {
        let known = INSTITUTIONS.iter().find(|(name, _, _)| *name == node);
        known.map_or_else(|| node.to_owned(), |(_, name, country)| format!("{name} ({country})"))
    }
}

/// A job whose node was killed.
struct Killed {
    job: String,
    node: String,
    words_before: usize,
    silence: Duration,
    report: KilledJob,
}

fn question() -> Vec<&'static str> {
    vec!["submit", "infer", PROMPT, "--jurisdiction", JURISDICTIONS, "--max-tokens", MAX_TOKENS]
}

fn succeeded(streamed: &Streamed) -> anyhow::Result<()> {
    let output = &streamed.output;
    ensure!(output.code == Some(0), "exit code {:?}: {}", output.code, output.stderr.trim());
    Ok(())
}

/// The newest job: id, phase, and the node of its latest attempt.
fn newest_job(researcher: &Cli) -> anyhow::Result<(String, String, String)> {
    let jobs = researcher.json(&["jobs", "--limit", "1"])?;
    let job = jobs.get(0).context("there is no job")?;
    let field = |key| text(job, key).to_owned();
    Ok((field("job"), field("phase"), field("node")))
}

/// Waits for the job's settlement; gives what `show` says then.
fn settled(researcher: &Cli, job: &str) -> anyhow::Result<Value> {
    wait_for(&format!("the settlement of job {}", short(job)), SETTLED_WITHIN, || {
        let shown = researcher.json(&["show", job])?;
        Ok((!text(&shown, "settlement").is_empty()).then_some(shown))
    })
}

fn describe(researcher: &Cli, shown: &Value, streamed: &Streamed) -> anyhow::Result<Job> {
    ensure!(text(shown, "phase") == "finished", "the job is {}", text(shown, "phase"));
    let id = text(shown, "job").to_owned();
    let answer = streamed.output.stdout.trim_end().to_owned();
    let kept = researcher.json(&["result", &id])?;
    ensure!(text(&kept, "text").trim_end() == answer, "the kept result is not what was streamed");
    let attempts = attempts(shown);
    let tokens: u64 = attempts.iter().map(|attempt| attempt.tokens).sum();
    let first = streamed.first_after.context("there was no answer")?;
    let seconds = streamed.last_token_after.saturating_sub(first).as_secs_f64();
    Ok(Job {
        job: id,
        answer,
        tokens,
        attempts,
        first_token_ms: first.as_secs_f64() * 1e3,
        tokens_per_s: tokens.saturating_sub(1) as f64 / seconds,
        settlement: settlement(researcher, shown)?,
    })
}

fn attempts(shown: &Value) -> Vec<Attempt> {
    let row = |row: &Value| Attempt {
        attempt: number(row, "attempt"),
        node: text(row, "node_name").to_owned(),
        lease: text(row, "lease").to_owned(),
        fence: text(row, "fence").to_owned(),
        receipt: text(row, "receipt").to_owned(),
        tokens: number(row, "tokens"),
        paid_micro: number(row, "paid_micro"),
        status: text(row, "status").to_owned(),
    };
    list(shown, "attempts").iter().map(row).collect()
}

/// What home's log says of the job's payment.
fn settlement(researcher: &Cli, shown: &Value) -> anyhow::Result<Settlement> {
    let signed = researcher.json(&["logs", text(shown, "job")])?;
    let rows = signed.as_array().map_or(&[][..], Vec::as_slice);
    let settlements: Vec<&Value> =
        rows.iter().filter(|row| text(row, "kind") == "settlement").collect();
    let body = settlements.first().map_or(&Value::Null, |row| &row["body"]);
    let share = |share: &Value| Share {
        lease: text(share, "lease").to_owned(),
        receipt: text(share, "receipt").to_owned(),
        node: text(share, "node").to_owned(),
        cost_micro: number(share, "cost"),
    };
    Ok(Settlement {
        id: text(shown, "settlement").to_owned(),
        count: settlements.len(),
        shares: list(body, "shares").iter().map(share).collect(),
        total_micro: number(shown, "cost_micro"),
        cap_micro: number(&shown["spec"], "cap"),
    })
}

fn audit(world: &World, dirs: &[PathBuf]) -> anyhow::Result<Audit> {
    let mut arguments = vec!["--json", "audit", "verify"];
    for dir in dirs {
        arguments.push(dir.to_str().context("the directory's name is no text")?);
    }
    let output = world.cli("auditor").run(&arguments)?;
    let said: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("the audit printed no JSON: {}", output.stderr.trim()))?;
    let log = |log: &Value| AuditedLog {
        node: text(log, "node_name").to_owned(),
        log: text(log, "log").to_owned(),
        entries: number(log, "size"),
        root: text(log, "root").to_owned(),
    };
    Ok(Audit {
        exit_code: output.code.unwrap_or(-1),
        logs: list(&said, "logs").iter().map(log).collect(),
        findings: list(&said, "findings").to_vec(),
        balances: list(&said, "balances").to_vec(),
    })
}

/// Findings about `entry` of `log`.
fn list_named<'a>(audit: &'a Audit, entry: u64, log: Option<&str>) -> Vec<&'a Value> {
    let about = |finding: &&Value| {
        finding["entry"].as_u64() == Some(entry) && Some(text(finding, "log")) == log
    };
    audit.findings.iter().filter(about).collect()
}

fn findings(audit: &Audit) -> String {
    let words = |finding: &Value| {
        format!("{} entry {}: {}", text(finding, "log"), finding["entry"], text(finding, "why"))
    };
    audit.findings.iter().map(words).collect::<Vec<_>>().join("; ")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

/// The beginning of an id, as people read it.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Runs the demonstration as a command.
///
/// # Errors
/// Those of [`run`].
pub fn command(options: &Options) -> anyhow::Result<std::process::ExitCode> {
    reap::on_signals()?;
    let report = run(options)?;
    if options.json {
        let text = serde_json::to_string(&report)?;
        std::io::Write::write_all(&mut std::io::stdout().lock(), format!("{text}\n").as_bytes())?;
    }
    Ok(if report.passed {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    })
}
