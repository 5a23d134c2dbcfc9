//! Charts as SVG text: lines over steps, stacked shares over steps.
//! Knows numbers and names; colours come from the page's style sheet (`c1`, `c2`, ... stroke and fill classes).
//! Cost: at most a few hundred points a line, whatever the run's length.

use std::fmt::Write;

/// Points that a line keeps; more would not be visible.
const MAX_POINTS: usize = 240;
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// (step, value), steps rising.
    pub points: Vec<(f64, f64)>,
}

/// A vertical mark: where a stage begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Step.
    pub step: f64,
    /// What begins there.
    pub name: String,
}

/// A chart of lines, each drawn faintly as measured and firmly as its running mean. Nothing if there are no points.
pub fn lines(title: &str, lines: &[Line], marks: &[Mark]) -> Option<String> {
    let finite: Vec<Line> = lines
        .iter()
        .map(|line| Line {
            name: line.name.clone(),
            points: line.points.iter().copied().filter(|(_, y)| y.is_finite()).collect(),
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    let all = || finite.iter().flat_map(|line| &line.points);
    let (first, last) = bounds(all().map(|point| point.0))?;
    let (mut low, mut high) = bounds(all().map(|point| point.1))?;
    // Shares and rewards read best from zero unless they stay far from it.
    if low > 0.0 && low < 0.6 * high {
        low = 0.0;
    }
    if high - low < 1e-9 * high.abs().max(1e-3) {
        let room = high.abs().max(1e-3) * 0.5;
        (low, high) = (low - room, high + room);
    }
    let ticks = nice_ticks(low, high, 4);
    let axis = Axis { first, last, low: ticks[0].min(low), high: ticks[ticks.len() - 1].max(high) };
    let mut body = axis.grid(&ticks, marks);
    for (index, line) in finite.iter().enumerate() {
        let class = index % 6 + 1;
        let thin = thinned(&line.points);
        if thin.len() > 12 {
            write!(body, r#"<path class="l c{class} faint" d="{}"/>"#, axis.path(&thin)).expect("text");
        }
        write!(body, r#"<path class="l c{class}" d="{}"/>"#, axis.path(&smoothed(&thin))).expect("text");
        if let [(x, y)] = thin[..] {
            write!(body, r#"<circle class="f c{class}" r="3" cx="{:.1}" cy="{:.1}"/>"#, axis.x(x), axis.y(y))
                .expect("text");
        }
    }
    let legend: Vec<&str> = finite.iter().map(|line| line.name.as_str()).collect();
    Some(figure(title, &legend, &body))
}

/// A chart of shares that sum to one, stacked from the bottom in the order of `names`.
pub fn shares(title: &str, names: &[&str], columns: &[(f64, Vec<f64>)], marks: &[Mark]) -> Option<String> {
    let (first, last) = bounds(columns.iter().map(|column| column.0))?;
    let axis = Axis { first, last, low: 0.0, high: 1.0 };
    let columns = bucket_means(columns, 60);
    let mut body = String::new();
    let mut floor = vec![0.0; columns.len()];
    for index in 0..names.len() {
        let top: Vec<f64> = columns.iter().zip(&floor).map(|((_, values), floor)| floor + values[index]).collect();
        let upper = columns.iter().zip(&top).map(|((x, _), y)| (*x, *y));
        let lower = columns.iter().zip(&floor).rev().map(|((x, _), y)| (*x, *y));
        let outline: Vec<(f64, f64)> = upper.chain(lower).collect();
        write!(body, r#"<path class="a m{}" d="{}Z"/>"#, index + 1, axis.path(&outline)).expect("text");
        floor = top;
    }
    body.push_str(&axis.grid(&[0.0, 0.25, 0.5, 0.75, 1.0], marks));
    let legend: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(index, name)| format!(r#"<span><i class="k m{}"></i>{}</span>"#, index + 1, escape(name)))
        .collect();
    Some(wrap(title, &legend.join(""), &body))
}

struct Axis {
    first: f64,
    last: f64,
    low: f64,
    high: f64,
}

impl Axis {
    fn x(&self, step: f64) -> f64 {
        let span = (self.last - self.first).max(1e-12);
        LEFT + (step - self.first) / span * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let span = (self.high - self.low).max(1e-300);
        HEIGHT - BOTTOM - (value - self.low) / span * (HEIGHT - TOP - BOTTOM)
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::with_capacity(points.len() * 12);
        for (index, (x, y)) in points.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            write!(path, "{letter}{:.1} {:.1}", self.x(*x), self.y(*y)).expect("text");
        }
        path
    }

    fn grid(&self, ticks: &[f64], marks: &[Mark]) -> String {
        let mut out = String::new();
        for &tick in ticks {
            let y = self.y(tick);
            write!(
                out,
                r#"<line class="g" x1="{LEFT}" x2="{}" y1="{y:.1}" y2="{y:.1}"/><text class="t e" x="{}" y="{:.1}">{}</text>"#,
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                number(tick)
            )
            .expect("text");
        }
        for tick in nice_ticks(self.first, self.last, 5) {
            if tick >= self.first - 1e-9 && tick <= self.last + 1e-9 && tick.fract() == 0.0 {
                let x = self.x(tick);
                write!(out, r#"<text class="t m" x="{x:.1}" y="{}">{}</text>"#, HEIGHT - 8.0, number(tick))
                    .expect("text");
            }
        }
        for mark in marks.iter().filter(|mark| mark.step > self.first && mark.step <= self.last) {
            let x = self.x(mark.step);
            write!(
                out,
                r#"<line class="s" x1="{x:.1}" x2="{x:.1}" y1="{TOP}" y2="{}"/><text class="t" x="{:.1}" y="{}">{}</text>"#,
                HEIGHT - BOTTOM,
                x + 4.0,
                TOP + 10.0,
                escape(&mark.name)
            )
            .expect("text");
        }
        out
    }
}

fn figure(title: &str, names: &[&str], body: &str) -> String {
    let legend: Vec<String> = if names.len() < 2 {
        Vec::new()
    } else {
        names
            .iter()
            .enumerate()
            .map(|(index, name)| format!(r#"<span><i class="k c{}"></i>{}</span>"#, index % 6 + 1, escape(name)))
            .collect()
    };
    wrap(title, &legend.join(""), body)
}

fn wrap(title: &str, legend: &str, body: &str) -> String {
    format!(
        "<figure class=\"chart\"><figcaption><b>{}</b><span class=\"legend\">{legend}</span></figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">{body}</svg></figure>",
        escape(title),
        escape(title)
    )
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| match bounds {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

/// Round numbers that enclose `low..high`, about `count` of them.
fn nice_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = ((high - low) / count as f64).max(1e-12);
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough * 0.999).unwrap_or(power);
    let (from, to) = ((low / step).floor() as i64, (high / step - 1e-9).ceil() as i64);
    (from..=to).map(|index| index as f64 * step).collect()
}

/// A number in as few characters as an axis needs.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        "0".to_string()
    } else if size >= 10_000.0 {
        format!("{}k", number(value / 1000.0))
    } else if size < 0.001 {
        format!("{value:.1e}").replace(".0e", "e")
    } else {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    }
}

/// Means of neighbours, so that at most [`MAX_POINTS`] are left.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let count = chunk.len() as f64;
        (chunk.iter().map(|p| p.0).sum::<f64>() / count, chunk.iter().map(|p| p.1).sum::<f64>() / count)
    };
    if size == 1 { points.to_vec() } else { points.chunks(size).map(mean).collect() }
}

/// Running mean with a memory of a fifteenth of the line, without the usual pull towards the first value.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 15.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(x, y)| {
            sum = sum * keep + y;
            weight = weight * keep + 1.0;
            (x, sum / weight)
        })
        .collect()
}

/// At most `count` columns, each the mean of its neighbours.
fn bucket_means(columns: &[(f64, Vec<f64>)], count: usize) -> Vec<(f64, Vec<f64>)> {
    let size = columns.len().div_ceil(count).max(1);
    let mut means: Vec<(f64, Vec<f64>)> = columns
        .chunks(size)
        .map(|chunk| {
            let n = chunk.len() as f64;
            let width = chunk[0].1.len();
            let values = (0..width).map(|i| chunk.iter().map(|(_, values)| values[i]).sum::<f64>() / n).collect();
            (chunk.iter().map(|(x, _)| x).sum::<f64>() / n, values)
        })
        .collect();
    // The areas reach both edges of the plot.
    if let (Some(first), Some(last)) = (columns.first(), columns.last()) {
        let count = means.len();
        means[0].0 = first.0;
        means[count - 1].0 = last.0;
        if count == 1 {
            means.push((last.0 + 1e-9, means[0].1.clone()));
        }
    }
    means
}

/// Text made safe between tags and in attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        assert_eq!(nice_ticks(0.0, 1.0, 4), [0.0, 0.5, 1.0]);
        assert_eq!(nice_ticks(0.0, 0.8, 4), [0.0, 0.2, 0.4, 0.6, 0.8].map(|v: f64| (v * 5.0).round() * 0.2));
        let ticks = nice_ticks(-3.2, 17.0, 4);
        assert!(ticks[0] <= -3.2 && *ticks.last().unwrap() >= 17.0, "{ticks:?}");
        assert_eq!(number(0.0001), "1e-4");
        assert_eq!(number(12_500.0), "12.5k");
    }

    #[test]
    fn charts_survive_any_input() {
        let line = |points: &[(f64, f64)]| Line { name: "<x>".into(), points: points.to_vec() };
        assert_eq!(lines("t", &[], &[]), None);
        assert_eq!(lines("t", &[line(&[(1.0, f64::NAN)])], &[]), None);
        for points in [&[(1.0, 0.0)][..], &[(1.0, 5.0), (2.0, 5.0)], &[(0.0, -1e30), (9.0, 1e30)]] {
            let svg = lines("a & b", &[line(points)], &[]).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("<x>"), "{svg}");
        }
        let svg = shares("t", &["a", "b"], &[(1.0, vec![0.5, 0.5])], &[]).unwrap();
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn long_runs_make_short_charts() {
        let points = (0..100_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        assert!(lines("t", &[Line { name: "x".into(), points }], &[]).unwrap().len() < 12_000);
    }
}
