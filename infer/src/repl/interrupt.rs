//! Ctrl-C while the model reads and writes.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Poll;
use std::thread;

/// The exit code of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// Ctrl-C as a question whether to stop, for as long as there is something to stop. Otherwise, and
/// if it is asked twice, it ends the program as it always does.
#[derive(Debug, Default)]
pub(super) struct Interrupt {
    working: AtomicBool,
    asked: AtomicBool,
}

impl Interrupt {
    /// Listens on a thread of its own, which ends with the program. Where that cannot be, Ctrl-C does
    /// what it does anyway.
    pub(super) fn listen() -> Arc<Self> {
        let interrupt = Arc::new(Self::default());
        let heard = interrupt.clone();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().build();
        if let Ok(runtime) = &runtime {
            // The line editor puts back the handler that it finds, so this one must be there first: it
            // is when the future has been polled once.
            let mut first = Box::pin(tokio::signal::ctrl_c());
            runtime.block_on(poll_fn(|context| {
                let _ = first.as_mut().poll(context);
                Poll::Ready(())
            }));
        }
        let listen = move |runtime: tokio::runtime::Runtime| {
            while runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
                heard.hear();
            }
        };
        if let Ok(runtime) = runtime {
            let named = thread::Builder::new().name("interrupt".into());
            let _ = named.spawn(move || listen(runtime));
        }
        interrupt
    }

    fn hear(&self) {
        if !self.working.load(SeqCst) || self.asked.swap(true, SeqCst) {
            std::process::exit(INTERRUPTED);
        }
    }

    /// Does something that asks [`asked`](Self::asked) now and then.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.asked.store(false, SeqCst);
        self.working.store(true, SeqCst);
        let result = work();
        self.working.store(false, SeqCst);
        result
    }

    /// Whether to stop.
    pub(super) fn asked(&self) -> bool {
        self.asked.load(SeqCst)
    }
}
