//! Resynchronisation: outages and what they send, beside what the disks and the link do by themselves, and
//! beside an application that writes meanwhile.

pub mod busy;
pub mod copy;
pub mod outage;

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::candidate::{Candidate, Room};
use crate::error::BenchError;
use crate::job::SEQUENTIAL;
use crate::limit::link::BareLink;
use crate::load;
use crate::mirror::{Mirror, Peer};
use busy::Busy;
use outage::{HUNDREDTH, Outages};

/// How long the bare link is measured.
const LINK_TIME: Duration = Duration::from_secs(2);

/// Everything about resynchronisation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resync {
    /// Outages of each kind.
    pub outages: Vec<Outages>,
    /// What the disks and the link do without kagami.
    pub bare: Bare,
    /// Beside an application.
    pub busy: Busy,
}

/// MB/s of what a resynchronisation is made of.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Bare {
    /// A hundredth of the blocks, read from one file and written to another, in order.
    pub scattered: f64,
    /// The whole file, 1 MiB at a time.
    pub whole: f64,
    /// Frames of 1 MiB over the link.
    pub link: f64,
}

/// Measures it all: `rounds` outages of each kind, of a `share` of the region.
///
/// # Errors
/// The mirror fails.
pub fn measure(room: &Room, rounds: u32, share: f64) -> Result<Resync, BenchError> {
    room.check(4)?;
    eprintln!("what the disks and the link do by themselves");
    let (from, to) = (copy::file(room, "from.img")?, copy::file(room, "to.img")?);
    let bare = Bare {
        scattered: copy::scattered(&from, &to, room.region, HUNDREDTH)?,
        whole: copy::whole(&from, &to, room.region)?,
        link: BareLink.run(&SEQUENTIAL, LINK_TIME, 1)?.megabytes,
    };
    eprintln!("outages");
    let mirror = Mirror::start(room, "resync", room.region >> 20, Peer::There)?;
    let mut client = mirror.client()?;
    load::fill(&mut client, room.region)?;
    let outages = outage::measure(&mirror, &mut client, room.region, rounds, share)?;
    eprintln!("beside an application");
    let busy = busy::measure(&mirror, &mut client, room.region)?;
    Ok(Resync {
        outages,
        bare,
        busy,
    })
}

/// Tables and sentences, in Markdown.
pub fn text(resync: &Resync) -> String {
    let Resync {
        outages,
        bare,
        busy,
    } = resync;
    let mut text = outage::table(outages);
    let _ = writeln!(
        text,
        "\n- By themselves: the disks copy 1 % of the blocks at {:.0} MB/s and everything at {:.0} MB/s; the link \
         carries {:.0} MB/s.",
        bare.scattered, bare.whole, bare.link
    );
    let best = |wanted: &dyn Fn(&Outages) -> bool| {
        let kind = outages.iter().find(|kind| wanted(kind))?;
        let mut rates: Vec<f64> = kind.outages.iter().map(|outage| outage.megabytes).collect();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    };
    let hundredth = |kind: &Outages| (kind.share - HUNDREDTH).abs() < 1e-9;
    let large = |kind: &Outages| kind.job == SEQUENTIAL.name();
    let told = |met: bool| if met { "pass" } else { "**miss**" };
    if let Some(rate) = best(&hundredth) {
        let ratio = rate / bare.scattered;
        let _ = writeln!(
            text,
            "- 1 % random marks ÷ the disks' own copying: {ratio:.2}, wanted ≥ 0.80: {}",
            told(ratio >= 0.8)
        );
    }
    if let Some(rate) = best(&large) {
        let ratio = rate / bare.whole.min(bare.link);
        let _ = writeln!(
            text,
            "- large marks ÷ the slower of disks and link: {ratio:.2}, wanted ≥ 0.85: {}",
            told(ratio >= 0.85)
        );
    }
    let sent = outages.iter().flat_map(|kind| &kind.outages);
    let most = sent.map(|outage| outage.sent_by_marked).fold(0.0, f64::max);
    let _ = writeln!(
        text,
        "- sent ÷ marked, at most: {most:.3}, wanted ≤ 1.02: {}",
        told(most <= 1.02)
    );
    text + &busy::text(busy)
}
