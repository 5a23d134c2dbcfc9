//! A small byte-level tokenizer trained from the text of a run, with the special tokens of the SmolVLM family.
//! Knows text only. Cost: one pass over the text plus one merge per vocabulary entry; a second for a megabyte.

use std::collections::HashSet;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

use super::FreshError;

/// End of a text without turns; also what unknown bytes would become, which byte-level text never has.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Opens a conversation.
pub const START: &str = "<|im_start|>";
/// Padding.
pub const PADDING: &str = "<|im_end|>";
/// Stands before and after the tokens of a picture.
pub const AROUND_IMAGE: &str = "<fake_token_around_image>";
/// One feature of a picture.
pub const IMAGE: &str = "<image>";
/// Ends a turn.
pub const END_OF_UTTERANCE: &str = "<end_of_utterance>";
/// Announces the whole picture, as opposed to a cut of it.
pub const GLOBAL_IMAGE: &str = "<global-img>";

/// The special tokens; their ids are their places in this list.
pub const SPECIAL: [&str; 7] = [END_OF_TEXT, START, PADDING, AROUND_IMAGE, IMAGE, END_OF_UTTERANCE, GLOBAL_IMAGE];

/// The id of a special token.
pub fn special_id(token: &str) -> u32 {
    SPECIAL.iter().position(|special| *special == token).expect("asked for special tokens only") as u32
}

/// Trains a tokenizer of `vocabulary` entries. Same texts in the same order: same tokenizer, byte for byte.
pub fn train(texts: impl Iterator<Item = String> + Send, vocabulary: usize) -> Result<Tokenizer, FreshError> {
    let wrong = |error: tokenizers::Error| FreshError::Tokenizer(error.to_string());
    let mut tokenizer = Tokenizer::new(BPE::default());
    // Digits one by one, so that 12 and 21 share their tokens; then bytes, so that any text can be written.
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ]))));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::new(false, true, true))));
    let special = || SPECIAL.iter().map(|token| AddedToken::from(*token, true).normalized(false));
    let mut trainer = TrainerWrapper::BpeTrainer(
        BpeTrainer::builder()
            .vocab_size(vocabulary)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(special().collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
            .build(),
    );
    tokenizer.train(&mut trainer, texts).map_err(wrong)?;
    tokenizer.add_special_tokens(special()).map_err(wrong)?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> impl Iterator<Item = String> + Send {
        (0..400).map(|i| format!("How many red circles are there? There are {} red and {} blue ones.", i % 13, i % 7))
    }

    #[test]
    fn special_tokens_come_first_and_digits_stay_alone() {
        let tokenizer = train(texts(), 320).unwrap();
        assert_eq!(tokenizer.token_to_id(IMAGE), Some(special_id(IMAGE)));
        assert!(tokenizer.get_vocab_size(true) <= 320);
        let encoding = tokenizer.encode("<image> 12 red circles<end_of_utterance>", false).unwrap();
        let tokens = encoding.get_tokens();
        assert_eq!(tokens.first().map(String::as_str), Some("<image>"));
        assert_eq!(tokens.last().map(String::as_str), Some("<end_of_utterance>"));
        assert!(tokens.contains(&"1".to_string()) && tokens.contains(&"2".to_string()), "{tokens:?}");
        let decoded = tokenizer.decode(encoding.get_ids(), false).unwrap();
        assert_eq!(decoded, "<image> 12 red circles<end_of_utterance>");
    }

    #[test]
    fn the_same_text_gives_the_same_tokenizer() {
        let first = train(texts(), 320).unwrap().to_string(true).unwrap();
        for _ in 0..3 {
            assert_eq!(train(texts(), 320).unwrap().to_string(true).unwrap(), first);
        }
    }

    #[test]
    fn unseen_text_comes_back() {
        let tokenizer = train(texts(), 300).unwrap();
        let text = "Größe 7 → \u{1F41F}\n\n\tfish";
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
    }
}
