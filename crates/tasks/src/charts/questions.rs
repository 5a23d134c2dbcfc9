//! Questions about a chart: one step (read, look up, extremes, compare), two (difference, sum, share, threshold),
//! three (extremes combined, totals, two against one). Everything is computed from the values.
//! Cost: a few passes over at most seven entries.

use super::drawing;
use super::scene::{Chart, ChartKind, family};
use crate::ask::{Asked, compared, number, worded};
use crate::canvas::Canvas;
use crate::draws::Draws;
use crate::row::Answer;
use crate::world::{Lesson, Scene};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Extreme,
    Lookup,
    Higher,
    Difference,
    Sum,
    Above,
    Twice,
    Half,
    Span,
    Trend,
    SumOfExtremes,
    Total,
    TwoAgainstOne,
    SumHigher,
    Average,
    Second,
    SumAbove,
    Falls,
}

/// The kinds of each level; a kind named twice is drawn twice as often.
const LEVELS: [&[Kind]; 3] = [
    &[Kind::Read, Kind::Read, Kind::Extreme, Kind::Lookup, Kind::Higher],
    &[Kind::Difference, Kind::Sum, Kind::Above, Kind::Twice, Kind::Half, Kind::Span, Kind::Trend],
    &[
        Kind::SumOfExtremes,
        Kind::Total,
        Kind::TwoAgainstOne,
        Kind::SumHigher,
        Kind::Average,
        Kind::Second,
        Kind::SumAbove,
        Kind::Falls,
    ],
];

/// How many kinds of question a level has.
pub fn num_kinds(level: u8) -> usize {
    LEVELS[usize::from(level) - 1].len()
}

impl Scene for Chart {
    fn pictures(&self) -> Vec<Canvas> {
        vec![drawing::canvas(self)]
    }

    fn facts(&self) -> String {
        Chart::facts(self)
    }

    fn ask(&self, level: u8, kind: usize, yes: bool, draws: &mut Draws) -> Option<Asked> {
        match LEVELS[usize::from(level) - 1][kind] {
            Kind::Read => Some(self.ask_read(draws)),
            Kind::Extreme => Some(self.ask_extreme(draws)),
            Kind::Lookup => Some(self.ask_lookup(draws)),
            Kind::Higher => self.ask_higher(yes, draws),
            Kind::Difference => Some(self.ask_difference(draws)),
            Kind::Sum => Some(self.ask_sum(draws)),
            Kind::Above => self.ask_above(draws),
            Kind::Twice => self.ask_twice(yes, draws),
            Kind::Half => self.ask_half(draws),
            Kind::Span => Some(self.ask_span()),
            Kind::Trend => self.ask_trend(yes, draws),
            Kind::SumOfExtremes => Some(self.ask_sum_of_extremes()),
            Kind::Total => self.ask_total(draws),
            Kind::TwoAgainstOne => self.ask_two_against_one(draws),
            Kind::SumHigher => self.ask_sum_higher(yes, draws),
            Kind::Average => self.ask_average(draws),
            Kind::Second => Some(self.ask_second(draws)),
            Kind::SumAbove => self.ask_sum_above(draws),
            Kind::Falls => self.ask_falls(),
        }
    }

    fn lessons(&self, draws: &mut Draws) -> Vec<Lesson> {
        let mut lessons = vec![self.lesson_describe(draws)];
        lessons.extend((0..3).map(|_| Lesson::bare(self.ask_read(draws))));
        lessons.push(Lesson::told(self.ask_extreme(draws)));
        lessons.push(Lesson::bare(self.ask_lookup(draws)));
        let yes = draws.percent(50);
        lessons.extend(self.ask_higher(yes, draws).map(Lesson::told));
        lessons.push(Lesson::bare(self.lesson_names()));
        lessons.push(Lesson::bare(self.lesson_kind_or_count(draws)));
        lessons
    }
}

impl Chart {
    fn asked(&self, kind: &'static str, steps: u8, question: String, answer: Answer, goal: &str) -> Asked {
        Asked {
            kind,
            steps,
            question,
            answer,
            goal: goal.to_string(),
            seen: "I see",
            observations: vec![],
            reasoning: vec![],
            candidates: self.plausible_names(),
        }
    }

    /// `A 5`, as in the facts. Never the first word of a sentence: a capital would make a second word of it.
    fn says(&self, i: usize) -> String {
        format!("{} {}", self.names[i], self.values[i])
    }

    /// The names of the chart, filled up to four by others of their kind, so that four options can be offered.
    fn plausible_names(&self) -> Vec<String> {
        let others = family(self.names[0]).iter().filter(|other| !self.names.contains(other));
        let wanted = self.len().max(4);
        self.names.iter().chain(others).take(wanted).map(|name| name.to_string()).collect()
    }

    /// `count` different entries in random order.
    fn entries(&self, count: usize, draws: &mut Draws) -> Vec<usize> {
        draws.sample(&(0..self.len()).collect::<Vec<_>>(), count)
    }

    fn ask_read(&self, draws: &mut Draws) -> Asked {
        let i = draws.below(self.len());
        let (name, value) = (self.names[i], self.values[i]);
        let question = worded(draws, &[format!("What is the value of {name}?"), format!("How much is {name}?")]);
        let mut asked = self.asked("read", 1, question, number(value), &format!("read {name}"));
        asked.observations = vec![self.says(i)];
        asked.reasoning = vec![format!("the value is {value}")];
        asked
    }

    fn ask_extreme(&self, draws: &mut Draws) -> Asked {
        let highest = draws.percent(50);
        let order = self.ranking();
        let i = if highest { order[0] } else { order[order.len() - 1] };
        let word = if highest { "highest" } else { "lowest" };
        let question =
            worded(draws, &[format!("Which entry has the {word} value?"), format!("Which entry is the {word}?")]);
        let answer = Answer::Text(self.names[i].to_string());
        let mut asked = self.asked("extreme", 1, question, answer, &format!("find the {word} entry"));
        asked.observations = vec![self.says(i)];
        asked.reasoning = vec![format!("the {word} is {}", self.names[i])];
        asked
    }

    fn ask_lookup(&self, draws: &mut Draws) -> Asked {
        let i = draws.below(self.len());
        let value = self.values[i];
        let answer = Answer::Text(self.names[i].to_string());
        let question = format!("Which entry has the value {value}?");
        let mut asked = self.asked("lookup", 1, question, answer, &format!("find the value {value}"));
        asked.observations = vec![self.says(i)];
        asked.reasoning = vec![format!("the entry is {}", self.names[i])];
        asked
    }

    fn ask_higher(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let [i, j] = self.entries(2, draws)[..] else { return None };
        let higher = draws.percent(50);
        if (self.values[i] > self.values[j]) != (higher == yes) {
            return None;
        }
        let word = if higher { "higher" } else { "lower" };
        let (a, b) = (self.names[i], self.names[j]);
        let question = format!("Is {a} {word} than {b}?");
        let mut asked = self.asked("higher", 1, question, Answer::YesNo(yes), &format!("compare {a} and {b}"));
        asked.observations = vec![self.says(i), self.says(j)];
        asked.reasoning = vec![compared(self.values[i], self.values[j], word, yes)];
        Some(asked)
    }

    fn ask_difference(&self, draws: &mut Draws) -> Asked {
        let mut pair = self.entries(2, draws);
        pair.sort_by_key(|&i| -self.values[i]);
        let (i, j) = (pair[0], pair[1]);
        let (a, b, x, y) = (self.names[i], self.names[j], self.values[i], self.values[j]);
        let question = worded(
            draws,
            &[format!("How much higher is {a} than {b}?"), format!("What is the difference between {a} and {b}?")],
        );
        let goal = format!("find the difference between {a} and {b}");
        let mut asked = self.asked("difference", 2, question, number(x - y), &goal);
        asked.observations = vec![self.says(i), self.says(j)];
        asked.reasoning = vec![format!("{x} - {y} = {}", x - y)];
        asked
    }

    fn ask_sum(&self, draws: &mut Draws) -> Asked {
        let pair = self.entries(2, draws);
        let (i, j) = (pair[0], pair[1]);
        let (a, b, x, y) = (self.names[i], self.names[j], self.values[i], self.values[j]);
        let question =
            worded(draws, &[format!("What is the sum of {a} and {b}?"), format!("How much are {a} and {b} together?")]);
        let mut asked = self.asked("sum", 2, question, number(x + y), &format!("add {a} and {b}"));
        asked.observations = vec![self.says(i), self.says(j)];
        asked.reasoning = vec![format!("{x} + {y} = {}", x + y)];
        asked
    }

    /// A threshold that no value meets exactly, and the entries beyond it in order of the chart.
    fn threshold(&self, above: bool, draws: &mut Draws) -> Option<(i64, Vec<usize>)> {
        let (low, high) = (self.values.iter().min()?, self.values.iter().max()?);
        let limit = draws.between(low - 1, high + 1).max(1);
        if self.values.contains(&limit) {
            return None;
        }
        Some((limit, (0..self.len()).filter(|&i| (self.values[i] > limit) == above).collect()))
    }

    fn ask_above(&self, draws: &mut Draws) -> Option<Asked> {
        let above = draws.percent(50);
        let word = if above { "above" } else { "below" };
        let (limit, found) = self.threshold(above, draws)?;
        let question = format!("How many entries are {word} {limit}?");
        let count = found.len() as i64;
        let mut asked = self.asked("above", 2, question, number(count), &format!("count the entries {word} {limit}"));
        asked.observations = if found.is_empty() {
            vec![format!("no entry {word} {limit}")]
        } else {
            found.iter().map(|&i| self.says(i)).collect()
        };
        asked.reasoning = vec![format!("the count is {count}")];
        Some(asked)
    }

    fn ask_twice(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let [i, j] = self.entries(2, draws)[..] else { return None };
        let (a, b, x, y) = (self.names[i], self.names[j], self.values[i], self.values[j]);
        // Entries lower than the other would be told apart without doubling anything.
        if (x > 2 * y) != yes || x <= y {
            return None;
        }
        let question = format!("Is {a} more than twice {b}?");
        let mut asked = self.asked("twice", 2, question, Answer::YesNo(yes), &format!("compare {a} with twice {b}"));
        asked.observations = vec![self.says(i), self.says(j)];
        asked.reasoning = vec![format!("{y} + {y} = {}", 2 * y), compared(x, 2 * y, "more", yes)];
        Some(asked)
    }

    fn ask_half(&self, draws: &mut Draws) -> Option<Asked> {
        let even: Vec<usize> = (0..self.len()).filter(|&i| self.values[i] % 2 == 0).collect();
        if even.is_empty() {
            return None;
        }
        let i = draws.pick(&even);
        let (name, half) = (self.names[i], self.values[i] / 2);
        let mut asked =
            self.asked("half", 2, format!("What is half of {name}?"), number(half), &format!("halve {name}"));
        asked.observations = vec![self.says(i)];
        asked.reasoning = vec![format!("half of {} is {half}", self.values[i])];
        Some(asked)
    }

    /// Highest and lowest entry.
    fn extremes(&self) -> (usize, usize) {
        let order = self.ranking();
        (order[0], order[order.len() - 1])
    }

    fn ask_span(&self) -> Asked {
        let (high, low) = self.extremes();
        let (x, y) = (self.values[high], self.values[low]);
        let question = "What is the difference between the highest and the lowest value?".to_string();
        let goal = "find the difference between highest and lowest";
        let mut asked = self.asked("span", 2, question, number(x - y), goal);
        asked.observations = vec![self.says(high), self.says(low)];
        asked.reasoning = vec![format!("{x} - {y} = {}", x - y)];
        asked
    }

    fn ask_trend(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let i = draws.below(self.len() - 1);
        let up = draws.percent(50);
        if self.kind != ChartKind::Line || (self.values[i + 1] > self.values[i]) != (up == yes) {
            return None;
        }
        let word = if up { "up" } else { "down" };
        let (a, b) = (self.names[i], self.names[i + 1]);
        let question = format!("Does the line go {word} from {a} to {b}?");
        let mut asked = self.asked("trend", 2, question, Answer::YesNo(yes), &format!("compare {a} and {b}"));
        asked.observations = vec![self.says(i), self.says(i + 1)];
        let comparison = if up { "higher" } else { "lower" };
        asked.reasoning = vec![compared(self.values[i + 1], self.values[i], comparison, yes)];
        Some(asked)
    }

    fn ask_sum_of_extremes(&self) -> Asked {
        let (high, low) = self.extremes();
        let (x, y) = (self.values[high], self.values[low]);
        let question = "What is the sum of the highest and the lowest value?".to_string();
        let mut asked = self.asked("sum_of_extremes", 3, question, number(x + y), "add highest and lowest");
        asked.observations = vec![self.says(high), self.says(low)];
        asked.reasoning =
            vec![format!("the highest is {x}"), format!("the lowest is {y}"), format!("{x} + {y} = {}", x + y)];
        asked
    }

    /// `5 + 9 = 14`, `14 + 3 = 17`.
    fn running_sum(&self, entries: &[usize]) -> Vec<String> {
        let mut sum = self.values[entries[0]];
        let mut steps = Vec::new();
        for &i in &entries[1..] {
            steps.push(format!("{sum} + {} = {}", self.values[i], sum + self.values[i]));
            sum += self.values[i];
        }
        steps
    }

    fn ask_total(&self, draws: &mut Draws) -> Option<Asked> {
        // More entries would need a rationale longer than fits.
        if self.len() > 5 {
            return None;
        }
        let all: Vec<usize> = (0..self.len()).collect();
        let question =
            worded(draws, &["What is the sum of all values?".into(), "How much are all entries together?".into()]);
        let total = self.values.iter().sum();
        let mut asked = self.asked("total", 3, question, number(total), "add all values");
        asked.observations = all.iter().map(|&i| self.says(i)).collect();
        asked.reasoning = self.running_sum(&all);
        Some(asked)
    }

    fn ask_two_against_one(&self, draws: &mut Draws) -> Option<Asked> {
        let [i, j, k] = self.entries(3, draws)[..] else { return None };
        let (x, y, z) = (self.values[i], self.values[j], self.values[k]);
        if x + y <= z {
            return None;
        }
        let (a, b, c) = (self.names[i], self.names[j], self.names[k]);
        let question = format!("How much higher are {a} and {b} together than {c}?");
        let goal = format!("compare {a} and {b} with {c}");
        let mut asked = self.asked("two_against_one", 3, question, number(x + y - z), &goal);
        asked.observations = vec![self.says(i), self.says(j), self.says(k)];
        asked.reasoning = vec![format!("{x} + {y} = {}", x + y), format!("{} - {z} = {}", x + y, x + y - z)];
        Some(asked)
    }

    fn ask_sum_higher(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let [i, j, k] = self.entries(3, draws)[..] else { return None };
        let (x, y, z) = (self.values[i], self.values[j], self.values[k]);
        // Only where adding matters: the single entry is higher than either of the two.
        if (x + y > z) != yes || x.max(y) >= z {
            return None;
        }
        let (a, b, c) = (self.names[i], self.names[j], self.names[k]);
        let question = format!("Are {a} and {b} together more than {c}?");
        let goal = format!("compare {a} and {b} with {c}");
        let mut asked = self.asked("sum_higher", 3, question, Answer::YesNo(yes), &goal);
        asked.observations = vec![self.says(i), self.says(j), self.says(k)];
        asked.reasoning = vec![format!("{x} + {y} = {}", x + y), compared(x + y, z, "more", yes)];
        Some(asked)
    }

    fn ask_average(&self, draws: &mut Draws) -> Option<Asked> {
        let [i, j] = self.entries(2, draws)[..] else { return None };
        let (a, b, sum) = (self.names[i], self.names[j], self.values[i] + self.values[j]);
        if sum % 2 != 0 {
            return None;
        }
        let question = format!("What is the average of {a} and {b}?");
        let goal = format!("find the average of {a} and {b}");
        let mut asked = self.asked("average", 3, question, number(sum / 2), &goal);
        asked.observations = vec![self.says(i), self.says(j)];
        asked.reasoning =
            vec![format!("{} + {} = {sum}", self.values[i], self.values[j]), format!("half of {sum} is {}", sum / 2)];
        Some(asked)
    }

    fn ask_second(&self, draws: &mut Draws) -> Asked {
        let order = self.ranking();
        let high = draws.percent(50);
        let (word, first, second) = if high {
            ("highest", order[0], order[1])
        } else {
            ("lowest", order[order.len() - 1], order[order.len() - 2])
        };
        let question = format!("Which entry has the second {word} value?");
        let answer = Answer::Text(self.names[second].to_string());
        let mut asked = self.asked("second", 3, question, answer, &format!("find the second {word} entry"));
        asked.observations = vec![self.says(first), self.says(second)];
        asked.reasoning =
            vec![format!("the {word} is {}", self.names[first]), format!("then comes {}", self.names[second])];
        asked
    }

    fn ask_sum_above(&self, draws: &mut Draws) -> Option<Asked> {
        let above = draws.percent(50);
        let word = if above { "above" } else { "below" };
        let (limit, found) = self.threshold(above, draws)?;
        if !(2..=3).contains(&found.len()) {
            return None;
        }
        let sum = found.iter().map(|&i| self.values[i]).sum();
        let question = format!("What is the sum of the values {word} {limit}?");
        let mut asked = self.asked("sum_above", 3, question, number(sum), &format!("add the values {word} {limit}"));
        asked.observations = found.iter().map(|&i| self.says(i)).collect();
        asked.reasoning = self.running_sum(&found);
        Some(asked)
    }

    fn ask_falls(&self) -> Option<Asked> {
        if self.kind != ChartKind::Line {
            return None;
        }
        let falls: Vec<usize> = (1..self.len()).filter(|&i| self.values[i] < self.values[i - 1]).collect();
        let count = falls.len() as i64;
        let question = "How many times does the line go down?".to_string();
        let mut asked = self.asked("falls", 3, question, number(count), "count how often the line goes down");
        asked.observations = if falls.is_empty() {
            vec!["no fall".into()]
        } else {
            falls.iter().map(|&i| format!("a fall to {}", self.values[i])).collect()
        };
        asked.reasoning = vec![format!("the count is {count}")];
        Some(asked)
    }

    fn lesson_describe(&self, draws: &mut Draws) -> Lesson {
        let question = worded(
            draws,
            &[
                "Describe the chart. How many entries are there?".into(),
                "Read all entries of the chart and count them.".into(),
            ],
        );
        let asked = self.asked("describe", 1, question, number(self.len() as i64), "read the chart");
        Lesson { asked, rationale: Some(Chart::facts(self)) }
    }

    fn lesson_names(&self) -> Asked {
        let answer = Answer::Text(self.names.join(", "));
        self.asked("names", 1, "Which entries are there?".into(), answer, "name the entries")
    }

    fn lesson_kind_or_count(&self, draws: &mut Draws) -> Asked {
        if draws.percent(40) {
            let answer = Answer::Text(self.kind.word().to_string());
            let mut asked =
                self.asked("kind", 1, "What kind of chart is this?".into(), answer, "name the kind of chart");
            asked.candidates = ["bar", "line", "pie", "table"].map(String::from).to_vec();
            asked
        } else {
            let count = number(self.len() as i64);
            self.asked("entries", 1, "How many entries are there?".into(), count, "count the entries")
        }
    }
}
