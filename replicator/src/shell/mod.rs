//! The shell: disks, the link, metadata, time. It holds no policy.
//!
//! | module | |
//! |---|---|
//! | [`engine`], [`runtime`], [`patience`] | mirrors on data-plane threads; a thread's runtime, and when it sleeps |
//! | [`uring`], [`buffers`] | the ring, and the memory that payloads live in |
//! | [`storage`], [`disk`], [`metadata`] | a thread's stores: a mirror's data, and its metadata |
//! | [`store`], [`signature`], [`probe`], [`fence`] | making a store, and not of what is used; what it can do; one opener for each |
//! | [`store_name`] | what tells a store from another one under its path |
//! | [`boot`], [`time`] | this boot and its token; the clocks |
//! | [`quic`], `race` | the link; reaching somebody who has several addresses |
//! | [`identity`], [`tls`], [`pairing`] | a node's key; who is let in by it; how two nodes come to know each other |
//! | [`arbiter`], [`witness`], [`etcd`] | who decides which copy may go on alone, and the two kinds of arbiter |
//! | `fields` | small records of fixed fields, read with every length checked |

pub mod arbiter;
pub mod boot;
pub mod buffers;
pub mod disk;
pub mod engine;
pub mod etcd;
pub mod fence;
mod fields;
pub mod identity;
pub mod metadata;
pub mod pairing;
pub mod patience;
pub mod probe;
pub mod quic;
mod race;
pub mod runtime;
pub mod signature;
pub mod storage;
pub mod store;
pub mod store_name;
pub mod time;
pub mod tls;
pub mod uring;
pub mod witness;
