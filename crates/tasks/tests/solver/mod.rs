//! A second, independent way to every answer: reads only the words of the facts and of the question.

pub mod location;
pub mod naming;
mod structure;
mod transformation;

/// What the `{}` of the template stand for, if the text fits it.
pub fn fit<'a>(template: &str, text: &'a str) -> Option<Vec<&'a str>> {
    let mut parts = template.split("{}");
    let mut rest = text.strip_prefix(parts.next()?)?;
    let mut found = Vec::new();
    let parts: Vec<&str> = parts.collect();
    for (i, part) in parts.iter().enumerate() {
        let end = if i + 1 == parts.len() { rest.len().checked_sub(part.len())? } else { rest.find(part)? };
        found.push(&rest[..end]);
        rest = rest[end..].strip_prefix(part)?;
    }
    rest.is_empty().then_some(found)
}

/// The answer to a question of any world, or nothing for questions that only the primer asks.
pub fn solve(task: &str, facts: &str, question: &str) -> Option<String> {
    if question.contains(" Is the answer ") {
        return None;
    }
    match task {
        "counting" => counting(facts, question),
        "charts" => charts(facts, question),
        "structure" => structure::solve(facts, question),
        "transformation" => transformation::solve(facts, question),
        "location" => location::solve(facts, question),
        "naming" => naming::solve(facts, question),
        _ => None,
    }
}

fn yes_no(holds: bool) -> String {
    if holds { "yes" } else { "no" }.to_string()
}

/// Words of each object, its position last.
pub fn objects(facts: &str) -> Vec<(Vec<&str>, &str)> {
    facts
        .split('.')
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let (position, words) = part.trim().split_once(": ").expect("position: words");
            (words.split(' ').collect(), position)
        })
        .collect()
}

/// Does the object have every word of the noun phrase?
pub fn fits(words: &[&str], phrase: &str) -> bool {
    phrase.split(' ').all(|wanted| {
        let singular = wanted.strip_suffix("es").filter(|stem| stem.ends_with('s'));
        let singular = singular.or(wanted.strip_suffix('s').filter(|stem| !stem.ends_with('s'))).unwrap_or(wanted);
        singular == "object" || words.contains(&singular)
    })
}

/// How many objects of the facts a noun phrase names.
pub fn count(facts: &str, phrase: &str) -> i64 {
    objects(facts).iter().filter(|(words, _)| fits(words, phrase)).count() as i64
}

fn counting(facts: &str, question: &str) -> Option<String> {
    let all = objects(facts);
    let n = |phrase: &str| count(facts, phrase);
    let left = |phrase: &str, gone: &[&str]| {
        let kept = |words: &[&str]| fits(words, phrase) && !gone.iter().any(|gone| fits(words, gone));
        all.iter().filter(|(words, _)| kept(words)).count() as i64
    };
    let first_word = |phrase: &str| -> i64 { phrase.split(' ').next().unwrap().parse().unwrap() };

    let number = if let Some(f) = fit("Remove all {} and all {}. How many objects are left?", question) {
        left("objects", &f)
    } else if let Some(f) = fit("Remove all {}. How many {} are left?", question) {
        left(f[1], &f[..1])
    } else if let Some(f) = fit("How many {} are left if all {} are removed?", question) {
        left(f[0], &f[1..])
    } else if let Some(f) = fit("Add {} and remove all {}. How many objects are there now?", question) {
        left("objects", &f[1..]) + first_word(f[0])
    } else if let Some(f) = fit("Add {}. How many {} are there now?", question) {
        n(f[1]) + first_word(f[0])
    } else if let Some(f) = fit("How many more {} and {} together than {} are there?", question) {
        n(f[0]) + n(f[1]) - n(f[2])
    } else if let Some(f) = fit("How many more {} than {} are there?", question) {
        n(f[0]) - n(f[1])
    } else if let Some(f) = fit("How many {} and {} are there together?", question) {
        n(f[0]) + n(f[1])
    } else if let Some(f) = fit("What is the number of {} plus the number of {}?", question) {
        n(f[0]) + n(f[1])
    } else if let Some(f) = fit("How many {} are there?", question).or(fit("Count the {}.", question)) {
        n(f[0])
    } else if let Some(f) = fit("Remove all {}. Are there more {} than {} left?", question) {
        return Some(yes_no(left(f[1], &f[..1]) > left(f[2], &f[..1])));
    } else if let Some(f) = fit("Are there more {} than {}?", question) {
        return Some(yes_no(n(f[0]) > n(f[1])));
    } else if let Some(f) = fit("Are there fewer {} than {}?", question) {
        return Some(yes_no(n(f[0]) < n(f[1])));
    } else if let Some(f) = fit("Is there a {}?", question) {
        return Some(yes_no(n(f[0]) > 0));
    } else if let Some(f) = fit("What {} is the object at the {}?", question) {
        let (words, _) = all.iter().find(|(_, position)| *position == f[1])?;
        return Some(words[if f[0] == "color" { 1 } else { 2 }].to_string());
    } else {
        return None;
    };
    Some(number.to_string())
}

/// Kind of chart, names and values.
pub fn entries(facts: &str) -> (&str, Vec<(&str, i64)>) {
    let (kind, list) = facts.trim_end_matches('.').split_once(" chart: ").expect("kind chart: entries");
    let entries = list
        .split(", ")
        .map(|entry| entry.split_once(' ').expect("name value"))
        .map(|(name, value)| (name, value.parse().expect("a number")))
        .collect();
    (kind, entries)
}

fn charts(facts: &str, question: &str) -> Option<String> {
    let (kind, entries) = entries(facts);
    let value = |name: &str| entries.iter().find(|(other, _)| *other == name).map(|&(_, value)| value);
    let mut sorted = entries.clone();
    sorted.sort_by_key(|&(_, value)| value);
    let (lowest, highest) = (sorted[0], *sorted.last()?);
    let sum = |all: &[(&str, i64)]| all.iter().map(|&(_, value)| value).sum::<i64>();
    let beyond = |word: &str, limit: &str| -> Option<Vec<(&str, i64)>> {
        let limit: i64 = limit.parse().ok()?;
        Some(entries.iter().copied().filter(|&(_, v)| if word == "above" { v > limit } else { v < limit }).collect())
    };
    let is_line = kind == "line";

    let number = if let Some(f) = fit("What is the value of {}?", question).or(fit("How much is {}?", question)) {
        value(f[0])?
    } else if let Some(f) = fit("How much higher are {} and {} together than {}?", question) {
        value(f[0])? + value(f[1])? - value(f[2])?
    } else if let Some(f) = fit("How much higher is {} than {}?", question) {
        value(f[0])? - value(f[1])?
    } else if question == "What is the difference between the highest and the lowest value?" {
        highest.1 - lowest.1
    } else if let Some(f) = fit("What is the difference between {} and {}?", question) {
        value(f[0])? - value(f[1])?
    } else if question == "What is the sum of the highest and the lowest value?" {
        highest.1 + lowest.1
    } else if question == "What is the sum of all values?" || question == "How much are all entries together?" {
        sum(&entries)
    } else if let Some(f) = fit("What is the sum of the values {} {}?", question) {
        sum(&beyond(f[0], f[1])?)
    } else if let Some(f) = fit("What is the sum of {} and {}?", question) {
        value(f[0])? + value(f[1])?
    } else if let Some(f) = fit("How much are {} and {} together?", question) {
        value(f[0])? + value(f[1])?
    } else if let Some(f) = fit("How many entries are {} {}?", question) {
        beyond(f[0], f[1])?.len() as i64
    } else if let Some(f) = fit("What is half of {}?", question) {
        value(f[0])? / 2
    } else if let Some(f) = fit("What is the average of {} and {}?", question) {
        (value(f[0])? + value(f[1])?) / 2
    } else if question == "How many times does the line go down?" && is_line {
        entries.windows(2).filter(|pair| pair[1].1 < pair[0].1).count() as i64
    } else if let Some(f) = fit("Which entry has the second {} value?", question) {
        let place = if f[0] == "highest" { sorted.len() - 2 } else { 1 };
        return Some(sorted[place].0.to_string());
    } else if question == "Which entry has the highest value?" || question == "Which entry is the highest?" {
        return Some(highest.0.to_string());
    } else if question == "Which entry has the lowest value?" || question == "Which entry is the lowest?" {
        return Some(lowest.0.to_string());
    } else if let Some(f) = fit("Which entry has the value {}?", question) {
        return entries.iter().find(|(_, value)| value.to_string() == f[0]).map(|(name, _)| name.to_string());
    } else if let Some(f) = fit("Is {} more than twice {}?", question) {
        return Some(yes_no(value(f[0])? > 2 * value(f[1])?));
    } else if let Some(f) = fit("Is {} {} than {}?", question) {
        let (x, y) = (value(f[0])?, value(f[2])?);
        return Some(yes_no(if f[1] == "higher" { x > y } else { x < y }));
    } else if let Some(f) = fit("Are {} and {} together more than {}?", question) {
        return Some(yes_no(value(f[0])? + value(f[1])? > value(f[2])?));
    } else if let Some(f) = fit("Does the line go {} from {} to {}?", question) {
        let (x, y) = (value(f[1])?, value(f[2])?);
        return is_line.then(|| yes_no(if f[0] == "up" { y > x } else { y < x }));
    } else {
        return None;
    };
    Some(number.to_string())
}
