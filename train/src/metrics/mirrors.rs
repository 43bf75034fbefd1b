//! Additional outputs for the records of `metrics.jsonl`, if the configuration asks for them.

use std::path::Path;

use super::prometheus::Exporter;
use super::tensorboard::EventFile;
use super::{Record, read_what_can_be};
use crate::config;
use crate::logging::say;

/// The folder of the run folder with the files of TensorBoard.
const TENSORBOARD: &str = "tensorboard";

/// The outputs for other programs. They do not affect the run: if one fails, the user is told once, and the run
/// continues without it.
#[derive(Default)]
pub struct Mirrors {
    events: Option<EventFile>,
    exporter: Option<Exporter>,
}

impl Mirrors {
    /// The outputs that `config` asks for, of the run in `folder`. `metrics` is the path of its log so far.
    pub fn open(config: &config::Log, folder: &Path, metrics: &Path) -> Self {
        let mut mirrors = Self::default();
        if config.metrics_port != 0 {
            match Exporter::listen(config.metrics_port) {
                Ok(exporter) => mirrors.exporter = Some(exporter),
                Err(error) => say(format_args!(
                    "warning: port {} cannot be listened on for Prometheus (log.metrics_port): {error}",
                    config.metrics_port
                )),
            }
        }
        if config.tensorboard {
            let records = read_what_can_be(metrics).unwrap_or_default();
            let folder = folder.join(TENSORBOARD);
            match EventFile::create(&folder, &records) {
                Ok(events) => mirrors.events = Some(events),
                Err(error) => say(format_args!(
                    "warning: {}: no events for TensorBoard (log.tensorboard): {error}",
                    folder.display()
                )),
            }
        }
        mirrors
    }

    /// Sends `record` to these outputs.
    pub fn record(&mut self, record: &Record) {
        if let Some(exporter) = &self.exporter {
            exporter.record(record);
        }
        let written = self.events.as_mut().map(|events| events.record(record));
        if let Some(Err(error)) = written {
            self.events = None;
            say(format_args!(
                "warning: no more events for TensorBoard until the run is resumed: {error}"
            ));
        }
    }
}
