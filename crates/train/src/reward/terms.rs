//! Shaping terms that look at length, steps and repetition, never at what is right (methods 1.9, 4.3, 5.2).
//! Plain functions over numbers and text. Cost: one pass.

use std::collections::HashSet;

/// Soft over-long penalty (DAPO, arXiv 2503.14476): 0 up to `max_len - buffer` tokens, -1 at `max_len` and beyond.
pub fn overlong(num_tokens: usize, max_len: usize, buffer: usize) -> f32 {
    let limit = max_len.saturating_sub(buffer);
    if num_tokens <= limit {
        0.0
    } else if num_tokens > max_len || buffer == 0 {
        -1.0
    } else {
        (limit as f32 - num_tokens as f32) / buffer as f32
    }
}

/// Repetition penalty over word n-grams: `-scale * (1 - unique / total)`, 0 for texts with fewer than `n` words.
pub fn repetition(text: &str, n: usize, scale: f32) -> f32 {
    let words: Vec<&str> = text.split_whitespace().collect();
    if n == 0 || words.len() < n {
        return 0.0;
    }
    let total = words.len() - n + 1;
    let unique = words.windows(n).collect::<HashSet<_>>().len();
    -scale * (1.0 - unique as f32 / total as f32)
}

/// Group-relative length (Kimi k1.5, arXiv 2501.12599): the shortest earns 0.5, the longest -0.5; wrong answers at
/// most 0. All equal: 0. `known` rows only take part; the others get `None`.
pub fn relative_length(lengths: &[usize], correct: &[Option<bool>]) -> Vec<Option<f32>> {
    let known = || lengths.iter().zip(correct).filter(|(_, c)| c.is_some()).map(|(len, _)| *len);
    let (Some(min), Some(max)) = (known().min(), known().max()) else { return vec![None; lengths.len()] };
    lengths
        .iter()
        .zip(correct)
        .map(|(len, correct)| {
            let correct = (*correct)?;
            if min == max {
                return Some(0.0);
            }
            let share = 0.5 - (*len as f32 - min as f32) / (max - min) as f32;
            Some(if correct { share } else { share.min(0.0) })
        })
        .collect()
}

/// Reward for visible steps: `min(1, markers / 3)`. Markers: "Step 1:", "1." at the start of the text, bullets at the
/// start of a line, and First/Second/Next/Finally followed by a comma.
pub fn steps(text: &str) -> f32 {
    let mut markers = 0;
    for (at, _) in text.match_indices("Step ") {
        let rest = &text[at + "Step ".len()..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        markers += usize::from(digits > 0 && rest[digits..].starts_with(':'));
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    markers += usize::from(digits > 0 && text[digits..].starts_with('.'));
    markers += text.matches("\n-").count() + text.matches("\n*").count();
    for word in ["First,", "Second,", "Next,", "Finally,"] {
        let stand_alone = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        markers += text.match_indices(word).filter(|(at, _)| stand_alone(*at)).count();
    }
    (markers as f32 / 3.0).min(1.0)
}

/// Dynamic length reward of PCuRL (arXiv 2507.22607), paper form: rises as a cosine from `min` at 0 tokens to `max`
/// at the target and falls again behind it. Target: mean length of the group's correct answers, else `max_len`.
pub fn dynamic_length(num_tokens: usize, target: f64, min: f64, max: f64) -> f32 {
    let turn = std::f64::consts::PI * num_tokens as f64 / target.max(1.0);
    (min + 0.5 * (max - min) * (1.0 - turn.cos())) as f32
}

/// The released form of the dynamic length reward: wrong answers only, range -0.5 to 0, -0.5 from twice the target on;
/// in groups without a correct answer a fixed rise from -0.25 to 0 over 750 tokens and -0.25 from 4,096 on.
pub fn dynamic_length_compat(num_tokens: usize, correct: bool, mean_correct: Option<f64>) -> f32 {
    match mean_correct {
        _ if correct => 0.0,
        Some(target) if num_tokens as f64 >= 2.0 * target => -0.5,
        Some(target) => dynamic_length(num_tokens, target, -0.5, 0.0),
        None if num_tokens >= 4096 => -0.25,
        None if num_tokens >= 750 => 0.0,
        None => 0.5 * dynamic_length(num_tokens, 750.0, -0.5, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_overlong_and_repetition() {
        for (n, want) in [(80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (101, -1.0)] {
            assert_eq!(overlong(n, 100, 20), want, "{n}");
        }
        assert_eq!(overlong(101, 100, 0), -1.0);
        assert!((repetition("a b a b a b", 2, 1.0) + 0.6).abs() < 1e-6);
        assert_eq!(repetition("a", 2, 1.0), 0.0);
        assert_eq!(repetition("a b c", 0, 1.0), 0.0);
    }

    #[test]
    fn golden_relative_length() {
        let known = |c: [bool; 3]| c.map(Some).to_vec();
        assert_eq!(relative_length(&[100, 150, 200], &known([true; 3])), [Some(0.5), Some(0.0), Some(-0.5)]);
        assert_eq!(relative_length(&[100, 150, 200], &known([false; 3])), [Some(0.0), Some(0.0), Some(-0.5)]);
        assert_eq!(relative_length(&[7, 7], &[Some(true), Some(false)]), [Some(0.0), Some(0.0)]);
        assert_eq!(relative_length(&[7, 9, 8], &[Some(true), None, Some(true)]), [Some(0.5), None, Some(-0.5)]);
        assert_eq!(relative_length(&[], &[]), []);
    }

    #[test]
    fn golden_dynamic_length() {
        for (n, want) in [(0, -1.0), (25, -0.853553), (50, -0.5), (75, -0.146447), (100, 0.0), (150, -0.5)] {
            assert!((dynamic_length(n, 100.0, -1.0, 0.0) - want).abs() < 1e-6, "{n}");
        }
        assert_eq!(dynamic_length_compat(10, true, Some(100.0)), 0.0);
        assert_eq!(dynamic_length_compat(200, false, Some(100.0)), -0.5);
        assert_eq!(dynamic_length_compat(100, false, Some(100.0)), 0.0);
        assert_eq!(dynamic_length_compat(0, false, None), -0.25);
        assert_eq!(dynamic_length_compat(4096, false, None), -0.25);
        assert_eq!(dynamic_length_compat(1000, false, None), 0.0);
    }

    #[test]
    fn steps_are_counted() {
        assert_eq!(steps("Step 1: a Step 2: b"), 2.0 / 3.0);
        assert_eq!(steps("1. a\n- b\n* c\nFinally, d"), 1.0);
        assert_eq!(steps("The stepfirst, thing"), 0.0);
    }
}
