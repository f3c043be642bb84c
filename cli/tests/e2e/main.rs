//! End-to-end tests: real daemons of the built binary on loopback, real clients, real deaths.
//!
//! Every test has a pair of its own, in a folder and on ports of its own; its daemons die with its thread.

mod clients;
mod crashes;
mod etcd;
mod guests;
mod keys;
mod life;
mod moved;
mod overload;
mod permission;
mod permissions;
mod refusals;
mod rights;
mod split_brain;
mod stores;
mod support;
mod together;
mod upkeep;
