//! What the newer worlds promise beyond what all worlds do: figures to scale, boxes that pixels fill, nothing that
//! fails to be drawn.

use foveate_kernels::rng::Purpose;
use foveate_tasks::draws::Draws;
use foveate_tasks::location::scene::{LocationScene, extent};
use foveate_tasks::structure::scene::{Figure, Kind};
use foveate_tasks::{
    Answer, Drawing, ImageData, PrimerSpec, Row, Split, World, WorldSpec, primer, row, row_without_images,
};

const SPLITS: [Split; 3] = [Split::Train, Split::Id, Split::Ood];

fn drawing(row: &Row) -> &Drawing {
    match &row.images[0] {
        ImageData::Drawn(drawing) => drawing,
        other => panic!("worlds draw, this is {other:?}"),
    }
}

/// Rendering 2000 rows of everything takes minutes; asking takes seconds, and a tenth is drawn as well, small.
#[test]
fn thousands_of_rows_can_be_made() {
    for &world in &World::ALL[2..] {
        for split in SPLITS {
            for level in 1..=3 {
                let spec = WorldSpec { levels: vec![level], size: 64, ..WorldSpec::new(world, split) };
                for index in 0..2000 {
                    let made = row_without_images(&spec, 21, index);
                    assert_eq!(made.level, level);
                    if index % 10 == 0 {
                        assert_eq!(row(&spec, 21, index).facts, made.facts);
                    }
                }
            }
        }
    }
}

#[test]
fn figures_are_drawn_to_scale() {
    for split in [Split::Train, Split::Ood] {
        for level in 0..=3 {
            for index in 0..300 {
                let figure = Figure::new(split, level, &mut Draws::new(3, Purpose::Test, 0, index));
                let between = |(i, j): (usize, usize)| {
                    let (a, b) = (figure.points[i], figure.points[j]);
                    (b.0 - a.0, b.1 - a.1)
                };
                for angle in &figure.angles {
                    let (a, b) = (between((angle.corner, angle.arms.0)), between((angle.corner, angle.arms.1)));
                    let cosine = (a.0 * b.0 + a.1 * b.1) / (a.0.hypot(a.1) * b.0.hypot(b.1));
                    let drawn = cosine.acos().to_degrees();
                    assert!((drawn - angle.degrees as f64).abs() < 0.01, "{drawn}: {}", figure.facts());
                }
                let ratios: Vec<f64> = figure
                    .sides
                    .iter()
                    .map(|side| {
                        let (x, y) = between(side.ends);
                        x.hypot(y) / side.length as f64
                    })
                    .collect();
                assert!(ratios.windows(2).all(|pair| (pair[0] / pair[1] - 1.0).abs() < 1e-6), "{}", figure.facts());
                if figure.kind == Kind::LegAcross {
                    let (from, corner, to) = figure.right.expect("a right triangle");
                    let (a, b) = (between((corner, from)), between((corner, to)));
                    assert!((a.0 * b.0 + a.1 * b.1).abs() < 1e-6);
                }
            }
        }
    }
}

/// What the pixels of `around` that are not background reach.
fn painted(drawing: &Drawing, around: [f64; 4]) -> [f64; 4] {
    let background = &drawing.rgb[..3];
    let mut found = [f64::MAX, f64::MAX, f64::MIN, f64::MIN];
    let range = |low: f64, high: f64, end: u32| (low.max(0.0) as u32)..(high as u32).min(end);
    for y in range(around[1], around[3], drawing.height) {
        for x in range(around[0], around[2], drawing.width) {
            let pixel = &drawing.rgb[((y * drawing.width + x) * 3) as usize..][..3];
            // A faint edge does not make a pixel part of the object.
            if pixel.iter().zip(background).any(|(a, b)| a.abs_diff(*b) > 64) {
                let (x, y) = (f64::from(x), f64::from(y));
                found = [found[0].min(x), found[1].min(y), found[2].max(x + 1.0), found[3].max(y + 1.0)];
            }
        }
    }
    found
}

/// Paints the box in the colour of the background.
fn erase(drawing: &mut Drawing, corners: [f64; 4]) {
    let background = drawing.rgb[..3].to_vec();
    let [left, top, right, bottom] = corners.map(|corner| corner.max(0.0) as u32);
    for y in top..bottom.min(drawing.height) {
        for x in left..right.min(drawing.width) {
            let start = ((y * drawing.width + x) * 3) as usize;
            drawing.rgb[start..start + 3].copy_from_slice(&background);
        }
    }
}

#[test]
fn boxes_are_what_the_pixels_fill_at_any_size() {
    for split in SPLITS {
        for (size, slack) in [(128, 1.0), (256, 2.0), (64, 1.0)] {
            for index in 0..40 {
                let row = row(&WorldSpec { size, ..WorldSpec::new(World::Location, split) }, 5, index);
                let Answer::Box(corners) = row.answer else { panic!("{:?}", row.answer) };
                let mut picture = drawing(&row).clone();
                let list = row.facts.split('[').skip(1).map(|part| part.split(']').next().expect("a closing bracket"));
                for text in list {
                    let said: Vec<f64> = text.split(", ").map(|number| number.parse().expect("a number")).collect();
                    let grown = [said[0] - 1.0, said[1] - 1.0, said[2] + 1.0, said[3] + 1.0];
                    let found = painted(&picture, grown);
                    let close = said.iter().zip(found).all(|(a, b)| (a - b).abs() <= slack);
                    assert!(close, "{}: {said:?} is said, {found:?} is seen", row.id);
                    erase(&mut picture, grown);
                }
                // Nothing is left that no box holds.
                let whole = [0.0, 0.0, f64::from(size), f64::from(size)];
                assert_eq!(painted(&picture, whole)[0], f64::MAX, "{}", row.id);
                let text = Answer::Box(corners).text();
                assert!(row.facts.contains(&text), "{}: {text}", row.id);
                assert!(row.rationale.contains(&row.answer.text()));
            }
        }
    }
}

#[test]
fn boxes_of_a_scene_are_apart() {
    for split in [Split::Train, Split::Ood] {
        for index in 0..300 {
            let scene = LocationScene::new(split, 3, &mut Draws::new(2, Purpose::Test, 0, index));
            let boxes: Vec<[f64; 4]> = scene.objects.iter().map(extent).collect();
            for (i, a) in boxes.iter().enumerate() {
                assert!(a[0] >= 1.0 && a[1] >= 1.0 && a[2] <= 127.0 && a[3] <= 127.0, "{a:?}");
                for b in &boxes[i + 1..] {
                    assert!(a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1], "{a:?} {b:?}");
                }
            }
        }
    }
}

#[test]
fn the_primer_begins_with_a_glimpse_of_little() {
    for &world in &World::ALL[2..] {
        let spec = PrimerSpec { levels: vec![0], multi_step_share: 0.0, ..PrimerSpec::new(world) };
        let mut answers = std::collections::BTreeSet::new();
        for index in 0..300 {
            let rows = primer(&PrimerSpec { size: 64, ..spec.clone() }, 4, index);
            assert!(rows.iter().all(|row| row.meta["steps"] == 1), "{:?}", rows[0].facts);
            answers.extend(rows.iter().map(|row| row.answer.text()));
        }
        if world == World::Naming {
            // Single things of all families: the words that post-training never shows are learnt here.
            assert!(["lemon", "wrench", "cat", "mill"].iter().all(|name| answers.contains(*name)), "{answers:?}");
        }
    }
}

#[test]
fn the_documentation_tells_the_functions_and_all_their_values() {
    use foveate_tasks::transformation::{questions::RULES, scene};
    assert!(include_str!("../../../docs/data.md").contains(RULES));
    let words = scene::Size::ALL.iter().map(|v| v.word()).chain(scene::Color::ALL.iter().map(|v| v.word()));
    let words = words.chain(scene::Material::ALL.iter().map(|v| v.word()));
    let words = words.chain(scene::Shape::ALL.iter().map(|v| v.word()));
    for word in words.chain(scene::Direction::ALL.iter().map(|v| v.word())) {
        assert!(RULES.contains(&format!(" {word}")), "{word}");
    }
}
