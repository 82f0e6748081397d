//! What reading commands show, as JSON documents (docs/json.md). The command line makes tables of
//! them; `--json` prints them as they are.

use allmend_protocol::envelope::Envelope;
use allmend_protocol::ids::{MessageId, NodeId, ResearcherId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::message::AnyMessage;
use allmend_scheduler::io::{JobView, Record as CoreRecord};
use serde_json::{Value, json};

use super::index::job_prefix;
use super::{Daemon, Response};
use crate::client::proto::Answer;
use crate::journal::{Position, Record};
use crate::membership::now;
use crate::storage::space;

/// The most jobs in one list.
const JOBS_MAX: usize = 1_000;
/// The most journal records of one job that are listed.
const LOGS_MAX: usize = 1_000;

pub(super) fn document(value: &Value) -> Answer {
    Answer::Document { json: value.to_string() }
}

fn body(message: &AnyMessage) -> Value {
    message.serialize_body(serde_json::value::Serializer).unwrap_or(Value::Null)
}

impl Daemon {
    /// A node's name for people, or the start of its key.
    pub(super) fn node_name(&self, node: NodeId) -> String {
        self.core
            .roster()
            .nodes()
            .find(|cert| cert.node == node)
            .map_or_else(|| node.short(), |cert| cert.name.clone())
    }

    /// A sentence of the core's, with nodes called by their names instead of the start of their key.
    pub(super) fn with_names(&self, words: &str) -> String {
        let mut words = words.to_owned();
        for cert in self.core.roster().nodes() {
            words = words.replace(&cert.node.short(), &cert.name);
        }
        words
    }

    pub(super) fn institution_name(&self, key: allmend_protocol::ids::InstitutionId) -> String {
        self.core
            .roster()
            .institutions()
            .find(|entry| entry.key == key)
            .map_or_else(|| key.short(), |entry| entry.name.clone())
    }

    pub(super) fn hello_document(&self, operator: bool) -> Answer {
        let roster = self.core.roster();
        let cert = roster.nodes().find(|cert| cert.node == self.local.node);
        document(&json!({
            "node": self.local.node,
            "name": self.node_name(self.local.node),
            "institution": self.local.institution,
            "institution_name": self.institution_name(self.local.institution),
            "federation": self.local.federation,
            "federation_name": roster.charter().name,
            "charter": roster.charter().id(),
            "sealing": cert.map(|cert| cert.sealing),
            "operator": operator,
            "time": now(),
            "version": env!("CARGO_PKG_VERSION"),
        }))
    }

    pub(super) async fn status_document(&self) -> anyhow::Result<Answer> {
        let peers = self.net.peers().await?;
        let (mut open, mut all) = (0, 0);
        for (_, view) in self.core.jobs() {
            all += 1;
            open += usize::from(!view.phase.is_over());
        }
        let leases: Vec<Value> = self
            .core
            .leases()
            .map(|held| {
                let lease = &held.work().lease;
                let (prompt_done, prompt_total) =
                    self.running.prefilled(lease.id()).unwrap_or_default();
                json!({ "lease": lease.id(), "job": lease.job, "attempt": lease.attempt,
                        "slot": lease.slot, "fence": lease.fence.to_string(), "since": lease.issued,
                        "prompt_tokens_done": prompt_done, "prompt_tokens": prompt_total,
                        "tokens": held.tokens() })
            })
            .collect();
        // As adverts say: a node that takes nothing new has none.
        let closed = self.draining.is_some() || self.capacity.disk_full().is_some();
        let slots = if closed { 0 } else { usize::from(self.capacity.slots()) };
        let slots_free = slots.saturating_sub(leases.len());
        let usage = self.journal.usage();
        let roster = self.core.roster();
        Ok(document(&json!({
            "node": self.local.node,
            "name": self.node_name(self.local.node),
            "institution": self.local.institution,
            "institution_name": self.institution_name(self.local.institution),
            "federation": self.local.federation,
            "federation_name": roster.charter().name,
            "certificate_expires": roster.node_expiry(self.local.node),
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_ms": u64::try_from(self.local.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "draining": self.draining,
            "disk_full": self.capacity.disk_full(),
            "tapped": self.local.config.debug.tap_dir.is_some(),
            "slots_total": self.capacity.slots(),
            "slots_free": slots_free,
            "leases": leases,
            "workers": self.running.workers().iter().map(|worker| json!({
                "pid": worker.pid, "model": worker.model, "loaded": worker.loaded,
                "slots": worker.slots,
            })).collect::<Vec<_>>(),
            "jobs_open": open,
            "jobs_known": all,
            "models": self.capacity.models().collect::<Vec<_>>(),
            "peers": peers.iter().map(|peer| json!({
                "node": peer.node,
                "name": self.node_name(peer.node),
                "control": peer.control.iter().map(|path| json!({
                    "transport": format!("{:?}", path.transport).to_lowercase(),
                    "dialled": path.dialled, "remote": path.remote.to_string(),
                })).collect::<Vec<_>>(),
                "bulk": peer.bulk.iter().map(|(remote, dialled)| json!({
                    "remote": remote.to_string(), "dialled": dialled })).collect::<Vec<_>>(),
                "rtt_us": peer.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
                "admitted_until": peer.admitted_until_unix_ms,
            })).collect::<Vec<_>>(),
            "log": usage,
        })))
    }

    pub(super) async fn nodes_document(&self) -> anyhow::Result<Answer> {
        let connected: Vec<NodeId> =
            self.net.peers().await?.into_iter().map(|peer| peer.node).collect();
        let at = now();
        let roster = self.core.roster();
        let seen = self.core.nodes(at);
        let mut rows = Vec::new();
        for cert in roster.nodes() {
            let view = seen.iter().find(|view| view.node == cert.node);
            let advert = view.and_then(|view| view.advert.as_ref());
            // Between a node's saying and our hearing: how far the clocks are apart, plus the way.
            let clock_offset_ms = view.and_then(|view| {
                let heard = at.minus(view.age_ms?).as_ms();
                let said = view.advert.as_ref()?.issued.as_ms();
                Some(i64::try_from(heard).ok()? - i64::try_from(said).ok()?)
            });
            rows.push(json!({
                "node": cert.node,
                "name": cert.name,
                "institution": cert.signer,
                "institution_name": self.institution_name(cert.signer),
                "jurisdiction": cert.jurisdiction,
                "connected": cert.node == self.local.node || connected.contains(&cert.node),
                "this_node": cert.node == self.local.node,
                "advert_age_ms": advert.map(|advert| at.since(advert.issued)),
                "clock_offset_ms": clock_offset_ms,
                "slots_free": advert.map(|advert| advert.slots_free),
                "slots_total": advert.map(|advert| advert.slots_total),
                "queue_ms": advert.map(|advert| advert.queue_ms),
                "devices": advert.map(|advert| advert.devices.clone()),
                "models": advert.map(|advert| advert.models.clone()),
                "rates": advert.map(|advert| advert.rates),
                "draining": advert.map(|advert| advert.draining),
                "certificate_expires": cert.expires,
            }));
        }
        Ok(document(&Value::Array(rows)))
    }

    pub(super) fn jobs_document(&self, of: Option<ResearcherId>, limit: u32) -> Answer {
        let mut rows: Vec<(u64, Value)> = Vec::new();
        for (id, view) in self.core.jobs() {
            let Some(spec) = self.core.job_spec(id) else { continue };
            if of.is_some_and(|researcher| researcher != spec.signer) {
                continue;
            }
            rows.push((spec.issued.as_ms(), self.job_row(spec, &view)));
        }
        rows.sort_by_key(|(issued, _)| std::cmp::Reverse(*issued));
        rows.truncate((limit as usize).min(JOBS_MAX));
        document(&Value::Array(rows.into_iter().map(|(_, row)| row).collect()))
    }

    fn job_row(&self, spec: &JobSpec, view: &JobView) -> Value {
        json!({
            "job": view.job,
            "phase": view.phase,
            "why": self.with_names(&view.why),
            "project": spec.project,
            "work": spec.work.kind,
            "model": spec.model,
            "issued": spec.issued,
            "deadline": spec.deadline,
            "attempts": view.attempts.len(),
            "node": view.attempts.last().map(|last| self.node_name(last.node)),
            "tokens": view.attempts.iter().map(|attempt| u64::from(attempt.tokens)).sum::<u64>(),
            "cost_micro": view.cost_micro,
        })
    }

    pub(super) fn show_document(&self, job: MessageId, signed: bool) -> Answer {
        let (Some(view), Some(spec)) = (self.core.job(job), self.core.job_spec(job)) else {
            // Another home's job that has asked for data here.
            let decided = self.decisions_document(job);
            return decided.as_ref().map_or_else(super::serve::no_such_job, document);
        };
        let mut shown = json!({
            "job": job,
            "phase": view.phase,
            "why": self.with_names(&view.why),
            "attempts": view.attempts.iter().map(|attempt| json!({
                "attempt": attempt.attempt,
                "node": attempt.node,
                "node_name": self.node_name(attempt.node),
                "lease": attempt.lease,
                "fence": attempt.fence.map(|fence| fence.to_string()),
                "receipt": attempt.receipt,
                "tokens": attempt.tokens,
                "paid_micro": attempt.paid_micro,
                "status": self.with_names(&attempt.status),
            })).collect::<Vec<_>>(),
            "considered": view.considered.iter().map(|considered| json!({
                "node": considered.node,
                "node_name": self.node_name(considered.node),
                "verdict": self.with_names(&considered.verdict),
            })).collect::<Vec<_>>(),
            "cost_micro": view.cost_micro,
            "settlement": view.settlement,
            "grant": self.core.grant(job).map(|grant| grant.id()),
            "spec": serde_json::to_value(spec.body()).unwrap_or(Value::Null),
            "result_kept": self.spool.result(job).is_ok_and(|result| result.is_some()),
        });
        let decisions = self.stewards.decisions(job);
        if !decisions.is_empty() {
            shown["decisions"] = json!(decisions);
        }
        if signed {
            let messages: Vec<Value> = self
                .records_of(job)
                .into_iter()
                .filter_map(|(_, message, _)| message)
                .map(|message| {
                    json!({
                        "kind": message.kind().0.name(),
                        "id": message.id(),
                        "envelope": data_encoding::HEXLOWER.encode(message.envelope().as_bytes()),
                    })
                })
                .collect();
            shown["signed"] = Value::Array(messages);
        }
        document(&shown)
    }

    /// Adapters that this node serves.
    pub(super) fn adapters_document(&self) -> Answer {
        let adapters = self.capacity.adapters().list();
        document(&Value::Array(
            adapters
                .iter()
                .map(|(id, about)| json!({ "adapter": id, "model": about.model, "report": about.report }))
                .collect(),
        ))
    }

    /// Why policies said what they said last of a job that wants this node's data; for the operator.
    pub(super) fn decisions_document(&self, job: MessageId) -> Option<Value> {
        let decisions = self.stewards.decisions(job);
        (!decisions.is_empty()).then(|| json!({ "job": job, "decisions": decisions }))
    }

    /// A job's journal: what was signed by whom and when, in the order in which it became durable.
    pub(super) fn logs_document(&self, job: MessageId) -> anyhow::Result<Answer> {
        let rows: Vec<Value> = self
            .records_of(job)
            .into_iter()
            .map(|(leaf, message, record)| match (message, record) {
                (Some(message), _) => {
                    let body = body(&message);
                    json!({
                        "kind": message.kind().0.name(),
                        "id": message.id(),
                        "leaf": leaf,
                        "signer": message.signer(),
                        "signer_name": self.node_name(message.signer().into()),
                        "time": body.get("issued").or_else(|| body.get("ended")).cloned(),
                        "body": body,
                    })
                }
                (None, record) => json!({ "kind": "note", "leaf": leaf, "note": record }),
            })
            .collect();
        if rows.is_empty() {
            return Ok(super::serve::no_such_job());
        }
        Ok(document(&Value::Array(rows)))
    }

    pub(super) fn records_of(
        &self,
        job: MessageId,
    ) -> Vec<(Option<u64>, Option<AnyMessage>, Option<String>)> {
        let index = self.journal.index();
        let found = index.scan(&job_prefix(job), None, LOGS_MAX).unwrap_or_default();
        let federation = self.local.federation;
        let verify = |bytes: &[u8]| {
            Envelope::from_bytes(bytes)
                .ok()
                .and_then(|envelope| AnyMessage::verify(&envelope, &federation).ok())
        };
        found
            .iter()
            .filter_map(|(_, position)| Position::from_bytes(position))
            .filter_map(|position| self.journal.reader().read(position).ok())
            .map(|record| match record {
                Record::Leaf(bytes) => (Some(0), verify(&bytes), None),
                Record::Private { bytes, .. } => match CoreRecord::from_bytes(&bytes) {
                    Ok(CoreRecord::Heard { envelope, .. }) => (None, verify(&envelope.0), None),
                    Ok(CoreRecord::AttemptOver { attempt, why, .. }) => {
                        (None, None, Some(format!("attempt {attempt} over: {why}")))
                    }
                    Ok(CoreRecord::JobOver { why, outcome, .. }) => {
                        (None, None, Some(format!("job over, {outcome:?}: {why}")))
                    }
                    _ => (None, None, None),
                },
            })
            .collect()
    }

    pub(super) fn storage_document(&self) -> anyhow::Result<Answer> {
        let survey = self.survey_disk()?;
        let storage = &self.local.config.storage;
        let disk = space(self.local.layout.root())?;
        let spool: u64 = survey.spool.iter().map(|item| item.bytes).sum();
        let models: u64 = survey.models.iter().map(|item| item.bytes).sum();
        let mib = |mib: u64| mib.saturating_mul(1 << 20);
        Ok(document(&json!({
            "kinds": [
                { "kind": "models", "bytes": models, "cap_bytes": mib(storage.models_cap_mib), "items": survey.models.len() },
                { "kind": "spool", "bytes": spool, "cap_bytes": mib(storage.spool_cap_mib), "items": survey.spool.len() },
                { "kind": "log", "bytes": survey.log_bytes, "cap_bytes": mib(storage.log_cap_mib), "items": 1 },
            ],
            "disk_total_bytes": disk.total_bytes,
            "disk_free_bytes": disk.free_bytes,
            "reserve_bytes": mib(storage.reserve_mib),
            "retention_hours": storage.retention_hours,
            "full": self.capacity.disk_full(),
        })))
    }

    pub(super) fn members_document(&self) -> Answer {
        let roster = self.core.roster();
        document(&json!({
            "institutions": roster.institutions().map(|entry| json!({
                "institution": entry.key, "name": entry.name, "jurisdiction": entry.jurisdiction,
                "admitted_by": entry.cert.as_ref().map(|cert| cert.signer),
                "expires": entry.cert.as_ref().map(|cert| cert.expires),
            })).collect::<Vec<_>>(),
            "researchers": self.register.researchers().map(|(key, entry)| json!({
                "researcher": key, "name": entry.name, "since": entry.since,
                "expires": self.register.cert(key).map(|cert| cert.expires),
            })).collect::<Vec<_>>(),
        }))
    }

    /// Has up to three other members try every address of this node.
    pub(super) async fn reach(&self) -> anyhow::Result<Response> {
        let peers: Vec<NodeId> =
            self.net.peers().await?.into_iter().map(|peer| peer.node).take(3).collect();
        let names: Vec<String> = peers.iter().map(|node| self.node_name(*node)).collect();
        let net = self.net.clone();
        Ok(Response::Later(Box::pin(async move {
            let mut rows = Vec::new();
            for (peer, name) in peers.into_iter().zip(names) {
                match net.probe_reach(peer).await {
                    Ok(report) => rows.push(json!({
                        "via": peer,
                        "via_name": name,
                        "results": report.results.iter().map(|result| json!({
                            "kind": format!("{:?}", result.kind),
                            "address": result.address,
                            "outcome": format!("{:?}", result.outcome),
                        })).collect::<Vec<_>>(),
                    })),
                    Err(error) => rows.push(json!({
                        "via": peer, "via_name": name, "error": error.to_string() })),
                }
            }
            document(&Value::Array(rows))
        })))
    }
}
