//! `allmend data` as a steward types it: what is printed, what is not, exit codes.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A point of Ed25519: RFC 8032's first test key.
const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
/// What may be in no output.
const SECRET: &str = "the-heron-flies-at-noon";
const PERSON: &str = "person-anna-17";

struct Steward {
    dir: tempfile::TempDir,
}

impl Steward {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("node/keys")).unwrap();
        fs::write(dir.path().join("p.cedar"), "permit(principal, action, resource);").unwrap();
        Self { dir }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn letters(&self) -> PathBuf {
        let row = |subject: &str, text: &str| {
            format!("{{\"text\":\"{text}\",\"subject_id\":\"{subject}\",\"page\":1}}\n")
        };
        self.file("letters.jsonl", &(row(PERSON, SECRET) + &row("berta", "barley")))
    }

    /// Runs `allmend data …`; whatever it prints, it prints nothing of a row.
    fn run(&self, args: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_allmend"))
            .arg("--dir")
            .arg(self.dir.path().join("node"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        for said in [&output.stdout, &output.stderr] {
            let said = String::from_utf8_lossy(said);
            assert!(!said.contains(SECRET) && !said.contains(PERSON), "{said}");
        }
        output
    }

    fn add(&self, source: &Path, more: &[&str]) -> Output {
        let policy = self.dir.path().join("p.cedar");
        let mut args = vec!["--json", "data", "add", source.to_str().unwrap(), "--name", "letters"];
        args.extend([
            "--policy",
            policy.to_str().unwrap(),
            "--title",
            "Letters",
            "--purpose",
            "research",
        ]);
        args.extend(["--sensitivity", "personal", "--steward", KEY]);
        args.extend(more);
        self.run(&args, "")
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    assert_eq!(code(output), 0, "{}", errors(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

const LICENSED: [&str; 4] = ["--licence", "CC-BY-4.0", "--language", "deu_Latn"];

#[test]
fn a_dataset_from_adding_to_withdrawal() {
    let steward = Steward::new();
    let added = steward.add(&steward.letters(), &LICENSED);
    let document = json(&added);
    assert_eq!(
        (document["rows"].as_u64(), document["state"].as_str()),
        (Some(2), Some("not advertised"))
    );
    assert!(errors(&added).contains("the key \"page\" was left out of 2 rows"));
    assert!(errors(&added).contains("without --min-subjects"));
    assert_eq!(code(&steward.add(&steward.letters(), &LICENSED)), 9, "there is one already");

    let listed = json(&steward.run(&["--json", "data", "ls"], ""));
    assert_eq!(listed[0]["name"], "letters");
    let shown = steward.run(&["data", "show", "letters"], "");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("CC-BY-4.0"));
    let croissant = json(&steward.run(&["data", "show", "letters", "--croissant"], ""));
    assert_eq!(croissant["inLanguage"][0], "deu_Latn");

    // From standard input, so that no history has it.
    let forget = ["--json", "data", "forget", "letters"];
    let forgotten = json(&steward.run(&forget, &format!("{PERSON}\n")));
    assert_eq!(forgotten["rows_forgotten"], 1);
    assert_eq!(forgotten["destroyed"][0], document["version"]);
    assert_eq!(code(&steward.run(&forget, PERSON)), 4, "nobody of that id any more");
    assert_eq!(code(&steward.run(&forget, "")), 2);

    let withdrawn =
        json(&steward.run(&["--json", "data", "withdraw", "letters", "--why", "no consent"], ""));
    assert_eq!(withdrawn["withdrawal"]["why"], "no consent");
    let shown = json(&steward.run(&["--json", "data", "show", "letters"], ""));
    assert_eq!(shown["state"], "withdrawn");
    assert_eq!(code(&steward.run(&["data", "show", "poems"], "")), 4);
}

#[test]
fn data_to_mend_is_told_with_its_lines() {
    let steward = Steward::new();
    let bad = steward
        .file("bad.jsonl", &format!("{{\"text\":\"{SECRET}\"}}\n{{\"text\":[\"{SECRET}\"]}}\n"));
    let checked = steward.run(&["data", "check", bad.to_str().unwrap()], "");
    assert_eq!(code(&checked), 8);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("bad.jsonl:2: \"text\" is a list, not text"), "{said}");
    let refused = steward.add(&bad, &LICENSED);
    assert_eq!(code(&refused), 2);
    assert!(errors(&refused).contains("bad.jsonl:2:"), "{}", errors(&refused));
    assert_eq!(json(&steward.run(&["--json", "data", "ls"], "")), Value::Array(Vec::new()));
    let good = steward.letters();
    assert_eq!(code(&steward.run(&["data", "check", good.to_str().unwrap()], "")), 0);
}

#[test]
fn what_is_wrong_is_hinted_at() {
    let steward = Steward::new();
    let letters = steward.letters();
    for (more, hint) in [
        (&["--licence", "cc by 4.0", "--language", "deu_Latn"][..], "CC-BY-4.0"),
        (&["--licence", "CC-BY-4.0", "--language", "de"][..], "deu_Latn"),
        (&["--licence", "CC-BY-4.0"][..], "--language deu_Latn"),
        (&["--language", "deu_Latn"][..], "--licence CC-BY-4.0"),
    ] {
        let refused = steward.add(&letters, more);
        assert_eq!(code(&refused), 2, "{more:?}");
        assert!(errors(&refused).contains(hint), "{more:?}: {}", errors(&refused));
    }
    let weak = steward.add(&letters, &[&LICENSED[..], &["--steward", &"0".repeat(64)]].concat());
    assert_eq!(code(&weak), 2);
}
