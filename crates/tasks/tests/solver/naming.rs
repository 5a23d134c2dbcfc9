//! Names of things by family, colour and place.

use super::{fit, objects, yes_no};

const FAMILIES: [(&str, [&str; 6]); 5] = [
    ("animal", ["fish", "bird", "cat", "rabbit", "snail", "turtle"]),
    ("vehicle", ["car", "bus", "truck", "boat", "plane", "bike"]),
    ("building", ["house", "tent", "castle", "church", "mill", "bridge"]),
    ("fruit", ["pear", "banana", "cherry", "lemon", "grape", "melon"]),
    ("tool", ["hammer", "saw", "rake", "ladder", "shovel", "wrench"]),
];

fn family(name: &str) -> &'static str {
    FAMILIES.iter().find(|(_, names)| names.contains(&name)).expect("a known name").0
}

/// How many things belong to a family, in singular or plural.
pub fn count(facts: &str, noun: &str) -> usize {
    let wanted = noun.strip_suffix('s').unwrap_or(noun);
    objects(facts).iter().filter(|(words, _)| family(words[1]) == wanted).count()
}

struct Thing<'a> {
    color: &'a str,
    name: &'a str,
    place: &'a str,
}

pub fn solve(facts: &str, question: &str) -> Option<String> {
    let all: Vec<Thing> =
        objects(facts).into_iter().map(|(words, place)| Thing { color: words[0], name: words[1], place }).collect();
    let plural = |word: &str, thing: &Thing| word.strip_suffix('s') == Some(family(thing.name));
    let labels = |wanted: &dyn Fn(&Thing) -> bool| {
        let mut names: Vec<&str> = Vec::new();
        for thing in all.iter().filter(|thing| wanted(thing)) {
            if !names.contains(&thing.name) {
                names.push(thing.name);
            }
        }
        Some(names.join(", "))
    };
    let at = |place: &str| all.iter().find(|thing| thing.place == place);
    let named = |name: &str| all.iter().find(|thing| thing.name == name);
    let times = |name: &str| all.iter().filter(|thing| thing.name == name).count();

    if question == "Name all objects." || question == "Which objects are there?" {
        return labels(&|_| true);
    }
    if question == "Which objects are there more than once?" {
        return labels(&|thing| times(thing.name) > 1);
    }
    if question == "Which kind of object is there most often?" {
        let most = FAMILIES.iter().max_by_key(|(family, _)| count(facts, family))?;
        return Some(most.0.to_string());
    }
    if let Some(f) = fit("What kind of object is at the {}?", question) {
        return at(f[0]).map(|thing| family(thing.name).to_string());
    }
    if let Some(f) = fit("What is at the {}?", question) {
        return at(f[0]).map(|thing| thing.name.to_string());
    }
    if let Some(f) = fit("Is there a {}?", question) {
        return Some(yes_no(named(f[0]).is_some()));
    }
    if let Some(f) = fit("Do the {} and the {} have the same color?", question) {
        assert_eq!((times(f[0]), times(f[1])), (1, 1));
        return Some(yes_no(named(f[0])?.color == named(f[1])?.color));
    }
    if let Some(f) = fit("Which other objects have the same color as the {}?", question) {
        assert_eq!(times(f[0]), 1);
        let color = named(f[0])?.color;
        return labels(&|thing| thing.color == color && thing.name != f[0]);
    }
    if let Some(f) = fit("Which objects are neither {} nor {}?", question) {
        return labels(&|thing| !plural(f[0], thing) && thing.color != f[1]);
    }
    if let Some(f) = fit("Which {} are in the {} row?", question).or(fit("Which {} are in the {} column?", question)) {
        let words = if question.ends_with("row?") { ["top", "bottom"] } else { ["left", "right"] };
        let inside = |thing: &Thing| match f[1] {
            "middle" => words.iter().all(|word| !thing.place.contains(word)),
            word => thing.place.contains(word),
        };
        return labels(&|thing| plural(f[0], thing) && inside(thing));
    }
    if let Some(f) = fit("Which objects are {}?", question).or(fit("Name the {} objects.", question)) {
        return labels(&|thing| thing.color == f[0]);
    }
    if let Some(f) = fit("Which {} are there?", question).or(fit("Name the {}.", question)) {
        return labels(&|thing| plural(f[0], thing));
    }
    if let Some(f) = fit("Which {} are {}?", question) {
        return labels(&|thing| plural(f[0], thing) && thing.color == f[1]);
    }
    None
}
