//! Whether a training room is alive, seen from outside: a step that hangs cannot speak for itself, and a
//! device that idles looks like one that works slowly.

use std::time::{Duration, Instant};

use super::pipe::FromTrainer;

/// A room that says nothing for so long hangs, however slow its steps have been: reading a large model
/// and its rows takes minutes on a slow disk.
const SILENCE_MAX: Duration = Duration::from_secs(900);
/// A step may take so many times the median of those before…
const STEP_TIMES_MAX: u32 = 20;
/// …but is never said to hang sooner than this, nor before so many steps have shown their pace.
const STEP_MIN: Duration = Duration::from_secs(20);
const STEPS_SEEN_MIN: usize = 3;
/// Steps whose times are remembered.
const STEPS_KEPT: usize = 64;
/// Over so long a window a room that computes uses its processor for…
const IDLE_WINDOW: Duration = Duration::from_secs(30);
/// …at least a hundredth of the time: less is a device that does nothing.
const BUSY_SHARE_MIN: f64 = 0.01;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Alive,
    /// End it, for this reason.
    End {
        /// `stalled` or `idle`.
        kind: &'static str,
        /// In words.
        why: String,
    },
}

/// Times of one room.
#[derive(Debug)]
pub(super) struct Pulse {
    heard: Instant,
    last_step: Option<Instant>,
    steps: Vec<Duration>,
    /// When the window began, and the processor time used by then.
    window: Option<(Instant, Duration)>,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Pulse {
        Pulse { heard: now, last_step: None, steps: Vec::new(), window: None }
    }

    /// The room has said something.
    pub(super) fn heard(&mut self, now: Instant, frame: &FromTrainer) {
        self.heard = now;
        if let FromTrainer::Step { .. } = frame {
            if let Some(last) = self.last_step {
                if self.steps.len() == STEPS_KEPT {
                    self.steps.remove(0);
                }
                self.steps.push(now.saturating_duration_since(last));
            }
            self.last_step = Some(now);
        } else {
            // What is not a step (reading what was held out, a snapshot) has a pace of its own.
            self.last_step = None;
        }
    }

    /// Judges the silence since, and the processor time of `pid` and its children.
    pub(super) fn look(&mut self, now: Instant, pid: u32) -> Verdict {
        self.judge(now, processor_time(pid))
    }

    fn judge(&mut self, now: Instant, used: Option<Duration>) -> Verdict {
        let silent = now.saturating_duration_since(self.heard);
        let bound = self.bound();
        if silent > bound {
            let why = format!("nothing was heard for {} s", silent.as_secs());
            return Verdict::End { kind: "stalled", why };
        }
        let Some(used) = used else { return Verdict::Alive };
        let Some((began, before)) = self.window else {
            self.window = Some((now, used));
            return Verdict::Alive;
        };
        let wall = now.saturating_duration_since(began);
        if wall < IDLE_WINDOW {
            return Verdict::Alive;
        }
        self.window = Some((now, used));
        let busy = used.saturating_sub(before).as_secs_f64() / wall.as_secs_f64();
        if busy >= BUSY_SHARE_MIN {
            return Verdict::Alive;
        }
        let why = format!("the device was used {:.2} % of {} s", busy * 100.0, wall.as_secs());
        Verdict::End { kind: "idle", why }
    }

    /// The longest silence that means nothing.
    fn bound(&self) -> Duration {
        if self.last_step.is_none() || self.steps.len() < STEPS_SEEN_MIN {
            return SILENCE_MAX;
        }
        let mut sorted = self.steps.clone();
        sorted.sort_unstable();
        let median = sorted[sorted.len() / 2];
        median.saturating_mul(STEP_TIMES_MAX).clamp(STEP_MIN, SILENCE_MAX)
    }
}

/// Processor time that a process and its children have used; none where the system does not say.
fn processor_time(pid: u32) -> Option<Duration> {
    let own = stat_time(pid)?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let of_children =
        children.split_whitespace().filter_map(|child| stat_time(child.parse().ok()?));
    Some(of_children.fold(own, Duration::saturating_add))
}

/// User and system time of one process, from `/proc/PID/stat` (proc(5), fields 14 and 15).
fn stat_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, also spaces and brackets.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let all = ticks()?.checked_add(ticks()?)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_secs_f64(all as f64 / per_second as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> FromTrainer {
        FromTrainer::Step { step: 1, steps: 9, tokens: 1, rows: 1, loss_micro: None }
    }

    #[test]
    fn a_step_that_hangs_is_ended_within_its_bound() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start);
        // Before there is a pace only silence counts.
        assert_eq!(pulse.judge(at(899), None), Verdict::Alive);
        assert!(matches!(pulse.judge(at(901), None), Verdict::End { kind: "stalled", .. }));
        for second in [100, 102, 104, 106] {
            pulse.heard(at(second), &step());
        }
        assert_eq!(pulse.judge(at(106 + 39), None), Verdict::Alive);
        assert!(matches!(pulse.judge(at(106 + 41), None), Verdict::End { kind: "stalled", .. }));
        // A snapshot in between takes its time.
        pulse.heard(at(107), &FromTrainer::Phase { phase: "evaluating".to_owned() });
        assert_eq!(pulse.judge(at(400), None), Verdict::Alive);
    }

    #[test]
    fn a_device_that_does_nothing_is_noticed() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let used = |ms: u64| Some(Duration::from_millis(ms));
        let mut pulse = Pulse::new(start);
        assert_eq!(pulse.judge(at(0), used(0)), Verdict::Alive);
        assert_eq!(pulse.judge(at(29), used(0)), Verdict::Alive);
        assert_eq!(pulse.judge(at(30), used(10_000)), Verdict::Alive);
        assert_eq!(pulse.judge(at(59), used(10_100)), Verdict::Alive);
        assert!(matches!(pulse.judge(at(61), used(10_100)), Verdict::End { kind: "idle", .. }));
    }

    #[test]
    fn this_process_uses_its_processor() {
        let before = processor_time(std::process::id()).expect("proc");
        let mut x = 1u64;
        while processor_time(std::process::id()).expect("proc") <= before {
            x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(7));
        }
        assert!(processor_time(u32::MAX).is_none());
    }
}
