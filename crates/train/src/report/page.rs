//! `report.html`: one file that shows what a run did, readable with the network off.
//! Reads the run's folder and nothing else; a run that is still going or was killed gives a page too.
//! Cost: the gallery's pictures are the bulk of the page, a few kilobytes each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::chart::{Line, Mark, escape, lines, number, shares};
use super::files::{PageError, RunFiles};
use super::records::{AnswerRecord, SampleRecord};
use crate::checkpoint::durable::write_file;
use crate::eval::records::{Scores, SuiteScore};
use crate::eval::statistics::Estimate;

/// Groups that the gallery shows.
const GALLERY: usize = 24;

/// Writes `report.html` into a run's folder and gives its path.
pub fn write(folder: &Path) -> Result<PathBuf, PageError> {
    let files = RunFiles::read(folder)?;
    let path = folder.join("report.html");
    write_file(&path, render(&files, folder).as_bytes())?;
    Ok(path)
}

/// The page as text.
fn render(files: &RunFiles, folder: &Path) -> String {
    let recipe: toml::Table = toml::from_str(&files.recipe).unwrap_or_default();
    let word = |key: &str| recipe.get(key).map(|value| value.to_string().trim_matches('"').to_string());
    let name = word("name").unwrap_or_else(|| "run".to_string());
    let model = match recipe.get("model") {
        Some(toml::Value::String(model)) => model.clone(),
        _ => "a new model".to_string(),
    };
    let mut stages: Vec<String> = files.steps.iter().map(|step| step.stage.clone()).collect();
    stages.dedup();
    let sub = format!(
        "<code>{}</code> from <code>{}</code> · seed {} · {} steps",
        escape(&stages.join(" → ")),
        escape(&model),
        escape(&word("seed").unwrap_or_default()),
        files.steps.last().map_or(0, |step| step.step)
    );
    let mut body = String::new();
    let mut section = |title: &str, content: String| {
        if !content.is_empty() {
            write!(body, "<h2>{title}</h2>{content}").expect("text");
        }
    };
    section("Before and after", table(&files.scores));
    section("Curves", charts(files));
    section("What was asked and answered", gallery(&files.samples, folder));
    section("Recipe, as resolved", format!("<pre>{}</pre>", escape(&files.recipe)));
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{0} · foveate</title><style>{1}</style></head>\
         <body><main><h1>{0}</h1><p class=\"sub\">{sub}</p>{2}{3}{body}</main></body></html>\n",
        escape(&name),
        include_str!("page.css"),
        cards(files),
        notes(files),
    )
}

/// The headline numbers.
fn cards(files: &RunFiles) -> String {
    let mut out = String::new();
    let mut card = |big: String, small: String, change: Option<f64>| {
        let change = change.map_or(String::new(), |points| {
            let class = if points < 0.0 { " class=\"down\"" } else { "" };
            format!(" <em{class}>{points:+.1} points</em>")
        });
        write!(out, "<div class=\"card\"><b>{big}</b><span>{small}</span>{change}</div>").expect("text");
    };
    if let Some((before, after)) = files.before_and_after() {
        for (suite, score) in &after.suites {
            let change = before.suites.get(suite).map(|b| 100.0 * (score.accuracy - b.accuracy));
            card(percent(score.accuracy), format!("accuracy, {}", escape(suite)), change);
        }
    }
    if let Some((first, last)) = files.first_and_last_tenth("group/mixed_fraction") {
        let big = format!("{} → {}", percent(first), percent(last));
        card(big, "groups with something to learn".to_string(), None);
    }
    if let Some((tokens, secs)) = files.speed() {
        card(number(tokens.round()), "tokens per second".to_string(), None);
        card(duration(secs), "in training steps".to_string(), None);
    }
    if out.is_empty() { out } else { format!("<div class=\"cards\">{out}</div>") }
}

/// KL per token between sampler and trainer that one engine never reaches.
const FAR_APART: f64 = 0.015;

/// What the numbers say in words, where they say something that is easily overlooked.
pub fn remarks(files: &RunFiles) -> Vec<String> {
    let mut remarks = Vec::new();
    let last = |metric: &str| files.first_and_last_tenth(metric).map(|tenths| tenths.1);
    // Not by right and wrong alone: a failed group teaches where it is memorised, or where another reward differs.
    if let (Some(useful), Some(dead), Some(all)) =
        (last("group/useful_fraction"), last("group/dead_fraction"), last("group/all_correct_fraction"))
        && useful < 0.4
    {
        remarks.push(format!(
            "At the end {} of the groups teach nothing ({} have no right answer, {} only right ones).",
            percent(1.0 - useful),
            percent(dead),
            percent(all)
        ));
    }
    if last("rollout/truncated_fraction").is_some_and(|share| share > 0.3) {
        remarks.push("Many answers run into the length limit: raise max_new_tokens, or reward shorter answers.".into());
    }
    for kind in ["format_flag", "format_tags", "format_box"] {
        let format = files.line(&format!("reward/{kind}/mean"));
        if let Some((step, _)) = format.iter().find(|point| point.1 > 0.98).filter(|_| format.len() > 20) {
            remarks.push(format!("The reward {kind} is saturated from step {step} on."));
        }
    }
    if let Some(unknown) = last("reward/unknown_fraction").filter(|share| *share > 0.0) {
        remarks.push(format!(
            "At the end {} of the answers have an unknown reward and teach nothing: see helper/ in metrics.jsonl.",
            percent(unknown)
        ));
    }
    let apart = files.line("rollout/logprob_gap_kl").iter().map(|point| point.1).fold(0.0, f64::max);
    if apart > FAR_APART {
        remarks.push(format!(
            "Sampler and trainer were up to {apart:.3} apart (KL per token): answers were learned as if others had been drawn."
        ));
    } else if files.line("rollout/logprob_gap_max").iter().any(|point| point.1 > 0.0) {
        remarks
            .push("The sampler and the trainer disagreed about log-probabilities; on a CPU they never should.".into());
    }
    remarks
}

fn notes(files: &RunFiles) -> String {
    let items: String = remarks(files).iter().map(|remark| format!("<li>{}</li>", escape(remark))).collect();
    if items.is_empty() { items } else { format!("<ul class=\"notes\">{items}</ul>") }
}

/// Scores of the first and the last evaluation, by suite and level.
fn table(scores: &Scores) -> String {
    let (Some(before), Some(after)) = (scores.evaluations.first(), scores.evaluations.last()) else {
        return String::new();
    };
    let both = scores.evaluations.len() > 1;
    let mut rows = String::new();
    for (suite, score) in &after.suites {
        let old = before.suites.get(suite);
        let cell = |score: &SuiteScore| {
            format!(
                "<td>{} <small>{} – {}</small></td>",
                percent(score.accuracy),
                percent(score.interval[0]),
                percent(score.interval[1])
            )
        };
        let mark = |score: &SuiteScore, class: &str| {
            format!(
                "<i{class} style=\"left:{:.1}%;width:{:.1}%\"></i><u{class} style=\"left:{:.1}%\"></u>",
                100.0 * score.interval[0],
                100.0 * (score.interval[1] - score.interval[0]),
                100.0 * score.accuracy
            )
        };
        let old_mark = old.filter(|_| both).map_or(String::new(), |old| mark(old, " class=\"old\""));
        let bar = format!("<span class=\"bar\">{old_mark}{}</span>", mark(score, ""));
        write!(rows, "<tr><td><b>{}</b>{bar}</td><td>{}</td>", escape(suite), score.num_rows).expect("text");
        if both {
            rows.push_str(&old.map_or("<td></td>".to_string(), cell));
        }
        rows.push_str(&cell(score));
        if both {
            rows.push_str(&change(old.map(|old| score.accuracy - old.accuracy)));
        }
        rows.push_str("</tr>");
        for (level, now) in score.levels.iter().filter(|_| score.levels.len() > 1) {
            write!(rows, "<tr><td class=\"level\">level {}</td><td>{}</td>", escape(level), now.num_rows)
                .expect("text");
            let old = old.and_then(|old| old.levels.get(level));
            if both {
                write!(rows, "<td>{}</td>", old.map_or(String::new(), |old| percent(old.accuracy))).expect("text");
            }
            write!(rows, "<td>{}</td>", percent(now.accuracy)).expect("text");
            if both {
                rows.push_str(&change(old.map(|old| now.accuracy - old.accuracy)));
            }
            rows.push_str("</tr>");
        }
    }
    let mut below = String::new();
    for (suite, score) in &after.suites {
        if let Some(exact) = &score.exact_programs {
            let was = before.suites.get(suite).and_then(|old| old.exact_programs.as_ref()).filter(|_| both);
            let was = was.map_or(String::new(), |was| format!("{} before, ", percent(was.mean)));
            write!(
                below,
                "<p class=\"sub\">{}: exactly the right program {was}{} <small>{} – {}</small>.</p>",
                escape(suite),
                percent(exact.mean),
                percent(exact.low),
                percent(exact.high)
            )
            .expect("text");
        }
        if let Some(sampled) = &score.sampled {
            let shares: Vec<String> =
                sampled.pass_at.iter().map(|(k, of)| format!("pass@{k} {}", percent(of.mean))).collect();
            write!(
                below,
                "<p class=\"sub\">{}: {} of {} answers drawn at temperature {}.</p>",
                escape(suite),
                shares.join(", "),
                sampled.answers,
                sampled.temperature
            )
            .expect("text");
        }
    }
    let were: BTreeMap<String, Estimate> = before.gaps().into_iter().filter(|_| both).collect();
    for (name, gap) in after.gaps() {
        let points = |value: f64| format!("{:+.1}", 100.0 * value);
        let was = were.get(&name).map_or(String::new(), |was| format!("{} points before, ", points(was.mean)));
        write!(
            below,
            "<p class=\"sub\">{}: {was}{} points <small>{} – {}</small>.</p>",
            escape(&name),
            points(gap.mean),
            points(gap.low),
            points(gap.high)
        )
        .expect("text");
    }
    if let Some(mean) = after.macro_average() {
        write!(below, "<p class=\"sub\">Mean over tasks, each the mean of its suites: {}.</p>", percent(mean))
            .expect("text");
    }
    let head = if both {
        format!("<th>{}</th><th>{}</th><th>change</th>", escape(&before.name), escape(&after.name))
    } else {
        format!("<th>{}</th>", escape(&after.name))
    };
    format!(
        "<table><tr><th>suite</th><th>questions</th>{head}</tr>{rows}</table>\
         <p class=\"sub\">Greedy decoding; intervals are 95 % (Wilson).</p>{below}"
    )
}

fn change(points: Option<f64>) -> String {
    points.map_or("<td></td>".to_string(), |share| {
        let class = match share {
            share if share > 5e-4 => "up",
            share if share < -5e-4 => "down",
            _ => "",
        };
        format!("<td class=\"{class}\">{:+.1}</td>", 100.0 * share)
    })
}

/// Charts of whatever the run measured.
fn charts(files: &RunFiles) -> String {
    let mut marks = Vec::new();
    let mut current = files.steps.first().map(|step| step.stage.as_str());
    for step in &files.steps {
        if current != Some(step.stage.as_str()) {
            marks.push(Mark { step: step.step as f64, name: step.stage.clone() });
            current = Some(&step.stage);
        }
    }
    let groups = ["group/dead_fraction", "group/mixed_fraction", "group/all_correct_fraction"];
    let columns: Vec<(f64, Vec<f64>)> = files
        .steps
        .iter()
        .filter_map(|step| {
            let values = groups.iter().map(|name| step.metrics.get(*name).copied()).collect::<Option<Vec<f64>>>()?;
            Some((step.step as f64, values))
        })
        .collect();
    let mut out = Vec::new();
    out.extend(shares(
        "Groups: none right, some right, all right",
        &["none right (dead)", "some right (mixed)", "all right"],
        &columns,
        &marks,
    ));
    let line = |metric: &str, name: &str| Line { name: name.to_string(), points: files.line(metric) };
    let mut parts: BTreeMap<String, Line> = BTreeMap::new();
    for step in &files.steps {
        for metric in step.metrics.keys() {
            if let Some(kind) = metric.strip_prefix("reward/").and_then(|rest| rest.strip_suffix("/mean")) {
                parts.entry(kind.to_string()).or_insert_with(|| line(metric, kind));
            }
        }
    }
    let rewards: Vec<Line> = std::iter::once(line("reward/mean", "total")).chain(parts.into_values()).collect();
    let plots: [(&str, Vec<Line>); 9] = [
        ("Reward", rewards),
        ("Loss (mean negative log-probability of targets)", vec![line("update/loss_sft", "loss")]),
        (
            "What the selector did",
            vec![
                line("mode/explore_fraction", "explore"),
                line("mode/memorise_fraction", "memorise"),
                line("mode/skip_fraction", "skip"),
            ],
        ),
        ("Entropy (nats per token)", vec![line("update/entropy", "entropy")]),
        (
            "Answer length (tokens)",
            vec![line("rollout/length_mean", "mean"), line("rollout/length_p95", "95th percentile")],
        ),
        ("Gradient norm", vec![line("optim/gradient_norm", "norm")]),
        ("Learning rate", vec![line("optim/lr", "learning rate")]),
        ("KL to the reference (k3)", vec![line("update/kl_k3", "k3")]),
        ("Tokens per second", vec![line("time/tokens_per_sec", "tokens per second")]),
    ];
    out.extend(plots.iter().filter_map(|(title, series)| lines(title, series, &marks)));
    if out.is_empty() { String::new() } else { format!("<div class=\"charts\">{}</div>", out.concat()) }
}

/// Groups spread over the run, with pictures, answers and what became of them.
fn gallery(samples: &[SampleRecord], folder: &Path) -> String {
    let count = samples.len().min(GALLERY);
    let mut out = String::new();
    for place in 0..count {
        let index = if count == 1 { 0 } else { place * (samples.len() - 1) / (count - 1) };
        out.push_str(&group(&samples[index], folder));
    }
    out
}

fn group(sample: &SampleRecord, folder: &Path) -> String {
    let mut pictures = String::new();
    for image in &sample.images {
        match fs::read(folder.join(image)) {
            Ok(bytes) => {
                write!(pictures, "<img alt=\"\" src=\"data:image/png;base64,{}\">", base64(&bytes)).expect("text")
            }
            Err(_) => write!(pictures, "<p class=\"meta\">{} is missing</p>", escape(image)).expect("text"),
        }
    }
    let right = sample.answers.iter().filter(|answer| answer.correct).count();
    let mut answers: String = sample.answers.iter().map(answer).collect();
    if let Some(target) = &sample.target {
        write!(
            answers,
            "<div class=\"answer target\"><div>{}</div><footer><span>memorised target</span></footer></div>",
            escape(target)
        )
        .expect("text");
    }
    format!(
        "<section class=\"group\"><div>{pictures}<span class=\"mode {mode}\">{mode}</span>\
         <p class=\"meta\">step {} · {}<br>{} · level {}<br>{right} of {} right</p></div>\
         <div><p class=\"q\">{}</p><p>right answer: <b>{}</b></p><div class=\"answers\">{answers}</div></div></section>",
        sample.step,
        escape(&sample.stage),
        escape(&sample.id),
        sample.level,
        sample.answers.len(),
        escape(&sample.question),
        escape(&sample.gold),
        mode = escape(&sample.mode),
    )
}

fn answer(answer: &AnswerRecord) -> String {
    let class = if answer.correct { "answer right" } else { "answer" };
    let reward = answer.reward.map_or("reward unknown".to_string(), |reward| format!("reward {reward:.2}"));
    let parts: Vec<String> = answer
        .parts
        .iter()
        .map(|(kind, value)| format!("{kind} {}", value.map_or("?".to_string(), |value| format!("{value:.2}"))))
        .collect();
    format!(
        "<div class=\"{class}\" title=\"{}\"><div>{}</div><footer><span>{reward}</span><span>advantage {:+.2}</span>\
         <span>{} tokens{}</span></footer></div>",
        escape(&parts.join(" · ")),
        escape(answer.text.trim()),
        answer.advantage,
        answer.num_tokens,
        if answer.finish == "length" { ", cut" } else { "" },
    )
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Seconds in the words of a clock.
pub fn duration(secs: f64) -> String {
    let whole = secs.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{secs:.1} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// Bytes as a data address carries them.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= three.len() { letter as char } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::records::Evaluation;
    use crate::report::records::StepRecord;

    #[test]
    fn base64_matches_the_rfc() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn what_is_easily_overlooked_is_said_in_words() {
        let files = |metrics: &[(&str, f64)]| {
            let metrics: BTreeMap<String, f64> =
                metrics.iter().map(|(name, value)| (name.to_string(), *value)).collect();
            let step = |step| StepRecord { step, stage: "s".into(), metrics: metrics.clone() };
            remarks(&RunFiles { steps: (1..=30).map(step).collect(), ..RunFiles::default() })
        };
        for (metric, value, told) in [
            ("reward/format_tags/mean", 1.0, "format_tags is saturated from step 1"),
            ("reward/unknown_fraction", 0.1, "10.0 % of the answers have an unknown reward"),
            ("rollout/truncated_fraction", 0.5, "length limit"),
            ("rollout/logprob_gap_kl", 0.02, "0.020 apart"),
            ("rollout/logprob_gap_max", 1e-4, "disagreed"),
        ] {
            let found = files(&[(metric, value)]);
            assert!(found.len() == 1 && found[0].contains(told), "{found:?}");
        }
        let groups = |useful| {
            files(&[
                ("group/dead_fraction", 0.6),
                ("group/all_correct_fraction", 0.2),
                ("group/useful_fraction", useful),
            ])
        };
        assert!(groups(0.2)[0].contains("80.0 % of the groups teach nothing (60.0 %"), "{:?}", groups(0.2));
        assert!(groups(0.8).is_empty(), "failed groups are memorised");
        assert!(files(&[("reward/unknown_fraction", 0.0), ("rollout/logprob_gap_max", 0.0)]).is_empty());
    }

    #[test]
    fn the_loss_under_a_shift_stands_below_the_table() {
        let suite = |num_correct| SuiteScore { num_rows: 100, num_correct, ..SuiteScore::default() };
        let suites = |id, ood| BTreeMap::from([("id".to_string(), suite(id)), ("ood".to_string(), suite(ood))]);
        let evaluation = |name: &str, id, ood| Evaluation { name: name.into(), step: 0, suites: suites(id, ood) };
        let scores = Scores { evaluations: vec![evaluation("before", 20, 15), evaluation("after", 60, 30)] };
        let page = table(&scores);
        assert!(page.contains("id − ood: +5.0 points before, +30.0 points <small>+16"), "{page}");
    }

    #[test]
    fn model_output_cannot_break_the_page() {
        let folder = tempfile::tempdir().unwrap();
        let sample = SampleRecord {
            question: "<script>alert(1)</script>".into(),
            answers: vec![AnswerRecord { text: "</div><img onerror=x>\"'".into(), ..AnswerRecord::default() }],
            mode: "\"><b>".into(),
            ..SampleRecord::default()
        };
        let page = render(
            &RunFiles { recipe: "name = \"<b>\"".into(), samples: vec![sample], ..RunFiles::default() },
            folder.path(),
        );
        assert!(!page.contains("<script") && !page.contains("<img onerror") && !page.contains("\"><b>"));
    }

    #[test]
    fn a_killed_run_has_a_page_and_a_damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(write(folder.path()), Err(PageError::NoRun(_))));
        fs::write(folder.path().join("recipe.toml"), "name = \"x\"").unwrap();
        fs::write(folder.path().join("metrics.jsonl"), "{\"step\":1,\"stage\":\"s\",\"reward/mean\":0.5}\n{\"st")
            .unwrap();
        assert!(write(folder.path()).unwrap().is_file());
        fs::write(folder.path().join("metrics.jsonl"), "{\"step\":1}\n{}\n").unwrap();
        assert!(write(folder.path()).unwrap_err().to_string().contains("metrics.jsonl:1:"));
    }
}
