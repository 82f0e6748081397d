//! Policies written from answers: always valid, and as strict as the answers.

use allmend_policy::check::{check, needs_attention};
use allmend_policy::questionnaire::{Answers, Catalogue, PurposeRule, RoomRule, Who, write};
use allmend_policy::table;
use allmend_protocol::ids::InstitutionId;
use allmend_protocol::units::Jurisdiction;
use proptest::prelude::*;

fn catalogue(language: &str) -> Catalogue {
    Catalogue::built_in(language).expect(language)
}

fn answers() -> Answers {
    Answers {
        title: "Dialects \"of\" the Alps\nforbid".to_owned(),
        institutions: vec![InstitutionId::from_bytes([0xaa; 32])],
        jurisdictions: vec![Jurisdiction::new("CH").expect("a code")],
        credentials: vec!["ethics-training".to_owned()],
        model_licences: vec!["Apache-2.0".to_owned(), "MIT".to_owned()],
        ..Answers::default()
    }
}

#[test]
fn the_written_policy_decides_as_answered() {
    let policy = write(&answers(), &catalogue("en")).expect("written");
    let case = |name: &str, rest: &str| format!("[[case]]\nname = \"{name}\"\n{rest}\n");
    let table = [
        "request = \"private\"\n".to_owned(),
        case("waits", "expect = \"pending\"\nobligations = [\"approve:data-steward\"]\nat_release = [\"approve:output\"]"),
        case("runs", "approvals = [{ obligation = \"approve:data-steward\" }]\nexpect = \"allow\""),
        case("institution", "set.principal.institution = \"bb\"\nexpect = \"refuse\"\nreason = \"institutions\""),
        case("purpose", "set.context.purpose = \"sale\"\nexpect = \"refuse\"\nreason = \"consented-purposes\""),
        case("place", "set.context.node.jurisdiction = \"NO\"\nexpect = \"refuse\"\nreason = \"jurisdictions\""),
        case("licence", "set.context.model.licence = \"X\"\nexpect = \"refuse\"\nreason = \"model-licences\""),
        case("credentials", "set.principal.credentials = []\nexpect = \"refuse\"\nreason = \"credentials\""),
        case("room", "set.context.room = { name = \"confined-v1\", strength = 1 }\nexpect = \"refuse\"\nreason = \"sealed-room\""),
        case("privacy", "set.context.privacy.dp = false\nexpect = \"refuse\"\nreason = \"differential-privacy\""),
        case("budget", "set.context.privacy.epsilon_after_milli = 8001\nexpect = \"refuse\"\nreason = \"privacy-budget\""),
        case("subjects", "set.resource.subjects = 99\nexpect = \"refuse\"\nreason = \"enough-subjects\""),
        case("runs out", "set.context.runs = 10\nexpect = \"refuse\"\nreason = \"enough-runs\""),
        case("reading", "action = \"infer\"\nset.context.result.kind = \"text\"\nexpect = \"refuse\"\nreason = \"not-permitted\""),
        case("withdrawn", "request = \"use-adapter\"\nset.resource.withdrawn = true\nexpect = \"refuse\"\nreason = \"withdrawn\""),
        case("release", "set.context.stage = \"release\"\nexpect = \"pending\"\nobligations = [\"approve:output\"]"),
    ]
    .concat();
    let report = table::run(&table, Some(&policy)).expect("a table");
    for case in &report.cases {
        assert_eq!(case.differences, Vec::<String>::new(), "{}", case.name);
    }
    assert_eq!(report.untested, Vec::<String>::new());
}

#[test]
fn languages_differ_in_words_only() {
    let strip = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| {
                !line.starts_with("//")
                    && !line.starts_with("@reason")
                    && !line.starts_with("@change")
            })
            .map(str::to_owned)
            .collect()
    };
    let english = write(&answers(), &catalogue("en")).expect("written");
    let german = write(&answers(), &catalogue("de")).expect("written");
    assert_ne!(english, german);
    assert_eq!(strip(&english), strip(&german));
    assert_eq!(check(&german), []);
}

#[test]
fn answers_travel_as_toml_and_what_is_odd_is_refused() {
    let text = toml::to_string(&answers()).expect("toml");
    assert_eq!(Answers::from_toml(&text).expect("read"), answers());
    for (text, key) in [
        ("", "institutions"),
        ("who = \"everybody\"", "answers"),
        ("colour = \"red\"", "answers"),
        ("who = \"anybody\"\nactions = [\"print\"]", "actions"),
        ("who = \"anybody\"\npurposes = [\"a\\\" || true\"]", "purposes"),
        ("who = \"anybody\"\napprovals = [\"approve:output\"]", "approvals"),
        ("who = \"anybody\"\ndelta_digits = 0", "delta_digits"),
        ("who = \"anybody\"\nepsilon_total_milli = 1", "epsilon_total_milli"),
        ("who = \"anybody\"\nruns_max = 9999999999999", "runs_max"),
    ] {
        assert_eq!(Answers::from_toml(text).expect_err(text).key, key, "{text}");
    }
}

fn some_answers() -> impl Strategy<Value = Answers> {
    let word = "[a-z][a-z0-9.+-]{0,12}";
    let words = move || prop::collection::vec(word, 0..3);
    let actions = prop::sample::subsequence(vec!["finetune", "evaluate", "infer"], 1..=3);
    let approvals = prop::sample::subsequence(
        vec!["approve:data-steward", "approve:ethics", "approve:legal"],
        0..=3,
    );
    let flags = prop::array::uniform5(any::<bool>());
    let numbers = (1u64..5_000, 0u64..5_000, 1u64..=18, 0u64..1_000, 0u64..50);
    (("\\PC{0,20}", words(), words(), words(), 0u8..3), 0u8..3, actions, approvals, flags, numbers)
        .prop_map(
            |(
                (title, purposes, licences, credentials, room),
                purpose_rule,
                actions,
                approvals,
                flags,
                numbers,
            )| {
                let (one, more, delta_digits, subjects_min, runs_max) = numbers;
                let strings = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
                Answers {
                    title,
                    who: if flags[0] { Who::Anybody } else { Who::Institutions },
                    institutions: vec![InstitutionId::from_bytes([7; 32])],
                    purpose_rule: match purpose_rule {
                        0 if !purposes.is_empty() => PurposeRule::Listed,
                        1 => PurposeRule::Any,
                        _ => PurposeRule::Consented,
                    },
                    purposes,
                    actions: strings(actions),
                    jurisdictions: Vec::new(),
                    model_licences: licences,
                    credentials,
                    room: [RoomRule::Process, RoomRule::Confined, RoomRule::Sealed]
                        [usize::from(room)],
                    privacy: flags[1],
                    epsilon_milli: one,
                    epsilon_total_milli: one + more,
                    delta_digits,
                    subjects_min,
                    runs_max,
                    approvals: strings(approvals),
                    first_run_only: flags[2],
                    look_at_output: flags[3],
                    adapters_outlive_withdrawal: flags[4],
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Goal: whatever is answered, the policy is valid and has nothing to find.
    #[test]
    fn written_policies_have_nothing_to_find(answers in some_answers(), german in any::<bool>()) {
        let policy = write(&answers, &catalogue(if german { "de" } else { "en" })).expect("written");
        let findings = check(&policy);
        prop_assert!(!needs_attention(&findings), "{:?}\n{}", findings, policy);
    }
}
