//! Tests of kagami as a whole.
//!
//! [`model`] goes through every interleaving of the protocol within bounds; [`sim`] runs two cores with
//! their disks, the link and the arbiter from one seed, breaks them, and checks what docs/design.md §4
//! promises after every step. `directed` does to two cores what seeds do not reach. [`failover`] is the
//! simulator of the failover manager. `claims` and `maps` hold the documents and the modules' maps to what is there.

#![allow(
    missing_docs, // a fault or a step is named by its variant
    clippy::cast_possible_wrap,
    clippy::collapsible_match,
    clippy::format_push_string,
    clippy::many_single_char_names,
    clippy::match_same_arms,
    clippy::missing_errors_doc,
    clippy::redundant_closure_for_method_calls,
    clippy::too_many_lines // what is drawn, broken or looked at is one list
)]

#[cfg(test)]
mod claims;
#[cfg(test)]
mod directed;
pub mod failover;
#[cfg(test)]
mod maps;
pub mod model;
pub mod sim;
