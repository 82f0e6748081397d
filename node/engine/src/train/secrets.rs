//! How likely a model finds each of many secrets in the same sentence.

use std::collections::BTreeMap;

use super::bench::{Bench, Weighed};
use super::example::Example;
use super::measure::MeasureError;

/// Examples that differ in a secret alone, as a trie of their tokens: what several secrets begin with is
/// computed once, and each beginning tells how likely all of its next tokens are.
pub(super) struct Secrets {
    /// What all have in common before the secret. It is equally likely in all of them, and so is what
    /// follows the secret not weighed: it says nothing of it.
    before: Vec<u32>,
    /// The tokens of each secret.
    each: Vec<Vec<u32>>,
}

impl Secrets {
    /// Finds what differs.
    pub(super) fn new(examples: &[Example]) -> Self {
        let Some((first, others)) = examples.split_first() else {
            return Self { before: Vec::new(), each: Vec::new() };
        };
        let common = |one: &mut dyn Iterator<Item = &u32>,
                      other: &mut dyn Iterator<Item = &u32>| {
            one.zip(other).take_while(|(one, other)| one == other).count()
        };
        let start = others.iter().map(|other| common(&mut first.ids.iter(), &mut other.ids.iter()));
        let start = start.min().unwrap_or(0);
        let end = others
            .iter()
            .map(|other| common(&mut first.ids.iter().rev(), &mut other.ids.iter().rev()));
        let end = end.min().unwrap_or(0);
        let secret = |example: &Example| {
            let rest = example.ids.get(start..).unwrap_or_default();
            // A secret that another one begins with ends in what follows it.
            let len = rest.len().saturating_sub(end).max(1).min(rest.len());
            rest.get(..len).unwrap_or_default().to_vec()
        };
        let before = first.ids.get(..start).unwrap_or_default().to_vec();
        Self { before, each: examples.iter().map(secret).collect() }
    }

    /// Negative log-likelihood of each secret with the adapter, in nats.
    ///
    /// # Errors
    /// When the model does not compute, or the caller stops.
    pub(super) fn likelihoods(&self, bench: &mut Bench<'_>) -> Result<Vec<f64>, MeasureError> {
        // The tokens that follow each beginning, and then how likely.
        let mut nodes: BTreeMap<&[u32], BTreeMap<u32, f64>> = BTreeMap::new();
        for secret in &self.each {
            for (at, token) in secret.iter().enumerate() {
                nodes.entry(&secret[..at]).or_default().insert(*token, 0.0);
            }
        }
        let weighed = nodes.iter().map(|(beginning, next)| Weighed {
            prompt: [&self.before, *beginning].concat(),
            tokens: next.keys().copied().collect(),
        });
        let nlls = bench.weigh(weighed.collect())?;
        for (next, nlls) in nodes.values_mut().zip(nlls) {
            next.values_mut().zip(nlls).for_each(|(place, nll)| *place = nll);
        }
        let edge = |secret: &[u32], at: usize| {
            secret.get(..at).and_then(|beginning| nodes.get(beginning)?.get(secret.get(at)?))
        };
        let path = |secret: &Vec<u32>| (0..secret.len()).filter_map(|at| edge(secret, at)).sum();
        Ok(self.each.iter().map(path).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only what differs is weighed, whatever lengths the secrets have.
    #[test]
    fn secrets_are_what_differs() {
        let examples = [&[1, 2, 7, 8, 3, 4][..], &[1, 2, 7, 9, 3, 4], &[1, 2, 5, 6, 9, 3, 4]]
            .map(|ids| Example::whole(ids.to_vec()));
        let secrets = Secrets::new(&examples);
        assert_eq!(secrets.before, [1, 2]);
        assert_eq!(secrets.each, [vec![7, 8], vec![7, 9], vec![5, 6, 9]]);
        assert!(Secrets::new(&[]).each.is_empty());
        // One that begins as another ends keeps a token, so that there is something to weigh.
        let examples = [&[1, 7, 3][..], &[1, 7, 7, 3]].map(|ids| Example::whole(ids.to_vec()));
        let secrets = Secrets::new(&examples);
        assert_eq!((secrets.before.len(), &secrets.each), (2, &vec![vec![3], vec![7]]));
    }
}
