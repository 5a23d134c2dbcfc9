//! Model families, each written once as a forward pass over the tape.
//! A family knows its layers and the names of its tensors; training, sampling and devices are not its business.

pub mod llama;
pub mod siglip;
pub mod smolvlm;
