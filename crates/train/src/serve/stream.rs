//! Tokens to pieces of text that can be sent at once: whole characters only, and nothing that may turn out to be the
//! beginning of a stop text. Knows texts; knows no tokens. Cost: one search over the unsent text a token.

/// What has been sent of an answer, and what ends it.
#[derive(Clone, Debug)]
pub struct TextStream {
    stops: Vec<String>,
    sent: usize,
    started: bool,
}

/// What a new token brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Text to be sent, maybe empty.
    pub text: String,
    /// Whether a stop text has come: the answer ends here.
    pub stopped: bool,
}

impl TextStream {
    /// Nothing sent yet.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, sent: 0, started: false }
    }

    /// `whole` is all the text of the answer so far; `last` says that no more will come.
    pub fn advance(&mut self, whole: &str, last: bool) -> Piece {
        if !self.started {
            // Several templates make answers begin with a space; clients do not expect it.
            self.sent = whole.len() - whole.trim_start().len();
            self.started = self.sent < whole.len();
        }
        // A token that ends inside a character is shown as a replacement character until the rest comes.
        let settled = if last { whole.len() } else { whole.trim_end_matches('\u{fffd}').len() };
        let unsent = whole.get(self.sent..settled.max(self.sent)).unwrap_or("");
        let found = self.stops.iter().filter_map(|stop| unsent.find(stop.as_str())).min();
        let end = match found {
            Some(at) => at,
            None if last => unsent.len(),
            None => unsent.len() - self.held_back(unsent),
        };
        let text = unsent[..end].to_string();
        self.sent += end;
        Piece { text, stopped: found.is_some() }
    }

    /// Bytes at the end of `text` that may be the beginning of a stop text.
    fn held_back(&self, text: &str) -> usize {
        let longest = |stop: &String| {
            stop.char_indices().map(|(at, _)| at).rev().find(|at| *at > 0 && text.ends_with(&stop[..*at])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(stops: &[&str], steps: &[&str]) -> (Vec<String>, bool) {
        let mut stream = TextStream::new(stops.iter().map(|stop| stop.to_string()).collect());
        let mut sent = Vec::new();
        let mut whole = String::new();
        for (index, step) in steps.iter().enumerate() {
            whole.push_str(step);
            let piece = stream.advance(&whole, index + 1 == steps.len());
            sent.push(piece.text);
            if piece.stopped {
                return (sent, true);
            }
        }
        (sent, false)
    }

    #[test]
    fn leading_space_goes_and_the_rest_comes_as_it_is() {
        assert_eq!(send(&[], &[" ", " The", " sky "]).0, ["", "The", " sky "]);
    }

    #[test]
    fn half_a_character_waits() {
        let mut stream = TextStream::new(Vec::new());
        assert_eq!(stream.advance("a\u{fffd}", false).text, "a");
        assert_eq!(stream.advance("a\u{fffd}\u{fffd}", false).text, "");
        assert_eq!(stream.advance("aé", false).text, "é");
        assert_eq!(stream.advance("aé\u{fffd}", true).text, "\u{fffd}", "at the end it is what was said");
    }

    #[test]
    fn nothing_of_a_stop_text_is_sent() {
        assert_eq!(send(&["END"], &["so E", "N", "D more"]), (vec!["so ".into(), "".into(), "".into()], true));
        assert_eq!(send(&["END"], &["so E", "N", "!"]), (vec!["so ".into(), "".into(), "EN!".into()], false));
        assert_eq!(send(&["\n\n"], &["a\n", "b\n"]).0, ["a", "\nb\n"]);
        assert_eq!(send(&["é!"], &["aé", "?"]).0, ["a", "é?"]);
    }
}
