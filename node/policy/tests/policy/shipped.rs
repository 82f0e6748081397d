//! What is shipped is in order, and each example's table passes and reaches each of its rules.

use allmend_policy::check::{check, needs_attention};
use allmend_policy::{shipped, table};

#[test]
fn shipped_policies_have_nothing_to_find() {
    let texts = [("charter", shipped::CHARTER), ("institution", shipped::INSTITUTION)];
    let examples = shipped::EXAMPLES.iter().map(|example| (example.name, example.policy));
    for (name, text) in texts.into_iter().chain(examples) {
        let findings = check(text);
        assert!(!needs_attention(&findings), "{name}: {findings:?}");
    }
    for example in &shipped::EXAMPLES {
        assert_eq!(check(example.policy), [], "{}", example.name);
    }
}

#[test]
fn each_example_passes_its_table_and_each_rule_is_tried() {
    for example in &shipped::EXAMPLES {
        let report = table::run(example.table, Some(example.policy)).expect(example.name);
        for case in &report.cases {
            assert_eq!(case.differences, Vec::<String>::new(), "{}: {}", example.name, case.name);
        }
        assert_eq!(report.untested, Vec::<String>::new(), "{}", example.name);
    }
}
