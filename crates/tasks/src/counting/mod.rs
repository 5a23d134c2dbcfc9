//! The world `counting` (in the manner of CLEVR-Math): coloured shapes; count, add, remove, compare.
//! What shifts out of domain is documented in `scene`; the questions are the same in all splits.

pub mod questions;
pub mod scene;
