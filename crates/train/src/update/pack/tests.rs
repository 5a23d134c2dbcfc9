//! Trees against separate rows, micro-batches, denominators, bad input.

use foveate_kernels::segment::ancestors;
use proptest::prelude::*;

use super::*;
use crate::update::reduction::Reduction;
use foveate_model::batch::{Segment, Tile};

fn tile(value: f32) -> Arc<Tile> {
    Arc::new(Tile::new(1, 1, vec![value; 3]))
}

fn prompt(ids: &[u32], tiles: &[Arc<Tile>], placements: &[u32]) -> PromptInput {
    PromptInput { ids: ids.to_vec(), tiles: tiles.to_vec(), placements: placements.to_vec() }
}

fn options() -> PackOptions {
    PackOptions {
        reduction: Reduction::SequenceMean,
        count: Count::All,
        max_len: 8,
        token_budget: 10_000,
        share_prefix: true,
        has_kl: false,
        has_entropy: false,
        micro_batch: None,
        scale: 1.0,
        banned: Arc::new([]),
    }
}

#[test]
fn micro_batches_may_have_denominators_of_their_own() {
    let question = prompt(&[1, 2], &[], &[]);
    let answer = |n: u32| PackAnswer::sampled((10..10 + n).collect(), vec![-1.0; n as usize], 1.0, 1.0);
    let groups = [PackGroup { prompt: &question, answers: vec![answer(2), answer(4)] }];
    let weights = |reduction, micro_batch| {
        let options = PackOptions { reduction, micro_batch, ..options() };
        let batches = pack(&groups, &count(&groups, Count::All), &options).expect("packs");
        assert_eq!(batches.len(), 1, "how rows are packed has nothing to do with it");
        (batches[0].weight[0], batches[0].weight[2])
    };
    assert_eq!(weights(Reduction::SequenceMean, None), (0.25, 0.125));
    assert_eq!(weights(Reduction::TokenMean, None), (1.0 / 6.0, 1.0 / 6.0));
    // Published bnpo: each micro-batch by its own tokens, then their mean.
    assert_eq!(weights(Reduction::TokenMean, Some(1)), (0.25, 0.125));
    assert_eq!(weights(Reduction::TokenMean, Some(2)), (1.0 / 6.0, 1.0 / 6.0));
    assert_eq!(weights(Reduction::SequenceMean, Some(1)), (0.25, 0.125));
}

/// What a trained token is to a model: everything it sees, in order, with positions and pictures; and its columns.
type View = (Vec<(u32, u32, Option<String>)>, u32, Vec<u32>);

fn views(batches: &[TokenBatch]) -> Vec<View> {
    let mut views = Vec::new();
    for batch in batches {
        // The segments cover the rows in order.
        let mut at = 0;
        for segment in &batch.segments {
            assert!(segment.start == at && segment.len > 0);
            assert!(segment.parent.is_none_or(|p| batch.segments[p as usize].start < segment.start));
            at += segment.len;
        }
        assert_eq!(at as usize, batch.ids.len());
        assert_eq!(batch.placements.len(), batch.tiles.len(), "one feature per tile in these tests");
        let picture = |row: u32| {
            let feature = batch.placements.iter().position(|p| *p == row)?;
            Some(format!("{:?}", batch.tiles[feature].pixels))
        };
        for i in 0..batch.num_trained() {
            let source = batch.source[i];
            let own = batch.segments.iter().position(|s| (s.start..s.start + s.len).contains(&source)).expect("row");
            let mut rows: Vec<u32> = Vec::new();
            for ancestor in ancestors(&batch.segments, own as u32) {
                let s = batch.segments[ancestor as usize];
                rows.extend(s.start..s.start + s.len);
            }
            rows.extend(batch.segments[own].start..=source);
            let seen = rows.iter().map(|&r| (batch.ids[r as usize], batch.positions[r as usize], picture(r))).collect();
            let columns = [
                batch.weight[i].to_bits(),
                batch.kl_weight[i].to_bits(),
                batch.entropy_weight[i].to_bits(),
                batch.advantage[i].to_bits(),
                batch.old_logprob[i].to_bits(),
                batch.inv_temperature[i].to_bits(),
                u32::from(batch.injected[i]),
            ];
            views.push((seen, batch.target[i], columns.to_vec()));
        }
    }
    views.sort();
    views
}

fn answer(ids: &[u32], advantage: f64) -> PackAnswer {
    PackAnswer::sampled(ids.to_vec(), ids.iter().map(|id| -(*id as f32) / 10.0).collect(), advantage, 1.0)
}

fn run(groups: &[PackGroup<'_>], options: &PackOptions) -> Vec<TokenBatch> {
    pack(groups, &count(groups, options.count), options).expect("packs")
}

#[test]
fn a_group_hangs_off_its_question() {
    let question = prompt(&[5, 90, 6], &[tile(1.0)], &[1]);
    let answers = vec![answer(&[7, 8, 2], 1.0), answer(&[9], -1.0), PackAnswer::target(vec![3, 2], 0.5, 0.5)];
    let batch = run(&[PackGroup { prompt: &question, answers }], &options()).remove(0);
    assert_eq!(batch.ids, [5, 90, 6, 7, 8, 3]);
    assert_eq!(batch.positions, [0, 1, 2, 3, 4, 3]);
    let segment = |start, len, parent| Segment { start, len, parent };
    assert_eq!(batch.segments, [segment(0, 3, None), segment(3, 2, Some(0)), segment(5, 1, Some(0))]);
    assert_eq!(batch.source, [2, 3, 4, 2, 2, 5]);
    assert_eq!(batch.target, [7, 8, 2, 9, 3, 2]);
    assert_eq!(batch.sequences, [0..3, 3..4, 4..6]);
    assert_eq!(batch.injected, [false, false, false, false, true, true]);
    let third = (1.0f64 / 9.0) as f32;
    assert_eq!(batch.weight, [third, third, third, 1.0 / 3.0, 1.0 / 6.0, 1.0 / 6.0]);
    assert_eq!((batch.placements, batch.inv_temperature[5]), (vec![1], 0.5));
    assert_eq!(batch.old_logprob[4..], [0.0, 0.0]);
}

#[test]
fn answers_without_gradient_leave_rows_and_still_count() {
    let question = prompt(&[5, 6], &[], &[]);
    let mut unknown = answer(&[7, 8], 0.0);
    unknown.masked = true;
    let answers = vec![answer(&[7, 8, 9], 1.0), answer(&[4, 4, 4, 4], 0.0), unknown];
    let groups =
        [PackGroup { prompt: &question, answers }, PackGroup { prompt: &question, answers: vec![answer(&[1], 0.0)] }];
    let dropped = run(&groups, &options());
    assert_eq!((dropped.len(), dropped[0].ids.len(), dropped[0].sequences.len()), (1, 4, 1));
    assert_eq!(dropped[0].weight[0], (1.0f64 / 12.0) as f32, "four sequences count");
    let kl = PackOptions { has_kl: true, ..options() };
    let kept = run(&groups, &kl);
    assert_eq!(kept[0].sequences.len(), 3, "all but the masked one");
    assert_eq!(kept[0].weight[..3], dropped[0].weight[..3]);
    assert_eq!(kept[0].kl_weight[3], (1.0f64 / 16.0) as f32);
    let nonzero = PackOptions { count: Count::Nonzero, ..options() };
    assert_eq!(run(&groups, &nonzero)[0].weight[0], 1.0 / 3.0);
    let silent = [PackGroup { prompt: &question, answers: vec![answer(&[1], 0.0)] }];
    assert!(run(&silent, &options()).is_empty());
}

#[test]
fn supervised_rows_share_their_image() {
    let picture = tile(1.0);
    let a = prompt(&[5, 90, 6, 10, 11], std::slice::from_ref(&picture), &[1]);
    let b = prompt(&[5, 90, 6, 10, 12, 13], std::slice::from_ref(&picture), &[1]);
    let other = prompt(&[5, 90, 6, 10, 11], &[tile(1.0)], &[1]);
    let early = prompt(&[4, 90, 6], &[picture], &[1]);
    let rows: Vec<SupervisedRow> =
        [(&a, vec![20, 2]), (&b, vec![21, 22, 2]), (&a, vec![23]), (&other, vec![24, 2]), (&early, vec![2])]
            .iter()
            .map(|(prompt, target)| SupervisedRow {
                prompt,
                target: target.clone().leak(),
                weight: 1.0,
                inv_temperature: 1.0,
            })
            .collect();
    let shared = PackOptions { reduction: Reduction::TokenMean, count: Count::Unmasked, ..options() };
    let counts = count_supervised(&rows, shared.count);
    let batches = pack_supervised(&rows, &counts, &shared).expect("packs");
    assert_eq!(batches[0].segments[0].len, 4, "image and common words once");
    assert_eq!(batches[0].tiles.len(), 3, "once for the rows that share it, once for each of the others");
    let separate = PackOptions { share_prefix: false, ..shared };
    let apart = pack_supervised(&rows, &counts, &separate).expect("packs");
    assert_eq!(views(&batches), views(&apart));
    assert_eq!(batches[0].weight[0], (1.0f64 / 9.0) as f32);
}

#[test]
fn bad_input_is_named() {
    let (good, empty) = (prompt(&[1], &[], &[]), prompt(&[], &[], &[]));
    let counts = Counts::default();
    let error = |prompt, answer: PackAnswer| {
        pack(&[PackGroup { prompt, answers: vec![answer] }], &counts, &options()).expect_err("bad").to_string()
    };
    assert!(error(&empty, answer(&[1], 1.0)).contains("empty"));
    assert!(error(&good, answer(&[], 1.0)).contains("no tokens"));
    assert!(error(&good, PackAnswer { old_logprob: vec![], ..answer(&[1], 1.0) }).contains("old_logprob"));
    assert!(error(&good, answer(&[1], f64::NAN)).contains("advantage"));
    let wild = prompt(&[1], &[], &[3]);
    assert!(error(&wild, answer(&[1], 1.0)).contains("placement") || error(&wild, answer(&[1], 1.0)).contains("image"));
}

proptest! {
    #[test]
    fn any_split_any_sharing_same_tokens(
        shapes in proptest::collection::vec(
            (1usize..6, proptest::collection::vec((1usize..5, -1i32..2, any::<bool>(), any::<bool>()), 1..5)), 1..5),
        budget in 1usize..40,
        kl in any::<bool>(),
        reduction in prop_oneof![Just(Reduction::SequenceMean), Just(Reduction::TokenMean), Just(Reduction::SequenceSum)],
        kind in prop_oneof![Just(Count::All), Just(Count::Unmasked), Just(Count::Nonzero)],
    ) {
        let prompts: Vec<PromptInput> = shapes.iter().enumerate().map(|(g, (len, _))| {
            let ids: Vec<u32> = (0..*len as u32).map(|i| 100 * g as u32 + i).collect();
            prompt(&ids, &[tile(g as f32)], &[*len as u32 - 1])
        }).collect();
        let groups: Vec<PackGroup> = shapes.iter().zip(&prompts).map(|((_, answers), prompt)| PackGroup {
            prompt,
            answers: answers.iter().enumerate().map(|(i, (len, advantage, injected, masked))| {
                let ids: Vec<u32> = (0..*len as u32).map(|t| 1000 + 10 * i as u32 + t).collect();
                let mut answer = answer(&ids, f64::from(*advantage));
                if *injected {
                    answer = PackAnswer::target(ids, f64::from(*advantage), 1.0);
                }
                answer.masked = *masked;
                answer
            }).collect(),
        }).collect();
        let whole = PackOptions { has_kl: kl, has_entropy: kl, reduction, count: kind, ..options() };
        let want = views(&run(&groups, &whole));
        let pieces = PackOptions { token_budget: budget, ..whole.clone() };
        prop_assert_eq!(&views(&run(&groups, &pieces)), &want);
        let apart = PackOptions { share_prefix: false, ..pieces };
        prop_assert_eq!(&views(&run(&groups, &apart)), &want);
        let mut reversed = groups.clone();
        reversed.reverse();
        prop_assert_eq!(&views(&run(&reversed, &whole)), &want);
    }
}
