//! Against a small HTTP server on loopback that answers as the Hub does.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use super::super::source::Source;
use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CONTENT: &[u8] = b"GGUF and then some weights";

/// Answers `requests` requests, then ends; gives the lines asked for.
fn hub_server(requests: usize, sha256: String, cut: usize) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (asked, lines) = mpsc::sync_channel(64);
    thread::spawn(move || {
        for connection in listener.incoming().take(requests) {
            let _ = asked.send(answer(connection.unwrap(), &sha256, cut));
        }
    });
    (endpoint, lines)
}

fn answer(mut connection: TcpStream, sha256: &str, cut: usize) -> String {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let (mut request, mut body, mut start) = (String::new(), 0, 0);
    reader.read_line(&mut request).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim().to_ascii_lowercase();
        if let Some(length) = line.strip_prefix("content-length: ") {
            body = length.parse().unwrap();
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.split('-').next().unwrap().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    reader.read_exact(&mut vec![0; body]).unwrap();
    let size = CONTENT.len();
    let json = |text: String| (200, "application/json", text.len(), text.into_bytes());
    let (status, kind, length, content) = if request.starts_with("POST") {
        json(format!(
            r#"[{{"type":"file","oid":"x","size":{size},"path":"m.gguf",
               "lfs":{{"size":{size},"sha256":"{sha256}","pointerSize":1}}}}]"#
        ))
    } else if request.contains("/revision/v1") || request.contains("/api/models/o/r ") {
        json(format!(r#"{{"id":"o/r","sha":"{COMMIT}","tags":["gguf","license:mit"]}}"#))
    } else if request.starts_with("HEAD") {
        (200, "application/octet-stream", size, Vec::new())
    } else if request.contains("/resolve/") {
        let rest = &CONTENT[start..];
        let status = if start > 0 { 206 } else { 200 };
        (status, "application/octet-stream", rest.len(), rest[..rest.len() - cut].to_vec())
    } else {
        (404, "text/plain", 0, Vec::new())
    };
    write!(
        connection,
        "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    connection.write_all(&content).unwrap();
    request.trim().to_owned()
}

fn file(text: &str) -> HubFile {
    match Source::parse(text).unwrap() {
        Source::Hub(file) => file,
        other => panic!("{other:?}"),
    }
}

#[test]
fn resolves_the_revision_and_checks_the_digest() {
    let (endpoint, asked) = hub_server(4, Digest::of(CONTENT).to_string(), 0);
    let dir = tempfile::tempdir().unwrap();
    let file = file("hf:o/r/m.gguf@v1");
    let fetched = fetch(&file, Some(&endpoint), None, dir.path(), &Job::silent()).unwrap();
    assert_eq!(fetched.digest, Digest::of(CONTENT));
    assert_eq!(fetched.source, format!("hf:o/r/m.gguf@{COMMIT}"));
    assert_eq!(fetched.licence.as_deref(), Some("mit"));
    assert_eq!(fs::read(&fetched.file).unwrap(), CONTENT);
    assert!(asked.iter().any(|line| line.contains(&format!("/o/r/resolve/{COMMIT}/m.gguf"))));
}

#[test]
fn continues_a_partial_download() {
    let (endpoint, _asked) = hub_server(4, Digest::of(CONTENT).to_string(), 0);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(format!("partial-{COMMIT}")), &CONTENT[..10]).unwrap();
    let file = file("hf:o/r/m.gguf");
    let fetched = fetch(&file, Some(&endpoint), None, dir.path(), &Job::silent()).unwrap();
    assert_eq!(fetched.digest, Digest::of(CONTENT));
    assert_eq!(fs::read(&fetched.file).unwrap(), CONTENT);
}

#[test]
fn what_was_received_before_a_break_is_kept() {
    let (endpoint, _asked) = hub_server(4, Digest::of(CONTENT).to_string(), 5);
    let dir = tempfile::tempdir().unwrap();
    let file = file("hf:o/r/m.gguf");
    let error = fetch(&file, Some(&endpoint), None, dir.path(), &Job::silent()).unwrap_err();
    assert!(matches!(error, ModelError::Hub { .. } | ModelError::HubAnswer { .. }), "{error}");
    let partial = fs::read(dir.path().join(format!("partial-{COMMIT}"))).unwrap();
    assert!(CONTENT.starts_with(&partial));
}

#[test]
fn wrong_content_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (endpoint, _asked) = hub_server(4, Digest::of(b"other").to_string(), 0);
    let file = file("hf:o/r/m.gguf");
    let error = fetch(&file, Some(&endpoint), None, dir.path(), &Job::silent()).unwrap_err();
    assert!(matches!(error, ModelError::WrongDigest { .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_unreachable_hub_is_told_with_its_cause() {
    use crate::ui::{ExitClass, Explain};
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("http://{free}");
    let file = file("hf:o/r/m.gguf");
    let error = fetch(&file, Some(&endpoint), None, dir.path(), &Job::silent()).unwrap_err();
    assert_eq!(error.explain().class, ExitClass::Unreachable);
    assert!(error.to_string().contains("hf:o/r/m.gguf"));
}
