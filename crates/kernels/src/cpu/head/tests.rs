//! The head against f64, gradients against finite differences, and the bits that sampling and training share.

use super::*;
use crate::parallel::with_threads;
use crate::reference::head as reference;
use crate::rng::{Purpose, Stream};

fn numbers(len: usize, question: u32, size: f32) -> Vec<f32> {
    let stream = Stream::new(5, Purpose::Test, 1, question, 0);
    (0..len).map(|i| size * (2.0 * stream.uniform(i as u32) - 1.0)).collect()
}

/// A small problem with everything in it: three chunks, banned tokens, several temperatures.
struct Case {
    r: usize,
    d: usize,
    v: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    targets: Vec<u32>,
    inv_temperature: Vec<f32>,
    banned: Vec<u32>,
}

impl Case {
    fn new(r: usize, d: usize, v: usize) -> Self {
        let round =
            |x: Vec<f32>| -> Vec<f32> { x.into_iter().map(|x| <bf16 as Element>::from_f32(x).to_f32()).collect() };
        let stream = Stream::new(5, Purpose::Test, 2, 0, 0);
        let banned: Vec<u32> = [0, 7, 1023, 1024, 1500].into_iter().filter(|&id| id + 2 < v as u32).collect();
        Self {
            r,
            d,
            v,
            x: round(numbers(r * d, 1, 1.0)),
            w: round(numbers(v * d, 2, 1.0)),
            targets: (0..r as u32)
                .map(|row| (stream.below(row, v as u64 as u32)).max(1))
                .map(|id| if banned.contains(&id) { id + 1 } else { id })
                .map(|id| if banned.contains(&id) { id + 1 } else { id })
                .collect(),
            inv_temperature: (0..r).map(|row| [1.0, 0.7, 1.3][row % 3]).collect(),
            banned,
        }
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    fn narrow(x: &[f32]) -> Vec<bf16> {
        x.iter().map(|&x| Element::from_f32(x)).collect()
    }

    fn packed(&self) -> (PackedMatrix, PackedMatrix) {
        let mut forward = PackedMatrix::new(self.d, self.v);
        forward.pack_transposed(&self.w);
        let mut backward = PackedMatrix::new(self.v, self.d);
        backward.pack(&self.w);
        (forward, backward)
    }

    fn forward<E: Element>(&self, path: MatmulPath, x: &[E], weight: HeadWeight<'_>) -> [Vec<f32>; 3] {
        let r = x.len() / self.d;
        let mut out = [vec![0.0; r], vec![0.0; r], vec![0.0; r]];
        let [logprob, entropy, lse] = &mut out;
        let (targets, inv_temperature) = (&self.targets[..r], &self.inv_temperature[..r]);
        head_logprob_on(path, x, weight, self.v, targets, inv_temperature, &self.banned, logprob, entropy, lse, None);
        out
    }

    /// Fills `kept` in a forward pass.
    fn fill<E: Element>(&self, path: MatmulPath, x: &[E], weight: HeadWeight<'_>, kept: &mut Masses<'_>) {
        let mut out = [vec![0.0; self.r], vec![0.0; self.r], vec![0.0; self.r]];
        let [logprob, entropy, lse] = &mut out;
        let (targets, scales) = (&self.targets, &self.inv_temperature);
        head_logprob_on(path, x, weight, self.v, targets, scales, &self.banned, logprob, entropy, lse, Some(kept));
    }

    fn check_forward(&self, found: &[Vec<f32>; 3], what: &str) {
        let (x, w) = (Self::wide(&self.x), Self::wide(&self.w));
        for row in 0..self.r {
            let x = &x[row * self.d..][..self.d];
            let scale = f64::from(self.inv_temperature[row]);
            let expected = reference::head_row(x, &w, self.v, self.targets[row], scale, &self.banned);
            for (found, expected) in
                found.iter().map(|column| column[row]).zip([expected.logprob, expected.entropy, expected.lse])
            {
                assert!((f64::from(found) - expected).abs() < 1e-5, "{what} row {row}: {found} for {expected}");
            }
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn logprobs_and_entropies_match_f64() {
    for (r, d, v) in [(1, 16, 40), (5, 33, 1024), (17, 40, 2100), (3, 24, 2049), (2, 8, 1025)] {
        let case = Case::new(r, d, v);
        case.check_forward(&case.forward(MatmulPath::Portable, &case.x, HeadWeight::F32(&case.w)), "f32");
        let (forward, backward) = case.packed();
        let weight = HeadWeight::Bf16 { forward: &forward, backward: &backward };
        let x = Case::narrow(&case.x);
        for path in MatmulPath::available() {
            case.check_forward(&case.forward(path, &x, weight), &format!("{path:?} {r}x{d}x{v}"));
            // A mixed call converts the hidden states.
            case.check_forward(&case.forward(path, &case.x, weight), "f32 states, bf16 weight");
        }
        case.check_forward(
            &case.forward(MatmulPath::Portable, &x, HeadWeight::F32(&case.w)),
            "bf16 states, f32 weight",
        );
    }
}

#[test]
fn sampling_and_training_give_the_same_bits_at_any_row_count() {
    let case = Case::new(300, 40, 2049);
    let (forward, backward) = case.packed();
    let packed = HeadWeight::Bf16 { forward: &forward, backward: &backward };
    let x = Case::narrow(&case.x);
    check_bits(&case, MatmulPath::Portable, &case.x, HeadWeight::F32(&case.w));
    for path in MatmulPath::available() {
        check_bits(&case, path, &x, packed);
    }
}

fn check_bits<E: Element>(case: &Case, path: MatmulPath, x: &[E], weight: HeadWeight<'_>) {
    let all = case.forward(path, x, weight);
    for rows in [1, 2, 16, 257] {
        let some = case.forward(path, &x[..rows * case.d], weight);
        for (some, all) in some.iter().zip(&all) {
            assert_eq!(bits(some), bits(&all[..rows]), "{path:?} {rows} rows");
        }
    }
    for threads in [1, 5] {
        let again = with_threads(threads, || case.forward(path, x, weight));
        assert_eq!(bits(&again[0]), bits(&all[0]), "{path:?} {threads} threads");
    }
    for rows in [1, 3, 300] {
        let mut logits = vec![0.0; rows * case.v];
        let scalings: Vec<Scaling> = case.inv_temperature[..rows]
            .iter()
            .map(|inv_temperature| Scaling { inv_temperature: *inv_temperature, banned: &case.banned })
            .collect();
        let statistics = head_logits_on(path, &x[..rows * case.d], weight, case.v, &scalings, &mut logits);
        for row in 0..rows {
            let logits = &logits[row * case.v..][..case.v];
            let (logprob, entropy) = statistics[row].logprob(logits, case.targets[row]);
            let again = RowStatistics::new(logits, scalings[row]);
            for uniform in [0.0, 0.3, 0.999_999] {
                assert_eq!(statistics[row].draw(logits, uniform), again.draw(logits, uniform));
            }
            assert_eq!(logprob.to_bits(), all[0][row].to_bits(), "{path:?} logprob of row {row} of {rows}");
            assert_eq!(entropy.to_bits(), all[1][row].to_bits(), "{path:?} entropy of row {row} of {rows}");
        }
    }
}

/// A draw is the inverse of the cumulative distribution, whose borders are computed in f64 here.
#[test]
fn draws_follow_the_cumulative_distribution() {
    let logits: Vec<f32> = numbers(2500, 9, 4.0);
    let banned = [0u32, 5, 1024, 2499];
    let statistics = RowStatistics::new(&logits, Scaling { inv_temperature: 0.8, banned: &banned });
    let mass = |id: usize| if banned.contains(&(id as u32)) { 0.0 } else { (f64::from(logits[id]) * 0.8).exp() };
    let total: f64 = (0..2500).map(mass).sum();
    let mut below = 0.0;
    for id in 0..2500 {
        let share = mass(id) / total;
        if share > 0.0 {
            // Away from the borders by more than rounding moves them.
            for uniform in [below + 0.02 * share, below + 0.5 * share, below + 0.98 * share] {
                assert_eq!(statistics.draw(&logits, uniform), id as u32, "at {uniform}");
            }
        }
        below += share;
    }
    assert_eq!((statistics.draw(&logits, 0.0), statistics.draw(&logits, 1.0)), (1, 2498));
    // All mass in one token of the last chunk; nothing at all; nothing that is a number.
    let mut one = vec![f32::NEG_INFINITY; 2500];
    one[2400] = 1.0;
    let of =
        |logits: &[f32]| RowStatistics::new(logits, Scaling { inv_temperature: 1.0, banned: &[] }).draw(logits, 0.7);
    assert_eq!(of(&one), 2400);
    for hostile in [f32::NEG_INFINITY, f32::INFINITY, f32::NAN] {
        assert!(of(&[hostile; 1500]) < 1500);
    }
}

#[test]
fn reference_gradients_match_finite_differences() {
    let (d, v, target, scale, banned) = (6, 9, 4u32, 0.8, [2u32]);
    let x = Case::wide(&numbers(d, 3, 1.0));
    let w = Case::wide(&numbers(v * d, 4, 1.0));
    let (by_logprob, by_entropy) = (0.7, -0.4);
    let loss = |x: &[f64]| {
        let row = reference::head_row(x, &w, v, target, scale, &banned);
        by_logprob * row.logprob + by_entropy * row.entropy
    };
    let dz = reference::head_row_backward(&x, &w, v, target, scale, &banned, by_logprob, by_entropy);
    for i in 0..d {
        let analytic: f64 = (0..v).map(|token| dz[token] * w[token * d + i]).sum();
        let (mut up, mut down) = (x.clone(), x.clone());
        up[i] += 1e-5;
        down[i] -= 1e-5;
        let numeric = (loss(&up) - loss(&down)) / 2e-5;
        assert!((analytic - numeric).abs() < 1e-8, "{analytic} for {numeric}");
    }
}

fn check_backward<E: Element>(
    case: &Case,
    path: MatmulPath,
    x: &[E],
    weight: HeadWeight<'_>,
    size_by_entropy: f32,
    tolerance: f64,
) {
    let (r, d, v) = (case.r, case.d, case.v);
    let [_, entropy, lse] = case.forward(path, x, weight);
    let (by_logprob, by_entropy) = (numbers(r, 6, 1.0), numbers(r, 7, size_by_entropy));
    let rows = RowData {
        first: 0,
        kept: None,
        targets: &case.targets,
        inv_temperature: &case.inv_temperature,
        banned: &case.banned,
        lse: &lse,
        entropy: &entropy,
        by_logprob: &by_logprob,
        by_entropy: &by_entropy,
    };
    let run = || {
        let mut dx = vec![E::from_f32(f32::NAN); r * d];
        let mut dw = vec![0.5f32; v * d];
        head_logprob_backward_on(path, x, weight, v, &rows, &mut dx, Some((&mut dw, false)));
        let mut fresh = vec![f32::NAN; v * d];
        head_logprob_backward_on(path, x, weight, v, &rows, &mut dx, Some((&mut fresh, true)));
        for (fresh, dw) in fresh.iter().zip(&dw) {
            assert!((fresh + 0.5 - dw).abs() < 1e-4, "{fresh} and {dw}");
        }
        (dx, dw)
    };
    let (dx, dw) = run();
    let (wide_x, wide_w) = (Case::wide(&case.x), Case::wide(&case.w));
    let mut expected_dw = vec![0.5f64; v * d];
    for row in 0..r {
        let x = &wide_x[row * d..][..d];
        let dz = reference::head_row_backward(
            x,
            &wide_w,
            v,
            case.targets[row],
            f64::from(case.inv_temperature[row]),
            &case.banned,
            f64::from(by_logprob[row]),
            f64::from(by_entropy[row]),
        );
        for i in 0..d {
            let expected: f64 = (0..v).map(|token| dz[token] * wide_w[token * d + i]).sum();
            let found = f64::from(dx[row * d + i].to_f32());
            assert!((found - expected).abs() < tolerance, "{path:?} dx[{row}, {i}]: {found} for {expected}");
            for token in 0..v {
                expected_dw[token * d + i] += dz[token] * x[i];
            }
        }
    }
    for (index, (found, expected)) in dw.iter().zip(&expected_dw).enumerate() {
        assert!((f64::from(*found) - expected).abs() < tolerance, "{path:?} dw[{index}]: {found} for {expected}");
    }
    for threads in [1, 5] {
        let (dx_again, dw_again) = with_threads(threads, run);
        assert_eq!(dx_again, dx, "{path:?} {threads} threads");
        assert_eq!(bits(&dw_again), bits(&dw), "{path:?} {threads} threads");
    }
    // Without a weight gradient the rest is the same.
    let mut alone = vec![E::from_f32(f32::NAN); r * d];
    head_logprob_backward_on(path, x, weight, v, &rows, &mut alone, None);
    assert_eq!(alone, dx);
}

#[test]
fn gradients_match_f64_on_every_path() {
    for (r, d, v) in [(1, 16, 40), (19, 33, 1030), (5, 24, 3100)] {
        let case = Case::new(r, d, v);
        check_backward(&case, MatmulPath::Portable, &case.x, HeadWeight::F32(&case.w), 0.5, 2e-5);
        let (forward, backward) = case.packed();
        let weight = HeadWeight::Bf16 { forward: &forward, backward: &backward };
        for path in MatmulPath::available() {
            check_backward(&case, path, &Case::narrow(&case.x), weight, 0.5, 2e-2);
            check_backward(&case, path, &Case::narrow(&case.x), weight, 0.0, 2e-2);
        }
        check_backward(&case, MatmulPath::Portable, &case.x, HeadWeight::F32(&case.w), 0.0, 2e-5);
    }
}

fn check_kept<E: Element>(
    case: &Case,
    x: &[E],
    weight: HeadWeight<'_>,
    wrap: impl for<'a> Fn(&'a mut [E]) -> MassValues<'a>,
) {
    let (r, d, v, path) = (case.r, case.d, case.v, matmul_path());
    let [_, entropy, lse] = case.forward(path, x, weight);
    let by_logprob = numbers(r, 6, 1.0);
    // No derivative by the entropy, or one in some rows.
    for every in [usize::MAX, 140] {
        let by_entropy: Vec<f32> = (0..r).map(|row| if (row + 1) % every == 0 { 0.3 } else { 0.0 }).collect();
        let gradients = |kept: Option<&Masses<'_>>| {
            let (targets, inv_temperature, banned) = (&case.targets, &case.inv_temperature, &case.banned);
            let (mut dx, mut dw) = (vec![E::from_f32(f32::NAN); r * d], vec![f32::NAN; v * d]);
            let (lse, entropy, by_logprob, by_entropy) = (&lse, &entropy, &by_logprob, &by_entropy);
            let rows =
                RowData { first: 0, targets, inv_temperature, banned, lse, entropy, by_logprob, by_entropy, kept };
            head_logprob_backward_on(path, x, weight, v, &rows, &mut dx, Some((&mut dw, true)));
            (dx, bits(&dw))
        };
        let again = gradients(None);
        for rows in [r, r.min(200), 0] {
            let (num_values, num_maxima) = Masses::lens(rows, v);
            let mut values = vec![E::from_f32(f32::NAN); num_values];
            let mut maxima = vec![f32::NAN; num_maxima];
            case.fill(path, x, weight, &mut Masses::new(v, wrap(&mut values), &mut maxima));
            // A banned token has no mass, whatever its logit.
            for (row, id) in (0..rows).flat_map(|row| case.banned.iter().map(move |id| (row, *id as usize))) {
                assert_eq!(values[row * v.next_multiple_of(32) + id], E::from_f32(0.0), "token {id} of row {row}");
            }
            let kept = Masses::new(v, wrap(&mut values), &mut maxima);
            assert!(again == gradients(Some(&kept)), "{} {rows} of {r} rows", E::NAME);
        }
    }
}

#[test]
fn kept_masses_give_the_bits_of_computing_again() {
    for (r, d, v) in [(1, 16, 40), (150, 33, 1030), (300, 24, 2100), (530, 8, 1050)] {
        let case = Case::new(r, d, v);
        let (forward, backward) = case.packed();
        let weight = HeadWeight::Bf16 { forward: &forward, backward: &backward };
        check_kept(&case, &Case::narrow(&case.x), weight, |values| MassValues::Bf16(values));
        check_kept(&case, &case.x, HeadWeight::F32(&case.w), |values| MassValues::F32(values));
    }
}

#[test]
fn a_certain_token_has_entropy_zero_and_a_banned_one_no_probability() {
    let logprob_from_logits = |logits: &[f32], target, inv_temperature, banned: &[u32]| {
        RowStatistics::new(logits, Scaling { inv_temperature, banned }).logprob(logits, target)
    };
    let mut logits = vec![-100.0f32; 1500];
    logits[1200] = 100.0;
    let (logprob, entropy) = logprob_from_logits(&logits, 1200, 1.0, &[]);
    assert_eq!((logprob, entropy), (0.0, 0.0));
    // All but two tokens banned, the two equally likely.
    let banned: Vec<u32> = (0..1500).filter(|&id| id != 3 && id != 1400).collect();
    let (logprob, entropy) = logprob_from_logits(&vec![1.0; 1500], 3, 1.0, &banned);
    assert!((logprob + 2f32.ln()).abs() < 1e-6 && (entropy - 2f32.ln()).abs() < 1e-6, "{logprob} {entropy}");
    let (logprob, entropy) = logprob_from_logits(&vec![1.0; 1500], 4, 1.0, &banned);
    assert_eq!(logprob, f32::NEG_INFINITY);
    assert!((entropy - 2f32.ln()).abs() < 1e-6);
    // Not a number stays visible.
    logits[0] = f32::NAN;
    let (logprob, entropy) = logprob_from_logits(&logits, 1200, 1.0, &[]);
    assert!(logprob.is_nan() && entropy.is_nan());
}
