//! The folder of a run: taken for a new one, read again for one that goes on.
//! Knows names of files and what must agree; knows nothing of models. Cost: reading.

use std::collections::BTreeMap;
use std::path::Path;

use foveate_kernels::isa;
use foveate_model::Policy;

use super::Event;
use crate::checkpoint::durable::{create_folder, read_file, write_file, write_with};
use crate::checkpoint::{CheckpointError, Checkpoints, Found};
use crate::error::TrainError;
use crate::eval::records::{Prediction, Scores};
use crate::run::{Run, lasting};

/// One JSON object a line.
pub(super) fn write_predictions(folder: &Path, name: &str, predictions: &[Prediction]) -> Result<(), TrainError> {
    create_folder(folder)?;
    write_with(&folder.join(name), |writer| {
        predictions.iter().try_for_each(|prediction| {
            serde_json::to_writer(&mut *writer, prediction)?;
            writer.write_all(b"\n")
        })
    })?;
    Ok(())
}

/// Makes the folder of a new run; refuses one that holds anything of another.
pub(super) fn claim(run: &Run, folder: &Path) -> Result<(), TrainError> {
    let occupied = ["recipe.toml", "metrics.jsonl", "checkpoints", "config.json"];
    if occupied.iter().any(|name| folder.join(name).exists()) {
        return Err(TrainError::Occupied(folder.to_path_buf()));
    }
    create_folder(folder)?;
    write_file(&folder.join("recipe.toml"), run.to_toml().as_bytes())?;
    Ok(())
}

/// The checkpoint that a resumed run goes on from; none if it was stopped before its first one.
pub(super) fn find_checkpoint(
    run: &Run,
    folder: &Path,
    checkpoints: &Checkpoints,
    watch: &mut dyn FnMut(Event),
) -> Result<Option<Found>, TrainError> {
    let recipe = folder.join("recipe.toml");
    if !recipe.is_file() {
        return Err(TrainError::NothingToResume(folder.to_path_buf()));
    }
    let was = lasting(&String::from_utf8_lossy(&read_file(&recipe)?));
    let is = lasting(&run.to_toml());
    if was != is {
        let difference = first_difference(&was, &is);
        return Err(TrainError::RecipeChanged { folder: folder.to_path_buf(), difference });
    }
    let (found, damaged) = checkpoints.newest()?;
    for error in damaged {
        watch(Event::Remark(format!("{error}; the checkpoint before it is used")));
    }
    Ok(found)
}

/// A checkpoint goes on where the same bits are computed, or where the person has moved the run to or from a device.
pub(super) fn check_machine(was: &str, policy: &Policy, watch: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
    let is = computed_with(policy);
    if was == is {
        return Ok(());
    }
    if !was.starts_with(ON_DEVICE) && policy.device().is_none() {
        return Err(TrainError::OtherMachine { was: was.to_string(), is });
    }
    let words = |place: &str| if place.starts_with(ON_DEVICE) { place.to_string() } else { format!("with {place}") };
    let (was, is) = (words(was), words(&is));
    let text = format!("computed {was} so far, {is} from here on: the bits are not those of one place alone");
    watch(Event::Remark(text));
    Ok(())
}

/// How the note of a checkpoint made on a device begins.
const ON_DEVICE: &str = "on ";

/// What decides bits: the device, or the names of the instruction paths.
pub(super) fn computed_with(policy: &Policy) -> String {
    match policy.device() {
        Some(device) => format!("{ON_DEVICE}{}", device.name()),
        None => format!("{}/{}", isa::vector_isa().name(), isa::matmul_path().name()),
    }
}

/// The first setting in which two recipes differ, by its path.
fn first_difference(was: &str, is: &str) -> String {
    let settings = |text: &str| {
        let mut settings = BTreeMap::new();
        if let Ok(table) = text.parse::<toml::Table>() {
            flatten(toml::Value::Table(table), String::new(), &mut settings);
        }
        settings
    };
    let (old, new) = (settings(was), settings(is));
    for path in old.keys().chain(new.keys()) {
        match (old.get(path), new.get(path)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => return format!("{path} was {a}, it is {b} now"),
            (Some(a), None) => return format!("{path} = {a} is gone"),
            (None, Some(b)) => return format!("{path} = {b} is new"),
            (None, None) => {}
        }
    }
    "only the order of its lines differs".to_string()
}

/// Every leaf by its path, as `--set` names it: `stage.0.optim.lr`.
fn flatten(value: toml::Value, path: String, into: &mut BTreeMap<String, String>) {
    let below = |key: String| if path.is_empty() { key } else { format!("{path}.{key}") };
    match value {
        toml::Value::Table(table) => {
            table.into_iter().for_each(|(key, value)| flatten(value, below(key), into));
        }
        toml::Value::Array(values) => {
            for (i, value) in values.into_iter().enumerate() {
                flatten(value, below(i.to_string()), into);
            }
        }
        leaf => {
            into.insert(path, leaf.to_string());
        }
    }
}

/// Scores that were taken up to `step`; later ones are taken again.
pub(super) fn read_scores(folder: &Path, step: u64) -> Result<Scores, TrainError> {
    let path = folder.join("eval.json");
    if !path.is_file() {
        return Ok(Scores::default());
    }
    let mut scores: Scores = serde_json::from_slice(&read_file(&path)?)
        .map_err(|error| CheckpointError::Damaged { path, reason: error.to_string() })?;
    scores.evaluations.retain(|evaluation| evaluation.step <= step && evaluation.name != "after");
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn the_setting_that_changed_is_named_as_it_is_set() {
        let was = "seed = 1\n[[stage]]\nname = 'a'\noptim = { lr = 1e-3 }\n";
        let said = |is: &str| first_difference(was, is);
        assert_eq!(said(&was.replace("1e-3", "2e-3")), "stage.0.optim.lr was 0.001, it is 0.002 now");
        assert_eq!(said(&format!("{was}[[stage]]\nname = 'b'\n")), "stage.1.name = \"b\" is new");
        assert_eq!(said("[[stage]]\nname = 'a'\noptim = { lr = 1e-3 }\n"), "seed = 1 is gone");
        assert_eq!(said(&was.replace("seed = 1\n", "seed = 1\n\n")), "only the order of its lines differs");
    }
}
