//! Bodies around data that stays where it is, and fine-tuning work, that break one rule each.

use allmend_protocol::finetune::{FinetuneWork, MixPart};
use allmend_protocol::stewardship::{ApprovalDecision, Contract, GateReport};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Decimal;

use super::super::samples;
use super::{List, long};

/// More than the 64 elements of any list, and more than a signed body's own limit needs.
fn many<T: Clone>(one: &T, count: usize) -> Vec<T> {
    vec![one.clone(); count]
}

pub(super) fn stewardship(list: &mut List) {
    let approval = samples::approval;
    list.add("no obligation", "obligation", approval(), |a| a.obligation.clear());
    list.add("obligation of 65 bytes", "obligation", approval(), |a| a.obligation = long(65));
    list.add("no run", "runs_max", approval(), |a| a.runs_max = 0);
    list.add("expires when issued", "expires", approval(), |a| a.expires = a.issued);
    list.add("expires after more than a year", "expires", approval(), |a| {
        a.expires = Timestamp::from_ms(a.issued.as_ms() + 366 * 86_400_000 + 1);
    });
    list.add("refused without a word", "decision.why", approval(), |a| {
        a.decision = ApprovalDecision::Refused { why: String::new() };
    });
    list.add("refusal of 241 bytes", "decision.why", approval(), |a| {
        a.decision = ApprovalDecision::Refused { why: long(241) };
    });
    contracts(list);
    reports(list);

    let recall = samples::recall;
    list.add("without a word", "why", recall(), |r| r.why.clear());
    list.add("explanation of 241 bytes", "why", recall(), |r| r.why = long(241));
    list.add("line break in the explanation", "why", recall(), |r| r.why = "a\nb".to_owned());
}

fn contracts(list: &mut List) {
    let contract = samples::private_contract;
    let mut add = |name, field, breaks: &dyn Fn(&mut Contract)| {
        list.add(name, field, contract(), |contract| breaks(contract));
    };
    add("17 datasets", "datasets", &|c| c.datasets = many(&c.datasets[0], 17));
    add("datasets not sorted", "datasets", &|c| c.datasets.reverse());
    add("dataset named twice", "datasets", &|c| c.datasets[1] = c.datasets[0]);
    add("19 policies", "policies", &|c| c.policies = many(&c.policies[0], 19));
    add("unknown layer", "policies.layer", &|c| c.policies[2].layer = "village".to_owned());
    add("policies not sorted", "policies", &|c| c.policies.reverse());
    add("policy named twice", "policies", &|c| c.policies.insert(1, c.policies[0].clone()));
    add("no policy of the dataset", "policies", &|c| drop(c.policies.remove(1)));
    add("33 reasons", "reasons", &|c| c.reasons = many(&c.reasons[0], 33));
    add("reason of 121 bytes", "reasons", &|c| c.reasons[0] = long(121));
    add("approvals not sorted", "approvals", &|c| c.approvals.reverse());
    add("approval counted twice", "approvals", &|c| c.approvals[1] = c.approvals[0]);
    add("licence of 121 bytes", "model_licence", &|c| c.model_licence = Some(long(121)));
    add("kind of output of 33 bytes", "output", &|c| c.output = long(33));
    add("room of 33 bytes", "room", &|c| c.room = long(33));
    add("33 facts", "room_facts", &|c| c.room_facts = many(&c.room_facts[0], 33));
    add("fact of 121 bytes", "room_facts", &|c| c.room_facts[0] = long(121));
    for (name, before, after) in [
        ("less budget used after than before", 5_000, 4_999),
        ("less budget used after than by the job", 0, 1_972),
    ] {
        add(name, "privacy.milli_epsilon_after", &|c| {
            let privacy = c.privacy.as_mut().unwrap();
            privacy.milli_epsilon_before = before;
            privacy.milli_epsilon_after = after;
        });
    }
    for (name, exponent) in [("delta of 1", 0), ("delta too small", 19)] {
        add(name, "privacy.delta_exp10", &|c| {
            c.privacy.as_mut().unwrap().delta_exp10 = exponent;
        });
    }
}

fn reports(list: &mut List) {
    let released = samples::gate_report;
    let mut add = |name, field, body: GateReport, breaks: &dyn Fn(&mut GateReport)| {
        list.add(name, field, body, |report| breaks(report));
    };
    add("neither released nor stopped", "stops", released(), &|r| r.released = None);
    add("released although stopped", "stops", samples::stopped_report(), &|r| {
        r.released = Some(samples::digest("adapter"));
    });
    add("9 approvals", "approvals", released(), &|r| r.approvals = many(&r.approvals[0], 9));
    add("approval counted twice", "approvals", released(), &|r| {
        r.approvals = many(&r.approvals[0], 2);
    });
    let stopped = samples::stopped_report;
    add("33 reasons", "stops", stopped(), &|r| r.stops = many(&r.stops[0], 33));
    add("rule without a name", "stops.rule", stopped(), &|r| r.stops[0].rule.clear());
    add("rule of 65 bytes", "stops.rule", stopped(), &|r| r.stops[0].rule = long(65));
    add("reason without a word", "stops.text", stopped(), &|r| r.stops[0].text.clear());
    add("text of 241 bytes", "stops.text", stopped(), &|r| r.stops[0].text = long(241));
}

/// Fine-tuning work that breaks one rule: what is wrong, the field, the work.
pub(crate) fn finetune() -> Vec<(&'static str, &'static str, FinetuneWork)> {
    let mut list = Vec::new();
    let mut add = |name, field, breaks: &dyn Fn(&mut FinetuneWork)| {
        let mut work = samples::private_work();
        breaks(&mut work);
        list.push((name, field, work));
    };
    add("17 datasets", "datasets", &|w| {
        let part = |n: u8| MixPart {
            dataset: allmend_protocol::ids::Digest::from_bytes([n; 32]),
            weight: 1,
        };
        w.datasets = (0..17).map(part).collect();
    });
    add("datasets not sorted", "datasets", &|w| w.datasets.reverse());
    add("dataset mixed in twice", "datasets", &|w| w.datasets[1] = w.datasets[0].clone());
    add("weight 0", "datasets.weight", &|w| w.datasets[0].weight = 0);
    add("weight of more than a million", "datasets.weight", &|w| w.datasets[0].weight = 1_000_001);
    add("rank 0", "lora.rank", &|w| w.lora.rank = 0);
    add("rank 513", "lora.rank", &|w| w.lora.rank = 513);
    add("alpha 0", "lora.alpha", &|w| w.lora.alpha = 0);
    add("alpha 4,097", "lora.alpha", &|w| w.lora.alpha = 4_097);
    add("no module", "lora.targets", &|w| w.lora.targets.clear());
    add("17 modules", "lora.targets", &|w| {
        w.lora.targets = (b'a'..).take(17).map(|c| char::from(c).to_string()).collect();
    });
    add("modules not sorted", "lora.targets", &|w| w.lora.targets.reverse());
    add("module of 65 bytes", "lora.targets", &|w| w.lora.targets[0] = long(65));
    add("module without a name", "lora.targets", &|w| w.lora.targets[0].clear());
    add("module with a slash", "lora.targets", &|w| w.lora.targets[0] = "a/b".to_owned());
    add("no step", "optimiser.warmup_steps", &|w| w.steps = 0);
    add("no step and no warm-up", "steps", &|w| {
        w.steps = 0;
        w.optimiser.warmup_steps = 0;
    });
    add("more than ten million steps", "steps", &|w| w.steps = 10_000_001);
    add("warm-up longer than training", "optimiser.warmup_steps", &|w| w.steps = 9);
    add("batch of nothing", "batch", &|w| w.batch = 0);
    add("batch of 4,097", "batch", &|w| w.batch = 4_097);
    add("no micro-batch", "accumulate", &|w| w.accumulate = 0);
    add("4,097 micro-batches", "accumulate", &|w| w.accumulate = 4_097);
    add("sequence of 7 tokens", "sequence_tokens", &|w| w.sequence_tokens = 7);
    add("sequence of more than 1,048,576 tokens", "sequence_tokens", &|w| {
        w.sequence_tokens = (1 << 20) + 1;
    });
    add("more tokens than are ever counted", "steps", &|w| {
        (w.steps, w.batch, w.accumulate, w.sequence_tokens) = (1 << 20, 4, 1, 1_024);
    });
    add("no snapshot ever", "snapshot_every", &|w| w.snapshot_every = 0);
    add("plateau after no step", "plateau_steps", &|w| {
        w.privacy = None;
        w.plateau_steps = Some(0);
    });
    add("plateau with privacy", "plateau_steps", &|w| w.plateau_steps = Some(100));
    add("packing with privacy", "packing", &|w| w.packing = true);
    numbers(&mut add);
    list
}

/// Notes what is wrong, the field, and how to make it so.
type Adds<'a> = dyn FnMut(&'static str, &'static str, &dyn Fn(&mut FinetuneWork)) + 'a;
/// A number's field and place, and what is just too small and too large for it.
type Number = (&'static str, Place, Option<(i64, i8)>, (i64, i8));
type Place = fn(&mut FinetuneWork) -> &mut Decimal;

/// Every number that need not be whole, too small, too large, and with an exponent that nobody reads.
fn numbers(add: &mut Adds<'_>) {
    let places: [Number; 12] = [
        ("lora.dropout", |w| &mut w.lora.dropout, None, (951, -3)),
        ("optimiser.learning_rate", |w| &mut w.optimiser.learning_rate, Some((0, 0)), (11, 0)),
        ("optimiser.weight_decay", |w| &mut w.optimiser.weight_decay, None, (11, 0)),
        ("optimiser.beta1", |w| &mut w.optimiser.beta1, None, (1, 0)),
        ("optimiser.beta2", |w| &mut w.optimiser.beta2, None, (1, 0)),
        ("optimiser.epsilon", |w| &mut w.optimiser.epsilon, Some((0, 0)), (11, -1)),
        ("optimiser.clip_norm", |w| &mut w.optimiser.clip_norm, None, (1_000_001, 0)),
        ("validation", |w| &mut w.validation, None, (51, -2)),
        (
            "privacy.noise_multiplier",
            |w| &mut private(w).noise_multiplier,
            Some((9, -3)),
            (1_001, 0),
        ),
        ("privacy.clip_norm", |w| &mut private(w).clip_norm, Some((0, 0)), (1_000_001, 0)),
        ("privacy.sampling_rate", |w| &mut private(w).sampling_rate, Some((0, 0)), (101, -2)),
        ("privacy.delta", |w| &mut private(w).delta, Some((0, 0)), (11, -2)),
    ];
    for (field, place, least, most) in places {
        let mut set = |name, (mantissa, exp10)| {
            add(name, field, &|work| *place(work) = Decimal { mantissa, exp10 });
        };
        set("too large", most);
        set("negative", (-1, 0));
        set("exponent 19", (1, 19));
        set("exponent -128", (0, i8::MIN));
        if let Some(least) = least {
            set("too small", least);
        }
    }
}

fn private(work: &mut FinetuneWork) -> &mut allmend_protocol::finetune::Privacy {
    work.privacy.as_mut().unwrap()
}
