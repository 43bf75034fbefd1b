//! Ranks that find each other, and that miss each other.

use std::net::Shutdown;
use std::sync::mpsc::channel;

use super::*;

/// A rank of a job on this host.
fn launch(rank: usize, world: usize, port: u16, job: &str) -> Launch {
    Launch {
        place: Place { rank, world },
        local_rank: rank,
        address: Some("127.0.0.1".into()),
        port,
        job: job.into(),
        port_is_taken: false,
    }
}

fn patience(silence: u64) -> Patience {
    Patience {
        joining: Duration::from_secs(20),
        beat: Duration::from_millis(100),
        silence: Duration::from_millis(silence),
    }
}

/// A port that is in use as long as the listener lives, with some behind it that are most likely free.
fn taken() -> (TcpListener, u16) {
    let listener = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port.min(u16::MAX - PORTS))
}

fn world(world: usize, port: u16) -> Vec<Rendezvous> {
    let join = |rank| {
        let launch = launch(rank, world, port, "job");
        thread::spawn(move || {
            Rendezvous::join(&launch, patience(5_000), || Ok(JobId([7; 128]))).unwrap()
        })
    };
    // Rank 0 last: the others wait for it.
    let threads: Vec<_> = (0..world).rev().map(join).collect();
    let mut ranks: Vec<_> = threads
        .into_iter()
        .map(|rank| rank.join().unwrap())
        .collect();
    ranks.reverse();
    ranks
}

#[test]
fn ranks_find_each_other_behind_a_port_in_use() {
    let (_other, port) = taken();
    let ranks = world(3, port);
    assert!(ranks.iter().all(|rank| rank.id() == JobId([7; 128])));
    let places: Vec<_> = ranks.iter().map(|rank| rank.place().rank).collect();
    assert_eq!(places, [0, 1, 2]);
}

#[test]
fn a_rank_that_is_gone_is_known_to_all() {
    let (_other, port) = taken();
    let mut ranks = world(3, port);
    let (sender, lost) = channel();
    for rank in &ranks {
        let (number, sender) = (rank.place().rank, sender.clone());
        rank.watch(move |lost| sender.send((number, lost)).unwrap())
            .unwrap();
    }
    // As the end of its process would.
    let gone = ranks.remove(1);
    gone.peers[0].1.lock().shutdown(Shutdown::Both).unwrap();
    let wait = || lost.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut found: Vec<_> = std::iter::repeat_with(wait).take(3).collect();
    found.sort_unstable();
    // Rank 1 itself has lost rank 0.
    assert_eq!(found, [(0, 1), (1, 0), (2, 1)]);
}

#[test]
fn a_farewell_is_no_loss() {
    let (_other, port) = taken();
    let ranks = world(2, port);
    let (sender, lost) = channel();
    for rank in &ranks {
        let sender = sender.clone();
        rank.watch(move |lost| sender.send(lost).unwrap()).unwrap();
    }
    ranks.iter().for_each(Rendezvous::end);
    for rank in &ranks {
        // The other end may have closed it.
        let _ = rank.peers[0].1.lock().shutdown(Shutdown::Both);
    }
    assert!(lost.recv_timeout(Duration::from_secs(1)).is_err());
}

#[test]
fn ranks_of_another_job_are_not_taken() {
    let (_other, port) = taken();
    let short = Patience {
        joining: Duration::from_secs(2),
        ..patience(5_000)
    };
    // From the port after the first on, where both are alone.
    let of_job = |rank, job| Launch {
        port_is_taken: true,
        ..launch(rank, 2, port, job)
    };
    let (a, b) = (of_job(0, "a"), of_job(1, "b"));
    let first = thread::spawn(move || {
        let id = || Ok(JobId([0; 128]));
        Rendezvous::join(&a, short, id).err().unwrap()
    });
    let other = Rendezvous::join(&b, short, || Err(String::new()));
    let other = other.err().unwrap();
    assert!(other.contains("rank 1 has not found rank 0"), "{other}");
    let missing = first.join().unwrap();
    assert!(
        missing.contains("ranks [1] of 2 have not come"),
        "{missing}"
    );

    let nowhere = Launch {
        address: None,
        ..launch(1, 2, port, "")
    };
    let refused = Rendezvous::join(&nowhere, short, || Err(String::new()))
        .err()
        .unwrap();
    assert!(refused.contains("MASTER_ADDR"), "{refused}");
}
