//! A fixed team of threads that run one function together, phase by phase.
//!
//! A forward pass has some hundred phases of a few microseconds each. A pool with a queue spends as long on
//! handing work out; here every member runs the same function, takes units of each phase from a counter, and
//! meets the others at barriers. Waiting spins for some tens of microseconds, then sleeps: nodes share their machines,
//! and an idle team costs nothing.
//!
//! It is not a general pool: one function at a time, and units must be independent.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Looks at a gate before a waiter goes to sleep. One look takes 15 to 40 ns on x86, so this is some
/// tens of microseconds: longer than a phase is uneven, shorter than a turn of the operating system's scheduler.
const LOOKS: usize = 1_500;

/// Threads that compute together. The caller of [`Team::run`] is member 0; the others are owned.
#[derive(Debug)]
pub(crate) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// One member's view of the work that the team is doing.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    shared: &'a Shared,
    index: usize,
    /// The barriers passed since the team exists; equal for all members between barriers.
    phase: usize,
}

/// What a sleeping member unwinds with when another one panicked.
struct Abandoned;

#[derive(Debug)]
struct Shared {
    members: usize,
    /// Opens when there is a new job.
    start: Gate,
    /// Opens when the last owned thread is done with the job.
    done: Gate,
    /// Opens when all members have arrived at a barrier.
    barrier: Gate,
    arrived: AtomicUsize,
    /// Owned threads that are still at the job.
    busy: AtomicUsize,
    /// Units taken in phase `p`, at `p % 3`. Three, because the last one to leave a phase clears the counter of the
    /// phase after the next one, and nobody can still be using that.
    taken: [AtomicUsize; 3],
    abandoned: AtomicBool,
    stop: AtomicBool,
    slot: Mutex<Slot>,
}

/// What rarely changes hands.
#[derive(Debug, Default)]
struct Slot {
    job: Option<Job>,
    panic: Option<Panic>,
}

struct Panic(Box<dyn Any + Send>);

impl std::fmt::Debug for Panic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Panic")
    }
}

/// The function that the team runs, its lifetime forgotten.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(&mut Member<'_>) + Sync + 'static));

// SAFETY: the pointee is `Sync`, and `Team::run` keeps it alive until every thread is done with it.
unsafe impl Send for Job {}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Team {
    /// Starts `members - 1` threads; a team has at least the one member that calls.
    ///
    /// # Errors
    /// When the system gives no more threads; those already started have ended then.
    pub(crate) fn new(members: usize) -> io::Result<Self> {
        let members = members.max(1);
        let shared = Arc::new(Shared {
            members,
            start: Gate::default(),
            done: Gate::default(),
            barrier: Gate::default(),
            arrived: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            taken: Default::default(),
            abandoned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            slot: Mutex::default(),
        });
        let mut team = Self { shared, threads: Vec::with_capacity(members - 1) };
        for index in 1..members {
            let shared = Arc::clone(&team.shared);
            let name = format!("engine-{index}");
            let thread = std::thread::Builder::new().name(name);
            team.threads.push(thread.spawn(move || shared.serve(index))?);
        }
        Ok(team)
    }

    /// How many compute together.
    pub(crate) fn members(&self) -> usize {
        self.shared.members
    }

    /// Runs `work` on every member and returns when all of them are done.
    ///
    /// # Panics
    /// With the first panic of any member, after all of them have stopped. The team stays usable.
    pub(crate) fn run<F: Fn(&mut Member<'_>) + Sync>(&mut self, work: F) {
        let shared = &*self.shared;
        if self.threads.is_empty() {
            shared.taken.iter().for_each(|taken| taken.store(0, Ordering::Relaxed));
            return work(&mut Member { shared, index: 0, phase: shared.barrier.seen() });
        }
        let job: &(dyn Fn(&mut Member<'_>) + Sync) = &work;
        // SAFETY: only the lifetime changes. The pointer is used by owned threads between `start` and `done`,
        // and this function does not return, not even by unwinding, before `done` has opened.
        let job: Job = Job(unsafe {
            std::mem::transmute::<
                *const (dyn Fn(&mut Member<'_>) + Sync + '_),
                *const (dyn Fn(&mut Member<'_>) + Sync + 'static),
            >(job)
        });
        shared.slot().job = Some(job);
        shared.taken.iter().for_each(|taken| taken.store(0, Ordering::Relaxed));
        shared.busy.store(self.threads.len(), Ordering::Relaxed);
        let done = shared.done.seen();
        shared.start.open();
        shared.take_part(0, &work);
        shared.done.wait_past(done);
        let mut slot = shared.slot();
        slot.job = None;
        if shared.abandoned.swap(false, Ordering::SeqCst) {
            shared.arrived.store(0, Ordering::SeqCst);
            if let Some(Panic(panic)) = slot.panic.take() {
                drop(slot);
                resume_unwind(panic);
            }
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.start.open();
        for thread in self.threads.drain(..) {
            // A thread's own panics are caught, so there is nothing to learn from the result.
            let _ = thread.join();
        }
    }
}

impl Member<'_> {
    /// From 0; every member has its own.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// How many compute together.
    pub(crate) fn members(&self) -> usize {
        self.shared.members
    }

    /// Takes the next of this phase's `units`, or None when all are taken. There is one counter per phase:
    /// share out one kind of work between two barriers.
    pub(crate) fn take(&self, units: usize) -> Option<usize> {
        // Whoever comes late would otherwise push the counter on and on; it cannot overflow, but why.
        let taken = &self.shared.taken[self.phase % 3];
        if taken.load(Ordering::Relaxed) >= units {
            return None;
        }
        let unit = taken.fetch_add(1, Ordering::Relaxed);
        (unit < units).then_some(unit)
    }

    /// Waits for all members: what any of them wrote before is visible to all of them after.
    ///
    /// # Panics
    /// When another member has panicked.
    pub(crate) fn barrier(&mut self) {
        self.barrier_meanwhile(|| {});
    }

    /// As [`Member::barrier`], and does something useful while it waits: `meanwhile` is called again and again, at most some
    /// thousand times, and should not take longer than a fraction of a microsecond.
    ///
    /// # Panics
    /// As [`Member::barrier`].
    pub(crate) fn barrier_meanwhile(&mut self, meanwhile: impl FnMut()) {
        let shared = self.shared;
        let next = self.phase + 1;
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.members {
            shared.taken[(next + 1) % 3].store(0, Ordering::Relaxed);
            shared.arrived.store(0, Ordering::Relaxed);
            shared.barrier.open();
        } else {
            shared.barrier.wait_past_meanwhile(self.phase, meanwhile);
            if shared.abandoned.load(Ordering::SeqCst) {
                resume_unwind(Box::new(Abandoned));
            }
        }
        self.phase = next;
    }
}

impl Shared {
    /// The life of an owned thread.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.start.wait_past(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let job = self.slot().job;
            if let Some(Job(job)) = job {
                // SAFETY: `Team::run` keeps the function alive until this thread has opened `done`, below.
                self.take_part(index, unsafe { &*job });
            }
            if self.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.done.open();
            }
        }
    }

    fn take_part(&self, index: usize, work: &(dyn Fn(&mut Member<'_>) + Sync)) {
        let mut member = Member { shared: self, index, phase: self.barrier.seen() };
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&mut member))) else { return };
        if !panic.is::<Abandoned>() {
            self.slot().panic.get_or_insert(Panic(panic));
        }
        // First the flag, then the gate: whoever passes the gate sees the flag.
        self.abandoned.store(true, Ordering::SeqCst);
        self.barrier.open();
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        // Nothing that can panic happens under this lock.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something to wait for that happens again and again: a counter, and a bed for those who wait long.
#[derive(Debug, Default)]
struct Gate {
    opened: AtomicUsize,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    /// How often it has been opened.
    fn seen(&self) -> usize {
        self.opened.load(Ordering::Acquire)
    }

    fn open(&self) {
        self.opened.fetch_add(1, Ordering::SeqCst);
        // A sleeper announces itself before it looks for the last time, and this looks for sleepers after it has
        // opened: in the one order of SeqCst operations at least one of the two sees the other.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// Returns when it has been opened more often than `seen` times, and how often.
    fn wait_past(&self, seen: usize) -> usize {
        self.wait_past_meanwhile(seen, || {})
    }

    /// As [`Gate::wait_past`], calling `meanwhile` between looks.
    fn wait_past_meanwhile(&self, seen: usize, mut meanwhile: impl FnMut()) -> usize {
        for _ in 0..LOOKS {
            let opened = self.seen();
            if opened != seen {
                return opened;
            }
            meanwhile();
            std::hint::spin_loop();
        }
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.opened.load(Ordering::SeqCst) == seen {
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.seen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every unit of every phase is done once, and phases do not overlap, for teams of any size,
    /// oversubscribed ones too.
    #[test]
    fn units_are_done_once_and_phases_in_order() {
        for members in [1, 2, 3, 5] {
            let mut team = Team::new(members).unwrap();
            for round in 0..20 {
                let done: Vec<AtomicUsize> = (0..50 * 7).map(|_| AtomicUsize::new(0)).collect();
                team.run(|member| {
                    for phase in 0..50 {
                        while let Some(unit) = member.take(7) {
                            done[phase * 7 + unit].fetch_add(1, Ordering::Relaxed);
                        }
                        member.barrier();
                        let all = done[phase * 7..][..7].iter();
                        assert!(all.into_iter().all(|unit| unit.load(Ordering::Relaxed) == 1));
                    }
                });
                assert!(done.iter().all(|unit| unit.load(Ordering::Relaxed) == 1), "round {round}");
            }
        }
    }

    /// Goal: a panic reaches the caller as it is, whoever panics and wherever the others wait, and the team can
    /// be used afterwards.
    #[test]
    fn a_panic_stops_everybody_and_nobody_forever() {
        let mut team = Team::new(3).unwrap();
        for culprit in 0..3 {
            for _ in 0..20 {
                let run = catch_unwind(AssertUnwindSafe(|| {
                    team.run(|member| {
                        member.barrier();
                        if member.index() == culprit {
                            resume_unwind(Box::new(culprit));
                        }
                        member.barrier();
                        member.barrier();
                    });
                }));
                let panic = run.expect_err("it was passed on");
                assert_eq!(panic.downcast_ref::<usize>(), Some(&culprit));
                let sum = AtomicUsize::new(0);
                team.run(|member| {
                    member.barrier();
                    sum.fetch_add(member.index() + 1, Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), 6);
            }
        }
    }

    /// Goal: waiters that have gone to sleep are woken. Method: nobody opens before somebody sleeps.
    #[test]
    fn sleepers_wake() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| gate.wait_past(0));
            while gate.sleepers.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            gate.open();
            assert_eq!(waiter.join().unwrap(), 1);
        });
    }

    /// Goal: who waits is kept busy, who comes last is not.
    #[test]
    fn waiting_members_do_something_else() {
        let mut team = Team::new(2).unwrap();
        let called = AtomicUsize::new(0);
        team.run(|member| {
            if member.index() == 1 {
                // The last to arrive: it comes only after the other one has been called.
                while called.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                member.barrier_meanwhile(|| unreachable!("nobody is waited for"));
            } else {
                member.barrier_meanwhile(|| {
                    called.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert!(called.into_inner() > 0);
    }

    #[test]
    fn a_team_has_the_members_asked_for() {
        assert_eq!(Team::new(0).unwrap().members(), 1);
        let mut team = Team::new(4).unwrap();
        let seen: [AtomicBool; 4] = Default::default();
        team.run(|member| {
            assert_eq!(member.members(), 4);
            seen[member.index()].store(true, Ordering::Relaxed);
        });
        assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed)));
    }
}
