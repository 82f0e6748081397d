//! Several people ask one node at the same time: their jobs are computed together by one worker, and
//! their answers arrive side by side.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::report::{Companion, Together};
use super::{HOME, PROMPT, SENSIBLE, Stage};
use super::{describe, list, newest_job, number, settled, succeeded};
use crate::world::{Cli, Streamed, text};

/// The node that all of them ask, and what `--at` calls it.
const NODE: (&str, &str) = ("alpine", "Alpine Supercomputing");
/// Who asks beside Robin: directory, name, question, and words of which a sensible answer has one.
const OTHERS: [(&str, &str, &str, &[&str]); 2] = [
    ("kim", "Kim", "Why should people drink enough water?", &["hydrat", "health", "body"]),
    ("noor", "Noor", "Why are bees important for farmers?", &["pollinat", "crop", "plant"]),
];
/// Enough for Robin's whole answer, and for the others to say something sensible.
const TOKENS_MAX: &str = "90";
/// On a fast machine one answer may be over before another begins.
const TRIES_MAX: u32 = 3;
/// Pieces that wait for the narrator.
const PIECES_MAX: usize = 256;
/// Between two looks at what the node's worker computes.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Someone who asks.
struct Asker {
    name: &'static str,
    cli: Cli,
    question: &'static str,
    sensible: &'static [&'static str],
}

/// What was seen of the answers while they came.
struct Watched {
    streams: Vec<Streamed>,
    /// Of each answer, when its first and its last piece came.
    times: Vec<(Instant, Instant)>,
    /// How often the next piece was another's.
    changes: u64,
    worker: Worker,
}

/// The most runs that one worker was seen with.
#[derive(Clone, Copy, Default)]
struct Worker {
    pid: u64,
    runs: u64,
}

impl Stage<'_> {
    /// Robin's question again, beside those of two others, all at one node.
    pub(super) fn together(&mut self, robin: &Cli, undisturbed: &str) -> anyhow::Result<()> {
        self.narrator.step("Robin, Kim and Noor ask the same node at the same time");
        let mut askers = vec![Asker {
            name: "Robin",
            cli: robin.clone(),
            question: PROMPT,
            sensible: &SENSIBLE,
        }];
        for (dir, name, question, sensible) in OTHERS {
            let cli = self.world.researcher(dir, &format!("{name} Example"), HOME)?;
            askers.push(Asker { name, cli, question, sensible });
        }
        let place = self.place(NODE.0);
        for too_fast in 0..TRIES_MAX {
            let watched = self.ask_together(&askers)?;
            self.narrator.voices_over();
            let report = reckon(&askers, &watched, undisturbed, too_fast)?;
            self.report.together = Some(report.clone());
            let first = watched.times.iter().map(|(first, _)| first).max();
            let last = watched.times.iter().map(|(_, last)| last).min();
            let all = askers.len() as u64;
            if report.overlap_ms == 0 || first >= last || report.at_once < all {
                self.narrator.note("one was answered before another had begun; once more");
                continue;
            }
            self.narrator.tick(&format!(
                "{place} gave them {all} leases, all live together for {:.1} s; each in a slot of its own",
                report.overlap_ms as f64 / 1e3
            ));
            self.narrator.tick(&format!(
                "one worker (process {}) computed all {all} at once: {:.0} tokens/s together",
                report.worker_pid, report.tokens_per_s
            ));
            self.narrator.tick(&format!(
                "the answers came side by side (the voice changed {} times), and Robin's is the same as \
                 before",
                report.changes
            ));
            return Ok(());
        }
        bail!("in {TRIES_MAX} tries, the jobs were never all computed at once");
    }

    /// Lets all of them ask, tells what they hear, and watches the node's worker meanwhile.
    fn ask_together(&mut self, askers: &[Asker]) -> anyhow::Result<Watched> {
        let node = self.world.member(NODE.0).cli();
        let narrator = &mut *self.narrator;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| watch_worker(&node, &over));
            let (sender, pieces) = mpsc::sync_channel(PIECES_MAX);
            let threads: Vec<_> = askers
                .iter()
                .enumerate()
                .map(|(index, asker)| {
                    let sender = sender.clone();
                    scope.spawn(move || {
                        asker.cli.stream(&question(asker.question), |piece, _| {
                            sender.send((index, piece.to_owned(), Instant::now()))?;
                            Ok(())
                        })
                    })
                })
                .collect();
            drop(sender);
            let mut times: Vec<Option<(Instant, Instant)>> = vec![None; askers.len()];
            let (mut changes, mut speaks) = (0, None);
            for (index, piece, at) in pieces {
                narrator.voice(askers[index].name, &piece);
                changes += u64::from(speaks.is_some_and(|before| before != index));
                speaks = Some(index);
                let (_, last) = times[index].get_or_insert((at, at));
                *last = at;
            }
            over.store(true, Ordering::Release);
            let mut streams = Vec::new();
            for thread in threads {
                let stream = thread.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
                succeeded(&stream)?;
                streams.push(stream);
            }
            let worker = worker.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
            let times = times.into_iter().collect::<Option<Vec<_>>>();
            Ok(Watched { streams, times: times.context("there was no answer")?, changes, worker })
        })
    }
}

/// The most runs that a worker of the node has at once, until it is over.
fn watch_worker(node: &Cli, over: &AtomicBool) -> anyhow::Result<Worker> {
    let mut most = Worker::default();
    while !over.load(Ordering::Acquire) {
        let status = node.json(&["status"])?;
        for worker in list(&status, "workers") {
            let runs = list(worker, "slots").len() as u64;
            if runs > most.runs {
                most = Worker { pid: number(worker, "pid"), runs };
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(most)
}

/// Puts together what came of it; everything but whether they met must hold in any case.
fn reckon(
    askers: &[Asker],
    watched: &Watched,
    undisturbed: &str,
    too_fast: u32,
) -> anyhow::Result<Together> {
    let mut jobs = Vec::new();
    for (asker, stream) in askers.iter().zip(&watched.streams) {
        let id = newest_job(&asker.cli)?.0;
        let shown = settled(&asker.cli, &id)?;
        let job = describe(&asker.cli, &shown, stream)?;
        let said = job.answer.to_lowercase();
        let sensible = asker.sensible.iter().any(|word| said.contains(word));
        ensure!(sensible, "{}'s answer makes no sense: {:?}", asker.name, job.answer);
        let [attempt] = job.attempts.as_slice() else {
            bail!("{}'s job took {} attempts", asker.name, job.attempts.len())
        };
        ensure!(attempt.node == NODE.0, "{}'s job ran at {}", asker.name, attempt.node);
        let (started_ms, ended_ms) = lease_interval(&asker.cli, &id)?;
        let (researcher, question) = (asker.name.to_owned(), asker.question.to_owned());
        jobs.push(Companion { researcher, question, job, started_ms, ended_ms });
    }
    let same_answer = jobs.first().is_some_and(|robin| robin.job.answer == undisturbed);
    ensure!(same_answer, "company changed Robin's answer");
    let started_last = jobs.iter().map(|job| job.started_ms).max().unwrap_or_default();
    let ended_first = jobs.iter().map(|job| job.ended_ms).min().unwrap_or_default();
    let begun = watched.times.iter().map(|(first, _)| *first).min();
    let ended = watched.times.iter().map(|(_, last)| *last).max();
    let span = begun.zip(ended).map(|(begun, ended)| ended.duration_since(begun));
    let tokens: u64 = jobs.iter().map(|job| job.job.tokens).sum();
    Ok(Together {
        node: NODE.0.to_owned(),
        worker_pid: watched.worker.pid,
        at_once: watched.worker.runs,
        overlap_ms: ended_first.saturating_sub(started_last),
        changes: watched.changes,
        tokens_per_s: tokens as f64 / span.unwrap_or_default().as_secs_f64(),
        same_answer,
        too_fast,
        jobs,
    })
}

/// When the job's lease began and ended, as the node that held it signed in its receipt.
fn lease_interval(researcher: &Cli, job: &str) -> anyhow::Result<(u64, u64)> {
    let signed = researcher.json(&["logs", job])?;
    let rows = signed.as_array().map_or(&[][..], Vec::as_slice);
    let receipt: Option<&Value> = rows.iter().find(|row| text(row, "kind") == "receipt");
    let body = &receipt.with_context(|| format!("no receipt of job {job} is logged"))?["body"];
    Ok((number(body, "started"), number(body, "ended")))
}

fn question(prompt: &str) -> [&str; 7] {
    ["submit", "infer", prompt, "--at", NODE.1, "--max-tokens", TOKENS_MAX]
}
