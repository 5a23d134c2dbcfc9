//! The same question in three forms (methods.md 3.1): open, multiple choice, yes/no about a proposed answer.
//! Works on any row with a typed answer, whether a world made it or a file. A row keeps its source id, so that
//! overlap checks see through the forms. Everything is keyed by (seed, part, index): order never matters.
//! Balance is exact, not only expected: of two neighbouring indices one judges the right answer and one a wrong one,
//! and within four neighbouring indices the right option stands once at each place.
//! Cost: a few draws and strings.

use foveate_kernels::rng::Purpose;

use crate::ask::read_box;
use crate::draws::Draws;
use crate::row::{Answer, Row};
use crate::world::Format;

/// Wrong options of a multiple-choice question.
const NUM_DISTRACTORS: usize = 3;

/// The row in another form, or nothing where no plausible wrong answer exists.
///
/// `candidates` are texts of the same kind as the answer (other entries of the chart, other golds of the data set);
/// those that equal the answer are ignored, and numbers and boxes can do without. `part` keeps data sets apart that share
/// a seed.
pub fn derive(open: &Row, format: Format, candidates: &[String], seed: u64, part: u32, index: u64) -> Option<Row> {
    let mut draws = Draws::new(seed, Purpose::Derivation, part, index);
    match format {
        Format::Open => Some(open.clone()),
        Format::Choice => {
            let position = draws_of_block(seed, part, index, 4);
            as_choice(open, candidates, position, &mut draws)
        }
        Format::Judge => {
            let shows_gold = draws_of_block(seed, part, index, 2) == 0;
            as_judge(open, candidates, shows_gold, &mut draws)
        }
    }
}

/// The question as it is put to a model: with lettered options, if it has any.
pub fn question_text(row: &Row) -> String {
    let options = row.choices.iter().enumerate().map(|(i, option)| format!("\n{}. {option}", letter(i)));
    row.question.clone() + &options.collect::<String>()
}

/// `A` for 0.
pub fn letter(index: usize) -> String {
    char::from(b'A' + (index % 26) as u8).to_string()
}

/// The place of `index` within a random permutation of its block of `size` neighbours.
fn draws_of_block(seed: u64, part: u32, index: u64, size: u64) -> usize {
    let mut draws = Draws::new(seed, Purpose::Derivation, part ^ 0x8000_0000, index / size);
    let mut places: Vec<usize> = (0..size as usize).collect();
    draws.shuffle(&mut places);
    places[(index % size) as usize]
}

fn derived(open: &Row, format: Format) -> Row {
    let mut row = open.clone();
    row.id = format!("{}-{}", open.id, format.name());
    row.meta.insert("source".into(), open.id.clone().into());
    row.meta.insert("format".into(), format.name().into());
    row
}

fn as_choice(open: &Row, candidates: &[String], position: usize, draws: &mut Draws) -> Option<Row> {
    let mut row = derived(open, Format::Choice);
    let letters: Vec<String>;
    match &open.answer {
        // Already lettered.
        Answer::Choice(_) => return Some(row),
        Answer::Labels(labels) => {
            let mut options: Vec<(String, bool)> = labels.iter().map(|label| (label.clone(), true)).collect();
            let others = distinct(candidates.iter().filter(|other| !labels.iter().any(|l| same_text(l, other))));
            let wanted = NUM_DISTRACTORS.max(2);
            options.extend(draws.sample(&refs(&others), wanted).iter().map(|label| (label.to_string(), false)));
            if options.len() == labels.len() {
                return None;
            }
            draws.shuffle(&mut options);
            letters = (0..options.len()).filter(|&i| options[i].1).map(letter).collect();
            row.choices = options.into_iter().map(|(label, _)| label).collect();
        }
        answer => {
            let gold = answer.text();
            let mut options = distractors(answer, candidates, NUM_DISTRACTORS, draws);
            if options.is_empty() {
                return None;
            }
            draws.shuffle(&mut options);
            let place = position % (options.len() + 1);
            options.insert(place, gold);
            letters = vec![letter(place)];
            row.choices = options;
        }
    }
    if !row.rationale.is_empty() {
        row.rationale = format!("{} That is option {}.", row.rationale, letters.join(" and "));
    }
    row.answer = Answer::Choice(letters);
    Some(row)
}

fn as_judge(open: &Row, candidates: &[String], shows_gold: bool, draws: &mut Draws) -> Option<Row> {
    let mut row = derived(open, Format::Judge);
    // A yes/no question is its own judgement; its worlds balance it at the source.
    if matches!(open.answer, Answer::YesNo(_)) {
        return Some(row);
    }
    let wrong = match &open.answer {
        Answer::Choice(letters) => other_option(letters, &open.choices, draws)?,
        answer => distractors(answer, candidates, 1, draws).pop()?,
    };
    let gold = match &open.answer {
        Answer::Choice(letters) => option_texts(letters, &open.choices)?,
        answer => answer.text(),
    };
    let shown = if shows_gold { gold } else { wrong };
    row.question = format!("{} Is the answer {shown}?", open.question);
    row.choices.clear();
    row.answer = Answer::YesNo(shows_gold);
    if !row.rationale.is_empty() {
        let verdict = if shows_gold { "right" } else { "wrong" };
        row.rationale = format!("{} So {shown} is {verdict}.", row.rationale);
    }
    Some(row)
}

/// The texts behind option letters.
fn option_texts(letters: &[String], choices: &[String]) -> Option<String> {
    let texts: Option<Vec<String>> =
        letters.iter().map(|l| (0..choices.len()).find(|&i| letter(i) == *l).map(|i| choices[i].clone())).collect();
    texts.filter(|texts| !texts.is_empty()).map(|texts| texts.join(", "))
}

fn other_option(letters: &[String], choices: &[String], draws: &mut Draws) -> Option<String> {
    let others: Vec<&String> =
        (0..choices.len()).filter(|&i| !letters.contains(&letter(i))).map(|i| &choices[i]).collect();
    if others.is_empty() { None } else { Some(draws.pick(&others).clone()) }
}

/// Up to `count` wrong answers, all different from the answer and from each other.
pub fn distractors(answer: &Answer, candidates: &[String], count: usize, draws: &mut Draws) -> Vec<String> {
    match answer {
        Answer::Number(text) => number_distractors(text, candidates, count, draws),
        Answer::Text(_) | Answer::Member(_) => {
            let golds = match answer {
                Answer::Member(texts) => texts.clone(),
                other => vec![other.text()],
            };
            let others = distinct(candidates.iter().filter(|other| !golds.iter().any(|gold| same_text(gold, other))));
            draws.sample(&refs(&others), count).into_iter().map(String::from).collect()
        }
        Answer::Functions(_) => {
            // The verifier takes calls in any order: the same calls in another one are no wrong answer.
            let gold = sorted_calls(&answer.text());
            let others = distinct(candidates.iter().filter(|other| sorted_calls(other) != gold));
            draws.sample(&refs(&others), count).into_iter().map(String::from).collect()
        }
        Answer::YesNo(yes) => vec![if *yes { "no" } else { "yes" }.to_string()],
        Answer::Labels(labels) => label_distractors(labels, candidates, count, draws),
        Answer::Box(corners) => box_distractors(corners, candidates, count, draws),
        Answer::Expression(text) => expression_distractors(text, candidates, count, draws),
        Answer::Choice(_) => vec![],
    }
}

fn refs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

fn same_text(a: &str, b: &str) -> bool {
    a.trim().eq_ignore_ascii_case(b.trim())
}

/// The texts without repetitions, in their first order.
fn distinct<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for text in texts {
        if !text.trim().is_empty() && !kept.iter().any(|other| same_text(other, text)) {
            kept.push(text.clone());
        }
    }
    kept
}

/// A number as `value * 10^-decimals`, with what stood behind it.
struct Written {
    value: i64,
    decimals: u32,
    suffix: &'static str,
}

impl Written {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (digits, suffix) = text.strip_suffix('%').map_or((text, ""), |rest| (rest.trim_end(), "%"));
        let digits = digits.replace(',', "");
        let (whole, rest) = digits.split_once('.').unwrap_or((&digits, ""));
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !plain(whole.trim_start_matches('-')) || !plain(rest) || rest.len() > 6 {
            return None;
        }
        Some(Self { value: format!("{whole}{rest}").parse().ok()?, decimals: rest.len() as u32, suffix })
    }

    fn write(&self, value: i64) -> String {
        let unit = 10_i64.pow(self.decimals);
        let sign = if value < 0 { "-" } else { "" };
        let (whole, rest) = (value.abs() / unit, value.abs() % unit);
        match self.decimals {
            0 => format!("{sign}{whole}{}", self.suffix),
            width => format!("{sign}{whole}.{rest:0width$}{}", self.suffix, width = width as usize),
        }
    }
}

/// Near misses, the double, the half, swapped digits, other golds within a factor of three. How many of them lie below
/// the answer is drawn first: otherwise "take the middle option" would be a good guess.
fn number_distractors(text: &str, candidates: &[String], count: usize, draws: &mut Draws) -> Vec<String> {
    let Some(written) = Written::parse(text) else { return vec![] };
    let gold = written.value;
    let step = if written.decimals == 0 { 1 } else { (gold.abs() / 10).max(1) };
    let mut values: Vec<i64> = [-3, -2, -1, 1, 2, 3].iter().filter_map(|&near| gold.checked_add(near * step)).collect();
    values.extend(gold.checked_mul(2));
    if gold % 2 == 0 {
        values.push(gold / 2);
    }
    if (10..100).contains(&gold) && written.decimals == 0 && gold % 10 != 0 {
        values.push(gold % 10 * 10 + gold / 10);
    }
    for other in candidates.iter().filter_map(|other| Written::parse(other)) {
        let (x, y) = (i128::from(other.value), i128::from(gold));
        if other.decimals == written.decimals && x * 3 >= y && x <= y * 3 {
            values.push(other.value);
        }
    }
    values.sort_unstable();
    values.dedup();
    // Counts and chart values are never negative; a negative gold shows that the data set knows such numbers.
    values.retain(|&value| value != gold && (value >= 0 || gold < 0));
    let (mut below, mut above): (Vec<i64>, Vec<i64>) = values.into_iter().partition(|&value| value < gold);
    draws.shuffle(&mut below);
    draws.shuffle(&mut above);
    let num_below = draws.below(count + 1).min(below.len()).max(count.saturating_sub(above.len()));
    below.truncate(num_below);
    above.truncate(count - below.len().min(count));
    below.into_iter().chain(above).map(|value| written.write(value)).collect()
}

/// Sets that differ by one label: swapped, added or left out.
fn label_distractors(labels: &[String], candidates: &[String], count: usize, draws: &mut Draws) -> Vec<String> {
    let others = distinct(candidates.iter().filter(|other| !labels.iter().any(|label| same_text(label, other))));
    let mut sets: Vec<String> = Vec::new();
    for _ in 0..20 {
        if sets.len() == count {
            break;
        }
        let mut set = labels.to_vec();
        match (draws.below(3), others.is_empty()) {
            (0, false) if !set.is_empty() => {
                let place = draws.below(set.len());
                set[place] = draws.pick(&refs(&others)).to_string();
            }
            (1, false) => set.push(draws.pick(&refs(&others)).to_string()),
            _ if set.len() > 1 => {
                set.remove(draws.below(set.len()));
            }
            _ => continue,
        }
        let text = set.join(", ");
        if !sets.contains(&text) {
            sets.push(text);
        }
    }
    sets
}

/// The calls of a text without spaces and quotes, in alphabetical order.
fn sorted_calls(text: &str) -> Vec<String> {
    let plain: String = text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '\'' | '"')).collect();
    let mut calls: Vec<String> =
        plain.split(')').map(|call| call.trim_matches(',').to_lowercase()).filter(|call| !call.is_empty()).collect();
    calls.sort_unstable();
    calls
}

/// Wrong boxes overlap the answer by less than this (intersection over union).
const MOST_OVERLAP: f64 = 0.3;

fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let area = |b: &[f64; 4]| (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0);
    let common = area(&[a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    common / (area(a) + area(b) - common).max(f64::MIN_POSITIVE)
}

/// Boxes of other objects; where those do not suffice, the answer moved by most of its own extent.
fn box_distractors(corners: &[f64; 4], candidates: &[String], count: usize, draws: &mut Draws) -> Vec<String> {
    let apart = |other: &[f64; 4]| overlap(corners, other) < MOST_OVERLAP && other[2] > other[0] && other[3] > other[1];
    let others = candidates.iter().filter_map(|other| read_box(other)).filter(apart).map(|b| Answer::Box(b).text());
    let others = distinct(others.collect::<Vec<_>>().iter());
    let mut found: Vec<String> = draws.sample(&refs(&others), count).into_iter().map(String::from).collect();
    let [x1, y1, x2, y2] = *corners;
    let (width, height) = (x2 - x1, y2 - y1);
    let mut directions = [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7)];
    draws.shuffle(&mut directions);
    for (right, down) in directions {
        let (dx, dy) = ((right * width * 0.9).round(), (down * height * 0.9).round());
        let moved = [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
        let text = Answer::Box(moved).text();
        let inside = x1 + dx >= 0.0 && y1 + dy >= 0.0;
        if found.len() < count && inside && apart(&moved) && !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

/// Another sign, another factor, or another gold.
fn expression_distractors(text: &str, candidates: &[String], count: usize, draws: &mut Draws) -> Vec<String> {
    let numbers = number_distractors(text, candidates, count, draws);
    if !numbers.is_empty() {
        return numbers;
    }
    let negated = text.strip_prefix('-').map_or_else(|| format!("-({text})"), String::from);
    let mut all = vec![negated, format!("2({text})"), format!("({text})/2")];
    all.extend(distinct(candidates.iter().filter(|other| !same_text(other, text))).into_iter().take(16));
    draws.sample(&refs(&all), count).into_iter().map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Call;

    fn open(answer: Answer) -> Row {
        Row {
            id: "a".into(),
            images: vec![],
            question: "How many?".into(),
            answer,
            choices: vec![],
            rationale: "I count.".into(),
            facts: String::new(),
            task: "t".into(),
            split: "train".into(),
            level: 0,
            meta: Default::default(),
        }
    }

    #[test]
    fn every_answer_type_gets_wrong_answers_that_are_wrong() {
        let words: Vec<String> = ["Cat", "dog", "owl", "emu", " cat "].map(String::from).to_vec();
        let golds = [
            Answer::Number("0".into()),
            Answer::Number("12".into()),
            Answer::Number("-3".into()),
            Answer::Number("2.50".into()),
            Answer::Number("40%".into()),
            Answer::Number("1,200".into()),
            Answer::Text("cat".into()),
            Answer::Member(vec!["cat".into(), "kitten".into()]),
            Answer::Labels(vec!["cat".into(), "dog".into()]),
            Answer::Box([10.0, 10.0, 30.0, 50.0]),
            Answer::Expression("x+1".into()),
        ];
        for gold in golds {
            for index in 0..50 {
                let mut draws = Draws::new(1, Purpose::Test, 0, index);
                let wrong = distractors(&gold, &words, 3, &mut draws);
                assert!(!wrong.is_empty(), "{gold:?}");
                for (i, text) in wrong.iter().enumerate() {
                    assert!(!same_text(text, &gold.text()), "{gold:?} got {text}");
                    assert!(!wrong[i + 1..].contains(text), "{gold:?} got {text} twice");
                }
            }
        }
    }

    #[test]
    fn wrong_boxes_are_those_of_other_objects() {
        let gold = Answer::Box([10.0, 10.0, 30.0, 30.0]);
        // The first overlaps the answer too much, the second is the answer, the third is no box.
        let others = ["[12, 12, 30, 30]", "[10, 10, 30, 30]", "[1, 2, 3]", "[40, 40, 60, 60]", "[70, 5, 90, 20]"];
        let others = others.map(String::from);
        for index in 0..20 {
            let wrong = distractors(&gold, &others, 3, &mut Draws::new(1, Purpose::Test, 0, index));
            assert!(wrong.len() == 3 && wrong[..2].iter().all(|text| others[3..].contains(text)), "{wrong:?}");
            assert!(wrong.iter().all(|text| overlap(&read_box(text).unwrap(), &[10.0, 10.0, 30.0, 30.0]) < 0.3));
        }
    }

    #[test]
    fn calls_in_another_order_are_no_wrong_answer() {
        let call = |object: &str| Call { function: "change_size".into(), object: object.into(), value: "small".into() };
        let gold = Answer::Functions(vec![call("0"), call("1")]);
        let others = ["change_size(1,'small'), change_size(0, Small)", "change_size(1, small)"].map(String::from);
        let wrong = distractors(&gold, &others, 3, &mut Draws::new(1, Purpose::Test, 0, 0));
        assert_eq!(wrong, ["change_size(1, small)"]);
    }

    #[test]
    fn decimals_and_percent_signs_keep_their_form() {
        let mut draws = Draws::new(1, Purpose::Test, 0, 0);
        assert!(
            number_distractors("2.50", &[], 3, &mut draws)
                .iter()
                .all(|text| text.split('.').nth(1).unwrap().len() == 2)
        );
        assert!(number_distractors("40%", &[], 3, &mut draws).iter().all(|text| text.ends_with('%')));
        assert!(number_distractors("about ten", &[], 3, &mut draws).is_empty());
        assert_eq!(number_distractors("9223372036854775807", &[], 3, &mut draws).len(), 3);
    }

    #[test]
    fn judging_is_balanced_within_each_pair_and_choice_within_each_four() {
        let row = open(Answer::Number("7".into()));
        for pair in 0..50 {
            let yes = (0..2).filter(|i| {
                derive(&row, Format::Judge, &[], 5, 1, pair * 2 + i).unwrap().answer == Answer::YesNo(true)
            });
            assert_eq!(yes.count(), 1);
        }
        for block in 0..25 {
            let mut letters: Vec<String> =
                (0..4).map(|i| derive(&row, Format::Choice, &[], 5, 1, block * 4 + i).unwrap().answer.text()).collect();
            letters.sort();
            assert_eq!(letters, ["A", "B", "C", "D"]);
        }
    }

    #[test]
    fn the_middle_option_is_not_a_good_guess() {
        let row = open(Answer::Number("7".into()));
        let mut ranks = [0; 4];
        for index in 0..400 {
            let choice = derive(&row, Format::Choice, &[], 5, 1, index).unwrap();
            let lower = choice.choices.iter().filter(|text| text.parse::<i64>().unwrap() < 7).count();
            ranks[lower] += 1;
        }
        assert!(ranks.iter().all(|&rank| (70..130).contains(&rank)), "{ranks:?}");
    }

    #[test]
    fn derived_rows_name_their_source_and_adapt_the_rationale() {
        let mut row = open(Answer::Text("cat".into()));
        let words = ["dog", "owl", "emu", "ape"].map(String::from);
        let choice = derive(&row, Format::Choice, &words, 5, 1, 0).unwrap();
        assert_eq!((choice.id.as_str(), choice.meta["source"].as_str()), ("a-choice", Some("a")));
        let Answer::Choice(letters) = &choice.answer else { panic!("{:?}", choice.answer) };
        assert_eq!(option_texts(letters, &choice.choices).unwrap(), "cat");
        assert_eq!(choice.rationale, format!("I count. That is option {}.", letters[0]));
        assert!(question_text(&choice).contains("\nD. "));
        let judge = derive(&choice, Format::Judge, &[], 5, 1, 0).unwrap();
        assert!(judge.question.starts_with("How many? Is the answer ") && judge.choices.is_empty());
        row.answer = Answer::Labels(vec!["cat".into(), "cow".into()]);
        let labels = derive(&row, Format::Choice, &words, 5, 1, 0).unwrap();
        assert!(matches!(&labels.answer, Answer::Choice(letters) if letters.len() == 2));
        assert!(derive(&open(Answer::Text("cat".into())), Format::Choice, &[], 5, 1, 0).is_none());
    }
}
