//! `allmend policy`: write a policy from questions, check it, try it on a table of cases. Needs no node.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use allmend_policy::check::{Finding, Severity, check, needs_attention};
use allmend_policy::questionnaire::{Answers, Catalogue, Interview, LANGUAGES, Prompt, write};
use allmend_policy::{shipped, table};
use anyhow::Context as _;
use serde::Serialize;

use super::args::{PolicyCommand, PolicyNewOptions};
use super::context::Context;
use crate::ui::{Advice, ExitClass, Style, Terminal};

/// The largest file that is read here: beyond every bound of policies and tables, which say their own.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

pub(super) fn run(context: &Context<'_>, command: PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::New(options) => new(context.terminal, &options),
        PolicyCommand::Check { files } => check_files(context.terminal, &files),
        PolicyCommand::Test { table, policy } => test(context.terminal, &table, policy),
    }
}

#[derive(Serialize)]
struct Checked {
    file: String,
    findings: Vec<Finding>,
}

fn check_files(terminal: &Terminal, files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let mut checked = Vec::new();
    for path in files {
        let findings = check(&read(path)?);
        checked.push(Checked { file: path.display().to_string(), findings });
    }
    terminal.answer(&checked, |terminal, checked| {
        for Checked { file, findings } in checked {
            for finding in findings {
                let style = match finding.severity {
                    Severity::Error => Style::Bad,
                    Severity::Warning => Style::Warn,
                    Severity::Note => Style::Faint,
                };
                terminal.line(terminal.paint(style, &format!("{file}: {finding}")))?;
                terminal.line(format!("    {}", finding.hint))?;
            }
            if !needs_attention(findings) {
                terminal.line(terminal.paint(Style::Good, &format!("{file}: in order")))?;
            }
        }
        Ok(())
    })?;
    let attention = checked.iter().any(|checked| needs_attention(&checked.findings));
    Ok(if attention { ExitClass::Audit.into() } else { ExitCode::SUCCESS })
}

fn test(terminal: &Terminal, path: &Path, policy: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let text = read(path)?;
    let policy = policy.unwrap_or_else(|| path.with_extension("cedar"));
    let tested = read(&policy).map_err(|error| {
        error.context(
            Advice::new(ExitClass::NotFound, format!("no policy to test: {}", policy.display()))
                .hint("name it: allmend policy test TABLE --policy FILE"),
        )
    })?;
    let report = table::run(&text, Some(&tested)).map_err(|error| {
        Advice::new(ExitClass::Usage, format!("{}: {error}", path.display()))
            .hint("docs/steward.md shows a table; the requests it can begin with are listed there")
    })?;
    terminal.answer(&report, |terminal, report| {
        let mut failed = 0;
        for case in &report.cases {
            if case.differences.is_empty() {
                let line = format!("ok    {:<8} {}", case.verdict, case.name);
                terminal.line(line)?;
            } else {
                failed += 1;
                let line = format!("FAIL  {:<8} {}", case.verdict, case.name);
                terminal.line(terminal.paint(Style::Bad, &line))?;
                for difference in &case.differences {
                    terminal.line(format!("      {difference}"))?;
                }
            }
        }
        if !report.untested.is_empty() {
            let rules = report.untested.join(", ");
            terminal.line(terminal.paint(Style::Warn, &format!("no case reaches: {rules}")))?;
        }
        let style = if failed == 0 { Style::Good } else { Style::Bad };
        let summary = format!("{} cases, {failed} failed", report.cases.len());
        terminal.line(terminal.paint(style, &summary))
    })?;
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitClass::Audit.into() })
}

#[derive(Serialize)]
struct Written<'a> {
    policy: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

fn new(terminal: &Terminal, options: &PolicyNewOptions) -> anyhow::Result<ExitCode> {
    if let Some(file) = options.file.as_ref().filter(|file| file.exists()) {
        return Err(Advice::new(
            ExitClass::Conflict,
            format!("{} is there already", file.display()),
        )
        .hint("choose another name, or move it away")
        .into());
    }
    let text = match &options.example {
        Some(name) => example(name)?.to_owned(),
        None => from_answers(terminal, options)?,
    };
    let Some(file) = &options.file else {
        terminal.answer(&Written { policy: &text, file: None }, |terminal, written| {
            terminal.line(written.policy.trim_end())
        })?;
        return Ok(ExitCode::SUCCESS);
    };
    // Never over a file that came into being meanwhile.
    let mut out = std::fs::File::create_new(file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    out.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))?;
    let written = Written { policy: &text, file: Some(file.display().to_string()) };
    terminal.answer(&written, |terminal, _| {
        terminal.line(format!("written: {}", file.display()))?;
        terminal.line(format!("read it, then: allmend policy check {}", file.display()))
    })?;
    Ok(ExitCode::SUCCESS)
}

fn example(name: &str) -> anyhow::Result<&'static str> {
    match name {
        "charter" => Ok(shipped::CHARTER),
        "institution" => Ok(shipped::INSTITUTION),
        _ => shipped::example(name).map(|example| example.policy).ok_or_else(|| {
            let known: Vec<&str> = shipped::EXAMPLES.iter().map(|example| example.name).collect();
            Advice::new(ExitClass::NotFound, format!("no example is called {name:?}"))
                .hint(format!("there are {}, charter, institution", known.join(", ")))
                .into()
        }),
    }
}

fn from_answers(terminal: &Terminal, options: &PolicyNewOptions) -> anyhow::Result<String> {
    let catalogue = Catalogue::built_in(&options.language).ok_or_else(|| {
        let known: Vec<&str> = LANGUAGES.iter().map(|(name, _)| *name).collect();
        Advice::new(ExitClass::Usage, format!("no questions in {:?} yet", options.language))
            .hint(format!("there are {}", known.join(", ")))
    })?;
    let usage = |error: &dyn std::fmt::Display| Advice::new(ExitClass::Usage, error.to_string());
    let answers = match &options.answers {
        Some(path) => Answers::from_toml(&read(path)?)
            .map_err(|error| usage(&format!("{}: {error}", path.display())))?,
        None => ask(terminal, &catalogue)?,
    };
    Ok(write(&answers, &catalogue).map_err(|error| usage(&error))?)
}

/// Asks on the terminal. Questions go to standard error: the policy alone is the answer.
fn ask(terminal: &Terminal, catalogue: &Catalogue) -> anyhow::Result<Answers> {
    if terminal.is_json() || !io::stdin().is_terminal() {
        return Err(Advice::new(ExitClass::Usage, "there is nobody to ask")
            .hint("give the answers in a file: --answers FILE; or begin with --example NAME")
            .into());
    }
    let mut interview = Interview::new(catalogue);
    while let Some(prompt) = interview.prompt() {
        show(terminal, &prompt);
        let mut line = String::new();
        if io::stdin().read_line(&mut line)? == 0 {
            return Err(
                Advice::new(ExitClass::Interrupted, "the questions were not answered").into()
            );
        }
        if let Err(error) = interview.answer(&line) {
            terminal.warn(error.problem);
        }
    }
    interview.finish().context("a question was left out")
}

fn show(terminal: &Terminal, prompt: &Prompt) {
    terminal.note(format!("\n{}\n  {}", prompt.text, prompt.help));
    for (number, choice) in prompt.choices.iter().enumerate() {
        terminal.note(format!("  {}  {}", number + 1, choice.label));
    }
    let chosen = prompt.choices.iter().find(|choice| choice.value == prompt.default);
    let default = chosen.map_or(prompt.default.as_str(), |choice| choice.label.as_str());
    if !default.is_empty() {
        terminal.note(format!("  [{default}]"));
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| {
        let advice = Advice::new(ExitClass::NotFound, format!("cannot read {}", path.display()));
        anyhow::Error::from(error).context(advice)
    })?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {} as text", path.display()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Advice::new(ExitClass::Usage, format!("{} is too large", path.display()))
            .hint(format!("at most {FILE_BYTES_MAX} bytes"))
            .into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path, answers: &str) -> PolicyNewOptions {
        let path = dir.join("answers.toml");
        std::fs::write(&path, answers).expect("written");
        PolicyNewOptions {
            file: Some(dir.join("p.cedar")),
            answers: Some(path),
            example: None,
            language: "de".to_owned(),
        }
    }

    #[test]
    fn a_policy_is_written_checked_and_tested() {
        let dir = tempfile::tempdir().expect("a directory");
        let terminal = Terminal::plain(true);
        new(&terminal, &options(dir.path(), "who = \"anybody\"")).expect("written");
        let policy = dir.path().join("p.cedar");
        assert!(!needs_attention(&check(&read(&policy).expect("read"))));
        let table = dir.path().join("p.toml");
        let case = "[[case]]\nname = \"a\"\nrequest = \"private\"\nexpect = \"pending\"\n";
        std::fs::write(&table, case).expect("written");
        let code = test(&terminal, &table, None).expect("tested");
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
        std::fs::write(&table, case.replace("pending", "allow")).expect("written");
        let code = test(&terminal, &table, None).expect("tested");
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(ExitClass::Audit)));
    }

    #[test]
    fn no_file_is_overwritten_and_bad_answers_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let terminal = Terminal::plain(true);
        let mut options = options(dir.path(), "who = \"everybody\"");
        let error = new(&terminal, &options).expect_err("refused").to_string();
        assert!(error.contains("everybody"), "{error}");
        options.answers = None;
        options.example = Some("open-data".to_owned());
        new(&terminal, &options).expect("written");
        let error = new(&terminal, &options).expect_err("refused").to_string();
        assert!(error.contains("is there already"), "{error}");
    }

    #[test]
    fn findings_have_an_exit_code_of_their_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.cedar");
        std::fs::write(&path, "permit (principal, action, resource);").expect("written");
        let code = check_files(&Terminal::plain(true), &[path]).expect("checked");
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(ExitClass::Audit)));
        let missing = dir.path().join("missing.cedar");
        assert!(check_files(&Terminal::plain(true), &[missing]).is_err());
    }
}
