//! A model that answers many clients: what they ask in OpenAI's words, and one worker that decodes all of it together.
//! Knows requests, prompts and the policy; knows no sockets.
//! Cost: decoding; a request that waits costs its rendered prompt.

pub mod protocol;

pub mod stream;

pub mod worker;
