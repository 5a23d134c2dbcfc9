//! How keys and values wait for later queries: each head has its rows one after the other, keys as they are, values in
//! pairs of rows, element beside element, since that is how the matrix unit multiplies them where they lie. Segments
//! start at even rows.
//! Knows rows; knows neither segments nor layers. Cost: one pass over the new rows.

use super::Heads;
use crate::cpu::ask::ask_for;
use crate::cpu::shared::SharedMut;
use crate::element::Element;
use crate::isa::multiversion;
use crate::parallel::for_chunks;

/// Rows that are asked for beforehand.
const AHEAD: usize = 32;

impl Heads {
    /// Rows times width of a head's plane in a store.
    pub(super) fn check_store<E>(&self, keys: &[E], values: &[E]) -> usize {
        let plane = keys.len() / self.num_kv_heads;
        assert!(
            keys.len() == values.len()
                && keys.len() == plane * self.num_kv_heads
                && plane.is_multiple_of(2 * self.head_dim),
            "a store holds an even number of rows for every head"
        );
        plane
    }
}

/// Writes the keys and values of fused rows `[T, (Hq + 2 Hkv) d]` to rows `places[T]` of a store.
pub fn store<E: Element>(heads: &Heads, qkv: &[E], places: &[u32], keys: &mut [E], values: &mut [E]) {
    let d = heads.head_dim;
    let (plane, key_width) = (heads.check_store(keys, values), heads.num_kv_heads * d);
    let stride = heads.num_heads * d + 2 * key_width;
    assert_eq!(qkv.len(), places.len() * stride, "qkv is [T, (Hq + 2 Hkv) d]");
    let (keys, values) = (SharedMut::new(keys), SharedMut::new(values));
    // A plane belongs to one task, whatever the places are.
    for_chunks(2 * heads.num_kv_heads, 1, |task| {
        let (head, is_value) = (task.start / 2, task.start % 2 == 1);
        let offset = heads.num_heads * d + head * d + if is_value { key_width } else { 0 };
        // SAFETY: tasks have planes of their own.
        let plane = unsafe { if is_value { &values } else { &keys }.slice(head * plane, plane) };
        let new = qkv.chunks_exact(stride).map(|row| &row[offset..offset + d]);
        places[..AHEAD.min(places.len())].iter().for_each(|place| fetch(plane, *place as usize, d));
        for (index, (&place, new)) in places.iter().zip(new).enumerate() {
            if let Some(later) = places.get(index + AHEAD) {
                fetch(plane, *later as usize, d);
            }
            let place = place as usize;
            if is_value {
                put_beside(&mut plane[place / 2 * 2 * d..][..2 * d], place % 2, new);
            } else {
                plane[place * d..][..d].copy_from_slice(new);
            }
        }
    });
}

/// Asks for the pair of rows around `place`: places are scattered, and nobody has looked at them since the last token.
fn fetch<E>(plane: &[E], place: usize, d: usize) {
    ask_for(&plane[place / 2 * 2 * d..][..2 * d]);
}

multiversion! {
    /// Every second element, from the first or the second on.
    fn put_beside<E: Element>(pair: &mut [E], parity: usize, new: &[E]) {
        for (two, new) in pair.as_chunks_mut::<2>().0.iter_mut().zip(new) {
            *two = if parity == 0 { [*new, two[1]] } else { [two[0], *new] };
        }
    }
}
