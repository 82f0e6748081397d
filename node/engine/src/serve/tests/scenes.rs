//! The scenes that serving was built for, one by one.

use super::recorder::{BREAKING, POISON};
use super::*;
use crate::error::Fault;
use crate::request::Finish;

/// Goal: 64 chats on a budget of about twelve all finish, with the answers that they would get alone.
#[test]
fn many_chats_share_few_pages() {
    let jobs: Vec<Job> = (0..64u64)
        .map(|at| {
            let mut job =
                job(tokens(at, 40 + (at as usize * 37) % 400), 20 + (at as u32 * 13) % 130);
            job.request.sampling = if at % 2 == 0 { Sampling::GREEDY } else { warm(at) };
            job.request.sampling.logit_bias = vec![(0, -100_000)];
            job.request.researcher = Some([(at % 5) as u8; 32]);
            job
        })
        .collect();
    let need = |job: &Job| (job.prompt.len() + job.request.max_tokens as usize).div_ceil(16);
    let budget = 12 * jobs.iter().map(need).sum::<usize>() / jobs.len();
    let mut world = World::new(budget, ServeOptions { sequences_max: 64, ..Default::default() });
    let tickets: Vec<Ticket> = jobs.iter().map(|job| world.submit(copy(job))).collect();
    let mut most_running = 0;
    while world.step().0 {
        most_running = most_running.max(world.server.stats().running);
    }
    for (job, ticket) in jobs.iter().zip(tickets) {
        assert_eq!(world.told[&ticket].answer, reference::answer(job));
    }
    let stats = world.server.stats();
    assert!(stats.preemptions > 0 && stats.finished == 64, "{stats:?}");
    assert!((12..40).contains(&most_running), "{most_running}");
}

/// Goal: while a long prompt is computed, every sequence that is being answered gets a token in every
/// step, and no step has more rows than is stated.
#[test]
fn a_long_prompt_stalls_nobody_beyond_the_bound() {
    let mut world = World::new(1_000, ServeOptions::default());
    let mut readers = Vec::new();
    for at in 0..8 {
        let mut job = job(tokens(at, 30), 400);
        job.request.sampling = Sampling { logit_bias: vec![(0, -100_000)], ..warm(at) };
        readers.push(world.submit(job));
    }
    for _ in 0..5 {
        world.step();
    }
    let long = job(tokens(99, 4_096), 5);
    let expected = reference::answer(&long);
    let ticket = world.submit(long);
    let mut steps = 0;
    while world.told[&ticket].answer.tokens.is_empty() {
        let (_, got) = world.step();
        steps += 1;
        assert!(readers.iter().all(|reader| got[reader] >= 1), "step {steps}: {got:?}");
        let stats = world.server.stats();
        assert!(stats.step_rows <= 8 + 128, "{stats:?}");
    }
    assert_eq!(steps, 4_096 / 128);
    world.run();
    assert_eq!(world.told[&ticket].answer, expected);
    let bound = world.server.options().stall_rows_max();
    assert_eq!(bound, 32 + 128);
    assert!(world.server.stats().stall_rows <= bound);
    // Nobody reads along: the whole step is for the prompt.
    let (mut world, before) = (World::new(1_000, ServeOptions::default()), 0);
    world.submit(job(tokens(99, 4_096), 1));
    world.run();
    assert_eq!(world.server.stats().steps - before, 4_096 / 512);
}

#[test]
fn cancelling_frees_pages_at_the_next_step() {
    let mut world = World::new(20, ServeOptions { sequences_max: 1, ..Default::default() });
    let (first, second) =
        (world.submit(job(tokens(1, 100), 50)), world.submit(job(tokens(2, 9), 9)));
    world.step();
    assert_eq!(world.server.stats().pages_used, 7);
    world.server.cancel(first);
    world.server.cancel(second);
    // A stranger's ticket, or one that has ended, does nothing.
    world.server.cancel(Ticket(77));
    assert!(!world.step().0);
    for ticket in [first, second] {
        assert_eq!(world.told[&ticket].completion.unwrap().finish, Finish::Cancelled);
    }
    assert_eq!(world.told[&first].completion.unwrap().usage.completion_tokens, 1);
    let stats = world.server.stats();
    assert_eq!((stats.pages_used, stats.pages_free, stats.cancelled), (0, 20, 2));
    world.server.cancel(first);
    assert!(!world.step().0);
}

#[test]
fn what_cannot_fit_is_refused_with_numbers() {
    let options = ServeOptions { waiting_max: 1, ..Default::default() };
    let mut world = World::new(10, options);
    let error = world.server.submit(job(tokens(1, 100), 61), &Letters).unwrap_err();
    assert_eq!(error.fault(), Fault::Machine);
    assert!(error.to_string().contains("161 tokens of cache"), "{error}");
    assert!(error.to_string().contains("160 can be had"), "{error}");
    // To the last position it fits, and alone it is never preempted.
    let mut whole = job(tokens(1, 100), 60);
    whole.request.sampling.logit_bias = vec![(0, -100_000)];
    world.submit(whole);
    let error = world.server.submit(job(tokens(1, 5), 5), &Letters).unwrap_err();
    assert!(matches!(error, EngineError::Busy { waiting: 1 }), "{error}");
    world.run();
    let stats = world.server.stats();
    assert_eq!((stats.preemptions, stats.tokens), (0, 60));
}

/// Goal: a request whose outputs are no numbers, and one that the arithmetic fails on, fail alone.
#[test]
fn failures_do_not_spread() {
    let mut world = World::new(100, ServeOptions::default());
    let researcher = Some([1; 32]);
    let good: Vec<Job> = (0..4).map(|at| job(tokens(at, 50 + at as usize), 40)).collect();
    let tickets: Vec<Ticket> = good.iter().map(|job| world.submit(copy(job))).collect();
    let bad = |token: u32| {
        let mut job = job([tokens(8, 40), vec![token], tokens(9, 40)].concat(), 5);
        job.request.researcher = researcher;
        job
    };
    world.step();
    let poisoned = world.submit(bad(POISON));
    let broken = world.submit(bad(BREAKING));
    world.run();
    let failure = |ticket| world.told[&ticket].failure.as_ref().unwrap().to_string();
    assert!(failure(poisoned).contains("not finite"), "{}", failure(poisoned));
    assert!(failure(broken).contains("the arithmetic failed"), "{}", failure(broken));
    for (job, ticket) in good.iter().zip(tickets) {
        assert_eq!(world.told[&ticket].answer, reference::answer(job));
    }
    let stats = world.server.stats();
    assert_eq!((stats.failed, stats.finished), (2, 4));
    // Nothing that a failed request computed is kept.
    assert_eq!((stats.pages_used, stats.pages_cached), (0, 0));
}

/// Goal: guesses make fewer steps of the same answer, are counted, and stop when there is company.
#[test]
fn guessing_ahead_saves_steps_and_changes_nothing() {
    let run = |draft_rows_max, others: u64, temperature_milli| {
        let options = ServeOptions { draft_rows_max, ..Default::default() };
        let mut world = World::new(400, options);
        let mut jobs = Vec::new();
        for at in 0..=others {
            let mut job = job(tokens(at, 40), 200);
            job.request.sampling.temperature_milli = temperature_milli;
            job.request.sampling.logit_bias = vec![(0, -100_000)];
            jobs.push((world.submit(copy(&job)), job));
        }
        world.run();
        for (ticket, job) in jobs {
            assert_eq!(world.told[&ticket].answer, reference::answer(&job));
        }
        world.server.stats()
    };
    for temperature_milli in [0, 500] {
        let plain = run(0, 0, temperature_milli);
        assert_eq!((plain.steps, plain.drafted), (200, 0));
        let drafted = run(8, 0, temperature_milli);
        assert!(drafted.accepted > 10 && drafted.accepted < drafted.drafted, "{drafted:?}");
        assert_eq!((drafted.steps, drafted.tokens), (200 - drafted.accepted, 200));
        assert_eq!(run(8, 4, temperature_milli).drafted, 0);
    }
}

#[test]
fn echo_tells_the_prompt_and_how_likely_it_was() {
    let mut world = World::new(100, ServeOptions::default());
    for (logprobs, echo) in [(None, true), (Some(0), true), (Some(5), true), (Some(3), false)] {
        let mut job = job(tokens(3, 100), 10);
        job.request.researcher = Some([1; 32]);
        (job.request.logprobs, job.request.echo) = (logprobs, echo);
        let expected = reference::answer(&job);
        assert_eq!(expected.prompt.len(), if echo { 100 } else { 0 });
        assert_eq!(expected.tokens[3].logprobs.is_some(), logprobs.is_some());
        assert_eq!(world.ask(job).answer, expected, "{logprobs:?} {echo}");
    }
}

/// Goal: what comes before the echoed part may be taken from the cache, and the rest says the same.
#[test]
fn an_echo_of_the_end_shares_the_beginning() {
    let mut world = World::new(100, ServeOptions::default());
    let mut saved = 0;
    for from in [0, 70, 99, 100] {
        let mut job = job(tokens(3, 100), 10);
        job.request.researcher = Some([1; 32]);
        (job.request.logprobs, job.request.echo) = (Some(0), true);
        job.request.echo_from = from;
        let expected = reference::answer(&job);
        assert_eq!(expected.prompt.len(), 100 - from as usize);
        let told = world.ask(job);
        assert_eq!(told.answer, expected, "{from}");
        saved = told.completion.expect("an end").usage.cached_tokens;
        assert_eq!(saved > 0, from > 0, "{from}");
    }
    assert!(saved >= 64, "{saved}");
}

/// Goal: forced tokens that end the answer cost nothing; others are computed with the prompt at once.
#[test]
fn forced_tokens_are_computed_with_the_prompt() {
    let mut free = job(tokens(5, 40), 30);
    free.request.sampling.logit_bias = vec![(0, -100_000)];
    let answer = reference::answer(&free).tokens;
    let forced = |count: usize| -> Vec<u32> { answer[..count].iter().map(|t| t.id).collect() };
    let mut world = World::new(100, ServeOptions::default());
    let mut resumed = copy(&free);
    resumed.request.forced = forced(20);
    let told = world.ask(resumed);
    assert_eq!(told.answer.tokens, answer[20..]);
    assert_eq!(told.prefilled, [(60, 60)]);
    let before = world.rows_computed();
    let mut over = copy(&free);
    over.request.forced = forced(30);
    let told = world.ask(over);
    let completion = told.completion.unwrap();
    assert_eq!((completion.finish, completion.usage.completion_tokens), (Finish::Length, 30));
    assert_eq!(world.rows_computed(), before);
}

#[test]
fn outputs_are_computed_beside_requests() {
    let mut world = World::new(10, ServeOptions::default());
    let mut running = job(tokens(1, 60), 20);
    running.request.sampling.logit_bias = vec![(0, -100_000)];
    let expected = reference::answer(&running);
    let ticket = world.submit(running);
    world.step();
    let prompt = tokens(2, 50);
    let whole: Vec<f32> = (1..=50).flat_map(|end| recorder::logits(&prompt[..end], None)).collect();
    for chunk in [1, 7, 16, 50, 9_999] {
        let outputs = world.server.outputs(&prompt, chunk, crate::decoder::Output::Logits);
        assert_eq!(outputs.unwrap(), whole);
    }
    let error = world.server.outputs(&tokens(3, 100), 1, crate::decoder::Output::Logits);
    assert!(matches!(error.unwrap_err(), EngineError::CacheExceeded { need_tokens: 100, .. }));
    world.run();
    assert_eq!(world.told[&ticket].answer, expected);
}
