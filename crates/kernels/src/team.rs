//! The threads that kernels run on: a fixed team that waits awake for a moment, so that the next of a thousand short
//! loops per second finds it ready. Work is numbered; who does a number may vary, what a number means never does.
//! Boundary: knows numbers of tasks, nothing of tensors. Cost: about a microsecond for a loop while the team is awake,
//! a futex call when it has gone to sleep; a loop inside a loop, or beside another one, runs on its own thread.

use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for the next loop before it sleeps. Between the loops of a forward pass lie a few
/// microseconds; between passes, milliseconds.
const AWAKE: Duration = Duration::from_micros(60);

/// What the team is doing. The pointer outlives the loop because the caller waits for everybody who joined.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    count: usize,
}

struct Shared {
    /// Odd while a loop is open to join.
    epoch: AtomicU64,
    /// Threads that are inside, or looking whether they may be.
    joined: AtomicUsize,
    next: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// What a panicking task left.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    closing: AtomicBool,
    bed: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only while no loop is open and nobody has joined, and read only by threads that have joined
// an open one (`run` and `serve` say why); everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer inside is used only while its loop is open.
unsafe impl Send for Shared {}

/// Threads that work together.
pub struct Team {
    shared: Arc<Shared>,
    /// One loop at a time.
    turn: Mutex<()>,
    size: usize,
    threads: Vec<JoinHandle<()>>,
}

thread_local! {
    /// Set while a task runs: loops inside run serially.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// The team chosen by [`with_threads`] on this thread.
    static CHOSEN: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Team {
    /// A team of `size`, the calling thread included.
    fn new(size: usize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            joined: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            bed: Mutex::new(()),
            wake: Condvar::new(),
        });
        let threads: Vec<JoinHandle<()>> = (1..size.max(1))
            .map_while(|number| {
                let shared = Arc::clone(&shared);
                // A system that gives no more threads makes a smaller team, not an error.
                std::thread::Builder::new().name(format!("kernel-{number}")).spawn(move || shared.serve()).ok()
            })
            .collect();
        Self { shared, turn: Mutex::new(()), size: threads.len() + 1, threads }
    }

    /// Calls `task` with every number below `count`, on all threads; returns when all calls have.
    fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let alone = self.threads.is_empty() || count < 2 || INSIDE.get();
        let turn = match self.turn.try_lock() {
            Ok(turn) if !alone => turn,
            Err(TryLockError::Poisoned(turn)) if !alone => turn.into_inner(),
            _ => return (0..count).for_each(task),
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The closing guard below keeps this call from returning while anybody uses
        // the pointer.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync + 'static)>(task)
        };
        // A thread may still be looking whether it may join the last loop; it leaves at once.
        shared.wait_until_left();
        // SAFETY: no loop is open and nobody has joined; this thread has the turn.
        unsafe { *shared.job.get() = Some(Job { task, count }) };
        shared.next.store(0, SeqCst);
        shared.epoch.fetch_add(1, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            let _bed = lock(&shared.bed);
            shared.wake.notify_all();
        }
        let closing = Closing(shared);
        shared.work(Job { task, count });
        drop(closing);
        drop(turn);
        if let Some(panic) = lock(&shared.panic).take() {
            resume_unwind(panic);
        }
    }
}

/// Ends a loop whatever happens in it.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.epoch.fetch_add(1, SeqCst);
        self.0.wait_until_left();
    }
}

impl Shared {
    fn wait_until_left(&self) {
        let mut rounds = 0u32;
        while self.joined.load(SeqCst) != 0 {
            rounds += 1;
            // Somebody may have lost the processor in the middle of a task.
            if rounds.is_multiple_of(4096) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    /// Does tasks until none is left.
    fn work(&self, job: Job) {
        INSIDE.set(true);
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let number = self.next.fetch_add(1, SeqCst);
                if number >= job.count {
                    return;
                }
                // SAFETY: the loop is open or the caller waits for this thread, so the task lives.
                unsafe { (*job.task)(number) }
            }
        }));
        INSIDE.set(false);
        if let Err(panic) = done {
            // Nobody needs to start what is left.
            self.next.store(job.count, SeqCst);
            lock(&self.panic).get_or_insert(panic);
        }
    }

    /// The life of a team's thread.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            let epoch = self.look_for_work(seen);
            if self.closing.load(SeqCst) {
                return;
            }
            seen = epoch;
            // Join first, look afterwards: either the loop is still open and its caller sees this thread, or it is
            // closed and this thread leaves without touching the job.
            self.joined.fetch_add(1, SeqCst);
            if self.epoch.load(SeqCst) == epoch {
                // SAFETY: the loop was open after this thread had joined, so its caller waits before it changes the job.
                if let Some(job) = unsafe { *self.job.get() } {
                    self.work(job);
                }
            }
            self.joined.fetch_sub(1, SeqCst);
        }
    }

    /// The number of an open loop that is not `seen`; anything when the team ends.
    fn look_for_work(&self, seen: u64) -> u64 {
        let fresh = |epoch: u64| epoch != seen && epoch % 2 == 1;
        let start = Instant::now();
        loop {
            for _ in 0..256 {
                let epoch = self.epoch.load(SeqCst);
                if fresh(epoch) {
                    return epoch;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > AWAKE {
                break;
            }
        }
        let mut bed = lock(&self.bed);
        // Announced before the last look: a caller either is seen here or sees the sleeper and wakes it.
        self.sleepers.fetch_add(1, SeqCst);
        let epoch = loop {
            let epoch = self.epoch.load(SeqCst);
            if fresh(epoch) || self.closing.load(SeqCst) {
                break epoch;
            }
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        epoch
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.closing.store(true, SeqCst);
        {
            let _bed = lock(&self.shared.bed);
            self.shared.wake.notify_all();
        }
        for thread in self.threads.drain(..) {
            // A thread's panic was handed to its caller already.
            let _ = thread.join();
        }
    }
}

/// The team of the program: as many threads as rayon's pool, which `RAYON_NUM_THREADS` sets.
fn everybody() -> &'static Arc<Team> {
    static TEAM: OnceLock<Arc<Team>> = OnceLock::new();
    TEAM.get_or_init(|| Arc::new(Team::new(rayon::current_num_threads())))
}

fn current<R>(f: impl FnOnce(&Team) -> R) -> R {
    let chosen = CHOSEN.with_borrow(Clone::clone);
    f(chosen.as_ref().unwrap_or_else(|| everybody()))
}

/// Calls `task` with every number below `count`, in any order and on several threads.
pub(crate) fn run(count: usize, task: impl Fn(usize) + Sync) {
    match count {
        0 => {}
        1 => task(0),
        _ => current(|team| team.run(count, &task)),
    }
}

/// Threads that a loop may use.
pub fn num_threads() -> usize {
    current(|team| team.size)
}

/// Runs `f` with kernels on a team of its own of `threads` threads. Results never depend on the number; time does.
pub fn with_threads<R>(threads: usize, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<Team>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHOSEN.set(self.0.take());
        }
    }
    let before = CHOSEN.replace(Some(Arc::new(Team::new(threads))));
    let _restore = Restore(before);
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_once_on_any_team() {
        for threads in [1, 2, 5] {
            with_threads(threads, || {
                assert_eq!(num_threads(), threads);
                for round in 0..2000 {
                    let count = round % 37;
                    let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    run(count, |number| {
                        calls[number].fetch_add(1, SeqCst);
                    });
                    assert!(calls.iter().all(|calls| calls.load(SeqCst) == 1), "{threads} threads, {count} tasks");
                }
            });
        }
    }

    #[test]
    fn wakes_from_sleep_and_nests() {
        with_threads(3, || {
            for _ in 0..20 {
                std::thread::sleep(AWAKE * 3);
                let sum = AtomicUsize::new(0);
                run(16, |number| {
                    run(4, |inner| {
                        sum.fetch_add(number * inner, SeqCst);
                    });
                });
                assert_eq!(sum.load(SeqCst), 120 * 6);
            }
        });
    }

    #[test]
    fn loops_of_several_callers_do_not_mix() {
        let team = Arc::new(Team::new(3));
        let callers: Vec<_> = (0..4)
            .map(|caller: usize| {
                let team = Arc::clone(&team);
                std::thread::spawn(move || {
                    for round in 0..500 {
                        let sum = AtomicUsize::new(0);
                        team.run(9, &|number| {
                            sum.fetch_add(number + caller + round, SeqCst);
                        });
                        assert_eq!(sum.load(SeqCst), 36 + 9 * (caller + round));
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.join().expect("no caller fails");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        with_threads(3, || {
            let failed = catch_unwind(AssertUnwindSafe(|| run(100, |number| assert!(number != 57, "task 57"))));
            assert!(failed.is_err());
            let sum = AtomicUsize::new(0);
            run(100, |number| {
                sum.fetch_add(number, SeqCst);
            });
            assert_eq!(sum.load(SeqCst), 4950);
        });
    }
}
