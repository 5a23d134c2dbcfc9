//! The world `charts` (in the manner of ChartQA): bars, lines and pies; read, compare, add, look for extremes.
//! What shifts out of domain is documented in `scene`; the questions are the same in all splits.

mod drawing;
pub mod questions;
pub mod scene;
