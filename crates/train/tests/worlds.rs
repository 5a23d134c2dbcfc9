//! The worlds and the verifiers agree: every right answer of every world scores 1, in every form and notation in which
//! models are taught to write it, and no wrong option does.

use foveate_tasks::row::{Answer, Row};
use foveate_tasks::{Format, PrimerSpec, Split, World, WorldSpec, primer, row_without_images, target};
use foveate_train::reward::accuracy::{Gold, VerifyOptions, verify};
use foveate_train::reward::boxes::{BoxOptions, BoxScore};
use foveate_train::reward::clean::clean;
use foveate_train::reward::extract::Extract;
use foveate_train::reward::functions::{CallWeights, FunctionOptions};
use foveate_train::reward::labels::{LabelOptions, LabelScore};
use foveate_train::reward::number::NumberOptions;
use foveate_train::reward::{Compat, Status};

const SPLITS: [Split; 3] = [Split::Train, Split::Id, Split::Ood];

fn score(text: &str, row: &Row, extract: Extract, options: &VerifyOptions, compat: Option<Compat>) -> f32 {
    let gold = Gold::new(row, options, compat, None).unwrap_or_else(|error| panic!("{}: {error}", row.id));
    let verdict = verify(&clean(text), &gold, extract, options, compat);
    assert_eq!(verdict.status, Status::Ok, "{}: {text}", row.id);
    verdict.score
}

/// Each verifier with its settings as they come, and with its other ways of scoring.
fn settings() -> Vec<VerifyOptions> {
    let labels = [LabelScore::Exact, LabelScore::F1, LabelScore::Graded];
    let weights = [CallWeights::OnlyFull, CallWeights::Penalty];
    let mut all = vec![VerifyOptions::default()];
    all.extend(labels.map(|score| VerifyOptions { labels: LabelOptions { score }, ..VerifyOptions::default() }));
    all.extend(weights.map(|weights| VerifyOptions {
        functions: FunctionOptions { weights, repeat_factor: true },
        ..VerifyOptions::default()
    }));
    let boxes = BoxOptions { score: BoxScore::Soft, ..BoxOptions::default() };
    all.push(VerifyOptions { boxes, ..VerifyOptions::default() });
    let number = NumberOptions { cosine: Some([0.05, 0.2]), ..NumberOptions::default() };
    all.push(VerifyOptions { number, ..VerifyOptions::default() });
    all
}

#[test]
fn every_right_answer_of_every_world_scores_one() {
    for &world in World::ALL {
        for split in SPLITS {
            for format in [Format::Open, Format::Choice, Format::Judge] {
                let spec = WorldSpec { format, ..WorldSpec::new(world, split) };
                for index in 0..200 {
                    let row = row_without_images(&spec, 17, index);
                    let tagged = format!("<think>{}</think><answer>{}</answer>", row.rationale, row.answer.text());
                    for options in settings() {
                        for (text, extract) in [(&target(&row), Extract::Flag), (&tagged, Extract::Tag)] {
                            assert_eq!(score(text, &row, extract, &options, None), 1.0, "{}: {text}", row.id);
                        }
                    }
                    let published =
                        score(&tagged, &row, Extract::Tag, &VerifyOptions::default(), Some(Compat::ReasonRft));
                    assert_eq!(published, 1.0, "{}: {tagged}", row.id);
                }
            }
        }
        for index in 0..100 {
            for row in primer(&PrimerSpec { size: 64, ..PrimerSpec::new(world) }, 17, index) {
                let right = score(&target(&row), &row, Extract::Flag, &VerifyOptions::default(), None);
                assert_eq!(right, 1.0, "{}: {}", row.id, target(&row));
            }
        }
    }
}

/// The options of the choice form and the proposals of the judge form, held against the open question's own verifier.
#[test]
fn no_wrong_option_scores_one() {
    let options = VerifyOptions::default();
    for &world in World::ALL {
        for split in SPLITS {
            let made =
                |format, index| row_without_images(&WorldSpec { format, ..WorldSpec::new(world, split) }, 19, index);
            for index in 0..200 {
                let open = made(Format::Open, index);
                if matches!(open.answer, Answer::YesNo(_)) {
                    continue;
                }
                let scored = |text: &str| score(&format!("Answer: {text}"), &open, Extract::Flag, &options, None);
                let choice = made(Format::Choice, index);
                if !matches!(open.answer, Answer::Labels(_)) {
                    let wrong = choice.choices.iter().filter(|option| **option != open.answer.text());
                    wrong.for_each(|option| assert!(scored(option) < 1.0, "{}: {option}", open.id));
                }
                let judge = made(Format::Judge, index);
                let proposed = judge.question.rsplit_once(" Is the answer ").expect("a proposal").1;
                let right = scored(proposed.trim_end_matches('?')) == 1.0;
                assert_eq!(judge.answer, Answer::YesNo(right), "{}: {}", open.id, judge.question);
            }
        }
    }
}

/// Boxes of other objects must not pass for the right one at any customary threshold.
#[test]
fn wrong_boxes_hardly_overlap_the_right_one() {
    let boxes = BoxOptions { score: BoxScore::Soft, ..BoxOptions::default() };
    let options = VerifyOptions { boxes, ..VerifyOptions::default() };
    for index in 0..200 {
        let spec = WorldSpec::new(World::Location, Split::Ood);
        let open = row_without_images(&spec, 23, index);
        let choice = row_without_images(&WorldSpec { format: Format::Choice, ..spec }, 23, index);
        for option in choice.choices.iter().filter(|option| **option != open.answer.text()) {
            let overlap = score(&format!("Answer: {option}"), &open, Extract::Flag, &options, None);
            assert!(overlap < 0.3, "{}: {option}", open.id);
        }
    }
}
