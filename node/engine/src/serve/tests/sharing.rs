//! What the prefix cache shares, and with whom.

use super::*;

const ANNA: Option<[u8; 32]> = Some([1; 32]);
const BORIS: Option<[u8; 32]> = Some([2; 32]);

/// A request that begins with `prefix` and goes on in its own way.
fn asks(researcher: Option<[u8; 32]>, prefix: &[u32], own: u64) -> Job {
    let mut job = job([prefix, &tokens(own, 10)].concat(), 5);
    job.request.researcher = researcher;
    job
}

fn cached(world: &mut World, job: Job) -> u32 {
    let expected = reference::answer(&job);
    let told = world.ask(job);
    assert_eq!(told.answer, expected);
    told.completion.unwrap().usage.cached_tokens
}

/// Goal: of a shared prefix of 1,000 tokens, the second request computes next to nothing.
#[test]
fn a_long_shared_prefix_is_computed_once() {
    let prefix = tokens(7, 1_000);
    let mut world = World::new(200, ServeOptions::default());
    assert_eq!(cached(&mut world, asks(ANNA, &prefix, 1)), 0);
    let first_rows = world.rows_computed();
    assert_eq!(cached(&mut world, asks(ANNA, &prefix, 2)), 992);
    let second_rows = world.rows_computed() - first_rows;
    assert!(first_rows >= 1_010 && second_rows <= 18 + 10, "{first_rows} {second_rows}");
    assert_eq!(world.server.stats().cached_tokens, 992);
}

/// Goal: two requests that come at once compute their shared prefix once, and keep it once.
#[test]
fn requests_that_come_together_share_too() {
    let prefix = tokens(7, 1_000);
    let mut world = World::new(200, ServeOptions::default());
    let (first, second) =
        (world.submit(asks(ANNA, &prefix, 1)), world.submit(asks(ANNA, &prefix, 2)));
    world.run();
    assert!(world.told[&first].completion.unwrap().usage.cached_tokens < 16);
    assert!(world.told[&second].completion.unwrap().usage.cached_tokens >= 976);
    assert!(world.rows_computed() < 1_100);
}

#[test]
fn nothing_private_is_shared_across_researchers() {
    let prefix = tokens(7, 100);
    let mut world = World::new(200, ServeOptions::default());
    assert_eq!(cached(&mut world, asks(ANNA, &prefix, 1)), 0);
    assert_eq!(cached(&mut world, asks(BORIS, &prefix, 1)), 0);
    assert_eq!(cached(&mut world, asks(None, &prefix, 1)), 0);
    assert_eq!(cached(&mut world, asks(None, &prefix, 1)), 0);
    assert_eq!(cached(&mut world, asks(ANNA, &prefix, 1)), 96);
    // Who declares it public himself learns nothing of what others asked in private.
    let mut curious = asks(BORIS, &prefix, 1);
    curious.public_tokens = 100;
    assert_eq!(cached(&mut world, curious), 0);
}

#[test]
fn public_prefixes_are_shared_by_all_up_to_their_last_whole_page() {
    let prefix = tokens(7, 100);
    let public = |researcher, own| Job { public_tokens: 75, ..asks(researcher, &prefix, own) };
    let mut world = World::new(200, ServeOptions::default());
    assert_eq!(cached(&mut world, public(ANNA, 1)), 0);
    assert_eq!(cached(&mut world, public(BORIS, 2)), 64);
    assert_eq!(cached(&mut world, public(None, 3)), 64);
    assert_eq!(cached(&mut world, public(ANNA, 4)), 96);
    assert_eq!(cached(&mut world, public(None, 5)), 64);
}

#[test]
fn an_answer_is_found_again_in_the_next_turn() {
    let mut world = World::new(200, ServeOptions::default());
    let mut turn = asks(ANNA, &tokens(7, 30), 1);
    turn.request.max_tokens = 60;
    turn.request.sampling.logit_bias = vec![(0, -100_000)];
    let answer: Vec<u32> = reference::answer(&turn).tokens.iter().map(|token| token.id).collect();
    let next = asks(ANNA, &[turn.prompt.as_slice(), &answer].concat(), 2);
    assert_eq!(cached(&mut world, turn), 0);
    // 40 of prompt and 59 computed tokens of the answer make six pages.
    assert_eq!(cached(&mut world, next), 96);
}

#[test]
fn the_last_token_of_a_prompt_is_always_computed() {
    let mut world = World::new(200, ServeOptions::default());
    for (len, again) in [(64, 48), (65, 64), (16, 0), (17, 16)] {
        let ask = || {
            let mut job = job(tokens(len as u64, len), 1);
            job.request.researcher = ANNA;
            job
        };
        assert_eq!(cached(&mut world, ask()), 0);
        assert_eq!(cached(&mut world, ask()), again, "{len}");
    }
}

#[test]
fn adapters_do_not_share_with_the_plain_model() {
    let mut world = World::new(200, ServeOptions::default());
    let adapter = Arc::new(crate::adapter::Adapter { layers: Vec::new() });
    let prefix = tokens(7, 100);
    let tuned = || Job { adapter: Some(([3; 32], Arc::clone(&adapter))), ..asks(ANNA, &prefix, 1) };
    assert_eq!(cached(&mut world, asks(ANNA, &prefix, 1)), 0);
    assert_eq!(cached(&mut world, tuned()), 0);
    assert_eq!(cached(&mut world, tuned()), 96);
}

#[test]
fn without_the_prefix_cache_nothing_is_kept() {
    let options = ServeOptions { prefix_cache: false, ..Default::default() };
    let mut world = World::new(200, options);
    assert_eq!(cached(&mut world, asks(ANNA, &tokens(7, 100), 1)), 0);
    assert_eq!(cached(&mut world, asks(ANNA, &tokens(7, 100), 1)), 0);
    assert_eq!(world.server.stats().pages_free, 200);
}

/// Goal: who takes the whole decoder leaves nothing behind that somebody would take for their prefix.
#[test]
fn the_whole_decoder_is_given_only_when_idle() {
    let mut world = World::new(200, ServeOptions::default());
    assert_eq!(cached(&mut world, asks(ANNA, &tokens(7, 100), 1)), 0);
    assert!(world.server.stats().pages_cached > 0);
    assert!(world.server.whole_decoder().is_ok());
    assert_eq!(world.server.stats().pages_free, 200);
    assert_eq!(cached(&mut world, asks(ANNA, &tokens(7, 100), 1)), 0);
    world.submit(asks(ANNA, &tokens(7, 100), 1));
    world.step();
    assert!(matches!(world.server.whole_decoder(), Err(EngineError::Busy { waiting: 1 })));
}
