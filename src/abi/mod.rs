//! The C interface: the only module with exported symbols and with raw pointers from callers.
//!
//! Every function goes through `boundary`, which catches panics and keeps the error text. Callbacks are
//! called outside of it, so that a C++ exception thrown by a callback passes through to the caller of the
//! update.

mod arguments;
mod boundary;
mod classic;
mod classic_types;
mod flow_types;
mod process_types;
mod records;
mod session;
mod session_types;
mod version;

pub use classic::{CaptureExit, CaptureInit, CaptureUpdate};
pub use classic_types::*;
pub use flow_types::*;
pub use process_types::*;
pub use session::{
    CaptureSession, CaptureSessionClose, CaptureSessionDescriptor, CaptureSessionOpen, CaptureSessionPackets,
    CaptureSessionStats, CaptureSessionUpdate,
};
pub use session_types::*;
pub use version::{CaptureErrorText, CaptureStrError, CaptureVersion};
