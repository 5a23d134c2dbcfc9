//! What a run writes down and what it shows: metrics, samples, events, the page.
//! Reads everything, feeds nothing back. Cost: a few hundred bytes a step.

pub mod chart;
pub mod events;
pub mod log;
pub mod page;
pub mod records;
