//! Random mixes of requests, budgets, cancellations and shared prefixes: every answer equals the one that
//! the request would have been given alone.

use super::recorder::mix;
use super::*;
use crate::request::Finish;

/// Worlds per run; `SEED=n` runs one of them.
const WORLDS: u64 = 400;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = mix(self.0);
        (self.0 % sides as u64) as usize
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.roll(choices.len())].clone()
    }
}

/// A request with everything that may matter chosen by chance.
fn random_job(dice: &mut Dice, prefixes: &[Vec<u32>], tokens_max: usize) -> Job {
    let mut prompt = dice.of(prefixes);
    let suffix = tokens(dice.roll(1 << 20) as u64, 1 + dice.roll(30));
    prompt.truncate(dice.roll(prompt.len() + 1));
    prompt.extend(suffix);
    let max_tokens = 1 + dice.roll(60);
    prompt.truncate(tokens_max.saturating_sub(max_tokens).max(1));
    let mut job = job(prompt, max_tokens.min(tokens_max - 1) as u32);
    job.public_tokens = if dice.one_in(2) { dice.roll(job.prompt.len() + 1) } else { 0 };
    if dice.one_in(6) {
        let adapter = crate::adapter::Adapter { layers: Vec::new() };
        job.adapter = Some(([9; 32], Arc::new(adapter)));
    }
    let request = &mut job.request;
    request.researcher = dice.of(&[None, Some([1; 32]), Some([1; 32]), Some([2; 32])]);
    if dice.one_in(2) {
        request.sampling = Sampling {
            temperature_milli: dice.of(&[0, 500, 1_000, 2_000]),
            top_k: dice.of(&[0, 0, 5]),
            top_p_milli: dice.of(&[1_000, 900]),
            min_p_milli: dice.of(&[0, 50]),
            repetition_milli: dice.of(&[1_000, 1_200]),
            presence_milli: dice.of(&[0, 400]),
            frequency_milli: dice.of(&[0, 200]),
            logit_bias: dice.of(&[vec![], vec![(0, -100_000), (3, 500)]]),
            seed: dice.roll(1_000) as u64,
        };
    }
    if dice.one_in(3) {
        request.stop = vec!["ab".to_owned(), "xyz".to_owned()];
    }
    if dice.one_in(4) {
        request.logprobs = Some(dice.roll(4) as u32);
    }
    request.echo = dice.one_in(4);
    if dice.one_in(2) {
        request.echo_from = dice.roll(job.prompt.len() + 2) as u32;
    }
    if dice.one_in(4) {
        // The beginning of its own answer, as a second attempt brings it.
        let whole = reference::answer(&job).tokens;
        let some = dice.roll(whole.len() + 1);
        job.request.forced = whole.iter().take(some).map(|token| token.id).collect();
    }
    job
}

fn random_options(dice: &mut Dice) -> ServeOptions {
    ServeOptions {
        sequences_max: 1 + dice.roll(8),
        waiting_max: 1_000,
        step_rows_max: dice.of(&[1, 7, 16, 40, 512]),
        prefill_rows_while_decoding: dice.of(&[1, 5, 16, 64]),
        draft_rows_max: dice.of(&[0, 3, 8]),
        draft_sequences_max: dice.of(&[1, 2, 8]),
        prefix_cache: !dice.one_in(4),
    }
}

fn random_world(seed: u64) -> Stats {
    let dice = &mut Dice(mix(seed));
    let pages = 3 + dice.roll(30);
    let mut world = World::new(pages, random_options(dice));
    let prefixes: Vec<Vec<u32>> = (0..3).map(|at| tokens(seed * 3 + at, dice.roll(120))).collect();
    let mut jobs = BTreeMap::new();
    let mut cancelled = Vec::new();
    let arrivals: Vec<bool> = (0..60).map(|_| dice.one_in(3)).collect();
    for arrives in arrivals {
        if arrives {
            let job = random_job(dice, &prefixes, pages * 16);
            jobs.insert(world.submit(copy(&job)), job);
        }
        if dice.one_in(12)
            && let Some((&ticket, _)) = jobs.iter().nth(dice.roll(jobs.len().max(1)))
        {
            world.server.cancel(ticket);
            cancelled.push(ticket);
        }
        world.step();
    }
    world.run();
    let stats = world.server.stats();
    assert_eq!((stats.running, stats.waiting, stats.pages_used), (0, 0, 0), "SEED={seed}");
    assert!(stats.stall_rows <= world.server.options().stall_rows_max(), "SEED={seed}");
    for (ticket, job) in &jobs {
        check(seed, job, &world.told[ticket], cancelled.contains(ticket));
    }
    stats
}

fn check(seed: u64, job: &Job, told: &Told, cancelled: bool) {
    let expected = reference::answer(job);
    let completion = told.completion.expect("an end");
    assert_eq!(completion.usage.prompt_tokens as usize, job.prompt.len(), "SEED={seed}");
    if cancelled && completion.finish == Finish::Cancelled {
        let len = told.answer.tokens.len();
        assert_eq!(told.answer.tokens, expected.tokens[..len], "SEED={seed}");
        let echoed = told.answer.prompt.len();
        assert_eq!(told.answer.prompt, expected.prompt[..echoed], "SEED={seed}");
        return;
    }
    // An answer that its forced tokens end is over before anything is computed or echoed.
    let over = expected.tokens.is_empty();
    let expected = Answer { prompt: if over { vec![] } else { expected.prompt }, ..expected };
    assert_eq!(told.answer, expected, "SEED={seed} {:?}", job.request);
    let answered = expected.tokens.last().map_or(job.request.forced.len() as u32, |t| t.index + 1);
    assert_eq!(completion.usage.completion_tokens, answered, "SEED={seed}");
    let total = (job.prompt.len() + job.request.forced.len()) as u32;
    assert!(told.prefilled.is_sorted_by(|a, b| a.0 < b.0), "SEED={seed}");
    assert!(told.prefilled.iter().all(|&(_, of)| of == total), "SEED={seed}");
    assert!(over || told.prefilled.last().map(|&(done, _)| done) == Some(total), "SEED={seed}");
}

/// Goal: paging, sharing, preemption, guessing, chunking and cancelling change no answer, and no page is
/// lost. Method: seeded worlds; all of these must have happened in some of them.
#[test]
fn answers_are_those_given_alone() {
    let one = std::env::var("SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let mut sum = Stats::default();
    for seed in one.map_or(0..WORLDS, |seed| seed..seed + 1) {
        let stats = random_world(seed);
        sum.cached_tokens += stats.cached_tokens;
        sum.pages_evicted += stats.pages_evicted;
        sum.preemptions += stats.preemptions;
        sum.accepted += stats.accepted;
        sum.drafted += stats.drafted;
        sum.cancelled += stats.cancelled;
        sum.finished += stats.finished;
    }
    if one.is_none() {
        for (happened, least) in [
            (sum.cached_tokens, 10_000),
            (sum.pages_evicted, 1_000),
            (sum.preemptions, 100),
            (sum.accepted, 1_000),
            (sum.drafted - sum.accepted, 1_000),
            (sum.cancelled, 100),
            (sum.finished, 5_000),
        ] {
            assert!(happened > least, "{sum:?}");
        }
    }
}
