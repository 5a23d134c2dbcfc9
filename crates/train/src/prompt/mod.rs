//! Turns a conversation into token ids, pixels and the tokens that count as its answer.
//! Knows templates and image tiles, each quirk pinned by golden files; knows nothing of models or rewards.
//! Cost: one decode and two or three resizes per picture; nothing is cached.

mod conversation;
mod error;
mod files;
mod frame;
mod idefics3;
pub mod image;
mod internvl;
mod limits;
mod llava_onevision;
mod processor;
mod python_text;
mod qwen;
mod render;
pub mod resize;
mod template;
mod tokenizer;

pub use conversation::{Conversation, Part, Role, Turn};
pub use error::PromptError;
pub use frame::{Coords, Frame};
pub use idefics3::Idefics3Processor;
pub use internvl::InternVlProcessor;
pub use limits::ImageLimits;
pub use llava_onevision::LlavaOnevisionProcessor;
pub use processor::{ImageProcessor, ProcessedImage};
pub use qwen::QwenProcessor;
pub use render::{MaskedInput, Prompter};
pub use template::ChatTemplate;
pub use tokenizer::TextCodec;
