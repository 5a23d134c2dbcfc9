//! Rotary positions of packed rows: one axis for text, three (time, height, width) where pictures lie on a grid.
//! Knows tokens, segments and grids; knows no frequencies. Cost: one pass over the rows of a batch.
//!
//! Multi-axis rotary (Qwen2-VL, Wang et al. 2024, section 2.1): text counts up on all three axes at once; a picture
//! that begins at `p` has time `p`, row `p + y` and column `p + x`; the text after it goes on at `p + max(h, w)`. A
//! picture of `h * w` tokens thus takes fewer positions than tokens, and so everything after it, sampled tokens too,
//! lies a fixed distance before its place in the text.

use foveate_kernels::cpu::rope::RopeTable;
use foveate_kernels::segment::Segment;

/// Rotary frequencies and the axis that each of them follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// One for each pair of values in a head.
    pub inverse_frequencies: Vec<f32>,
    /// Axis of each: all 0 for plain text positions.
    pub axis_of: Vec<u8>,
}

impl Rope {
    /// Whether positions have three axes.
    pub fn has_axes(&self) -> bool {
        self.axis_of.iter().any(|axis| *axis > 0)
    }
}

/// Positions of some rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Positions {
    /// One column that serves all axes, or three.
    columns: Vec<Vec<u32>>,
}

impl Positions {
    /// The same position on every axis.
    pub fn text(positions: Vec<u32>) -> Self {
        Self { columns: vec![positions] }
    }

    /// Cosines and sines.
    pub fn table(&self, rope: &Rope, head_dim: usize) -> RopeTable {
        let last = self.columns.len() - 1;
        let columns: [&[u32]; 3] = [0, 1, 2].map(|axis: usize| self.columns[axis.min(last)].as_slice());
        RopeTable::axes(&columns, &rope.axis_of, head_dim, &rope.inverse_frequencies)
    }
}

/// Positions of packed rows whose places in their own texts are `places`, and for every segment how many positions the
/// pictures up to its end take less than tokens.
///
/// `grids` are rows and columns of features of each picture in order; the features of a picture lie in consecutive
/// rows of one segment, from the top left on.
pub fn around_pictures(
    places: &[u32],
    segments: &[Segment],
    placements: &[u32],
    grids: &[(u32, u32)],
) -> Result<(Positions, Vec<u32>), String> {
    let mut columns = vec![places.to_vec(); 3];
    let mut saved_by: Vec<u32> = Vec::with_capacity(segments.len());
    let mut placements = placements;
    let mut grids = grids.iter();
    for segment in segments {
        let mut saved = segment.parent.map_or(0, |parent| saved_by[parent as usize]);
        let (mut row, end) = (segment.start, segment.start + segment.len);
        while row < end {
            let start = places[row as usize].checked_sub(saved).ok_or("positions do not count up from 0")?;
            if placements.first() != Some(&row) {
                columns.iter_mut().for_each(|column| column[row as usize] = start);
                row += 1;
                continue;
            }
            let &(height, width) = grids.next().ok_or("more image placeholders than image features")?;
            let count = height * width;
            let consecutive = placements.iter().zip(row..end).take_while(|(at, row)| *at == row).count();
            if consecutive < count as usize {
                return Err(format!("the {count} features of a picture do not lie in consecutive rows"));
            }
            for feature in 0..count {
                let at = (row + feature) as usize;
                columns[0][at] = start;
                columns[1][at] = start + feature / width;
                columns[2][at] = start + feature % width;
            }
            placements = &placements[count as usize..];
            row += count;
            saved += count - height.max(width);
        }
        saved_by.push(saved);
    }
    match placements.first() {
        None => Ok((Positions { columns }, saved_by)),
        Some(row) => Err(format!("row {row} of an image feature lies in no segment, or out of order")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: u32, len: u32, parent: Option<u32>) -> Segment {
        Segment { start, len, parent }
    }

    #[test]
    fn text_goes_on_after_the_longer_side() {
        // Two words, a picture of 2 x 3, a word; an answer of two tokens; another prompt.
        let places: Vec<u32> = (0..9).chain([9, 10]).chain(0..2).collect();
        let segments = [segment(0, 9, None), segment(9, 2, Some(0)), segment(11, 2, None)];
        let placements: Vec<u32> = (2..8).collect();
        let (positions, saved) = around_pictures(&places, &segments, &placements, &[(2, 3)]).unwrap();
        assert_eq!(positions.columns[0], [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 0, 1]);
        assert_eq!(positions.columns[1], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 0, 1]);
        assert_eq!(positions.columns[2], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 0, 1]);
        assert_eq!(saved, [3, 3, 0]);
    }

    #[test]
    fn pictures_may_follow_each_other_directly() {
        let places: Vec<u32> = (0..5).collect();
        let (positions, saved) =
            around_pictures(&places, &[segment(0, 5, None)], &[0, 1, 2, 3], &[(1, 2), (2, 1)]).unwrap();
        assert_eq!(positions.columns[1], [0, 0, 2, 3, 4]);
        assert_eq!(positions.columns[2], [0, 1, 2, 2, 4]);
        assert_eq!(saved, [0]);
    }

    #[test]
    fn scattered_features_are_refused() {
        let places: Vec<u32> = (0..6).collect();
        let one = [segment(0, 6, None)];
        assert!(around_pictures(&places, &one, &[1, 3], &[(1, 2)]).is_err());
        assert!(around_pictures(&places, &one, &[1, 2], &[]).is_err());
        assert!(around_pictures(&places, &one, &[2, 1], &[(1, 1), (1, 1)]).is_err());
        // Cut by the end of a segment.
        assert!(around_pictures(&places, &[segment(0, 3, None), segment(3, 3, None)], &[2, 3], &[(1, 2)]).is_err());
    }
}
