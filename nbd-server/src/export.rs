//! The exports of a server: a name, what people read about it, and the device behind it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::device::{Access, BlockDevice};
use crate::negotiate::{Catalog, Found, Listed};
use crate::proto::MAX_STRING;

/// One export.
#[derive(Debug)]
pub struct Export<D> {
    /// What clients ask for: up to 4096 bytes without NUL.
    pub name: String,
    /// What people read in a listing, perhaps empty.
    pub description: String,
    /// What is served.
    pub device: Rc<D>,
    /// Clients can't write.
    pub read_only: bool,
    /// Served and listed over TLS only.
    pub tls_only: bool,
}

impl<D> Export<D> {
    /// A writable export without description.
    pub fn new(name: impl Into<String>, device: Rc<D>) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            device,
            read_only: false,
            tls_only: false,
        }
    }

    /// How clients may use it.
    pub fn access(&self) -> Access {
        if self.read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        }
    }
}

/// An export that can't be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportFault {
    /// The name is no string of the protocol.
    #[error("export name {0:?}: NBD allows up to 4096 bytes without NUL")]
    Name(String),
    /// The name is in use.
    #[error("export '{0}' exists already")]
    Exists(String),
}

/// All exports of a server. Changes count for handshakes that come after them.
#[derive(Debug)]
pub struct Exports<D> {
    by_name: RefCell<BTreeMap<String, Rc<Export<D>>>>,
    default: RefCell<Option<String>>,
}

impl<D> Default for Exports<D> {
    fn default() -> Self {
        Self {
            by_name: RefCell::default(),
            default: RefCell::default(),
        }
    }
}

impl<D: BlockDevice> Exports<D> {
    /// No exports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export.
    ///
    /// # Errors
    /// Its name can't be used.
    pub fn add(&self, export: Export<D>) -> Result<(), ExportFault> {
        let name = export.name.clone();
        if name.len() > MAX_STRING || name.contains('\0') {
            return Err(ExportFault::Name(name));
        }
        let mut by_name = self.by_name.borrow_mut();
        if by_name.contains_key(&name) {
            return Err(ExportFault::Exists(name));
        }
        by_name.insert(name, Rc::new(export));
        Ok(())
    }

    /// Takes an export away; sessions that use it go on. True if it was there.
    pub fn remove(&self, name: &str) -> bool {
        self.by_name.borrow_mut().remove(name).is_some()
    }

    /// Names the export that clients get who name none. Without this it is the export whose name
    /// is empty, or the only one.
    pub fn set_default(&self, name: Option<&str>) {
        *self.default.borrow_mut() = name.map(str::to_owned);
    }

    /// The export called `name`.
    pub fn get(&self, name: &str) -> Option<Rc<Export<D>>> {
        let by_name = self.by_name.borrow();
        if let Some(export) = by_name.get(name) {
            return Some(Rc::clone(export));
        }
        if !name.is_empty() {
            return None;
        }
        if let Some(default) = &*self.default.borrow() {
            return by_name.get(default).cloned();
        }
        let mut all = by_name.values();
        match (all.next(), all.next()) {
            (Some(only), None) => Some(Rc::clone(only)),
            _ => None,
        }
    }
}

impl<D: BlockDevice> Catalog for Exports<D> {
    fn list(&self) -> Vec<Listed> {
        self.by_name
            .borrow()
            .values()
            .map(|export| listed(export))
            .collect()
    }

    fn find(&self, name: &str) -> Option<Found> {
        let export = self.get(name)?;
        let info = export.device.info(export.access()).map(|mut info| {
            info.read_only |= export.read_only;
            info
        });
        Some(Found {
            listed: listed(&export),
            info,
        })
    }
}

fn listed<D>(export: &Export<D>) -> Listed {
    Listed {
        name: export.name.clone(),
        description: export.description.clone(),
        tls_only: export.tls_only,
    }
}
