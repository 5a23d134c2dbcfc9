//! A whole run: evaluate, learn stage by stage, evaluate again, show.
//! Knows the order of things; each loop has its own file. Cost: that of its parts.

use std::path::{Path, PathBuf};

use crate::error::TrainError;
use crate::run::{Run, overlaps};
use crate::session::{Event, Session, StageEnd};
use crate::{rl, sft};

/// How a run came to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Whether the person stopped it; it can be resumed then.
    pub interrupted: bool,
    /// Steps done.
    pub step: u64,
    /// The page that shows it.
    pub page: PathBuf,
}

/// Runs `run` in `folder`, or goes on with what is there. A new run that fails before its first step leaves no folder.
pub fn train(run: &Run, folder: &Path, resume: bool, watch: &mut dyn FnMut(Event)) -> Result<Outcome, TrainError> {
    let is_new = !folder.exists();
    let outcome = run_stages(run, folder, resume, watch);
    let keep = matches!(outcome, Ok(_) | Err(TrainError::NonFinite { .. }));
    let stepped = std::fs::metadata(folder.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0);
    if is_new && !keep && !stepped {
        // Best effort: what is left says nothing that the message does not say.
        let _ = std::fs::remove_dir_all(folder);
    }
    outcome
}

fn run_stages(run: &Run, folder: &Path, resume: bool, watch: &mut dyn FnMut(Event)) -> Result<Outcome, TrainError> {
    if !resume {
        overlaps(run)?;
    }
    let mut session = Session::open(run, folder, resume, watch)?;
    if run.eval.before && session.step == 0 {
        session.evaluate("before")?;
    }
    while session.stage < run.stage.len() {
        let stage = session.current();
        if session.stage_step < stage.steps && !session.controls.ended {
            session.begin_stage()?;
            let end = if stage.is_supervised() { sft::run_stage(&mut session)? } else { rl::run_stage(&mut session)? };
            if end == StageEnd::Interrupted {
                let page = session.write_page()?;
                return Ok(Outcome { interrupted: true, step: session.step, page });
            }
        }
        session.end_stage()?;
        session.stage += 1;
        session.stage_step = 0;
        session.controls.ended = false;
    }
    if run.eval.after {
        session.evaluate("after")?;
    }
    let page = session.write_page()?;
    Ok(Outcome { interrupted: false, step: session.step, page })
}
