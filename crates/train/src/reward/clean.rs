//! Makes text comparable before anything reads it: one Unicode form, no invisible characters, one minus sign.
//! Knows nothing of answers. Cost: one pass and one copy of the text.

use unicode_normalization::UnicodeNormalization;

/// Answers longer than this many characters are refused by every verifier.
pub const MAX_ANSWER_CHARS: usize = 4096;

/// NFKC, zero-width characters removed, every minus sign an ASCII hyphen.
///
/// Two departures from plain NFKC, both because it glues digits together: a superscript keeps its meaning (`x²` gives
/// `x^2`, not `x2`) and a vulgar fraction keeps its distance (`1½` gives `1 1/2`, not `11/2`).
pub fn clean(text: &str) -> String {
    if text.is_ascii() {
        return text.to_string();
    }
    let mut spelled = String::with_capacity(text.len() + 8);
    let mut in_superscript = false;
    for c in text.chars() {
        if is_invisible(c) {
            continue;
        }
        if is_superscript(c) {
            if !in_superscript {
                spelled.push('^');
            }
            in_superscript = true;
            spelled.push(c);
            continue;
        }
        in_superscript = false;
        if is_vulgar_fraction(c) && spelled.ends_with(|last: char| last.is_ascii_digit()) {
            spelled.push(' ');
        }
        spelled.push(c);
    }
    let form = spelled.nfkc().filter(|&c| !is_invisible(c));
    form.map(|c| match c {
        '\u{2212}' | '\u{FE63}' | '\u{FF0D}' => '-',
        '\u{2044}' | '\u{2215}' => '/',
        _ => c,
    })
    .collect()
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{2064}' | '\u{FEFF}' | '\u{00AD}')
}

fn is_superscript(c: char) -> bool {
    matches!(c, '\u{00B2}' | '\u{00B3}' | '\u{00B9}' | '\u{2070}' | '\u{2074}'..='\u{2079}' | '\u{207B}' | '\u{207F}')
}

fn is_vulgar_fraction(c: char) -> bool {
    matches!(c, '\u{00BC}'..='\u{00BE}' | '\u{2150}'..='\u{215E}' | '\u{2189}')
}

/// Lower case, white space collapsed, wrapping quotes and trailing `.,;:!?` removed: the form in which free texts,
/// labels and option texts are compared.
pub fn normalise(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut words = lower.split_whitespace().collect::<Vec<_>>().join(" ");
    loop {
        let trimmed = words.trim_end_matches(['.', ',', ';', ':', '!', '?']).trim();
        let inner = unquote(trimmed);
        if inner.len() == words.len() {
            return words;
        }
        words = inner.to_string();
    }
}

/// One pair of matching quotes around the text removed, if there is one.
pub fn unquote(text: &str) -> &str {
    for (open, close) in [('"', '"'), ('\'', '\''), ('`', '`'), ('\u{201C}', '\u{201D}'), ('\u{2018}', '\u{2019}')] {
        if let Some(inner) = text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)) {
            return inner.trim();
        }
    }
    text
}

/// The words of a text: runs of letters, digits, `_` and apostrophes.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '\'' || c == '\u{2019}')).filter(|w| !w.is_empty())
}

/// Position of `needle` (ASCII) at or after `from`, ASCII letters compared without case.
pub fn find_ignore_case(text: &str, needle: &str, from: usize) -> Option<usize> {
    let (hay, needle) = (text.as_bytes(), needle.as_bytes());
    (from..(hay.len() + 1).saturating_sub(needle.len()))
        .find(|&at| hay[at..at + needle.len()].eq_ignore_ascii_case(needle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_for_many_spellings() {
        assert_eq!(clean("\u{FF13}"), "3");
        assert_eq!(clean("\u{2212}5\u{200B}0"), "-50");
        assert_eq!(clean("x\u{00B2}"), "x^2");
        assert_eq!(clean("1\u{00BD}"), "1 1/2");
        assert_eq!(clean("\u{0663}"), "\u{0663}", "other digits stay what they are");
    }

    #[test]
    fn normalising_is_idempotent() {
        for text in ["  A  Red\tCar. ", "\"Yes!\".", "''", "\"", "", "...", "\"a\" \"b\""] {
            let once = normalise(text);
            assert_eq!(normalise(&once), once, "{text:?}");
        }
        assert_eq!(normalise(" \"A  red car\"."), "a red car");
    }

    #[test]
    fn case_blind_search() {
        assert_eq!(find_ignore_case("x ANSWER: y answer: z", "answer:", 0), Some(2));
        assert_eq!(find_ignore_case("x ANSWER: y answer: z", "answer:", 3), Some(12));
        assert_eq!(find_ignore_case("abc", "answer:", 0), None);
        assert_eq!(find_ignore_case("abc", "answer:", 9), None);
    }
}
