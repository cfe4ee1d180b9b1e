//! The C interface as its users meet it: C and C++ programs, compiled here, run against the built shared
//! library.

// Helpers of tests fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod arguments;
mod classic;
mod header;
mod hosting;

mod layout;
mod library;

mod rounds;
mod session;
mod tools;
