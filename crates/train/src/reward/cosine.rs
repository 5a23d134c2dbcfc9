//! Partial credit for numbers (methods 4.2, 6.6): full inside a tolerance, none outside a wider one, a cosine between.
//! Source: Reason-RFT, arXiv 2503.20752. Knows no text. Cost: none.

/// Score of `answer` for `gold`, both tolerances relative to the gold. Published code gives 0 whenever the gold is 0;
/// here a gold of 0 asks for an answer within `abs_tol` of it.
pub fn score(answer: f64, gold: f64, inner: f64, outer: f64, abs_tol: f64) -> f64 {
    let distance = (answer - gold).abs();
    if gold == 0.0 {
        return f64::from(u8::from(distance <= abs_tol));
    }
    let (near, far) = (inner * gold.abs(), outer * gold.abs());
    if distance <= near {
        1.0
    } else if distance > far {
        0.0
    } else {
        0.5 * ((std::f64::consts::PI * (distance - near) / (far - near)).cos() + 1.0)
    }
}

/// The same with the published treatment of a gold of 0.
pub fn score_compat(answer: f64, gold: f64, inner: f64, outer: f64) -> f64 {
    if gold == 0.0 { 0.0 } else { score(answer, gold, inner, outer, 0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_cosine() {
        for (answer, want) in [
            (104.9, 1.0),
            (105.0, 1.0),
            (107.5, 0.933013),
            (110.0, 0.75),
            (112.5, 0.5),
            (115.0, 0.25),
            (120.0, 0.0),
            (120.1, 0.0),
        ] {
            assert!((score(answer, 100.0, 0.05, 0.20, 1e-9) - want).abs() < 1e-6, "{answer}");
        }
        assert_eq!(score_compat(0.0, 0.0, 0.05, 0.20), 0.0);
        assert_eq!(score(0.0, 0.0, 0.05, 0.20, 1e-9), 1.0);
        assert_eq!(score(1e-12, 0.0, 0.05, 0.20, 1e-9), 1.0);
        assert_eq!(score(-0.0, 0.0, 0.05, 0.20, 1e-9), 1.0);
        assert_eq!(score(1.0, 0.0, 0.05, 0.20, 1e-9), 0.0);
    }
}
