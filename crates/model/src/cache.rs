//! Keys and values of tokens that were read before: one row a token and layer, in one store for many prompts and
//! answers. Segments say which rows belong together. Each head has its rows one after the other, so that a block of
//! keys is one run of memory.
//! Knows rows; knows no prompts. Cost: two rows of key width for each token and layer.

use std::cell::{Ref, RefCell};

use foveate_kernels::cpu::attention::{self, Heads, Rows};
use foveate_kernels::cuda::Device;
use foveate_kernels::segment::{Queries, Segment};

use crate::arena::{Arena, Buffer, Kind};
use crate::on_device::number;
use crate::tape::same_type;

/// The store. Rows are handed out by whoever decodes; a row is written once per layer, then only read.
pub struct KeyValueStore {
    layers: Vec<RefCell<(Buffer, Buffer)>>,
    num_rows: usize,
}

impl KeyValueStore {
    /// Room for `num_rows` tokens in `num_layers` layers of `key_width` values. On a GPU the heads of a row lie side by
    /// side.
    pub fn new(
        arena: &mut Arena,
        device: Option<&Device>,
        kind: Kind,
        num_layers: usize,
        num_rows: usize,
        key_width: usize,
    ) -> Self {
        let mut take = || match device {
            Some(device) => Buffer::Device(device.take(number(kind), num_rows * key_width)),
            None => arena.take(kind, num_rows * key_width),
        };
        let layers = (0..num_layers).map(|_| RefCell::new((take(), take()))).collect();
        Self { layers, num_rows }
    }

    /// Keys and values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> Ref<'_, (Buffer, Buffer)> {
        self.layers[layer].borrow()
    }

    /// Gives the memory back.
    pub fn release(self, arena: &mut Arena) {
        for layer in self.layers {
            let (keys, values) = layer.into_inner();
            arena.give(keys);
            arena.give(values);
        }
    }

    /// Writes the new rows' keys and values, then answers their queries. `qkv` is the fused `[T, (Hq + 2 Hkv) d]`.
    pub fn attend(
        &self,
        layer: usize,
        heads: &Heads,
        qkv: &Buffer,
        rows: &[u32],
        segments: &[Segment],
        queries: &[Queries],
        out: &mut Buffer,
        lse: &mut [f32],
    ) {
        let mut guard = self.layers[layer].borrow_mut();
        let (keys, values) = &mut *guard;
        let Heads { num_heads, num_kv_heads, head_dim, .. } = *heads;
        let (query_width, key_width) = (num_heads * head_dim, num_kv_heads * head_dim);
        let stride = query_width + 2 * key_width;
        let plane = self.num_rows * head_dim;
        same_type!((qkv, x), (&mut *keys, keys), (&mut *values, values) => {
            for (row, &stored) in x.chunks_exact(stride).zip(rows) {
                let (new_keys, new_values) = row[query_width..].split_at(key_width);
                for head in 0..num_kv_heads {
                    let at = head * plane + stored as usize * head_dim;
                    let from = head * head_dim..(head + 1) * head_dim;
                    keys[at..at + head_dim].copy_from_slice(&new_keys[from.clone()]);
                    values[at..at + head_dim].copy_from_slice(&new_values[from]);
                }
            }
        });
        match (qkv, &*keys, &*values, out) {
            (Buffer::F32(x), Buffer::F32(keys), Buffer::F32(values), Buffer::F32(out)) => attention::attention(
                heads,
                queries,
                segments,
                Rows { data: x, offset: 0, stride, head: head_dim },
                Rows { data: keys, offset: 0, stride: head_dim, head: plane },
                Rows { data: values, offset: 0, stride: head_dim, head: plane },
                out,
                lse,
            ),
            (Buffer::Bf16(x), Buffer::Bf16(keys), Buffer::Bf16(values), Buffer::Bf16(out)) => attention::attention(
                heads,
                queries,
                segments,
                Rows { data: x, offset: 0, stride, head: head_dim },
                Rows { data: keys, offset: 0, stride: head_dim, head: plane },
                Rows { data: values, offset: 0, stride: head_dim, head: plane },
                out,
                lse,
            ),
            _ => panic!("operands of one op must have one element type"),
        }
    }
}
