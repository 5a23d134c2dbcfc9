//! Who works together: query rows that share ancestors in the forward pass, whole trees of segments in the backward
//! pass. Depends on the shapes alone, never on the number of threads.
//! Cost: negligible beside the products.

use super::{Heads, LANES};
use crate::segment::{Queries, Segment, ancestors};
use std::ops::Range;

/// Tiles that the backward pass works on together; every segment's tiles begin at a multiple.
pub(super) const GROUP: usize = 8;

// Lanes of a forward task: enough to pay for loading a block of keys, few enough to stay in the second-level cache.
const TASK_LANES: usize = 32 * LANES;

/// Some consecutive query rows of a family for one key/value head.
#[derive(Clone)]
pub(super) struct Task {
    pub kv_head: usize,
    /// The family's common ancestors, root first, in [`Plan::ancestors`].
    chain: Range<usize>,
    /// Rows of the task by member, in [`Plan::parts`].
    parts: Range<usize>,
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

/// The forward pass, cut into tasks. Decoding makes one per layer and token, hence few allocations.
#[derive(Default)]
pub(super) struct Plan {
    ancestors: Vec<u32>,
    parts: Vec<Part>,
    pub tasks: Vec<Task>,
}

impl Plan {
    /// The common ancestors of a task's queries, root first.
    pub(super) fn chain(&self, task: &Task) -> &[u32] {
        &self.ancestors[task.chain.clone()]
    }

    /// The rows of a task.
    pub(super) fn parts(&self, task: &Task) -> &[Part] {
        &self.parts[task.parts.clone()]
    }
}

/// Groups consecutive queries with the same parent: they share tiles while they visit their ancestors.
pub(super) fn forward(heads: &Heads, queries: &[Queries], segments: &[Segment]) -> Plan {
    let rows_per_task = (TASK_LANES / heads.group()).max(1);
    let mut plan = Plan::default();
    let mut at = 0;
    while at < queries.len() {
        let parent = segments[queries[at].segment as usize].parent;
        let mut end = at + 1;
        while end < queries.len() && parent.is_some() && segments[queries[end].segment as usize].parent == parent {
            end += 1;
        }
        let chain = plan.ancestors.len();
        let mut above = parent;
        while let Some(ancestor) = above {
            plan.ancestors.push(ancestor);
            above = segments[ancestor as usize].parent;
        }
        plan.ancestors[chain..].reverse();
        let first_task = plan.tasks.len();
        plan.cut(&queries[at..end], rows_per_task, chain);
        for group in first_task..plan.tasks.len() {
            for kv_head in 1..heads.num_kv_heads {
                let task = Task { kv_head, ..plan.tasks[group].clone() };
                plan.tasks.push(task);
            }
        }
        // Head after head, so that neighbours read the same stretch of memory.
        plan.tasks[first_task..].sort_by_key(|task| task.kv_head);
        at = end;
    }
    plan
}

impl Plan {
    /// Cuts a family's rows into groups of `rows_per_task`, each a task of the first head.
    fn cut(&mut self, family: &[Queries], rows_per_task: usize, chain: usize) {
        let none = self.parts.len()..self.parts.len();
        let mut task = Task { kv_head: 0, chain: chain..self.ancestors.len(), parts: none, num_rows: 0 };
        for queries in family {
            let mut done = 0;
            while done < queries.num_rows as usize {
                if task.num_rows == rows_per_task {
                    self.tasks.push(task.clone());
                    task.parts = self.parts.len()..self.parts.len();
                    task.num_rows = 0;
                }
                let num_rows = (rows_per_task - task.num_rows).min(queries.num_rows as usize - done);
                self.parts.push(Part {
                    first_row: queries.first_row as usize + done,
                    num_rows,
                    segment: queries.segment as usize,
                    first_position: queries.first_position as usize + done,
                });
                task.parts.end += 1;
                task.num_rows += num_rows;
                done += num_rows;
            }
        }
        if task.num_rows > 0 {
            self.tasks.push(task);
        }
    }
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
