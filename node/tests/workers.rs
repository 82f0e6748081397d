//! The pool with real worker processes and tiny models. Nothing is timed: a run that must last is
//! endless until something ends it, and whatever must happen is waited for.

mod workers_common;

use allmend_node::worker::pipe::Ended;
use allmend_node::worker::{Pool, RunEvent, Task};
use rustix::process::{Pid, Signal, kill_process};
use workers_common::{ENDLESS, Followed, TinyModel, options, pool, run, workers};

const PROMPTS: [&str; 4] = ["a long meadow", "herds", "Zermatt, 1483: the commons", "x"];

fn kill(pid: Option<u32>) {
    let pid = Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

fn why(ended: &Ended) -> &str {
    match ended {
        Ended::Failed { permanent: false, why } => why,
        other => panic!("not a failure that may pass: {other:?}"),
    }
}

/// Goal: runs of one model are computed together, and each answer is the one that it would have had
/// alone. Method: four endless runs all write although none ends; then four short ones against the
/// same four one after another.
#[tokio::test]
async fn runs_share_a_worker_and_answer_as_if_alone() {
    let (pool, model) = (pool(4, 1), TinyModel::new(1));
    let together: Vec<Followed> = (0..4)
        .map(|slot| Followed::give(&pool, &model, slot, PROMPTS[usize::from(slot)], ENDLESS))
        .collect();
    let mut pids = Vec::new();
    for run in &together {
        let seen = run.until("tokens", |seen| seen.ids.len() > 10).await;
        let (done, total) = seen.prefilled.expect("the prompt's progress was told");
        assert!(0 < done && done <= total, "{done} of {total}");
        pids.push(seen.pid.unwrap());
    }
    let ended = together.iter().filter(|run| run.now().ended.is_some()).count();
    assert_eq!(ended, 0, "they ran at the same time");
    pids.dedup();
    assert_eq!(pids.len(), 1, "one process computes all of them");
    assert_eq!(pool.workers()[0].slots, [0, 1, 2, 3]);
    for run in &together {
        run.cancel.cancel();
        assert!(matches!(run.ended().await, Ended::Cancelled { prompt_tokens: 1.., .. }));
    }

    let short: Vec<Followed> = (0..4)
        .map(|slot| Followed::give(&pool, &model, slot, PROMPTS[usize::from(slot)], 200))
        .collect();
    let mut answers = Vec::new();
    for run in &short {
        let ended = run.ended().await;
        let Ended::Finished { reason, completion_tokens: 200, .. } = ended else {
            panic!("{ended:?}")
        };
        assert_eq!(reason, "length");
        answers.push(run.now().ids);
    }
    answers.iter().enumerate().for_each(|(at, ids)| {
        assert_eq!(ids.len(), 200);
        assert_eq!(answers.iter().position(|other| other == ids), Some(at), "prompts matter");
    });
    for (slot, answer) in (0..).zip(&answers) {
        let alone = Followed::give(&pool, &model, slot, PROMPTS[usize::from(slot)], 200);
        alone.ended().await;
        assert_eq!(&alone.now().ids, answer, "company changed an answer");
    }
}

#[tokio::test]
async fn one_of_many_is_cancelled() {
    let (pool, model) = (pool(3, 1), TinyModel::new(2));
    let runs: Vec<Followed> =
        (0..3).map(|slot| Followed::give(&pool, &model, slot, "herds", ENDLESS)).collect();
    for run in &runs {
        run.until("tokens", |seen| seen.ids.len() > 10).await;
    }
    runs[1].cancel.cancel();
    let ended = runs[1].ended().await;
    assert!(matches!(ended, Ended::Cancelled { prompt_tokens: 5.., .. }), "{ended:?}");
    assert_eq!(pool.workers()[0].slots, [0, 2]);
    runs[0].goes_on().await;
    runs[2].goes_on().await;
    // The slot is free again at once.
    let next = Followed::give(&pool, &model, 1, "x", 5);
    assert!(matches!(next.ended().await, Ended::Finished { completion_tokens: 5, .. }));
}

/// Goal: the death of a worker is a failed attempt of each of its runs, with the reason, and no more:
/// the next run has a new worker. Also when it dies while nobody needs it.
#[tokio::test]
async fn a_killed_worker_fails_its_runs_and_is_replaced() {
    let (pool, model) = (pool(3, 1), TinyModel::new(3));
    let runs: Vec<Followed> =
        (0..3).map(|slot| Followed::give(&pool, &model, slot, "herds", ENDLESS)).collect();
    for run in &runs {
        run.until("tokens", |seen| seen.ids.len() >= 20).await;
    }
    let first = pool.workers()[0].pid;
    kill(first);
    for run in &runs {
        let ended = run.ended().await;
        assert!(why(&ended).contains("the worker process ended (signal: 9"), "{ended:?}");
    }
    let next = Followed::give(&pool, &model, 0, "herds", 20);
    assert!(matches!(next.ended().await, Ended::Finished { .. }));
    let second = next.now().pid;
    assert!(second.is_some() && second != first);
    assert_eq!(next.now().ids, runs[0].now().ids[..20], "the same answer as before");

    kill(second);
    workers(&pool, "the idle worker to be missed", Vec::is_empty).await;
    let next = Followed::give(&pool, &model, 0, "herds", 20);
    assert!(matches!(next.ended().await, Ended::Finished { .. }));
}

/// Goal: a run whose events nobody takes is cancelled by the stated rule, and the others do not notice.
#[tokio::test]
async fn a_slow_reader_costs_its_own_run_only() {
    let (pool, model) = (pool(2, 1), TinyModel::new(4));
    let (slow, mut events) = run(&model, 0, "herds", ENDLESS, 8);
    pool.give(Task::Run(Box::new(slow))).unwrap();
    let other = Followed::give(&pool, &model, 1, "herds", ENDLESS);
    other.goes_on().await;
    workers(&pool, "the slow run to be cancelled", |now| now[0].slots == [1]).await;
    other.goes_on().await;
    // What had been handed over is there without a gap, then the reason.
    let mut indices = Vec::new();
    let ended = loop {
        match events.recv().await.expect("an end") {
            RunEvent::Token { index, .. } => indices.push(index),
            RunEvent::Ended(ended) => break ended,
            RunEvent::Begun { .. } | RunEvent::Prefilled { .. } => {}
        }
    };
    assert!(!indices.is_empty() && indices.iter().copied().eq(0..indices.len() as u32));
    assert!(why(&ended).contains("8 events behind"), "{ended:?}");
    assert!(events.recv().await.is_none());
}

#[tokio::test]
async fn a_run_whose_reader_is_gone_is_cancelled() {
    let (pool, model) = (pool(2, 1), TinyModel::new(5));
    let (gone, events) = run(&model, 0, "herds", ENDLESS, 8);
    pool.give(Task::Run(Box::new(gone))).unwrap();
    let other = Followed::give(&pool, &model, 1, "herds", ENDLESS);
    other.until("tokens", |seen| !seen.ids.is_empty()).await;
    drop(events);
    workers(&pool, "the run to be cancelled", |now| now[0].slots == [1]).await;
    other.goes_on().await;
}

/// Goal: with room for one model, a run for another waits until nothing runs, nobody overtakes it, and
/// then its model takes the place.
#[tokio::test]
async fn another_model_waits_and_takes_the_place() {
    let (pool, one, two) = (pool(4, 1), TinyModel::new(6), TinyModel::new(7));
    let first = Followed::give(&pool, &one, 0, "herds", ENDLESS);
    first.until("tokens", |seen| !seen.ids.is_empty()).await;
    let second = Followed::give(&pool, &two, 1, "herds", 50);
    let third = Followed::give(&pool, &one, 2, "herds", 50);
    let waits = Followed::give(&pool, &two, 3, "herds", 50);
    first.goes_on().await;
    assert_eq!(pool.workers()[0].slots, [0], "the others wait");
    // One that waits can be cancelled as well, and at once.
    waits.cancel.cancel();
    let ended = waits.ended().await;
    assert!(matches!(ended, Ended::Cancelled { prompt_tokens: 0, device_ms: 0 }), "{ended:?}");
    first.goes_on().await;
    first.cancel.cancel();
    first.ended().await;
    assert!(matches!(second.ended().await, Ended::Finished { .. }));
    assert!(matches!(third.ended().await, Ended::Finished { .. }));
    let pids = [&first, &second, &third].map(|run| run.now().pid.unwrap());
    assert!(pids[0] != pids[1] && pids[1] != pids[2] && pids[0] != pids[2], "{pids:?}");
    assert_ne!(second.now().ids, third.now().ids);
    assert_eq!(third.now().ids, first.now().ids[..50]);
}

#[tokio::test]
async fn two_models_may_be_loaded_at_once() {
    let (pool, one, two) = (pool(4, 2), TinyModel::new(8), TinyModel::new(9));
    pool.give(Task::Warm { model: one.digest, path: one.path.clone() }).unwrap();
    workers(&pool, "a warm model", |now| now.len() == 1 && now[0].loaded).await;
    let first = Followed::give(&pool, &one, 0, "herds", ENDLESS);
    let second = Followed::give(&pool, &two, 1, "herds", ENDLESS);
    first.goes_on().await;
    second.goes_on().await;
    first.goes_on().await;
    let now = pool.workers();
    assert_eq!(now.len(), 2, "{now:?}");
    assert!(now.iter().all(|worker| worker.loaded && worker.slots.len() == 1), "{now:?}");
}

/// Goal: a model that does not fit is refused before loading, with numbers, to every run that wants it;
/// one that is no model likewise.
#[tokio::test]
async fn what_cannot_be_loaded_is_refused_with_the_reason() {
    let model = TinyModel::new(10);
    let small = Pool::new(allmend_node::worker::PoolOptions { memory_mib: 64, ..options(2, 1) });
    for slot in 0..2 {
        let ended = Followed::give(&small, &model, slot, "herds", 5).ended().await;
        let why = why(&ended);
        assert!(why.contains("MiB") && why.contains("64"), "{why}");
    }
    workers(&small, "the useless worker to end", Vec::is_empty).await;

    let pool = pool(1, 1);
    let broken = TinyModel::new(11);
    std::fs::write(&broken.path, b"GGUF, says the file").unwrap();
    let ended = Followed::give(&pool, &broken, 0, "herds", 5).ended().await;
    assert!(!why(&ended).contains("process ended"), "{ended:?}");
    let next = Followed::give(&pool, &model, 0, "herds", 5);
    assert!(matches!(next.ended().await, Ended::Finished { .. }));
}

/// Goal: S1 here as well: a slot has one run; and what only one run does wrong ends only that run.
#[tokio::test]
async fn a_slot_has_one_run_and_a_wrong_run_harms_nobody() {
    let (pool, model) = (pool(2, 1), TinyModel::new(12));
    let first = Followed::give(&pool, &model, 0, "herds", ENDLESS);
    let again = Followed::give(&pool, &model, 0, "herds", 5);
    assert!(why(&again.ended().await).contains("slot 0 has a run already"));
    let (beyond, _events) = run(&model, 2, "herds", 5, 8);
    assert!(pool.give(Task::Run(Box::new(beyond))).is_err(), "there is no third slot");
    let long = "h".repeat(101);
    let ended = Followed::give(&pool, &model, 1, &long, 5).ended().await;
    let Ended::Failed { permanent: true, why } = &ended else { panic!("{ended:?}") };
    assert!(why.contains("101 tokens") || why.contains("102 tokens"), "{why}");
    first.goes_on().await;
}

/// Goal: processes end with the pool, also under runs.
#[tokio::test]
async fn workers_end_with_their_pool() {
    let (pool, model) = (pool(1, 1), TinyModel::new(13));
    let run = Followed::give(&pool, &model, 0, "herds", ENDLESS);
    run.until("tokens", |seen| !seen.ids.is_empty()).await;
    let pid = i32::try_from(pool.workers()[0].pid.unwrap()).unwrap();
    drop(pool);
    let gone = async {
        while rustix::process::test_kill_process(Pid::from_raw(pid).unwrap()).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), gone).await.expect("it lives on");
}
