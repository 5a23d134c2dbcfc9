//! Who works together: query rows that share ancestors in the forward pass, whole trees of segments in the backward
//! pass. Depends on the shapes alone, never on the number of threads.
//! Cost: negligible beside the products.

use super::{Heads, LANES};
use crate::segment::{Queries, Segment, ancestors};
use std::ops::Range;

/// Tiles that the backward pass works on together; every segment's tiles begin at a multiple.
pub(super) const GROUP: usize = 4;

// Lanes of a forward task: enough to pay for loading a block of keys, few enough to stay in the second-level cache.
const TASK_LANES: usize = 32 * LANES;

/// Some consecutive query rows of a family for one key/value head.
pub(super) struct Task {
    pub kv_head: usize,
    /// The family's common ancestors, root first: an index into [`Plan::chains`].
    pub chain: usize,
    /// Rows of the task by member: (tensor rows, segment, position of the first row).
    pub parts: Vec<Part>,
    /// Rows of all parts.
    pub num_rows: usize,
}

/// Consecutive query rows of one segment.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub first_row: usize,
    pub num_rows: usize,
    pub segment: usize,
    pub first_position: usize,
}

/// The forward pass, cut into tasks.
pub(super) struct Plan {
    pub chains: Vec<Vec<u32>>,
    pub tasks: Vec<Task>,
}

/// Groups consecutive queries with the same parent: they share tiles while they visit their ancestors.
pub(super) fn forward(heads: &Heads, queries: &[Queries], segments: &[Segment]) -> Plan {
    let rows_per_task = (TASK_LANES / heads.group()).max(1);
    let mut plan = Plan { chains: Vec::new(), tasks: Vec::new() };
    let mut at = 0;
    while at < queries.len() {
        let parent = segments[queries[at].segment as usize].parent;
        let mut end = at + 1;
        while end < queries.len() && parent.is_some() && segments[queries[end].segment as usize].parent == parent {
            end += 1;
        }
        plan.chains.push(ancestors(segments, queries[at].segment));
        let groups = cut(&queries[at..end], rows_per_task);
        for kv_head in 0..heads.num_kv_heads {
            for parts in &groups {
                let num_rows = parts.iter().map(|part| part.num_rows).sum();
                plan.tasks.push(Task { kv_head, chain: plan.chains.len() - 1, parts: parts.clone(), num_rows });
            }
        }
        at = end;
    }
    plan
}

/// Cuts a family's rows into groups of `rows_per_task`.
fn cut(family: &[Queries], rows_per_task: usize) -> Vec<Vec<Part>> {
    let mut groups = vec![Vec::new()];
    let mut room = rows_per_task;
    for queries in family {
        let mut done = 0;
        while done < queries.num_rows as usize {
            if room == 0 {
                groups.push(Vec::new());
                room = rows_per_task;
            }
            let num_rows = room.min(queries.num_rows as usize - done);
            let parts = groups.last_mut().expect("starts with one group");
            parts.push(Part {
                first_row: queries.first_row as usize + done,
                num_rows,
                segment: queries.segment as usize,
                first_position: queries.first_position as usize + done,
            });
            done += num_rows;
            room -= num_rows;
        }
    }
    groups.retain(|parts| !parts.is_empty());
    groups
}

/// A root segment and everything that descends from it; segments ascending, so parents stand before children.
pub(super) struct Tree {
    pub segments: Vec<TreeSegment>,
}

/// One segment of a tree, with the tiles of its query rows.
pub(super) struct TreeSegment {
    pub start: usize,
    pub len: usize,
    /// Tiles of the tree that hold this segment's query lanes; their number is a multiple of [`GROUP`].
    pub tiles: Range<usize>,
    /// Positions in [`Tree::segments`] of the segment itself and its descendants, ascending.
    pub seen_by: Vec<usize>,
}

/// Splits the segments of a training batch into trees; empty segments are dropped.
pub(super) fn trees(heads: &Heads, segments: &[Segment]) -> Vec<Tree> {
    let mut trees: Vec<Tree> = Vec::new();
    let mut tree_of: Vec<usize> = Vec::with_capacity(segments.len());
    // Position of each segment in its tree, if it is not empty.
    let mut place: Vec<Option<usize>> = Vec::with_capacity(segments.len());
    for (index, segment) in segments.iter().enumerate() {
        let tree = match segment.parent {
            Some(parent) => tree_of[parent as usize],
            None => {
                trees.push(Tree { segments: Vec::new() });
                trees.len() - 1
            }
        };
        tree_of.push(tree);
        if segment.len == 0 {
            place.push(None);
            continue;
        }
        let members = &mut trees[tree].segments;
        let here = members.len();
        place.push(Some(here));
        let first = members.last().map_or(0, |last| last.tiles.end);
        let tiles = (segment.len as usize * heads.group()).div_ceil(LANES * GROUP) * GROUP;
        members.push(TreeSegment {
            start: segment.start as usize,
            len: segment.len as usize,
            tiles: first..first + tiles,
            seen_by: vec![here],
        });
        for ancestor in ancestors(segments, index as u32) {
            if let Some(ancestor) = place[ancestor as usize] {
                members[ancestor].seen_by.push(here);
            }
        }
    }
    trees.retain(|tree| !tree.segments.is_empty());
    trees
}
