//! Founding, inviting, joining (specs/membership.md §5).

use std::process::ExitCode;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::{Invitation, JoinRequest, NodeCert, Role};
use allmend_protocol::charter::{Charter, Member, SKEW_DEFAULT, Timing};
use allmend_protocol::envelope::{Envelope, Signed, Verified};
use allmend_protocol::ids::{InstitutionId, NodeId, PublicKey};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::time::DurationMs;
use allmend_protocol::units::Jurisdiction;
use anyhow::{Context as _, bail, ensure};

use super::args::{InitOptions, InviteOptions, JoinOptions};
use super::context::{As, Context, Home};
use crate::client::Caller;
use crate::client::proto::{Answer, Ask, Joined};
use crate::config::{Identity, Layout, annotated, create_private_dir, write_private};
use crate::membership::{now, verify_charter};
use crate::ui::{Advice, ExitClass};

/// How long a charter admits newcomers, and certificates hold that an institution gives itself.
const CHARTER_LIFETIME: DurationMs = DurationMs::from_secs(5 * 365 * 86_400);
const OWN_CERT_LIFETIME: DurationMs = DurationMs::from_secs(365 * 86_400);
/// An invitation as text begins with this.
const INVITATION_PREFIX: &str = "allmend-invite1:";
/// The longest invitation text read from a file.
const INVITATION_TEXT_MAX: usize = 64 * 1024;

pub(super) fn init(context: &Context<'_>, options: &InitOptions) -> anyhow::Result<ExitCode> {
    let layout = &context.layout;
    if layout.charter().exists() {
        return Err(Advice::new(
            ExitClass::Conflict,
            "this directory belongs to a federation already",
        )
        .hint("choose another with --dir, or see `allmend status`")
        .into());
    }
    layout.create()?;
    let institution = Identity::load_or_create(&layout.institution_key())?;
    let node = Identity::load_or_create(&layout.node_key())?;
    write_config(
        context,
        options.institution.as_deref(),
        options.name.as_deref(),
        options.jurisdiction,
        &options.set,
    )?;
    let config = context.config(&[])?;
    let charter = match (&options.found, &options.charter) {
        (Some(name), _) => Some(found(context, options, name, &institution)?),
        (None, Some(path)) => {
            let bytes = std::fs::read(path)
                .with_context(|| format!("cannot read the charter {}", path.display()))?;
            Some(
                verify_charter(&bytes)
                    .with_context(|| format!("the charter {}", path.display()))?,
            )
        }
        (None, None) => None,
    };
    if let Some(charter) = &charter {
        let Some(member) =
            charter.institutions.iter().find(|m| m.key == institution.public().into())
        else {
            return Err(Advice::new(
                ExitClass::Refused,
                "the charter does not list this institution",
            )
            .hint(format!(
                "its founder lists it with --member {},CC,NAME; or ask for an invitation",
                institution.public()
            ))
            .into());
        };
        let jurisdiction = config.jurisdiction.unwrap_or(member.jurisdiction);
        enter(context, charter, &[], &institution, &node, &config.name, jurisdiction)?;
    }
    let shown = serde_json::json!({
        "dir": layout.root(),
        "institution": institution.public(),
        "node": node.public(),
        "charter": charter.as_ref().map(|charter| charter.id()),
        "federation": charter.as_ref().map(|charter| charter.federation.unwrap_or_else(|| charter.id().into())),
        "charter_file": layout.charter(),
    });
    context.terminal.answer(&shown, |terminal, _| {
        terminal.line(format!("institution  {}", institution.public()))?;
        terminal.line(format!("node         {}", node.public()))?;
        terminal.line(format!("directory    {}", layout.root().display()))?;
        match &charter {
            Some(charter) => {
                terminal.line(format!("federation   {} ({})", charter.name, charter.id()))?;
                terminal.line(format!("charter      {}", layout.charter().display()))?;
                terminal.line("")?;
                terminal.line(
                    "next: allmend models pull smollm2-135m, allmend doctor, allmend node run",
                )
            }
            None => {
                terminal.line("")?;
                terminal.line(
                    "next: give the institution key to a founder, or ask for an invitation:",
                )?;
                terminal.line("      allmend init --charter FILE, or allmend join INVITE")
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn found(
    context: &Context<'_>,
    options: &InitOptions,
    name: &str,
    institution: &Identity,
) -> anyhow::Result<Verified<Charter>> {
    let config = context.config(&[])?;
    let Some(jurisdiction) = config.jurisdiction else {
        return Err(Advice::new(ExitClass::Usage, "a founding institution names its jurisdiction")
            .hint("add --jurisdiction CC, e.g. --jurisdiction CH")
            .into());
    };
    let own_name = if config.institution.is_empty() {
        config.name.clone()
    } else {
        config.institution.clone()
    };
    let mut institutions =
        vec![Member { key: institution.public().into(), name: own_name, jurisdiction }];
    for text in &options.members {
        institutions.push(parse_member(text)?);
    }
    institutions.sort_by_key(|member| member.key);
    let at = now();
    let charter = Charter {
        federation: None,
        signer: institution.public().into(),
        name: name.to_owned(),
        version: 1,
        previous: None,
        not_before: at,
        expires: at.plus(CHARTER_LIFETIME),
        institutions,
        members_may_sponsor: true,
        sequencer: None,
        skew_ms: SKEW_DEFAULT,
        timing: Timing::default(),
    };
    Verified::sign(institution.signing(), charter)
        .context("the charter does not keep its own rules")
}

fn parse_member(text: &str) -> anyhow::Result<Member> {
    let mut parts = text.splitn(3, ',');
    let (Some(key), Some(jurisdiction), Some(name)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(
            Advice::new(ExitClass::Usage, format!("--member {text:?} is not KEY,CC,NAME")).into()
        );
    };
    let usage = |what: String| Advice::new(ExitClass::Usage, format!("--member {text:?}: {what}"));
    Ok(Member {
        key: key.parse().map_err(|error| usage(format!("{error}")))?,
        jurisdiction: jurisdiction.parse().map_err(|error: &str| usage(error.to_owned()))?,
        name: name.to_owned(),
    })
}

/// Makes this institution's node a member: certifies it and writes charter and certificates.
fn enter(
    context: &Context<'_>,
    charter: &Verified<Charter>,
    certificates: &[AnyMessage],
    institution: &Identity,
    node: &Identity,
    name: &str,
    jurisdiction: Jurisdiction,
) -> anyhow::Result<()> {
    let at = now();
    let cert = Verified::sign(
        institution.signing(),
        NodeCert {
            federation: charter.federation.unwrap_or_else(|| charter.id().into()),
            signer: institution.public().into(),
            charter: charter.id(),
            node: NodeId::from(node.public()),
            sealing: node.sealing().public(),
            name: name.to_owned(),
            jurisdiction,
            // Serials of certificates that this institution gives others count from 1.
            serial: 0,
            not_before: at,
            expires: at.plus(OWN_CERT_LIFETIME),
        },
    )
    .context("the node's certificate cannot be signed")?;
    write_certificate(context, &cert.into())?;
    for certificate in certificates {
        write_certificate(context, certificate)?;
    }
    let path = context.layout.charter();
    write_private(&path, charter.envelope().as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

fn write_certificate(context: &Context<'_>, message: &AnyMessage) -> anyhow::Result<()> {
    let path = context.layout.certs_dir().join(format!("{}.cert", message.id()));
    write_private(&path, message.envelope().as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes `config.toml` with the given values, unless there is one.
fn write_config(
    context: &Context<'_>,
    institution: Option<&str>,
    name: Option<&str>,
    jurisdiction: Option<Jurisdiction>,
    set: &[String],
) -> anyhow::Result<()> {
    let path = context.layout.config_file();
    let mut chosen: Vec<(&str, toml::Value)> = Vec::new();
    for (key, value) in [
        ("institution", institution),
        ("name", name),
        ("jurisdiction", jurisdiction.as_ref().map(Jurisdiction::as_str)),
    ] {
        chosen.extend(value.map(|value| (key, value.into())));
    }
    for assignment in set {
        let (key, value) = assignment.split_once('=').ok_or_else(|| {
            Advice::new(ExitClass::Usage, format!("--set {assignment} has no `=`"))
                .hint("write it like --set limits.slots=2")
        })?;
        // As TOML where it is TOML (numbers, lists), else as text.
        let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
            .ok()
            .and_then(|mut table| table.remove("value"));
        chosen.push((key.trim(), parsed.unwrap_or_else(|| value.into())));
    }
    if path.exists() {
        ensure!(
            set.is_empty() && institution.is_none() && name.is_none() && jurisdiction.is_none(),
            Advice::new(ExitClass::Conflict, format!("{} exists already", path.display()))
                .hint("edit it, or remove it first")
        );
        return Ok(());
    }
    let text = annotated(&chosen);
    write_private(&path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    write_policies(&context.layout)
}

/// The two policies on datasets to begin with, where there are none: without them nothing is allowed.
fn write_policies(layout: &Layout) -> anyhow::Result<()> {
    use allmend_policy::shipped;
    for (path, text) in [
        (layout.charter_policy(), shipped::CHARTER),
        (layout.institution_policy(), shipped::INSTITUTION),
    ] {
        if path.exists() {
            continue;
        }
        let write = || format!("cannot write {}", path.display());
        if let Some(dir) = path.parent() {
            create_private_dir(dir).with_context(write)?;
        }
        write_private(&path, text.as_bytes()).with_context(write)?;
    }
    Ok(())
}

pub(super) async fn invite(
    context: &Context<'_>,
    options: InviteOptions,
) -> anyhow::Result<ExitCode> {
    let caller = context.connect(As::Operator).await?;
    let ask = Ask::Invite {
        role: options.role.into(),
        ttl_seconds: options.expires.as_secs(),
        credentials: options.credentials,
    };
    let Answer::Invitation { envelope } = caller.ask(&ask).await? else {
        bail!("the node's answer is no invitation");
    };
    caller.close().await;
    let text = format!("{INVITATION_PREFIX}{}", data_encoding::BASE64URL_NOPAD.encode(&envelope.0));
    let invitation = Signed::<Invitation>::from_bytes(&envelope.0)?;
    let body = invitation.unverified();
    let shown = serde_json::json!({
        "invitation": text, "role": body.role, "expires": body.expires,
        "charter": body.charter, "federation": body.federation,
    });
    context.terminal.answer(&shown, |terminal, _| {
        terminal.line(&text)?;
        terminal.note(format!(
            "holds once, until {}; the newcomer runs: allmend join INVITATION",
            body.expires
        ));
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn join(context: &Context<'_>, options: JoinOptions) -> anyhow::Result<ExitCode> {
    let invitation = read_invitation(&options.invitation)?;
    let layout = &context.layout;
    let researcher = invitation.role == Role::Researcher;
    if !researcher && layout.charter().exists() {
        return Err(Advice::new(
            ExitClass::Conflict,
            "this directory belongs to a federation already",
        )
        .hint("choose another with --dir")
        .into());
    }
    if researcher && layout.home_file().exists() {
        return Err(Advice::new(
            ExitClass::Conflict,
            "a researcher has joined in this directory already",
        )
        .hint("choose another with --dir")
        .into());
    }
    let Some(name) = options.name.clone() else {
        let what = if researcher { "your name" } else { "the institution's or node's name" };
        return Err(Advice::new(ExitClass::Usage, format!("{what} is missing"))
            .hint("add --name \"NAME\"")
            .into());
    };
    layout.create()?;
    let (key, node) = match invitation.role {
        Role::Researcher => (Identity::load_or_create(&layout.researcher_key())?, None),
        Role::Node => (Identity::load_or_create(&layout.node_key())?, None),
        Role::Institution => (
            Identity::load_or_create(&layout.institution_key())?,
            Some(Identity::load_or_create(&layout.node_key())?),
        ),
    };
    let request = JoinRequest {
        federation: invitation.federation,
        signer: key.public(),
        invitation: ByteString(invitation.envelope().as_bytes().to_vec()),
        sealing: key.sealing().public(),
        name: name.clone(),
        jurisdiction: options.jurisdiction,
        issued: now(),
    };
    let request = Verified::sign(key.signing(), request).context("the join request")?;
    let caller = Caller::connect(key.signing(), invitation.node, &invitation.bulk).await?;
    let ask = Ask::Join { request: ByteString(request.envelope().as_bytes().to_vec()) };
    let Answer::Joined(joined) = caller.ask(&ask).await? else {
        bail!("the node's answer is no admission");
    };
    let remote = caller.remote_address();
    caller.close().await;
    let (charter, certificates, own) = check_joined(&invitation, &joined, key.public())?;
    match invitation.role {
        Role::Researcher => {
            // The address that worked comes first from now on.
            let remote = remote.to_string();
            let others = invitation.bulk.iter().filter(|address| **address != remote).cloned();
            let bulk = std::iter::once(remote.clone()).chain(others).collect();
            write_certificate(context, &own)?;
            let home = Home { node: invitation.node, bulk };
            write_private(&layout.home_file(), &serde_json::to_vec_pretty(&home)?)?;
            if !layout.charter().exists() {
                write_private(&layout.charter(), charter.envelope().as_bytes())?;
            }
        }
        Role::Node | Role::Institution => {
            let mut set = options.set.clone();
            let list: Vec<String> = invitation.bootstrap.iter().map(|a| format!("{a:?}")).collect();
            set.push(format!("bootstrap=[{}]", list.join(", ")));
            let institution = node.is_some().then_some(name.as_str());
            let node_name = node.is_none().then_some(name.as_str());
            write_config(context, institution, node_name, options.jurisdiction, &set)?;
            let config = context.config(&[])?;
            let jurisdiction = config.jurisdiction.context("no jurisdiction")?;
            let mut certificates = certificates;
            certificates.push(own.clone());
            match &node {
                Some(node) => {
                    enter(context, &charter, &certificates, &key, node, &config.name, jurisdiction)?
                }
                None => {
                    for certificate in &certificates {
                        write_certificate(context, certificate)?;
                    }
                    write_private(&layout.charter(), charter.envelope().as_bytes())?;
                }
            }
        }
    }
    let shown = serde_json::json!({
        "role": invitation.role, "key": key.public(), "federation": invitation.federation,
        "charter": charter.id(), "dir": layout.root(),
    });
    context.terminal.answer(&shown, |terminal, _| {
        terminal.line(format!(
            "joined       {} ({})",
            charter.name,
            invitation.federation.short()
        ))?;
        terminal.line(format!("your key     {}", key.public()))?;
        terminal.line(format!("directory    {}", layout.root().display()))?;
        terminal.line("")?;
        terminal.line(if researcher {
            "next: allmend chat"
        } else {
            "next: allmend models pull smollm2-135m, allmend doctor, allmend node run"
        })
    })?;
    Ok(ExitCode::SUCCESS)
}

fn read_invitation(text: &str) -> anyhow::Result<Verified<Invitation>> {
    let wrong = |why: &str| {
        Advice::new(ExitClass::Usage, format!("this is no invitation: {why}"))
            .hint("it is one line that begins with allmend-invite1:, or a file with that line")
    };
    let mut text = text.trim().to_owned();
    if !text.starts_with(INVITATION_PREFIX) {
        text = std::fs::read_to_string(&text).map_err(|error| wrong(&error.to_string()))?;
        ensure!(text.len() <= INVITATION_TEXT_MAX, wrong("the file is too large"));
        text = text.trim().to_owned();
    }
    let encoded = text.strip_prefix(INVITATION_PREFIX).ok_or_else(|| wrong("wrong beginning"))?;
    let bytes = data_encoding::BASE64URL_NOPAD
        .decode(encoded.as_bytes())
        .map_err(|_| wrong("it is cut off or mistyped"))?;
    let signed =
        Signed::<Invitation>::from_bytes(&bytes).map_err(|error| wrong(&error.to_string()))?;
    let federation = signed.unverified().federation;
    let invitation = signed.verify(&federation).map_err(|error| wrong(&error.to_string()))?;
    if now() >= invitation.expires {
        return Err(Advice::new(
            ExitClass::Refused,
            format!("the invitation has expired at {}", invitation.expires),
        )
        .hint("ask whoever invited you for a new one")
        .into());
    }
    Ok(invitation)
}

/// Believes nothing of the answer that is not signed: the charter is the invitation's, and our
/// certificate names our key.
fn check_joined(
    invitation: &Invitation,
    joined: &Joined,
    key: PublicKey,
) -> anyhow::Result<(Verified<Charter>, Vec<AnyMessage>, AnyMessage)> {
    let charter = verify_charter(&joined.charter.0).context("the charter in the answer")?;
    ensure!(
        charter.id() == invitation.charter,
        "the charter in the answer is not the invitation's"
    );
    ensure!(
        invitation.federation == charter.id().into(),
        "the invitation is of another federation than its charter"
    );
    let verify = |bytes: &ByteString| {
        let envelope = Envelope::from_bytes(&bytes.0)?;
        AnyMessage::verify(&envelope, &invitation.federation)
    };
    let certificates = joined
        .certificates
        .iter()
        .map(verify)
        .collect::<Result<Vec<_>, _>>()
        .context("a certificate in the answer")?;
    let own = verify(&joined.own).context("our certificate in the answer")?;
    let inviter = InstitutionId::from(own.signer());
    ensure!(inviter == invitation.signer, "our certificate is not the inviting institution's");
    let subject: PublicKey = match &own {
        AnyMessage::ResearcherCert(cert) => cert.researcher.into(),
        AnyMessage::NodeCert(cert) => cert.node.into(),
        AnyMessage::InstitutionCert(cert) => cert.institution.into(),
        other => bail!("a {} is no certificate", other.kind().0),
    };
    ensure!(subject == key, "our certificate names another key");
    Ok((charter, certificates, own))
}
