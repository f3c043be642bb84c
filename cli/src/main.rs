//! kagami.
fn main() {}
