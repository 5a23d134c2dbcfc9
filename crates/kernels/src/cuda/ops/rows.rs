//! Moving rows: gathering, scattering, position tables, image features, rotation, folding, the store of keys and values.
//! The host makes the lists of who is added to whom, so that sums have one order and one owner.
//! Cost: one pass over what moves, and the lists.

use super::{NULL, flat, is_f32, same_number, typed, u32_of, u64_of};
use crate::cpu::interpolate::{self, Interpolation};
use crate::cuda::buffer::View;
use crate::cuda::engine::{Argument, Number};
use crate::cuda::sources::Module;

const MODULE: Module = Module::Rows;
/// Threads of a block that sums columns.
const COLUMNS: usize = 128;

/// `out[i] = x[rows[i]]`, rows of width `d`. Also the embedding.
pub fn gather_rows(x: View, rows: &[u32], d: usize, out: View) {
    assert!(rows.iter().all(|row| (*row as usize + 1) * d <= x.len()), "gather_rows: a row outside the tensor");
    gather_listed(x, x.device().upload(rows).all(), d, out);
}

/// [`gather_rows`] with the list on the device; that its rows are inside the tensor is the caller's promise.
pub fn gather_listed(x: View, rows: View, d: usize, out: View) {
    is_f32("gather_rows", &[x, out]);
    assert!(rows.number() == Number::U32 && out.len() == rows.len() * d, "gather_rows: output length");
    let arguments = [x.argument(), rows.argument(), u64_of(rows.len()), u32_of(d), out.argument()];
    flat(x.device(), MODULE, "gather_rows", out.len(), &arguments);
}

/// Weighted sums of rows: for each target, in order, which rows it gets and with what weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowSums {
    targets: Vec<u32>,
    starts: Vec<u32>,
    index: Vec<u32>,
    weight: Vec<f32>,
}

impl RowSums {
    /// `out[rows[i]]` gets row `i`, repeats in the order of `rows`.
    pub fn scatter(rows: &[u32]) -> RowSums {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_unstable_by_key(|&i| (rows[i as usize], i));
        let mut sums = RowSums::default();
        for (at, &i) in order.iter().enumerate() {
            if at == 0 || sums.targets.last() != Some(&rows[i as usize]) {
                sums.targets.push(rows[i as usize]);
                sums.starts.push(at as u32);
            }
        }
        sums.starts.push(rows.len() as u32);
        sums.index = order;
        sums
    }

    /// Row `i` of the result gets `table[rows[i]]`.
    fn table(rows: &[u32]) -> RowSums {
        let count = rows.len() as u32;
        RowSums { targets: Vec::new(), starts: (0..=count).collect(), index: rows.to_vec(), weight: Vec::new() }
    }

    /// A position table read at other places.
    fn interpolation(from: [usize; 2], to: [usize; 2], align: Interpolation) -> RowSums {
        let mut sums = RowSums { starts: vec![0], ..RowSums::default() };
        for place in interpolate::places(from, to, align) {
            for (row, weight) in place {
                sums.index.push(row as u32);
                sums.weight.push(weight);
            }
            sums.starts.push(sums.index.len() as u32);
        }
        sums
    }

    /// The gradient of an interpolation: every row of the table gets the places that read it, in their order.
    fn interpolation_backward(from: [usize; 2], to: [usize; 2], align: Interpolation) -> RowSums {
        let mut readers: Vec<Vec<(u32, f32)>> = vec![Vec::new(); from[0] * from[1]];
        for (place, rows) in interpolate::places(from, to, align).into_iter().enumerate() {
            for (row, weight) in rows {
                readers[row].push((place as u32, weight));
            }
        }
        let mut sums = RowSums { starts: vec![0], ..RowSums::default() };
        for (place, weight) in readers.iter().flat_map(|list| list.iter().copied()) {
            sums.index.push(place);
            sums.weight.push(weight);
        }
        for list in readers {
            sums.starts.push(sums.starts.last().expect("starts with one") + list.len() as u32);
        }
        sums
    }

    /// `out (+)= ` the sums of rows of `x`, rows of width `d`.
    fn run(&self, x: View, d: usize, add: bool, out: View) {
        is_f32("sums of rows", &[x, out]);
        let count = self.starts.len() - 1;
        if count == 0 {
            return;
        }
        let num_rows = x.len() / d;
        assert!(self.index.iter().all(|row| (*row as usize) < num_rows), "sums of rows: a row outside the tensor");
        let last = self.targets.iter().max().map_or(count, |row| *row as usize + 1);
        assert!(last * d <= out.len(), "sums of rows: a target outside the tensor");
        let device = x.device();
        let (starts, index) = (device.upload(&self.starts), device.upload(&self.index));
        let weight = (!self.weight.is_empty()).then(|| device.upload(&self.weight));
        let targets = (!self.targets.is_empty()).then(|| device.upload(&self.targets));
        let arguments = [
            x.argument(),
            starts.all().argument(),
            index.all().argument(),
            weight.as_ref().map_or(NULL, |weight| weight.all().argument()),
            targets.as_ref().map_or(NULL, |targets| targets.all().argument()),
            u32_of(d),
            Argument::U32(add.into()),
            out.argument(),
        ];
        device.launch(MODULE, "sum_rows", [count, d.div_ceil(COLUMNS)], COLUMNS as u32, 0, &arguments);
    }
}

/// `out_add[rows[i]] += dx_rows[i]`; duplicates add up in the order of `rows`. Also the embedding's gradient.
pub fn scatter_rows_add(dx_rows: View, rows: &[u32], d: usize, out_add: View) {
    assert_eq!(dx_rows.len(), rows.len() * d, "scatter_rows_add: input length");
    RowSums::scatter(rows).run(dx_rows, d, true, out_add);
}

/// `x[i] += table[rows[i]]` for rows of `d` values.
pub fn add_table_rows(rows: &[u32], table: View, d: usize, x: View) {
    assert_eq!(x.len(), rows.len() * d, "add_table_rows: lengths differ");
    RowSums::table(rows).run(table, d, true, x);
}

/// `out` `[to, d]` = `table` `[from, d]` read at other places.
pub fn interpolate_positions(table: View, from: [usize; 2], to: [usize; 2], d: usize, align: Interpolation, out: View) {
    assert!(table.len() == from[0] * from[1] * d && out.len() == to[0] * to[1] * d, "interpolate_positions: lengths");
    RowSums::interpolation(from, to, align).run(table, d, false, out);
}

/// `d_table += ` the gradient of `d_out`.
pub fn interpolate_positions_backward(
    d_out: View,
    from: [usize; 2],
    to: [usize; 2],
    d: usize,
    align: Interpolation,
    d_table: View,
) {
    assert!(d_table.len() == from[0] * from[1] * d && d_out.len() == to[0] * to[1] * d, "interpolate: lengths");
    RowSums::interpolation_backward(from, to, align).run(d_out, d, true, d_table);
}

/// `x[rows[i]] = features[i]`; no row occurs twice.
pub fn place_rows(features: View, rows: &[u32], d: usize, x: View) {
    moved("place_rows", features, rows, d, x);
}

/// Moves the gradient of the placed rows to `d_features` and zeroes it in `dx`.
pub fn place_rows_backward(dx: View, rows: &[u32], d: usize, d_features: View) {
    moved("take_rows", d_features, rows, d, dx);
}

fn moved(kernel: &str, features: View, rows: &[u32], d: usize, x: View) {
    is_f32(kernel, &[features, x]);
    assert_eq!(features.len(), rows.len() * d, "{kernel}: features length");
    assert!(rows.iter().all(|row| (*row as usize + 1) * d <= x.len()), "{kernel}: a row outside the tensor");
    let list = x.device().upload(rows);
    let (list, count) = (list.all().argument(), u64_of(rows.len()));
    let arguments = match kernel {
        "place_rows" => [features.argument(), list, count, u32_of(d), x.argument()],
        _ => [x.argument(), list, count, u32_of(d), features.argument()],
    };
    flat(x.device(), MODULE, kernel, features.len(), &arguments);
}

/// Rotates the first `num_heads` heads of each row of `x` `[T, width]` in place by `cos` and `sin` `[T, half]`;
/// `inverse` turns back.
pub fn rope(
    x: View,
    width: usize,
    num_heads: usize,
    head_dim: usize,
    cos: View,
    sin: View,
    half: usize,
    inverse: bool,
) {
    is_f32("rope", &[cos, sin]);
    let rows = x.len() / width;
    assert!(cos.len() == rows * half && sin.len() == cos.len(), "rope: the table has another number of rows");
    assert!(num_heads * head_dim <= width && 2 * half <= head_dim, "rope: heads outside the row");
    let arguments = [
        x.argument(),
        u64_of(rows),
        u32_of(width),
        u32_of(num_heads),
        u32_of(head_dim),
        cos.argument(),
        sin.argument(),
        u32_of(half),
        Argument::F32(if inverse { -1.0 } else { 1.0 }),
    ];
    flat(x.device(), MODULE, &typed("rope", x.number()), rows * num_heads * half, &arguments);
}

/// Folds squares of `factor x factor` patches of images `[h, w, d]` into wide rows; `back` unfolds.
pub fn pixel_shuffle(from: View, h: usize, w: usize, d: usize, factor: usize, back: bool, to: View) {
    assert!(from.len() == to.len() && from.len().is_multiple_of(h * w * d), "pixel_shuffle: lengths differ");
    assert!(h.is_multiple_of(factor) && w.is_multiple_of(factor), "pixel_shuffle: {h}x{w} is no multiple of {factor}");
    let kernel = typed("pixel_shuffle", same_number("pixel_shuffle", &[from, to]));
    let arguments = [
        from.argument(),
        u64_of(from.len()),
        u32_of(h),
        u32_of(w),
        u32_of(d),
        u32_of(factor),
        Argument::U32(back.into()),
        to.argument(),
    ];
    flat(from.device(), MODULE, &kernel, from.len(), &arguments);
}

/// Keys and values of fused rows go to rows `places` of `keys` and `values` `[.., key_width]`.
pub fn store_rows(qkv: View, query_width: usize, key_width: usize, places: View, keys: View, values: View) {
    let number = same_number("store_rows", &[qkv, keys, values]);
    let rows = places.len();
    assert_eq!(qkv.len(), rows * (query_width + 2 * key_width), "store_rows: one place a row");
    let arguments = [
        qkv.argument(),
        u64_of(rows),
        u32_of(query_width),
        u32_of(key_width),
        places.argument(),
        keys.argument(),
        values.argument(),
    ];
    flat(qkv.device(), MODULE, &typed("store_rows", number), rows * key_width, &arguments);
}
