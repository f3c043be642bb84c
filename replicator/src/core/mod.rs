//! The pure core: events in, actions out. It knows no clock, random number, file or socket.

pub mod disk;
