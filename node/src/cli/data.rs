//! Datasets of this node's stewards: added, shown, forgotten in part, withdrawn.
//!
//! These commands work on the node's own directory, beside a running daemon, which is told of every
//! change. What a row holds is never printed.

use std::cell::OnceCell;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use allmend_data::{
    AddError, Added, CroissantError, Dataset, Forgotten, Metadata, MetadataError, NameError,
    NewDataset, PackError, Policy, PolicyError, ReadOptions, Registry, RegistryError, Report,
    SUBJECT_BYTES_MAX, SourceError, VersionRecord, Withdrawn, read_source,
};
use allmend_policy::check::{self as policies, Severity};
use allmend_protocol::ids::PublicKey;
use anyhow::Context as _;
use serde_json::{Value, json};

use super::args::{DataAddOptions, DataCommand};
use super::context::{As, Context};
use super::look::{number, text};
use crate::client::proto::Ask;
use crate::membership::now;
use crate::ui::{
    self, Advice, Align, ExitClass, Explain, Explainer, Explanation, Progress, Style, Table,
    Terminal, explainer,
};

/// A bar that is gone at once only flickers.
const QUIET: Duration = Duration::from_secs(2);
/// A Croissant description or policy is small; a larger file is another one.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// What errors of datasets mean to a person.
pub(super) const EXPLAINERS: [Explainer; 6] = [
    explainer::<AddError>,
    explainer::<RegistryError>,
    explainer::<SourceError>,
    explainer::<MetadataError>,
    explainer::<CroissantError>,
    explainer::<PackError>,
];

pub(super) async fn run(context: &Context<'_>, command: DataCommand) -> anyhow::Result<ExitCode> {
    match command {
        DataCommand::Add(options) => {
            let added = add(context, &options)?;
            for warning in warnings(&added.dataset) {
                context.terminal.warn(warning);
            }
            say_report(context.terminal, &added.report);
            tell_node(context).await;
            context.terminal.answer(&describe(&added.dataset), print_dataset)?;
        }
        DataCommand::Check { source, mixed } => return check(context, &source, mixed),
        DataCommand::Ls => {
            let listing = registry(context)?.list()?;
            for damaged in &listing.damaged {
                context.terminal.warn(format!("{}: {}", damaged.name, damaged.why));
            }
            let rows = Value::Array(listing.datasets.iter().map(describe).collect());
            context.terminal.answer(&rows, print_datasets)?;
        }
        DataCommand::Show { dataset, croissant } => {
            let dataset = registry(context)?.find(&dataset)?;
            match dataset.croissant().filter(|_| croissant) {
                Some(description) => context.terminal.json(&description)?,
                None => context.terminal.answer(&describe(&dataset), print_dataset)?,
            }
        }
        DataCommand::Forget { dataset, subject } => {
            let subject = subject_of(subject)?;
            let registry = registry(context)?;
            let name = registry.find(&dataset)?.name;
            let forgotten =
                tokio::task::block_in_place(|| registry.forget(&name, &subject, now()))?;
            tell_node(context).await;
            context.terminal.answer(&describe_forgotten(&forgotten), print_forgotten)?;
        }
        DataCommand::Withdraw { dataset, why } => {
            if why.trim().is_empty() || why.chars().any(char::is_control) {
                return Err(Advice::new(ExitClass::Usage, "--why says nothing")
                    .hint("researchers whose jobs stop are shown it")
                    .into());
            }
            let registry = registry(context)?;
            let name = registry.find(&dataset)?.name;
            let withdrawn = registry.withdraw(&name, &why, now())?;
            tell_node(context).await;
            context.terminal.answer(&withdrawn, print_withdrawn)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn registry(context: &Context<'_>) -> anyhow::Result<Registry> {
    context.layout.require()?;
    Ok(Registry::open(context.layout.datasets_dir())?)
}

fn add(context: &Context<'_>, options: &DataAddOptions) -> anyhow::Result<Added> {
    let registry = registry(context)?;
    let name = options.name.parse().map_err(|error: NameError| {
        Advice::new(ExitClass::Usage, error.to_string()).hint("e.g. --name village-letters")
    })?;
    let source = options.source.clone();
    let mixed = options.mixed;
    let added = if options.new_version {
        watched(context, |read| {
            let read = ReadOptions { mixed, ..read };
            Ok(registry.add_version(&name, &source, &read, now())?)
        })
    } else {
        let new = NewDataset {
            name,
            metadata: metadata(options)?,
            policy: policy(options)?,
            stewards: options.steward.iter().map(steward).collect::<anyhow::Result<_>>()?,
            public: options.public,
            portable: Vec::new(),
            subjects_min: options.min_subjects,
            runs_max: options.runs_max,
        };
        watched(context, |read| {
            let read = ReadOptions { mixed, ..read };
            Ok(registry.add(new, &source, &read, now())?)
        })
    };
    if let Err(error) = &added
        && let Some(AddError::Invalid(report)) = error.downcast_ref::<AddError>()
    {
        say_complaints(context.terminal, report);
    }
    added
}

/// What may be said about the dataset: from a Croissant file, from options, or both, options first.
fn metadata(options: &DataAddOptions) -> anyhow::Result<Metadata> {
    let read = options
        .croissant
        .as_deref()
        .map(|path| {
            Metadata::from_croissant(read_text(path)?.as_bytes())
                .with_context(|| format!("cannot use {}", path.display()))
        })
        .transpose()?;
    let missing = |option: &str, example: &str| {
        Advice::new(ExitClass::Usage, format!("--{option} is missing"))
            .hint(format!("e.g. --{option} {example}, or --croissant FILE that says it"))
    };
    let chosen = |given: &Option<String>, known: Option<String>| given.clone().or(known);
    let known = read.as_ref();
    let title = chosen(&options.title, known.map(|m| m.title.clone()))
        .ok_or_else(|| missing("title", "\"Letters of a village\""))?;
    let licence = match &options.licence {
        Some(licence) => licence.parse()?,
        None => known.map(|m| m.licence.clone()).ok_or_else(|| missing("licence", "CC-BY-4.0"))?,
    };
    let mut languages = Vec::new();
    for language in &options.language {
        languages.push(language.parse()?);
    }
    let mut purposes = options.purpose.clone();
    if let Some(known) = known {
        if languages.is_empty() {
            languages.clone_from(&known.languages);
        }
        if purposes.is_empty() {
            purposes.clone_from(&known.purposes);
        }
    }
    if languages.is_empty() {
        return Err(missing("language", "deu_Latn").into());
    }
    if purposes.is_empty() {
        return Err(missing("purpose", "research").into());
    }
    let sensitivity = match &options.sensitivity {
        Some(sensitivity) => sensitivity.parse()?,
        None => known.map(|m| m.sensitivity).ok_or_else(|| missing("sensitivity", "personal"))?,
    };
    let metadata = Metadata {
        title,
        description: chosen(&options.description, known.and_then(|m| m.description.clone())),
        creator: chosen(&options.creator, known.and_then(|m| m.creator.clone())),
        url: chosen(&options.url, known.and_then(|m| m.url.clone())),
        licence,
        languages,
        purposes,
        sensitivity,
    };
    metadata.check()?;
    Ok(metadata)
}

fn policy(options: &DataAddOptions) -> anyhow::Result<Policy> {
    let Some(path) = &options.policy else {
        return Err(Advice::new(ExitClass::Usage, "--policy is missing")
            .hint("a dataset without a policy would refuse everybody; `allmend policy new` writes one")
            .into());
    };
    Policy::checked(read_text(path)?, check_policy).map_err(|error: PolicyError| {
        Advice::new(ExitClass::Config, format!("{}: {error}", path.display())).into()
    })
}

/// Whether the policy engine takes this text; the words say why not.
fn check_policy(text: &str) -> Result<(), String> {
    let worst =
        policies::check(text).into_iter().find(|finding| finding.severity == Severity::Error);
    worst.map_or(Ok(()), |finding| Err(finding.to_string()))
}

fn steward(key: &PublicKey) -> anyhow::Result<PublicKey> {
    let usable = ed25519_dalek::VerifyingKey::from_bytes(key.as_bytes())
        .is_ok_and(|parsed| !parsed.is_weak());
    if usable {
        return Ok(*key);
    }
    Err(Advice::new(ExitClass::Usage, format!("--steward {}: no Ed25519 public key", key.short()))
        .hint("a key has 64 hexadecimal digits; ask the steward for theirs")
        .into())
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(TEXT_BYTES_MAX).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

/// The subject to forget: as given, or from standard input, which leaves no trace in a shell's history.
fn subject_of(given: Option<String>) -> anyhow::Result<String> {
    if let Some(subject) = given {
        return Ok(subject);
    }
    let mut line = String::new();
    io::stdin().take(SUBJECT_BYTES_MAX as u64 + 2).read_to_string(&mut line)?;
    let subject = line.trim_end_matches(['\n', '\r']);
    if subject.is_empty() {
        return Err(Advice::new(ExitClass::Usage, "no subject was given")
            .hint("write the subject id to standard input, or name it with --subject")
            .into());
    }
    Ok(subject.to_owned())
}

fn check(context: &Context<'_>, source: &Path, mixed: bool) -> anyhow::Result<ExitCode> {
    let report = watched(context, |read| {
        let read = ReadOptions { mixed, ..read };
        Ok(read_source(source, &read, |_| Ok::<_, SourceError>(()))?)
    })?;
    context.terminal.answer(&report, |terminal, _| {
        for complaint in &report.complaints {
            terminal.line(complaint_line(complaint))?;
        }
        let more = report.complaint_count - report.complaints.len() as u64;
        if more > 0 {
            terminal.line(format!("… and {more} more"))?;
        }
        let formats: Vec<String> =
            report.formats.iter().map(|(format, files)| format!("{files} × {format}")).collect();
        terminal.line(format!(
            "{} rows in {} files ({}), {} to mend",
            report.rows,
            report.file_count,
            formats.join(", "),
            report.complaint_count
        ))
    })?;
    say_report(context.terminal, &report);
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitClass::Audit.into() })
}

/// Runs `work` with a bar once it takes long, and stops it when the person does.
fn watched<T>(
    context: &Context<'_>,
    work: impl FnOnce(ReadOptions<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancel);
    let interrupted = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
    });
    let (begun, bar) = (Instant::now(), OnceCell::<Progress>::new());
    let progress = |done, total| {
        if begun.elapsed() >= QUIET {
            bar.get_or_init(|| context.terminal.progress("reading", Some(total)))
                .set(done, Some(total));
        }
    };
    let options = ReadOptions { mixed: false, progress: Some(&progress), cancel: Some(&cancel) };
    let done = tokio::task::block_in_place(|| work(options));
    interrupted.abort();
    done
}

/// A node that runs here is told, so that it stops what may not run any more.
async fn tell_node(context: &Context<'_>) {
    if context.layout.daemon_file().exists()
        && let Ok(caller) = context.connect(As::Operator).await
    {
        let _ = caller.ask(&Ask::DataChanged {}).await;
        caller.close().await;
    }
}

fn complaint_line(complaint: &allmend_data::Complaint) -> String {
    format!("{}:{}: {}", complaint.file, complaint.line, complaint.what)
}

fn say_complaints(terminal: &Terminal, report: &Report) {
    for complaint in &report.complaints {
        terminal.note(complaint_line(complaint));
    }
    if report.rows == 0 && report.complaint_count == 0 {
        terminal.note("there is no row in it");
    }
}

/// What was passed over or left out: nothing happens silently.
fn say_report(terminal: &Terminal, report: &Report) {
    for (why, files) in &report.skipped {
        terminal.warn(format!("{files} passed over: {why}"));
    }
    for (key, times) in &report.ignored_keys {
        terminal.warn(format!("the key {key:?} was left out of {times} rows"));
    }
}

fn warnings(dataset: &Dataset) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(VersionRecord { counts, .. }) = dataset.current() else { return warnings };
    if counts.subjects < dataset.subjects_min {
        warnings.push(format!(
            "rows name {} subjects, fewer than --min-subjects {}: nothing can be released from it",
            counts.subjects, dataset.subjects_min
        ));
    }
    if dataset.metadata.sensitivity.is_personal() {
        if counts.unattributed > 0 {
            warnings.push(format!(
                "{} rows have no \"subject_id\": nobody can be forgotten in them, and they count for no subject",
                counts.unattributed
            ));
        }
        if dataset.subjects_min == 0 {
            warnings.push(
                "without --min-subjects an adapter may be released from very few people's rows"
                    .to_owned(),
            );
        }
    }
    warnings
}

fn state(dataset: &Dataset) -> &'static str {
    match (&dataset.withdrawn, dataset.public) {
        (Some(_), _) => "withdrawn",
        (None, true) => "public",
        (None, false) => "not advertised",
    }
}

fn describe(dataset: &Dataset) -> Value {
    let current = dataset.current();
    let counts = current.map(|version| version.counts).unwrap_or_default();
    let mut document = json!({
        "name": dataset.name,
        "version": current.map(|version| version.digest),
        "rows": counts.rows(),
        "counts": counts,
        "bytes": current.map_or(0, |version| version.bytes),
        "made": current.map(|version| version.made),
        "state": state(dataset),
        "metadata": dataset.metadata,
        "policy": dataset.policy.digest,
        "stewards": dataset.stewards,
        "public": dataset.public,
        "subjects_min": dataset.subjects_min,
        "versions": dataset.versions,
        "runs": dataset.runs.len(),
        "releases": dataset.releases,
    });
    if let Some(max) = dataset.runs_max {
        document["runs_max"] = json!(max);
    }
    if let Some(withdrawal) = &dataset.withdrawn {
        document["withdrawn"] = json!(withdrawal);
    }
    document
}

fn describe_forgotten(forgotten: &Forgotten) -> Value {
    json!({
        "name": forgotten.dataset.name,
        "version": forgotten.version,
        "rows_forgotten": forgotten.rows,
        "destroyed": forgotten.destroyed,
        "affected": forgotten.affected,
    })
}

fn print_datasets(terminal: &Terminal, datasets: &Value) -> io::Result<()> {
    let mut table = Table::new()
        .squeezable("NAME")
        .column("VERSION", Align::Left)
        .column("ROWS", Align::Right)
        .column("SUBJECTS", Align::Right)
        .column("SIZE", Align::Right)
        .squeezable("LICENCE")
        .squeezable("LANGUAGES")
        .column("STATE", Align::Left);
    for dataset in datasets.as_array().into_iter().flatten() {
        let metadata = &dataset["metadata"];
        table.row([
            text(dataset, "name").to_owned(),
            ui::short_id(text(dataset, "version")).to_owned(),
            ui::count(number(dataset, "rows")),
            ui::count(number(&dataset["counts"], "subjects")),
            ui::bytes(number(dataset, "bytes")),
            text(metadata, "licence").to_owned(),
            list(&metadata["languages"]),
            text(dataset, "state").to_owned(),
        ]);
    }
    if table.is_empty() {
        return terminal.line("no datasets yet; try a file first: allmend data check FILE.jsonl");
    }
    terminal.table(&table)
}

fn print_dataset(terminal: &Terminal, dataset: &Value) -> io::Result<()> {
    let line = |label: &str, value: String| terminal.line(format!("{label:<13}{value}"));
    let (metadata, counts) = (&dataset["metadata"], &dataset["counts"]);
    line("name", terminal.paint(Style::Strong, text(dataset, "name")))?;
    line("title", text(metadata, "title").to_owned())?;
    line("version", text(dataset, "version").to_owned())?;
    line("rows", {
        let of = |kind: &str| number(counts, kind);
        format!(
            "{} (chat {}, prompt/completion {}, text {}), {}",
            ui::count(number(dataset, "rows")),
            of("chat"),
            of("completion"),
            of("text"),
            ui::bytes(number(dataset, "bytes"))
        )
    })?;
    line("subjects", {
        let (named, none) = (number(counts, "subjects"), number(counts, "unattributed"));
        let least = number(dataset, "subjects_min");
        format!("{named} named, {none} rows of nobody named; at least {least} for a release")
    })?;
    line("licence", text(metadata, "licence").to_owned())?;
    line("languages", list(&metadata["languages"]))?;
    line("purposes", list(&metadata["purposes"]))?;
    line("sensitivity", text(metadata, "sensitivity").to_owned())?;
    line("policy", text(dataset, "policy").to_owned())?;
    for steward in dataset["stewards"].as_array().into_iter().flatten() {
        line("steward", steward.as_str().unwrap_or_default().to_owned())?;
    }
    line("state", text(dataset, "state").to_owned())?;
    if let Some(why) = dataset["withdrawn"]["why"].as_str() {
        line("because", why.to_owned())?;
    }
    let each = dataset["runs_max"].as_u64();
    line("runs", {
        let cap =
            each.map_or_else(String::new, |max| format!(", at most {max} for each requester"));
        format!("{}{cap}", number(dataset, "runs"))
    })?;
    let releases = dataset["releases"].as_array().map_or(0, Vec::len);
    line("released", format!("{releases} adapters"))
}

fn print_forgotten(terminal: &Terminal, forgotten: &Value) -> io::Result<()> {
    terminal.line(format!(
        "{} rows forgotten; the present version is {}",
        number(forgotten, "rows_forgotten"),
        text(forgotten, "version")
    ))?;
    for version in forgotten["destroyed"].as_array().into_iter().flatten() {
        let version = version.as_str().unwrap_or_default();
        terminal.line(format!("destroyed    version {version}"))?;
    }
    for affected in forgotten["affected"].as_array().into_iter().flatten() {
        let adapter = text(&affected["release"], "adapter");
        let how = if affected["certain"] == Value::Bool(true) {
            "learnt from a version that held the subject"
        } else {
            "learnt from a version destroyed earlier, which may have held the subject"
        };
        terminal.line(format!("adapter      {adapter}: {how}"))?;
    }
    terminal.note(
        "The files were overwritten and removed. Backups, snapshots of the file system and the file that you \
         added are yours to clean; adapters are taken back with `allmend recall`.",
    );
    Ok(())
}

fn print_withdrawn(terminal: &Terminal, withdrawn: &Withdrawn) -> io::Result<()> {
    terminal.line(format!("{} is withdrawn: {}", withdrawn.name, withdrawn.withdrawal.why))?;
    for release in &withdrawn.releases {
        terminal.line(format!("released     {}", release.adapter))?;
    }
    if !withdrawn.releases.is_empty() {
        terminal.note("adapters that are out are taken back with `allmend recall`");
    }
    Ok(())
}

fn list(values: &Value) -> String {
    let texts: Vec<&str> =
        values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    texts.join(", ")
}

impl Explain for RegistryError {
    fn explain(&self) -> Explanation {
        let class = match self {
            Self::NotFound(_) | Self::NoSuchSubject(_) => ExitClass::NotFound,
            Self::Ambiguous { .. } | Self::Exists(_) | Self::Changed(_) => ExitClass::Conflict,
            Self::Withdrawn { .. } | Self::Destroyed { .. } | Self::RunsUsed { .. } => {
                ExitClass::Refused
            }
            Self::Full { .. } => ExitClass::NoRoom,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ExitClass::NoRoom
            }
            Self::Io { .. } => ExitClass::Config,
            Self::Damaged { .. } | Self::Rows { .. } => ExitClass::Internal,
        };
        Explanation { class, hint: self.hint().map(str::to_owned) }
    }
}

impl Explain for SourceError {
    fn explain(&self) -> Explanation {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Explanation::of(ExitClass::NotFound)
            }
            Self::Io { .. } => Explanation::of(ExitClass::Config),
            Self::Cancelled => Explanation::of(ExitClass::Interrupted),
            Self::UnknownKind(_) => {
                Explanation::hinting(ExitClass::Usage, "unpack it, or name it after what it holds")
            }
            Self::NotAFile(_) | Self::Nothing(_) | Self::TooMany(_) => {
                Explanation::of(ExitClass::Usage)
            }
        }
    }
}

impl Explain for MetadataError {
    fn explain(&self) -> Explanation {
        Explanation { class: ExitClass::Usage, hint: self.hint() }
    }
}

impl Explain for CroissantError {
    fn explain(&self) -> Explanation {
        match self {
            Self::Metadata(error) => error.explain(),
            _ => Explanation::hinting(ExitClass::Usage, "specs/dataset.md §6 says what is read"),
        }
    }
}

impl Explain for AddError {
    fn explain(&self) -> Explanation {
        match self {
            Self::Source(error) => error.explain(),
            Self::Metadata(error) => error.explain(),
            Self::Registry(error) => error.explain(),
            Self::Invalid(_) => Explanation::hinting(
                ExitClass::Usage,
                "nothing was added; `allmend data check` shows what to mend",
            ),
            Self::Stewards(_) => Explanation::hinting(
                ExitClass::Usage,
                "name whoever approves jobs with --steward KEY",
            ),
            Self::Name(_) | Self::Rows(_) => Explanation::of(ExitClass::Usage),
            Self::Policy(_) => Explanation::of(ExitClass::Config),
        }
    }
}

impl Explain for PackError {
    fn explain(&self) -> Explanation {
        match self {
            Self::Source(error) => error.explain(),
            Self::Elsewhere { .. } => Explanation::of(ExitClass::Refused),
            Self::Io(_) => Explanation::of(ExitClass::Config),
            Self::TooLong => Explanation::of(ExitClass::NoRoom),
            Self::Invalid(_) | Self::Jurisdictions | Self::NotAPack | Self::Rows(_) => {
                Explanation::of(ExitClass::Usage)
            }
        }
    }
}
