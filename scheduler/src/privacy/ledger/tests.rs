use allmend_protocol::encoding;
use allmend_protocol::units::Decimal;
use proptest::prelude::*;

use super::*;
use crate::privacy::Mechanism;

fn delta() -> Delta {
    Delta::new(Decimal { mantissa: 1, exp10: -5 }).unwrap()
}

fn job(n: u8) -> MessageId {
    MessageId::from_bytes([n; 32])
}

fn requester(n: u8) -> ResearcherId {
    ResearcherId::from_bytes([n; 32])
}

fn lineage(name: &str) -> Lineage {
    Lineage::of_name(name)
}

fn reservation(n: u8, steps: u32, milli_epsilon_max: u64) -> Reservation {
    let budget = Budget { milli_epsilon_max, delta: delta() };
    Reservation {
        job: job(n),
        requester: requester(n % 2),
        steps,
        per_step: Some(Mechanism::new(0.01, 1.0).unwrap().vector()),
        charges: vec![Charge { lineage: lineage("letters"), budget: Some(budget) }],
    }
}

/// Reserves what must be there to be had.
fn take(ledger: &mut PrivacyLedger, wanted: Reservation) -> Option<LedgerRecord> {
    ledger.reserve(wanted).unwrap().record
}

/// Goal: of two jobs that race for the last of a budget exactly one is let through, whoever comes first.
#[test]
fn the_last_of_a_budget_goes_to_one() {
    // 1,000 steps are 2,108 milli-ε alone; two such jobs are more than 2,500.
    for [first, second] in [[1, 2], [2, 1]] {
        let mut ledger = PrivacyLedger::default();
        let record = take(&mut ledger, reservation(first, 1_000, 2_500));
        assert!(matches!(record, Some(LedgerRecord::Reserved(_))));
        let before = ledger.clone();
        let refused = ledger.reserve(reservation(second, 1_000, 2_500)).unwrap_err();
        let Refused::OverBudget { milli_epsilon_job, milli_epsilon_before, .. } = refused else {
            panic!("{refused}");
        };
        assert_eq!((milli_epsilon_job, milli_epsilon_before), (2_108, 2_108));
        assert_eq!(ledger, before);
        // What the first one gives back, the second one may have.
        ledger.commit(job(first), 100).unwrap();
        take(&mut ledger, reservation(second, 800, 2_500));
    }
}

#[test]
fn what_came_before_counts_whoever_asked_and_whichever_version() {
    let mut ledger = PrivacyLedger::default();
    take(&mut ledger, reservation(1, 1_000, 2_200));
    ledger.commit(job(1), 1_000).unwrap();
    let other = reservation(2, 1_000, 2_200);
    assert_ne!(other.requester, reservation(1, 1, 1).requester);
    assert!(matches!(ledger.reserve(other), Err(Refused::OverBudget { .. })));
}

#[test]
fn an_early_end_is_charged_for_the_steps_made() {
    let mut ledger = PrivacyLedger::default();
    let per_step = reservation(1, 1, 1).per_step.unwrap();
    take(&mut ledger, reservation(1, 1_000, 9_000));
    assert_eq!(ledger.revealed(lineage("letters")), per_step.times(1_000));
    assert!(ledger.progress(job(1), 37).is_some());
    assert_eq!(ledger.progress(job(1), 36), None);
    // It claims to have made none, and is charged for those that were noted.
    let record = ledger.refund(job(1)).unwrap();
    assert_eq!(record, LedgerRecord::Settled { job: job(1), steps: 37 });
    assert_eq!(ledger.revealed(lineage("letters")), per_step.times(37));
    assert_eq!(ledger.runs(lineage("letters"), requester(1)), 1);

    // One that never began costs nothing and is no run.
    take(&mut ledger, reservation(3, 1_000, 9_000));
    assert_eq!(ledger.runs(lineage("letters"), requester(1)), 2);
    ledger.refund(job(3)).unwrap();
    assert_eq!(ledger.revealed(lineage("letters")), per_step.times(37));
    assert_eq!(ledger.runs(lineage("letters"), requester(1)), 1);

    // One that made more than it reserved is charged for them.
    take(&mut ledger, reservation(5, 10, 9_000));
    ledger.commit(job(5), 12).unwrap();
    assert_eq!(ledger.revealed(lineage("letters")), per_step.times(49));
    assert_eq!(ledger.commit(job(5), 12), Err(Refused::UnknownJob { job: job(5) }));

    take(&mut ledger, reservation(7, 10, 9_000));
    ledger.commit_all(job(7)).unwrap();
    assert_eq!(ledger.revealed(lineage("letters")), per_step.times(59));
}

#[test]
fn a_mix_is_reserved_whole_or_not_at_all() {
    let mut ledger = PrivacyLedger::default();
    let mut mix = reservation(1, 1_000, 9_000);
    let tight = Budget { milli_epsilon_max: 100, delta: delta() };
    mix.charges.push(Charge { lineage: lineage("ledgers"), budget: Some(tight) });
    mix.charges.sort_by_key(|charge| charge.lineage);
    assert!(matches!(ledger.reserve(mix.clone()), Err(Refused::OverBudget { .. })));
    assert_eq!(ledger, PrivacyLedger::default());
    mix.charges.reverse();
    assert!(matches!(ledger.reserve(mix), Err(Refused::Malformed(_))));
}

#[test]
fn a_budget_demands_privacy_and_without_one_runs_are_counted() {
    let mut ledger = PrivacyLedger::default();
    let mut open = reservation(1, 1_000, 9_000);
    open.per_step = None;
    let refused = ledger.reserve(open.clone()).unwrap_err();
    assert_eq!(refused, Refused::NotPrivate { lineage: lineage("letters") });
    open.charges[0].budget = None;
    take(&mut ledger, open.clone());
    ledger.commit(job(1), 5).unwrap();
    let account = ledger.account(lineage("letters")).unwrap();
    assert_eq!((account.private_runs, account.other_runs), (0, 1));
    assert!(account.settled().is_zero());
    open.steps = 0;
    assert!(matches!(ledger.reserve(open), Err(Refused::Malformed(_))));
}

#[test]
fn the_same_reservation_twice_is_one() {
    let mut ledger = PrivacyLedger::default();
    take(&mut ledger, reservation(1, 1_000, 2_500));
    assert_eq!(take(&mut ledger, reservation(1, 1_000, 2_500)), None);
    let other = ledger.reserve(reservation(1, 999, 2_500));
    assert_eq!(other, Err(Refused::AlreadyReserved { job: job(1) }));
    let quotes = ledger.quote(&reservation(1, 1_000, 2_500), delta());
    assert_eq!((quotes[0].milli_epsilon_before, quotes[0].milli_epsilon_after), (0, 2_108));
}

#[test]
fn damaged_records_are_refused() {
    let mut ledger = PrivacyLedger::default();
    let settled = LedgerRecord::Settled { job: job(1), steps: 3 };
    assert_eq!(ledger.replay(&settled), Err(Refused::UnknownJob { job: job(1) }));
    let reserved = LedgerRecord::Reserved(Box::new(reservation(1, 10, 9_000)));
    ledger.replay(&reserved).unwrap();
    assert!(matches!(ledger.replay(&reserved), Err(Refused::AlreadyReserved { .. })));
    ledger.replay(&LedgerRecord::Progressed { job: job(1), steps: 5 }).unwrap();
    assert!(matches!(ledger.replay(&settled), Err(Refused::Malformed(_))));
}

#[derive(Clone, Debug)]
enum Act {
    Reserve { job: u8, steps: u32, lineages: u8, max: u64 },
    Progress { job: u8, steps: u32 },
    Commit { job: u8, steps: u32 },
    Refund { job: u8 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (0u8..8, 1u32..900, 1u8..4, 500u64..6_000)
            .prop_map(|(job, steps, lineages, max)| Act::Reserve { job, steps, lineages, max }),
        (0u8..8, 0u32..900).prop_map(|(job, steps)| Act::Progress { job, steps }),
        (0u8..8, 0u32..900).prop_map(|(job, steps)| Act::Commit { job, steps }),
        (0u8..8).prop_map(|job| Act::Refund { job }),
    ];
    prop::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: whatever happens in whatever order, records give the ledger again, the sum holds each step
    /// that was made, and no reservation passes the budget that it was checked against.
    #[test]
    fn replay_equals_live(acts in acts()) {
        let mut live = PrivacyLedger::default();
        let mut records = Vec::new();
        let mut made = BTreeMap::<Lineage, u64>::new();
        for act in acts {
            let record = match act {
                Act::Reserve { job, steps, lineages, max } => {
                    let mut wanted = reservation(job, steps, max);
                    let names = ["letters", "ledgers"].into_iter().enumerate();
                    let names = names.filter(|(at, _)| lineages >> at & 1 == 1);
                    let budget = wanted.charges[0].budget;
                    wanted.charges = names
                        .map(|(_, name)| Charge { lineage: lineage(name), budget })
                        .collect();
                    wanted.charges.sort_by_key(|charge| charge.lineage);
                    let before = live.clone();
                    match live.reserve(wanted.clone()) {
                        Ok(reserved) => {
                            for charge in &wanted.charges {
                                let spent = live.revealed(charge.lineage).milli_epsilon(delta());
                                prop_assert!(reserved.record.is_none() || spent <= max);
                            }
                            reserved.record
                        }
                        Err(_) => {
                            prop_assert_eq!(&live, &before);
                            None
                        }
                    }
                }
                Act::Progress { job: n, steps } => live.progress(job(n), steps),
                Act::Commit { job: n, steps } => live.commit(job(n), steps).ok(),
                Act::Refund { job: n } => live.refund(job(n)).ok(),
            };
            prop_assert_eq!(live.broken_invariant(), None);
            if let Some(LedgerRecord::Settled { job, steps }) = &record {
                let reserved = records.iter().rev().find_map(|record| match record {
                    LedgerRecord::Reserved(reserved) if reserved.job == *job => Some(reserved),
                    _ => None,
                });
                for charge in &reserved.unwrap().charges {
                    *made.entry(charge.lineage).or_default() += u64::from(*steps);
                }
            }
            records.extend(record);
        }
        let mut replayed = PrivacyLedger::default();
        for record in &records {
            let bytes = encoding::encode(record);
            let again: LedgerRecord = encoding::decode(&bytes, encoding::BODY_BYTES_MAX).unwrap();
            prop_assert_eq!(record, &again);
            replayed.replay(&again).unwrap();
        }
        prop_assert_eq!(&replayed, &live);
        let per_step = reservation(1, 1, 1).per_step.unwrap();
        for (lineage, steps) in made {
            let settled = live.account(lineage).unwrap().settled().clone();
            prop_assert_eq!(settled, per_step.times(u32::try_from(steps).unwrap()));
        }
    }
}
