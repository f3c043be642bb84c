//! By which of the kernel's drivers a mirror is a block device, and which device that is.

use std::fmt;

use kagami_nbd_server::kernel::sysfs::{Kind, parse_device};
use serde::{Deserialize, Serialize};

/// A driver of the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The kernel's NBD client: `/dev/nbdN`.
    #[default]
    Nbd,
    /// `ublk_drv`: `/dev/ublkbN`.
    Ublk,
}

impl Driver {
    /// For serde: what older builds know is written as they write it.
    pub fn is_nbd(&self) -> bool {
        *self == Self::Nbd
    }

    /// How the kernel's trees know it.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Nbd => Kind::Nbd,
            Self::Ublk => Kind::Ublk,
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nbd => "nbd",
            Self::Ublk => "ublk",
        })
    }
}

/// One device of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceId {
    /// Whose.
    pub driver: Driver,
    /// N of its name.
    pub index: u32,
}

impl DeviceId {
    /// One of nbd's.
    pub const fn nbd(index: u32) -> Self {
        let driver = Driver::Nbd;
        Self { driver, index }
    }

    /// One of ublk's.
    pub const fn ublk(index: u32) -> Self {
        let driver = Driver::Ublk;
        Self { driver, index }
    }

    /// The one of that path or name.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, index) = parse_device(text)?;
        let driver = match kind {
            Kind::Nbd => Driver::Nbd,
            Kind::Ublk => Driver::Ublk,
        };
        Some(Self { driver, index })
    }

    /// As it is called in /dev and /sys/block.
    pub fn name(&self) -> String {
        self.driver.kind().name(self.index)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/{}", self.name())
    }
}

/// What an attach asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// By which driver; none: as it is attached already, else by nbd.
    pub driver: Option<Driver>,
    /// The device of that number; none: a free one.
    pub index: Option<u32>,
}

impl Wanted {
    /// This very device.
    pub const fn exactly(id: DeviceId) -> Self {
        Self {
            driver: Some(id.driver),
            index: Some(id.index),
        }
    }

    /// The driver of a device that is set up anew.
    pub fn driver(&self) -> Driver {
        self.driver.unwrap_or_default()
    }

    /// The very device, where one is asked for.
    pub fn id(&self) -> Option<DeviceId> {
        let driver = self.driver();
        self.index.map(|index| DeviceId { driver, index })
    }

    /// Whether that device is what is asked for.
    pub fn is(&self, id: DeviceId) -> bool {
        match self.id() {
            Some(wanted) => wanted == id,
            None => self.driver.is_none_or(|driver| driver == id.driver),
        }
    }
}
