//! Asking nodes what they would say to a job before it is submitted (specs/offer.md §5).

use std::path::Path;
use std::time::Duration;

use allmend_engine::train::Base;
use allmend_protocol::bundle::{BUNDLE_BYTES_MAX, Bundle};
use allmend_protocol::encoding;
use allmend_protocol::envelope::{Signed, Verified};
use allmend_protocol::finetune::{FinetuneWork, Task};
use allmend_protocol::ids::NodeId;
use allmend_protocol::job::JobSpec;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::offer::{OBLIGATIONS_MAX, Probe, REASONS_MAX, Reason};
use allmend_scheduler::io::Input;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::documents::document;
use super::{Daemon, Response};
use crate::client::proto::{Answer, Problem, ProblemClass};
use crate::membership::now;
use crate::net::{NetHandle, Reply};
use crate::worker::train::recipe;

/// First byte of a request that asks for a quote; a bundle, which is a list, begins otherwise.
pub(crate) const QUOTE: u8 = 0;
/// The largest answer.
const QUOTED_BYTES_MAX: usize = 8 * 1024;
/// How long a node may take; one that has more to do is shown without its word.
const QUOTE_WAIT: Duration = Duration::from_secs(5);

/// What a node would say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quoted {
    /// Every reason against it.
    #[serde(deserialize_with = "encoding::list")]
    reasons: Vec<Reason>,
    /// Whose approval is missing.
    #[serde(deserialize_with = "encoding::list")]
    obligations: Vec<String>,
    /// Memory that a fine-tune would take.
    memory_mib: Option<u64>,
    /// How long its steps would take on the idle machine.
    seconds: Option<u64>,
}

impl Quoted {
    fn decode(bytes: &[u8]) -> Option<Quoted> {
        let quoted: Quoted = encoding::decode(bytes, QUOTED_BYTES_MAX).ok()?;
        let few =
            quoted.reasons.len() <= REASONS_MAX && quoted.obligations.len() <= OBLIGATIONS_MAX;
        few.then_some(quoted)
    }
}

/// What remains to be worked out of a quote, off the loop.
struct Estimate {
    quoted: Quoted,
    /// The fine-tune, the model's file and the memory that is there for training.
    run: Option<(FinetuneWork, std::path::PathBuf, u64)>,
    threads: u32,
}

impl Estimate {
    /// Adds memory and time; what cannot be estimated is left out.
    async fn finish(self) -> Quoted {
        let Estimate { mut quoted, run, threads } = self;
        let Some((work, path, memory_mib)) = run else { return quoted };
        let estimated = tokio::task::spawn_blocking(move || estimate(&work, &path, threads)).await;
        match estimated {
            Ok(Ok((mib, seconds))) => {
                (quoted.memory_mib, quoted.seconds) = (Some(mib), Some(seconds));
                if mib > memory_mib {
                    let text = format!(
                        "training takes {mib} MiB, this node gives {memory_mib} MiB: set recompute, or \
                         lower batch or sequence_tokens"
                    );
                    let class = allmend_protocol::offer::ReasonClass::Memory;
                    quoted.reasons.push(Reason::new(class, text));
                }
            }
            Ok(Err(why)) => {
                let class = allmend_protocol::offer::ReasonClass::Model;
                quoted.reasons.push(Reason::new(class, why));
            }
            Err(_) => {}
        }
        quoted
    }
}

fn estimate(work: &FinetuneWork, path: &Path, threads: u32) -> Result<(u64, u64), String> {
    // Subjects only divide the noisy sum; they change neither memory nor time.
    let recipe = recipe(work, 1);
    let base = Base::open(path).map_err(|error| error.to_string())?;
    let plan = base.plan(&recipe).map_err(|error| error.to_string())?;
    let time = base.duration(&recipe, threads).map_err(|error| error.to_string())?;
    Ok((plan.total_bytes().div_ceil(1 << 20), time.as_secs().max(1)))
}

impl Daemon {
    /// Answers a member that asks what this node would say.
    pub(super) fn answer_quote(&mut self, from: NodeId, bundle: &[u8], reply: Reply) {
        let quoted = match self.unpack(from, bundle) {
            Ok(Input::Message { message: AnyMessage::Probe(probe), attached, .. }) => {
                self.quote(&probe, &attached)
            }
            _ => None,
        };
        // Dropping the reply says that there is none.
        let Some(estimate) = quoted else { return };
        tokio::spawn(async move {
            let quoted = estimate.finish().await;
            if let Err(error) = reply.send(encoding::encode(&quoted)) {
                tracing::debug!(%error, "quote not sent");
            }
        });
    }

    fn quote(&mut self, probe: &Verified<Probe>, attached: &[AnyMessage]) -> Option<Estimate> {
        let quote = self.core.quote(now(), probe, attached)?;
        let quoted =
            Quoted { reasons: quote.reasons, obligations: quote.obligations, ..Quoted::default() };
        let (threads, memory_mib) = self.running.training_means();
        let run = quote.job.and_then(|job| {
            let Ok(Task::Finetune(work)) = Task::from_work(&job.work) else { return None };
            Some((*work, self.capacity.model_path(job.model)?, memory_mib))
        });
        Some(Estimate { quoted, run, threads })
    }

    /// Why, or why not, each node for a job that is not submitted: what home knows of it, and what the node
    /// says itself where nothing that home knows is in the way.
    pub(super) fn explain(&mut self, spec: &[u8]) -> Response {
        let job = match Signed::<JobSpec>::from_bytes(spec)
            .and_then(|signed| signed.verify(&self.local.federation))
        {
            Ok(job) => job,
            Err(error) => {
                let problem = Problem::new(ProblemClass::Usage, "the job spec does not hold");
                return Response::Answer(Answer::Refused(problem.because(error)));
            }
        };
        let mut rows = Vec::new();
        for (node, verdict) in self.core.explain(now(), &job) {
            let (score, reasons) = match verdict {
                Ok(score) => (Some(score), Vec::new()),
                Err(reasons) => (None, reasons),
            };
            let asked = reasons.is_empty().then(|| self.ask_quote(node, &job)).flatten();
            rows.push((node, self.node_name(node), score, reasons, asked));
        }
        Response::Later(Box::pin(async move {
            let rows = rows.into_iter().map(|(node, name, score, mut reasons, asked)| async move {
                let quoted = match asked {
                    Some(asked) => asked.await,
                    None => None,
                };
                let answered = quoted.is_some();
                let quoted = quoted.unwrap_or_default();
                reasons.extend(quoted.reasons);
                json!({
                    "node": node,
                    "node_name": name,
                    "score": score.filter(|_| reasons.is_empty()),
                    "answered": answered,
                    "reasons": reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "obligations": quoted.obligations,
                    "memory_mib": quoted.memory_mib,
                    "seconds": quoted.seconds,
                })
            });
            document(&Value::Array(join_all(rows).await))
        }))
    }

    /// A node's own word, when it comes.
    fn ask_quote(
        &mut self,
        node: NodeId,
        job: &Verified<JobSpec>,
    ) -> Option<futures::future::BoxFuture<'static, Option<Quoted>>> {
        let cert = self.register.cert(job.signer)?.clone();
        let probe = Probe {
            federation: self.local.federation,
            signer: self.local.node,
            charter: job.charter,
            job: job.id(),
            attempt: 1,
            // It is no broker's probe: nothing answers it later.
            sequence: 0,
            issued: now(),
        };
        let probe = Verified::sign(self.local.identity.signing(), probe).ok()?;
        if node == self.local.node {
            let estimate = self.quote(&probe, &[job.clone().into(), cert.into()])?;
            return Some(Box::pin(async move { Some(estimate.finish().await) }));
        }
        let attached = vec![job.envelope().clone(), cert.envelope().clone()];
        let bundle = Bundle { main: probe.envelope().clone(), attached }.to_bytes();
        debug_assert!(bundle.len() <= BUNDLE_BYTES_MAX, "three messages are no large bundle");
        Some(Box::pin(ask(self.net.clone(), node, bundle)))
    }
}

async fn ask(net: NetHandle, node: NodeId, bundle: Vec<u8>) -> Option<Quoted> {
    let mut request = Vec::with_capacity(bundle.len() + 1);
    request.push(QUOTE);
    request.extend_from_slice(&bundle);
    match tokio::time::timeout(QUOTE_WAIT, net.request(node, request)).await {
        Ok(Ok(answer)) => Quoted::decode(&answer),
        Ok(Err(error)) => {
            tracing::debug!(node = %node.short(), %error, "no quote");
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use allmend_protocol::offer::ReasonClass;

    use super::*;

    #[test]
    fn an_answer_is_bounded() {
        let reason = Reason::new(ReasonClass::Policy, "no");
        let quoted = Quoted {
            reasons: vec![reason.clone(); REASONS_MAX],
            obligations: vec!["approve:data-steward".to_owned()],
            memory_mib: Some(700),
            seconds: None,
        };
        assert_eq!(Quoted::decode(&encoding::encode(&quoted)), Some(quoted.clone()));
        let many = Quoted { reasons: vec![reason; REASONS_MAX + 1], ..quoted.clone() };
        assert_eq!(Quoted::decode(&encoding::encode(&many)), None);
        let long = Quoted { obligations: vec!["x".repeat(QUOTED_BYTES_MAX)], ..quoted };
        assert_eq!(Quoted::decode(&encoding::encode(&long)), None);
        assert_eq!(Quoted::decode(b"\xff"), None);
    }

    /// Goal: no bundle is taken for a question for a quote.
    #[test]
    fn no_bundle_begins_like_a_question() {
        let empty: Vec<u8> = encoding::encode(&Vec::<u8>::new());
        assert!(empty[0] != QUOTE && Bundle::from_bytes(&[QUOTE]).is_err());
    }
}
