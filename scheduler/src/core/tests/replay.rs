//! Restart from the journal rebuilds each machine exactly.

use allmend_protocol::receipt::Outcome;

use super::World;
use crate::core::testing::{node_id, open_settings};
use crate::io::{Entry, Input, Record, WorkEvent};

/// Numbers for one seed (Steele, Lea, Flood: SplitMix64, 2014).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn assert_replays(world: &World, seed: u64) {
    for n in 1..=3 {
        let node = node_id(100 + n);
        let (Some(core), Some(journal)) = (world.cores.get(&node), world.journals.get(&node))
        else {
            continue;
        };
        let again = world.federation.recover(n, open_settings(), journal.clone());
        assert_eq!(again.durable_projection(), core.durable_projection(), "seed {seed}, node {n}");
        assert_eq!(again.incarnation(), core.incarnation() + 1);
        assert_eq!(again.broken_invariant(), None);
    }
}

/// Goal: after any run, a replay of the journal equals the live state. Method: random jobs,
/// losses, failures, restarts; compare after every round, and recover from every prefix.
#[test]
fn replay_equals_live_at_every_cut() {
    for seed in 0..12 {
        let mut draw = Draw(seed);
        let mut world = World::new(&[1, 2, 1]);
        let mut loss = Draw(seed ^ 0xff);
        world.passes = Box::new(move |from, to, _| from == to || loss.below(10) > 0);
        for round in 0..40u8 {
            match draw.below(5) {
                0 | 1 => {
                    let job = world.federation.job(round, |job| job.deadline = super::at(60_000));
                    world.submit(&job);
                }
                2 => {
                    if let Some((lease, (node, _))) = world.work.iter().next() {
                        let (lease, node) = (*lease, *node);
                        let tokens = draw.below(100) as u32;
                        let event = WorkEvent::Progress { tokens };
                        world.step(node, Input::Work { lease, event });
                    }
                }
                3 => {
                    if let Some(lease) = world.work.keys().next().copied() {
                        let outcome = match draw.below(3) {
                            0 => Outcome::Failed { permanent: false, why: "x".into() },
                            _ => Outcome::Finished { reason: "stop".into() },
                        };
                        let tokens = draw.below(100) as u32;
                        world.end_work(lease, outcome, tokens);
                        world.deliver();
                    }
                }
                _ => {
                    if draw.below(4) == 0 {
                        let n = draw.below(3) as u8 + 1;
                        world.restart(n, if n == 2 { 2 } else { 1 });
                    }
                }
            }
            world.advance(draw.below(2_000));
            assert_replays(&world, seed);
        }
        // A crash may cut the journal anywhere: every prefix tells a state without contradiction.
        for n in 1..=3 {
            let journal = &world.journals[&node_id(100 + n)];
            for cut in (0..journal.len()).step_by(5) {
                let core = world.federation.recover(n, open_settings(), journal[..cut].to_vec());
                assert_eq!(core.broken_invariant(), None, "seed {seed}, node {n}, cut {cut}");
            }
        }
    }
}

/// Goal: what a journal on disk gives back is what was written.
#[test]
fn records_survive_their_encoding() {
    let mut world = World::new(&[0, 1]);
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    let (lease, _) = world.only_work();
    world.finish(lease, 40);
    for entry in world.journals.values().flatten() {
        if let Entry::Private(record) = entry {
            assert_eq!(Record::from_bytes(&record.to_bytes()).as_ref(), Ok(record));
        }
    }
    assert!(Record::from_bytes(b"nonsense").is_err());
}

#[test]
fn an_incarnation_begins_with_every_start() {
    let mut world = World::new(&[1]);
    assert_eq!(world.cores[&node_id(101)].incarnation(), 1);
    world.restart(1, 1);
    assert_eq!(world.cores[&node_id(101)].incarnation(), 2);
    let journal = world.journals[&node_id(101)].clone();
    let mut identity = world.federation.identity(1);
    identity.epoch = 1;
    let roster = world.federation.roster.clone();
    let next = crate::core::Core::recover(identity, open_settings(), roster, journal.clone());
    assert_eq!(next.expect("a later epoch").incarnation(), 1);
}
