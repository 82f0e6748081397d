//! Tells a person what happens, as it happens.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Width at which a streamed answer wraps.
const ANSWER_WIDTH: usize = 88;
/// Width at which answers wrap that arrive side by side: short lines, so that all are seen to move on.
const VOICE_WIDTH: usize = 60;

/// Writes to standard output, or to standard error if that belongs to a report in JSON.
#[derive(Debug)]
pub struct Narrator {
    to_stderr: bool,
    colour: bool,
    steps: u32,
    begun: Instant,
    step_begun: Instant,
    /// Column of the streamed answer; none before its first letter.
    column: Option<usize>,
    /// The unfinished line of each answer that arrives beside others.
    voices: BTreeMap<String, String>,
}

impl Narrator {
    /// One that leaves standard output to the report if `json`.
    pub fn new(json: bool) -> Narrator {
        let terminal =
            if json { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        let now = Instant::now();
        Narrator {
            to_stderr: json,
            colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            steps: 0,
            begun: now,
            step_begun: now,
            column: None,
            voices: BTreeMap::new(),
        }
    }

    /// Begins a step.
    pub fn step(&mut self, title: &str) {
        self.steps += 1;
        self.step_begun = Instant::now();
        let heading = self.paint("1", &format!("{}. {title}", self.steps));
        self.write(&format!("\n{heading}\n"));
    }

    /// Something has come true.
    pub fn tick(&mut self, text: &str) {
        let took = self.step_begun.elapsed();
        let tick = self.paint("32", "✓");
        let time = self.paint("2", &format!("{:>6.1} s", took.as_secs_f64()));
        self.write(&format!("   {tick} {text}  {time}\n"));
    }

    /// Something to know.
    pub fn note(&mut self, text: &str) {
        for line in text.lines() {
            let line = self.paint("2", line);
            self.write(&format!("     {line}\n"));
        }
    }

    /// Something went wrong.
    pub fn cross(&mut self, text: &str) {
        let cross = self.paint("1;31", "✗");
        self.write(&format!("   {cross} {text}\n"));
    }

    /// A plain line.
    pub fn line(&mut self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    /// A piece of an answer, as it arrives; wraps between words.
    pub fn stream(&mut self, piece: &str) {
        let mut shown = String::new();
        for letter in piece.chars() {
            let column = self.column.unwrap_or_else(|| {
                shown.push_str("     │ ");
                0
            });
            let wraps = letter == '\n' || (letter == ' ' && column >= ANSWER_WIDTH);
            self.column = Some(column + 1);
            if wraps {
                shown.push_str("\n     │ ");
                self.column = Some(0);
            } else {
                shown.push(letter);
            }
        }
        self.write(&shown);
    }

    /// The streamed answer is over.
    pub fn stream_over(&mut self) {
        if self.column.take().is_some() {
            self.write("\n");
        }
    }

    /// A piece of an answer that arrives beside others; a line is shown when it is full, with its
    /// voice's name in front.
    pub fn voice(&mut self, name: &str, piece: &str) {
        let mut full = Vec::new();
        let line = self.voices.entry(name.to_owned()).or_default();
        for letter in piece.chars() {
            match letter {
                '\n' if line.is_empty() => {}
                '\n' => full.push(std::mem::take(line)),
                ' ' if line.chars().count() >= VOICE_WIDTH => full.push(std::mem::take(line)),
                letter => line.push(letter),
            }
        }
        full.iter().for_each(|line| self.speak(name, line));
    }

    /// The answers that arrived side by side are over.
    pub fn voices_over(&mut self) {
        for (name, line) in std::mem::take(&mut self.voices) {
            if !line.is_empty() {
                self.speak(&name, &line);
            }
        }
    }

    fn speak(&self, name: &str, line: &str) {
        let name = self.paint("1", &format!("{name:>8}"));
        self.write(&format!("  {name} │ {line}\n"));
    }

    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// A reader that has gone is no reason to end.
    fn write(&self, text: &str) {
        if self.to_stderr {
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        } else {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(text.as_bytes());
            let _ = out.flush();
        }
    }
}
