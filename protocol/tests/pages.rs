//! The pages of `specs/` and the code that cites them: no citation of a page or section that is
//! not there, no dead link, and every message and field on its page.
#![allow(clippy::disallowed_methods, reason = "pages and sources are files")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use allmend_protocol::encoding;
use allmend_protocol::message::AnyMessage;

use support::cbor::Item;
use support::{encoded, samples};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> Option<String> {
    fs::read_to_string(root().join("specs").join(name)).ok()
}

/// Files below `folder` whose names end in `ending`.
fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" {
            files(&path, ending, found);
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

/// Whether `page` has section `N`, or item `M` of section `N` for `N.M`.
fn has_section(page: &str, section: &str) -> bool {
    let (number, item) = section.split_once('.').map_or((section, None), |(n, m)| (n, Some(m)));
    let heading = format!("## {number}. ");
    let Some(at) = page.find(&format!("\n{heading}")) else { return false };
    let body = &page[at + 1 + heading.len()..];
    let body = &body[..body.find("\n## ").unwrap_or(body.len())];
    item.is_none_or(|item| body.contains(&format!("\n{item}. ")))
}

/// Every `NAME.md` or `NAME.md §SECTION` after `before` in `text`.
fn citations<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    text.match_indices(before).filter_map(move |(at, _)| {
        let rest = &text[at + before.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '-'))?;
        let name = rest.get(..end + 3).filter(|name| name.ends_with(".md") && end > 0)?;
        let after = rest[end + 3..].trim_start_matches(['`', ')']).trim_start();
        let section = after.strip_prefix('§').unwrap_or_default();
        let end = section.find(|c: char| !(c.is_ascii_digit() || c == '.'));
        Some((name, section[..end.unwrap_or(section.len())].trim_end_matches('.')))
    })
}

fn check<'a>(place: &Path, cited: impl Iterator<Item = (&'a str, &'a str)>) {
    for (name, section) in cited {
        let Some(page) = page(name) else { panic!("{}: no specs/{name}", place.display()) };
        assert!(
            section.is_empty() || has_section(&page, section),
            "{}: specs/{name} has no §{section}",
            place.display()
        );
    }
}

#[test]
fn code_cites_pages_and_sections_that_exist() {
    let mut sources = Vec::new();
    for part in ["protocol/src", "scheduler", "node", "testnet"] {
        files(&root().join(part), ".rs", &mut sources);
    }
    assert!(sources.len() > 30);
    for source in sources {
        check(&source, citations(&fs::read_to_string(&source).unwrap(), "specs/"));
    }
}

#[test]
fn pages_link_to_pages_and_sections_that_exist() {
    let mut pages = Vec::new();
    files(&root().join("specs"), ".md", &mut pages);
    let index = page("README.md").unwrap();
    for path in pages {
        let text = fs::read_to_string(&path).unwrap();
        check(&path, citations(&text, "]("));
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(
            index.contains(&format!("({name})")) || name == "README.md",
            "{name} is not listed"
        );
    }
}

/// Goal: no field without a word about it. Method: the names of all fields of all samples, on the
/// page where their message stands.
#[test]
fn every_field_stands_on_its_page() {
    let index = page("README.md").unwrap();
    for (kind, version) in AnyMessage::known() {
        let name = format!("`{}`", kind.name());
        let mut row = None;
        let mut last = "";
        for line in index.lines().filter(|line| line.starts_with('|')) {
            let cited = line.split("](").nth(1).and_then(|rest| rest.split(')').next());
            last = cited.unwrap_or(last);
            if line.contains(&name) {
                row = Some(last);
            }
        }
        let row = row.unwrap_or_else(|| panic!("{kind} is not in the index"));
        let text = page(row).unwrap();
        let mut names = BTreeSet::new();
        for sample in samples::all().iter().filter(|sample| sample.kind() == (kind, version)) {
            names_in(&Item::from_bytes(&encoded(&sample.body).1).unwrap(), &mut names);
        }
        // What a list of versions names are kinds, not fields.
        names.remove("refusal");
        for field in names {
            assert!(names_field(&text, &field), "specs/{row} says nothing of {kind}'s {field:?}");
        }
    }
}

/// Whether a page has a word about a field.
fn names_field(page: &str, field: &str) -> bool {
    let alone = [format!("`{field}`"), format!(".{field}`"), format!("{field}, ")];
    let inside = [format!("{{{field}"), format!(", {field}"), format!("{field}}}")];
    alone.iter().chain(&inside).any(|form| page.contains(form.as_str()))
}

/// Goal: as for messages, for what stands inside of a job's work, and its type on the page.
#[test]
fn every_field_of_work_stands_on_its_page() {
    let finetune = [samples::private_work(), samples::own_rows_work()].map(|work| work.to_work());
    let infer = [samples::infer_work(), samples::adapter_work()].map(|work| work.to_work());
    let input = encoding::encode(&samples::finetune_input());
    let works = finetune.iter().map(|work| ("finetune.md", work));
    let works = works.chain(infer.iter().map(|work| ("job.md", work)));
    let mut described: Vec<_> =
        works.map(|(name, work)| (name, work.kind.as_str(), work.bytes.0.as_slice())).collect();
    described.push(("finetune.md", "finetune.v1", &input));
    for (name, kind, bytes) in described {
        let text = page(name).unwrap();
        assert!(text.contains(&format!("`{kind}`")), "specs/{name} says nothing of {kind}");
        assert!(page("job.md").unwrap().contains(&format!("`{kind}`")), "job.md, {kind}");
        let mut names = BTreeSet::new();
        names_in(&Item::from_bytes(bytes).unwrap(), &mut names);
        for field in names {
            assert!(names_field(&text, &field), "specs/{name} says nothing of {field:?}");
        }
    }
}

fn names_in(item: &Item, names: &mut BTreeSet<String>) {
    match item {
        Item::List(items) => items.iter().for_each(|item| names_in(item, names)),
        Item::Map(entries) => entries.iter().for_each(|(name, item)| {
            names.insert(name.clone());
            names_in(item, names);
        }),
        _ => {}
    }
}
