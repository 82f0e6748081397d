//! `specs/vectors/dataset.json`: encodings, digests, files, lines and a description that everybody who
//! reads specs/dataset.md must agree on. `ALLMEND_WRITE_VECTORS=1` writes the file anew.

use std::fs;
use std::path::PathBuf;

use allmend_data::{
    Content, Croissant, Message, Metadata, Role, Row, Rows, RowsWriter, Salt, Sensitivity,
    read_source,
};
use allmend_data::{ReadOptions, SourceError, VersionHeader};
use allmend_protocol::encoding;
use allmend_protocol::ids::Digest;
use allmend_protocol::log::TreeHash;
use allmend_protocol::time::Timestamp;
use serde_json::{Value, json};

const SALT: [u8; 32] = [0x5a; 32];

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../specs/vectors/dataset.json")
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn unhex(value: &Value) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn rows() -> Vec<Row> {
    let said = |role, content: &str| Message { role, content: content.to_owned() };
    vec![
        Row { content: Content::Text { text: "Grüezi 🌄\n".to_owned() }, subject: None },
        Row {
            content: Content::Completion { prompt: String::new(), completion: "b".to_owned() },
            subject: Some("p-17".to_owned()),
        },
        Row {
            content: Content::Chat {
                messages: vec![
                    said(Role::System, "Be brief."),
                    said(Role::User, "Where does the marmot sleep?"),
                    said(Role::Tool, "{}"),
                    said(Role::Assistant, "In its burrow."),
                ],
            },
            subject: Some("p-17".to_owned()),
        },
    ]
}

/// Encodings that are no row, as text in CBOR's own terms.
fn bad_rows() -> Vec<(&'static str, Vec<u8>)> {
    let text = Row { content: Content::Text { text: "a".to_owned() }, subject: None };
    let good = text.encode().unwrap();
    let spliced = |from: &str, to: &[u8]| {
        let at = good.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        [&good[..at], to, &good[at + from.len()..]].concat()
    };
    vec![
        ("no content", encoding::encode(&json!({}))),
        ("another shape", encoding::encode(&json!({"content": {"picture": {"text": "a"}}}))),
        (
            "two shapes",
            encoding::encode(&json!({"content": {
            "text": {"text": "a"}, "completion": {"prompt": "", "completion": "a"}}})),
        ),
        (
            "an unknown field",
            encoding::encode(&json!({"content": {"text": {"text": "a"}}, "id": "x"})),
        ),
        (
            "null for no subject",
            encoding::encode(&json!({"content": {"text": {"text": "a"}}, "subject": null})),
        ),
        (
            "an unknown role",
            encoding::encode(&json!({"content": {"chat": {"messages": [
            {"role": "boss", "content": "a"}]}}})),
        ),
        (
            "no assistant",
            encoding::encode(&json!({"content": {"chat": {"messages": [
            {"role": "user", "content": "a"}]}}})),
        ),
        (
            "system later",
            encoding::encode(&json!({"content": {"chat": {"messages": [
            {"role": "assistant", "content": "a"}, {"role": "system", "content": "b"}]}}})),
        ),
        ("an empty text", encoding::encode(&json!({"content": {"text": {"text": ""}}}))),
        ("a NUL", encoding::encode(&json!({"content": {"text": {"text": "\0"}}}))),
        (
            "an empty subject",
            encoding::encode(&json!({"content": {"text": {"text": "a"}}, "subject": ""})),
        ),
        ("a length not in its shortest form", spliced("\u{61}a", &[0x78, 0x01, b'a'])),
        ("a byte after it", [good.as_slice(), &[0]].concat()),
        ("not UTF-8", spliced("\u{61}a", &[0x61, 0xff])),
    ]
}

/// Lines of JSONL, and the row or what is said about them.
fn lines() -> Vec<Value> {
    [
        r#"{"text":"a","subject_id":7,"source":"left out"}"#,
        r#"{"prompt":"p","completion":"c"}"#,
        r#"{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#,
        r#"{"text":"a","text":"b"}"#,
        r#"{"text":"a","prompt":"b","completion":"c"}"#,
        r#"{"prompt":"b"}"#,
        r#"{"text":"a\u0000"}"#,
        r#"{"text":null}"#,
        r#"{"messages":[{"role":"user","content":"u","name":"n"}]}"#,
        r#"{"messages":[{"role":"boss","content":"u"}]}"#,
        r#"["text"]"#,
        r#"{"text":"a""#,
    ]
    .into_iter()
    .map(|line| {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("line.jsonl");
        fs::write(&source, line).unwrap();
        let mut rows = Vec::new();
        let report = read_source(&source, &ReadOptions::default(), |row| {
            rows.push(row);
            Ok::<_, SourceError>(())
        })
        .unwrap();
        match rows.pop() {
            Some(row) => json!({"line": line, "row": row}),
            None => json!({"line": line, "complaint": report.complaints[0].what}),
        }
    })
    .collect()
}

fn file() -> (Vec<u8>, VersionHeader) {
    let mut writer = RowsWriter::new(Vec::new(), Salt::from_bytes(SALT)).unwrap();
    for row in rows() {
        writer.push(&row).unwrap();
    }
    writer.finish().unwrap()
}

fn metadata() -> Metadata {
    Metadata {
        title: "Letters of a village".to_owned(),
        description: Some("Letters, 1850 to 1900, transcribed.".to_owned()),
        creator: Some("Cantonal archive".to_owned()),
        url: None,
        licence: "CC-BY-4.0".parse().unwrap(),
        languages: vec!["deu_Latn".parse().unwrap(), "roh_Latn".parse().unwrap()],
        purposes: vec!["research".to_owned(), "teaching".to_owned()],
        sensitivity: Sensitivity::Personal,
    }
}

fn all() -> Value {
    let salt = Salt::from_bytes(SALT);
    let good: Vec<Value> = rows()
        .iter()
        .map(|row| {
            let encoded = row.encode().unwrap();
            json!({
                "row": row,
                "encoding": hex(&encoded),
                "leaf": TreeHash::leaf(salt.digest(&encoded).as_bytes()),
                "subject_key": row.subject_key(&salt),
            })
        })
        .collect();
    let bad: Vec<Value> = bad_rows()
        .iter()
        .map(|(what, bytes)| json!({"what": what, "encoding": hex(bytes)}))
        .collect();
    let (bytes, header) = file();
    let metadata = metadata();
    let croissant = Croissant {
        name: "letters",
        metadata: &metadata,
        version: header.digest(),
        ordinal: 1,
        counts: header.counts,
        rows_bytes: bytes.len() as u64,
        rows_sha256: Digest::of(&bytes),
        made: Timestamp::from_ms(1_795_422_000_000),
    };
    json!({
        "salt": hex(&SALT),
        "rows": good,
        "bad_rows": bad,
        "version": {
            "file": hex(&bytes),
            "header": header,
            "header_encoding": hex(&encoding::encode(&header)),
            "digest": header.digest(),
        },
        "lines": lines(),
        "croissant": croissant.to_json(),
    })
}

#[test]
fn the_code_agrees_with_the_vectors() {
    let computed = all();
    if std::env::var_os("ALLMEND_WRITE_VECTORS").is_some() {
        let mut text = serde_json::to_string_pretty(&computed).unwrap();
        text.push('\n');
        fs::write(path(), text).unwrap();
    }
    let written: Value = serde_json::from_slice(&fs::read(path()).unwrap()).unwrap();
    assert_eq!(written, computed);
}

#[test]
fn the_vectors_are_read_as_they_say() {
    let vectors: Value = serde_json::from_slice(&fs::read(path()).unwrap()).unwrap();
    let list = |name: &str| vectors[name].as_array().unwrap().clone();
    for good in list("rows") {
        let row: Row = serde_json::from_value(good["row"].clone()).unwrap();
        assert_eq!(Row::decode(&unhex(&good["encoding"])).unwrap(), row);
    }
    assert!(list("bad_rows").len() >= 10);
    for bad in list("bad_rows") {
        assert!(Row::decode(&unhex(&bad["encoding"])).is_err(), "{}", bad["what"]);
    }
    let bytes = unhex(&vectors["version"]["file"]);
    let mut rows = Rows::open(bytes.as_slice()).unwrap();
    let read: Vec<Row> = rows.by_ref().map(Result::unwrap).collect();
    assert_eq!(read.len(), list("rows").len());
    let digest = rows.header().unwrap().digest();
    assert_eq!(json!(digest), vectors["version"]["digest"]);
    let described = serde_json::to_vec(&vectors["croissant"]).unwrap();
    assert_eq!(Metadata::from_croissant(&described).unwrap(), metadata());
}
