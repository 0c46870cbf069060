//! Listings that a hub has interrupted. A list of a hundred thousand files has a hundred pages, and a hub counts pages; who begins
//! anew after each pause may never come to the end. They outlive the origin that began them, since every try opens its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::listing::Pages;

/// Interrupted listings, oldest first. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub(in crate::origin) struct Unfinished {
    shelf: Arc<Mutex<VecDeque<(Owner, Pages)>>>,
}

/// Whose listing of what: another account may not be shown the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) repository: url::Url,
    pub(super) account: u64,
}

/// Listings kept. One may take 30 MiB; the oldest goes first, and begins anew if somebody still wants it.
const MOST: usize = 4;

// === impl Unfinished ===

impl Unfinished {
    pub(super) fn take(&self, owner: &Owner, commit: &str) -> Option<Pages> {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let at = shelf.iter().position(|(of, pages)| of == owner && pages.commit == commit)?;
        shelf.remove(at).map(|(_, pages)| pages)
    }

    pub(super) fn put(&self, owner: Owner, pages: Pages) {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        // The same of another commit, or a second one that has not come as far, is of no use any more.
        shelf.retain(|(of, _)| *of != owner);
        while shelf.len() >= MOST {
            shelf.pop_front();
        }
        shelf.push_back((owner, pages));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_account_finds_its_own_and_old_ones_go() {
        let unfinished = Unfinished::default();
        let url: url::Url = "https://hub/org/m".parse().unwrap();
        let owner = |account| Owner { repository: url.clone(), account };
        for account in 0..=MOST as u64 {
            unfinished.put(owner(account), Pages::new("c", url.clone()));
        }
        assert!(unfinished.take(&owner(0), "c").is_none(), "the oldest is gone");
        assert!(unfinished.take(&owner(1), "d").is_none(), "another commit");
        assert!(unfinished.take(&owner(1), "c").is_some());
        assert!(unfinished.take(&owner(1), "c").is_none(), "it is taken once");
        unfinished.put(owner(2), Pages::new("d", url.clone()));
        assert!(unfinished.take(&owner(2), "c").is_none() && unfinished.take(&owner(2), "d").is_some());
    }
}
