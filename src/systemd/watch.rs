//! Watching a service that was just started: it counts as good only if it stays.

use std::time::{Duration, Instant};

use super::{Manager, ServiceState};
use crate::error::{Kind, Result};
use crate::fail;
use crate::interrupt::Interrupt;

/// How often the unit is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How often the health command runs.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// A watch over a started unit.
pub struct Watch<'a> {
    /// The unit.
    pub unit: &'a str,
    /// When its start was asked for.
    pub begun: Instant,
    /// How long it must stay, counted from when it had started: one that is slow to start is watched no less.
    pub length: Duration,
    /// How many failures of the health command in a row are too many, once it succeeded.
    pub retries: u32,
}

impl Watch<'_> {
    /// Watch to the end. `health` runs the health command, which may take as long as it is told;
    /// `serving` hears when the service was first seen to work.
    ///
    /// # Errors
    /// [`Kind::Unit`] with what was seen, if the service did not stay or never became healthy;
    /// [`Kind::Interrupted`].
    pub fn run(
        &self,
        manager: &Manager,
        interrupt: &Interrupt,
        mut health: Option<&mut dyn FnMut(Duration) -> Result<()>>,
        mut serving: impl FnMut(),
    ) -> Result<()> {
        let deadline = Instant::now() + self.length;
        let mut healthy = health.is_none();
        let mut failures = 0;
        let mut last_words = String::new();
        let mut next_check = Instant::now();
        if healthy {
            serving();
        }
        loop {
            interrupt.check()?;
            self.look(&manager.service(self.unit)?)?;
            let now = Instant::now();
            if let Some(run) = health.as_deref_mut()
                && now >= next_check
            {
                next_check = now + HEALTH_INTERVAL;
                // One that worked may take the time it is given; one that never did, what is left.
                let limit = if healthy {
                    Duration::MAX
                } else {
                    deadline.saturating_duration_since(now).max(HEALTH_INTERVAL)
                };
                match run(limit) {
                    Ok(()) => {
                        if !healthy {
                            serving();
                        }
                        healthy = true;
                        failures = 0;
                    }
                    Err(error) => {
                        failures += 1;
                        last_words = error.to_string();
                    }
                }
                if healthy && failures >= self.retries.max(1) {
                    fail!(
                        Kind::Unit,
                        "{} became unhealthy: its health command failed {failures} times: {last_words}",
                        self.unit
                    );
                }
            }
            // A failure at the end is no verdict yet: the next runs tell.
            if Instant::now() >= deadline && (failures == 0 || !healthy) {
                break;
            }
            std::thread::sleep(POLL);
        }
        if !healthy {
            fail!(
                Kind::Unit,
                "{} is not healthy after {} seconds: {last_words}",
                self.unit,
                self.length.as_secs()
            );
        }
        Ok(())
    }

    fn look(&self, state: &ServiceState) -> Result<()> {
        let after = self.begun.elapsed().as_secs_f32();
        let done = state.kind == "oneshot" && state.result == "success";
        match state.status.active.as_str() {
            _ if state.restarts > 0 => fail!(
                Kind::Unit,
                "{} did not stay: systemd had to restart it within {after:.1} seconds of its start",
                self.unit
            ),
            "active" | "reloading" => Ok(()),
            // What does one thing and ends has done it.
            "inactive" if done => Ok(()),
            active => fail!(
                Kind::Unit,
                "{} did not stay: it is \"{active}\" (result: {}) {after:.1} seconds after its start",
                self.unit,
                state.result
            ),
        }
    }
}
