//! What the rooms of the tests have in them, and how they are built.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc;

use allmend_room::{EmptyRoom, Room, Spec, Strength, seal};
use rayon::prelude::*;

use super::this_as;

/// As strong as this machine offers.
pub(crate) fn any() -> Spec {
    Spec { least: Strength::Process, memory_max_bytes: 4 << 30, ..Spec::default() }
}

pub(crate) fn build(role: &str, spec: &Spec) -> EmptyRoom {
    EmptyRoom::build(&mut this_as(role), spec).expect("a room")
}

pub(crate) fn output(room: &mut Room) -> String {
    let mut text = String::new();
    room.stdout.take().expect("its output").read_to_string(&mut text).expect("text");
    let mut complaints = String::new();
    room.stderr.take().expect("its errors").read_to_string(&mut complaints).expect("text");
    text + &complaints
}

/// In the room: what an engine does, with nothing but what was handed in.
pub(crate) fn compute() -> ExitCode {
    let mut sealed = seal().expect("sealed");
    let model = sealed.take("model").expect("a model");
    assert!(sealed.take("model").is_none());
    // SAFETY: nobody changes the file while the test runs.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(&model) }.expect("a mapping");
    let sum: u64 =
        map.par_chunks(1 << 16).map(|chunk| chunk.iter().map(|b| u64::from(*b)).sum::<u64>()).sum();
    let mut big = vec![0_u8; 1 << 30];
    big.par_chunks_mut(4096).enumerate().for_each(|(at, page)| page[0] = at as u8);
    let touched = big.par_chunks(4096).map(|page| usize::from(page[0])).sum::<usize>();
    let threads: Vec<_> = (0..8_usize)
        .map(|n| {
            let named = std::thread::Builder::new().name(format!("computing {n}"));
            named.spawn(move || (0..1000_usize).map(|x| x * n).sum::<usize>()).expect("a thread")
        })
        .collect();
    let squares: usize = threads.into_iter().map(|t| t.join().expect("joined")).sum();
    let maps: HashMap<_, _> = [(1, model.metadata().expect("its size").len())].into();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    println!("{sum} {touched} {squares} {} {}", maps[&1], line.trim());
    ExitCode::SUCCESS
}

/// In the room: takes more memory than its share.
pub(crate) fn greedy() -> ExitCode {
    seal().expect("sealed");
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    for _ in 0..64 {
        let mut more = Vec::new();
        if more.try_reserve_exact(16 << 20).is_err() {
            println!("{}", hoard.len());
            return ExitCode::SUCCESS;
        }
        more.resize(16 << 20, 1);
        hoard.push(more);
    }
    println!("all of it");
    ExitCode::SUCCESS
}

/// In the room: starts threads that wait, as many as it can.
pub(crate) fn crowded() -> ExitCode {
    seal().expect("sealed");
    let mut waiting = Vec::new();
    while waiting.len() < 200 {
        let (sender, receiver) = mpsc::sync_channel::<()>(1);
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        match thread.spawn(move || receiver.recv()) {
            Ok(_) => waiting.push(sender),
            Err(_) => break,
        }
    }
    println!("{}", waiting.len());
    ExitCode::SUCCESS
}

/// In the room: says what it was given, then does as it is told until its input ends.
pub(crate) fn obedient() -> ExitCode {
    let Ok(mut sealed) = seal() else { return ExitCode::from(3) };
    let names: Vec<String> = sealed.names().map(str::to_owned).collect();
    for name in names {
        let mut text = String::new();
        let mut file = sealed.take(&name).expect("named");
        let read = file.read_to_string(&mut text).map(|_| text).map_err(|e| e.to_string());
        println!("{name}: {read:?}, written: {}", file.write_all(b"x").is_ok());
    }
    let mut variables: Vec<_> = std::env::vars().collect();
    variables.sort();
    println!("{variables:?}");
    for line in std::io::stdin().lines() {
        match line.as_deref() {
            Ok("exit 7") => return ExitCode::from(7),
            Ok("panic") => panic!("as told"),
            _ => {}
        }
    }
    ExitCode::SUCCESS
}

/// In the room: aborts, which for the first process of a namespace is not the same as elsewhere.
pub(crate) fn abort() -> ExitCode {
    seal().expect("sealed");
    std::process::abort()
}

/// As a node: builds a room, says that it did, and never ends by itself.
pub(crate) fn parent() -> ExitCode {
    let mut room = build("obedient", &any()).open(&[]).expect("open");
    // What the room holds open is handed on to whoever waits for its end.
    let mut said = BufReader::new(room.stdout.take().expect("its output"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    println!("{}", room.pid());
    std::io::stdin().read_line(&mut line).expect("a line");
    ExitCode::SUCCESS
}

/// A program that never seals.
pub(crate) fn deaf() -> ExitCode {
    println!("hello");
    ExitCode::SUCCESS
}

/// A program that begins with threads.
pub(crate) fn threaded() -> ExitCode {
    let (_keeps, waits) = mpsc::sync_channel::<()>(1);
    std::thread::spawn(move || waits.recv());
    if seal().is_err() { ExitCode::from(3) } else { ExitCode::SUCCESS }
}
