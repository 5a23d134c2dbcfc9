//! Attention over segments: against the reference, against itself in other arrangements (shared prefix and separate
//! rows, training and decoding), and in pools of several sizes. f32 and bf16.
//! Cost: a second or two.

mod support;

use foveate_kernels::cpu::attention::{
    Heads, Rows, attention, attention_backward, attention_stored, store as store_rows,
};
use foveate_kernels::cpu::rope::{RopeTable, rope};
use foveate_kernels::element::{Element, bf16};
use foveate_kernels::memory::Values;
use foveate_kernels::reference;
use foveate_kernels::reference::differences::finite_differences;
use foveate_kernels::segment::{Queries, Segment};
use support::{bits, check, dot, same_in_every_pool, values, wide};

fn heads(num_heads: usize, num_kv_heads: usize, head_dim: usize, causal: bool) -> Heads {
    Heads { num_heads, num_kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5), causal }
}

fn stride(heads: &Heads) -> usize {
    (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
}

/// Segments of the given lengths and parents, packed one after the other.
fn pack(shape: &[(u32, Option<u32>)]) -> Vec<Segment> {
    let mut start = 0;
    let segments = shape.iter().map(|&(len, parent)| {
        start += len;
        Segment { start: start - len, len, parent }
    });
    segments.collect()
}

fn num_rows(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.len as usize).sum()
}

/// Queries, keys and values inside fused rows.
fn views<'a, E>(heads: &Heads, qkv: &'a [E]) -> [Rows<'a, E>; 3] {
    [0, heads.num_heads, heads.num_heads + heads.num_kv_heads].map(|head| Rows {
        data: qkv,
        offset: head * heads.head_dim,
        stride: stride(heads),
        head: heads.head_dim,
    })
}

/// The training forward pass.
fn train<E: Element>(heads: &Heads, segments: &[Segment], qkv: &[E]) -> (Vec<E>, Vec<f32>) {
    let rows = qkv.len() / stride(heads);
    let mut out = vec![E::default(); rows * heads.num_heads * heads.head_dim];
    let mut lse = vec![0.0; rows * heads.num_heads];
    let [q, k, v] = views(heads, qkv);
    attention(heads, &Queries::whole(segments), segments, q, k, v, &mut out, &mut lse);
    (out, lse)
}

/// A chain of grandparents, empty and single rows, lengths around the block size, roots on their own.
fn awkward() -> Vec<Segment> {
    pack(&[
        (70, None),
        (1, Some(0)),
        (0, Some(0)),
        (9, Some(0)),
        (5, Some(3)),
        (66, Some(3)),
        (0, None),
        (3, Some(6)),
        (1, None),
        (64, None),
        (2, Some(4)),
        (17, Some(0)),
    ])
}

fn against_reference<E: Element>(heads: &Heads, segments: &[Segment]) {
    let rows = num_rows(segments);
    let qkv = values::<E>(1, rows * stride(heads));
    let d_out = values::<E>(2, rows * heads.num_heads * heads.head_dim);
    let (out, lse, d_qkv) = same_in_every_pool("attention", || {
        let (out, lse) = train(heads, segments, &qkv);
        let mut d_qkv = vec![E::from_f32(f32::NAN); qkv.len()];
        attention_backward(heads, segments, &qkv, &out, &lse, &d_out, None, &mut d_qkv);
        assert!(d_qkv.iter().all(|d| d.to_f32().is_finite()), "{heads:?}: a gradient is missing");
        (out, lse, d_qkv)
    });
    let (want, want_lse) = reference::attention::attention(heads, segments, &wide(&qkv));
    check(&format!("out of {heads:?}"), &out, &want, 2e-6);
    check(&format!("lse of {heads:?}"), &lse, &want_lse, 1e-6);
    let want = reference::attention::attention_backward(heads, segments, &wide(&qkv), &wide(&d_out));
    check(&format!("gradient of {heads:?}"), &d_qkv, &want, 4e-6);
}

/// The way back through rotations, done head by head as gradients are finished, gives the bits of a pass of its own;
/// also where the gradient is large enough to be written past the caches.
#[test]
fn rotations_on_the_way_back() {
    fn check_one<E: Element>(heads: &Heads, segments: &[Segment], half: usize) {
        let (rows, width) = (num_rows(segments), stride(heads));
        let (qkv, d_out) = (values::<E>(1, rows * width), values::<E>(2, rows * heads.num_heads * heads.head_dim));
        let (out, lse) = train(heads, segments, &qkv);
        let positions: Vec<u32> = (0..rows as u32).collect();
        let frequencies: Vec<f32> = (0..half).map(|pair| 0.5f32.powi(pair as i32)).collect();
        let table = RopeTable::one_axis(&positions, heads.head_dim, &frequencies);
        // Values begin on a line, as those of a model do.
        let (mut want, mut have) = (Values::zeroed(qkv.len()), Values::zeroed(qkv.len()));
        attention_backward(heads, segments, &qkv, &out, &lse, &d_out, None, &mut want);
        let turned = heads.num_heads + heads.num_kv_heads;
        rope(&mut want, width, 0, turned, heads.head_dim, &table, true);
        attention_backward(heads, segments, &qkv, &out, &lse, &d_out, Some(&table), &mut have);
        assert_eq!(bits(&have), bits(&want), "{heads:?}, {rows} rows");
    }
    check_one::<f32>(&heads(3, 1, 16, true), &awkward(), 8);
    check_one::<bf16>(&heads(4, 2, 40, false), &awkward(), 12);
    check_one::<bf16>(&heads(6, 2, 64, true), &awkward(), 32);
    check_one::<bf16>(&heads(9, 3, 64, true), &pack(&[(900, None), (300, Some(0)), (70, None)]), 32);
}

#[test]
fn equals_the_reference() {
    for (num_heads, num_kv_heads, head_dim) in [(3, 1, 16), (4, 4, 8), (2, 2, 72), (6, 2, 64), (7, 1, 24)] {
        for causal in [true, false] {
            against_reference::<f32>(&heads(num_heads, num_kv_heads, head_dim, causal), &awkward());
            against_reference::<bf16>(&heads(num_heads, num_kv_heads, head_dim, causal), &awkward());
        }
    }
    let small = pack(&[(5, None), (3, Some(0)), (20, None)]);
    for head_dim in [32, 40, 80, 96, 128, 256] {
        against_reference::<f32>(&heads(20, 1, head_dim, true), &small);
        against_reference::<bf16>(&heads(20, 1, head_dim, true), &small);
    }
    against_reference::<f32>(&heads(2, 1, 64, true), &[]);
    against_reference::<f32>(&heads(1, 1, 8, false), &pack(&[(300, None)]));
    against_reference::<bf16>(&heads(1, 1, 64, false), &pack(&[(300, None)]));
}

#[test]
fn the_reference_backward_equals_finite_differences() {
    let segments = pack(&[(3, None), (2, Some(0)), (1, Some(1)), (2, Some(0))]);
    for causal in [true, false] {
        let heads = heads(2, 1, 8, causal);
        let qkv = wide(&values::<f32>(3, 8 * stride(&heads)));
        let d_out = wide(&values::<f32>(4, 8 * 16));
        let have = reference::attention::attention_backward(&heads, &segments, &qkv, &d_out);
        let want =
            finite_differences(&qkv, |qkv| dot(&reference::attention::attention(&heads, &segments, qkv).0, &d_out));
        for (have, want) in have.iter().zip(&want) {
            assert!((have - want).abs() < 1e-8, "{have} {want}");
        }
    }
}

/// A question with its answers as children must equal the same rows written out once per answer.
#[test]
fn a_shared_prefix_equals_separate_rows() {
    let heads = heads(6, 2, 16, true);
    let (width, out_width) = (stride(&heads), 6 * 16);
    let (prefix, answers) = (75usize, [10usize, 1, 70]);
    let shared = pack(&[(75, None), (10, Some(0)), (1, Some(0)), (70, Some(0))]);
    let qkv = values::<f32>(5, num_rows(&shared) * width);
    let d_out = values::<f32>(6, num_rows(&shared) * out_width);
    let (out, lse) = train(&heads, &shared, &qkv);
    let mut d_qkv = vec![0f32; qkv.len()];
    attention_backward(&heads, &shared, &qkv, &out, &lse, &d_out, None, &mut d_qkv);

    // The prefix's own outputs take part once, in the first copy.
    let (mut qkv2, mut d_out2, mut lens, mut first) = (Vec::new(), Vec::new(), Vec::new(), prefix);
    for (index, answer) in answers.into_iter().enumerate() {
        qkv2.extend_from_slice(&qkv[..prefix * width]);
        qkv2.extend_from_slice(&qkv[first * width..(first + answer) * width]);
        let factor = if index == 0 { 1.0 } else { 0.0 };
        d_out2.extend(d_out[..prefix * out_width].iter().map(|d| d * factor));
        d_out2.extend_from_slice(&d_out[first * out_width..(first + answer) * out_width]);
        lens.push(((prefix + answer) as u32, None));
        first += answer;
    }
    let separate = pack(&lens);
    let (out2, lse2) = train(&heads, &separate, &qkv2);
    let mut d_qkv2 = vec![0f32; qkv2.len()];
    attention_backward(&heads, &separate, &qkv2, &out2, &lse2, &d_out2, None, &mut d_qkv2);

    let mut want_out = wide(&out2[..prefix * out_width]);
    let mut want_gradient = vec![0.0; prefix * width];
    let mut tail = Vec::new();
    let mut at = 0;
    for (index, answer) in answers.into_iter().enumerate() {
        assert!(index == 0 || out2[at * out_width..][..prefix * out_width] == out2[..prefix * out_width]);
        want_out.extend(wide(&out2[(at + prefix) * out_width..][..answer * out_width]));
        for (sum, part) in want_gradient.iter_mut().zip(&d_qkv2[at * width..]) {
            *sum += f64::from(*part);
        }
        tail.extend(wide(&d_qkv2[(at + prefix) * width..][..answer * width]));
        at += prefix + answer;
    }
    want_gradient.extend(tail);
    check("out", &out, &want_out, 1e-6);
    check("gradient", &d_qkv, &want_gradient, 2e-6);
}

/// Decodes a question and its answers against a store that grows, `step` rows at a time, and demands the bits of the
/// training forward pass. Rows that are not there yet are NaN: whoever looks at one is found out. Keys and values lie
/// in fused rows, or `stored` as decoding keeps them.
fn decoding<E: Element>(heads: &Heads, lens: &[u32], step: u32, stored: bool) {
    let shape: Vec<_> = lens.iter().enumerate().map(|(i, &len)| (len, (i > 0).then_some(0))).collect();
    let whole = pack(&shape);
    let (width, out_width) = (stride(heads), heads.num_heads * heads.head_dim);
    let qkv = values::<E>(7, num_rows(&whole) * width);
    let (want, want_lse) = train(heads, &whole, &qkv);

    // The store has keys and values only, in an order of its own, with gaps between the segments.
    let kv_width = 2 * heads.num_kv_heads * heads.head_dim;
    let mut segments: Vec<Segment> = Vec::new();
    let mut room = if stored { 2 } else { 3 };
    for segment in whole.iter().rev() {
        segments.push(Segment { start: room, len: 0, parent: segment.parent });
        room += segment.len + 5;
        room += if stored { room % 2 } else { 0 };
    }
    segments.reverse();
    let mut store = vec![E::from_f32(f32::NAN); room as usize * kv_width];
    let (mut keys, mut values) = (store[..store.len() / 2].to_vec(), store[..store.len() / 2].to_vec());
    let (mut out, mut lse) = (want.clone(), want_lse.clone());
    out.fill(E::from_f32(f32::NAN));
    lse.fill(f32::NAN);
    let most = *lens.iter().max().expect("there are segments");
    // The question in pieces of `step` rows, then all answers side by side.
    for (phase, members) in [(0, 0..1), (1, 1..lens.len())] {
        for position in (0..if phase == 0 { lens[0] } else { most }).step_by(step as usize) {
            let mut queries = Vec::new();
            for index in members.clone() {
                let rows = step.min(lens[index].saturating_sub(position));
                if rows == 0 {
                    continue;
                }
                let first_row = whole[index].start + position;
                queries.push(Queries { first_row, num_rows: rows, segment: index as u32, first_position: position });
                for row in 0..rows {
                    let from = &qkv[(first_row + row) as usize * width + out_width..][..kv_width];
                    store[(segments[index].start + position + row) as usize * kv_width..][..kv_width]
                        .copy_from_slice(from);
                }
                segments[index].len = position + rows;
            }
            let q = Rows { data: &qkv[..], offset: 0, stride: width, head: heads.head_dim };
            if stored {
                for query in &queries {
                    let (first, rows) = (query.first_row as usize, query.num_rows as usize);
                    let at = segments[query.segment as usize].start + query.first_position;
                    let places: Vec<u32> = (at..at + query.num_rows).collect();
                    store_rows(heads, &qkv[first * width..(first + rows) * width], &places, &mut keys, &mut values);
                }
                attention_stored(heads, &queries, &segments, q, &keys, &values, &mut out, &mut lse);
                continue;
            }
            let k = Rows { data: &store[..], offset: 0, stride: kv_width, head: heads.head_dim };
            let v = Rows { data: &store[..], offset: kv_width / 2, stride: kv_width, head: heads.head_dim };
            attention(heads, &queries, &segments, q, k, v, &mut out, &mut lse);
        }
    }
    assert_eq!(bits(&out), bits(&want), "{heads:?}: decoding differs from training");
    assert_eq!(bits(&lse), bits(&want_lse), "{heads:?}: log-sum-exp differs");
}

#[test]
fn decoding_gives_the_bits_of_training() {
    for (num_heads, num_kv_heads, head_dim) in [(3, 1, 64), (4, 2, 32), (8, 2, 96), (2, 2, 40), (20, 1, 8)] {
        let heads = heads(num_heads, num_kv_heads, head_dim, true);
        let all = [(&[70, 66, 1, 30, 5][..], 1), (&[1, 3], 1), (&[66, 67], 1), (&[130, 40, 40], 7)];
        for (lens, step) in all {
            for stored in [false, true] {
                decoding::<f32>(&heads, lens, step, stored);
                decoding::<bf16>(&heads, lens, step, stored);
            }
        }
    }
}

/// A query's answer does not depend on who else is in the batch.
#[test]
fn neighbours_do_not_matter() {
    fn run<E: Element>() {
        let heads = heads(6, 2, 32, true);
        let all = awkward();
        let qkv = values::<E>(8, num_rows(&all) * stride(&heads));
        let (out, _) = train(&heads, &all, &qkv);
        let width = 6 * 32;
        for (index, segment) in all.iter().enumerate() {
            // Every segment with its ancestors only, one query row at a time.
            for row in 0..segment.len {
                let queries = [Queries {
                    first_row: segment.start + row,
                    num_rows: 1,
                    segment: index as u32,
                    first_position: row,
                }];
                let mut alone = vec![E::default(); out.len()];
                let [q, k, v] = views(&heads, &qkv);
                attention(&heads, &queries, &all, q, k, v, &mut alone, &mut vec![0.0; out.len() / 32]);
                let at = (segment.start + row) as usize * width;
                assert_eq!(bits(&alone[at..at + width]), bits(&out[at..at + width]), "segment {index} row {row}");
            }
        }
    }
    run::<f32>();
    run::<bf16>();
}

#[test]
fn rows_outside_every_segment_get_no_gradient() {
    let heads = heads(2, 1, 8, true);
    let segments = [Segment { start: 2, len: 3, parent: None }];
    let qkv = values::<f32>(9, 7 * stride(&heads));
    let (out, lse) = train(&heads, &segments, &qkv);
    let mut d_qkv = vec![1f32; qkv.len()];
    attention_backward(&heads, &segments, &qkv, &out, &lse, &out, None, &mut d_qkv);
    assert!(d_qkv[..2 * stride(&heads)].iter().chain(&d_qkv[5 * stride(&heads)..]).all(|&d| d == 0.0));
}

#[test]
fn extreme_scores_stay_finite() {
    fn run<E: Element>() {
        let heads = heads(1, 1, 8, true);
        let segments = pack(&[(130, None)]);
        // Scores from -10^8 to 10^8: probabilities are 0 or 1.
        let qkv: Vec<E> = values::<E>(10, 130 * stride(&heads)).iter().map(|x| E::from_f32(x.to_f32() * 1e4)).collect();
        let (out, lse) = train(&heads, &segments, &qkv);
        assert!(out.iter().all(|x| x.to_f32().is_finite()) && lse.iter().all(|x| x.is_finite()));
        let mut d_qkv = vec![E::default(); qkv.len()];
        attention_backward(&heads, &segments, &qkv, &out, &lse, &out, None, &mut d_qkv);
        assert!(d_qkv.iter().all(|x| x.to_f32().is_finite()));
    }
    run::<f32>();
    run::<bf16>();
}
