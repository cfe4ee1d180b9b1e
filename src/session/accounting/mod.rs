//! Bytes and their owners: the ledger between two updates, and its join with process records.
//!
//! The pipeline or the kernel counter reader credits accounts in the ledger. An update drains it and adds the
//! accounts to the records of the processes.

mod ledger;
mod merger;

pub use ledger::{Ledger, LedgerContents, LedgerTotals};
pub use merger::AccountMerger;
