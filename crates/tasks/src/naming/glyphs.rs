//! The things of the world `naming` as vector drawings on a grid of 24 x 24 units, in one table.
//! One colour is the object's own; the rest is dark or white. Cost: 3 to 10 shapes of SVG per thing.

use crate::canvas::Canvas;

/// A word for what several classes have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Train and id.
    Animal,
    /// Train and id.
    Vehicle,
    /// Train and id.
    Building,
    /// Ood, and single things in the primer's first glimpse.
    Fruit,
    /// Ood, and single things in the primer's first glimpse.
    Tool,
}

impl Family {
    /// All families.
    pub const ALL: &'static [Family] =
        &[Family::Animal, Family::Vehicle, Family::Building, Family::Fruit, Family::Tool];

    /// The word for one member.
    pub fn word(self) -> &'static str {
        ["animal", "vehicle", "building", "fruit", "tool"][self as usize]
    }

    /// Whether post-training shows this family; the others are left for `ood`.
    pub fn is_trained(self) -> bool {
        !matches!(self, Family::Fruit | Family::Tool)
    }
}

/// A kind of thing.
#[derive(Debug, PartialEq, Eq)]
pub struct Class {
    /// The word for it.
    pub name: &'static str,
    /// What it belongs to.
    pub family: Family,
    /// Parts from back to front, separated by spaces: a letter, then numbers 0 to 24 as digits of base 25.
    /// `f`, `d`, `w`: polygon in the own colour, dark, white. `b`, `k`, `h`: ellipse (centre, radii) in the same three.
    /// `p`, `l`: line in the own colour (thick), dark.
    parts: &'static str,
}

const fn class(family: Family, name: &'static str, parts: &'static str) -> Class {
    Class { name, family, parts }
}

/// Everything that can be shown.
pub static CLASSES: [Class; 30] = [
    class(Family::Animal, "fish", "fgcn5nj bac96 k5a11 l98ac9g"),
    class(Family::Animal, "bird", "l9j9n ldjdn f5c082f bbe75 bi844 dl7o9la kj711 l7cbgfd"),
    class(Family::Animal, "cat", "f4a41b7 fkak1d7 bce88 k9d12 kfd12 dbhdhci l0g6h logih"),
    class(Family::Animal, "rabbit", "b9727 bf727 bch66 kag11 keg11 dbjdjck"),
    class(Family::Animal, "snail", "l2d18 l5d68 f1m2d5d6iiiom bdb77 ldbfbfdbdb8h8hf"),
    class(Family::Animal, "turtle", "f6g9g9k6k ffgigikfk f4g1i5i ble33 kme11 f4g69c6i9kg l8fa9 lgfe9 l6cic"),
    class(Family::Vehicle, "car", "f1h1c6c97g7jcncnh wa8c8cc8c wd8f8icdc k7h33 h7h11 khh33 hhh11"),
    class(Family::Vehicle, "bus", "f15n5ni1i w38686c3c w88b8bc8c wd8g8gcdc wi8l8lcic k6i33 h6i11 khi33 hhi11"),
    class(Family::Vehicle, "truck", "f15e5ei1i ff9k9ndnifi wgajaldgd k6i33 h6i11 kii33 hii11"),
    class(Family::Vehicle, "boat", "lb2bg fc3kece wa54eae f2gmgim6m"),
    class(Family::Vehicle, "plane", "fc8ofohce0h0f fcjhmhncm7n7m bcc2b kc311"),
    class(Family::Vehicle, "bike", "b5h55 h5h33 bjh55 hjh33 p5h99h9jh p99chh9 lh9g6k6 l79b9"),
    class(Family::Building, "house", "f4bkbkm4m d1bc2nb wafefemam"),
    class(Family::Building, "tent", "fc3nl1l dc9gl8l lc3c0"),
    class(Family::Building, "castle", "f1m15353757557c9c9abcdcdafafchch5j5j7l7l5n5nm dagegemam"),
    class(Family::Building, "church", "f9dndnm9m d8db8l8od f29999m2m d1953a9 l5054 l3272 wfhihimfm"),
    class(Family::Building, "mill", "f8again6n d8ac6ga l41kh l4hk1 wbididnbn"),
    class(Family::Building, "bridge", "f08o8olklifcd6f4l0l l04o4 l2428 lc4c8 lm4m8"),
    class(Family::Fruit, "pear", "lc3e0 fc3f4g8jdjigmcn8m5i5d8894"),
    class(Family::Fruit, "banana", "f343b7ielljnghgbd7863 dljngoj d346341"),
    class(Family::Fruit, "cherry", "l6ed3 lhcd3 dd3j1i5 b6i55 bhh55 h4g11 hff11"),
    class(Family::Fruit, "lemon", "b3c32 blc32 bcc97 h9921"),
    class(Family::Fruit, "grape", "lc5c1 dc1i0h4 b6944 bc944 bi944 b9f44 bff44 bck33"),
    class(Family::Fruit, "melon", "f193f7jclhjlfn9 l3a5e9hcifhjela k8c11 kcd11 kgc11"),
    class(Family::Tool, "hammer", "wb8d8dnbn f42h2n5h848"),
    class(Family::Tool, "saw", "f77o9ocmfkcifgdegcdag8e d06768f1h h4b23"),
    class(Family::Tool, "rake", "pc0cf l4h4n l8h8n lchcn lghgn lkhkn f3flflh3h"),
    class(Family::Tool, "ladder", "l84g4 l89g9 l8ege l8jgj f50808n5n fg0j0jngn"),
    class(Family::Tool, "shovel", "l91f1 pc1cd f7dhdhicn7i lcecj"),
    class(Family::Tool, "wrench", "f719196f6f1h1j4j8fcfn9n9c5854 hck11"),
];

/// Units of the canvas per unit of the grid: a thing is 36 units wide and high.
const SCALE: f64 = 1.5;
const DARK: &str = "#202020";
const WHITE: &str = "#ffffff";

/// Draws a thing whose grid starts at (`left`, `top`).
pub fn draw(canvas: &mut Canvas, class: &Class, left: f64, top: f64, fill: &str) {
    for part in class.parts.split(' ') {
        let (kind, numbers) = part.split_at(1);
        let numbers: Vec<f64> = numbers.chars().filter_map(|c| c.to_digit(25)).map(f64::from).collect();
        let points: Vec<(f64, f64)> =
            numbers.chunks_exact(2).map(|pair| (left + pair[0] * SCALE, top + pair[1] * SCALE)).collect();
        let color = match kind {
            "f" | "b" | "p" => fill,
            "w" | "h" => WHITE,
            _ => DARK,
        };
        match kind {
            "p" => canvas.line(&points, color, 4.0, false),
            "l" => canvas.line(&points, color, 2.0, false),
            "b" | "k" | "h" => {
                let (wide, high) = (numbers[2] * SCALE, numbers[3] * SCALE);
                let at = |i: u32| f64::from(i) * std::f64::consts::PI / 12.0;
                let corner = |angle: f64| (points[0].0 + wide * angle.cos(), points[0].1 + high * angle.sin());
                canvas.polygon(&(0..24).map(at).map(corner).collect::<Vec<_>>(), color, DARK);
            }
            _ => canvas.polygon(&points, color, DARK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_can_be_read() {
        for class in &CLASSES {
            for part in class.parts.split(' ') {
                let (kind, numbers) = part.split_at(1);
                assert!("fdwbkhpl".contains(kind), "{}: {part}", class.name);
                assert!(numbers.chars().all(|c| c.is_digit(25)), "{}: {part}", class.name);
                let wanted = match kind {
                    "b" | "k" | "h" => numbers.len() == 4,
                    "p" | "l" => numbers.len() >= 4 && numbers.len() % 2 == 0,
                    _ => numbers.len() >= 6 && numbers.len() % 2 == 0,
                };
                assert!(wanted, "{}: {part}", class.name);
            }
        }
    }

    #[test]
    fn names_are_different_and_need_no_other_article_than_a() {
        for (i, class) in CLASSES.iter().enumerate() {
            assert!(CLASSES[i + 1..].iter().all(|other| other.name != class.name && other.parts != class.parts));
            assert!(!"aeiou".contains(&class.name[..1]), "{}", class.name);
        }
        for family in Family::ALL {
            assert_eq!(CLASSES.iter().filter(|class| class.family == *family).count(), 6);
        }
    }
}
