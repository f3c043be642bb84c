//! What was counted.

/// The kinds of fault, in the order of `World::on_fault`.
pub const FAULTS: [&str; 13] = [
    "node crashes",
    "manager deaths",
    "heartbeats lost one way",
    "mirror links cut",
    "networks cut",
    "arbiters down",
    "arbiters unreachable",
    "monitors failing",
    "both nodes down",
    "resources broken",
    "disks failed",
    "states not written",
    "managers standing still",
];

/// The kinds of fault of the simulator of leases, in the order of its `on_fault`.
pub const LEASE_FAULTS: [&str; 7] = [
    "node crashes",
    "manager deaths",
    "managers stopped",
    "channels cut",
    "channels cut one way",
    "arbiters down",
    "arbiters unreachable",
];

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub seeds: u64,
    pub steps: u64,
    pub ms: u64,
    pub faults: [u64; FAULTS.len()],
    pub commands: u64,
    pub failovers: u64,
    pub recoveries: u64,
    pub ends: u64,
    /// Writes that had landed when their manager died, and that it had not heard of.
    pub landed: u64,
    /// Groups that run beside a disk that has failed, at the end.
    pub beside: u64,
    pub resets: u64,
    pub online: u64,
    /// Leases: how often the right was granted, and lost.
    pub grants: u64,
    pub losses: u64,
}

impl Stats {
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.ms += other.ms;
        for (mine, theirs) in self.faults.iter_mut().zip(other.faults) {
            *mine += theirs;
        }
        self.commands += other.commands;
        self.failovers += other.failovers;
        self.recoveries += other.recoveries;
        self.ends += other.ends;
        self.landed += other.landed;
        self.beside += other.beside;
        self.resets += other.resets;
        self.online += other.online;
        self.grants += other.grants;
        self.losses += other.losses;
    }
}
