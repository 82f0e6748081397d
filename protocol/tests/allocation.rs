//! What hostile bytes cost a receiver in memory (specs/encoding.md §5.3).
//!
//! A program of its own, for its allocator counts.
#![allow(unsafe_code, reason = "a counting allocator can only be written so")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use allmend_protocol::bundle::{BUNDLE_BYTES_MAX, Bundle};
use allmend_protocol::bytes::ByteString;
use allmend_protocol::encoding::{self, BODY_BYTES_MAX};
use allmend_protocol::envelope::{ENVELOPE_BYTES_MAX, Envelope};
use allmend_protocol::finetune::{FinetuneInput, Task, WORK_FINETUNE};
use allmend_protocol::job::{WORK_BYTES_MAX, WORK_INFER, Work};
use allmend_protocol::message::AnyMessage;

use support::cbor::Item;
use support::{encoded, envelope_item, samples};

/// Decoding may hold this many times the bytes received…
const TIMES_MAX: usize = 8;
/// …and so much besides, for what does not depend on them (messages of errors, tables).
const BESIDES_MAX: usize = 64 * 1024;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Counts what this thread holds.
struct Counting;

fn note(change: isize) {
    // A thread that is ending has no counters any more; nobody asks for them either.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

fn size(layout: Layout) -> isize {
    isize::try_from(layout.size()).unwrap_or(isize::MAX)
}

// SAFETY: every call goes to the system's allocator unchanged; counting neither allocates nor
// unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(size(layout));
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(-size(layout));
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that this thread held at once during `work`, beyond what it held before.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    work();
    usize::try_from(PEAK.with(Cell::get) - before).unwrap()
}

fn check(what: &str, received: &[u8], work: impl FnOnce()) {
    let peak = peak_of(work);
    let bound = TIMES_MAX * received.len() + BESIDES_MAX;
    assert!(peak <= bound, "{what}: {peak} bytes held for {} received", received.len());
}

/// Decodes `body` as whatever `payload_type` says.
fn check_body(what: &str, payload_type: &str, body: &[u8]) {
    let envelope = envelope_item(payload_type, body, &[([7; 32], [0; 64])]).to_bytes();
    let federation = samples::federation();
    check(what, &envelope, || {
        if let Ok(envelope) = Envelope::from_bytes(&envelope) {
            assert!(AnyMessage::verify(&envelope, &federation).is_err());
        }
    });
}

fn check_rest(what: &str, bytes: &[u8]) {
    check(what, bytes, || drop(Envelope::from_bytes(bytes)));
    check(what, bytes, || drop(Bundle::from_bytes(bytes)));
    for kind in [WORK_INFER, WORK_FINETUNE] {
        let work = Work { kind: kind.to_owned(), bytes: ByteString(bytes.to_vec()) };
        check(what, bytes, || drop(Task::from_work(&work)));
    }
    check(what, bytes, || drop(encoding::decode::<FinetuneInput>(bytes, BUNDLE_BYTES_MAX)));
}

/// Heads that claim more than there is.
fn claims() -> Vec<(String, Vec<u8>)> {
    let lengths: [u64; 7] =
        [1 << 10, 1 << 16, 1 << 20, 1 << 30, u32::MAX as u64, i64::MAX as u64, u64::MAX];
    let mut claims = Vec::new();
    for (name, major) in [("bytes", 2u8), ("text", 3), ("list", 4), ("map", 5)] {
        for length in lengths {
            let head = [&[major << 5 | 27][..], &length.to_be_bytes()].concat();
            claims.push((format!("{name} of {length}"), head));
        }
        claims.push((format!("{name} of indefinite length"), vec![major << 5 | 31]));
    }
    claims
}

/// `item` with each of its parts in turn replaced by `with`.
fn each_replaced(item: &Item, with: &Item) -> Vec<Item> {
    let mut all = vec![with.clone()];
    match item {
        Item::List(items) => {
            for (at, part) in items.iter().enumerate() {
                all.extend(each_replaced(part, with).into_iter().map(|part| {
                    let mut items = items.clone();
                    items[at] = part;
                    Item::List(items)
                }));
            }
        }
        Item::Map(entries) => {
            for (at, (_, part)) in entries.iter().enumerate() {
                all.extend(each_replaced(part, with).into_iter().map(|part| {
                    let mut entries = entries.clone();
                    entries[at].1 = part;
                    Item::Map(entries)
                }));
            }
        }
        _ => {}
    }
    all
}

fn item_of(bytes: &[u8]) -> Item {
    Item::from_bytes(bytes).unwrap()
}

/// What stands inside of a job's work and its sealed input.
fn works() -> Vec<Item> {
    let works = [
        samples::adapter_work().to_work(),
        samples::private_work().to_work(),
        samples::own_rows_work().to_work(),
    ];
    let input = encoding::encode(&samples::finetune_input());
    works
        .iter()
        .map(|work| work.bytes.0.as_slice())
        .chain([input.as_slice()])
        .map(item_of)
        .collect()
}

#[test]
fn claimed_lengths_cost_nothing() {
    for sample in samples::all() {
        let (payload_type, body) = encoded(&sample.body);
        let item = item_of(&body);
        for (name, head) in claims() {
            for hostile in each_replaced(&item, &Item::Raw(head)) {
                check_body(&format!("{payload_type}: {name}"), &payload_type, &hostile.to_bytes());
            }
        }
    }
    let all = samples::all();
    let message = all[0].signed();
    let envelope = item_of(message.envelope().as_bytes());
    let bundle = item_of(&Bundle::of(message.envelope().clone()).to_bytes());
    let mut items = works();
    items.extend([envelope, bundle]);
    for (name, head) in claims() {
        for item in &items {
            for hostile in each_replaced(item, &Item::Raw(head.clone())) {
                check_rest(&name, &hostile.to_bytes());
            }
        }
    }
}

/// Goal: the smallest elements do not become the largest structures. Method: fill the whole bound
/// with them, at every place of every message.
#[test]
fn floods_of_tiny_elements_cost_little() {
    let empty_entry = [0x60, 0x80];
    let tiny: [(&str, &[u8]); 7] = [
        ("zeros", &[0x00]),
        ("empty bytes", &[0x40]),
        ("empty texts", &[0x60]),
        ("empty lists", &[0x80]),
        ("empty maps", &[0xa0]),
        ("nulls", &[0xf6]),
        ("empty entries", &empty_entry),
    ];
    let flood = |element: &[u8], bytes: usize| {
        let count = bytes / element.len();
        let major = if element.len() == 2 { 0xa0 } else { 0x80 };
        let head = [&[major | 25][..], &u16::try_from(count).unwrap().to_be_bytes()].concat();
        Item::Raw([head, element.repeat(count)].concat())
    };
    for sample in samples::all() {
        let (payload_type, body) = encoded(&sample.body);
        let item = item_of(&body);
        for (name, element) in tiny {
            let flood = flood(element, BODY_BYTES_MAX - body.len() - 16);
            for hostile in each_replaced(&item, &flood) {
                let hostile = hostile.to_bytes();
                check_body(&format!("{payload_type}: {name}"), &payload_type, &hostile);
            }
        }
    }
    for (name, element) in tiny {
        for bytes in [BUNDLE_BYTES_MAX / 2 - 16, ENVELOPE_BYTES_MAX - 16, WORK_BYTES_MAX - 16] {
            check_rest(name, &flood(element, bytes.min(0xffff)).to_bytes());
        }
        for work in works() {
            let flood = flood(element, WORK_BYTES_MAX - work.to_bytes().len() - 16);
            for hostile in each_replaced(&work, &flood) {
                check_rest(name, &hostile.to_bytes());
            }
        }
    }
}

/// Goal: depth costs neither memory nor the stack. Method: as deep as the bound allows.
#[test]
fn nesting_costs_nothing() {
    let deep: [(&str, &[u8]); 4] = [
        ("lists", &[0x81]),
        ("maps", &[0xa1, 0x61, b'a']),
        ("tags", &[0xc6]),
        ("links", &[0xd8, 0x2a]),
    ];
    for (name, opening) in deep {
        for sample in samples::all() {
            let (payload_type, body) = encoded(&sample.body);
            let nested = opening.repeat((BODY_BYTES_MAX - body.len()) / opening.len());
            for hostile in each_replaced(&item_of(&body), &Item::Raw(nested)) {
                let hostile = hostile.to_bytes();
                let hostile = &hostile[..hostile.len().min(BODY_BYTES_MAX)];
                check_body(&format!("{payload_type}: {name}"), &payload_type, hostile);
            }
        }
        for bytes in [BUNDLE_BYTES_MAX, ENVELOPE_BYTES_MAX, WORK_BYTES_MAX] {
            check_rest(name, &opening.repeat(bytes / opening.len()));
        }
        for work in works() {
            let nested = opening.repeat((WORK_BYTES_MAX - work.to_bytes().len()) / opening.len());
            for hostile in each_replaced(&work, &Item::Raw(nested)) {
                check_rest(name, &hostile.to_bytes());
            }
        }
    }
}

/// Goal: what is too long is refused before anything is done with it.
#[test]
fn more_than_the_bound_is_not_looked_at() {
    let bytes = vec![0x81; 16 * 1024 * 1024];
    let peak = peak_of(|| {
        assert!(Envelope::from_bytes(&bytes).is_err());
        assert!(Bundle::from_bytes(&bytes).is_err());
    });
    assert!(peak < 1_024, "{peak} bytes held");
}

/// Goal: the bound is not so wide that everything passes. Method: what is good needs a fifth of it
/// at least… and something that holds too much is seen.
#[test]
fn the_counter_counts() {
    assert!(peak_of(|| drop(vec![0u8; 1 << 20])) >= 1 << 20);
    let message = samples::all()[0].signed();
    let bytes = message.envelope().as_bytes();
    let peak = peak_of(|| drop(Envelope::from_bytes(bytes)));
    assert!(peak > bytes.len(), "{peak} bytes held for {}", bytes.len());
}
