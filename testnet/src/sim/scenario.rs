//! What the seed decides about people: machines, owners' rules, jobs, cancellations.

use allmend_protocol::advert::{DeviceCapacity, DeviceKind, ModelHeld};
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{Digest, InstitutionId};
use allmend_protocol::job::{InferWork, JobSpec, Placement, SealedInput};
use allmend_protocol::lease::{Cancel, CancelWhy};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::{Credits, Decimal, Jurisdiction, Rates};
use allmend_scheduler::io::LocalState;
use allmend_scheduler::policy::OperatorPolicy;

use super::draw::Draw;
use super::federation::{Federation, INSTITUTIONS};

const MODELS: [Digest; 3] = [
    Digest::from_bytes([0xa1; 32]),
    Digest::from_bytes([0xa2; 32]),
    Digest::from_bytes([0xa3; 32]),
];

/// A machine: small, and of any kind.
pub(crate) fn machine(draw: &mut Draw, is_home: bool) -> LocalState {
    let mut models = Vec::new();
    let mut fetchable = Vec::new();
    for digest in MODELS {
        let held =
            ModelHeld { digest, memory_mib: 500, context_tokens: 4_096, warm: draw.per_mille(500) };
        match draw.below(10) {
            0..7 => models.push(held),
            7 => fetchable.push(held),
            _ => {}
        }
    }
    let kind = if draw.per_mille(250) { DeviceKind::Cuda } else { DeviceKind::Cpu };
    let device = DeviceCapacity {
        kind,
        name: "simulated".into(),
        memory_mib: draw.within(400, 8_000),
        cores: 4,
    };
    LocalState {
        devices: vec![device],
        slots_total: draw.below(if is_home { 2 } else { 4 }) as u16,
        models,
        fetchable,
        rates: Rates { prompt: draw.below(2_000), completion: draw.within(1, 4_000) },
        ..LocalState::default()
    }
}

/// Something about a machine changes.
pub(crate) fn machine_changes(draw: &mut Draw, local: &mut LocalState) {
    match draw.below(4) {
        0 => local.draining = Some("maintenance".into()),
        1 => local.disk_full = Some("the log's disk is full".into()),
        2 => local.slots_total = draw.below(4) as u16,
        _ => (local.draining, local.disk_full) = (None, None),
    }
}

/// An owner's rules.
pub(crate) fn policy(draw: &mut Draw, federation: &Federation) -> OperatorPolicy {
    let open = "[[allow]]\nname = 'everybody'\ninstitutions = ['*']\n";
    let text = match draw.below(10) {
        0 => String::new(),
        1 => format!("{open}[[deny]]\nname = 'no teaching'\npurposes = ['teaching']\n"),
        2 => format!(
            "[[allow]]\nname = 'friends'\ninstitutions = ['{}']\nmax_tokens_max = 60\n",
            federation.institutions[draw.index(INSTITUTIONS)]
        ),
        3 => "[[allow]]\nname = 'neighbours'\ninstitutions = ['*']\njurisdictions = ['CH', 'DE']\n"
            .to_owned(),
        _ => open.to_owned(),
    };
    let table = text.parse().expect("the policies above are TOML");
    OperatorPolicy::from_toml(&table).expect("the policies above are understood")
}

/// A researcher's job, asked for at `now`.
pub(crate) fn job(
    draw: &mut Draw,
    federation: &Federation,
    institution: usize,
    now: Timestamp,
) -> Verified<JobSpec> {
    let cert = &federation.researcher_certs[institution];
    let infer = InferWork {
        max_tokens: draw.within(10, 120) as u32,
        temperature: Decimal { mantissa: 0, exp10: 0 },
        top_k: 0,
        top_p: Decimal { mantissa: 1, exp10: 0 },
        seed: 1,
        clock: now,
        prompt_tokens_max: draw.within(10, 500) as u32,
        adapter: None,
    };
    let cap = if draw.per_mille(150) { draw.within(0, 1_000) } else { draw.within(5_000, 50_000) };
    let body = JobSpec {
        federation: federation.id,
        signer: cert.researcher,
        certificate: cert.id(),
        charter: federation.roster.charter().id(),
        governance: None,
        home: cert.home,
        nonce: draw.nonce(),
        project: "simulation".into(),
        purpose: if draw.per_mille(200) { "teaching".into() } else { "research".into() },
        work: infer.to_work(),
        model: MODELS[draw.index(MODELS.len())],
        dataset: None,
        input: SealedInput { digest: Digest::from_bytes([5; 32]), bytes: 64, wraps: vec![] },
        placement: placement(draw, federation, institution),
        cap: Credits::from_micro(cap),
        attempts: draw.within(1, 4) as u16,
        issued: now,
        deadline: now.plus(DurationMs::from_ms(draw.within(5_000, 40_000))),
        terms: None,
        delegation: None,
    };
    Verified::sign(&federation.researcher_keys[institution], body).expect("a valid job")
}

/// The researcher's wish to stop it.
pub(crate) fn cancel(
    federation: &Federation,
    job: &Verified<JobSpec>,
    now: Timestamp,
) -> Verified<Cancel> {
    let institution = federation.researcher_certs.iter().position(|c| c.researcher == job.signer);
    let key = &federation.researcher_keys[institution.expect("a researcher of ours")];
    let body = Cancel {
        federation: federation.id,
        signer: job.signer.into(),
        job: job.id(),
        attempt: None,
        why: CancelWhy::Researcher,
        issued: now,
    };
    Verified::sign(key, body).expect("a valid cancellation")
}

fn placement(draw: &mut Draw, federation: &Federation, own: usize) -> Placement {
    let codes = ["CH", "DE", "FR", "IT", "NO"];
    let code = |index: usize| Jurisdiction::new(codes[index]).expect("two capitals");
    let everywhere: Vec<Jurisdiction> = (0..codes.len()).map(code).collect();
    let mut at: Vec<InstitutionId> =
        vec![federation.institutions[own], federation.institutions[draw.index(INSTITUTIONS)]];
    at.sort_unstable();
    at.dedup();
    let two = draw.index(codes.len() - 1);
    match draw.below(8) {
        0 | 1 => Placement::default(),
        2 => Placement { at, ..Placement::default() },
        3 => Placement { jurisdictions: vec![code(two), code(two + 1)], ..Placement::default() },
        4 => Placement {
            jurisdictions: everywhere,
            not_at: vec![federation.institutions[draw.index(INSTITUTIONS)]],
            ..Placement::default()
        },
        5 => Placement {
            jurisdictions: everywhere,
            not_jurisdictions: vec![code(two)],
            ..Placement::default()
        },
        6 => Placement {
            jurisdictions: everywhere,
            device: draw.per_mille(500).then_some(DeviceKind::Cuda),
            memory_mib: draw.within(0, 6_000),
            ..Placement::default()
        },
        _ => Placement { jurisdictions: everywhere, ..Placement::default() },
    }
}
