//! A reward plug-in: a process of the person's own that reads one JSON line per question and answers with one.
//! Whatever it does (print garbage, hang, die) the run goes on without its scores and says so.
//! Knows pipes and threads; the form of a line is `remote`'s. Cost: one line each way per question.
//!
//! Writing and reading happen on threads of their own, so that a full pipe or a silent plug-in can be waited for with a
//! limit. A plug-in that missed its limit is killed: its late replies would be taken for those of other questions.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::spec::ProcessSpec;
use super::{Asked, Failure, FailureKind, Scores, SetupError, Surroundings, all_failed, inside, read_scores, request};

/// A running plug-in, or one that is started again when it is needed.
pub struct Process {
    name: String,
    command: Vec<String>,
    base: PathBuf,
    /// Where its standard error goes.
    log: Option<PathBuf>,
    timeout: Duration,
    restarts_left: u32,
    running: Option<Running>,
    next_id: u64,
}

struct Running {
    child: Child,
    to: Sender<String>,
    from: Receiver<String>,
}

impl Process {
    /// Starts the plug-in.
    pub fn start(spec: &ProcessSpec, around: &Surroundings) -> Result<Self, SetupError> {
        let mut process = Self {
            name: spec.name.clone(),
            command: spec.command.clone(),
            base: around.base.clone(),
            log: inside(around, &format!("plugin-{}.log", spec.name)),
            timeout: Duration::from_secs_f64(spec.timeout_secs),
            restarts_left: spec.restarts,
            running: None,
            next_id: 0,
        };
        match process.spawn() {
            Ok(running) => process.running = Some(running),
            Err(problem) => {
                let hint = "command is a list such as [\"python3\", \"reward.py\"]; it starts in the recipe's folder";
                return Err(SetupError { name: spec.name.clone(), problem, hint: hint.to_string() });
            }
        }
        Ok(process)
    }

    /// Scores the answers of one question.
    pub fn score(&mut self, asked: &Asked<'_>) -> Scores {
        let reply = self.ask(asked);
        match reply {
            Ok(reply) => read_scores(&reply, asked),
            Err(failure) => {
                if matches!(failure.kind, FailureKind::Timeout | FailureKind::Died) {
                    self.running = None;
                }
                all_failed(asked, &failure)
            }
        }
    }

    fn ask(&mut self, asked: &Asked<'_>) -> Result<Value, Failure> {
        let died = |detail: String| Failure::new(FailureKind::Died, detail);
        if self.running.is_none() {
            if self.restarts_left == 0 {
                return Err(died("it was started again too often".into()));
            }
            self.restarts_left -= 1;
            self.running = Some(self.spawn().map_err(died)?);
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut line = request(asked);
        line["id"] = id.into();
        line["reward"] = self.name.clone().into();
        let running = self.running.as_mut().expect("started above");
        running.to.send(format!("{line}\n")).map_err(|_| died("it closed its standard input".into()))?;
        let began = Instant::now();
        loop {
            let left = self.timeout.saturating_sub(began.elapsed());
            let line = match running.from.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    let detail = format!("no reply within {} s; it was killed", self.timeout.as_secs_f64());
                    return Err(Failure::new(FailureKind::Timeout, detail));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let how = running.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                    return Err(died(format!("it ended ({how})")));
                }
            };
            let Ok(reply) = serde_json::from_str::<Value>(&line) else {
                return Err(Failure::new(FailureKind::Garbage, format!("it printed {:?}", line.trim_end())));
            };
            match reply.get("id").and_then(Value::as_u64) {
                Some(reply_id) if reply_id == id => return Ok(reply),
                // The reply to a question that was given up because of garbage before it.
                Some(earlier) if earlier < id => {}
                _ => return Err(Failure::new(FailureKind::Garbage, format!("expected id {id} in {reply}"))),
            }
        }
    }

    fn spawn(&self) -> Result<Running, String> {
        let (program, args) = self.command.split_first().ok_or("command is empty")?;
        let stderr = match &self.log {
            Some(path) => {
                File::options().append(true).create(true).open(path).map_or_else(|_| Stdio::null(), Stdio::from)
            }
            None => Stdio::null(),
        };
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        if !self.base.as_os_str().is_empty() {
            command.current_dir(&self.base);
        }
        // A group of its own: Ctrl-C is meant for the run, which finishes its step and still needs the scores.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|error| format!("cannot start {program:?}: {error}"))?;
        let mut stdin = child.stdin.take().ok_or("it has no standard input")?;
        let stdout = child.stdout.take().ok_or("it has no standard output")?;
        let (to, lines) = channel::<String>();
        std::thread::spawn(move || {
            // Ends when the sender is dropped or the plug-in closes its end.
            lines
                .iter()
                .take_while(|line| stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_ok())
                .count()
        });
        let (lines, from) = channel::<String>();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut bytes = Vec::new();
            // Bytes, not text: what is no UTF-8 is garbage to be told, not an end of the stream.
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                if lines.send(String::from_utf8_lossy(&bytes).into_owned()).is_err() {
                    break;
                }
                bytes.clear();
            }
        });
        Ok(Running { child, to, from })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use foveate_tasks::row::Answer;

    use super::super::super::tests::row;
    use super::*;

    /// A plug-in written in shell: `$line` is what it read.
    fn plugin(script: &str, timeout_secs: f64, restarts: u32) -> Process {
        let spec = ProcessSpec {
            name: "mine".into(),
            command: vec!["sh".into(), "-c".into(), script.into()],
            timeout_secs,
            restarts,
            ..ProcessSpec::default()
        };
        Process::start(&spec, &Surroundings::default()).expect("sh starts")
    }

    fn kinds(process: &mut Process, count: usize) -> Vec<Option<FailureKind>> {
        let row = row(Answer::Number("5".into()));
        let asked = Asked { row: &row, texts: vec!["Answer: 5"] };
        (0..count).map(|_| process.score(&asked).remove(0).err().map(|failure| failure.kind)).collect()
    }

    /// Takes the id out of the line it read.
    const ID: &str = r#"id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')"#;

    #[test]
    fn a_plugin_answers_line_by_line() {
        let script = format!("while read -r line; do {ID}; echo \"{{\\\"id\\\": $id, \\\"scores\\\": [0.25]}}\"; done");
        let mut process = plugin(&script, 20.0, 0);
        let row = row(Answer::Number("5".into()));
        let asked = Asked { row: &row, texts: vec!["Answer: 5"] };
        assert_eq!(process.score(&asked), [Ok(0.25)]);
        assert_eq!(process.score(&asked), [Ok(0.25)]);
    }

    #[test]
    fn garbage_costs_one_question_and_no_more() {
        // Noise before every reply: the reply itself then arrives late, and must not be taken for the next one's.
        let script =
            format!("while read -r line; do {ID}; echo noise; echo \"{{\\\"id\\\": $id, \\\"scores\\\": [1]}}\"; done");
        let mut process = plugin(&script, 20.0, 0);
        assert_eq!(kinds(&mut process, 3), [Some(FailureKind::Garbage); 3]);
        let script = format!(
            "read -r line; echo loading; while read -r line; do {ID}; echo \"{{\\\"id\\\": $id, \\\"scores\\\": [1]}}\"; done"
        );
        assert_eq!(kinds(&mut plugin(&script, 20.0, 0), 3), [Some(FailureKind::Garbage), None, None]);
    }

    #[test]
    fn a_plugin_that_hangs_or_dies_is_started_again_a_few_times() {
        let mut hangs = plugin("sleep 1000", 0.2, 1);
        let began = Instant::now();
        assert_eq!(
            kinds(&mut hangs, 3),
            [Some(FailureKind::Timeout), Some(FailureKind::Timeout), Some(FailureKind::Died)]
        );
        assert!(began.elapsed() < Duration::from_secs(30), "nobody waited for it");
        let mut dies = plugin("read -r line; exit 3", 20.0, 1);
        assert_eq!(kinds(&mut dies, 3), [Some(FailureKind::Died); 3]);
        let spec = ProcessSpec { name: "x".into(), command: vec!["/no/such/program".into()], ..ProcessSpec::default() };
        let error = Process::start(&spec, &Surroundings::default()).err().expect("refused");
        assert!(error.to_string().contains("/no/such/program") && !error.hint.is_empty());
    }
}
