//! Ctrl-C while the model works.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Poll;
use std::thread;

use model::signals::{INTERRUPT, is_ignored};

/// The exit code of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// Makes Ctrl-C a request to stop the model, while the model works. At any other time, and if it is pressed a second
/// time, Ctrl-C ends the program as usual.
#[derive(Debug, Default)]
pub(super) struct Interrupt {
    working: AtomicBool,
    asked: AtomicBool,
}

impl Interrupt {
    /// Listens for Ctrl-C on a new thread, which ends with the program. If that thread cannot be started, Ctrl-C ends
    /// the program. If Ctrl-C was ignored when the program started, it is still ignored.
    pub(super) fn listen() -> Arc<Self> {
        let interrupt = Arc::new(Self::default());
        if is_ignored(INTERRUPT) {
            return interrupt;
        }
        let heard = interrupt.clone();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().build();
        if let Ok(runtime) = &runtime {
            // The line editor restores the handler that it finds, so this handler must be installed before: the first
            // poll of the future installs it.
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

    /// Runs `work`, which checks [`asked`](Self::asked) from time to time and stops if it is `true`.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.asked.store(false, SeqCst);
        self.working.store(true, SeqCst);
        let result = work();
        self.working.store(false, SeqCst);
        result
    }

    /// Whether Ctrl-C was pressed since the work began.
    pub(super) fn asked(&self) -> bool {
        self.asked.load(SeqCst)
    }
}
