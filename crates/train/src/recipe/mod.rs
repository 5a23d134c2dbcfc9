//! recipe
pub mod parse;
