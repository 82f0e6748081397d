//! Monotonic counters of what the planes did and refused, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Live counters; read them with [`Counters::snapshot`].
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub(super) $name: Counter,)* }

        impl Counters {
            /// Every counter's name and value, in a fixed order.
            #[must_use]
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.value()),)*]
            }
        }
    };
}

counters! {
    /// Peers admitted by their hello.
    hello_admitted,
    /// Peers whose hello was refused, by us or by them.
    hello_refused,
    /// Connections dropped because no valid hello came in time.
    hello_absent,
    /// Peers disconnected because their admission expired.
    admission_expired,
    /// Inbound connections refused by address before any cryptography.
    address_refused,
    /// Requests sent.
    requests_sent,
    /// Requests received and passed to the daemon.
    requests_received,
    /// Requests answered `busy` because a queue was full.
    requests_refused_busy,
    /// Requests that were malformed.
    requests_malformed,
    /// Gossip messages accepted and passed to the daemon.
    gossip_accepted,
    /// Gossip messages ignored, by the validator or because their carrier is not admitted.
    gossip_ignored,
    /// Gossip messages rejected by the validator.
    gossip_rejected,
    /// Gossip messages dropped because the daemon's queue was full.
    gossip_dropped,
    /// Bulk streams opened to peers over the bulk plane.
    bulk_opened,
    /// Bulk streams opened to peers over a control connection.
    bulk_fallback_opened,
    /// Bulk streams received.
    bulk_received,
    /// Bulk and client streams dropped because a bound was reached.
    bulk_dropped,
    /// Bulk connections refused: not admitted, wrong protocol, failed handshake.
    bulk_refused,
    /// Bulk connection attempts told to prove their address first.
    bulk_retried,
    /// Client connections accepted.
    clients_accepted,
    /// Client connections refused because a bound was reached.
    clients_refused,
    /// Events dropped because the daemon stopped reading.
    events_dropped,
    /// Reachability probes served.
    probes_served,
}

/// One monotonic counter.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count so far.
    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
