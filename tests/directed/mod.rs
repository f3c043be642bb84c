//! Directed tests of two cores: what an event does in a stand that seeds do not reach.

mod cells;
mod pair;
mod resync_end;
mod stands;

#[test]
fn every_stand_can_be_brought_about() {
    for stand in crate::sim::coverage::STANDS.split(' ') {
        stands::build(stand);
    }
}
