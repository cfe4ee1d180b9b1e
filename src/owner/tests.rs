//! Tests of the rules by which an owner is found, each on a `/proc` fixture.

mod conditional;
mod matching;
mod reading;
mod sharing;
mod translation;
