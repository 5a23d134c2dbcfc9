//! Verifies numbers (methods 6.4, 6.5): the whole answer must be one number, compared relative to the gold.
//! Sees the extracted answer and the row's units. Cost: one pass.

use serde::{Deserialize, Serialize};

use super::cosine;
use super::{Compat, Status, Verdict};

/// Options of the verifier `number`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NumberOptions {
    /// Accepted deviation as a share of the gold. 0 for counting; 0.05 is customary for reading charts.
    pub rel_tol: f64,
    /// Accepted deviation in the answer's own unit, whatever the gold's size.
    pub abs_tol: f64,
    /// What a percent sign means when only one side has one.
    pub percent: Percent,
    /// What may stand behind the number.
    pub units: Units,
    /// Accepts `3/4` and `1 3/4`.
    pub fractions: bool,
    /// Accepts number words from zero to the thousands (`three`, `twenty-one`).
    pub words: bool,
    /// Golds that look like years (whole numbers from 1000 to 2999) need equality. Turn it on with `rel_tol > 0`
    /// when the questions ask for years: 2009 is within 5 % of 2010.
    pub year_guard: bool,
    /// Partial credit that falls as a cosine between two relative deviations (`[0.05, 0.20]`), in place of right or
    /// wrong. Denser signal where exact numbers are rare, as in reading angles and lengths.
    pub cosine: Option<[f64; 2]>,
}

impl Default for NumberOptions {
    fn default() -> Self {
        Self {
            rel_tol: 0.0,
            abs_tol: 1e-9,
            percent: Percent::OneSided,
            units: Units::Listed,
            fractions: false,
            words: false,
            year_guard: false,
            cosine: None,
        }
    }
}

/// How percent signs are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Percent {
    /// With a sign on one side only, that side may be meant as written or divided by 100.
    #[default]
    OneSided,
    /// A sign always divides by 100.
    AsFraction,
}

/// Words behind a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Units {
    /// Only those that the row lists under `units`.
    #[default]
    Listed,
    /// Any one word is dropped.
    Ignore,
}

/// A number as written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number {
    /// The value in front of any percent sign.
    pub value: f64,
    /// Whether a percent sign follows.
    pub percent: bool,
}

/// Reads the whole text as one number; `None` if anything else is in it.
pub fn parse(text: &str, options: &NumberOptions, units: &[String]) -> Option<Number> {
    let text = text.trim().trim_end_matches('.').trim_end();
    if options.words
        && let Some(value) = number_words(text)
    {
        return Some(Number { value, percent: false });
    }
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, text[1..].trim_start()),
        b'+' => (false, text[1..].trim_start()),
        _ => (false, text),
    };
    let rest = rest.strip_prefix(['$', '€', '£', '¥', '₹']).map_or(rest, str::trim_start);
    let (mut value, mut rest) = unsigned(rest)?;
    if options.fractions
        && let Some((fraction, behind)) = fraction(value, rest)
    {
        (value, rest) = (fraction, behind);
    }
    let rest = rest.trim_start();
    let (percent, rest) = rest.strip_prefix('%').map_or((false, rest), |rest| (true, rest.trim_start()));
    if !unit_accepted(rest, options.units, units) || !value.is_finite() {
        return None;
    }
    Some(Number { value: if negative { -value } else { value }, percent })
}

// Digits with optional thousands groups, fraction and exponent. A leading point (`.5`) is accepted beyond the written
// grammar: models copy it from axis labels.
fn unsigned(text: &str) -> Option<(f64, &str)> {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut end = digits(0);
    if (1..=3).contains(&end) {
        while bytes.get(end) == Some(&b',') && digits(end + 1) == 3 {
            end += 4;
        }
    }
    if bytes.get(end) == Some(&b'.') && end + 1 < bytes.len() && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    if end == 0 {
        return None;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if end + 1 + sign < bytes.len() && digits(end + 1 + sign) > 0 {
            end += 1 + sign + digits(end + 1 + sign);
        }
    }
    // A comma or a digit right behind is a malformed group, as in `1,23`.
    if matches!(bytes.get(end), Some(b',' | b'.' | b'_')) {
        return None;
    }
    let value = text[..end].replace(',', "").parse().ok()?;
    Some((value, &text[end..]))
}

fn fraction(whole: f64, rest: &str) -> Option<(f64, &str)> {
    if let Some(behind) = rest.trim_start().strip_prefix('/') {
        let (below, rest) = unsigned(behind.trim_start())?;
        return (below != 0.0).then(|| (whole / below, rest));
    }
    if !rest.starts_with(' ') {
        return None;
    }
    let (above, behind) = unsigned(rest.trim_start())?;
    let (below, rest) = unsigned(behind.trim_start().strip_prefix('/')?.trim_start())?;
    (below != 0.0 && above < below).then(|| (whole + above / below, rest))
}

fn unit_accepted(rest: &str, mode: Units, units: &[String]) -> bool {
    if rest.is_empty() {
        return true;
    }
    let rest = rest.to_lowercase();
    if units.iter().any(|unit| {
        let unit = unit.trim().to_lowercase();
        rest == unit || rest.strip_suffix('s') == Some(&unit) || unit.strip_suffix('s') == Some(&rest)
    }) {
        return true;
    }
    mode == Units::Ignore
        && rest.starts_with(char::is_alphabetic)
        && !rest.contains(|c: char| c.is_whitespace() || c.is_ascii_digit() || c == ',')
}

fn number_words(text: &str) -> Option<f64> {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let lower = text.to_lowercase();
    let (mut total, mut part, mut last) = (0.0, 0.0, 1000.0);
    for word in lower.split([' ', '-']).filter(|word| !word.is_empty() && *word != "and") {
        // Each word must be smaller in kind than the one before: "twenty one", not "one two".
        if let Some(value) = SMALL.iter().position(|w| *w == word) {
            if last <= 10.0 || (last <= 20.0 && value >= 10) {
                return None;
            }
            (part, last) = (part + value as f64, 10.0);
        } else if let Some(value) = TENS.iter().position(|w| *w == word) {
            if last <= 20.0 {
                return None;
            }
            (part, last) = (part + 10.0 * (value + 2) as f64, 20.0);
        } else if word == "hundred" && (1.0..10.0).contains(&part) {
            (part, last) = (part * 100.0, 100.0);
        } else if word == "thousand" && part >= 1.0 && total == 0.0 {
            (total, part, last) = (part * 1000.0, 0.0, 1000.0);
        } else {
            return None;
        }
    }
    (last < 1000.0 || total > 0.0).then_some(total + part)
}

/// Scores `answer` against the parsed gold.
pub fn verify(answer: &str, gold: Number, options: &NumberOptions, units: &[String]) -> Verdict {
    let Some(number) = parse(answer, options, units) else { return Verdict::fail(Status::Unparsable) };
    // Two readings at most: as written, and with the only percent sign taken as "divide by 100".
    let mut readings = vec![(number.value, gold.value)];
    match options.percent {
        Percent::AsFraction => {
            let plain = |n: Number| if n.percent { n.value / 100.0 } else { n.value };
            readings = vec![(plain(number), plain(gold))];
        }
        Percent::OneSided if number.percent && !gold.percent => readings.push((number.value / 100.0, gold.value)),
        Percent::OneSided if gold.percent && !number.percent => readings.push((number.value, gold.value / 100.0)),
        Percent::OneSided => {}
    }
    let scores = readings.into_iter().map(|(p, g)| match options.cosine {
        Some([inner, outer]) => cosine::score(p, g, inner, outer, options.abs_tol),
        None => f64::from(u8::from(close(p, g, options))),
    });
    Verdict::ok(scores.fold(0.0, f64::max) as f32, answer)
}

fn close(p: f64, g: f64, options: &NumberOptions) -> bool {
    if options.year_guard && g.fract() == 0.0 && (1000.0..3000.0).contains(&g) {
        return p == g;
    }
    (p - g).abs() <= options.abs_tol.max(options.rel_tol * g.abs()) + 1e-9 * g.abs().max(1.0)
}

/// DyME's relaxed rule: the change is divided by the *model's* number; when that is 0, or a side is no number, the
/// texts are compared instead.
pub fn verify_relaxed_compat(answer: &str, gold: &str, rel_tol: f64, compat: Compat) -> Verdict {
    debug_assert!(compat == Compat::Dyme);
    let (answer, gold) = (answer.trim().to_lowercase(), gold.trim().to_lowercase());
    let right = match (python_float(&answer), python_float(&gold)) {
        (Some(p), Some(g)) if p != 0.0 => ((g - p) / p).abs() <= rel_tol,
        _ => answer == gold,
    };
    Verdict::ok(f32::from(u8::from(right)), answer)
}

// What Python's float() accepts, with a trailing percent sign meaning "divide by 100".
fn python_float(text: &str) -> Option<f64> {
    let (digits, scale) = text.strip_suffix('%').map_or((text, 1.0), |rest| (rest, 100.0));
    let digits = digits.trim();
    let bytes = digits.as_bytes();
    let between_digits =
        |at: usize| at > 0 && bytes[at - 1].is_ascii_digit() && bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
    if (0..bytes.len()).any(|at| bytes[at] == b'_' && !between_digits(at)) {
        return None;
    }
    digits.replace('_', "").parse::<f64>().ok().map(|value| value / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict(answer: &str, gold: &str, options: &NumberOptions) -> Verdict {
        let units = ["cm".to_string(), "dollar".to_string()];
        let gold = parse(gold, options, &units).expect("gold is a number");
        verify(answer, gold, options, &units)
    }

    fn plain(answer: &str, gold: &str) -> Verdict {
        strict(answer, gold, &NumberOptions::default())
    }

    #[test]
    fn golden_relaxed() {
        let five = NumberOptions { rel_tol: 0.05, ..Default::default() };
        for (answer, score) in [("94.9", 0.0), ("95", 1.0), ("105", 1.0), ("105.2", 0.0)] {
            assert_eq!(strict(answer, "100", &five).score, score, "{answer}");
        }
        assert_eq!(strict("1.05", "1", &five).score, 1.0);
        assert_eq!(strict("2009", "2010", &five).score, 1.0);
        let guarded = NumberOptions { year_guard: true, ..five };
        assert_eq!(strict("2009", "2010", &guarded).score, 0.0);
        assert_eq!(strict("2010", "2010", &guarded).score, 1.0);
        for (answer, score) in [("95.2", 0.0), ("95.3", 1.0), ("105.2", 1.0), ("105.3", 0.0)] {
            assert_eq!(verify_relaxed_compat(answer, "100", 0.05, Compat::Dyme).score, score, "{answer}");
        }
        assert_eq!(verify_relaxed_compat("0", "0.0", 0.0, Compat::Dyme).score, 0.0);
        assert_eq!(verify_relaxed_compat("Blue", "blue", 0.0, Compat::Dyme).score, 1.0);
        assert_eq!(verify_relaxed_compat("50%", "0.5", 0.0, Compat::Dyme).score, 1.0);
    }

    #[test]
    fn adversarial_numbers() {
        for text in ["1 2 3 4 5 6 7 8 9 10", "3 or 4", "nan", "inf", "1_000", "1,23", "٣", "x=12", "", "1e999", "--3"]
        {
            assert_eq!(plain(text, "3").status, Status::Unparsable, "{text:?}");
        }
        assert_eq!(plain("10", "1").score, 0.0);
        assert_eq!(plain("1", "10").score, 0.0);
        assert_eq!(plain("5.0", "5").score, 1.0);
        for zero in ["0", "0.0", "-0", "1e-12"] {
            assert_eq!(plain(zero, "0").score, 1.0, "{zero}");
        }
    }

    #[test]
    fn forms_of_numbers() {
        for (answer, gold, score) in [
            ("1,000", "1000", 1.0),
            ("1,000,000.5", "1000000.5", 1.0),
            ("$12.50", "12.5", 1.0),
            ("-$3", "-3", 1.0),
            ("3 cm", "3", 1.0),
            ("3 dollars", "3", 1.0),
            ("1.2e3", "1200", 1.0),
            (".5", "0.5", 1.0),
            ("7.", "7", 1.0),
            ("12%", "12", 1.0),
            ("12%", "0.12", 1.0),
            ("0.12", "12%", 1.0),
            ("12%", "12%", 1.0),
            ("0.12%", "12%", 0.0),
        ] {
            assert_eq!(plain(answer, gold).score, score, "{answer} for {gold}");
        }
        assert_eq!(plain("3 apples", "3").status, Status::Unparsable);
        let ignore = NumberOptions { units: Units::Ignore, ..Default::default() };
        assert_eq!(strict("3 apples", "3", &ignore).score, 1.0);
        assert_eq!(strict("3 or 4", "3", &ignore).status, Status::Unparsable);
        let fractions = NumberOptions { fractions: true, ..Default::default() };
        assert_eq!(strict("3/4", "0.75", &fractions).score, 1.0);
        assert_eq!(strict("1 3/4", "1.75", &fractions).score, 1.0);
        assert_eq!(strict("1/0", "1", &fractions).status, Status::Unparsable);
        let words = NumberOptions { words: true, ..Default::default() };
        assert_eq!(strict("three", "3", &words).score, 1.0);
        assert_eq!(strict("One hundred and twenty-one", "121", &words).score, 1.0);
        assert_eq!(strict("two thousand ten", "2010", &words).score, 1.0);
        assert_eq!(strict("one two", "3", &words).status, Status::Unparsable);
        assert_eq!(strict("one hundred", "100", &words).score, 1.0);
        assert_eq!(strict("and", "1", &words).status, Status::Unparsable);
        let fraction = NumberOptions { percent: Percent::AsFraction, ..Default::default() };
        assert_eq!(strict("12%", "12", &fraction).score, 0.0);
    }
}
