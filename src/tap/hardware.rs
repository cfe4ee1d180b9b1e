//! What kinds of devices a network namespace has.

use super::route::Route;
use crate::error::Result;

/// Asks for the devices of the namespace that it was opened in, from any thread.
pub struct Hardware(Route);

impl Hardware {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    /// `SystemResource` when the system refuses it.
    pub fn open() -> Result<Hardware> {
        Route::open().map(Hardware)
    }

    /// Every device by its index, with its hardware type (linux/if_arp.h).
    ///
    /// # Errors
    /// `SystemResource` when the kernel does not answer, or not in full.
    pub fn types(&mut self) -> Result<Vec<(u32, u16)>> {
        self.0.hardware_types()
    }
}
