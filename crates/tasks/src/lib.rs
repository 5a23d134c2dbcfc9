//! The built-in visual-reasoning worlds: draw a scene, ask, answer, explain.
//! Knows no models, tensors or devices. A row is made from its key alone: same key, same pixels, same words.
//! Modules from the outside in: what a row is, how rows are made, what worlds show and ask, how anything is drawn.
#![forbid(unsafe_code)]

pub mod row;

pub mod world;

pub mod primer;

pub mod derive;

pub mod sheet;

pub mod counting;

pub mod charts;

pub mod structure;

pub mod transformation;

pub mod location;

pub mod naming;

pub mod ask;

pub mod canvas;

pub mod glyphs;

pub mod draws;

mod words;

pub use ask::Quality;
pub use primer::{PrimerSpec, primer, target};
pub use row::{Answer, Call, Drawing, ImageData, Row};
pub use sheet::contact_sheet;
pub use world::{Format, Split, World, WorldError, WorldSpec, row, row_without_images};
