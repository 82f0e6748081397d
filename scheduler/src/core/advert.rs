//! What this node says of its own capacity.

use allmend_protocol::advert::{ADVERT_LIST_MAX, AdvertOrder, CapacityAdvert};
use allmend_protocol::cert::{ADDRESS_BYTES_MAX, ADDRESSES_MAX};
use allmend_protocol::envelope::Verified;
use allmend_protocol::time::{DurationMs, Timestamp};

use super::Core;
use crate::io::{Effect, LocalState};
use crate::settings::{ADVERT_GAP_MIN, fit_text};

impl Core {
    /// The newest advert of this node, e.g. for a neighbour that has just connected.
    pub fn own_advert_now(&self) -> Option<&Verified<CapacityAdvert>> {
        self.own_advert.as_ref()
    }

    /// What this node can do has changed.
    pub(super) fn set_local(
        &mut self,
        now: Timestamp,
        mut local: LocalState,
        out: &mut Vec<Effect>,
    ) {
        local.devices.truncate(ADVERT_LIST_MAX);
        for device in &mut local.devices {
            device.name = fit_text(&device.name, 120);
        }
        for models in [&mut local.models, &mut local.fetchable] {
            models.sort_by_key(|held| held.digest);
            models.dedup_by_key(|held| held.digest);
        }
        for list in [&mut local.datasets, &mut local.datasets_public, &mut local.adapters] {
            list.sort_unstable();
            list.dedup();
        }
        local.addresses.retain(|address| {
            address.len() <= ADDRESS_BYTES_MAX && !address.chars().any(char::is_control)
        });
        local.addresses.truncate(ADDRESSES_MAX);
        self.local_changed |= local != self.local;
        self.local = local;
        self.advertise(now, out);
    }

    /// Publishes a new advert when it says something new, or when it is time to repeat it.
    pub(super) fn advertise(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        // Nothing to say before the daemon has looked at the machine.
        if self.local == LocalState::default() {
            return;
        }
        if let Some(last) = &self.own_advert {
            let every = self.roster.charter().timing.advert_every_ms;
            let age = now.since(last.issued);
            let news = self.local_changed || last.slots_free != self.slots_free();
            let due = if news { ADVERT_GAP_MIN.min(every) } else { every };
            // A clock that went back is no reason to be silent.
            if age < due && now >= last.issued {
                return;
            }
        }
        self.local_changed = false;
        let order = AdvertOrder {
            epoch: self.identity.epoch,
            incarnation: self.incarnation,
            sequence: self.own_order.sequence + 1,
        };
        let advert = self.identity.sign(self.advert_body(now, order));
        self.own_order = order;
        self.own_advert = Some(advert.clone());
        self.view.admit(now, &self.roster, advert.clone());
        out.push(Effect::Publish(advert));
    }

    fn advert_body(&self, now: Timestamp, order: AdvertOrder) -> CapacityAdvert {
        let local = &self.local;
        CapacityAdvert {
            federation: self.identity.federation,
            signer: self.identity.node,
            institution: self.identity.institution,
            charter: self.roster.charter().id(),
            order,
            issued: now,
            expires: now.plus(self.roster.charter().timing.advert_ttl_ms),
            versions: self.settings.versions.clone(),
            jurisdiction: self.identity.jurisdiction,
            devices: local.devices.clone(),
            slots_total: local.slots_total,
            slots_free: self.slots_free(),
            queue_ms: DurationMs::default(),
            models: local.models.iter().take(ADVERT_LIST_MAX).cloned().collect(),
            fetches_models: !local.fetchable.is_empty(),
            datasets: local.datasets_public.iter().take(ADVERT_LIST_MAX).copied().collect(),
            adapters: local.adapters.iter().take(ADVERT_LIST_MAX).copied().collect(),
            rates: local.rates,
            draining: self.is_closed(),
            addresses: local.addresses.clone(),
        }
    }

    fn is_closed(&self) -> bool {
        self.local.draining.is_some() || self.local.disk_full.is_some()
    }

    fn slots_free(&self) -> u16 {
        if self.is_closed() { 0 } else { self.book.slots_free(self.local.slots_total) }
    }
}
