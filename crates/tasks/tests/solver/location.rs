//! Referring expressions, read from the outside in; places are the middles of the boxes.

use super::{fit, fits};

struct Object<'a> {
    words: Vec<&'a str>,
    text: &'a str,
    x: f64,
    y: f64,
}

fn read(facts: &str) -> Vec<Object<'_>> {
    let list = facts.split_once(": ").expect("style: objects").1.strip_suffix("].").expect("a box at the end");
    list.split("], ")
        .map(|part| {
            let (words, text) = part.split_once(" [").expect("words [box");
            let numbers: Vec<f64> = text.split(", ").map(|number| number.parse().expect("a number")).collect();
            Object {
                words: words.split(' ').collect(),
                text,
                x: (numbers[0] + numbers[2]) / 2.0,
                y: (numbers[1] + numbers[3]) / 2.0,
            }
        })
        .collect()
}

/// Whether an object with these words lies in that ninth of the picture; boxes may be rounded at its border.
pub fn is_at(facts: &str, words: &str, place: &str) -> bool {
    let near = |value: f64, low: &str, high: &str| {
        let wanted = if place.contains(low) {
            0.0
        } else if place.contains(high) {
            2.0
        } else {
            1.0
        };
        value * 3.0 / 128.0 > wanted - 0.05 && value * 3.0 / 128.0 < wanted + 1.05
    };
    let there = |object: &Object| near(object.x, "left", "right") && near(object.y, "top", "bottom");
    read(facts).iter().any(|object| object.words.join(" ") == words && there(object))
}

/// Smaller is more to that side.
fn rank(object: &Object, side: &str) -> f64 {
    match side {
        "leftmost" | "left of" | "from the left" => object.x,
        "rightmost" | "right of" | "from the right" => -object.x,
        "highest" | "above" | "from the top" => object.y,
        _ => -object.y,
    }
}

/// All objects that an expression without its article means, in order where it speaks of an extreme.
fn meant<'a>(all: &'a [Object<'a>], expression: &str) -> Vec<&'a Object<'a>> {
    for side in ["leftmost", "rightmost", "highest", "lowest"] {
        if let Some(rest) = expression.strip_prefix(side) {
            let mut found = meant(all, rest.trim());
            found.sort_by(|a, b| rank(a, side).total_cmp(&rank(b, side)));
            found.truncate(1);
            return found;
        }
    }
    for side in ["from the left", "from the right", "from the top", "from the bottom"] {
        if let Some(noun) = expression.strip_suffix(side).and_then(|rest| rest.strip_prefix("second ")) {
            let mut found = meant(all, noun.trim());
            found.sort_by(|a, b| rank(a, side).total_cmp(&rank(b, side)));
            return found[1..2].to_vec();
        }
    }
    if let Some(name) = expression.strip_prefix("object nearest to the ") {
        let anchor = meant(all, name)[0];
        let far = |object: &&Object| (object.x - anchor.x).hypot(object.y - anchor.y);
        let others = all.iter().filter(|object| object.text != anchor.text);
        return others.min_by(|a, b| far(a).total_cmp(&far(b))).into_iter().collect();
    }
    if let Some((first, second)) = expression.split_once(" and ") {
        let noun = first.split(' ').take_while(|word| !["left", "right", "above", "below"].contains(word));
        let noun = noun.collect::<Vec<_>>().join(" ");
        let other = meant(all, &format!("{noun} {second}"));
        let both = |object: &&Object| other.iter().any(|o| o.text == object.text);
        return meant(all, first).into_iter().filter(both).collect();
    }
    for side in ["left of", "right of", "above", "below"] {
        if let Some((noun, name)) = expression.split_once(&format!(" {side} the ")) {
            let anchors = meant(all, name);
            assert_eq!(anchors.len(), 1, "{name} is not one object");
            let beyond = |object: &&Object| rank(object, side) < rank(anchors[0], side);
            return meant(all, noun).into_iter().filter(beyond).collect();
        }
    }
    all.iter().filter(|object| fits(&object.words, expression)).collect()
}

pub fn solve(facts: &str, question: &str) -> Option<String> {
    let f = fit("Give the box of the {}.", question).or(fit("Find the box of the {}.", question))?;
    let all = read(facts);
    let found = meant(&all, f[0]);
    assert_eq!(found.len(), 1, "{question}: {facts}");
    Some(format!("[{}]", found[0].text))
}
