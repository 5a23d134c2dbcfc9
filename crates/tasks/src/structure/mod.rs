//! The world `structure` (in the manner of Geo170K, Math360K and Geometry3K): plane figures with labelled sides and
//! angles; read, compare, calculate.

mod drawing;
pub mod questions;
pub mod scene;
