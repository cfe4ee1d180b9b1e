//! The rules of finding an owner, each on a made-up tree.

mod conditional;
mod matching;
mod reading;
mod sharing;
mod translation;
