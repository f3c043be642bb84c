//! Tests of kagami as a whole.
//!
//! [`sim`] runs two cores with their disks, the link and the arbiter from one seed, breaks them,
//! and checks what docs/design.md §4 promises after every step.

pub mod sim;
