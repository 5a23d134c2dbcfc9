//! Downloads from the hub, shown as they go: a bar for each large file, on the error output.
//! Cost: none.

use std::sync::Mutex;

use foveate_train::hub::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// Smaller files come and go unseen.
const SHOWN: u64 = 1 << 20;

/// The bar of the file that is on its way.
static BAR: Mutex<Option<(String, ProgressBar)>> = Mutex::new(None);

/// Shows how far a file is; indicatif hides bars where nobody looks.
pub fn show(progress: &Progress) {
    if progress.total < SHOWN {
        return;
    }
    let Ok(mut shown) = BAR.lock() else { return };
    if shown.as_ref().is_none_or(|(file, _)| file != progress.file) {
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}")
            .expect("the template is a constant");
        let bar = ProgressBar::new(progress.total).with_style(style).with_message(progress.file.to_string());
        *shown = Some((progress.file.to_string(), bar));
    }
    if let Some((_, bar)) = shown.as_ref() {
        bar.set_position(progress.done);
        if progress.done == progress.total {
            bar.finish();
        }
    }
}
