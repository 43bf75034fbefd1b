//! How ranks on GPUs find each other, and notice that a rank has ended.
//!
//! Rank 0 listens on `MASTER_PORT`, or on the first free one of the ports after it: torchrun listens on that port itself.
//! The others try the same ports, until one answers that belongs to their job. Rank 0 sends each the id of the job, by
//! which NCCL connects them. The connections then stay open, and every few seconds a byte is sent each way. If no byte
//! comes, or if the connection ends without a farewell, that rank has ended, and rank 0 tells the others which one it
//! is.
//!
//! Nothing else is sent here: tensors go by the engine.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kernels::runtime::collective::{JobId, Place};

use super::launch::Launch;

/// Ports that are tried.
const PORTS: u16 = 8;
/// What rank 0 answers to a rank of its job.
const WELCOME: &[u8; 8] = b"mohawk 1";

/// A byte that says that all is well.
const BEAT: u8 = b'.';
/// The sender has finished its work.
const FAREWELL: u8 = b'e';
/// Another rank has ended; its number follows in 4 bytes.
const GONE: u8 = b'x';

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long to wait until all ranks have joined.
    pub joining: Duration,
    /// The time between two bytes that show that a rank is alive.
    pub beat: Duration,
    /// The time without a byte after which a rank counts as ended.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            joining: Duration::from_secs(600),
            beat: Duration::from_secs(5),
            silence: Duration::from_secs(20),
        }
    }
}

/// The ranks of a job, connected to rank 0.
pub struct Rendezvous {
    place: Place,
    id: JobId,
    patience: Patience,
    /// By rank: on rank 0 the connections to all others, on the others the connection to rank 0.
    peers: Vec<(usize, Arc<Peer>)>,
    has_ended: Arc<AtomicBool>,
}

struct Peer {
    /// Whole messages are written under this lock.
    out: Mutex<TcpStream>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        Self {
            out: Mutex::new(stream),
        }
    }

    fn lock(&self) -> MutexGuard<'_, TcpStream> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        self.lock().write_all(message)
    }
}

impl Rendezvous {
    /// Waits for all ranks of `launch`. `new_id` makes the job's id, on rank 0.
    ///
    /// # Errors
    /// A message in one sentence: the host of rank 0 is not known; no port is free; ranks are missing; or the error of
    /// `new_id`.
    pub fn join(
        launch: &Launch,
        patience: Patience,
        new_id: impl FnOnce() -> Result<JobId, String>,
    ) -> Result<Self, String> {
        let place = launch.place;
        let (id, streams) = if place.rank == 0 {
            let id = new_id()?;
            (id, gather(launch, patience, id)?)
        } else {
            let (id, stream) = reach(launch, patience)?;
            (id, vec![(0, stream)])
        };
        let peers = streams.into_iter();
        Ok(Self {
            place,
            id,
            patience,
            peers: peers
                .map(|(rank, stream)| (rank, Arc::new(Peer::new(stream))))
                .collect(),
            has_ended: Arc::new(AtomicBool::new(false)),
        })
    }

    /// Which rank this is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The id of the job, the same on all ranks.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// From now on, calls `gone` with the number of each rank that has ended without [`end`](Self::end), or that sends
    /// nothing; once for each rank.
    ///
    /// # Errors
    /// A connection cannot be used by two threads.
    pub fn watch(&self, gone: impl Fn(usize) + Send + Sync + 'static) -> io::Result<()> {
        let gone = Arc::new(gone);
        for (rank, peer) in &self.peers {
            let stream = peer.lock().try_clone()?;
            stream.set_read_timeout(Some(self.patience.silence))?;
            let rank = *rank;
            let others: Vec<_> = (self.peers.iter())
                .filter(|(other, _)| *other != rank)
                .map(|(_, other)| other.clone())
                .collect();
            let (gone, has_ended) = (gone.clone(), self.has_ended.clone());
            thread::spawn(move || {
                let Some(lost) = listen(stream, rank) else {
                    return;
                };
                if has_ended.load(Ordering::SeqCst) {
                    return;
                }
                let mut message = vec![GONE];
                message.extend((lost as u32).to_le_bytes());
                for other in &others {
                    // The other rank may have ended, too.
                    let _ = other.send(&message);
                }
                gone(lost);
            });
        }
        let peers: Vec<_> = self.peers.iter().map(|(_, peer)| peer.clone()).collect();
        let (beat, has_ended) = (self.patience.beat, self.has_ended.clone());
        thread::spawn(move || {
            while !has_ended.load(Ordering::SeqCst) {
                for peer in &peers {
                    // If the peer has ended, the thread that listens to it notices.
                    let _ = peer.send(&[BEAT]);
                }
                thread::sleep(beat);
            }
        });
        Ok(())
    }

    /// Tells the others that this rank has finished its work and may end.
    pub fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        for (_, peer) in &self.peers {
            let _ = peer.send(&[FAREWELL]);
        }
    }
}

/// Reads what `rank` sends until it ends. Returns the number of a rank that has ended, this one or another; `None`
/// after a farewell.
fn listen(mut stream: TcpStream, rank: usize) -> Option<usize> {
    let mut byte = [0];
    let mut has_ended = false;
    loop {
        match stream.read(&mut byte) {
            Ok(1) => match byte[0] {
                // Bytes after the farewell are still read: if a connection is closed with unread bytes, data may be
                // lost.
                FAREWELL => has_ended = true,
                GONE => {
                    let mut number = [0; 4];
                    return Some(match stream.read_exact(&mut number) {
                        Ok(()) => u32::from_le_bytes(number) as usize,
                        Err(_) => rank,
                    });
                }
                _ => {}
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The end, an error, or silence.
            _ => return (!has_ended).then_some(rank),
        }
    }
}

/// The ports that may be rank 0's.
fn ports(launch: &Launch) -> impl Iterator<Item = u16> {
    let first = u32::from(launch.port) + u32::from(launch.port_is_taken);
    (first..first + u32::from(PORTS)).filter_map(|port| u16::try_from(port).ok())
}

/// The first line that a rank sends to rank 0. Only ranks of the same job send the same line.
fn greeting(launch: &Launch) -> String {
    let job = launch.job.replace(char::is_whitespace, "_");
    format!(
        "mohawk-ranks 1 {} {} {job} ",
        launch.port, launch.place.world
    )
}

/// Rank 0: the connections to all others, when all have come.
fn gather(
    launch: &Launch,
    patience: Patience,
    id: JobId,
) -> Result<Vec<(usize, TcpStream)>, String> {
    let world = launch.place.world;
    if world == 1 {
        return Ok(vec![]);
    }
    let tried: Vec<u16> = ports(launch).collect();
    let opened = tried
        .iter()
        .find_map(|port| TcpListener::bind(("0.0.0.0", *port)).ok());
    let listener = opened.ok_or_else(|| {
        format!(
            "rank 0 cannot listen on any of the ports {tried:?}; set MASTER_PORT to the first of some that are free"
        )
    })?;
    let failed = |error: io::Error| format!("rank 0 waits for the others: {error}");
    listener.set_nonblocking(true).map_err(failed)?;
    let end = Instant::now() + patience.joining;
    let greeting = greeting(launch);
    let mut found: Vec<Option<TcpStream>> = (0..world).map(|_| None).collect();
    loop {
        let missing: Vec<usize> = (1..world).filter(|rank| found[*rank].is_none()).collect();
        if missing.is_empty() {
            break;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if let Some((rank, stream)) = welcome(stream, &greeting, world) {
                    // If a rank has connected twice, it has given up the older connection.
                    found[rank] = Some(stream);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(failed(error)),
        }
        if Instant::now() > end {
            return Err(format!(
                "ranks {missing:?} of {world} have not come within {} seconds; see whether they have started, and \
                 whether they reach MASTER_ADDR",
                patience.joining.as_secs()
            ));
        }
    }
    let found = found.into_iter().enumerate();
    let found: Vec<_> = found
        .filter_map(|(rank, stream)| Some((rank, stream?)))
        .collect();
    for (rank, stream) in &found {
        let mut stream: &TcpStream = stream;
        let sent = stream.write_all(&id.0);
        sent.map_err(|error| format!("rank {rank} is gone before the start: {error}"))?;
    }
    Ok(found)
}

/// Answers what has connected, if it is a rank of this job.
fn welcome(stream: TcpStream, greeting: &str, world: usize) -> Option<(usize, TcpStream)> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.set_nodelay(true).ok()?;
    let line = read_line(&stream)?;
    let rank: usize = line.strip_prefix(greeting)?.parse().ok()?;
    if !(1..world).contains(&rank) {
        return None;
    }
    (&stream).write_all(WELCOME).ok()?;
    Some((rank, stream))
}

/// A line of at most 1000 bytes, without its end.
fn read_line(mut stream: &TcpStream) -> Option<String> {
    let (mut line, mut byte) = (vec![], [0]);
    while line.len() < 1000 {
        stream.read_exact(&mut byte).ok()?;
        if byte[0] == b'\n' {
            return String::from_utf8(line).ok();
        }
        line.push(byte[0]);
    }
    None
}

/// Another rank: the job's id, and the connection to rank 0.
fn reach(launch: &Launch, patience: Patience) -> Result<(JobId, TcpStream), String> {
    let Some(address) = &launch.address else {
        return Err(
            "where rank 0 is, is not known: set MASTER_ADDR to its host, as torchrun does (with srun: export \
             MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1))"
                .into(),
        );
    };
    let end = Instant::now() + patience.joining;
    let line = format!("{}{}\n", greeting(launch), launch.place.rank);
    let mut last = String::new();
    while Instant::now() < end {
        for port in ports(launch) {
            match knock(address, port, &line) {
                Ok(mut stream) => {
                    let mut id = [0; 128];
                    let read = stream
                        .set_read_timeout(Some(patience.joining))
                        .and_then(|()| stream.read_exact(&mut id));
                    return match read {
                        Ok(()) => Ok((JobId(id), stream)),
                        Err(error) => Err(format!(
                            "rank 0 at {address}:{port} has ended before all ranks were there: {error}"
                        )),
                    };
                }
                Err(error) => last = format!("{address}:{port}: {error}"),
            }
        }
        thread::sleep(Duration::from_millis(200));
    }
    Err(format!(
        "rank {} has not found rank 0 within {} seconds ({last}); see whether it has started, and MASTER_ADDR and \
         MASTER_PORT",
        launch.place.rank,
        patience.joining.as_secs()
    ))
}

/// A connection to rank 0 of this job.
fn knock(address: &str, port: u16, line: &str) -> io::Result<TcpStream> {
    let mut found = Err(ErrorKind::NotFound.into());
    for address in (address, port).to_socket_addrs()? {
        found = TcpStream::connect_timeout(&address, Duration::from_secs(3));
        if found.is_ok() {
            break;
        }
    }
    let mut stream = found?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.set_write_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(line.as_bytes())?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    if answer == *WELCOME {
        Ok(stream)
    } else {
        Err(io::Error::other("another program listens there"))
    }
}

#[cfg(test)]
mod tests;
