//! The pages of the key-value cache: who uses them, which are free, and which are kept because a later
//! request may begin with the same tokens.
//!
//! A page is in one of three states. *Used*: some sequence's table holds it (several may, once it is
//! full). *Cached*: nobody uses it, but its contents are known by a [`PageKey`] and it waits to be used
//! again. *Free*: neither. Cached pages are given up, least recently used first, when no page is free, so
//! keeping them costs nothing.
//!
//! The memory itself belongs to the decoder; this is bookkeeping only.

use std::collections::{BTreeMap, HashMap};

use super::keys::PageKey;
use crate::decoder::PageId;

/// All pages of one decoder.
#[derive(Debug)]
pub(super) struct Pages {
    states: Vec<PageState>,
    /// Pages without any contents worth keeping; the last is taken first.
    free: Vec<PageId>,
    /// Cached and used pages whose contents are known. Only ever asked for single keys, so its order
    /// decides nothing.
    by_key: HashMap<PageKey, PageId>,
    /// Cached pages by when they were last let go; the first is given up first.
    idle: BTreeMap<u64, PageId>,
    /// Counts releases, which is all the clock that "recently" needs.
    releases: u64,
    /// Cached pages given up so far.
    evictions: u64,
}

#[derive(Clone, Debug, Default)]
struct PageState {
    /// Tables that hold the page.
    users: u32,
    /// What is in it, once it is full and may be shared.
    key: Option<PageKey>,
    /// Its place in `idle` while it is cached.
    released: u64,
}

impl Pages {
    pub(super) fn new(pages: usize) -> Self {
        let pages = PageId::try_from(pages).unwrap_or(PageId::MAX);
        Self {
            states: vec![PageState::default(); pages as usize],
            // Low numbers first: memory that was never touched costs nothing yet.
            free: (0..pages).rev().collect(),
            by_key: HashMap::new(),
            idle: BTreeMap::new(),
            releases: 0,
            evictions: 0,
        }
    }

    pub(super) fn total(&self) -> usize {
        self.states.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn cached(&self) -> usize {
        self.idle.len()
    }

    pub(super) fn used(&self) -> usize {
        self.total() - self.free() - self.cached()
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Pages that [`Pages::take`] can give, one after the other.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A page with one user and unspecified contents; None when all are in use.
    pub(super) fn take(&mut self) -> Option<PageId> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                if let Some(key) = self.states[page as usize].key.take() {
                    self.by_key.remove(&key);
                }
                self.evictions += 1;
                page
            }
        };
        self.states[page as usize].users = 1;
        Some(page)
    }

    /// The page that holds what `key` stands for. It stays as it is; [`Pages::share`] uses it.
    pub(super) fn find(&self, key: &PageKey) -> Option<PageId> {
        self.by_key.get(key).copied()
    }

    /// Whether nobody uses the page at the moment.
    pub(super) fn is_idle(&self, page: PageId) -> bool {
        self.states[page as usize].users == 0
    }

    /// Adds a user to a page found by its key.
    pub(super) fn share(&mut self, page: PageId) {
        let state = &mut self.states[page as usize];
        if state.users == 0 {
            self.idle.remove(&state.released);
        }
        state.users += 1;
    }

    /// Makes a full page known by its key. When another page holds the same already, that one gets a
    /// user, `page` loses one, and the other is returned to be used in its place.
    pub(super) fn publish(&mut self, page: PageId, key: PageKey) -> Option<PageId> {
        match self.find(&key) {
            Some(other) if other == page => None,
            Some(other) => {
                self.share(other);
                self.release(page);
                Some(other)
            }
            None => {
                self.forget(page);
                self.by_key.insert(key, page);
                self.states[page as usize].key = Some(key);
                None
            }
        }
    }

    /// Makes nobody find a page any more, because its contents turned out bad. Its users keep it.
    pub(super) fn forget(&mut self, page: PageId) {
        let state = &mut self.states[page as usize];
        if let Some(key) = state.key.take() {
            self.by_key.remove(&key);
            if state.users == 0 {
                self.idle.remove(&state.released);
                self.free.push(page);
            }
        }
    }

    /// Gives up all cached pages.
    pub(super) fn clear(&mut self) {
        let idle: Vec<PageId> = self.idle.values().copied().collect();
        idle.into_iter().for_each(|page| self.forget(page));
    }

    /// Takes a user from a page; without any it is cached if its contents are known, else free.
    pub(super) fn release(&mut self, page: PageId) {
        let state = &mut self.states[page as usize];
        debug_assert!(state.users > 0, "page {page} is released more often than it was taken");
        state.users = state.users.saturating_sub(1);
        if state.users > 0 {
            return;
        }
        if state.key.is_some() {
            self.releases += 1;
            state.released = self.releases;
            self.idle.insert(self.releases, page);
        } else {
            self.free.push(page);
        }
    }

    /// Releases a whole table, last page first: the beginning of a chain is needed to find its end, so
    /// the end is given up earlier.
    pub(super) fn release_table(&mut self, table: &mut Vec<PageId>) {
        while let Some(page) = table.pop() {
            self.release(page);
        }
    }

    /// What contradicts itself, given all tables in use. Costs a pass over all pages.
    pub(super) fn broken_invariant<'a>(
        &self,
        tables: impl Iterator<Item = &'a [PageId]>,
    ) -> Option<String> {
        let mut users = vec![0u32; self.states.len()];
        for &page in tables.flatten() {
            users[page as usize] += 1;
        }
        let mut seen = vec![false; self.states.len()];
        for &page in self.free.iter().chain(self.idle.values()) {
            if std::mem::replace(&mut seen[page as usize], true) {
                return Some(format!("page {page} is free or cached twice"));
            }
        }
        for (page, state) in self.states.iter().enumerate() {
            if state.users != users[page] {
                let (counted, held) = (state.users, users[page]);
                return Some(format!("page {page} counts {counted} users, {held} tables hold it"));
            }
            if seen[page] != (state.users == 0) {
                return Some(format!("page {page} is used and free, or neither"));
            }
            if let Some(key) = &state.key
                && self.by_key.get(key).copied() != Some(page as PageId)
            {
                return Some(format!("page {page} is not found by its key"));
            }
        }
        let keys = self.states.iter().filter(|state| state.key.is_some()).count();
        (keys != self.by_key.len()).then(|| format!("{} keys for {keys} pages", self.by_key.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::{KeyChain, Scopes};
    use super::*;

    fn key(token: u32) -> PageKey {
        let scopes = Scopes { adapter: None, researcher: Some([1; 32]), public_tokens: 0 };
        let mut chain = KeyChain::new(scopes);
        *chain.upto(&[token; 16], 1).first().unwrap()
    }

    #[test]
    fn the_least_recently_used_page_is_given_up_first() {
        let mut pages = Pages::new(3);
        let mut table: Vec<PageId> = (0..3).map(|_| pages.take().unwrap()).collect();
        let held = table.clone();
        for (token, &page) in (0..).zip(&table) {
            assert_eq!(pages.publish(page, key(token)), None);
        }
        assert_eq!(pages.take(), None);
        pages.release_table(&mut table);
        assert_eq!((pages.used(), pages.cached(), pages.free()), (0, 3, 0));
        // The tail of a chain goes before its head; using a page again saves it.
        pages.share(held[2]);
        pages.release(held[2]);
        assert_eq!(pages.take(), Some(held[1]));
        assert_eq!(pages.find(&key(1)), None);
        assert_eq!(pages.find(&key(0)), Some(held[0]));
        assert_eq!(pages.evictions(), 1);
        let tables = [vec![held[1]]];
        assert_eq!(pages.broken_invariant(tables.iter().map(Vec::as_slice)), None);
    }

    #[test]
    fn equal_contents_are_kept_once() {
        let mut pages = Pages::new(2);
        let (first, second) = (pages.take().unwrap(), pages.take().unwrap());
        assert_eq!(pages.publish(first, key(7)), None);
        assert_eq!(pages.publish(second, key(7)), Some(first));
        assert_eq!((pages.used(), pages.free()), (1, 1));
        pages.release(first);
        assert_eq!(pages.used(), 1);
        pages.release(first);
        assert_eq!((pages.used(), pages.cached()), (0, 1));
    }

    #[test]
    fn forgotten_pages_are_found_no_more() {
        let mut pages = Pages::new(1);
        let page = pages.take().unwrap();
        pages.publish(page, key(7));
        pages.release(page);
        pages.forget(page);
        assert_eq!((pages.find(&key(7)), pages.free()), (None, 1));
        assert_eq!(pages.broken_invariant(std::iter::empty()), None);
    }
}
