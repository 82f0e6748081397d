//! Serving clients: a task per stream reads the question, the loop answers it, the task sends
//! what follows.

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

use allmend_protocol::bytes::ByteString;
use allmend_protocol::encoding;
use allmend_protocol::envelope::Signed;
use allmend_protocol::ids::{Digest, MessageId, PublicKey, ResearcherId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::lease::Cancel;
use allmend_scheduler::io::Input;
use tokio::sync::{mpsc, oneshot};

use super::output::JobOutput;
use super::{Daemon, Event, Response};
use crate::client::proto::{Answer, Ask, CLIENT_FRAME_BYTES_MAX, Problem, ProblemClass};
use crate::membership::now;
use crate::net::{BulkStream, NetError};
use crate::spool::Kept;

/// Keys of researchers, for the transport, which treats unknown clients with more caution.
#[derive(Debug, Default)]
pub(crate) struct KnownClients(RwLock<BTreeSet<[u8; 32]>>);

impl KnownClients {
    pub(crate) fn set(&self, keys: BTreeSet<[u8; 32]>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    pub(crate) fn knows(&self, key: &[u8; 32]) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}

/// Bytes of one part of an output on its way to the client.
const PART_BYTES: usize = 1 << 20;
/// What a sealed input has more than its plaintext, generously.
const SEALING_OVERHEAD: u64 = 64 * 1024;

/// Serves one stream of a client.
pub(crate) async fn client(
    caller: PublicKey,
    mut stream: BulkStream,
    events: mpsc::Sender<Event>,
    prompt_bytes_max: u64,
) {
    if let Err(error) = exchange(caller, &mut stream, &events, prompt_bytes_max).await {
        tracing::debug!(caller = %caller.short(), %error, "client stream ended");
    }
}

async fn exchange(
    caller: PublicKey,
    stream: &mut BulkStream,
    events: &mpsc::Sender<Event>,
    prompt_bytes_max: u64,
) -> Result<(), NetError> {
    let Some(bytes) = stream.read_frame(CLIENT_FRAME_BYTES_MAX).await? else { return Ok(()) };
    let ask: Ask = match encoding::decode(&bytes, CLIENT_FRAME_BYTES_MAX) {
        Ok(ask) => ask,
        Err(error) => {
            let problem = Problem::new(ProblemClass::Usage, "the request is not understood")
                .because(error)
                .hint("client and node may be of different releases");
            return last(stream, &Answer::Refused(problem)).await;
        }
    };
    let payload = if matches!(ask, Ask::Submit { .. }) {
        let limit = prompt_bytes_max.saturating_add(SEALING_OVERHEAD);
        stream.read_frame(usize::try_from(limit).unwrap_or(usize::MAX)).await?
    } else {
        None
    };
    let (reply, answer) = oneshot::channel();
    let ask = Event::Ask { caller, ask: Box::new(ask), payload, reply };
    if events.send(ask).await.is_err() {
        return Ok(());
    }
    match answer.await {
        Ok(Response::Answer(answer)) => last(stream, &answer).await,
        Ok(Response::Later(answer)) => {
            let answer = answer.await;
            last(stream, &answer).await
        }
        Ok(Response::Parts(file)) => parts(stream, file).await,
        Ok(Response::Follow { first, output, from }) => {
            if let Some(first) = first {
                say(stream, &first).await?;
            }
            follow(stream, &output, from).await
        }
        Err(_) => {
            let problem = Problem::new(ProblemClass::Unavailable, "the node is stopping");
            last(stream, &Answer::Refused(problem)).await
        }
    }
}

async fn follow(stream: &mut BulkStream, output: &JobOutput, from: u32) -> Result<(), NetError> {
    let mut cursor = JobOutput::cursor(from);
    loop {
        let (events, over) = output.news(&mut cursor).await;
        for event in events {
            say(stream, &Answer::Event(event)).await?;
        }
        if over {
            return stream.finish().await;
        }
    }
}

/// Sends a file in parts; what cannot be read ends the stream, which the client notices.
async fn parts(stream: &mut BulkStream, file: std::fs::File) -> Result<(), NetError> {
    use tokio::io::AsyncReadExt as _;
    let mut file = tokio::fs::File::from_std(file);
    let mut buffer = vec![0; PART_BYTES];
    loop {
        match file.read(&mut buffer).await {
            Ok(0) => return last(stream, &Answer::Done {}).await,
            Ok(read) => {
                let bytes = ByteString(buffer[..read].to_vec());
                say(stream, &Answer::Part { bytes }).await?;
            }
            Err(error) => {
                let problem = Problem::new(ProblemClass::Internal, "the output cannot be read");
                return last(stream, &Answer::Refused(problem.because(error))).await;
            }
        }
    }
}

async fn say(stream: &mut BulkStream, answer: &Answer) -> Result<(), NetError> {
    stream.write_frame(&encoding::encode(answer), CLIENT_FRAME_BYTES_MAX).await
}

async fn last(stream: &mut BulkStream, answer: &Answer) -> Result<(), NetError> {
    say(stream, answer).await?;
    stream.finish().await
}

/// Who a caller is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// Holds the node's or the institution's key.
    Operator,
    /// Has a certificate in the register.
    Researcher(ResearcherId),
    /// Anybody else.
    Unknown,
}

impl Daemon {
    fn role_of(&self, caller: PublicKey) -> Caller {
        let institution = self.local.institution_key.as_ref().map(|key| key.public());
        if caller == self.local.node.into() || Some(caller) == institution {
            return Caller::Operator;
        }
        let researcher = ResearcherId::from(caller);
        if self.register.cert(researcher).is_some() {
            Caller::Researcher(researcher)
        } else {
            Caller::Unknown
        }
    }

    /// Answers one question.
    pub(super) async fn answer(
        &mut self,
        caller: PublicKey,
        ask: Ask,
        payload: Option<Vec<u8>>,
    ) -> anyhow::Result<Response> {
        let role = self.role_of(caller);
        let answer = match (&ask, role) {
            (Ask::Join { request }, _) => self.join(caller, &request.0)?,
            (_, Caller::Unknown) => Answer::Refused(
                Problem::new(ProblemClass::Refused, "this node does not know your key")
                    .hint("join with an invitation from this institution: allmend join INVITE"),
            ),
            (Ask::Hello {}, _) => self.hello_document(role == Caller::Operator),
            (Ask::Status {}, _) => self.status_document().await?,
            (Ask::Nodes {}, _) => self.nodes_document().await?,
            (Ask::Storage {}, _) => self.storage_document()?,
            (Ask::Submit { .. }, Caller::Researcher(researcher)) => {
                return self.submit(researcher, ask, payload).await;
            }
            (Ask::Explain { spec }, Caller::Researcher(_)) => return Ok(self.explain(&spec.0)),
            (Ask::Jobs { limit }, _) => self.jobs_document(self.sees(role), *limit),
            (Ask::Show { job, signed }, _) => match self.visible(role, *job) {
                Ok(()) => self.show_document(*job, *signed),
                Err(answer) => answer,
            },
            // The journal is the operator's own, whosever job it was.
            (Ask::Logs { job }, Caller::Operator) => self.logs_document(*job)?,
            (Ask::Logs { job }, _) => match self.visible(role, *job) {
                Ok(()) => self.logs_document(*job)?,
                Err(answer) => answer,
            },
            (Ask::Watch { job, from }, _) => match self.owned(role, *job) {
                Ok(()) => {
                    let output = self.watched(*job)?;
                    return Ok(Response::Follow { first: None, output, from: *from });
                }
                Err(answer) => answer,
            },
            (Ask::Result { job }, _) => match self.owned(role, *job) {
                Ok(()) => self.result(*job)?,
                Err(answer) => answer,
            },
            (Ask::Artifact { job }, _) => match self.owned(role, *job) {
                Ok(()) => return self.artifact(*job),
                Err(answer) => answer,
            },
            (Ask::Inbox {}, Caller::Operator) => self.inbox_document(None),
            (Ask::Inbox {}, Caller::Researcher(_)) => self.inbox_document(Some(caller)),
            (Ask::Approve { approval }, _) => self.approve(caller, &approval.0).await?,
            (Ask::Recall { adapter, why }, _) => self.recall(caller, *adapter, why.clone()).await?,
            (Ask::Recalls {}, Caller::Operator) => self.recalls_document(None),
            (Ask::Recalls {}, Caller::Researcher(_)) => self.recalls_document(Some(caller)),
            (Ask::Adapters {}, _) => self.adapters_document(),
            (Ask::Cancel { cancel }, Caller::Researcher(_)) => {
                self.cancel(caller, &cancel.0).await?
            }
            (Ask::Submit { .. } | Ask::Explain { .. } | Ask::Cancel { .. }, _) => Answer::Refused(
                Problem::new(ProblemClass::Refused, "only a researcher of this node can do that")
                    .hint("an operator invites one: allmend invite researcher"),
            ),
            (_, Caller::Researcher(_)) => Answer::Refused(Problem::new(
                ProblemClass::Refused,
                "only the operator of this node can do that",
            )),
            (_, Caller::Operator) => return self.operate(ask).await,
        };
        Ok(Response::Answer(answer))
    }

    async fn operate(&mut self, ask: Ask) -> anyhow::Result<Response> {
        let answer = match ask {
            Ask::Invite { role, ttl_seconds, credentials } => {
                self.invite(role, ttl_seconds, credentials)?
            }
            Ask::Drain { why } => {
                self.set_draining(Some(why)).await?;
                Answer::Done {}
            }
            Ask::Resume {} => {
                self.set_draining(None).await?;
                Answer::Done {}
            }
            Ask::Stop { drain } => {
                let _ = self.events.try_send(Event::Stop { drain });
                Answer::Done {}
            }
            Ask::Reach {} => return self.reach().await,
            Ask::Members {} => self.members_document(),
            Ask::Erase { researcher } => self.erase(researcher).await?,
            Ask::DataChanged {} => {
                self.stewards.reload()?;
                let state = self.local_state();
                self.step(vec![Input::Local(state)]).await?;
                Answer::Done {}
            }
            Ask::AdaptersChanged {} => {
                let state = self.local_state();
                self.step(vec![Input::Local(state)]).await?;
                Answer::Done {}
            }
            Ask::ModelsChanged {} => {
                self.capacity.look_for_models();
                let state = self.local_state();
                self.step(vec![Input::Local(state)]).await?;
                self.warm_models();
                Answer::Done {}
            }
            _ => Answer::Refused(Problem::new(ProblemClass::Usage, "not for an operator")),
        };
        Ok(Response::Answer(answer))
    }

    async fn submit(
        &mut self,
        researcher: ResearcherId,
        ask: Ask,
        payload: Option<Vec<u8>>,
    ) -> anyhow::Result<Response> {
        let Ask::Submit { spec, salt, follow } = ask else {
            return Ok(refused(ProblemClass::Usage, "not a submission"));
        };
        let job = match self.check_submission(researcher, &spec.0, &salt.0, payload.as_deref()) {
            Ok(job) => job,
            Err(problem) => return Ok(Response::Answer(Answer::Refused(problem))),
        };
        let id = job.id();
        if self.core.job(id).is_none() {
            if let Some(cert) = self.register.cert(researcher)
                && let Err(reasons) = self.core.check_submit(now(), &job, cert)
            {
                let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                let problem = Problem::new(ProblemClass::Refused, "home does not take this job")
                    .because(reasons.join("; "));
                return Ok(Response::Answer(Answer::Refused(problem)));
            }
            let Some(cert) = self.register.cert(researcher).cloned() else {
                return Ok(refused(ProblemClass::Refused, "your certificate is gone"));
            };
            let salt = <[u8; 32]>::try_from(salt.0.as_slice()).unwrap_or_default();
            let kept = Kept { researcher, salt };
            if let Err(error) = self.spool.put_input(id, &payload.unwrap_or_default(), &kept) {
                let problem =
                    Problem::new(ProblemClass::NoRoom, "the input cannot be kept").because(error);
                return Ok(Response::Answer(Answer::Refused(problem)));
            }
            // The answer goes out after the step: the job spec is durable by then.
            self.step(vec![Input::Submit { job, cert }]).await?;
        }
        if self.core.job(id).is_none() {
            self.spool.remove(id)?;
            return Ok(refused(ProblemClass::Unavailable, "too many jobs are open at this node"));
        }
        let first = Answer::Submitted { job: id };
        if follow {
            let output = self.watched(id)?;
            return Ok(Response::Follow { first: Some(first), output, from: 0 });
        }
        Ok(Response::Answer(first))
    }

    fn check_submission(
        &self,
        researcher: ResearcherId,
        spec: &[u8],
        salt: &[u8],
        payload: Option<&[u8]>,
    ) -> Result<allmend_protocol::envelope::Verified<JobSpec>, Problem> {
        let problem = |error: &str| Problem::new(ProblemClass::Usage, error.to_owned());
        let job = Signed::<JobSpec>::from_bytes(spec)
            .and_then(|signed| signed.verify(&self.local.federation))
            .map_err(|error| problem("the job spec does not hold").because(error))?;
        if job.signer != researcher {
            return Err(Problem::new(ProblemClass::Refused, "the job is signed by another key"));
        }
        if job.home != self.local.node {
            return Err(problem("the job names another home node"));
        }
        if let Some(why) = &self.draining {
            return Err(
                Problem::new(ProblemClass::Unavailable, "this node takes no new jobs").because(why)
            );
        }
        if let Some(why) = self.capacity.disk_full() {
            return Err(Problem::new(ProblemClass::NoRoom, "this node's disk is full").because(why));
        }
        let sealed = payload.ok_or_else(|| problem("the sealed input is missing"))?;
        let salt = <[u8; 32]>::try_from(salt).map_err(|_| problem("the salt has not 32 bytes"))?;
        if Digest::salted(&salt, sealed) != job.input.digest
            || sealed.len() as u64 != job.input.bytes
        {
            return Err(problem("the sealed input is not the one that the job names"));
        }
        if !job.input.wraps.iter().any(|wrap| wrap.node == self.local.node) {
            return Err(problem("the input's key is not wrapped for this home node"));
        }
        Ok(job)
    }

    async fn cancel(&mut self, caller: PublicKey, bytes: &[u8]) -> anyhow::Result<Answer> {
        let cancel = match Signed::<Cancel>::from_bytes(bytes)
            .and_then(|signed| signed.verify(&self.local.federation))
        {
            Ok(cancel) if cancel.signer == caller => cancel,
            Ok(_) => {
                return Ok(Answer::Refused(Problem::new(
                    ProblemClass::Refused,
                    "the cancellation is signed by another key",
                )));
            }
            Err(error) => {
                let problem = Problem::new(ProblemClass::Usage, "the cancellation does not hold");
                return Ok(Answer::Refused(problem.because(error)));
            }
        };
        if let Err(answer) = self.owned(self.role_of(caller), cancel.job) {
            return Ok(answer);
        }
        if self.core.job(cancel.job).is_some_and(|view| view.phase.is_over()) {
            return Ok(Answer::Refused(
                Problem::new(ProblemClass::Unavailable, "the job is over already")
                    .hint(format!("see how it ended: allmend show {}", cancel.job.short())),
            ));
        }
        self.step(vec![Input::Cancel(cancel)]).await?;
        Ok(Answer::Done {})
    }

    fn result(&self, job: MessageId) -> anyhow::Result<Answer> {
        let Some(view) = self.core.job(job) else { return Ok(no_such_job()) };
        if !view.phase.is_over() {
            return Ok(Answer::Refused(
                Problem::new(ProblemClass::Unavailable, "the job is not over yet")
                    .because(view.why)
                    .hint(format!("follow it: allmend watch {}", job.short())),
            ));
        }
        Ok(match self.spool.result(job)? {
            Some(result) => Answer::Result { phase: view.phase, result },
            None => Answer::Refused(
                Problem::new(ProblemClass::NotFound, "the result is no longer kept")
                    .hint("results are removed some time after settlement, or on erasure"),
            ),
        })
    }

    /// What the gate released, part by part.
    fn artifact(&self, job: MessageId) -> anyhow::Result<Response> {
        let Some(file) = self.spool.artifact(job)? else {
            return Ok(Response::Answer(Answer::Refused(
                Problem::new(ProblemClass::NotFound, "this job has released nothing that is kept")
                    .hint(format!("see how it ended: allmend show {}", job.short())),
            )));
        };
        Ok(Response::Parts(file))
    }

    /// A job's output, for watching. One that is over is told from its record.
    fn watched(&mut self, job: MessageId) -> anyhow::Result<std::sync::Arc<JobOutput>> {
        let output = self.output(job)?;
        if let Some(view) = self.core.job(job).filter(|view| view.phase.is_over()) {
            let why = self.with_names(&view.why);
            output.set_over(view.phase, why, Vec::new());
        }
        Ok(output)
    }

    async fn erase(&mut self, researcher: ResearcherId) -> anyhow::Result<Answer> {
        if !self.register.erase(researcher)? {
            return Ok(Answer::Refused(
                Problem::new(ProblemClass::NotFound, "no such researcher in the register")
                    .hint("list them: allmend members ls"),
            ));
        }
        self.clients.set(self.register.keys());
        for (job, ..) in self.spool.jobs()? {
            let theirs = self.spool.kept(job).is_ok_and(|kept| kept.researcher == researcher)
                || self.core.job_spec(job).is_some_and(|spec| spec.signer == researcher);
            if theirs {
                self.spool.remove(job)?;
                self.outputs.remove(&job);
            }
        }
        tracing::info!(researcher = %researcher.short(), "erased from the register");
        Ok(Answer::Done {})
    }

    /// Whose jobs a caller may list: an operator sees all, a researcher their own.
    fn sees(&self, role: Caller) -> Option<ResearcherId> {
        match role {
            Caller::Researcher(researcher) => Some(researcher),
            Caller::Operator | Caller::Unknown => None,
        }
    }

    fn visible(&self, role: Caller, job: MessageId) -> Result<(), Answer> {
        if role == Caller::Operator && !self.stewards.decisions(job).is_empty() {
            return Ok(());
        }
        let spec = self.core.job_spec(job).ok_or_else(no_such_job)?;
        match role {
            Caller::Operator => Ok(()),
            Caller::Researcher(researcher) if spec.signer == researcher => Ok(()),
            // Whether somebody else's job exists is nobody's business.
            _ => Err(no_such_job()),
        }
    }

    /// Content is for its researcher alone, not for the operator.
    fn owned(&self, role: Caller, job: MessageId) -> Result<(), Answer> {
        match role {
            Caller::Researcher(_) => self.visible(role, job),
            _ => Err(Answer::Refused(Problem::new(
                ProblemClass::Refused,
                "only the job's researcher can read or cancel it",
            ))),
        }
    }
}

pub(super) fn no_such_job() -> Answer {
    Answer::Refused(
        Problem::new(ProblemClass::NotFound, "no such job at this node")
            .hint("list your jobs: allmend jobs"),
    )
}

fn refused(class: ProblemClass, error: &str) -> Response {
    Response::Answer(Answer::Refused(Problem::new(class, error)))
}
