//! The whole gate: numbers against limits, records, and what leaves.

mod support;

use allmend_gate::{
    Bundle, MEASURES_BYTES_MAX, METRICS_BYTES_MAX, Measures, Metrics, Passed, PeftConfig,
    Precision, Request, Rule, Stop, Terms, Worked, milli, pass,
};
use allmend_protocol::encoding::{decode, encode};
use allmend_protocol::ids::Digest;
use proptest::prelude::*;
use support::{adapter, card, config, declared, measures, metrics, privacy, terms};

struct Run {
    adapter: Vec<u8>,
    metrics: Vec<u8>,
    measures: Measures,
    terms: Vec<Terms>,
    private: bool,
}

impl Run {
    fn good() -> Run {
        Run {
            adapter: adapter(),
            metrics: metrics().encode(),
            measures: measures(),
            terms: vec![terms()],
            private: false,
        }
    }

    fn pass(&self) -> Result<Passed, Vec<Stop>> {
        let mut card = card();
        card.privacy = self.private.then(privacy);
        let worked = Worked {
            adapter: self.adapter.as_slice(),
            adapter_len: self.adapter.len() as u64,
            metrics: &self.metrics,
            measures: &self.measures.encode(),
        };
        let (declared, config) = (declared(), config());
        let request =
            Request { declared: &declared, config: &config, terms: &self.terms, card: &card };
        pass(worked, &request)
    }

    fn rules(&self) -> Vec<Rule> {
        self.pass().unwrap_err().iter().map(|stop| stop.rule).collect()
    }
}

/// What makes a good run a bad one.
type Change = &'static dyn Fn(&mut Run);

fn with(change: impl Fn(&mut Run)) -> Run {
    let mut run = Run::good();
    change(&mut run);
    run
}

#[test]
fn a_good_run_is_released() {
    let passed = Run::good().pass().unwrap();
    let id = passed.id();
    assert!(!passed.waits());
    let released = passed.release(&[]).unwrap();
    assert_eq!((released.id, Digest::of(&released.bytes)), (id, id));
    assert_eq!(released.metrics, metrics());
    let bundle = Bundle::read(&released.bytes).unwrap();
    assert_eq!(bundle.to_bytes(), released.bytes);
    assert_eq!(bundle.id(), id);
    let expected =
        PeftConfig { target_modules: vec!["q_proj".to_owned(), "v_proj".to_owned()], ..config() };
    assert_eq!(bundle.config(), &expected);
    // Equal runs give equal bytes.
    assert_eq!(Run::good().pass().unwrap().id(), id);
}

#[test]
fn each_limit_has_its_reason() {
    let cases: [(Rule, Change); 13] = [
        (Rule::RowsMin, &|run| run.terms[0].facts.rows = 9),
        (Rule::SubjectsMin, &|run| run.terms[0].facts.subjects = 4),
        (Rule::RunsCap, &|run| {
            run.terms[0].rules.runs_max = Some(3);
            run.terms[0].facts.runs = 4;
        }),
        (Rule::NotPrivate, &|run| run.terms[0].rules.privacy_required = true),
        (Rule::Extraction, &|run| run.measures.extraction.extracted_adapter = 3),
        (Rule::LongestRun, &|run| run.terms[0].rules.memorisation.longest_run_tokens_max = Some(8)),
        (Rule::Exposure, &|run| run.measures.exposure.max_milli_bits = 9_001),
        (Rule::Exposure, &|run| {
            run.measures.exposure.max_milli_bits = 4_500;
            run.measures.exposure.mean_milli_bits = 4_001;
        }),
        (Rule::Measures, &|run| run.measures.extraction.rows_tested = 31),
        (Rule::Measures, &|run| run.measures.exposure.canaries = 3),
        (Rule::Measures, &|run| run.measures.exposure.alternatives = 511),
        (Rule::Metrics, &|run| run.metrics.push(0)),
        (Rule::AdapterTruncated, &|run| run.adapter.truncate(5_000)),
    ];
    for (rule, change) in cases {
        assert_eq!(with(change).rules(), [rule]);
    }
    // At the limit is not beyond it.
    assert!(with(|run| run.measures.exposure.max_milli_bits = 9_000).pass().is_ok());
    assert!(
        with(|run| {
            run.measures.extraction.rows_tested = 100;
            run.measures.extraction.extracted_adapter = 3;
        })
        .pass()
        .is_ok()
    );
    // What the base model knows anyway is no leak.
    assert!(
        with(|run| {
            run.measures.extraction.extracted_base = 60;
            run.measures.extraction.extracted_adapter = 50;
        })
        .pass()
        .is_ok()
    );
    // A dataset of few rows is tested whole.
    assert!(
        with(|run| {
            run.terms[0].facts.rows = 12;
            run.measures.extraction.rows_tested = 12;
        })
        .pass()
        .is_ok()
    );
}

#[test]
fn all_reasons_are_told_at_once() {
    let run = with(|run| {
        run.adapter.clear();
        run.metrics.clear();
        run.terms[0].facts.rows = 0;
        run.measures.exposure.mean_milli_bits = 4_100;
    });
    let expected = [Rule::AdapterTruncated, Rule::Metrics, Rule::RowsMin, Rule::Exposure];
    assert_eq!(run.rules(), expected);
}

#[test]
fn the_strictest_dataset_counts() {
    let mut second = terms();
    second.rules.adapter.bytes_max = 100;
    second.facts.subjects = 0;
    let run = with(|run| run.terms.push(second));
    assert_eq!(run.rules(), [Rule::AdapterTooLarge, Rule::SubjectsMin]);
    let mut second = terms();
    second.rules.precision = Precision::AsTrained;
    let exact = with(|run| run.terms = vec![second]).pass().unwrap().release(&[]).unwrap();
    let both = with(|run| run.terms.push(second)).pass().unwrap().release(&[]).unwrap();
    let bytes = |bytes: &[u8]| Bundle::read(bytes).unwrap().safetensors().to_vec();
    assert_eq!(bytes(&exact.bytes), adapter());
    assert!(bytes(&both.bytes).len() < adapter().len());
}

/// Goal: a released output is the one that a person has seen.
#[test]
fn a_second_approval_names_the_output() {
    let run = with(|run| run.terms[0].rules.second_approval = true);
    let passed = run.pass().unwrap();
    assert!(passed.waits());
    let (id, other) = (passed.id(), Digest::of(b"another adapter"));
    let held = passed.release(&[]).unwrap_err();
    let held = held.release(&[other]).unwrap_err();
    assert_eq!(held.release(&[other, id]).unwrap().id, id);
}

#[test]
fn losses_are_no_part_of_a_private_output() {
    let private = |run: &mut Run| {
        run.private = true;
        run.terms[0].facts.private = true;
        run.terms[0].rules.privacy_required = true;
    };
    let passed = with(private).pass().unwrap();
    assert_eq!(passed.metrics(), &metrics().withheld());
    assert!(passed.card().contains("| Losses | withheld |") && !passed.card().contains("15.250"));
    let told = with(|run| {
        private(run);
        run.terms[0].rules.metrics_beside_privacy = true;
    });
    assert_eq!(told.pass().unwrap().metrics(), &metrics());
    // Limits of memorisation may differ.
    let strict = with(|run| {
        private(run);
        run.terms[0].rules.memorisation_private.exposure_mean_max_milli_bits = 1_000;
    });
    assert_eq!(strict.rules(), [Rule::Exposure]);
}

#[test]
fn the_card_says_what_is_private() {
    let card = Run::good().pass().unwrap().card().to_owned();
    assert!(card.contains("**Not private.**") && card.contains("- not-private\n"), "{card}");
    assert!(card.contains(r"| Dataset | Letters, 1900 \| 1910 |"), "{card}");
    for part in ["deu\\_Latn", "15.250", "0.0002, cosine", "Apache-2.0", "Training rows begun | 64"]
    {
        assert!(card.contains(part), "{part} is not in {card}");
    }
    let private = with(|run| {
        run.private = true;
        run.terms[0].facts.private = true;
    });
    let card = private.pass().unwrap().card().to_owned();
    assert!(!card.contains("Not private") && card.contains("(1.973, 0.000001)-private"), "{card}");
    assert!(card.contains("sampling rate 0.015625") && card.contains("ε = 2.500"), "{card}");
}

#[test]
fn records_are_strict() {
    assert_eq!(Metrics::decode(&metrics().encode()), Ok(metrics()));
    assert_eq!(Measures::decode(&measures().encode()), Ok(measures()));
    let mut long = metrics();
    long.epoch_loss_milli_nats = Some(vec![1; 65]);
    assert!(Metrics::decode(&long.encode()).is_err());
    let mut huge = metrics();
    huge.epoch_loss_milli_nats = Some(vec![u64::MAX]);
    assert!(Metrics::decode(&huge.encode()).is_err());
    let mut largest = metrics();
    largest.epoch_loss_milli_nats = Some(vec![milli(f64::NAN); 64]);
    assert!(largest.encode().len() <= METRICS_BYTES_MAX);
    assert_eq!(Metrics::decode(&largest.encode()), Ok(largest));
    assert!(measures().encode().len() <= MEASURES_BYTES_MAX);
    assert_eq!((milli(1.2346), milli(-1.0), milli(0.0)), (1_235, 0, 0));
    assert_eq!(milli(f64::INFINITY), milli(f64::NAN));

    // A text in a record, and one in place of a number.
    #[derive(serde::Serialize)]
    struct Smuggler {
        #[serde(flatten)]
        metrics: Metrics,
        note: &'static str,
    }
    let smuggled = encode(&Smuggler { metrics: metrics(), note: "row 17" });
    let stop = Metrics::decode(&smuggled).unwrap_err();
    assert!(stop.rule == Rule::Metrics && !stop.text.contains("17"), "{stop}");
    let contradictions: [&dyn Fn(&mut Measures); 4] = [
        &|measures| measures.extraction.extracted_base = 65,
        &|measures| measures.extraction.extracted_adapter = 65,
        &|measures| measures.exposure.mean_milli_bits = 5_000,
        &|measures| measures.exposure.max_milli_bits = 12_001,
    ];
    for change in contradictions {
        let mut changed = measures();
        change(&mut changed);
        assert_eq!(Measures::decode(&changed.encode()).unwrap_err().rule, Rule::Measures);
    }
}

#[test]
fn stops_are_for_the_log() {
    for stop in with(|run| run.adapter.clear()).pass().unwrap_err() {
        assert_eq!(decode::<Stop>(&encode(&stop), 1_024), Ok(stop.clone()));
        assert_eq!(stop.rule.id(), "adapter-truncated");
    }
    let mut ids: Vec<&str> = Rule::ALL.iter().map(|rule| rule.id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), Rule::ALL.len());
    // Every rule stands on its page.
    let page = include_str!("../../../specs/gate.md");
    for rule in Rule::ALL {
        let row = format!("\n| `{}` | ", rule.id());
        assert!(page.contains(&row), "{} is not in specs/gate.md", rule.id());
    }
}

#[test]
fn a_bundle_unpacks_to_what_peft_reads() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = Run::good().pass().unwrap().release(&[]).unwrap().bytes;
    let bundle = Bundle::read(&bytes).unwrap();
    let place = folder.path().join("adapter");
    bundle.unpack(&place).unwrap();
    let read = |name: &str| std::fs::read(place.join(name)).unwrap();
    assert_eq!(read("adapter_model.safetensors"), bundle.safetensors());
    assert_eq!(read("README.md"), bundle.card().as_bytes());
    let config = String::from_utf8(read("adapter_config.json")).unwrap();
    assert!(config.contains("\"peft_type\": \"LORA\"") && config.ends_with("}\n"), "{config}");
    assert!(config.contains("\"lora_dropout\": 0.05"), "{config}");
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 3);
    // What is there is not written over.
    assert!(bundle.unpack(&place).is_err());
    assert_eq!(read("README.md"), bundle.card().as_bytes());
}

#[test]
fn a_card_that_would_be_code_is_text() {
    let mut facts = card();
    facts.base.name = "evil\"\n---\n<script>\u{202e}".to_owned();
    let mut config = config();
    config.base_model_name_or_path = "tiny/llama".to_owned();
    let bytes = adapter();
    let worked = Worked {
        adapter: bytes.as_slice(),
        adapter_len: bytes.len() as u64,
        metrics: &metrics().encode(),
        measures: &measures().encode(),
    };
    let declared = declared();
    let request = Request { declared: &declared, config: &config, terms: &[terms()], card: &facts };
    let passed = pass(worked, &request).unwrap();
    let lines: Vec<&str> = passed.card().lines().collect();
    assert_eq!(lines[2], r#"base_model: "evil\"---<script>""#);
    assert!(lines[9].starts_with("# LoRA adapter for evil\"---\\<script\\>"), "{}", lines[9]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: changed bytes of a bundle are refused, or are the one encoding of something.
    #[test]
    fn changed_bundles_are_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        begin in any::<bool>(),
    ) {
        let mut bytes = Run::good().pass().unwrap().release(&[]).unwrap().bytes;
        for (at, byte) in changes {
            let at = at.index(if begin { 6_000 } else { bytes.len() });
            bytes[at] = byte;
        }
        if let Ok(bundle) = Bundle::read(&bytes) {
            prop_assert_eq!(bundle.to_bytes(), bytes);
        }
    }

    /// Goal: changed records are refused, or are the one encoding of something in range.
    #[test]
    fn changed_records_are_harmless(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        which in any::<bool>(),
    ) {
        let mut bytes = if which { metrics().encode() } else { measures().encode() };
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(metrics) = Metrics::decode(&bytes) {
            prop_assert_eq!(metrics.encode(), bytes.clone());
        }
        if let Ok(measures) = Measures::decode(&bytes) {
            prop_assert_eq!(measures.encode(), bytes);
        }
    }
}
