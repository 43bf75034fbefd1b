//! What Prometheus reads: the numbers of the last step, at `GET /metrics`.
//!
//! A thread answers one connection after the other, which is enough for a few numbers that are read every few seconds.
//! The text has the format 0.0.4, which every version of Prometheus reads.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Evaluation, Record, StepMetrics};

/// The time limit for a client's request, for a part of it, and for reading the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request that are read, at most.
const REQUEST: usize = 8192;

/// Answers on a port until it is dropped.
pub(super) struct Exporter {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

/// The text that is shown.
#[derive(Default)]
struct Text {
    /// The numbers of the last step.
    step: String,
    /// The numbers of the last measurement on held-out text.
    evaluation: String,
}

struct Shared {
    text: Mutex<Text>,
    ends: AtomicBool,
}

impl Exporter {
    /// Listens on `port` of all addresses of this machine.
    pub(super) fn listen(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            text: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.ends.load(Ordering::Relaxed) {
                    return;
                }
                // An error of one client only concerns that client.
                let _ = stream.and_then(|stream| answer(stream, &of_thread));
            }
        });
        Ok(Self {
            shared,
            address: (Ipv4Addr::LOCALHOST, port).into(),
            thread: Some(thread),
        })
    }

    /// Shows the numbers of `record` from now on, if it has any.
    pub(super) fn record(&self, record: &Record) {
        let text = &self.shared.text;
        let shown = || text.lock().unwrap_or_else(PoisonError::into_inner);
        match record {
            Record::Step(step) => shown().step = of_step(step),
            Record::Evaluation(evaluation) => shown().evaluation = of_evaluation(evaluation),
            Record::Note(_) => {}
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        // Wakes the thread, which waits for a connection.
        if TcpStream::connect_timeout(&self.address, PATIENCE).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// The numbers of `evaluation` as Prometheus reads them.
fn of_evaluation(evaluation: &Evaluation) -> String {
    let stage = evaluation.stage.as_deref().unwrap_or("untrained");
    let gauges = [
        (
            "student_perplexity",
            "The student's perplexity on held-out text.",
            evaluation.student_perplexity,
        ),
        (
            "teacher_perplexity",
            "The teacher's perplexity on held-out text.",
            evaluation.teacher_perplexity,
        ),
    ];
    let mut text = gauges
        .map(|(name, help, value)| gauge(name, help, stage, value))
        .concat();
    if !evaluation.tasks.is_empty() {
        text += "# HELP train_task_score The student's score in a task.\n# TYPE train_task_score gauge\n";
    }
    for (name, score) in &evaluation.tasks {
        let (task, metric) = name.split_once('/').unwrap_or((name, ""));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "train_task_score{{stage=\"{stage}\",task=\"{task}\",metric=\"{metric}\"}} {}",
            number(*score)
        );
    }
    text
}

/// One number.
fn gauge(name: &str, help: &str, stage: &str, value: f64) -> String {
    format!(
        "# HELP train_{name} {help}\n# TYPE train_{name} gauge\ntrain_{name}{{stage=\"{stage}\"}} {}\n",
        number(value)
    )
}

/// The numbers of `step` as Prometheus reads them.
fn of_step(step: &StepMetrics) -> String {
    let mut gauges = vec![
        ("step", "Steps of the stage done.", step.step as f64),
        ("tokens", "Training tokens of the run.", step.tokens as f64),
        ("loss", "The stage's loss.", step.loss),
        ("learning_rate", "The highest learning rate.", step.lr),
        (
            "grad_norm",
            "The gradient's norm before clipping.",
            step.grad_norm,
        ),
        (
            "tokens_per_second",
            "Training tokens a second.",
            step.tokens_per_second,
        ),
        (
            "operations_per_second",
            "Floating-point operations of both models a second.",
            step.operations_per_second,
        ),
        (
            "data_wait_seconds",
            "How long the step has waited for its text.",
            step.data_wait,
        ),
    ];
    if let Some(share) = step.device_share {
        gauges.push((
            "device_share",
            "These operations over those of a product of matrices alone.",
            share,
        ));
    }
    if let Some(bytes) = step.memory_bytes {
        gauges.push((
            "memory_bytes",
            "Memory of the device, or of the host.",
            bytes as f64,
        ));
    }
    let mut text = String::new();
    let stage = &step.stage;
    for (name, help, value) in gauges {
        text += &gauge(name, help, stage, value);
    }
    if !step.grad_norms.is_empty() {
        text +=
            "# HELP train_part_grad_norm The same by part.\n# TYPE train_part_grad_norm gauge\n";
    }
    for (part, norm) in &step.grad_norms {
        let (part, norm) = (part.name(), number(*norm));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "train_part_grad_norm{{stage=\"{stage}\",part=\"{part}\"}} {norm}"
        );
    }
    text
}

/// A number as Prometheus writes it, also if it is not finite.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

/// Reads the head of a request completely, since the client's connection is reset if unread bytes are left. A client
/// that sends it slowly, byte by byte, gets only [`PATIENCE`] for it, since the end of the run waits for this thread.
fn head(stream: &mut TcpStream) -> io::Result<String> {
    let begun = Instant::now();
    let mut head = vec![];
    let mut bytes = [0; 1024];
    let is_whole = |head: &[u8]| {
        let has = |end: &[u8]| head.windows(end.len()).any(|part| part == end);
        has(b"\r\n\r\n") || has(b"\n\n")
    };
    while !is_whole(&head) && head.len() < REQUEST && begun.elapsed() < PATIENCE {
        let read = stream.read(&mut bytes)?;
        if read == 0 {
            break;
        }
        head.extend(&bytes[..read]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn answer(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = head(&mut stream)?;
    let mut words = head.lines().next().unwrap_or_default().split_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => {
            let text = shared.text.lock().unwrap_or_else(PoisonError::into_inner);
            ("200 OK", text.step.clone() + &text.evaluation)
        }
        (Some("GET"), _) => ("404 Not Found", "there is only /metrics\n".to_owned()),
        _ => (
            "405 Method Not Allowed",
            "only GET is answered\n".to_owned(),
        ),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(exporter: &Exporter, request: &str) -> String {
        let mut stream = TcpStream::connect(exporter.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn the_last_step_is_shown() {
        let exporter = Exporter::listen(0).unwrap();
        let step = StepMetrics {
            stage: "stage3".to_owned(),
            step: 7,
            tokens: 4096,
            loss: 2.5,
            grad_norm: f64::INFINITY,
            grad_norms: [(model::Part::Head, 0.25)].into(),
            ..StepMetrics::default()
        };
        exporter.record(&Record::Step(step));
        exporter.record(&Record::Evaluation(Evaluation {
            stage: Some("stage3".to_owned()),
            step: Some(5),
            tokens: 4000,
            teacher_perplexity: 29.5,
            student_perplexity: 33.25,
            tasks: [("piqa/acc".to_owned(), 0.625)].into(),
        }));
        let request = "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n";
        for _ in 0..2 {
            let answer = ask(&exporter, request);
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            for line in [
                "# TYPE train_loss gauge",
                "train_loss{stage=\"stage3\"} 2.5",
                "train_step{stage=\"stage3\"} 7",
                "train_tokens{stage=\"stage3\"} 4096",
                "train_grad_norm{stage=\"stage3\"} +Inf",
                "train_part_grad_norm{stage=\"stage3\",part=\"head\"} 0.25",
                "train_student_perplexity{stage=\"stage3\"} 33.25",
                "train_teacher_perplexity{stage=\"stage3\"} 29.5",
                "train_task_score{stage=\"stage3\",task=\"piqa\",metric=\"acc\"} 0.625",
            ] {
                assert!(
                    answer.lines().any(|found| found == line),
                    "{line}: {answer}"
                );
            }
            assert!(!answer.contains("memory"), "{answer}");
        }
        let other = ask(&exporter, "GET / HTTP/1.1\r\n\r\n");
        assert!(other.starts_with("HTTP/1.1 404"), "{other}");
        let other = ask(&exporter, "POST /metrics HTTP/1.1\r\n\r\n");
        assert!(other.starts_with("HTTP/1.1 405"), "{other}");

        // The port is free again.
        let port = exporter.address.port();
        drop(exporter);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    }
}
