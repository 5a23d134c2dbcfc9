//! Errors on their way to the person: the message, its causes, a hint, and an exit code.
//! Knows which error types carry hints. Cost: none.

use std::process::ExitCode;

use foveate_train::checkpoint::durable::FileError;
use foveate_train::collect::CollectError;
use foveate_train::data::DataError;
use foveate_train::error::TrainError;
use foveate_train::eval::EvalError;
use foveate_train::merge::MergeError;
use foveate_train::prompt::PromptError;
use foveate_train::recipe::parse::RecipeError;
use foveate_train::report::files::PageError;
use foveate_train::reward::remote::SetupError;
use foveate_train::score::ScoreError;
use foveate_train::source::SourceError;
use foveate_train::study::StudyError;

/// An error that only the command line can make.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// An error with a hint, ready for `?`.
pub fn failure(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Failure { message: message.into(), hint: hint.into() }.into()
}

/// Prints the error and its hint. Everything that a person can put right ends with code 2.
pub fn tell(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error}");
    if let Some(hint) = error.chain().find_map(hint) {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(2)
}

/// The hint that comes with an error, if its type has one.
fn hint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    macro_rules! try_types {
        ($($type:ty => $hint:expr),* $(,)?) => {
            $(if let Some(error) = error.downcast_ref::<$type>() {
                let hint: fn(&$type) -> Option<String> = $hint;
                return hint(error);
            })*
        };
    }
    try_types! {
        Failure => |e| Some(e.hint.clone()),
        TrainError => |e| e.hint(),
        RecipeError => |e| e.hint.clone(),
        DataError => |e| e.hint(),
        ScoreError => |e| e.hint(),
        StudyError => |e| e.hint(),
        CollectError => |e| e.hint(),
        SetupError => |e| Some(e.hint.clone()),
        EvalError => |e| Some(e.hint()),
        PageError => |e| e.hint(),
        SourceError => |e| e.hint(),
        MergeError => |e| e.hint(),
        FileError => |e| e.hint(),
        PromptError => |e| Some(e.hint().to_string()),
        foveate_model::ModelError => |e| Some(e.hint()),
    }
    None
}
