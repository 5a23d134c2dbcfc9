//! Products against f64, and the promise that bits depend neither on rows nor on threads, for every path of the machine.

use super::*;
use crate::memory::Values;
use crate::parallel::with_threads;
use crate::reference::matmul as reference;
use crate::rng::{Purpose, Stream};

fn numbers(len: usize, question: u32) -> Vec<f32> {
    let stream = Stream::new(11, Purpose::Test, 0, question, 0);
    (0..len).map(|i| 2.0 * stream.uniform(i as u32) - 1.0).collect()
}

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| Element::from_f32(x)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// For sums of k products of numbers in (-1, 1), rounded at each step in f32.
fn assert_close(found: &[f32], expected: &[f64], k: usize, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let tolerance = 3e-6 * (k as f64).sqrt() + 1e-6;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= tolerance, "{what} [{index}]: {found} for {expected}");
    }
}

const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 16, 32),
    (2, 17, 33),
    (15, 48, 31),
    (16, 32, 64),
    (17, 33, 100),
    (33, 70, 65),
    (100, 31, 576),
    (3, 513, 40),
    (300, 96, 96),
    (5, 64, 1000),
    (270, 40, 1100),
];

#[test]
fn bf16_products_match_f64_on_every_path() {
    for path in MatmulPath::available() {
        for (index, (m, n, k)) in SHAPES.into_iter().enumerate() {
            let what = format!("{path:?} {m}x{n}x{k}");
            let x = narrow(&numbers(m * k, index as u32));
            let w = narrow(&numbers(n * k, 100 + index as u32));
            let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
            let bias = numbers(n, 200);
            let expected = reference::matmul_nt(&x, m, &w, n, k);
            let with_bias: Vec<f64> = expected.iter().enumerate().map(|(i, y)| y + f64::from(bias[i % n])).collect();

            let mut packed = PackedMatrix::new(k, n);
            packed.pack_transposed(&wide);
            let mut out = vec![f32::NAN; m * n];
            matmul_bf16_on(path, &x, m, &packed, None, Output::F32(&mut out));
            assert_close(&out, &expected, k, &what);
            matmul_bf16_on(path, &x, m, &packed, Some(&bias), Output::F32(&mut out));
            assert_close(&out, &with_bias, k, &format!("{what} with bias"));
            let mut rounded = vec![bf16::NAN; m * n];
            matmul_bf16_on(path, &x, m, &packed, Some(&bias), Output::Bf16(&mut rounded));
            assert_eq!(rounded, narrow(&out), "{what} rounded");
            let mut added = vec![0.5; m * n];
            matmul_bf16_on(path, &x, m, &packed, Some(&bias), Output::F32Add(&mut added));
            assert_eq!(bits(&added), bits(&out.iter().map(|y| 0.5 + y).collect::<Vec<_>>()), "{what} added");

            let dy = narrow(&numbers(m * n, 300 + index as u32));
            let mut backward = PackedMatrix::new(n, k);
            backward.pack(&wide);
            let mut dx = vec![f32::NAN; m * k];
            matmul_bf16_on(path, &dy, m, &backward, None, Output::F32(&mut dx));
            assert_close(&dx, &reference::matmul_nn(&dy, m, &w, n, k), n, &format!("{what} dx"));

            let mut dw = vec![0.25; n * k];
            matmul_bf16_weight_gradient_on(path, &dy, &x, m, n, k, false, &mut dw);
            let fresh = reference::weight_gradient(&dy, &x, m, n, k);
            let expected: Vec<f64> = fresh.iter().map(|dw| dw + 0.25).collect();
            assert_close(&dw, &expected, m, &format!("{what} dw"));
            dw.fill(f32::NAN);
            matmul_bf16_weight_gradient_on(path, &dy, &x, m, n, k, true, &mut dw);
            assert_close(&dw, &fresh, m, &format!("{what} fresh dw"));
        }
    }
}

#[test]
fn the_amx_unit_sums_as_documented() {
    if !MatmulPath::available().contains(&MatmulPath::Amx) {
        eprintln!("skipped: this machine has no AMX");
        return;
    }
    for (m, n, k) in [(1, 33, 70), (40, 64, 1000)] {
        // Numbers of many magnitudes, subnormals among them.
        let spread = |x: Vec<f32>| -> Vec<f32> {
            x.iter()
                .enumerate()
                .map(|(i, x)| if i % 19 == 0 { x * 1e-39 } else { x * [1.0, 1e3, 1e-3][i % 3] })
                .collect()
        };
        let x = narrow(&spread(numbers(m * k, 1)));
        let w = spread(numbers(n * k, 2));
        let mut packed = PackedMatrix::new(k, n);
        packed.pack_transposed(&w);
        let mut out = vec![0.0; m * n];
        matmul_bf16_on(MatmulPath::Amx, &x, m, &packed, None, Output::F32(&mut out));
        assert_eq!(bits(&out), bits(&reference::amx_matmul_nt(&x, m, &narrow(&w), n, k)), "{m}x{n}x{k}");
    }
}

#[test]
fn long_contractions_of_weight_gradients_match_f64() {
    let (m, n, k) = (CONTRACTION + 70, 20, 36);
    let (dy, x) = (narrow(&numbers(m * n, 1)), narrow(&numbers(m * k, 2)));
    for path in MatmulPath::available() {
        let mut dw = vec![f32::NAN; n * k];
        matmul_bf16_weight_gradient_on(path, &dy, &x, m, n, k, true, &mut dw);
        assert_close(&dw, &reference::weight_gradient(&dy, &x, m, n, k), 4 * m, &format!("{path:?}"));
    }
}

#[test]
fn a_row_has_the_same_bits_for_any_number_of_rows_and_threads() {
    let (n, k) = (70, 840);
    let x = narrow(&numbers(600 * k, 5));
    let mut packed = PackedMatrix::new(k, n);
    packed.pack_transposed(&numbers(n * k, 6));
    for path in MatmulPath::available() {
        let run = |m: usize| {
            let mut out = vec![0.0; m * n];
            matmul_bf16_on(path, &x[..m * k], m, &packed, None, Output::F32(&mut out));
            bits(&out)
        };
        let all = run(600);
        for m in [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 64, 100, 255, 257, 511, 513] {
            assert_eq!(run(m), all[..m * n], "{path:?} m={m}");
        }
        for threads in [1, 2, 5] {
            assert_eq!(with_threads(threads, || run(600)), all, "{path:?} {threads} threads");
        }
        let gradient = |threads| {
            with_threads(threads, || {
                let mut dw = vec![0.0; n * n];
                matmul_bf16_weight_gradient_on(path, &x[..600 * n], &x[7..600 * n + 7], 600, n, n, false, &mut dw);
                bits(&dw)
            })
        };
        assert_eq!(gradient(1), gradient(2), "{path:?}");
        assert_eq!(gradient(1), gradient(5), "{path:?}");
    }
}

/// Large outputs that start on a line are written past the caches, and where there are steps enough under the products
/// of the next block; one element further nothing of that happens.
#[test]
fn large_outputs_have_the_same_bits_wherever_they_start() {
    // Rows of whole lines; blocks that are full, short and narrow; few steps of k, one slice of many, several slices.
    for (m, n, k) in [(520, 2080, 70), (557, 2080, 576), (600, 2064, 1300)] {
        let (x, w) = (narrow(&numbers(m * k, 1)), numbers(n * k, 2));
        let (base, bias) = (numbers(m * n, 3), numbers(n, 4));
        let mut packed = PackedMatrix::new(k, n);
        packed.pack_transposed(&w);
        let mut wide: Values<f32> = Values::zeroed(m * n + 16);
        let mut short: Values<bf16> = Values::zeroed(m * n + 32);
        for path in MatmulPath::available() {
            for bias in [None, Some(bias.as_slice())] {
                let mut run = |start: usize| {
                    let out = &mut wide[start..start + m * n];
                    matmul_bf16_on(path, &x, m, &packed, bias, Output::F32Onto { base: &base, out });
                    let onto = bits(out);
                    let out = &mut short[start..start + m * n];
                    matmul_bf16_on(path, &x, m, &packed, bias, Output::Bf16(out));
                    let rounded: Vec<u16> = out.iter().map(|value| value.to_bits()).collect();
                    (onto, rounded)
                };
                assert!(run(0) == run(1), "{path:?} {m}x{n}x{k}, bias {}", bias.is_some());
            }
        }
    }
    let (m, n, k) = (700, 1030, 576);
    let (dy, x) = (narrow(&numbers(m * n, 5)), narrow(&numbers(m * k, 6)));
    let mut wide: Values<f32> = Values::zeroed(n * k + 16);
    for path in MatmulPath::available() {
        let mut run = |start: usize| {
            let dw = &mut wide[start..start + n * k];
            dw.fill(f32::NAN);
            matmul_bf16_weight_gradient_on(path, &dy, &x, m, n, k, true, dw);
            bits(dw)
        };
        assert!(run(0) == run(1), "{path:?} dw");
    }
}

#[test]
fn f32_products_match_f64() {
    for (index, (m, n, k)) in SHAPES.into_iter().enumerate() {
        let what = format!("{m}x{n}x{k}");
        let (x, w, bias) = (numbers(m * k, index as u32), numbers(n * k, 50 + index as u32), numbers(n, 3));
        let expected: Vec<f64> =
            reference::matmul_nt(&x, m, &w, n, k).iter().enumerate().map(|(i, y)| y + f64::from(bias[i % n])).collect();
        let mut out = vec![f32::NAN; m * n];
        matmul_f32_nt(&x, m, &w, n, k, Some(&bias), false, &mut out);
        assert_close(&out, &expected, k, &what);
        matmul_f32_nt(&x, m, &w, n, k, None, true, &mut out);
        let twice: Vec<f64> = expected.iter().enumerate().map(|(i, y)| 2.0 * y - f64::from(bias[i % n])).collect();
        assert_close(&out, &twice, 4 * k, &format!("{what} added"));

        let dy = numbers(m * n, 70);
        let mut dx = vec![f32::NAN; m * k];
        matmul_f32_nn(&dy, m, &w, n, k, false, &mut dx);
        assert_close(&dx, &reference::matmul_nn(&dy, m, &w, n, k), n, &format!("{what} dx"));
        let mut dw = vec![0.25; n * k];
        matmul_f32_weight_gradient(&dy, &x, m, n, k, false, &mut dw);
        let fresh = reference::weight_gradient(&dy, &x, m, n, k);
        let expected: Vec<f64> = fresh.iter().map(|dw| dw + 0.25).collect();
        assert_close(&dw, &expected, m, &format!("{what} dw"));
        dw.fill(f32::NAN);
        matmul_f32_weight_gradient(&dy, &x, m, n, k, true, &mut dw);
        assert_close(&dw, &fresh, m, &format!("{what} fresh dw"));
    }
}

/// Guards the assumptions about the `gemm` crate that `float32.rs` lists.
#[test]
fn an_f32_row_has_the_same_bits_for_any_number_of_rows_and_threads() {
    let rows = 520;
    for (n, k) in [(1, 40), (2, 70), (16, 16), (33, 65), (64, 576), (70, 1300), (513, 40), (576, 64), (1100, 33)] {
        let (x, w) = (numbers(rows * k, 1), numbers(n * k, 2));
        let dy = numbers(rows * n, 3);
        let forward = |m: usize| {
            let mut out = vec![0.0; m * n];
            matmul_f32_nt(&x[..m * k], m, &w, n, k, None, false, &mut out);
            bits(&out)
        };
        let backward = |m: usize| {
            let mut dx = vec![0.0; m * k];
            matmul_f32_nn(&dy[..m * n], m, &w, n, k, false, &mut dx);
            bits(&dx)
        };
        let (y, dx) = (forward(rows), backward(rows));
        for m in (1..20).chain([24, 31, 32, 33, 48, 63, 64, 65, 100, 128, 255, 256, 257, 258, 300, 511, 512, 513]) {
            assert_eq!(forward(m), y[..m * n], "nt m={m} n={n} k={k}");
            assert_eq!(backward(m), dx[..m * k], "nn m={m} n={n} k={k}");
        }
        let gradient = || {
            let mut dw = vec![0.0; n * k];
            matmul_f32_weight_gradient(&dy, &x, rows, n, k, false, &mut dw);
            bits(&dw)
        };
        let dw = gradient();
        for threads in [1, 2, 5] {
            assert_eq!(with_threads(threads, || forward(rows)), y, "{threads} threads");
            assert_eq!(with_threads(threads, gradient), dw, "{threads} threads");
        }
    }
}

#[test]
fn bias_gradients_are_column_sums() {
    let (m, n) = (200, 37);
    let dy = numbers(m * n, 9);
    let mut db = vec![1.0; n];
    bias_gradient(&dy, m, n, &mut db);
    for (column, db) in db.iter().enumerate() {
        let expected: f64 = 1.0 + (0..m).map(|row| f64::from(dy[row * n + column])).sum::<f64>();
        assert!((f64::from(*db) - expected).abs() < 1e-5, "{db} for {expected}");
    }
    let one = with_threads(1, || {
        let mut db = vec![1.0; n];
        bias_gradient(&dy, m, n, &mut db);
        bits(&db)
    });
    assert_eq!(one, bits(&db));
}

#[test]
fn empty_products_do_nothing() {
    let packed = PackedMatrix::new(8, 4);
    matmul_bf16(&[], 0, &packed, None, Output::F32(&mut []));
    let mut dw = [1.0; 32];
    matmul_bf16_weight_gradient(&[], &[], 0, 4, 8, false, &mut dw);
    assert_eq!(dw, [1.0; 32]);
    matmul_bf16_weight_gradient(&[], &[], 0, 4, 8, true, &mut dw);
    assert_eq!(dw, [0.0; 32]);
    matmul_f32_nt(&[], 0, &[0.0; 32], 4, 8, None, false, &mut []);
    dw.fill(1.0);
    matmul_f32_weight_gradient(&[], &[], 0, 4, 8, false, &mut dw);
    assert_eq!(dw, [1.0; 32]);
    matmul_f32_weight_gradient(&[], &[], 0, 4, 8, true, &mut dw);
    assert_eq!(dw, [0.0; 32]);
}
