//! Programs by brute force: every pairing of the objects of both pictures, the cheapest one written as calls.

use super::fit;

const FUNCTIONS: [&str; 4] = ["change_size", "change_color", "change_material", "change_shape"];

/// Column from the left and line from the front.
fn cell(words: &str) -> (i64, i64) {
    let place = |low: &str, high: &str| match (words.contains(low), words.contains(high)) {
        (true, _) => 0,
        (_, true) => 2,
        _ => 1,
    };
    (place("left", "right"), place("front", "back"))
}

type Object<'a> = (Vec<&'a str>, (i64, i64));

fn objects(list: &str) -> Vec<Object<'_>> {
    let read = |part| -> (&str, &str) { str::split_once(part, ": ").expect("place: words") };
    list.split(", ").map(read).map(|(place, words)| (words.split(' ').collect(), cell(place))).collect()
}

/// Calls that turn one object into the other, if calls can do it.
fn calls(id: &str, from: &Object, to: &Object) -> Option<Vec<String>> {
    let words = FUNCTIONS.iter().zip(from.0.iter().zip(&to.0)).filter(|(_, (before, after))| before != after);
    let mut calls: Vec<String> = words.map(|(function, (_, after))| format!("{function}({id}, {after})")).collect();
    let (right, back) = (to.1.0 - from.1.0, to.1.1 - from.1.1);
    if right.abs() > 1 || back.abs() > 1 {
        return None;
    }
    let names =
        [["front_left", "front", "front_right"], ["left", "", "right"], ["behind_left", "behind", "behind_right"]];
    let direction = names[(back + 1) as usize][(right + 1) as usize];
    if !direction.is_empty() {
        calls.push(format!("change_position({id}, {direction})"));
    }
    Some(calls)
}

/// All programs, one per pairing of `before` with what is left of `after`.
fn programs(before: &[(String, Object)], after: &[Object], used: &mut Vec<bool>) -> Vec<Vec<String>> {
    let Some(((id, object), rest)) = before.split_first() else { return vec![vec![]] };
    let mut all = Vec::new();
    for i in 0..after.len() {
        if used[i] {
            continue;
        }
        let Some(first) = calls(id, object, &after[i]) else { continue };
        used[i] = true;
        for program in programs(rest, after, used) {
            all.push(first.iter().cloned().chain(program).collect());
        }
        used[i] = false;
    }
    all
}

pub fn solve(facts: &str, question: &str) -> Option<String> {
    let (first, second) = facts.strip_prefix("first picture: ")?.strip_suffix('.')?.split_once(". second picture")?;
    let second = second.split_once(": ")?.1;
    let (listed, asked) = question.strip_prefix("Objects: ")?.split_once(". ")?;
    let about = fit("Which call changed object {}?", asked).map(|f| f[0].to_string());
    let all = ["Which calls turn the first picture into the second?"];
    let later = "The second picture shows the objects later. Which calls were made?";
    if about.as_ref().is_none_or(|id| id.len() > 1) && !all.contains(&asked) && asked != later {
        return None;
    }
    // The question names the objects; the facts say where they stand.
    let stand = objects(first);
    let mut before = Vec::new();
    for object in listed.split(", ") {
        let (id, looks) = object.split_once(' ')?;
        let fitting: Vec<&Object> = stand.iter().filter(|(words, _)| words[1..].join(" ") == looks).collect();
        assert_eq!(fitting.len(), 1, "{object} is not one object in {facts}");
        assert_eq!(fitting[0].0[0], id);
        before.push((id.to_string(), (fitting[0].0[1..].to_vec(), fitting[0].1)));
    }
    let after = objects(second);
    let mut found = programs(&before, &after, &mut vec![false; after.len()]);
    found.sort_by_key(Vec::len);
    assert!(found.len() < 2 || found[0].len() < found[1].len(), "two programs: {facts}");
    let mut calls = found.swap_remove(0);
    if let Some(id) = about {
        calls.retain(|call| call.contains(&format!("({id},")));
    }
    Some(calls.join(", "))
}
