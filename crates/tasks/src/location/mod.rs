//! The world `location` (in the manner of RefCOCO and RefGTA): an expression refers to one object, the answer is its
//! box. Shapes and colours are those of `counting`.

pub mod questions;
pub mod scene;
