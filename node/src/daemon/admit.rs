//! Letting newcomers in: invitations made here, join requests answered here (specs/membership.md).

use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::{
    InstitutionCert, Invitation, JoinRequest, NodeCert, ResearcherCert, Role,
};
use allmend_protocol::envelope::{Envelope, Signed, Verified};
use allmend_protocol::ids::{InstitutionId, NodeId, PublicKey, ResearcherId};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::time::{DurationMs, Timestamp};
use anyhow::Context as _;

use super::Daemon;
use crate::client::proto::{Answer, Joined, Problem, ProblemClass};
use crate::membership::now;
use crate::seal::random_bytes;

/// How long certificates hold: a year, renewed well before.
pub(crate) const CERT_LIFETIME: DurationMs = DurationMs::from_secs(365 * 86_400);
/// A join request older than this is a replay, or comes from a machine whose clock is wrong.
const REQUEST_LIFETIME: DurationMs = DurationMs::from_secs(300);
/// The longest that an invitation may hold: a month.
const INVITATION_LIFETIME_MAX: u64 = 31 * 86_400;

impl Daemon {
    /// Signs an invitation.
    pub(super) fn invite(
        &mut self,
        role: Role,
        ttl_seconds: u64,
        mut credentials: Vec<String>,
    ) -> anyhow::Result<Answer> {
        let Some(institution) = &self.local.institution_key else {
            return Ok(no_institution_key());
        };
        if ttl_seconds == 0 || ttl_seconds > INVITATION_LIFETIME_MAX {
            return Ok(Answer::Refused(Problem::new(
                ProblemClass::Usage,
                "an invitation holds between a second and 31 days",
            )));
        }
        credentials.sort();
        credentials.dedup();
        let at = now();
        let charter = self.core.roster().charter().clone();
        let listening = self.net.listen_addresses();
        let body = Invitation {
            federation: self.local.federation,
            signer: institution.public().into(),
            charter: charter.id(),
            role,
            credentials,
            node: self.local.node,
            bulk: super::start::bulk_addresses(&listening),
            bootstrap: super::start::control_addresses(&listening, self.local.node),
            nonce: random_bytes()?,
            not_before: at,
            expires: at.plus(DurationMs::from_secs(ttl_seconds)),
        };
        let invitation = Verified::sign(institution.signing(), body)
            .context("the invitation cannot be signed")?;
        let envelope = ByteString(invitation.envelope().as_bytes().to_vec());
        Ok(Answer::Invitation { envelope })
    }

    /// Answers a join request: checks the invitation, uses it up, certifies the newcomer.
    pub(super) fn join(&mut self, caller: PublicKey, bytes: &[u8]) -> anyhow::Result<Answer> {
        match self.try_join(caller, bytes)? {
            Ok(joined) => Ok(Answer::Joined(joined)),
            Err(problem) => Ok(Answer::Refused(problem)),
        }
    }

    fn try_join(
        &mut self,
        caller: PublicKey,
        bytes: &[u8],
    ) -> anyhow::Result<Result<Joined, Problem>> {
        let refuse = |error: &str| Problem::new(ProblemClass::Refused, error.to_owned());
        let federation = self.local.federation;
        let request = match Signed::<JoinRequest>::from_bytes(bytes)
            .and_then(|signed| signed.verify(&federation))
        {
            Ok(request) => request,
            Err(error) => return Ok(Err(refuse("the join request does not hold").because(error))),
        };
        if request.signer != caller {
            return Ok(Err(refuse("the join request was signed by another key than the caller's")));
        }
        let invitation = match Signed::<Invitation>::from_bytes(&request.invitation.0)
            .and_then(|signed| signed.verify(&federation))
        {
            Ok(invitation) => invitation,
            Err(error) => return Ok(Err(refuse("the invitation does not hold").because(error))),
        };
        let Some(key) = &self.local.institution_key else {
            return Ok(Err(refuse("this node admits nobody")
                .hint("ask for an invitation at the node that holds the institution's key")));
        };
        if PublicKey::from(invitation.signer) != key.public() || invitation.node != self.local.node
        {
            return Ok(Err(refuse("the invitation is another institution's or node's")));
        }
        let at = now();
        let skew = self.core.roster().skew();
        if !invitation.holds_at(at, skew) {
            let why = format!("it held from {} to {}", invitation.not_before, invitation.expires);
            return Ok(Err(refuse("the invitation has expired")
                .because(why)
                .hint("ask whoever invited you for a new one")));
        }
        if invitation.charter != self.core.roster().charter().id() {
            return Ok(Err(refuse("the invitation is to an earlier charter")
                .hint("ask whoever invited you for a new one")));
        }
        if request.issued > at.plus(skew) || request.issued.plus(REQUEST_LIFETIME) < at {
            return Ok(Err(refuse("the join request is not of now")
                .because(format!("it says {}, here it is {at}", request.issued))
                .hint("set your machine's clock")));
        }
        if invitation.role != Role::Researcher && request.jurisdiction.is_none() {
            return Ok(Err(refuse("a node must say in which jurisdiction it stands")
                .hint("join with --jurisdiction CC")));
        }
        let fresh =
            self.register.use_invitation(&invitation.nonce, caller, invitation.expires, at)?;
        if !fresh {
            return Ok(Err(refuse("the invitation has been used before")
                .because("each invitation admits one key")
                .hint("ask whoever invited you for a new one")));
        }
        let own = self.certify(&request, &invitation, at)?;
        let envelope = |envelope: &Envelope| ByteString(envelope.as_bytes().to_vec());
        Ok(Ok(Joined {
            charter: envelope(self.core.roster().charter().envelope()),
            certificates: self
                .membership
                .certificates()
                .iter()
                .map(|message| envelope(message.envelope()))
                .collect(),
            own: envelope(own.envelope()),
        }))
    }

    fn certify(
        &mut self,
        request: &JoinRequest,
        invitation: &Invitation,
        at: Timestamp,
    ) -> anyhow::Result<AnyMessage> {
        let key = self.local.institution_key.as_ref().context("no institution key")?;
        let (federation, signer) = (self.local.federation, InstitutionId::from(key.public()));
        let charter = self.core.roster().charter().id();
        let serial = self.register.next_serial()?;
        // Nobody vouches for longer than they are vouched for themselves.
        let own_end = self
            .core
            .roster()
            .institution_at(at, signer)?
            .cert
            .as_ref()
            .map_or(Timestamp::from_ms(u64::MAX), |cert| cert.expires);
        let (not_before, expires) = (at, at.plus(CERT_LIFETIME).min(own_end));
        let (role, jurisdiction) = (invitation.role, request.jurisdiction);
        let key = key.signing();
        let message: AnyMessage = match role {
            Role::Researcher => {
                let cert = ResearcherCert {
                    federation,
                    signer,
                    charter,
                    researcher: ResearcherId::from(request.signer),
                    sealing: request.sealing,
                    home: self.local.node,
                    credentials: invitation.credentials.clone(),
                    serial,
                    not_before,
                    expires,
                };
                let cert = Verified::sign(key, cert)?;
                self.register.add(request.name.clone(), cert.clone(), at)?;
                self.clients.set(self.register.keys());
                cert.into()
            }
            Role::Node => Verified::sign(
                key,
                NodeCert {
                    federation,
                    signer,
                    charter,
                    node: NodeId::from(request.signer),
                    sealing: request.sealing,
                    name: request.name.clone(),
                    jurisdiction: jurisdiction.context("no jurisdiction")?,
                    serial,
                    not_before,
                    expires,
                },
            )?
            .into(),
            Role::Institution => Verified::sign(
                key,
                InstitutionCert {
                    federation,
                    signer,
                    charter,
                    institution: InstitutionId::from(request.signer),
                    name: request.name.clone(),
                    jurisdiction: jurisdiction.context("no jurisdiction")?,
                    serial,
                    not_before,
                    expires,
                },
            )?
            .into(),
        };
        if role != Role::Researcher {
            self.membership.add(message.clone())?;
        }
        tracing::info!(role = ?role, key = %request.signer.short(), "newcomer admitted");
        Ok(message)
    }
}

fn no_institution_key() -> Answer {
    Answer::Refused(
        Problem::new(ProblemClass::Refused, "this node does not hold its institution's key")
            .hint("invite at the node where the institution was founded"),
    )
}
