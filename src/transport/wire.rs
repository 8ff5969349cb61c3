//! Waiting for skopeo, without waiting past ^C.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::error::{Context as _, Result};
use crate::interrupt::Interrupt;

/// How often a signal is looked for while skopeo is silent.
const LOOK: Duration = Duration::from_millis(50);
/// How long skopeo may take to put its things away.
const CLOSE: Duration = Duration::from_secs(2);

/// The private runtime of one source.
pub struct Wire {
    // Only gone while being dropped.
    runtime: Option<Runtime>,
    interrupt: Interrupt,
}

impl Wire {
    pub fn new(interrupt: &Interrupt) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context(|| "cannot start a runtime".into())?;
        Ok(Self {
            runtime: Some(runtime),
            interrupt: interrupt.clone(),
        })
    }

    /// Wait for `future`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Interrupted`] if a signal comes first.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        let signal = async {
            loop {
                tokio::time::sleep(LOOK).await;
                if let Err(error) = self.interrupt.check() {
                    return error;
                }
            }
        };
        self.runtime().block_on(async {
            tokio::select! {
                biased;
                done = future => Ok(done),
                error = signal => Err(error),
            }
        })
    }

    /// Wait for `future`, but not for long, and whatever signals come.
    pub fn close(&self, future: impl Future<Output = ()>) {
        let closed = self
            .runtime()
            .block_on(async { tokio::time::timeout(CLOSE, future).await });
        if closed.is_err() {
            tracing::debug!("skopeo did not end in time");
        }
    }

    fn runtime(&self) -> &Runtime {
        match &self.runtime {
            Some(runtime) => runtime,
            None => unreachable!("the runtime is only gone while being dropped"),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // A thread may still be waiting for skopeo; it dies with us.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(CLOSE);
        }
    }
}
