//! Runs on data: approvals, contracts, gate reports, and the receipts under them.

use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::{
    FinetuneWork, Lora, LossOn, MixPart, Optimiser, Privacy, Schedule,
};
use allmend_protocol::ids::{Digest, PublicKey};
use allmend_protocol::job::{JobSpec, Terms};
use allmend_protocol::lease::Lease;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::Outcome;
use allmend_protocol::stewardship::{
    Approval, ApprovalDecision, Contract, GateReport, GateStop, PolicyInForce, PrivacyTerms,
};
use allmend_protocol::units::Decimal;

use super::meaning::{found, twisted};
use super::world::{Twist, World, apply, at, bytes, node, public, sign};
use crate::audit::Fault::{self, Attempts, Equivocation, Inconsistent, Unmatched, Unpermitted};

const STEWARD: u8 = 40;

/// Changes to the bodies of the second attempt's run before they are signed.
#[derive(Default)]
pub(super) struct Data {
    pub(super) approval: Option<fn(&mut Approval)>,
    pub(super) contract: Option<fn(&mut Contract)>,
    pub(super) output: Option<fn(&mut Approval)>,
    pub(super) report: Option<fn(&mut GateReport)>,
}

/// What is logged between a lease and its receipt.
pub(super) struct Run {
    approval: Verified<Approval>,
    pub(super) contract: Verified<Contract>,
    /// For a run that came to an output.
    output: Option<(Verified<Approval>, Verified<GateReport>)>,
}

fn dataset() -> Digest {
    Digest::of(b"dataset")
}

fn adapter() -> Digest {
    Digest::of(b"adapter")
}

fn work() -> FinetuneWork {
    let of = Decimal::new;
    FinetuneWork {
        datasets: vec![MixPart { dataset: dataset(), weight: 1 }],
        lora: Lora { rank: 8, alpha: 16, dropout: of(0, 0), targets: vec!["q_proj".to_owned()] },
        optimiser: Optimiser {
            learning_rate: of(1, -4),
            warmup_steps: 0,
            schedule: Schedule::Constant,
            weight_decay: of(0, 0),
            beta1: of(9, -1),
            beta2: of(999, -3),
            epsilon: of(1, -8),
            clip_norm: of(1, 0),
        },
        steps: 10,
        batch: 1,
        accumulate: 1,
        sequence_tokens: 64,
        loss_on: LossOn::All,
        packing: false,
        validation: of(0, 0),
        seed: 1,
        snapshot_every: 5,
        recompute: false,
        clock: at(10),
        privacy: None,
        plateau_steps: None,
        precision: None,
    }
}

/// The digest of the three policies together.
fn policies() -> Digest {
    let of = |layer: &[u8]| Some(Digest::of(layer));
    allmend_policy::digest_of_layers([
        of(b"charter policy"),
        of(b"institution policy"),
        of(b"dataset policy"),
    ])
}

/// Makes a job one that trains on a dataset, within terms.
pub(super) fn make_finetuning(job: &mut JobSpec) {
    job.work = work().to_work();
    job.terms = Some(Terms {
        dataset: Some(dataset()),
        policy: Some(policies()),
        output: "adapter".to_owned(),
        room: "confined-v1".to_owned(),
    });
}

impl Run {
    pub(super) fn new(
        data: &Data,
        job: &Verified<JobSpec>,
        lease: &Verified<Lease>,
        comes_to_an_output: bool,
    ) -> Run {
        let approval = Approval {
            federation: job.federation,
            signer: PublicKey::from_bytes(public(STEWARD)),
            node: lease.signer,
            job: job.id(),
            dataset: dataset(),
            policy: policies(),
            obligation: "approve:data-steward".to_owned(),
            output: None,
            decision: ApprovalDecision::Approved {},
            runs_max: 1,
            agreement: None,
            ethics: None,
            issued: at(11),
            expires: at(1_000),
        };
        let of_output = Approval { output: Some(adapter()), issued: at(27), ..approval.clone() };
        let approval = sign(STEWARD, apply(data.approval, approval));
        let layer = |layer: &str| PolicyInForce {
            layer: layer.to_owned(),
            digest: Digest::of(format!("{layer} policy").as_bytes()),
        };
        let contract = Contract {
            federation: job.federation,
            signer: lease.signer,
            charter: job.charter,
            job: job.id(),
            lease: lease.id(),
            recipe: Digest::of(&job.work.bytes.0),
            datasets: vec![dataset()],
            policies: ["charter", "dataset", "institution"].map(layer).into(),
            reasons: vec!["members".to_owned()],
            approvals: vec![approval.id()],
            model: job.model,
            model_licence: None,
            output: "adapter".to_owned(),
            room: "sealed-v1".to_owned(),
            room_facts: vec!["network: none".to_owned()],
            privacy: None,
            issued: at(16),
        };
        let signer = if lease.signer == node(2) { 2 } else { 3 };
        let contract = sign(signer, apply(data.contract, contract));
        let output = comes_to_an_output.then(|| {
            let of_output = sign(STEWARD, apply(data.output, of_output));
            let report = GateReport {
                federation: job.federation,
                signer: lease.signer,
                charter: job.charter,
                job: job.id(),
                contract: contract.id(),
                released: Some(adapter()),
                stops: Vec::new(),
                approvals: vec![of_output.id()],
                issued: at(28),
            };
            (of_output, sign(signer, apply(data.report, report)))
        });
        Run { approval, contract, output }
    }

    pub(super) fn leaves(&self) -> Vec<Vec<u8>> {
        let mut leaves = vec![bytes(&self.approval), bytes(&self.contract)];
        if let Some((approval, report)) = &self.output {
            leaves.extend([bytes(approval), bytes(report)]);
        }
        leaves
    }
}

/// Entries of the log of node 3 (and, to the contract, of node 2).
const LEASE: usize = 0;
const APPROVAL: usize = 1;
const CONTRACT: usize = 2;
const OUTPUT_APPROVAL: usize = 3;
const REPORT: usize = 4;
const RECEIPT: usize = 5;

fn world() -> World {
    World::twisted(&Twist { data: Some(Data::default()), ..Twist::default() })
}

fn at_node_3(entry: usize, fault: Fault) -> (&'static str, Option<u64>, Fault) {
    ("node-3", Some(entry as u64), fault)
}

/// The findings of a world whose run is changed.
fn changed(data: Data, expected: &[(usize, Fault)]) {
    let expected: Vec<_> = expected.iter().map(|(at, fault)| at_node_3(*at, *fault)).collect();
    twisted(&Twist { data: Some(data), ..Twist::default() }, &expected);
}

/// Goal: each way to get a contract wrong is found at the contract, and nowhere else.
fn contract_changed(contract: fn(&mut Contract), expected: &[Fault]) {
    let expected: Vec<_> = expected.iter().map(|fault| (CONTRACT, *fault)).collect();
    changed(Data { contract: Some(contract), ..Data::default() }, &expected);
}

#[test]
fn runs_in_order_are_found_in_order() {
    let report = world().audit();
    assert!(report.ok(), "{:#?}", report.findings);
    assert_eq!(report.not_checked, 0);
    let count = |kind: &str| report.kinds[kind];
    // The first attempt was interrupted: it has a contract, and nothing that could be released.
    assert_eq!((count("approval"), count("contract"), count("gate-report")), (3, 2, 1));
}

#[test]
fn a_contract_is_for_its_lease_and_its_job() {
    contract_changed(|c| c.recipe = Digest::of(b"other"), &[Inconsistent]);
    contract_changed(|c| c.model = Digest::of(b"other"), &[Inconsistent]);
    contract_changed(|c| c.issued = at(13), &[Inconsistent]);
    // Datasets that the job does not read: its approval and the terms are for another, too.
    let other = |c: &mut Contract| c.datasets = vec![Digest::of(b"other")];
    let both = [(CONTRACT, Inconsistent), (CONTRACT, Unpermitted), (CONTRACT, Unpermitted)];
    // So is the approval of its output.
    let expected = [both.as_slice(), &[(REPORT, Unpermitted)]].concat();
    changed(Data { contract: Some(other), ..Data::default() }, &expected);
    let private = |c: &mut Contract| {
        c.privacy = Some(PrivacyTerms {
            milli_epsilon_job: 1,
            milli_epsilon_before: 0,
            milli_epsilon_after: 1,
            delta_exp10: 5,
        });
    };
    contract_changed(private, &[Inconsistent]);
}

/// Goal: what a job asks for in privacy is what the contract promises, at a δ no larger.
#[test]
fn a_contract_says_its_privacy() {
    fn job(job: &mut JobSpec) {
        let of = Decimal::new;
        let privacy = Some(Privacy {
            noise_multiplier: of(1, 0),
            clip_norm: of(1, 0),
            sampling_rate: of(1, -2),
            delta: of(3, -6),
        });
        job.work = FinetuneWork { privacy, ..work() }.to_work();
    }
    let at_delta = |exponent: u8| {
        let mut world = World::twisted(&Twist {
            job: Some(job),
            data: Some(Data::default()),
            ..Twist::default()
        });
        for (n, log) in [(2, 1), (3, 2)] {
            let AnyMessage::Contract(contract) = world.message(log + 1, CONTRACT) else { panic!() };
            let mut contract = contract.body().clone();
            contract.privacy = Some(PrivacyTerms {
                milli_epsilon_job: 2_000,
                milli_epsilon_before: 0,
                milli_epsilon_after: 2_000,
                delta_exp10: exponent,
            });
            // What names it follows no more: only the contract itself is looked at here.
            world.leaves[log].truncate(CONTRACT);
            world.leaves[log].push(bytes(&sign(n, contract)));
        }
        let report = world.audit();
        found(&report).iter().filter(|(log, ..)| *log != "node-1").count()
    };
    // 10⁻⁶ is no larger than 3 × 10⁻⁶; 10⁻⁵ is.
    assert_eq!((at_delta(6), at_delta(5)), (0, 2));
    // Without a word about it, both contracts are wrong.
    twisted(
        &Twist { job: Some(job), data: Some(Data::default()), ..Twist::default() },
        &[("node-2", Some(2), Inconsistent), at_node_3(CONTRACT, Inconsistent)],
    );
}

#[test]
fn a_contract_is_within_the_terms() {
    contract_changed(|c| c.output = "rows".to_owned(), &[Unpermitted]);
    contract_changed(|c| c.room = "process-v1".to_owned(), &[Unpermitted]);
    contract_changed(|c| c.room = "cellar-v1".to_owned(), &[Unpermitted]);
    contract_changed(|c| c.room = "confined-v1".to_owned(), &[]);
    // Another policy is outside of the terms, and not the one under which run and output were approved.
    let other = |c: &mut Contract| c.policies[1].digest = Digest::of(b"other");
    let expected = [(CONTRACT, Unpermitted), (CONTRACT, Unpermitted), (REPORT, Unpermitted)];
    changed(Data { contract: Some(other), ..Data::default() }, &expected);
    let none = |job: &mut JobSpec| job.terms = None;
    twisted(
        &Twist { job: Some(none), data: Some(Data::default()), ..Twist::default() },
        &[("node-2", Some(2), Unpermitted), at_node_3(CONTRACT, Unpermitted)],
    );
}

#[test]
fn approvals_are_for_exactly_this_run() {
    let wrong: [fn(&mut Approval); 8] = [
        |a| a.decision = ApprovalDecision::Refused { why: "no".to_owned() },
        |a| a.job = allmend_protocol::ids::MessageId::from_bytes([9; 32]),
        |a| a.dataset = Digest::of(b"other"),
        |a| a.policy = Digest::of(b"other"),
        |a| a.output = Some(adapter()),
        // A moment of difference between two clocks is no fault, more is.
        |a| a.issued = at(19),
        |a| a.expires = at(16),
        |a| a.expires = at(12),
    ];
    for (n, approval) in wrong.into_iter().enumerate() {
        // One that is refused, or of an output, is besides a refusal or of use elsewhere.
        let expected = vec![(CONTRACT, Unpermitted); if n == 0 { 2 } else { 1 }];
        changed(Data { approval: Some(approval), ..Data::default() }, &expected);
    }
    let skewed = Data { approval: Some(|a| a.issued = at(18)), ..Data::default() };
    changed(skewed, &[]);
}

#[test]
fn an_approval_lies_before_what_rests_on_it() {
    let mut world = world();
    world.leaves[2].swap(APPROVAL, CONTRACT);
    assert_eq!(found(&world.audit()), [at_node_3(APPROVAL, Unpermitted)]);
    world.leaves[2].remove(CONTRACT);
    assert_eq!(found(&world.audit()), [at_node_3(APPROVAL, Unmatched)]);
}

/// Goal: nobody keeps an approval in a log where nobody looks for it.
#[test]
fn an_approval_for_another_node_has_no_place_here() {
    let elsewhere = Data { approval: Some(|a| a.node = node(1)), ..Data::default() };
    changed(elsewhere, &[(APPROVAL, Fault::Misplaced), (CONTRACT, Unmatched)]);
}

#[test]
fn a_refusal_stands() {
    let mut world = world();
    let AnyMessage::Approval(approval) = world.message(3, APPROVAL) else { panic!() };
    let mut refusal = approval.body().clone();
    refusal.decision = ApprovalDecision::Refused { why: "not this purpose".to_owned() };
    let refusal = bytes(&sign(STEWARD, refusal));
    let mut before = world.leaves[2].clone();
    before.insert(APPROVAL, refusal.clone());
    // After the contract it stops what runs, and is no fault of what was signed before.
    world.leaves[2].insert(CONTRACT + 1, refusal);
    assert!(world.audit().ok());
    world.leaves[2] = before;
    assert_eq!(found(&world.audit()), [at_node_3(CONTRACT + 1, Unpermitted)]);
}

/// Goal: an approval of one run covers one. Method: a third attempt, under the second's approval.
#[test]
fn an_approval_covers_as_many_runs_as_it_says() {
    let third = |runs_max: fn(&mut Approval)| {
        let data = Data { approval: Some(runs_max), ..Data::default() };
        let mut world = World::twisted(&Twist { data: Some(data), ..Twist::default() });
        let (AnyMessage::Lease(lease), AnyMessage::Contract(contract)) =
            (world.message(3, LEASE), world.message(3, CONTRACT))
        else {
            panic!()
        };
        let mut lease = lease.body().clone();
        (lease.attempt, lease.fence.sequence) = (3, 2);
        let lease = sign(3, lease);
        let mut contract = contract.body().clone();
        contract.lease = lease.id();
        world.leaves[2].extend([bytes(&lease), bytes(&sign(3, contract))]);
        world.audit()
    };
    let report = third(|approval| approval.runs_max = 2);
    // The assign names another attempt, which is a matter of the lease alone.
    assert_eq!(found(&report), [at_node_3(RECEIPT + 1, Inconsistent)]);
    let report = third(|_| {});
    let expected = [at_node_3(RECEIPT + 1, Inconsistent), at_node_3(RECEIPT + 2, Unpermitted)];
    assert_eq!(found(&report), expected);
    assert!(!found(&report).iter().any(|(.., fault)| *fault == Attempts));
}

#[test]
fn a_lease_has_one_contract_and_a_contract_one_report() {
    let mut world = world();
    let AnyMessage::Contract(contract) = world.message(3, CONTRACT) else { panic!() };
    let mut second = contract.body().clone();
    second.room = "confined-v1".to_owned();
    second.approvals.clear();
    world.leaves[2].insert(CONTRACT + 1, bytes(&sign(3, second)));
    assert_eq!(found(&world.audit()), [at_node_3(CONTRACT + 1, Equivocation)]);

    let mut world = self::world();
    let AnyMessage::GateReport(report) = world.message(3, REPORT) else { panic!() };
    let mut stopped = report.body().clone();
    stopped.released = None;
    stopped.stops = vec![GateStop { rule: "norm".to_owned(), text: "too large".to_owned() }];
    world.leaves[2].insert(REPORT + 1, bytes(&sign(3, stopped)));
    assert_eq!(found(&world.audit()), [at_node_3(REPORT + 1, Equivocation)]);
}

/// Goal: another node cannot make somebody's contract look like the second one.
#[test]
fn a_strangers_contract_for_a_lease_is_the_strangers_fault() {
    let mut world = world();
    let AnyMessage::Contract(contract) = world.message(3, CONTRACT) else { panic!() };
    let mut foreign = contract.body().clone();
    foreign.signer = node(2);
    foreign.approvals.clear();
    world.leaves[1].push(bytes(&sign(2, foreign)));
    assert_eq!(found(&world.audit()), [("node-2", Some(4), Inconsistent)]);
}

#[test]
fn nothing_is_released_without_the_gate() {
    // The log ends with a finished receipt; what the gate said is not there, or comes too late.
    let mut world = world();
    world.leaves[2].remove(REPORT);
    assert_eq!(found(&world.audit()), [at_node_3(RECEIPT - 1, Unpermitted)]);
    let mut world = self::world();
    world.leaves[2].swap(REPORT, RECEIPT);
    let expected = [at_node_3(REPORT, Unpermitted), at_node_3(RECEIPT, Inconsistent)];
    assert_eq!(found(&world.audit()), expected);
    let stopped = |report: &mut GateReport| {
        report.released = None;
        report.approvals.clear();
        report.stops = vec![GateStop { rule: "norm".to_owned(), text: "too large".to_owned() }];
    };
    changed(Data { report: Some(stopped), ..Data::default() }, &[(RECEIPT, Unpermitted)]);
    // A run that the gate stopped is a failed one.
    let twist = Twist {
        data: Some(Data { report: Some(stopped), ..Data::default() }),
        receipt: Some(|receipt| {
            let why = "the output gate released nothing".to_owned();
            receipt.outcome = Outcome::Failed { permanent: true, why };
        }),
        ..Twist::default()
    };
    twisted(&twist, &[]);
}

#[test]
fn a_report_is_for_its_contract_and_its_approvals_for_the_adapter() {
    let other = |report: &mut GateReport| report.released = Some(Digest::of(b"other"));
    changed(Data { report: Some(other), ..Data::default() }, &[(REPORT, Unpermitted)]);
    let early = |report: &mut GateReport| report.issued = at(15);
    let expected = [(REPORT, Inconsistent), (REPORT, Unpermitted)];
    changed(Data { report: Some(early), ..Data::default() }, &expected);
    let expired = |approval: &mut Approval| approval.expires = at(28);
    changed(Data { output: Some(expired), ..Data::default() }, &[(REPORT, Unpermitted)]);
    let of_run = |approval: &mut Approval| approval.output = None;
    changed(Data { output: Some(of_run), ..Data::default() }, &[(REPORT, Unpermitted)]);
    let mut world = world();
    world.leaves[2].remove(OUTPUT_APPROVAL);
    assert_eq!(found(&world.audit()), [at_node_3(REPORT - 1, Unmatched)]);
    let mut world = self::world();
    world.leaves[2].swap(CONTRACT, REPORT);
    let findings = world.audit();
    assert!(found(&findings).contains(&at_node_3(CONTRACT, Inconsistent)), "{findings:#?}");
}

#[test]
fn a_receipt_names_its_contract() {
    let silent = Twist {
        data: Some(Data::default()),
        receipt: Some(|receipt| receipt.contract = None),
        ..Twist::default()
    };
    twisted(&silent, &[at_node_3(RECEIPT, Inconsistent)]);
    // Nobody trains without a contract; who did nothing needs none.
    let mut world = World::twisted(&silent);
    world.leaves[2].drain(APPROVAL..RECEIPT);
    assert_eq!(found(&world.audit()), [at_node_3(1, Unpermitted)]);
    let idle = Twist {
        receipt: Some(|receipt| {
            receipt.contract = None;
            receipt.usage = Default::default();
            receipt.outcome = Outcome::Failed { permanent: false, why: "no room".to_owned() };
        }),
        settlement: Some(|settlement| {
            let idle = settlement.shares.iter_mut().find(|share| share.node == node(3)).unwrap();
            idle.cost = Default::default();
            settlement.total = allmend_protocol::units::Credits::from_micro(50);
            settlement.refunded = allmend_protocol::units::Credits::from_micro(950);
        }),
        ..silent
    };
    let mut world = World::twisted(&idle);
    world.leaves[2].drain(APPROVAL..RECEIPT);
    let report = world.audit();
    assert!(report.ok(), "{:#?}", report.findings);
    // A contract that is nowhere.
    let mut world = self::world();
    world.leaves[2].drain(APPROVAL..RECEIPT);
    assert_eq!(found(&world.audit()), [at_node_3(1, Unmatched)]);
    // One that comes after.
    let mut world = self::world();
    let contract = world.leaves[2].remove(CONTRACT);
    world.leaves[2].push(contract);
    let report = world.audit();
    for place in [(RECEIPT - 1, Inconsistent), (RECEIPT, Inconsistent)] {
        assert!(found(&report).contains(&at_node_3(place.0, place.1)), "{report:#?}");
    }
}

/// Goal: a log that was not given is said, and is no finding.
#[test]
fn without_the_home_nodes_log_a_contract_is_not_checked_against_its_job() {
    let written = world().write();
    let report = crate::audit::verify_dirs(&written.dirs()[1..]);
    assert!(report.ok(), "{:#?}", report.findings);
    assert_eq!((report.missing_logs.len(), report.not_checked), (0, 4));
}
