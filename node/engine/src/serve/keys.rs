//! Names for the contents of full pages: equal keys mean equal keys and values in the cache.
//!
//! The key of a page is the SHA-256 of the key of the page before it, the scope that may share it, and its
//! sixteen tokens; so it stands for the whole sequence up to the end of the page. The hash is a
//! cryptographic one because tokens come from strangers: whoever could make two pages collide could read
//! what was computed for someone else.

use sha2::{Digest as _, Sha256};

use crate::decoder::PAGE_TOKENS;

/// Names the contents of a page.
pub(super) type PageKey = [u8; 32];

/// Who may share the pages of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scopes {
    /// The adapter that the sequence is computed with; its keys and values are different ones.
    pub(crate) adapter: Option<[u8; 32]>,
    /// Pages that are not public are shared within this researcher's requests; None shares them with
    /// nobody.
    pub(crate) researcher: Option<[u8; 32]>,
    /// Leading tokens that were declared public: pages that lie in them entirely are shared by all.
    pub(crate) public_tokens: usize,
}

/// The keys of a sequence's full pages, computed as they are needed.
#[derive(Clone, Debug)]
pub(super) struct KeyChain {
    scopes: Scopes,
    keys: Vec<PageKey>,
}

impl KeyChain {
    pub(super) fn new(scopes: Scopes) -> Self {
        Self { scopes, keys: Vec::new() }
    }

    /// Keys of the first `pages` full pages of `tokens`; fewer where the rest is shared with nobody.
    ///
    /// `tokens` only ever grows between calls.
    pub(super) fn upto(&mut self, tokens: &[u32], pages: usize) -> &[PageKey] {
        let full = tokens.chunks_exact(PAGE_TOKENS).enumerate().take(pages);
        for (page, tokens) in full.skip(self.keys.len()) {
            let Some(scope) = self.scope((page + 1) * PAGE_TOKENS) else { break };
            let mut hash = Sha256::new();
            hash.update(self.keys.last().unwrap_or(&[0; 32]));
            hash.update(scope);
            for token in tokens {
                hash.update(token.to_le_bytes());
            }
            self.keys.push(hash.finalize().into());
        }
        &self.keys[..self.keys.len().min(pages)]
    }

    /// Two tags and two names, so that no scope looks like another.
    fn scope(&self, end: usize) -> Option<[u8; 66]> {
        let mut scope = [0; 66];
        if end > self.scopes.public_tokens {
            scope[0] = 1;
            scope[2..34].copy_from_slice(&self.scopes.researcher?);
        }
        if let Some(adapter) = &self.scopes.adapter {
            scope[1] = 1;
            scope[34..].copy_from_slice(adapter);
        }
        Some(scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: Scopes = Scopes { adapter: None, researcher: Some([1; 32]), public_tokens: 40 };

    fn keys(scopes: Scopes, tokens: &[u32]) -> Vec<PageKey> {
        KeyChain::new(scopes).upto(tokens, usize::MAX).to_vec()
    }

    #[test]
    fn only_whole_public_pages_are_shared_between_researchers() {
        let tokens: Vec<u32> = (0..70).collect();
        let (own, other) =
            (keys(PUBLIC, &tokens), keys(Scopes { researcher: Some([2; 32]), ..PUBLIC }, &tokens));
        assert_eq!((own.len(), other.len()), (4, 4));
        assert_eq!(own[..2], other[..2]);
        assert!(own[2..].iter().zip(&other[2..]).all(|(own, other)| own != other));
        assert_eq!(keys(Scopes { researcher: None, ..PUBLIC }, &tokens), own[..2]);
        let undeclared = keys(Scopes { public_tokens: 0, ..PUBLIC }, &tokens);
        assert!(undeclared.iter().all(|key| !own.contains(key)));
    }

    #[test]
    fn keys_stand_for_everything_before() {
        let tokens: Vec<u32> = (0..64).collect();
        let mut changed = tokens.clone();
        changed[3] = 99;
        let (whole, changed) = (keys(PUBLIC, &tokens), keys(PUBLIC, &changed));
        assert!(whole.iter().zip(&changed).all(|(a, b)| a != b));
        let adapted = keys(Scopes { adapter: Some([0; 32]), ..PUBLIC }, &tokens);
        assert!(whole.iter().zip(&adapted).all(|(a, b)| a != b));
    }

    #[test]
    fn growing_gives_the_same_keys_as_at_once() {
        let tokens: Vec<u32> = (0..100).collect();
        let mut chain = KeyChain::new(PUBLIC);
        for end in 0..=100 {
            chain.upto(&tokens[..end], end / PAGE_TOKENS);
        }
        assert_eq!(chain.upto(&tokens, usize::MAX), keys(PUBLIC, &tokens));
        assert_eq!(chain.upto(&tokens, 2).len(), 2);
    }
}
