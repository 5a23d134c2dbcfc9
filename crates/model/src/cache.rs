//! Keys and values of tokens that were read before: one row a token and layer, in one store for many prompts and
//! answers. Segments say which rows belong together; they start at even rows. Each head has its rows one after the
//! other, so that a block of keys is one run of memory.
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
    /// Room for `num_rows` tokens, or one more, in `num_layers` layers of `key_width` values. On a GPU the heads of a
    /// row lie side by side, and there is a row to spare.
    pub fn new(
        arena: &mut Arena,
        device: Option<&Device>,
        kind: Kind,
        num_layers: usize,
        num_rows: usize,
        key_width: usize,
    ) -> Self {
        let mut take = || match device {
            Some(device) => Buffer::Device(device.take(number(kind), (num_rows + 1) * key_width)),
            None => arena.take(kind, num_rows.next_multiple_of(2) * key_width),
        };
        let layers = (0..num_layers).map(|_| RefCell::new((take(), take()))).collect();
        Self { layers, num_rows }
    }

    /// The row of a GPU's store that belongs to nobody: rows that only fill up a step write there.
    pub(crate) fn spare_row(&self) -> u32 {
        self.num_rows as u32
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
        same_type!((qkv, x), (&mut *keys, keys), (&mut *values, values) => {
            attention::store(heads, x, rows, keys, values)
        });
        let stride = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
        let (keys, values) = (&*keys, &*values);
        match (qkv, keys, values, out) {
            (Buffer::F32(x), Buffer::F32(keys), Buffer::F32(values), Buffer::F32(out)) => {
                let q = Rows { data: x, offset: 0, stride, head: heads.head_dim };
                attention::attention_stored(heads, queries, segments, q, keys, values, out, lse);
            }
            (Buffer::Bf16(x), Buffer::Bf16(keys), Buffer::Bf16(values), Buffer::Bf16(out)) => {
                let q = Rows { data: x, offset: 0, stride, head: heads.head_dim };
                attention::attention_stored(heads, queries, segments, q, keys, values, out, lse);
            }
            _ => panic!("operands of one op must have one element type"),
        }
    }
}
