//! The table of decisions, and decisions on typed requests.

use allmend_policy::{
    Action, Approval, Approvals, AttributeLine, Dataset, Layers, Model, Node, OutputKind,
    Principal, Privacy, Request, Room, Ruling, Run, Sensitivity, Stage, Subject, Verdict, decide,
    explain, shipped, table, valid_approvals,
};
use allmend_protocol::ids::{Digest, InstitutionId, MessageId, NodeId, PublicKey, ResearcherId};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Jurisdiction;

/// How many cases the table must at least have, so that it cannot shrink unseen.
const CASES_MIN: usize = 80;

#[test]
fn the_table_of_decisions() {
    let report = table::run(include_str!("../decisions.toml"), None).expect("a table");
    let failed: Vec<String> = report
        .cases
        .iter()
        .filter(|case| !case.differences.is_empty())
        .map(|case| format!("{}: {}", case.name, case.differences.join("; ")))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(report.cases.len() >= CASES_MIN, "{} cases", report.cases.len());
}

/// Goal: each refusal tells the researcher something to do: no reason without a sentence on what would have to differ.
#[test]
fn every_refusal_says_what_to_do() {
    let report = table::run(include_str!("../decisions.toml"), None).expect("a table");
    for case in report.cases.iter().filter(|case| case.verdict == "refuse") {
        assert!(!case.sentences.is_empty(), "{}", case.name);
        for sentence in &case.sentences {
            let (_, change) = sentence.rsplit_once("; ").unwrap_or_else(|| panic!("{sentence}"));
            assert!(change.split_whitespace().count() >= 3, "{}: {sentence}", case.name);
            assert!(!sentence.contains('\n'), "{}: {sentence}", case.name);
        }
    }
}

fn request() -> Request {
    let swiss = Jurisdiction::new("CH").expect("a code");
    Request {
        action: Action::Finetune,
        principal: Principal {
            key: ResearcherId::from_bytes([0x11; 32]),
            institution: InstitutionId::from_bytes([0xaa; 32]),
            jurisdiction: swiss,
            credentials: vec!["ethics-training".to_owned()],
        },
        dataset: Dataset {
            digest: Digest::from_bytes([0x22; 32]),
            licence: "LicenseRef-consent".to_owned(),
            sensitivity: Sensitivity::Personal,
            consent_purposes: vec!["research".to_owned()],
            languages: vec!["deu_Latn".to_owned()],
            rows: u64::MAX,
            subjects: 400,
            withdrawn: false,
        },
        run: Run {
            purpose: "research".to_owned(),
            project: "dialects".to_owned(),
            stage: Stage::Run,
            model: Model {
                digest: Digest::from_bytes([0x33; 32]),
                licence: Some("Apache-2.0".to_owned()),
            },
            adapter: None,
            node: Node {
                key: NodeId::from_bytes([0x44; 32]),
                institution: InstitutionId::from_bytes([0xbb; 32]),
                jurisdiction: swiss,
            },
            output: OutputKind::Adapter,
            result_jurisdiction: swiss,
            egress: false,
            room: Some(Room::Sealed),
            approvals: Approvals::none(),
            privacy: Some(Privacy {
                epsilon_milli: 1_500,
                epsilon_after_milli: 3_000,
                delta_exponent: -5,
            }),
            rows: 5_000,
            runs: 0,
            now: Timestamp::from_ms(1_793_613_600_000),
        },
    }
}

fn strict() -> Layers<'static> {
    Layers {
        charter: Some(shipped::CHARTER),
        institution: Some(shipped::INSTITUTION),
        dataset: shipped::example("strictly-consented").map(|example| example.policy),
    }
}

fn approval(obligation: &str, ruling: Ruling) -> Approval {
    let Subject { job, policy, dataset, node } = subject();
    Approval {
        job,
        policy,
        dataset,
        node,
        obligation: obligation.to_owned(),
        ruling,
        by: PublicKey::from_bytes([0x88; 32]),
        issued: Timestamp::from_ms(1_793_610_000_000),
        expires: Timestamp::from_ms(1_793_700_000_000),
        runs_max: 1,
        runs_used: 0,
        documents: Vec::new(),
    }
}

fn subject() -> Subject {
    Subject {
        job: MessageId::from_bytes([0x77; 32]),
        policy: strict().digest(),
        dataset: Digest::from_bytes([0x22; 32]),
        node: NodeId::from_bytes([0x44; 32]),
    }
}

#[test]
fn a_typed_request_waits_then_runs_then_is_withdrawn() {
    let mut request = request();
    let decision = decide(&strict(), &request);
    let Verdict::Pending(duties) = &decision.verdict else { panic!("{decision:?}") };
    let names: Vec<&str> = duties.iter().map(|duty| duty.name.as_str()).collect();
    assert_eq!(names, ["approve:data-steward", "approve:ethics"]);

    let given = [
        approval("approve:data-steward", Ruling::Approve),
        approval("approve:ethics", Ruling::Approve),
    ];
    (request.run.approvals, _) = valid_approvals(&given, &subject(), request.run.now);
    let decision = decide(&strict(), &request);
    assert_eq!(decision.verdict, Verdict::Allow);
    assert_eq!(decision.at_release[0].name, "approve:output");

    request.dataset.withdrawn = true;
    let decision = decide(&strict(), &request);
    let Verdict::Refuse(reasons) = &decision.verdict else { panic!("{decision:?}") };
    assert!(reasons.iter().any(|reason| reason.id == "withdrawn"));
}

#[test]
fn the_researcher_hears_why_a_person_said_no() {
    let mut request = request();
    let given =
        [approval("approve:ethics", Ruling::Refuse("the consent form is missing".to_owned()))];
    (request.run.approvals, _) = valid_approvals(&given, &subject(), request.run.now);
    let decision = decide(&strict(), &request);
    let Verdict::Refuse(reasons) = &decision.verdict else { panic!("{decision:?}") };
    assert!(reasons[0].sentence().contains("the consent form is missing"), "{reasons:?}");
}

#[test]
fn what_a_node_does_not_know_refuses() {
    let mut request = request();
    request.run.room = None;
    request.run.model.licence = None;
    let decision = decide(&strict(), &request);
    let Verdict::Refuse(reasons) = &decision.verdict else { panic!("{decision:?}") };
    let texts: Vec<&str> = reasons.iter().map(|reason| reason.text.as_str()).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[0].starts_with("context.model.licence"));
}

#[test]
fn a_decision_lists_the_request_and_who_looked() {
    let decision = decide(&strict(), &request());
    let line = |path: &str| -> &AttributeLine {
        decision.attributes.iter().find(|line| line.path == path).expect("listed")
    };
    assert_eq!(line("context.purpose").value, "research");
    assert_eq!(
        line("context.purpose").read_by,
        ["charter/purpose-stated", "dataset/consented-purposes"]
    );
    assert_eq!(line("context.project").read_by, Vec::<String>::new());
    let text = explain(&decision);
    assert!(text.starts_with("waiting for approval\n  - the dataset's steward"), "{text}");
    assert!(text.contains("context.room.strength"), "{text}");
}

#[test]
fn a_decision_survives_json_and_dag_cbor() {
    for change in [|_: &mut Request| {}, |request: &mut Request| request.dataset.withdrawn = true] {
        let mut request = request();
        change(&mut request);
        let decision = decide(&strict(), &request);
        let json = serde_json::to_string(&decision).expect("json");
        assert_eq!(
            serde_json::from_str::<allmend_policy::Decision>(&json).expect("json"),
            decision
        );
        let bytes = allmend_protocol::encoding::encode(&decision);
        let read: allmend_policy::Decision =
            allmend_protocol::encoding::decode(&bytes, 64 * 1024).expect("cbor");
        assert_eq!(read, decision);
    }
}

#[test]
fn equal_questions_get_equal_answers() {
    assert_eq!(decide(&strict(), &request()), decide(&strict(), &request()));
}
