//! Which pages of a pool's region are free: a bitmap with first-fit runs.
//!
//! Keeps one bit per 4 KiB page. Small runs are taken from the bottom and large ones from the top,
//! so that long-lived small buffers do not cut the region into pieces too short for a large request.
//! Freed neighbours join by themselves. Who may take pages, and who waits, is the pool's matter.

/// Runs of this many pages (256 KiB) and more are taken from the top, in whole words.
const LARGE_PAGES: u32 = u64::BITS;

/// A bitmap of free pages; a set bit is a free page.
#[derive(Debug)]
pub(super) struct PageMap {
    words: Vec<u64>,
    /// No word before this one has a free page.
    first: usize,
}

impl PageMap {
    /// A map of `pages` free pages.
    pub(super) fn new(pages: u32) -> Self {
        let mut words = vec![u64::MAX; pages.div_ceil(u64::BITS) as usize];
        let tail = pages % u64::BITS;
        if tail != 0
            && let Some(last) = words.last_mut()
        {
            *last = (1 << tail) - 1;
        }
        Self { words, first: 0 }
    }

    /// Takes `pages` neighbouring pages and returns the first one's number, or `None` if no run is
    /// long enough (there may be enough pages in shorter runs).
    pub(super) fn take(&mut self, pages: u32) -> Option<u32> {
        assert!(pages > 0, "a run of no pages");
        while self.first < self.words.len() && self.words[self.first] == 0 {
            self.first += 1;
        }
        let start = if pages >= LARGE_PAGES {
            self.find_large(pages)
        } else {
            None
        }
        .or_else(|| self.find_first(pages))?;
        self.set(start, pages, false);
        Some(start)
    }

    /// Gives back a run that [`PageMap::take`] gave.
    pub(super) fn give(&mut self, start: u32, pages: u32) {
        self.set(start, pages, true);
        self.first = self.first.min((start / u64::BITS) as usize);
    }

    /// The highest run of wholly free words that holds `pages`.
    fn find_large(&self, pages: u32) -> Option<u32> {
        let wanted = pages.div_ceil(u64::BITS) as usize;
        let mut run = 0;
        for index in (self.first..self.words.len()).rev() {
            run = if self.words[index] == u64::MAX {
                run + 1
            } else {
                0
            };
            if run == wanted {
                return Some(index as u32 * u64::BITS);
            }
        }
        None
    }

    /// The lowest run of `pages` free pages, wherever it begins.
    fn find_first(&self, pages: u32) -> Option<u32> {
        // The run so far: where it began and how long it is.
        let (mut start, mut len) = (0, 0);
        for (index, &whole) in self.words.iter().enumerate().skip(self.first) {
            let base = index as u32 * u64::BITS;
            let (mut word, mut bit) = (whole, 0);
            while bit < u64::BITS {
                let taken = word.trailing_zeros().min(u64::BITS - bit);
                if taken > 0 {
                    len = 0;
                    bit += taken;
                    if bit >= u64::BITS {
                        break;
                    }
                    word >>= taken;
                }
                let free = word.trailing_ones().min(u64::BITS - bit);
                if len == 0 {
                    start = base + bit;
                }
                len += free;
                if len >= pages {
                    return Some(start);
                }
                bit += free;
                // A shift by the whole width is undefined for `>>`; the loop ends there anyway.
                word = word.checked_shr(free).unwrap_or(0);
            }
        }
        None
    }

    fn set(&mut self, start: u32, pages: u32, free: bool) {
        let (mut page, end) = (start, start + pages);
        while page < end {
            let bit = page % u64::BITS;
            let count = (u64::BITS - bit).min(end - page);
            let mask = (u64::MAX >> (u64::BITS - count)) << bit;
            let word = &mut self.words[(page / u64::BITS) as usize];
            if free {
                assert!(*word & mask == 0, "page {page}: given back twice");
                *word |= mask;
            } else {
                assert!(*word & mask == mask, "page {page}: taken twice");
                *word &= !mask;
            }
            page += count;
        }
    }

    #[cfg(test)]
    fn free_pages(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::PageMap;

    #[test]
    fn single_pages_fill_the_region_from_the_bottom() {
        let mut map = PageMap::new(130);
        for page in 0..130 {
            assert_eq!(map.take(1), Some(page));
        }
        assert_eq!(map.take(1), None);
        map.give(65, 1);
        map.give(3, 1);
        assert_eq!(map.take(1), Some(3));
        assert_eq!(map.take(1), Some(65));
    }

    #[test]
    fn runs_cross_words_and_freed_neighbours_join() {
        let mut map = PageMap::new(128);
        assert_eq!(map.take(60), Some(0));
        assert_eq!(map.take(10), Some(60));
        map.give(0, 60);
        map.give(60, 10);
        assert_eq!(map.take(63), Some(0));
        assert_eq!(map.take(65), Some(63));
    }

    #[test]
    fn large_runs_come_from_the_top() {
        let mut map = PageMap::new(256);
        assert_eq!(map.take(64), Some(192));
        assert_eq!(map.take(1), Some(0));
        assert_eq!(map.take(100), Some(64));
        // No wholly free words are left at the top for this one, but a run is.
        assert_eq!(map.take(63), Some(1));
        assert_eq!(map.free_pages(), 28);
    }

    #[test]
    fn a_random_life_never_gives_a_page_twice() {
        let mut map = PageMap::new(1000);
        let mut held: Vec<(u32, u32)> = Vec::new();
        let mut state = 7u64;
        for _ in 0..20_000 {
            // Xorshift: any spread of numbers will do.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if state.is_multiple_of(2) {
                let pages = 1 + (state >> 8) as u32 % 90;
                if let Some(start) = map.take(pages) {
                    assert!(start + pages <= 1000);
                    held.push((start, pages));
                }
            } else if !held.is_empty() {
                let (start, pages) = held.swap_remove((state >> 8) as usize % held.len());
                map.give(start, pages);
            }
            let in_use: u32 = held.iter().map(|run| run.1).sum();
            assert_eq!(map.free_pages(), 1000 - in_use);
        }
    }
}
