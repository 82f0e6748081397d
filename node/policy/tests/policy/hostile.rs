//! Texts that are made to hurt: the answer is a finding, and a refusal, on a small stack.

use allmend_policy::check::{Severity, check};
use allmend_policy::{Layers, Verdict, decide_document, shipped};
use proptest::prelude::*;

/// As much stack as a thread of the runtime has.
const STACK_BYTES: usize = 2 * 1024 * 1024;

fn on_a_small_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(work)
        .expect("a thread")
        .join()
        .expect("no panic and no overflow")
}

fn condition(body: &str) -> String {
    format!("@id(\"x\") @reason(\"x\") forbid (principal, action, resource) when {{ {body} }};")
}

#[test]
fn deep_and_long_texts_are_findings() {
    let texts = [
        "(".repeat(60_000),
        condition(&format!("{}true{}", "(".repeat(5_000), ")".repeat(5_000))),
        condition(&format!("{}true", "!".repeat(5_000))),
        condition(&format!("true{}", " && true".repeat(5_000))),
        condition(&format!("context{}", ".model".repeat(5_000))),
        condition(&format!("1{} == 1", " + 1".repeat(5_000))),
        condition(&format!("{}true{}", "if true then ".repeat(2_000), " else false".repeat(2_000))),
        condition(&format!("{}1{} == [1]", "[".repeat(5_000), "]".repeat(5_000))),
        condition(&format!("{{{}}} has a", "a: {".repeat(5_000))),
        "@".repeat(100_000),
        "\"".repeat(100_001),
        "permit (principal, action, resource);".repeat(3_000),
        "x".repeat(1_000_000),
        "\u{202e}permit (principal, action, resource);".to_owned(),
        "\0".repeat(1_000),
    ];
    on_a_small_stack(move || {
        for text in texts {
            let findings = check(&text);
            let shown: String = text.chars().take(60).collect();
            assert!(
                findings.iter().any(|f| f.severity == Severity::Error),
                "{shown}: {findings:?}"
            );
            let layers =
                Layers { charter: Some(&text), institution: Some(&text), dataset: Some(&text) };
            let decision = decide_document(&layers, &serde_json::Value::Null);
            assert!(matches!(decision.verdict, Verdict::Refuse(_)), "{shown}");
        }
    });
}

/// Goal: the largest policy within the bounds is judged on a small stack, and if Cedar gives up on it, it refuses.
#[test]
fn the_largest_allowed_policies_are_judged() {
    let bodies = [
        format!("true{}", " && true".repeat(120)),
        format!("true{}", " || context.egress".repeat(80)),
        format!("1{} > 0", " + 1".repeat(245)),
        format!("{}true{}", "(".repeat(30), ")".repeat(30)),
        format!("{}true{}", "if context.egress then false else (".repeat(30), ")".repeat(30)),
        format!(
            "[{}].contains(context.purpose)",
            "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\", ".repeat(3_000) + "\"x\""
        ),
    ];
    let texts: Vec<String> = bodies
        .iter()
        .map(|body| {
            format!(
                "@id(\"all\") permit (principal, action, resource);
                 @id(\"x\") @reason(\"x\") forbid (principal, action, resource) unless {{ {body} }};"
            )
        })
        .collect();
    let table = texts
        .iter()
        .enumerate()
        .map(|(n, _)| format!("t{n}"))
        .fold(String::new(), |table, name| {
            table + &format!("[[case]]\nname = \"{name}\"\nlayers.dataset = \"{name}\"\nexpect = \"refuse\"\n")
        });
    on_a_small_stack(move || {
        let mut head = String::from("[texts]\n");
        for (n, text) in texts.iter().enumerate() {
            let findings = check(text);
            assert!(findings.iter().all(|f| f.severity < Severity::Error), "{n}: {findings:?}");
            head += &format!("t{n} = '''{text}'''\n");
        }
        let report = allmend_policy::table::run(&(head + &table), None).expect("a table");
        // All but the last are true, so the rule does not forbid; the last one is false, so it does.
        let verdicts: Vec<&str> = report.cases.iter().map(|case| case.verdict).collect();
        assert_eq!(verdicts, ["allow", "allow", "allow", "allow", "allow", "refuse"], "{report:?}");
    });
}

#[test]
fn requests_that_are_no_requests_are_refused() {
    let layers = Layers {
        charter: Some(shipped::CHARTER),
        institution: Some(shipped::INSTITUTION),
        dataset: Some("@id(\"no-further-restriction\") permit (principal, action, resource);"),
    };
    let mut deep = serde_json::json!(1);
    for _ in 0..100 {
        deep = serde_json::json!({ "context": deep });
    }
    let many: serde_json::Map<String, serde_json::Value> =
        (0..10_000).map(|n| (format!("k{n}"), serde_json::json!(n))).collect();
    for document in [serde_json::Value::Null, serde_json::json!([]), deep, many.into()] {
        let decision = decide_document(&layers, &document);
        let Verdict::Refuse(reasons) = decision.verdict else { panic!("{document}") };
        assert!(!reasons.is_empty() && reasons.len() <= 32, "{}", reasons.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Goal: no text panics, and one with an error never allows. Method: shipped policies with bytes changed.
    #[test]
    fn damaged_policies_never_panic(place in 0usize..4000, with in "[ -~\n\"(){};@]{0,3}", cut in 0usize..40) {
        let text = shipped::EXAMPLES[place % 3].policy;
        let start = place % text.len();
        let end = (start + cut).min(text.len());
        if text.is_char_boundary(start) && text.is_char_boundary(end) {
            let damaged = format!("{}{with}{}", &text[..start], &text[end..]);
            let findings = check(&damaged);
            let layers = Layers { charter: Some(&damaged), institution: Some(&damaged), dataset: Some(&damaged) };
            let allowed = decide_document(&layers, &serde_json::Value::Null).verdict.is_allow();
            prop_assert!(!allowed);
            prop_assert!(findings.iter().all(|f| f.line.is_none_or(|line| line >= 1)));
        }
    }

    #[test]
    fn any_text_is_checked(text in "\\PC{0,200}") {
        let _findings = check(&text);
    }
}
