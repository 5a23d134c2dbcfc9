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
            let seen = seen(heads, segments, index, position);
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

/// Gradient of the fused rows, by the chain rule over explicit probabilities.
pub fn attention_backward(heads: &Heads, segments: &[Segment], qkv: &[f64], d_out: &[f64]) -> Vec<f64> {
    let Heads { num_heads, num_kv_heads, head_dim: d, .. } = *heads;
    let stride = (num_heads + 2 * num_kv_heads) * d;
    let scale = f64::from(heads.scale);
    let (out, lse) = attention(heads, segments, qkv);
    let mut d_qkv = vec![0.0; qkv.len()];
    for (index, segment) in segments.iter().enumerate() {
        for position in 0..segment.len {
            let row = (segment.start + position) as usize;
            for head in 0..num_heads {
                let kv_head = head / (num_heads / num_kv_heads);
                let q_at = row * stride + head * d;
                let d_out = &d_out[(row * num_heads + head) * d..][..d];
                let delta: f64 = out[(row * num_heads + head) * d..].iter().zip(d_out).map(|(a, b)| a * b).sum();
                for key in seen(heads, segments, index, position) {
                    let k_at = key as usize * stride + (num_heads + kv_head) * d;
                    let v_at = key as usize * stride + (num_heads + num_kv_heads + kv_head) * d;
                    let score: f64 = (0..d).map(|i| qkv[q_at + i] * qkv[k_at + i]).sum::<f64>() * scale;
                    let p = (score - lse[row * num_heads + head]).exp();
                    let dp: f64 = (0..d).map(|i| d_out[i] * qkv[v_at + i]).sum();
                    let ds = p * (dp - delta) * scale;
                    for i in 0..d {
                        d_qkv[q_at + i] += ds * qkv[k_at + i];
                        d_qkv[k_at + i] += ds * qkv[q_at + i];
                        d_qkv[v_at + i] += p * d_out[i];
                    }
                }
            }
        }
    }
    d_qkv
}

/// Rows that the query at `position` of segment `index` sees.
fn seen(heads: &Heads, segments: &[Segment], index: usize, position: u32) -> Vec<u32> {
    let mut seen = Vec::new();
    for ancestor in ancestors(segments, index as u32) {
        let ancestor = segments[ancestor as usize];
        seen.extend(ancestor.start..ancestor.start + ancestor.len);
    }
    let segment = segments[index];
    let own = if heads.causal { position + 1 } else { segment.len };
    seen.extend(segment.start..segment.start + own);
    seen
}
