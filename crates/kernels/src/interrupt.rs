//! Ctrl-C as a flag: the first one asks the program to finish its step, the second one ends it at once.
//! Knows nothing of runs; lives here because a signal handler needs `unsafe`.
//! Cost: one relaxed atomic read wherever somebody asks.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether the person has asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Asks to stop, as Ctrl-C does. For tests and for programs that embed the loops.
pub fn request() {
    REQUESTED.store(true, Ordering::Relaxed);
}

/// Forgets an earlier request.
pub fn clear() {
    REQUESTED.store(false, Ordering::Relaxed);
}

/// Installs the handler for Ctrl-C (`SIGINT`) and for a polite end (`SIGTERM`). Elsewhere than on Unix: nothing.
#[cfg(unix)]
pub fn install() {
    extern "C" fn handler(signal: libc::c_int) {
        REQUESTED.store(true, Ordering::Relaxed);
        // SAFETY: `signal` is async-signal-safe. Giving the default action back lets a second Ctrl-C end a step
        // that hangs.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    let handler: extern "C" fn(libc::c_int) = handler;
    // SAFETY: the handler only stores into an atomic and calls `signal`, both async-signal-safe, and it lives as long
    // as the program.
    unsafe {
        libc::signal(libc::SIGINT, handler as *const () as libc::sighandler_t);
        libc::signal(libc::SIGTERM, handler as *const () as libc::sighandler_t);
    }
}

/// Installs nothing: this system has no such signals.
#[cfg(not(unix))]
pub fn install() {}

#[cfg(all(test, unix))]
mod tests {
    #[test]
    fn a_signal_raises_the_flag_and_the_program_goes_on() {
        super::install();
        assert!(!super::requested());
        // SAFETY: raises a signal whose handler was just installed.
        unsafe {
            libc::raise(libc::SIGINT);
        }
        assert!(super::requested());
        super::clear();
    }
}
