//! Which run goes to which worker process, and which process makes room for another model. Pure: runs
//! and processes are numbers here.
//!
//! # The rule
//! Runs begin in the order in which they came; none overtakes one that waits. The oldest waiting run
//!
//! 1. joins the process that has its model;
//! 2. otherwise gets a process of its own, while there are fewer than may be;
//! 3. otherwise the process that has been idle longest is ended for it;
//! 4. otherwise waits until one is idle. Nothing that runs is ever ended for it, and since nothing
//!    overtakes, no stream of newcomers can keep a process busy before it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use allmend_protocol::ids::Digest;

/// Numbers a run; never used twice by one pool.
pub(super) type RunId = u64;
/// Numbers a worker process; never used twice by one pool.
pub(super) type WorkerId = u64;

/// Something to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// Start this process and have it load that model.
    Start(WorkerId, Digest),
    /// The run is that process's from now on.
    Give(RunId, WorkerId),
    /// End this process, which is idle; [`Desk::gone`] when it is no more.
    End(WorkerId),
}

/// Processes and the runs that want one.
#[derive(Debug)]
pub(super) struct Desk {
    workers_max: usize,
    seats: BTreeMap<WorkerId, Seat>,
    waiting: VecDeque<(RunId, Digest)>,
    workers_ever: WorkerId,
    /// Counts comings and goings of runs: orders idle processes by when they were last used.
    ticks: u64,
}

#[derive(Debug)]
struct Seat {
    model: Digest,
    runs: BTreeSet<RunId>,
    ending: bool,
    used: u64,
}

impl Desk {
    /// With room for `workers_max` processes, at least one.
    pub(super) fn new(workers_max: usize) -> Desk {
        Desk {
            workers_max: workers_max.max(1),
            seats: BTreeMap::new(),
            waiting: VecDeque::new(),
            workers_ever: 0,
            ticks: 0,
        }
    }

    /// A run that wants `model` has come.
    pub(super) fn arrive(&mut self, run: RunId, model: Digest) {
        self.waiting.push_back((run, model));
    }

    /// A run has ended, wherever it was.
    pub(super) fn leave(&mut self, run: RunId) {
        self.waiting.retain(|(waiting, _)| *waiting != run);
        self.ticks += 1;
        for seat in self.seats.values_mut() {
            if seat.runs.remove(&run) {
                seat.used = self.ticks;
            }
        }
    }

    /// A process for a model that nobody has asked for yet, if there is room without ending another
    /// and nobody waits.
    pub(super) fn warm(&mut self, model: Digest) -> Option<WorkerId> {
        let there = self.seats.values().any(|seat| seat.model == model);
        let room = self.seats.len() < self.workers_max && self.waiting.is_empty();
        (room && !there).then(|| self.seat(model))
    }

    /// The process takes nothing more, because it is being ended.
    pub(super) fn retire(&mut self, worker: WorkerId) {
        if let Some(seat) = self.seats.get_mut(&worker) {
            seat.ending = true;
        }
    }

    /// The process is no more; the runs that it had.
    pub(super) fn gone(&mut self, worker: WorkerId) -> BTreeSet<RunId> {
        self.seats.remove(&worker).map(|seat| seat.runs).unwrap_or_default()
    }

    /// The runs of a process.
    pub(super) fn runs(&self, worker: WorkerId) -> impl Iterator<Item = RunId> {
        self.seats.get(&worker).into_iter().flat_map(|seat| seat.runs.iter().copied())
    }

    /// The next thing to do; none when something has to happen first.
    pub(super) fn next(&mut self) -> Option<Move> {
        let (run, model) = *self.waiting.front()?;
        let taking = |(_, seat): &(&WorkerId, &mut Seat)| seat.model == model && !seat.ending;
        if let Some((worker, seat)) = self.seats.iter_mut().find(taking) {
            self.waiting.pop_front();
            seat.runs.insert(run);
            return Some(Move::Give(run, *worker));
        }
        if self.seats.len() < self.workers_max {
            return Some(Move::Start(self.seat(model), model));
        }
        if self.seats.values().any(|seat| seat.ending) {
            return None;
        }
        let idle = self.seats.iter_mut().filter(|(_, seat)| seat.runs.is_empty());
        let (worker, seat) = idle.min_by_key(|(_, seat)| seat.used)?;
        seat.ending = true;
        Some(Move::End(*worker))
    }

    fn seat(&mut self, model: Digest) -> WorkerId {
        self.workers_ever += 1;
        self.ticks += 1;
        let seat = Seat { model, runs: BTreeSet::new(), ending: false, used: self.ticks };
        self.seats.insert(self.workers_ever, seat);
        self.workers_ever
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(name: u8) -> Digest {
        Digest::of(&[name])
    }

    fn moves(desk: &mut Desk) -> Vec<Move> {
        std::iter::from_fn(|| desk.next()).collect()
    }

    #[test]
    fn runs_of_one_model_share_a_process() {
        let mut desk = Desk::new(1);
        (1..=3).for_each(|run| desk.arrive(run, model(0)));
        let expected =
            [Move::Start(1, model(0)), Move::Give(1, 1), Move::Give(2, 1), Move::Give(3, 1)];
        assert_eq!(moves(&mut desk), expected);
        assert_eq!(desk.gone(1), BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn another_model_waits_until_the_process_is_idle_and_nobody_overtakes_it() {
        let mut desk = Desk::new(1);
        desk.arrive(1, model(0));
        assert_eq!(moves(&mut desk).len(), 2);
        desk.arrive(2, model(1));
        desk.arrive(3, model(0));
        assert_eq!(moves(&mut desk), [], "the process works, and nobody may overtake");
        desk.leave(1);
        assert_eq!(moves(&mut desk), [Move::End(1)]);
        assert_eq!(moves(&mut desk), [], "it is not gone yet");
        assert!(desk.gone(1).is_empty());
        assert_eq!(moves(&mut desk), [Move::Start(2, model(1)), Move::Give(2, 2)]);
        desk.leave(2);
        assert_eq!(moves(&mut desk), [Move::End(2)]);
    }

    #[test]
    fn the_process_idle_longest_makes_room() {
        let mut desk = Desk::new(2);
        desk.arrive(1, model(0));
        desk.arrive(2, model(1));
        assert_eq!(moves(&mut desk).len(), 4);
        desk.leave(2);
        desk.leave(1);
        desk.arrive(3, model(2));
        assert_eq!(moves(&mut desk), [Move::End(2)]);
    }

    #[test]
    fn warming_takes_nothing_from_anybody() {
        let mut desk = Desk::new(1);
        assert_eq!(desk.warm(model(0)), Some(1));
        assert_eq!(desk.warm(model(0)), None, "it is there");
        assert_eq!(desk.warm(model(1)), None, "there is no room");
        desk.arrive(1, model(1));
        assert_eq!(moves(&mut desk), [Move::End(1)], "whoever asks has precedence");
    }

    proptest! {
        /// Goal: whatever comes, runs begin in their order, a process serves one model and is never
        /// ended under a run, and once runs have ended nobody is left waiting.
        #[test]
        fn the_rule_holds(
            workers in 1usize..4,
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 1..80),
        ) {
            let mut desk = Desk::new(workers);
            let mut wanted = BTreeMap::new();
            let mut models = BTreeMap::new();
            let mut begun = Vec::new();
            let mut working: BTreeMap<RunId, WorkerId> = BTreeMap::new();
            let finish = steps.len();
            let all = steps.into_iter().map(Some).chain(std::iter::repeat_n(None, finish + 1));
            for (at, step) in all.enumerate() {
                match step {
                    Some((name @ 0..3, _)) => {
                        wanted.insert(at as RunId, model(name));
                        desk.arrive(at as RunId, model(name));
                    }
                    Some((_, which)) if !working.is_empty() => {
                        let run = *working.keys().nth(which.index(working.len())).unwrap();
                        working.remove(&run);
                        desk.leave(run);
                    }
                    Some(_) => {}
                    None => {
                        if let Some((run, _)) = working.pop_first() {
                            desk.leave(run);
                        }
                    }
                }
                while let Some(step) = desk.next() {
                    match step {
                        Move::Start(worker, model) => {
                            prop_assert_eq!(models.insert(worker, model), None);
                            prop_assert!(models.len() <= workers);
                        }
                        Move::Give(run, worker) => {
                            prop_assert_eq!(models[&worker], wanted[&run]);
                            begun.push(run);
                            working.insert(run, worker);
                        }
                        Move::End(worker) => {
                            prop_assert!(working.values().all(|of| *of != worker));
                            models.remove(&worker);
                            prop_assert!(desk.gone(worker).is_empty());
                        }
                    }
                }
            }
            let order: Vec<RunId> = wanted.keys().copied().collect();
            prop_assert_eq!(begun, order, "somebody overtook or waits for ever");
        }
    }
}
