//! Which examples a step sees: a pure function of the seed and the step's number, so that a run taken up
//! again sees what it would have seen.
//!
//! Each dataset is gone through in epochs, each in an order of its own. Several datasets take turns: in
//! every round of as many turns as their weights sum to, each has as many turns as its weight, spread as
//! evenly as can be. A turn is one example, or one packed sequence.
//!
//! # Packing
//! Whole examples of one dataset stand one after the other in sequences, as many as fit; they are packed
//! once, in an order drawn from the seed, and epochs reorder the sequences. Each example but a conversation
//! whose template prints no end ends with the token that ends sequences. As is usual, nothing keeps them apart
//! further: positions run on, and an example sees those before it in its sequence. A packed sequence belongs
//! to no single subject, so private runs cannot pack.

use super::Example;
use super::prepare::RowsError;
use super::seeded::Stream;

/// Datasets in one run.
pub const DATASETS_MAX: usize = 64;
/// Turns of a round, after the weights were divided by what they have in common; each costs eight bytes.
pub const ROUND_MAX: u64 = 1 << 16;

/// Which examples each step sees.
pub struct Order {
    sets: Vec<Set>,
    /// Turns of a round: the dataset, and how many turns it had before in the round.
    round: Vec<(u32, u32)>,
    seed: u64,
    batch: u64,
    accumulate: u64,
}

struct Set {
    items: Vec<Example>,
    /// Turns in a round.
    weight: u64,
    /// The epoch for which the order of items was last drawn, and that order.
    drawn: Option<(u64, Vec<u32>)>,
}

impl Order {
    /// An order over datasets with weights. `packing` is the length of packed sequences in tokens.
    ///
    /// # Errors
    /// When there is nothing to train on, or the weights are out of bounds.
    pub fn new(
        datasets: Vec<(Vec<Example>, u32)>,
        packing: Option<usize>,
        seed: u64,
        batch: u32,
        accumulate: u32,
    ) -> Result<Self, RowsError> {
        let wrong = |problem: String| Err(RowsError::Settings(problem));
        if datasets.is_empty() || datasets.len() > DATASETS_MAX {
            return wrong(format!("{} datasets, not 1 to {DATASETS_MAX}", datasets.len()));
        }
        if let Some(at) = datasets.iter().position(|(examples, _)| examples.is_empty()) {
            return wrong(format!(
                "dataset {}: nothing to train on is left after holding out rows for validation and \
                 leaving out what has no label",
                at + 1
            ));
        }
        let weights: Vec<u64> = datasets.iter().map(|(_, weight)| u64::from(*weight)).collect();
        let round = round(&weights)?;
        let common = weights.iter().fold(0, |one, &other| gcd(one, other)).max(1);
        let sets =
            (0u64..).zip(datasets).zip(&weights).map(|((number, (examples, _)), weight)| Set {
                items: match packing {
                    Some(tokens) => pack(examples, tokens, seed, number),
                    None => examples,
                },
                weight: weight / common,
                drawn: None,
            });
        let (batch, accumulate) = (u64::from(batch.max(1)), u64::from(accumulate.max(1)));
        Ok(Self { sets: sets.collect(), round, seed, batch, accumulate })
    }

    /// The micro-batches of a step, counted from 0.
    ///
    /// # Shapes
    /// `accumulate` micro-batches of `batch` examples.
    pub fn step(&mut self, step: u64) -> Vec<Vec<Example>> {
        let first = step * self.batch * self.accumulate;
        (0..self.accumulate)
            .map(|micro| {
                let start = first + micro * self.batch;
                (start..start + self.batch).filter_map(|turn| self.turn(turn)).collect()
            })
            .collect()
    }

    /// Items of all datasets: what a step's part of an epoch is counted by.
    pub fn items(&self) -> u64 {
        self.sets.iter().map(|set| set.items.len() as u64).sum()
    }

    /// The epoch in which a step begins, counted from 0: how often as many items as there are have been
    /// seen. With several datasets, one may have been seen more often and another less.
    pub fn epoch(&self, step: u64) -> u64 {
        step * self.batch * self.accumulate / self.items().max(1)
    }

    fn turn(&mut self, turn: u64) -> Option<Example> {
        let len = self.round.len() as u64;
        let &(number, before) = self.round.get((turn % len) as usize)?;
        let set = self.sets.get_mut(number as usize)?;
        let seen = turn / len * set.weight + u64::from(before);
        let items = set.items.len() as u64;
        let (epoch, at) = (seen / items, seen % items);
        if set.drawn.as_ref().is_none_or(|(drawn, _)| *drawn != epoch) {
            let place = [u64::from(number), epoch];
            let mut stream = Stream::new("epoch", &self.seed.to_le_bytes(), &place);
            set.drawn = Some((epoch, stream.permutation(items as u32)));
        }
        let (_, order) = set.drawn.as_ref()?;
        set.items.get(*order.get(at as usize)? as usize).cloned()
    }
}

/// The turns of a round: always the dataset that is furthest behind its share, the first of them when
/// several are.
fn round(weights: &[u64]) -> Result<Vec<(u32, u32)>, RowsError> {
    let wrong = |problem: String| Err(RowsError::Settings(problem));
    if weights.contains(&0) {
        return wrong("the weight of a dataset is 0: leave the dataset out instead".to_owned());
    }
    let common = weights.iter().fold(0, |one, &other| gcd(one, other)).max(1);
    let total: u64 = weights.iter().map(|weight| weight / common).sum();
    if total > ROUND_MAX {
        return wrong(format!(
            "the weights of the datasets sum to {total} after dividing by {common}, at most \
             {ROUND_MAX}: use rounder numbers"
        ));
    }
    let mut had = vec![0u64; weights.len()];
    let mut turns = Vec::with_capacity(total as usize);
    for turn in 1..=total {
        let behind = |&(at, weight): &(usize, &u64)| {
            (weight / common * turn) as i64 - (had.get(at).copied().unwrap_or(0) * total) as i64
        };
        // `max_by_key` takes the last of equals, so the order is turned.
        let next = weights.iter().enumerate().rev().max_by_key(behind);
        let Some((at, _)) = next else { break };
        turns.push((at as u32, had[at] as u32));
        had[at] += 1;
    }
    Ok(turns)
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// Puts examples into sequences of at most `tokens` tokens, next fit: in a drawn order, each goes behind
/// the one before or begins a new sequence.
fn pack(examples: Vec<Example>, tokens: usize, seed: u64, number: u64) -> Vec<Example> {
    let mut stream = Stream::new("packing", &seed.to_le_bytes(), &[number]);
    let order = stream.permutation(examples.len() as u32);
    let mut sequences: Vec<Example> = Vec::new();
    for at in order {
        let Some(example) = examples.get(at as usize) else { continue };
        match sequences.last_mut() {
            Some(last) if last.ids.len() + example.ids.len() <= tokens => {
                last.ids.extend_from_slice(&example.ids);
                last.labels.extend_from_slice(&example.labels);
                last.subject = last.subject.filter(|subject| example.subject == Some(*subject));
            }
            _ => sequences.push(example.clone()),
        }
    }
    sequences
}

#[cfg(test)]
#[path = "tests/order.rs"]
mod tests;
