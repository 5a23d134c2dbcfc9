//! Questions whose answers are words or sets of words: what is there (one step), which of a family or colour (two),
//! families, colours and places combined (three). Cost: a few passes over at most eight things.

use super::glyphs::{Class, Family};
use super::scene::{NamingScene, Thing};
use crate::ask::{Asked, listed, number, worded};
use crate::canvas::Canvas;
use crate::counting::scene::{Color, POSITIONS};
use crate::draws::Draws;
use crate::row::Answer;
use crate::world::{Lesson, Scene};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    All,
    At,
    Exist,
    Family,
    Color,
    Repeated,
    FamilyAt,
    SameColor,
    FamilyColor,
    FamilyRow,
    MostFrequent,
    LikeColor,
    Neither,
}

/// The kinds of each level; a kind named twice is drawn twice as often.
const LEVELS: [&[Kind]; 3] = [
    &[Kind::All, Kind::All, Kind::At, Kind::Exist],
    &[Kind::Family, Kind::Family, Kind::Color, Kind::Repeated, Kind::FamilyAt, Kind::SameColor],
    &[Kind::FamilyColor, Kind::FamilyRow, Kind::MostFrequent, Kind::LikeColor, Kind::Neither],
];

/// How many kinds of question a level has.
pub fn num_kinds(level: u8) -> usize {
    LEVELS[usize::from(level) - 1].len()
}

impl Scene for NamingScene {
    fn pictures(&self) -> Vec<Canvas> {
        vec![self.canvas()]
    }

    fn facts(&self) -> String {
        NamingScene::facts(self)
    }

    fn ask(&self, level: u8, kind: usize, yes: bool, draws: &mut Draws) -> Option<Asked> {
        match LEVELS[usize::from(level) - 1][kind] {
            Kind::All => self.ask_all(draws),
            Kind::At => Some(self.ask_at(draws)),
            Kind::Exist => self.ask_exist(yes, draws),
            Kind::Family => self.ask_family(draws),
            Kind::Color => self.ask_color(draws),
            Kind::Repeated => self.ask_repeated(draws),
            Kind::FamilyAt => Some(self.ask_family_at(draws)),
            Kind::SameColor => self.ask_same_color(yes, draws),
            Kind::FamilyColor => self.ask_family_color(draws),
            Kind::FamilyRow => self.ask_family_row(draws),
            Kind::MostFrequent => self.ask_most_frequent(),
            Kind::LikeColor => self.ask_like_color(draws),
            Kind::Neither => self.ask_neither(draws),
        }
    }

    fn lessons(&self, draws: &mut Draws) -> Vec<Lesson> {
        let mut lessons = vec![self.lesson_describe(draws)];
        lessons.extend((0..2).map(|_| Lesson::bare(self.ask_at(draws))));
        let yes = draws.percent(50);
        lessons.extend(self.ask_exist(yes, draws).map(Lesson::bare));
        lessons.push(Lesson::bare(self.lesson_color(draws)));
        lessons.push(Lesson::bare(self.lesson_where(draws)));
        lessons.push(Lesson::bare(self.lesson_family(draws)));
        lessons.extend(self.ask_all(draws).map(Lesson::bare));
        lessons.push(Lesson::bare(self.lesson_empty(draws)));
        lessons
    }
}

/// The names without repetitions, in reading order.
fn names(things: &[Thing]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for thing in things {
        if !names.iter().any(|name| name == thing.class.name) {
            names.push(thing.class.name.into());
        }
    }
    names
}

/// `a red cat`.
fn seen(thing: &Thing) -> String {
    format!("a {}", thing.phrase())
}

/// `a red cat at the top left`.
fn seen_at(thing: &Thing) -> String {
    format!("a {} at the {}", thing.phrase(), thing.position())
}

fn all_families() -> Vec<String> {
    Family::ALL.iter().map(|family| family.word().to_string()).collect()
}

impl NamingScene {
    fn matching(&self, wanted: impl Fn(&Thing) -> bool) -> Vec<Thing> {
        self.things.iter().copied().filter(|thing| wanted(thing)).collect()
    }

    /// How many things are of that class.
    fn times(&self, class: &Class) -> usize {
        self.things.iter().filter(|thing| thing.class == class).count()
    }

    /// The question for the names of `found`: 1 to 4 names of at most 5 things, so that no rationale is too long.
    fn asked_labels(
        &self,
        kind: &'static str,
        steps: u8,
        question: String,
        goal: &str,
        found: &[Thing],
        draws: &mut Draws,
    ) -> Option<Asked> {
        let labels = names(found);
        if !(1..=4).contains(&labels.len()) || found.len() > 5 {
            return None;
        }
        let reasoning = if labels.len() == 1 { "the name is" } else { "the names are" };
        let reasoning = format!("{reasoning} {}", labels.join(", "));
        // Wrong options: what is there but not meant, and a few others that could be there.
        let mut candidates = names(&self.things);
        candidates.retain(|name| !labels.contains(name));
        let mut absent: Vec<&Class> = self.known.iter().copied().filter(|c| self.times(c) == 0).collect();
        draws.shuffle(&mut absent);
        candidates.extend(absent.iter().take(3).map(|class| class.name.to_string()));
        let mut asked = Asked::new(kind, steps, question, Answer::Labels(labels), goal.into());
        asked.observations = found.iter().map(seen).collect();
        asked.reasoning = vec![reasoning];
        asked.candidates = candidates;
        Some(asked)
    }

    fn ask_all(&self, draws: &mut Draws) -> Option<Asked> {
        let question = worded(draws, &["Name all objects.".into(), "Which objects are there?".into()]);
        self.asked_labels("all", 1, question, "name all objects", &self.things, draws)
    }

    fn ask_at(&self, draws: &mut Draws) -> Asked {
        let thing = draws.pick(&self.things);
        let question = format!("What is at the {}?", thing.position());
        let answer = Answer::Text(thing.class.name.into());
        let mut asked = Asked::new("at", 1, question, answer, format!("look at the {}", thing.position()));
        asked.observations = vec![seen_at(&thing)];
        asked.reasoning = vec![format!("it is a {}", thing.class.name)];
        asked.candidates = names(&self.things);
        asked.candidates.extend(draws.sample(&self.known, 4).iter().map(|class| class.name.to_string()));
        asked
    }

    fn ask_exist(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let there = |class: &Class| self.things.iter().find(|thing| thing.class == class);
        let fitting: Vec<&'static Class> =
            self.known.iter().copied().filter(|class| there(class).is_some() == yes).collect();
        let class = draws.pick(&fitting);
        let name = class.name;
        let mut asked =
            Asked::new("exist", 1, format!("Is there a {name}?"), Answer::YesNo(yes), format!("look for a {name}"));
        asked.observations = vec![there(class).map_or(format!("no {name}"), seen_at)];
        asked.reasoning = vec![format!("there is {} {name}", if yes { "a" } else { "no" })];
        Some(asked)
    }

    fn ask_family(&self, draws: &mut Draws) -> Option<Asked> {
        let family = draws.pick(&self.things).class.family;
        let found = self.matching(|thing| thing.class.family == family);
        // All of them would be the question for everything.
        if found.len() == self.things.len() {
            return None;
        }
        let word = family.word();
        let question = worded(draws, &[format!("Which {word}s are there?"), format!("Name the {word}s.")]);
        self.asked_labels("family", 2, question, &format!("name the {word}s"), &found, draws)
    }

    fn ask_color(&self, draws: &mut Draws) -> Option<Asked> {
        let color = draws.pick(&self.things).color;
        let found = self.matching(|thing| thing.color == color);
        if found.len() == self.things.len() {
            return None;
        }
        let word = color.word();
        let question = worded(draws, &[format!("Which objects are {word}?"), format!("Name the {word} objects.")]);
        self.asked_labels("color", 2, question, &format!("name the {word} objects"), &found, draws)
    }

    fn ask_repeated(&self, draws: &mut Draws) -> Option<Asked> {
        let found = self.matching(|thing| self.times(thing.class) > 1);
        let question = "Which objects are there more than once?".to_string();
        self.asked_labels("repeated", 2, question, "find what is there more than once", &found, draws)
    }

    fn ask_family_at(&self, draws: &mut Draws) -> Asked {
        let thing = draws.pick(&self.things);
        let word = thing.class.family.word();
        let question = format!("What kind of object is at the {}?", thing.position());
        let goal = format!("look at the {}", thing.position());
        let mut asked = Asked::new("family_at", 2, question, Answer::Text(word.into()), goal);
        asked.observations = vec![seen_at(&thing)];
        asked.reasoning = vec![format!("a {} is of the kind {word}", thing.class.name)];
        asked.candidates = all_families();
        asked
    }

    /// Things whose class is there once.
    fn single(&self) -> Vec<Thing> {
        self.matching(|thing| self.times(thing.class) == 1)
    }

    fn ask_same_color(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let [a, b] = draws.sample(&self.single(), 2)[..] else { return None };
        if (a.color == b.color) != yes {
            return None;
        }
        let question = format!("Do the {} and the {} have the same color?", a.class.name, b.class.name);
        let goal = format!("compare the {} and the {}", a.class.name, b.class.name);
        let mut asked = Asked::new("same_color", 2, question, Answer::YesNo(yes), goal);
        asked.observations = vec![seen(&a), seen(&b)];
        asked.reasoning = vec![if yes {
            format!("both are {}", a.color.word())
        } else {
            format!("{} is not {}", a.color.word(), b.color.word())
        }];
        Some(asked)
    }

    fn ask_family_color(&self, draws: &mut Draws) -> Option<Asked> {
        let Thing { class, color, .. } = draws.pick(&self.things);
        let members = self.matching(|thing| thing.class.family == class.family);
        let found = self.matching(|thing| thing.class.family == class.family && thing.color == color);
        let colored = self.matching(|thing| thing.color == color);
        // Both words must matter.
        if found.len() == members.len() || found.len() == colored.len() {
            return None;
        }
        let (family, word) = (class.family.word(), color.word());
        let question = format!("Which {family}s are {word}?");
        let goal = format!("name the {word} {family}s");
        let mut asked = self.asked_labels("family_color", 3, question, &goal, &found, draws)?;
        asked.reasoning.insert(0, format!("{} of {} {family}s are {word}", found.len(), members.len()));
        Some(asked)
    }

    fn ask_family_row(&self, draws: &mut Draws) -> Option<Asked> {
        let family = draws.pick(&self.things).class.family;
        let (place, row) = (draws.below(3), draws.percent(50));
        let inside = |thing: &Thing| if row { thing.cell.1 == place } else { thing.cell.0 == place };
        let found = self.matching(|thing| thing.class.family == family && inside(thing));
        let others = self.matching(|thing| thing.class.family != family && inside(thing));
        let members = self.matching(|thing| thing.class.family == family);
        if others.is_empty() || members.len() == found.len() {
            return None;
        }
        let region = if row {
            ["top row", "middle row", "bottom row"][place]
        } else {
            ["left column", "middle column", "right column"][place]
        };
        let word = family.word();
        let question = format!("Which {word}s are in the {region}?");
        let goal = format!("name the {word}s in the {region}");
        let mut asked = self.asked_labels("family_row", 3, question, &goal, &found, draws)?;
        asked.reasoning.insert(0, format!("{} of {} {word}s are there", found.len(), members.len()));
        Some(asked)
    }

    fn ask_most_frequent(&self) -> Option<Asked> {
        let count = |family: Family| self.matching(|thing| thing.class.family == family).len();
        let mut counts: Vec<(usize, &str)> =
            Family::ALL.iter().map(|&family| (count(family), family.word())).filter(|&(count, _)| count > 0).collect();
        counts.sort_by_key(|&(count, _)| std::cmp::Reverse(count));
        if counts.len() < 2 || counts[0].0 == counts[1].0 {
            return None;
        }
        let question = "Which kind of object is there most often?".to_string();
        let answer = Answer::Text(counts[0].1.into());
        let mut asked = Asked::new("most_frequent", 3, question, answer, "count each kind of object".into());
        let counted = |&(count, word): &(usize, &str)| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        asked.observations = counts.iter().map(counted).collect();
        asked.reasoning = vec![format!("the highest count is {}", counts[0].0), format!("the kind is {}", counts[0].1)];
        asked.candidates = all_families();
        Some(asked)
    }

    fn ask_like_color(&self, draws: &mut Draws) -> Option<Asked> {
        let single = self.single();
        if single.is_empty() {
            return None;
        }
        let anchor = draws.pick(&single);
        let found = self.matching(|thing| thing.color == anchor.color && *thing != anchor);
        if found.len() + 1 == self.things.len() {
            return None;
        }
        let name = anchor.class.name;
        let question = format!("Which other objects have the same color as the {name}?");
        let goal = format!("name what is colored like the {name}");
        let mut asked = self.asked_labels("like_color", 3, question, &goal, &found, draws)?;
        asked.observations.insert(0, seen(&anchor));
        // The thing itself is the most tempting wrong option.
        asked.candidates.insert(0, name.into());
        Some(asked)
    }

    fn ask_neither(&self, draws: &mut Draws) -> Option<Asked> {
        let family = draws.pick(&self.things).class.family;
        let color = draws.pick(&self.things).color;
        let found = self.matching(|thing| thing.class.family != family && thing.color != color);
        let other = self.matching(|thing| thing.class.family != family);
        if found.len() == other.len() {
            return None;
        }
        let (family, word) = (family.word(), color.word());
        let question = format!("Which objects are neither {family}s nor {word}?");
        let goal = format!("leave out {family}s and {word} objects");
        let mut asked = self.asked_labels("neither", 3, question, &goal, &found, draws)?;
        asked.reasoning.insert(0, format!("{} of {} other objects are not {word}", found.len(), other.len()));
        Some(asked)
    }
}

/// What only pre-training asks: seeing and naming, without steps.
impl NamingScene {
    fn lesson_describe(&self, draws: &mut Draws) -> Lesson {
        let question = worded(
            draws,
            &[
                "Describe the picture. How many objects are there?".into(),
                "Name all objects from top left to bottom right and count them.".into(),
            ],
        );
        let answer = number(self.things.len() as i64);
        let asked = Asked::new("describe", 1, question, answer, "name all objects".into());
        Lesson { asked, rationale: Some(NamingScene::facts(self)) }
    }

    fn lesson_color(&self, draws: &mut Draws) -> Asked {
        let thing = draws.pick(&self.things);
        let question = format!("What color is the object at the {}?", thing.position());
        let goal = format!("find the color at the {}", thing.position());
        let mut asked = Asked::new("color_at", 1, question, Answer::Text(thing.color.word().into()), goal);
        asked.candidates = Color::ALL.iter().map(|color| color.word().to_string()).collect();
        asked
    }

    fn lesson_family(&self, draws: &mut Draws) -> Asked {
        let class = draws.pick(&self.things).class;
        let question = format!("What kind of object is a {}?", class.name);
        let answer = Answer::Text(class.family.word().into());
        let mut asked = Asked::new("family", 1, question, answer, format!("name the kind of a {}", class.name));
        asked.candidates = all_families();
        asked
    }

    fn lesson_where(&self, draws: &mut Draws) -> Asked {
        let class = draws.pick(&self.things).class;
        let places: Vec<String> =
            self.matching(|thing| thing.class == class).iter().map(|thing| thing.position().to_string()).collect();
        let (question, goal) = (format!("Where is a {}?", class.name), format!("find each {}", class.name));
        Asked::new("where", 1, question, Answer::Text(listed(&places)), goal)
    }

    /// An empty place or a used one: the model must not invent things.
    fn lesson_empty(&self, draws: &mut Draws) -> Asked {
        let position = POSITIONS[draws.below(3)][draws.below(3)];
        let empty = self.matching(|thing| thing.position() == position).is_empty();
        let question = format!("Is the {position} empty?");
        Asked::new("empty", 1, question, Answer::YesNo(empty), format!("look at the {position}"))
    }
}
