//! What the built-in worlds promise: repeatable pixels, answers that follow from the facts, disjoint splits, balance,
//! short rationales, a small vocabulary, nothing hidden or cut off.

mod solver;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foveate_tasks::derive::question_text;
use foveate_tasks::{
    Answer, Drawing, Format, ImageData, PrimerSpec, Quality, Row, Split, World, WorldError, WorldSpec, primer, row,
    row_without_images, target,
};

const SPLITS: [Split; 3] = [Split::Train, Split::Id, Split::Ood];

fn spec(world: World, split: Split) -> WorldSpec {
    WorldSpec::new(world, split)
}

fn rows(spec: &WorldSpec, count: u64) -> Vec<Row> {
    (0..count).map(|index| row_without_images(spec, 11, index)).collect()
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn pixels(row: &Row) -> Vec<Arc<Drawing>> {
    let drawn = |image: &ImageData| match image {
        ImageData::Drawn(drawing) => Arc::clone(drawing),
        other => panic!("worlds draw, this is {other:?}"),
    };
    row.images.iter().map(drawn).collect()
}

#[test]
fn the_answer_follows_from_the_facts() {
    for &world in World::ALL {
        for split in SPLITS {
            let mut kinds = BTreeSet::new();
            for row in rows(&spec(world, split), 1500) {
                let solved = solver::solve(&row.task, &row.facts, &row.question);
                let solved = solved.unwrap_or_else(|| panic!("no way to solve {:?}", row.question));
                assert_eq!(solved, row.answer.text(), "{}\n{}\n{}", row.id, row.facts, row.question);
                kinds.insert(row.meta["kind"].as_str().unwrap().to_string());
            }
            // All kinds, but for the sum over five ood entries of a chart, which is too rare.
            let wanted = match world {
                World::Counting | World::Naming => 13,
                World::Charts => 18,
                World::Structure => 21,
                World::Transformation => 2,
                World::Location => 7,
            };
            assert!(kinds.len() >= wanted, "{kinds:?}");
        }
    }
}

#[test]
fn every_number_of_a_rationale_is_observed_or_calculated() {
    for &world in World::ALL {
        for split in SPLITS {
            let spec = WorldSpec { rationale: Quality::High, ..spec(world, split) };
            for row in rows(&spec, 500) {
                let high = solver::fit("Goal: {}. Observation: {}. Reasoning: {}. Conclusion: {}.", &row.rationale);
                let [_, observation, reasoning, conclusion] = high.expect("four parts")[..] else { unreachable!() };
                assert_eq!(conclusion, row.answer.text());
                for seen in observation.split(", ") {
                    check_observation(&row, seen);
                }
                for step in reasoning.split(", ") {
                    check_step(step);
                }
            }
        }
    }
}

fn check_observation(row: &Row, seen: &str) {
    let facts = &row.facts;
    let listed = || facts.contains(&format!(" {seen}.")) || facts.contains(&format!(" {seen},"));
    let at_place =
        || solver::fit("a {} at the {}", seen).is_some_and(|f| facts.contains(&format!("{}: {}.", f[1], f[0])));
    let counted = || seen.split_once(' ').filter(|(number, _)| number.parse::<i64>().is_ok());
    let fitting = match row.task.as_str() {
        "charts" => listed() || seen.starts_with("no entry") || seen.starts_with("a fall to") || seen == "no fall",
        "structure" => listed(),
        "counting" => match counted() {
            Some((number, noun)) => noun.ends_with(" left") || solver::count(facts, noun).to_string() == number,
            None => at_place(),
        },
        "transformation" => solver::fit("object {} {} at the {} and later {} at the {}", seen).is_some_and(|f| {
            let (first, second) = facts.split_once(". second picture").expect("two pictures");
            first.contains(&format!(" {}: {} {}", f[2], f[0], f[1])) && second.contains(&format!(" {}: {}", f[4], f[3]))
        }),
        "location" => solver::fit("a {} at the {}", seen).is_some_and(|f| solver::location::is_at(facts, f[0], f[1])),
        "naming" => match counted() {
            Some((number, noun)) => solver::naming::count(facts, noun).to_string() == number,
            None if seen.starts_with("no ") => !facts.contains(&format!(" {}.", &seen[3..])),
            None => at_place() || facts.contains(&format!(": {}.", &seen[2..])),
        },
        other => panic!("no such world: {other}"),
    };
    assert!(fitting, "{seen:?} is not in {facts:?}");
}

fn check_step(step: &str) {
    let value = |text: &str| text.parse::<i64>().unwrap_or_else(|_| panic!("{step}"));
    if let Some((sum, result)) = step.split_once(" = ") {
        let words: Vec<&str> = sum.split(' ').collect();
        let (a, b) = (value(words[0]), value(words[2]));
        let expected = match words[1] {
            "+" => a + b,
            "-" => a - b,
            "*" => a * b,
            other => panic!("{other} in {step}"),
        };
        assert_eq!(expected.to_string(), result, "{step}");
    } else if let Some(f) = solver::fit("half of {} is {}", step) {
        assert_eq!(value(f[0]), 2 * value(f[1]));
    } else if let Some(f) = solver::fit("the root of {} is {}", step) {
        assert_eq!(value(f[0]), value(f[1]) * value(f[1]));
    }
}

#[test]
fn rationales_are_short_and_end_in_the_answer() {
    let limits = [(Quality::None, 0), (Quality::Low, 15), (Quality::Medium, 35), (Quality::High, 50)];
    for &world in World::ALL {
        for (quality, limit) in limits {
            for split in SPLITS {
                for row in rows(&WorldSpec { rationale: quality, ..spec(world, split) }, 400) {
                    let words = row.rationale.split_whitespace().count();
                    // Each changed object has two places and a call.
                    let calls = if let Answer::Functions(calls) = &row.answer { calls.len() } else { 0 };
                    let limit = if limit > 0 { limit + 15 * calls } else { limit };
                    assert!(words <= limit, "{words} words: {}", row.rationale);
                    assert!(!row.rationale.to_lowercase().contains("answer:"), "{}", row.rationale);
                    if let (Answer::Number(number), true) = (&row.answer, limit > 0) {
                        let last = row.rationale.split(|c: char| !c.is_ascii_digit()).rfind(|part| !part.is_empty());
                        assert_eq!(last, Some(number.as_str()), "{}", row.rationale);
                    }
                }
            }
        }
    }
}

#[test]
fn the_quality_of_rationales_changes_nothing_else() {
    for &world in World::ALL {
        let low = rows(&WorldSpec { rationale: Quality::Low, ..spec(world, Split::Train) }, 50);
        let high = rows(&WorldSpec { rationale: Quality::High, ..spec(world, Split::Train) }, 50);
        for (low, high) in low.iter().zip(&high) {
            assert_eq!((&low.facts, &low.question, &low.answer), (&high.facts, &high.question, &high.answer));
        }
    }
}

#[test]
fn splits_never_share_a_scene() {
    for &world in World::ALL {
        let facts = |split| rows(&spec(world, split), 3000).into_iter().map(|row| row.facts).collect::<BTreeSet<_>>();
        let (train, id, ood) = (facts(Split::Train), facts(Split::Id), facts(Split::Ood));
        assert!(train.is_disjoint(&id) && train.is_disjoint(&ood) && id.is_disjoint(&ood));
        // Repeated scenes inside a split exist (small charts), but stay rare.
        assert!(train.len() > 2850 && id.len() > 2700, "{} {}", train.len(), id.len());
        for index in 0..200 {
            let seen = &primer(&PrimerSpec { size: 64, ..PrimerSpec::new(world) }, 3, index)[0].facts;
            assert!(!id.contains(seen) && !ood.contains(seen));
        }
    }
}

#[test]
fn held_out_pairs_appear_only_out_of_domain() {
    let held_out = |facts: &str| {
        let pairs = foveate_tasks::counting::scene::HELD_OUT;
        pairs.iter().filter(|(color, shape)| facts.contains(&format!("{} {}", color.word(), shape.word()))).count()
    };
    for split in [Split::Train, Split::Id] {
        assert!(rows(&spec(World::Counting, split), 1000).iter().all(|row| held_out(&row.facts) == 0));
    }
    assert!(rows(&spec(World::Counting, Split::Ood), 1000).iter().all(|row| held_out(&row.facts) > 0));
}

/// The share of the most frequent answer is the score of the best blind answerer. Measured 2026-11 over all levels,
/// seed 11, 3000 rows: printed by this test, bounded below.
#[test]
fn answers_are_balanced() {
    for &world in World::ALL {
        for split in SPLITS {
            let rows = rows(&spec(world, split), 3000);
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for row in &rows {
                *counts.entry(row.answer.text()).or_default() += 1;
            }
            let count = |answer: &str| counts.get(answer).copied().unwrap_or(0);
            let (yes, no) = (count("yes"), count("no"));
            // Boxes and calls are never asked for with yes or no.
            let open_only = matches!(world, World::Transformation | World::Location);
            assert_eq!(yes + no == 0, open_only);
            let share = if open_only { 0.5 } else { yes as f64 / (yes + no) as f64 };
            // Three standard deviations, where there are few.
            let slack = (1.5 / ((yes + no).max(1) as f64).sqrt()).max(0.05);
            assert!((share - 0.5).abs() < slack, "{world:?} {split:?}: {share} of yes/no answers are yes");
            let (answer, most) = counts.iter().max_by_key(|(_, count)| **count).unwrap();
            let majority = *most as f64 / rows.len() as f64;
            println!("{world:?} {split:?}: always {answer:?} scores {majority:.3}");
            assert!(majority < 0.2, "{world:?} {split:?}: always {answer:?} scores {majority}");
        }
    }
}

#[test]
fn other_forms_ask_the_same_question() {
    for &world in World::ALL {
        for split in SPLITS {
            let open = rows(&spec(world, split), 400);
            let choice = rows(&WorldSpec { format: Format::Choice, ..spec(world, split) }, 400);
            let judge = rows(&WorldSpec { format: Format::Judge, ..spec(world, split) }, 400);
            let mut right = [0usize; 4];
            for ((open, choice), judge) in open.iter().zip(&choice).zip(&judge) {
                assert_eq!(choice.meta["source"], open.id.as_str());
                let Answer::Choice(letters) = &choice.answer else { panic!("{:?}", choice.answer) };
                let places: Vec<usize> = letters.iter().map(|l| usize::from(l.as_bytes()[0] - b'A')).collect();
                let distinct: BTreeSet<&String> = choice.choices.iter().collect();
                assert_eq!(distinct.len(), choice.choices.len(), "{:?}", choice.choices);
                match &open.answer {
                    Answer::YesNo(_) => {
                        assert_eq!(choice.choices[places[0]], open.answer.text());
                        assert_eq!((choice.choices.len(), &judge.answer), (2, &open.answer));
                        continue;
                    }
                    Answer::Labels(labels) => {
                        let chosen: BTreeSet<&String> = places.iter().map(|&place| &choice.choices[place]).collect();
                        assert_eq!(chosen, labels.iter().collect());
                        assert_eq!(choice.choices.len(), labels.len() + 3, "{}: {:?}", open.question, choice.choices);
                    }
                    answer => {
                        assert_eq!(choice.choices[places[0]], answer.text());
                        assert_eq!(choice.choices.len(), 4, "{}: {:?}", open.question, choice.choices);
                        right[places[0]] += 1;
                    }
                }
                let shown = solver::fit("{} Is the answer {}?", &judge.question).expect("a proposed answer")[1];
                assert_eq!(judge.answer, Answer::YesNo(shown == open.answer.text()), "{}", judge.question);
            }
            let total: usize = right.iter().sum();
            // A fifth; where most answers are sets of labels, three standard deviations below a quarter.
            let least = (total as f64 / 5.0).min(total as f64 / 4.0 - 1.3 * (total as f64).sqrt());
            assert!(right.iter().all(|&count| count as f64 > least), "{right:?}");
        }
    }
}

#[test]
fn the_vocabulary_is_small() {
    let mut words = BTreeSet::new();
    let mut add = |row: &Row| {
        for text in [&question_text(row), &target(row), &row.facts] {
            // Points of figures and their sides are spelled out of ten letters; each is no word of its own.
            let is_name = |word: &&str| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase());
            words
                .extend(text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !is_name(word)).map(String::from));
            assert!(text.is_ascii());
        }
    };
    for &world in World::ALL {
        for quality in [Quality::Low, Quality::Medium, Quality::High] {
            for format in [Format::Open, Format::Choice, Format::Judge] {
                for split in SPLITS {
                    let spec = WorldSpec { rationale: quality, format, ..spec(world, split) };
                    rows(&spec, 300).iter().for_each(&mut add);
                }
            }
        }
        for index in 0..200 {
            primer(&PrimerSpec { size: 64, ..PrimerSpec::new(world) }, 3, index).iter().for_each(&mut add);
        }
    }
    println!("{} words", words.len());
    assert!(words.len() < 320, "{} words: {words:?}", words.len());
}

#[test]
fn same_key_same_pixels() {
    // Pinned: a change here changes every data set and the built-in model's training material.
    let pinned = [
        (World::Counting, Split::Train, 0x3424a2d24bedb822),
        (World::Counting, Split::Ood, 0x592ede6f62cac163),
        (World::Charts, Split::Train, 0x375a8cc187798b15),
        (World::Charts, Split::Ood, 0xe267f73c598ab9f3),
        (World::Structure, Split::Train, 0x5fedb321b01e57d5),
        (World::Structure, Split::Ood, 0x1dba6b5fbb026fea),
        (World::Transformation, Split::Train, 0x58137385e1b41afa),
        (World::Transformation, Split::Ood, 0xa8cad501b1c0f35b),
        (World::Location, Split::Train, 0x5b31d101e49679b6),
        (World::Location, Split::Ood, 0x6a67525e21fab8fe),
        (World::Naming, Split::Train, 0x75bf6c1535c950f0),
        (World::Naming, Split::Ood, 0x31dc538fcb3415b7),
    ];
    let mut changed = Vec::new();
    for (world, split, hash) in pinned {
        let drawn = |index| pixels(&row(&spec(world, split), 7, index));
        let all: Vec<u8> = (0..6).flat_map(drawn).flat_map(|drawing| drawing.rgb.clone()).collect();
        if fnv(&all) != hash {
            changed.push(format!("{world:?} {split:?}: {:#x}", fnv(&all)));
        }
    }
    assert!(changed.is_empty(), "{changed:#?}");
    let spec = spec(World::Charts, Split::Train);
    assert_eq!(row(&spec, 7, 3), row(&spec, 7, 3));
    assert_ne!(row(&spec, 7, 3), row(&spec, 8, 3));
    assert_ne!(row(&spec, 7, 3).facts, row(&spec, 7, 3 + (1 << 32)).facts);
}

#[test]
fn pictures_show_something_and_nothing_is_cut_off() {
    for &world in World::ALL {
        for split in SPLITS {
            for index in 0..60 {
                let row = row(&spec(world, split), 5, index);
                assert_eq!(row.images.len(), if world == World::Transformation { 2 } else { 1 });
                for drawing in pixels(&row) {
                    check_picture(&row.id, &drawing);
                }
            }
        }
    }
}

fn check_picture(id: &str, drawing: &Drawing) {
    let at = |x: u32, y: u32| &drawing.rgb[((y * 128 + x) * 3) as usize..][..3];
    let background = at(0, 0).to_vec();
    let painted = drawing.rgb.chunks(3).filter(|pixel| *pixel != background).count();
    assert!(painted > 300, "{id} shows only {painted} pixels");
    for i in 0..128 {
        for (x, y) in [(i, 0), (i, 127), (0, i), (127, i)] {
            assert_eq!(at(x, y), background, "{id} touches its edge at {x}, {y}");
        }
    }
}

#[test]
fn objects_neither_overlap_nor_shrink() {
    use foveate_tasks::counting::scene::CountingScene;
    use foveate_tasks::draws::Draws;
    for split in [Split::Train, Split::Ood] {
        for level in 1..=3 {
            for index in 0..200 {
                let mut draws = Draws::new(1, foveate_kernels::rng::Purpose::Test, 0, index);
                let scene = CountingScene::new(split, level, &mut draws);
                for (i, a) in scene.objects.iter().enumerate() {
                    assert!(a.radius * 2 >= 14);
                    for b in &scene.objects[i + 1..] {
                        let apart = (a.x - b.x).abs().max((a.y - b.y).abs());
                        assert!(apart > a.radius + b.radius, "{a:?} {b:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_primer_shows_one_picture_many_times_and_few_steps() {
    for &world in World::ALL {
        let spec = PrimerSpec { size: 64, ..PrimerSpec::new(world) };
        let all: Vec<Vec<Row>> = (0..300).map(|index| primer(&spec, 9, index)).collect();
        assert_eq!(all[5], primer(&spec, 9, 5));
        let mut several = 0;
        for rows in &all {
            assert_eq!(rows.len(), 8);
            let first = match &rows[0].images[0] {
                ImageData::Drawn(drawing) => drawing,
                other => panic!("{other:?}"),
            };
            for row in rows {
                assert!(matches!(&row.images[0], ImageData::Drawn(d) if std::sync::Arc::ptr_eq(d, first)));
                assert!(target(row).lines().last().unwrap().starts_with("Answer: "));
                let most = if world == World::Transformation { 150 } else { 80 };
                assert!(target(row).split_whitespace().count() < most);
                several += usize::from(row.meta["steps"].as_u64().unwrap() > 1);
                if let Some(solved) = solver::solve(&row.task, &row.facts, &row.question) {
                    let lettered = matches!(row.answer, Answer::Choice(_));
                    assert!(lettered || solved == row.answer.text(), "{} {}", row.facts, row.question);
                }
            }
            let ids: BTreeSet<&String> = rows.iter().map(|row| &row.id).collect();
            assert_eq!(ids.len(), rows.len());
        }
        let share = several as f64 / 2400.0;
        assert!((0.02..0.06).contains(&share), "{share}");
    }
}

#[test]
fn impossible_specs_are_refused_with_a_hint() {
    let good = spec(World::Charts, Split::Train);
    assert_eq!(good.check(), Ok(()));
    let cases = [
        (WorldSpec { levels: vec![], ..good.clone() }, WorldError::NoLevels),
        (WorldSpec { levels: vec![1, 4], ..good.clone() }, WorldError::UnknownLevel(4)),
        (WorldSpec { size: 8, ..good }, WorldError::Size(8)),
    ];
    for (spec, error) in cases {
        assert!(!error.hint().is_empty());
        assert_eq!(spec.check(), Err(error));
    }
}

#[test]
fn a_contact_sheet_takes_any_rows() {
    let mut rows: Vec<Row> = (0..3).map(|index| row(&spec(World::Charts, Split::Train), 5, index)).collect();
    rows[1].images = vec![ImageData::Path("absent.png".into()), rows[0].images[0].clone()];
    rows[2].images = vec![];
    let sheet = foveate_tasks::contact_sheet(&rows, 2);
    assert!(sheet.width > 500 && sheet.height > 400);
    assert_eq!(sheet.rgb.len(), (sheet.width * sheet.height * 3) as usize);
    assert!(foveate_tasks::contact_sheet(&[], 4).width > 0);
}
