//! Finds the rank of this process, and the number of ranks, in the variables that launchers set.
//!
//! | | rank, world | on this host | where rank 0 is |
//! |---|---|---|---|
//! | `torchrun --no-python`, Kubernetes | `RANK`, `WORLD_SIZE` | `LOCAL_RANK`, or 0 | `MASTER_ADDR`, `MASTER_PORT` |
//! | `mpirun` (Open MPI) | `OMPI_COMM_WORLD_RANK`, `OMPI_COMM_WORLD_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK` | the same, or this host |
//! | `srun` | `SLURM_PROCID`, `SLURM_NTASKS` | `SLURM_LOCALID` | the same, or this host |
//!
//! The first row whose variables are set counts, since torchrun may itself be started by srun. Slurm's variables count
//! only in a job step (`SLURM_STEP_NUM_TASKS`): a batch script has most of them too, but is one process. A single task
//! of mpirun or srun is a run without other ranks; `WORLD_SIZE=1` is a world of one rank.

use std::fmt::Display;

use kernels::runtime::collective::Place;

/// The port of rank 0 where `MASTER_PORT` is not set, as torchrun has it.
pub const PORT: u16 = 29_500;

/// What the launcher's variables say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The rank of this process, and the number of ranks.
    pub place: Place,
    /// The number of this process among those on this host, from 0; also the number of its GPU.
    pub local_rank: usize,
    /// The host of rank 0, if it is known.
    pub address: Option<String>,
    /// The port on which rank 0 listens, or the first of those that it tries.
    pub port: u16,
    /// The name of this job, which distinguishes it from others; empty if the launcher gives it none.
    pub job: String,
    /// Whether the launcher itself listens on `port`.
    pub port_is_taken: bool,
}

/// Why the variables make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// One is set and another is missing.
    #[error(
        "{present} is set and {missing} is not: a process of several needs both; set it, or unset {present}"
    )]
    Partial {
        /// The one that is set.
        present: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// One is no number, or not a possible one.
    #[error("{name} is `{value}`; it should be {expected}")]
    Value {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// The allowed values.
        expected: String,
    },
    /// Two launchers say different things.
    #[error(
        "RANK and WORLD_SIZE say rank {} of {}, and OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE say rank {} of {}; \
         unset RANK and WORLD_SIZE where mpirun starts the processes",
        ours.rank, ours.world, theirs.rank, theirs.world
    )]
    Contradiction {
        /// The rank by `RANK` and `WORLD_SIZE`.
        ours: Place,
        /// The rank by Open MPI's variables.
        theirs: Place,
    },
}

/// The variables of a launcher: rank, world, rank on this host.
type Names = [&'static str; 3];

const TORCH: Names = ["RANK", "WORLD_SIZE", "LOCAL_RANK"];
const OPEN_MPI: Names = [
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
];
const SLURM: Names = ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"];

impl Launch {
    /// Reads the environment; `None` if this process is not one of several.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn from_environment() -> Result<Option<Self>, LaunchError> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// The same for any `variables`; an empty value counts as not set.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn read(variables: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, LaunchError> {
        let variables = Variables(|name: &str| variables(name).filter(|value| !value.is_empty()));
        let torch = variables.place(TORCH)?;
        let open_mpi = variables.place(OPEN_MPI)?;
        let by_torchrun = variables.get("TORCHELASTIC_RUN_ID");
        if let (Some((ours, _)), Some((theirs, _))) = (torch, open_mpi)
            && ours != theirs
            && by_torchrun.is_none()
        {
            return Err(LaunchError::Contradiction { ours, theirs });
        }
        let slurm = || match variables.get("SLURM_STEP_NUM_TASKS") {
            Some(_) => variables.place(SLURM),
            None => Ok(None),
        };
        let several = |found: &(Place, usize)| found.0.world > 1;
        let (found, is_one_host) = if torch.is_some() {
            let here = variables.number("LOCAL_WORLD_SIZE")?;
            (
                torch,
                here.zip(torch)
                    .is_some_and(|(here, (place, _))| here == place.world),
            )
        } else if open_mpi.is_some() {
            let here = variables.number("OMPI_COMM_WORLD_LOCAL_SIZE")?;
            let is_one = here
                .zip(open_mpi)
                .is_some_and(|(here, (place, _))| here == place.world);
            (open_mpi.filter(several), is_one)
        } else {
            let hosts = ["SLURM_STEP_NUM_NODES", "SLURM_NNODES"];
            let hosts = hosts.into_iter().find_map(|name| variables.get(name));
            (slurm()?.filter(several), hosts.as_deref() == Some("1"))
        };
        let Some((place, local_rank)) = found else {
            return Ok(None);
        };
        let port = match variables.get("MASTER_PORT") {
            None => PORT,
            Some(value) => match value.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(wrong("MASTER_PORT", value, "a port, from 1 to 65535")),
            },
        };
        let is_alone = place.world == 1 || is_one_host;
        let here = is_alone.then(|| "127.0.0.1".to_owned());
        let slurm_step = || {
            let [job, step] = ["SLURM_JOB_ID", "SLURM_STEP_ID"].map(|name| variables.get(name));
            Some(format!("{}.{}", job?, step.unwrap_or_default()))
        };
        let job = by_torchrun
            .clone()
            .or_else(|| variables.get("PMIX_NAMESPACE"))
            .or_else(slurm_step);
        Ok(Some(Self {
            place,
            local_rank,
            address: variables.get("MASTER_ADDR").or(here),
            port,
            job: job.unwrap_or_default(),
            port_is_taken: by_torchrun.is_some(),
        }))
    }
}

struct Variables<F>(F);

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn number(&self, name: &'static str) -> Result<Option<usize>, LaunchError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value.parse();
        number
            .map(Some)
            .map_err(|_| wrong(name, value, "a whole number"))
    }

    /// Which process this is and which on its host, by these variables.
    fn place(
        &self,
        [of_rank, of_world, of_local]: Names,
    ) -> Result<Option<(Place, usize)>, LaunchError> {
        let (rank, world) = (self.number(of_rank)?, self.number(of_world)?);
        let partial = |present, missing| Err(LaunchError::Partial { present, missing });
        let (rank, world) = match (rank, world) {
            (None, None) => return Ok(None),
            (Some(_), None) => return partial(of_rank, of_world),
            (None, Some(_)) => return partial(of_world, of_rank),
            (Some(rank), Some(world)) => (rank, world),
        };
        if rank >= world {
            let expected = format!("less than {of_world}, which is {world}");
            return Err(wrong(of_rank, rank, &expected));
        }
        let local_rank = self.number(of_local)?.unwrap_or(0);
        if local_rank > rank {
            let expected = format!("at most {of_rank}, which is {rank}");
            return Err(wrong(of_local, local_rank, &expected));
        }
        Ok(Some((Place { rank, world }, local_rank)))
    }
}

fn wrong(name: &'static str, value: impl Display, expected: &str) -> LaunchError {
    LaunchError::Value {
        name,
        value: value.to_string(),
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>, LaunchError> {
        Launch::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        })
    }

    fn launch(variables: &[(&str, &str)]) -> Launch {
        read(variables).unwrap().expect("one of several")
    }

    #[test]
    fn each_launcher_is_understood() {
        assert_eq!(read(&[]).unwrap(), None);

        let torchrun = launch(&[
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "node-0"),
            ("MASTER_PORT", "4321"),
            ("TORCHELASTIC_RUN_ID", "abc"),
            // The variables of the srun that has started torchrun.
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ]);
        let expected = Launch {
            place: Place { rank: 5, world: 8 },
            local_rank: 1,
            address: Some("node-0".into()),
            port: 4321,
            job: "abc".into(),
            port_is_taken: true,
        };
        assert_eq!(torchrun, expected);

        let mpirun = launch(&[
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ]);
        assert_eq!(mpirun.place, Place { rank: 1, world: 2 });
        assert_eq!((mpirun.local_rank, mpirun.port), (1, PORT));
        assert_eq!(mpirun.address.as_deref(), Some("127.0.0.1"));

        let srun = [
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NNODES", "2"),
            ("SLURM_JOB_ID", "77"),
        ];
        // In a batch script.
        assert_eq!(read(&srun).unwrap(), None);
        let step = [("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_STEP_ID", "0")];
        let srun = launch(&[&srun[..], &step].concat());
        assert_eq!(srun.place, Place { rank: 3, world: 4 });
        assert_eq!((srun.local_rank, srun.address), (1, None));
        assert_eq!(srun.job, "77.0");
    }

    #[test]
    fn one_task_is_no_world_unless_it_is_said() {
        let one = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")];
        assert_eq!(read(&one).unwrap(), None);
        let said = launch(&[("RANK", "0"), ("WORLD_SIZE", "1")]);
        assert_eq!(said.place, Place { rank: 0, world: 1 });
        assert_eq!(said.address.as_deref(), Some("127.0.0.1"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (variables, words) in [
            (&[("RANK", "0")][..], "RANK is set and WORLD_SIZE is not"),
            (&[("WORLD_SIZE", "2")], "WORLD_SIZE is set and RANK is not"),
            (
                &[("RANK", "2"), ("WORLD_SIZE", "2")],
                "less than WORLD_SIZE, which is 2",
            ),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK is `x`"),
            (&[("RANK", "-1"), ("WORLD_SIZE", "2")], "RANK is `-1`"),
            (
                &[("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")],
                "at most RANK, which is 0",
            ),
            (
                &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "70000")],
                "MASTER_PORT is `70000`",
            ),
            (
                &[
                    ("RANK", "0"),
                    ("WORLD_SIZE", "4"),
                    ("OMPI_COMM_WORLD_RANK", "1"),
                    ("OMPI_COMM_WORLD_SIZE", "4"),
                ],
                "rank 0 of 4",
            ),
        ] {
            let refused = read(variables).unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
        // Empty is not set.
        assert_eq!(read(&[("RANK", ""), ("WORLD_SIZE", "")]).unwrap(), None);
    }
}
