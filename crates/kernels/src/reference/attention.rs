//! Attention over segments as a full softmax per query.
//! Knows the same segments as the fast path, walks them row by row. Cost: as slow as it looks.

use crate::cpu::attention::Heads;
use crate::segment::{Segment, ancestors};

/// Output `[T, num_heads * d]` and log-sum-exp `[T, num_heads]` for fused rows of queries, keys and values.
pub fn attention(heads: &Heads, segments: &[Segment], qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let Heads { num_heads, num_kv_heads, head_dim: d, .. } = *heads;
    let stride = (num_heads + 2 * num_kv_heads) * d;
    let rows = qkv.len() / stride;
    let (mut out, mut lse) = (vec![0.0; rows * num_heads * d], vec![0.0; rows * num_heads]);
    for (index, segment) in segments.iter().enumerate() {
        for position in 0..segment.len {
            let mut seen: Vec<u32> = ancestors(segments, index as u32)
                .iter()
                .flat_map(|&ancestor| {
                    let ancestor = segments[ancestor as usize];
                    ancestor.start..ancestor.start + ancestor.len
                })
                .collect();
            let own = if heads.causal { position + 1 } else { segment.len };
            seen.extend(segment.start..segment.start + own);
            let row = (segment.start + position) as usize;
            for head in 0..num_heads {
                let kv_head = head / (num_heads / num_kv_heads);
                let q = &qkv[row * stride + head * d..][..d];
                let scores: Vec<f64> = seen
                    .iter()
                    .map(|&key| {
                        let k = &qkv[key as usize * stride + (num_heads + kv_head) * d..][..d];
                        q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * f64::from(heads.scale)
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                lse[row * num_heads + head] = most + sum.ln();
                for (&key, score) in seen.iter().zip(&scores) {
                    let v = &qkv[key as usize * stride + (num_heads + num_kv_heads + kv_head) * d..][..d];
                    for (out, v) in out[(row * num_heads + head) * d..][..d].iter_mut().zip(v) {
                        *out += (score - most).exp() / sum * v;
                    }
                }
            }
        }
    }
    (out, lse)
}
