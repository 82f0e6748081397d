//! Whether a node could run a job at all, and if not, why, in words a researcher understands.
//!
//! A broker asks this of adverts, where the answer is advice; a working node asks it of itself,
//! where the answer binds. Deliberately without the operator's policy ([`crate::policy`]), which
//! no advert tells.

use allmend_protocol::advert::{CapacityAdvert, DeviceCapacity, DeviceKind, ModelHeld};
use allmend_protocol::finetune::Task;
use allmend_protocol::ids::{Digest, InstitutionId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::offer::{Reason, ReasonClass};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::{Credits, Jurisdiction, Rates};

use crate::io::LocalState;

/// What a job needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// The job.
    pub spec: &'a JobSpec,
    /// Its work.
    pub task: &'a Task,
    /// The researcher's institution.
    pub institution: InstitutionId,
    /// What may still be spent on it.
    pub budget: Credits,
    /// When it must be done.
    pub deadline: Timestamp,
}

/// What a node has.
#[derive(Clone, Debug)]
pub struct Has<'a> {
    /// Its institution, as its certificate says.
    pub institution: InstitutionId,
    /// Where it stands, as its certificate says.
    pub jurisdiction: Jurisdiction,
    /// Its devices.
    pub devices: &'a [DeviceCapacity],
    /// How many more jobs it would start.
    pub slots_free: u16,
    /// Models on its disk.
    pub models: &'a [ModelHeld],
    /// Models that it would fetch.
    pub fetches: Fetches<'a>,
    /// Datasets there.
    pub datasets: Datasets<'a>,
    /// Adapters that it serves.
    pub adapters: &'a [Digest],
    /// What it asks for work.
    pub rates: Rates,
    /// Why it takes nothing new, if so.
    pub draining: Option<&'a str>,
    /// Why its disk cannot take more, if so.
    pub disk_full: Option<&'a str>,
}

/// What is known of models that a node could fetch.
#[derive(Clone, Copy, Debug)]
pub enum Fetches<'a> {
    /// An advert only says whether at all.
    Any(bool),
    /// The node itself knows which.
    These(&'a [ModelHeld]),
}

/// What is known of the datasets at a node.
#[derive(Clone, Copy, Debug)]
pub enum Datasets<'a> {
    /// An advert names only those that stewards let be known.
    Advertised(&'a [Digest]),
    /// The node itself knows all.
    All(&'a [Digest]),
}

impl<'a> Has<'a> {
    /// As an advert says, with place and institution from the certificate.
    pub fn advertised(
        advert: &'a CapacityAdvert,
        institution: InstitutionId,
        jurisdiction: Jurisdiction,
    ) -> Has<'a> {
        Has {
            institution,
            jurisdiction,
            devices: &advert.devices,
            slots_free: advert.slots_free,
            models: &advert.models,
            fetches: Fetches::Any(advert.fetches_models),
            datasets: Datasets::Advertised(&advert.datasets),
            adapters: &advert.adapters,
            rates: advert.rates,
            draining: advert.draining.then_some("the node takes nothing new"),
            disk_full: None,
        }
    }

    /// As this node knows of itself.
    pub fn local(
        local: &'a LocalState,
        institution: InstitutionId,
        jurisdiction: Jurisdiction,
        slots_free: u16,
    ) -> Has<'a> {
        Has {
            institution,
            jurisdiction,
            devices: &local.devices,
            slots_free,
            models: &local.models,
            fetches: Fetches::These(&local.fetchable),
            datasets: Datasets::All(&local.datasets),
            adapters: &local.adapters,
            rates: local.rates,
            draining: local.draining.as_deref(),
            disk_full: local.disk_full.as_deref(),
        }
    }
}

/// Every reason against `has` running `needs` at `now`; empty when nothing speaks against it.
pub fn unfit(now: Timestamp, needs: &Needs<'_>, has: &Has<'_>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut say = |class, text: String| reasons.push(Reason::new(class, text));
    place(needs, has, &mut say);
    equipment(needs, has, &mut say);
    moment(now, needs, has, &mut say);
    reasons
}

/// Whether reasons like these could be gone in a while.
pub fn may_pass(reasons: &[Reason]) -> bool {
    reasons.iter().all(|reason| reason.class.passes())
}

fn place(needs: &Needs<'_>, has: &Has<'_>, say: &mut impl FnMut(ReasonClass, String)) {
    let placement = &needs.spec.placement;
    if placement.at.is_empty() && placement.jurisdictions.is_empty() {
        if has.institution != needs.institution {
            say(
                ReasonClass::Institution,
                "the job may run at the researcher's own institution only; \
                 name others with --at or --jurisdiction"
                    .to_owned(),
            );
        }
    } else {
        if !placement.at.is_empty() && !placement.at.contains(&has.institution) {
            say(
                ReasonClass::Institution,
                format!("institution {} is not among those named by --at", has.institution.short()),
            );
        }
        if !placement.jurisdictions.is_empty()
            && !placement.jurisdictions.contains(&has.jurisdiction)
        {
            let allowed: Vec<&str> =
                placement.jurisdictions.iter().map(Jurisdiction::as_str).collect();
            say(
                ReasonClass::Jurisdiction,
                format!(
                    "the node is in {}, the job may run in {}",
                    has.jurisdiction,
                    allowed.join(", ")
                ),
            );
        }
    }
    if placement.not_at.contains(&has.institution) {
        say(
            ReasonClass::Institution,
            format!("institution {} is excluded by --not-at", has.institution.short()),
        );
    }
    if placement.not_jurisdictions.contains(&has.jurisdiction) {
        say(ReasonClass::Jurisdiction, format!("the job may not run in {}", has.jurisdiction));
    }
    let (held, may_be_unnamed) = match has.datasets {
        Datasets::Advertised(list) => (list, placement.at.contains(&has.institution)),
        Datasets::All(list) => (list, false),
    };
    // A dataset that its steward does not advertise is asked for by whoever names the institution.
    if !may_be_unnamed {
        for dataset in datasets(needs).filter(|dataset| !held.contains(dataset)) {
            say(ReasonClass::Dataset, format!("dataset {} is not here", dataset.short()));
        }
    }
    if let Some(adapter) = needs.task.infer().and_then(|infer| infer.adapter)
        && !has.adapters.contains(&adapter)
    {
        say(ReasonClass::Model, format!("adapter {} is not served here", adapter.short()));
    }
}

/// Every dataset that a job reads, once.
fn datasets<'a>(needs: &Needs<'a>) -> impl Iterator<Item = Digest> + use<'a> {
    let mix = needs.task.finetune().map_or(&[][..], |finetune| &finetune.datasets);
    let terms =
        needs.spec.dataset.filter(|dataset| mix.iter().all(|part| part.dataset != *dataset));
    terms.into_iter().chain(mix.iter().map(|part| part.dataset))
}

fn equipment(needs: &Needs<'_>, has: &Has<'_>, say: &mut impl FnMut(ReasonClass, String)) {
    let placement = &needs.spec.placement;
    let fits_kind =
        |device: &&DeviceCapacity| placement.device.is_none_or(|kind| kind == device.kind);
    let memory_max = has.devices.iter().filter(fits_kind).map(|device| device.memory_mib).max();
    let Some(memory_max) = memory_max else {
        let wanted = placement.device.map_or("device", device_name);
        say(ReasonClass::Device, format!("the node has no {wanted}"));
        return;
    };
    let model = needs.spec.model;
    let held = has.models.iter().find(|held| held.digest == model);
    let found = held.or(match has.fetches {
        Fetches::These(list) => list.iter().find(|held| held.digest == model),
        Fetches::Any(_) => None,
    });
    if found.is_none() && !matches!(has.fetches, Fetches::Any(true)) {
        say(
            ReasonClass::Model,
            format!("model {} is neither on the node nor fetched by it", model.short()),
        );
    }
    let needed = placement.memory_mib.max(found.map_or(0, |held| held.memory_mib));
    if needed > memory_max {
        say(
            ReasonClass::Memory,
            format!("{needed} MiB of memory needed, the largest fitting device has {memory_max}"),
        );
    }
    if let Some(held) = found {
        let tokens = needs.task.context_tokens();
        if tokens > u64::from(held.context_tokens) {
            say(
                ReasonClass::Size,
                format!(
                    "it may take a context of {tokens} tokens, the model is offered with {}",
                    held.context_tokens
                ),
            );
        }
    }
    match price_max(has.rates, needs.task) {
        Some(price) if price <= needs.budget => {}
        price => say(
            ReasonClass::Price,
            format!(
                "it may cost {}, the cap leaves {}",
                price.map_or("more than can be counted".to_owned(), |price| price.to_string()),
                needs.budget
            ),
        ),
    }
}

fn moment(
    now: Timestamp,
    needs: &Needs<'_>,
    has: &Has<'_>,
    say: &mut impl FnMut(ReasonClass, String),
) {
    if now >= needs.deadline {
        say(ReasonClass::Deadline, format!("the deadline was {}", needs.deadline));
    }
    if let Some(why) = has.draining {
        say(ReasonClass::Draining, why.to_owned());
    }
    if let Some(why) = has.disk_full {
        say(ReasonClass::Disk, why.to_owned());
    }
    if has.slots_free == 0 && has.draining.is_none() && has.disk_full.is_none() {
        say(ReasonClass::Busy, "every slot of the node is taken".to_owned());
    }
}

/// The most that the work can cost at these rates.
pub fn price_max(rates: Rates, task: &Task) -> Option<Credits> {
    rates.cost(u64::from(task.prompt_tokens_max()), u64::from(task.tokens_max()))
}

fn device_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => "CPU for jobs",
        DeviceKind::Cuda => "NVIDIA GPU",
        DeviceKind::Metal => "Apple GPU",
    }
}
