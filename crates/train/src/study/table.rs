//! The table of a study: means over seeds with intervals over questions, paired differences to the first cell, and what
//! became of the claims. Reads the folders of runs and nothing else. Cost: a bootstrap per number.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::{Source, StudyError, StudySpec, run_folder};
use crate::checkpoint::durable::read_file;
use crate::eval::records::Prediction;
use crate::eval::statistics::{Estimate, bootstrap, paired_difference};
use crate::report::chart::escape;
use crate::report::files::RunFiles;
use crate::report::page::duration;

/// Numbers of one cell on one suite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Share of right answers over all seeds, with a 95 % interval over questions.
    pub accuracy: Estimate,
    /// Share per seed, in the order of the seeds: how much chance there is beside the choice of questions.
    pub seeds: Vec<f64>,
    /// Difference to the first cell on the same questions; absent for that cell and where questions differ.
    pub difference: Option<Estimate>,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The cell.
    pub name: String,
    /// What it is called.
    pub label: String,
    /// By suite.
    pub scores: BTreeMap<String, Score>,
    /// Steps of a run.
    pub steps: f64,
    /// Million tokens through the model, a run's mean.
    pub million_tokens: f64,
    /// Seconds of a run's steps, the mean.
    pub secs: f64,
    /// Where the numbers come from.
    pub sources: Vec<Source>,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The claim.
    pub text: String,
    /// `held`, `reversed` or `undecided`.
    pub verdict: &'static str,
    /// Difference of the two cells on the claim's suite.
    pub difference: Option<Estimate>,
}

/// A study in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// Name of the study.
    pub name: String,
    /// Its title.
    pub title: String,
    /// Its text.
    pub note: String,
    /// Its seeds.
    pub seeds: Vec<u64>,
    /// Suites, in order.
    pub suites: Vec<String>,
    /// Cells, in order.
    pub lines: Vec<Line>,
    /// Claims, in order.
    pub verdicts: Vec<Verdict>,
}

/// Whether each question was answered right, with its id; per seed.
type Answers = Vec<Vec<(String, f64)>>;

impl Table {
    /// Reads all runs of a study.
    pub fn read(spec: &StudySpec, out: &Path) -> Result<Self, StudyError> {
        let mut lines = Vec::new();
        let mut answers: BTreeMap<(String, String), Answers> = BTreeMap::new();
        let mut suites: Vec<String> = Vec::new();
        for cell in &spec.cell {
            let run_of = cell.of.as_ref().unwrap_or(&cell.name);
            let at = cell.at.clone().unwrap_or_else(|| "after".to_string());
            let (mut steps, mut tokens, mut secs) = (0.0, 0.0, 0.0);
            let mut sources = Vec::new();
            for seed in &spec.seeds {
                let folder = run_folder(out, run_of, *seed);
                let problem = |problem: String| StudyError::Result { path: folder.clone(), problem };
                let files = RunFiles::read(&folder).map_err(|error| problem(error.to_string()))?;
                let evaluation = files.scores.evaluations.iter().find(|evaluation| evaluation.name == at);
                let evaluation = evaluation.ok_or_else(|| problem(format!("it has no evaluation {at:?}")))?;
                for suite in evaluation.suites.keys() {
                    if !suites.contains(suite) {
                        suites.push(suite.clone());
                    }
                    let path = folder.join("predictions").join(format!("{at}-{suite}.jsonl"));
                    let read = predictions(&path)?;
                    answers.entry((cell.name.clone(), suite.clone())).or_default().push(read);
                }
                // A model that is only looked at before its run has cost nothing.
                if at != "before" {
                    steps += files.steps.len() as f64;
                    let (speed, time) = files.speed().unwrap_or_default();
                    tokens += speed * time / 1e6;
                    secs += time;
                }
                let run = folder.strip_prefix(out).unwrap_or(&folder).display().to_string();
                sources.push(Source { run, seed: *seed, at: at.clone() });
            }
            let count = spec.seeds.len() as f64;
            lines.push(Line {
                name: cell.name.clone(),
                label: cell.label.clone().unwrap_or_else(|| cell.name.clone()),
                scores: BTreeMap::new(),
                steps: steps / count,
                million_tokens: tokens / count,
                secs: secs / count,
                sources,
            });
        }
        let first = lines[0].name.clone();
        for line in &mut lines {
            for suite in &suites {
                let Some(own) = answers.get(&(line.name.clone(), suite.clone())) else { continue };
                let base = answers.get(&(first.clone(), suite.clone())).filter(|_| line.name != first);
                line.scores.insert(suite.clone(), score(own, base));
            }
        }
        let verdicts = spec
            .claim
            .iter()
            .map(|claim| {
                let of = |cell: &String| answers.get(&(cell.clone(), claim.suite.clone()));
                let difference =
                    of(&claim.than).zip(of(&claim.better)).and_then(|(than, better)| between(than, better));
                let by_seed =
                    of(&claim.than).zip(of(&claim.better)).map(|(than, better)| seed_differences(than, better));
                let verdict = verdict(difference.as_ref(), &by_seed.unwrap_or_default());
                Verdict { text: claim.text.clone(), verdict, difference }
            })
            .collect();
        suites.sort();
        let (name, title, note) = (spec.name.clone(), spec.title.clone(), spec.note.clone());
        Ok(Self { name, title, note, seeds: spec.seeds.clone(), suites, lines, verdicts })
    }

    /// The table as Markdown. `file` is the study's file, for the command that makes it again.
    pub fn markdown(&self, file: &str) -> String {
        let mut text = format!("# {}\n\n", self.title);
        if !self.note.trim().is_empty() {
            text += &format!("{}\n\n", self.note.trim());
        }
        let mut head = "| |".to_string();
        for suite in &self.suites {
            head += &format!(" {suite} | difference |");
        }
        head += " seeds | steps | M tokens | time |";
        text += &format!("{head}\n|{}\n", "---|".repeat(head.matches('|').count() - 1));
        for line in &self.lines {
            write!(text, "| {} |", line.label).expect("text");
            for suite in &self.suites {
                match line.scores.get(suite) {
                    Some(score) => {
                        write!(text, " {} | {} |", share(&score.accuracy), points(score.difference.as_ref()))
                    }
                    None => write!(text, " | |"),
                }
                .expect("text");
            }
            writeln!(text, " {} | {} |", self.per_seed(line), cost(line).join(" | ")).expect("text");
        }
        text += &format!(
            "\nShares of right answers in per cent, mean of the seeds {}, with 95 % intervals (bootstrap over questions); \
             differences to \"{}\" in points, on the same questions (paired bootstrap). `seeds` lists each seed's {}.\n",
            self.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
            self.lines.first().map_or("", |line| &line.label),
            self.suites.first().map_or("score", String::as_str),
        );
        if !self.verdicts.is_empty() {
            text += "\n## Claims\n\n";
            for verdict in &self.verdicts {
                let by = points(verdict.difference.as_ref());
                writeln!(text, "- **{}** ({by}): {}", verdict.verdict, verdict.text).expect("text");
            }
            text += "\nheld: the interval of the difference lies above 0, and so does every seed's own difference; reversed: \
                     both below 0; undecided: anything else.\n";
        }
        text += "\n## Runs\n\n";
        for line in &self.lines {
            let runs: Vec<String> =
                line.sources.iter().map(|source| format!("`{}` ({})", source.run, source.at)).collect();
            writeln!(text, "- {}: {}", line.label, runs.join(", ")).expect("text");
        }
        text + &format!("\n`foveate study {file}` makes this table again.\n")
    }

    /// The table as a page that needs nothing else.
    pub fn html(&self, file: &str) -> String {
        let mut rows = String::new();
        for line in &self.lines {
            write!(rows, "<tr><td>{}</td>", escape(&line.label)).expect("text");
            for suite in &self.suites {
                let (cell, difference) = match line.scores.get(suite) {
                    Some(score) => (bar(&score.accuracy), points(score.difference.as_ref())),
                    None => (String::new(), String::new()),
                };
                write!(rows, "<td>{cell}</td><td>{}</td>", escape(&difference)).expect("text");
            }
            let links: Vec<String> = line
                .sources
                .iter()
                .map(|source| format!("<a href=\"{}/report.html\">{}</a>", escape(&source.run), source.seed))
                .collect();
            let cost: String = cost(line).iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
            writeln!(rows, "<td>{} <small>{}</small></td>{cost}</tr>", self.per_seed(line), links.join(" "))
                .expect("text");
        }
        let heads: String =
            self.suites.iter().map(|suite| format!("<th>{}</th><th>difference</th>", escape(suite))).collect();
        let claims: String = self
            .verdicts
            .iter()
            .map(|v| {
                let by = points(v.difference.as_ref());
                format!("<li><b>{}</b> ({}): {}</li>", v.verdict, escape(&by), escape(&v.text))
            })
            .collect();
        let claims = if claims.is_empty() { claims } else { format!("<h2>Claims</h2><ul>{claims}</ul>") };
        format!(
            "<!doctype html><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1><p>{note}</p>\
             <table><tr><th></th>{heads}<th>seeds</th><th>steps</th><th>M tokens</th><th>time</th></tr>{rows}</table>\
             <p>Mean of the seeds with 95 % intervals over questions; differences to \u{201c}{first}\u{201d} on the same \
             questions.</p>{claims}<p><code>foveate study {file}</code></p>",
            title = escape(&self.title),
            note = escape(self.note.trim()),
            first = escape(self.lines.first().map_or("", |line| &line.label)),
            file = escape(file),
        )
    }

    /// Each seed's share on the first suite.
    fn per_seed(&self, line: &Line) -> String {
        let first = self.suites.first().and_then(|suite| line.scores.get(suite));
        first.map_or(String::new(), |score| {
            score.seeds.iter().map(|share| format!("{:.1}", 100.0 * share)).collect::<Vec<_>>().join(" ")
        })
    }
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse}td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}\
.bar{position:relative;display:block;width:8rem;height:.5rem;background:#eee}.bar i{position:absolute;height:100%;\
background:#9bc}.bar u{position:absolute;width:2px;height:100%;background:#036}small{color:#666}";

fn predictions(path: &Path) -> Result<Vec<(String, f64)>, StudyError> {
    let problem = |problem: String| StudyError::Result { path: path.to_path_buf(), problem };
    let text = String::from_utf8_lossy(&read_file(path)?).into_owned();
    text.lines()
        .map(|line| {
            let read: Prediction = serde_json::from_str(line).map_err(|error| problem(error.to_string()))?;
            Ok((read.id, f64::from(u8::from(read.correct))))
        })
        .collect()
}

/// Mean over seeds per question, if all seeds were asked the same ones.
fn by_question(answers: &Answers) -> Option<(Vec<&str>, Vec<f64>)> {
    let first = answers.first()?;
    let ids: Vec<&str> = first.iter().map(|(id, _)| id.as_str()).collect();
    let mut means = vec![0.0; ids.len()];
    for seed in answers {
        if seed.len() != ids.len() || seed.iter().zip(&ids).any(|((id, _), own)| id != own) {
            return None;
        }
        means.iter_mut().zip(seed).for_each(|(mean, (_, right))| *mean += right / answers.len() as f64);
    }
    Some((ids, means))
}

fn score(own: &Answers, base: Option<&Answers>) -> Score {
    let accuracy = match by_question(own) {
        Some((_, means)) => bootstrap(&means, None, 0),
        // Other questions with each seed: every answer is its own piece of evidence.
        None => bootstrap(&own.iter().flatten().map(|(_, right)| *right).collect::<Vec<_>>(), None, 0),
    };
    let seeds = own.iter().map(|seed| seed.iter().map(|(_, right)| right).sum::<f64>() / seed.len().max(1) as f64);
    Score { accuracy, seeds: seeds.collect(), difference: base.and_then(|base| between(base, own)) }
}

/// `b - a` on the same questions, or on all answers where only the order of seeds is shared.
fn between(a: &Answers, b: &Answers) -> Option<Estimate> {
    if let (Some((ids_a, a)), Some((ids_b, b))) = (by_question(a), by_question(b)) {
        return (ids_a == ids_b).then(|| paired_difference(&a, &b, None, 0)).flatten();
    }
    let flat = |answers: &Answers| answers.iter().flatten().cloned().unzip::<String, f64, Vec<_>, Vec<_>>();
    let ((ids_a, a), (ids_b, b)) = (flat(a), flat(b));
    (ids_a == ids_b).then(|| paired_difference(&a, &b, None, 0)).flatten()
}

/// `b - a` per seed.
fn seed_differences(a: &Answers, b: &Answers) -> Vec<f64> {
    let mean = |seed: &[(String, f64)]| seed.iter().map(|(_, right)| right).sum::<f64>() / seed.len().max(1) as f64;
    a.iter().zip(b).map(|(a, b)| mean(b) - mean(a)).collect()
}

/// The interval holds the chance in the choice of questions, the seeds show the chance in training: a claim has to
/// stand against both.
fn verdict(difference: Option<&Estimate>, by_seed: &[f64]) -> &'static str {
    match difference {
        Some(difference) if difference.low > 0.0 && by_seed.iter().all(|by| *by > 0.0) => "held",
        Some(difference) if difference.high < 0.0 && by_seed.iter().all(|by| *by < 0.0) => "reversed",
        _ => "undecided",
    }
}

fn share(estimate: &Estimate) -> String {
    format!("{:.1} [{:.1}, {:.1}]", 100.0 * estimate.mean, 100.0 * estimate.low, 100.0 * estimate.high)
}

fn points(estimate: Option<&Estimate>) -> String {
    estimate
        .map_or(String::new(), |e| format!("{:+.1} [{:+.1}, {:+.1}]", 100.0 * e.mean, 100.0 * e.low, 100.0 * e.high))
}

fn bar(estimate: &Estimate) -> String {
    format!(
        "{}<span class=\"bar\"><i style=\"left:{:.1}%;width:{:.1}%\"></i><u style=\"left:{:.1}%\"></u></span>",
        escape(&share(estimate)),
        100.0 * estimate.low,
        100.0 * (estimate.high - estimate.low),
        100.0 * estimate.mean
    )
}

fn cost(line: &Line) -> [String; 3] {
    [format!("{:.0}", line.steps), format!("{:.2}", line.million_tokens), duration(line.secs)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(right: &[u8]) -> Vec<(String, f64)> {
        right.iter().enumerate().map(|(index, right)| (format!("q{index}"), f64::from(*right))).collect()
    }

    #[test]
    fn seeds_are_averaged_per_question_and_cells_are_paired() {
        let base: Answers = vec![seed(&[0; 40]), seed(&[0; 40])];
        let mut half = [0u8; 40];
        half.iter_mut().step_by(2).for_each(|right| *right = 1);
        let better: Answers = vec![seed(&half), seed(&[1; 40])];
        let score = score(&better, Some(&base));
        assert!((score.accuracy.mean - 0.75).abs() < 1e-9 && score.accuracy.num == 40);
        assert_eq!(score.seeds, [0.5, 1.0]);
        let difference = score.difference.expect("the same questions");
        assert!((difference.mean - 0.75).abs() < 1e-9 && difference.low > 0.6, "{difference:?}");
        let other: Answers = vec![seed(&[1; 30]), seed(&[1; 40])];
        assert!(between(&base, &other).is_none(), "other questions are not compared");
        assert!(between(&other, &other).is_some_and(|difference| difference.mean == 0.0));
    }

    #[test]
    fn a_claim_has_to_stand_against_questions_and_seeds() {
        let by = |mean: f64| Estimate { mean, low: mean - 0.05, high: mean + 0.05, num: 100 };
        assert_eq!(verdict(Some(&by(0.1)), &[0.1, 0.2, 0.05]), "held");
        assert_eq!(verdict(Some(&by(0.1)), &[0.4, -0.1, 0.05]), "undecided");
        assert_eq!(verdict(Some(&by(0.01)), &[0.01, 0.01, 0.01]), "undecided");
        assert_eq!(verdict(Some(&by(-0.1)), &[-0.1, -0.2, -0.05]), "reversed");
        assert_eq!(verdict(None, &[]), "undecided");
        let (none, half) = (vec![seed(&[0; 4]), seed(&[1; 4])], vec![seed(&[1, 0, 1, 0]), seed(&[1; 4])]);
        assert_eq!(seed_differences(&none, &half), [0.5, 0.0]);
    }

    #[test]
    fn the_table_names_its_sources() {
        let estimate = Estimate { mean: 0.5, low: 0.4, high: 0.6, num: 100 };
        let line = |name: &str, difference| Line {
            name: name.into(),
            label: format!("<{name}>"),
            scores: BTreeMap::from([("id".into(), Score { accuracy: estimate, seeds: vec![0.4, 0.6], difference })]),
            steps: 10.0,
            million_tokens: 1.25,
            secs: 90.0,
            sources: vec![Source { run: format!("runs/{name}/seed-1"), seed: 1, at: "after".into() }],
        };
        let table = Table {
            name: "s".into(),
            title: "A study".into(),
            note: "Why.".into(),
            seeds: vec![1, 2],
            suites: vec!["id".into()],
            lines: vec![line("base", None), line("new", Some(Estimate { mean: 0.1, low: 0.02, high: 0.2, num: 100 }))],
            verdicts: vec![Verdict { text: "new wins".into(), verdict: "held", difference: None }],
        };
        let text = table.markdown("s.toml");
        assert!(text.contains("| <new> | 50.0 [40.0, 60.0] | +10.0 [+2.0, +20.0] | 40.0 60.0 | 10 | 1.25 |"), "{text}");
        assert!(text.contains("`runs/new/seed-1` (after)") && text.contains("**held**"), "{text}");
        let widths: Vec<usize> =
            text.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count()).collect();
        assert!(widths.len() == 4 && widths.iter().all(|width| *width == widths[0]), "{text}");
        let page = table.html("s.toml");
        assert!(page.contains("&lt;new&gt;") && page.contains("href=\"runs/new/seed-1/report.html\""), "{page}");
    }
}
