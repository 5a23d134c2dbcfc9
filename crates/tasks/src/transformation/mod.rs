//! The world `transformation` (in the manner of TRANCE and Reason-RFT): two pictures of a table, and the calls that
//! turn the first into the second.

mod drawing;
pub mod questions;
pub mod scene;
