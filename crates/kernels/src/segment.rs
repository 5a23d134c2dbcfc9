//! Who may look at whom: packed tokens in segments, and the queries that attention answers.
//! Plain numbers; knows nothing of models. Cost: none.

/// A run of consecutive rows that attend to each other. Rows also see all rows of the parent segment, and of its
/// parent in turn. Parents stand before their children in a slice of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// First row in the packed tokens (training) or in the key/value store (decoding).
    pub start: u32,
    /// Number of rows. While decoding: rows filled so far.
    pub len: u32,
    /// Index of the parent segment in the same slice.
    pub parent: Option<u32>,
}

/// A run of query rows that sit at consecutive positions of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queries {
    /// First row in the query and output tensors.
    pub first_row: u32,
    /// Number of rows.
    pub num_rows: u32,
    /// The segment that these rows belong to.
    pub segment: u32,
    /// Position of the first row inside its segment. Causal: row `i` sees own-segment rows `0..=first_position + i`.
    pub first_position: u32,
}

impl Queries {
    /// The queries of a training forward pass: every row of every segment.
    pub fn whole(segments: &[Segment]) -> Vec<Queries> {
        segments
            .iter()
            .enumerate()
            .filter(|(_, segment)| segment.len > 0)
            .map(|(index, segment)| Queries {
                first_row: segment.start,
                num_rows: segment.len,
                segment: index as u32,
                first_position: 0,
            })
            .collect()
    }
}

/// Ancestors of a segment, root first, the segment itself excluded.
pub fn ancestors(segments: &[Segment], index: u32) -> Vec<u32> {
    let mut chain = Vec::new();
    let mut at = segments[index as usize].parent;
    while let Some(parent) = at {
        chain.push(parent);
        at = segments[parent as usize].parent;
    }
    chain.reverse();
    chain
}
