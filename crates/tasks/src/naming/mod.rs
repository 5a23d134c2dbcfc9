//! The world `naming`: pictures of things; the answers are words and sets of words.

pub mod glyphs;
pub mod questions;
pub mod scene;
