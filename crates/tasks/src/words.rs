//! Closed sets of words, one per variant: what worlds show and what questions call it.
//! Cost: none.

/// An enum whose variants each have a word, with the list of all of them.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $(#[doc = $word] $variant),* }
        impl $name {
            /// All of them, in the order used by lists.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// The word for it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
    };
}

pub(crate) use words;
