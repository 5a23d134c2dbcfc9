//! The built-in visual-reasoning worlds: draw a scene, ask, answer, explain.
//! Knows no models, tensors or devices.
#![forbid(unsafe_code)]

pub mod row;
