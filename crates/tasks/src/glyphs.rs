//! A small stroke font: printable ASCII as polylines on a grid of 4 x 8 units, descenders two units lower.
//! At scale 1 a capital is 5 pixels wide and 9 high, strokes meet the pixel grid, and every digit keeps its pixels
//! wherever it stands, which is what a model of a few million parameters needs in order to learn to read.
//! No font file, no shaping, no system fonts. Cost: a table lookup per character.

/// Distance from one character to the next at scale 1.
pub const ADVANCE: f64 = 7.0;
/// Height of capitals and digits at scale 1, stroke included.
pub const HEIGHT: f64 = 9.0;

/// Width in pixels of a line of text at `scale`, without the gap behind its last character.
pub fn width(text: &str, scale: f64) -> f64 {
    let count = text.chars().count() as f64;
    if count == 0.0 { 0.0 } else { (count * ADVANCE - 2.0) * scale }
}

/// The strokes of a character: points in grid units, x to the right, y downwards, the baseline at 8.
/// A character outside the table is drawn as an empty box, so that a missing one is noticed.
pub fn strokes(character: char) -> Vec<Vec<(f64, f64)>> {
    let unit = |digit: u8| f64::from(if digit >= b'a' { digit - b'a' + 10 } else { digit - b'0' });
    table(character)
        .split_whitespace()
        .map(|stroke| stroke.as_bytes().chunks(2).map(|pair| (unit(pair[0]), unit(pair[1]))).collect())
        .collect()
}

/// Strokes separated by spaces; each point is two hexadecimal digits, x then y.
fn table(character: char) -> &'static str {
    match character {
        ' ' => "",
        '0' => "011030414738180701",
        '1' => "122028 1838",
        '2' => "0110304143070848",
        '3' => "0110304143344547381807 1434",
        '4' => "38300545",
        '5' => "400003334447381807",
        '6' => "413010010718384745341405",
        '7' => "00404118",
        '8' => "14030110304143341405071838474534",
        '9' => "071838474130100103143443",
        'A' => "0802204248 0545",
        'B' => "003041433404 344547380800",
        'C' => "4130100107183847",
        'D' => "00204246280800",
        'E' => "40000848 0434",
        'F' => "400008 0434",
        'G' => "41301001071838474424",
        'H' => "0008 4048 0444",
        'I' => "1030 2028 1838",
        'J' => "4047381807",
        'K' => "0008 400448",
        'L' => "000848",
        'M' => "0800234048",
        'N' => "08004840",
        'O' => "20424628060220",
        'P' => "08003041433404",
        'Q' => "20424628060220 2548",
        'R' => "08003041433404 2448",
        'S' => "413010010314344547381807",
        'T' => "0040 2028",
        'U' => "000718384740",
        'V' => "002840",
        'W' => "0018243840",
        'X' => "0048 4008",
        'Y' => "002440 2428",
        'Z' => "00400848",
        'a' => "033344481807061545",
        'b' => "00083847443303",
        'c' => "4433130407183847",
        'd' => "40481807041343",
        'e' => "064644331304071848",
        'f' => "40302128 0343",
        'g' => "43493a0a 431304071848",
        'h' => "0008 0413334448",
        'i' => "132328 1838 2021",
        'j' => "33392a0a 3031",
        'k' => "0008 4306 1548",
        'l' => "10202738",
        'm' => "0803132428 24334448",
        'n' => "0803 0413334448",
        'o' => "133344473818070413",
        'p' => "0a033344473808",
        'q' => "4a431304071848",
        'r' => "0308 052343",
        's' => "4313041536473808",
        't' => "21273848 0343",
        'u' => "0307183847 4348",
        'v' => "032843",
        'w' => "0318253843",
        'x' => "0348 4308",
        'y' => "0328 431a0a",
        'z' => "03430848",
        '.' => "2728",
        ',' => "2719",
        ':' => "2324 2728",
        ';' => "2324 2719",
        '?' => "01103041422425 2728",
        '!' => "2025 2728",
        '+' => "2226 0444",
        '-' => "0444",
        '=' => "0343 0545",
        '/' => "0840",
        '*' => "2226 0345 0543",
        '(' => "30222638",
        ')' => "10222618",
        '[' => "30202838",
        ']' => "10202818",
        '%' => "0840 0010110100 3747483837",
        '\'' => "2022",
        '"' => "1012 3032",
        '_' => "0949",
        '<' => "410447",
        '>' => "014407",
        '#' => "1018 3038 0343 0545",
        '&' => "4814022041340507183845",
        '\u{b0}' => "1030321210",
        _ => "0040480800",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stroke_is_a_line_inside_the_cell() {
        for character in (' '..='~').chain(['\u{b0}', '\u{2603}']) {
            for stroke in strokes(character) {
                assert!(stroke.len() >= 2, "{character:?} has a stroke of one point");
                assert!(stroke.iter().all(|&(x, y)| x <= 4.0 && y <= 10.0), "{character:?} leaves its cell");
            }
        }
    }

    #[test]
    fn digits_and_letters_differ_from_each_other() {
        let all: Vec<char> = ('0'..='9').chain('A'..='Z').chain('a'..='z').collect();
        for (i, &a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|&b| table(a) != table(b)), "{a} has a twin");
        }
    }
}
