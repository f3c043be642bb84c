//! Directed tests of two cores: what an event does in a stand that seeds do not reach.

mod admission;
mod advice;
mod another_boot;
mod another_peer;
mod arbiter;
mod bad_blocks;
mod carrier;
mod cells;
mod copying;
mod demotion;
mod doubted;
mod dying_disk;
mod early;
mod edges;
mod flushes;
mod footing;
mod forced;
mod full;
mod guests;
mod hanging;
mod heat;
mod late;
mod meeting;
mod orders;
mod overdue;
mod pages;
mod pair;
mod peer_rules;
mod promotion;
mod requests;
mod rest;
mod resync_end;
mod rooms;
mod routes;
mod sessions;
mod stands;
mod store_fails;
mod terms;
mod verification;
mod ways;
mod words;

#[test]
fn every_stand_can_be_brought_about() {
    for stand in crate::sim::coverage::STANDS.split(' ') {
        stands::build(stand);
    }
}

/// A table as it is, or as the core does it now, where `variable` says so.
fn table(name: &str, variable: &str, now: impl FnOnce() -> String) -> Option<String> {
    let path = format!("{}/directed/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var(variable).is_ok_and(|word| word == "write") {
        std::fs::write(&path, now()).unwrap_or_else(|e| panic!("{path}: {e}"));
        return None;
    }
    Some(std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
}
