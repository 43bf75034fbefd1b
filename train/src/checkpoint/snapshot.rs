//! A checkpoint in the host's memory, after its values were copied and before it is on the disk.

use std::fs;
use std::path::Path;

use kernels::TrainBackend;
use kernels::runtime::collective::Place;
use model::manifest::{self, Digests};
use model::{HostModel, ModelConfig, PhiMamba};

use super::moments::HostMoments;
use super::progress::Progress;
use super::shares;
use super::verify::{self, amended};
use super::{INPUTS, OPTIMIZER, PROGRESS, STUDENT, sync_folder};
use crate::error::{TrainError, io_error};
use crate::metrics::Position;
use crate::optimizer::AdamW;
use crate::provenance::Provenance;

/// All that a checkpoint holds, in the host's memory: 12 bytes for each parameter that trains. It is a copy, so the
/// tensors may change afterwards, and any thread can write it. If ranks share the moments, each rank has a snapshot
/// with its share, and rank 0's has the rest too.
#[derive(Debug)]
pub struct Snapshot {
    progress: Progress,
    inputs: Provenance,
    /// `None` on the ranks other than 0.
    student: Option<HostModel>,
    moments: HostMoments,
}

impl Snapshot {
    /// Reads `student`, which `config` describes, and the moments of `optimizer` from their device.
    pub fn take<B: TrainBackend>(
        progress: &Progress,
        inputs: &Provenance,
        config: &ModelConfig,
        student: &PhiMamba<B>,
        optimizer: &AdamW<B::InnerBackend>,
    ) -> Self {
        let is_first = optimizer.place.is_none_or(|place| place.rank == 0);
        Self {
            progress: progress.clone(),
            inputs: inputs.clone(),
            student: is_first.then(|| HostModel::read(config, student)),
            moments: HostMoments::read(student, optimizer, config.layout()),
        }
    }

    /// How far the run had come.
    pub fn position(&self) -> Position {
        self.progress.position()
    }

    /// Whose shares of the moments it has; `None` if it has all.
    pub(super) fn place(&self) -> Option<Place> {
        self.moments.place()
    }

    /// Writes all of it into the new folder `folder`, and waits for the disk. Takes the other ranks' moments from the
    /// folder `shares`.
    pub(super) fn write(&self, folder: &Path, shares: &Path) -> Result<(), TrainError> {
        fs::create_dir(folder).map_err(io_error(folder))?;
        let of_student = folder.join(STUDENT);
        // The large files are hashed while they are written, and not read again.
        let saved = match &self.student {
            Some(student) => student.write(&of_student)?,
            None => Default::default(),
        };
        let saved = saved.into_iter();
        let saved = saved.map(|(name, digest)| (format!("{STUDENT}/{name}"), digest));
        let mut known: Digests = saved.collect();
        let digest = self.moments.write(&folder.join(OPTIMIZER))?;
        known.insert(OPTIMIZER.to_owned(), digest);
        for rank in 1..self.place().map_or(1, |place| place.world) {
            let (name, digest) = shares::fetch(shares, rank, folder)?;
            known.insert(name, digest);
        }
        self.inputs.write(&folder.join(amended(INPUTS, 0)))?;
        self.progress.write(&folder.join(amended(PROGRESS, 0)))?;
        manifest::write_known(folder, &verify::files(folder)?, known)?;
        // The names of the files as well as what is in them.
        sync_folder(&of_student);
        sync_folder(folder);
        Ok(())
    }

    /// Writes this rank's share of the moments into the folder `shares`, where rank 0 finds it.
    pub(super) fn write_share(&self, shares: &Path, rank: usize) -> Result<(), TrainError> {
        shares::leave(shares, rank, |path| self.moments.write(path))
    }
}
