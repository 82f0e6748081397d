//! What stewards hand in, good and bad.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;
use crate::row::tests::any_row;
use crate::row::{Kind, Role};

fn read(source: &Path, mixed: bool) -> Result<(Vec<Row>, Report), SourceError> {
    let mut rows = Vec::new();
    let options = ReadOptions { mixed, ..ReadOptions::default() };
    let report = read_source(source, &options, |row| {
        rows.push(row);
        Ok::<_, SourceError>(())
    })?;
    Ok((rows, report))
}

fn of_file(name: &str, content: impl AsRef<[u8]>) -> (Vec<Row>, Report) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    read(&path, false).unwrap()
}

/// The row as a line that a steward might write.
fn line(row: &Row) -> String {
    let mut object = match &row.content {
        Content::Chat { messages } => serde_json::json!({
            "messages": messages
                .iter()
                .map(|turn| serde_json::json!({"role": turn.role.as_str(), "content": turn.content}))
                .collect::<Vec<_>>(),
        }),
        Content::Completion { prompt, completion } => {
            serde_json::json!({"prompt": prompt, "completion": completion})
        }
        Content::Text { text } => serde_json::json!({"text": text}),
    };
    if let Some(subject) = &row.subject {
        object["subject_id"] = subject.as_str().into();
    }
    object.to_string()
}

/// The one complaint about a one-line file.
fn complaint(line: impl AsRef<[u8]>) -> String {
    let (rows, report) = of_file("data.jsonl", line);
    assert!(rows.is_empty() && !report.is_clean());
    assert_eq!(report.complaint_count, 1, "{:?}", report.complaints);
    assert_eq!(report.complaints[0].line, 1);
    report.complaints[0].what.clone()
}

#[test]
fn three_shapes_are_read() {
    let chat = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"}],"subject_id":7}"#;
    let (rows, report) = of_file("a.jsonl", format!("\u{feff}{chat}\r\n\n{chat}"));
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((rows.len(), report.blank_lines), (2, 1));
    assert_eq!(rows[0].subject.as_deref(), Some("7"));
    assert_eq!(report.files[0].format, Format::Lines(Kind::Chat));
    let Content::Chat { messages } = &rows[0].content else { panic!("no chat") };
    assert_eq!(messages[2].role, Role::Assistant);

    let (rows, report) = of_file("a.ndjson", r#"{"prompt":"","completion":"c","source":"x"}"#);
    assert!(report.is_clean());
    assert_eq!(rows[0].kind(), Kind::Completion);
    assert_eq!(report.ignored_keys.get("source"), Some(&1), "what is left out is said");

    let (rows, report) = of_file("a.txt", "line\r\n\ttwo\n");
    assert!(report.is_clean());
    let Content::Text { text } = &rows[0].content else { panic!("no text") };
    assert_eq!(text, "line\r\n\ttwo\n", "a text is kept to the byte");
    assert_eq!(report.files[0].format, Format::TextFile);
}

#[test]
fn every_fault_is_named_and_none_quotes_a_value() {
    let cases: &[(&str, &str)] = &[
        (r#"{"text":"SECRET"#, "ends early, at column 15"),
        (r#"{"text":"SECRET" "x"}"#, "not JSON at column 18"),
        (r#"{"text":"SECRET"} {}"#, "not JSON at column 19"),
        (r#"{"text":"\ud800SECRET"}"#, "not JSON at column"),
        (r#"["SECRET"]"#, "not a JSON object"),
        (r#""SECRET""#, "not a JSON object"),
        (r#"{"text":"SECRET","text":"b"}"#, "the key \"text\" occurs twice"),
        (r#"{"x":1,"text":"SECRET","x":2}"#, "the key \"x\" occurs twice"),
        (r#"{"SECRETx":1}"#, "none of the keys \"messages\""),
        (r#"{"text":"SECRET","prompt":"a","completion":"b"}"#, "both \"prompt\" and \"text\""),
        (r#"{"text":"SECRET","messages":[]}"#, "both \"messages\" and \"text\""),
        (r#"{"prompt":"SECRET"}"#, "\"prompt\" without \"completion\""),
        (r#"{"completion":"SECRET"}"#, "\"completion\" without \"prompt\""),
        (
            r#"{"prompt":[{"role":"user","content":"SECRET"}],"completion":"c"}"#,
            "\"prompt\" is a list",
        ),
        (r#"{"text":null}"#, "\"text\" is null, not text"),
        (r#"{"text":17}"#, "\"text\" is a number, not text"),
        (r#"{"text":{"SECRET":[[1]]}}"#, "\"text\" is an object, not text"),
        (r#"{"text":" \n"}"#, "\"text\" is empty"),
        (r#"{"text":"SECRET\u0000"}"#, "\"text\" holds a NUL"),
        (r#"{"text":"SECRET","subject_id":1.5}"#, "\"subject_id\" is a number, neither"),
        (r#"{"text":"SECRET","subject_id":null}"#, "\"subject_id\" is null, neither"),
        (r#"{"text":"SECRET","subject_id":""}"#, "\"subject_id\" is empty"),
        (r#"{"messages":"SECRET"}"#, "\"messages\" is text, not a list"),
        (r#"{"messages":{"SECRET":1}}"#, "\"messages\" is an object, not a list"),
        (r#"{"messages":[]}"#, "\"messages\" is empty"),
        (r#"{"messages":["SECRET",2,{"x":[]}]}"#, "message 1: text, not an object"),
        (r#"{"messages":[{"role":"user"}]}"#, "message 1: no \"content\""),
        (r#"{"messages":[{"content":"SECRET"}]}"#, "message 1: no \"role\""),
        (r#"{"messages":[{"role":"boss","content":"SECRET"}]}"#, "the role \"boss\" is not known"),
        (r#"{"messages":[{"role":1,"content":"SECRET"}]}"#, "\"role\" is a number"),
        (r#"{"messages":[{"role":"user","content":null}]}"#, "\"content\" is null"),
        (
            r#"{"messages":[{"role":"user","content":"SECRET","tool_calls":[]}]}"#,
            "the key \"tool_calls\" is not known",
        ),
        (
            r#"{"messages":[{"role":"user","content":"SECRET","role":"user"}]}"#,
            "message 1: the key \"role\" occurs twice",
        ),
        (r#"{"messages":[{"role":"user","content":"SECRET"}]}"#, "nothing to learn from"),
        (
            r#"{"messages":[{"role":"assistant","content":"a"},{"role":"system","content":"SECRET"}]}"#,
            "message 2 has the role \"system\"",
        ),
    ];
    for (line, expected) in cases {
        let what = complaint(line);
        assert!(what.contains(expected), "{line}: {what}");
        assert!(!what.contains("SECRET"), "{what}");
    }
    assert!(complaint(b"{\"text\":\"\xff\"}").contains("not UTF-8 at byte 10"));
    assert!(complaint(b"{\"text\":\"a\0b\"}").contains("not JSON"));
    let keys: Vec<String> = (0..70).map(|key| format!("\"k{key}\":1")).collect();
    assert!(complaint(format!("{{{}}}", keys.join(","))).contains("more than 64 keys"));
}

#[test]
fn depth_length_and_flood_are_bounded() {
    let deep = format!("{{\"text\":{}", "[".repeat(1 << 20));
    assert!(complaint(&deep).contains("JSON"));
    let ignored =
        format!("{{\"x\":{}{},\"text\":\"a\"}}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let (rows, report) = of_file("a.jsonl", ignored);
    assert!(rows.len() as u64 + report.complaint_count == 1, "read or refused, no overflow");
    let turns = vec![r#"{"role":"assistant","content":"a"}"#; 600].join(",");
    assert!(complaint(format!("{{\"messages\":[{turns}]}}")).contains("more than 512 messages"));
    let long = format!("{{\"text\":\"{}\"}}\n{{\"text\":\"b\"}}", "a".repeat(LINE_BYTES_MAX));
    let (rows, report) = of_file("a.jsonl", long);
    assert_eq!((rows.len(), report.complaints[0].line), (1, 1));
    let (_, report) = of_file("a.jsonl", "nonsense\n".repeat(5_000));
    assert_eq!((report.complaint_count, report.complaints.len()), (5_000, COMPLAINTS_KEPT));
}

#[test]
fn text_files_are_checked_with_their_lines() {
    let at = |content: &[u8]| {
        let (rows, report) = of_file("a.txt", content);
        assert!(rows.is_empty());
        (report.complaints[0].line, report.complaints[0].what.clone())
    };
    assert_eq!(at(b"one\ntwo \xff"), (2, "not UTF-8".to_owned()));
    assert_eq!(at(b"one\n\nthr\0ee").0, 3);
    assert!(at(b" \n").1.contains("empty"));
    assert!(at(&vec![b'a'; ROW_BYTES_MAX + 1]).1.contains("split it"));
    assert!(of_file("a.jsonl", "\n\n").1.complaints[0].what.contains("no row"));
}

#[test]
fn shapes_are_never_mixed_silently() {
    let (rows, report) =
        of_file("a.jsonl", "{\"text\":\"a\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}\n");
    assert_eq!(rows.len(), 1);
    assert_eq!(report.complaints[0].line, 2);
    assert!(report.complaints[0].what.contains("a prompt/completion row in a file that began"));

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.jsonl"), "{\"text\":\"a\"}\n").unwrap();
    fs::write(dir.path().join("b.jsonl"), "{\"prompt\":\"a\",\"completion\":\"b\"}\n").unwrap();
    let (_, report) = read(dir.path(), false).unwrap();
    assert!(report.complaints[0].what.contains("different formats"), "{report:?}");
    let (rows, report) = read(dir.path(), true).unwrap();
    assert!(report.is_clean() && rows.len() == 2);
    assert_eq!(report.formats.len(), 2, "and it is said: {:?}", report.formats);
}

#[test]
fn a_folder_is_read_in_order_and_says_what_it_passes_over() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    for (name, content) in
        [("b.txt", "b"), ("a.md", "a"), ("sub/c.TXT", "c"), (".hidden.txt", "h"), ("d.pdf", "d")]
    {
        fs::write(at(name), content).unwrap();
    }
    let outside = tempfile::NamedTempFile::with_suffix(".txt").unwrap();
    symlink(outside.path(), at("link.txt")).unwrap();
    symlink("/", at("everything")).unwrap();
    let (rows, report) = read(dir.path(), false).unwrap();
    let texts: Vec<&str> = rows
        .iter()
        .map(|row| match &row.content {
            Content::Text { text } => text.as_str(),
            _ => panic!("no text"),
        })
        .collect();
    assert_eq!(texts, ["a", "b", "c"]);
    let skipped: Vec<(&str, u64)> = report.skipped.into_iter().collect();
    assert_eq!(
        skipped,
        [("hidden", 1), ("link", 2), ("not .jsonl, .ndjson, .txt, .text or .md", 1)]
    );
}

#[test]
fn what_is_no_source_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read(dir.path(), false), Err(SourceError::Nothing(_))));
    assert!(matches!(read(&dir.path().join("x"), false), Err(SourceError::Io { .. })));
    let zip = dir.path().join("a.jsonl.gz");
    fs::write(&zip, "x").unwrap();
    assert!(matches!(read(&zip, false), Err(SourceError::UnknownKind(_))));
    assert!(matches!(read(Path::new("/dev/null"), false), Err(SourceError::NotAFile(_))));
}

#[test]
fn it_stops_when_told_and_says_how_far_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, "{\"text\":\"a\"}\n".repeat(100)).unwrap();
    let cancel = AtomicBool::new(false);
    let last = Cell::new((0, 0));
    let progress = |done, total| last.set((done, total));
    let options = ReadOptions { progress: Some(&progress), cancel: Some(&cancel), mixed: false };
    let mut rows = 0;
    let stopped = read_source(&path, &options, |_| {
        rows += 1;
        cancel.store(rows == 10, Ordering::Relaxed);
        Ok::<_, SourceError>(())
    });
    assert!(matches!(stopped, Err(SourceError::Cancelled)));
    assert_eq!(rows, 10);
    assert_eq!(last.get(), (11 * 13, 1_300));
}

proptest! {
    #[test]
    fn lines_read_back_as_the_rows_they_were(rows in prop::collection::vec(any_row(), 1..6)) {
        let kind = rows[0].kind();
        let rows: Vec<Row> = rows.into_iter().filter(|row| row.kind() == kind).collect();
        let file: String = rows.iter().map(|row| line(row) + "\n").collect();
        let (read, report) = of_file("a.jsonl", file);
        prop_assert!(report.is_clean(), "{:?}", report.complaints);
        prop_assert_eq!(read, rows);
    }

    #[test]
    fn no_file_panics_and_every_line_is_accounted_for(bytes: Vec<u8>, more in "[\\[\\]{}:,\"a-z0-9\\\\\n]{0,80}") {
        let content = [bytes.as_slice(), b"\n", more.as_bytes()].concat();
        let lines = content.split(|byte| *byte == b'\n').count() as u64;
        let (rows, report) = of_file("a.jsonl", &content);
        let told = rows.len() as u64 + report.complaint_count + report.blank_lines;
        // The last line may be nothing at all; a file without any row is one complaint more.
        prop_assert!(told >= lines - 1 && told <= lines + 1, "{} of {}", told, lines);
        of_file("a.txt", &content);
    }

    #[test]
    fn a_damaged_line_is_read_or_complained_about(
        row in any_row(), at: prop::sample::Index, by in 1_u8..,
    ) {
        let mut bytes = line(&row).into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        let (rows, report) = of_file("a.jsonl", &bytes);
        prop_assert!(rows.len() as u64 + report.complaint_count + report.blank_lines >= 1);
    }
}
