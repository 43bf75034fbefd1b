//! The open connections: how many there may be, and which of them are closed to make room for others.
//!
//! A connection without a request that is being processed only waits for its client. If there is no room for a new
//! connection, the one that has waited longest is closed. So clients that open connections and send nothing do not keep
//! others out. An address can have only a limited number of busy connections, which leaves the rest to others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// The open connections.
#[derive(Debug)]
pub(super) struct Connections {
    /// The most open connections.
    most: usize,
    /// The most open connections of one client.
    most_of_one: usize,
    open: Mutex<Vec<Arc<Connection>>>,
    /// Notified when a connection was closed, or begins to wait for its client.
    room: Notify,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// The client: its IPv4 address, or its IPv6 network, within which it can choose any address.
    client: IpAddr,
    /// Since when it waits for its client; `None` while a request is being processed.
    waits_since: Mutex<Option<Instant>>,
    /// Whether its reply takes [room](super::reply_room).
    has_room: AtomicBool,
    /// Notified when this connection should be closed to make room.
    leave: Notify,
    all: Arc<Connections>,
}

/// The place of an open connection, which becomes free when this value is dropped.
#[derive(Debug)]
pub(super) struct Place(pub Arc<Connection>);

/// A request that is being processed on a connection, until this value is dropped.
#[derive(Debug)]
pub(super) struct AtWork(Arc<Connection>);

/// A request that waits for its client, until this value is dropped.
#[derive(Debug)]
pub(super) struct Waits(Arc<Connection>);

/// The decision about a new connection.
#[derive(Debug)]
pub(super) enum Admission {
    Place(Place),
    /// Its client has the most connections that it may have, and all of them have requests that are being processed.
    TooMany,
}

impl Connections {
    pub(super) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_of_one,
            open: Mutex::default(),
            room: Notify::new(),
        })
    }

    /// How many connections one client may have.
    pub(super) fn most_of_one(&self) -> usize {
        self.most_of_one
    }

    /// The number of open connections.
    pub(super) fn len(&self) -> usize {
        self.open().len()
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for another connection, or a connection that can be closed for it.
    pub(super) async fn room(&self) {
        loop {
            let changed = self.room.notified();
            {
                let open = self.open();
                if open.len() < self.most || open.iter().any(|other| other.waits_since().is_some())
                {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Decides about a connection from `address`. The second value says whether another connection was closed for it.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> (Admission, bool) {
        let client = client_of(address);
        let mut open = self.open();
        let of_client = open.iter().filter(|other| other.client == client).count();
        let mut made_room = false;
        if of_client >= self.most_of_one {
            if !leave(&mut open, |other| other.client == client) {
                return (Admission::TooMany, false);
            }
            made_room = true;
        } else if open.len() >= self.most {
            // Closes a connection of the client that has the most.
            let mut counts: HashMap<IpAddr, usize> = HashMap::new();
            for other in open.iter().filter(|other| other.waits_since().is_some()) {
                *counts.entry(other.client).or_default() += 1;
            }
            let most = counts.into_iter().max_by_key(|(_, count)| *count);
            made_room =
                most.is_some_and(|(most, _)| leave(&mut open, |other| other.client == most));
        }
        let connection = Arc::new(Connection {
            client,
            waits_since: Mutex::new(Some(Instant::now())),
            has_room: AtomicBool::new(false),
            leave: Notify::new(),
            all: self.clone(),
        });
        open.push(connection.clone());
        (Admission::Place(Place(connection)), made_room)
    }

    /// Closes the connections that only wait for their clients.
    pub(super) fn close_waiting(&self) {
        let mut open = self.open();
        while leave(&mut open, |_| true) {}
    }
}

/// Closes the connection that has waited longest for its client, among those for which `may` is true. `false` if there
/// is none.
fn leave(open: &mut Vec<Arc<Connection>>, may: impl Fn(&Connection) -> bool) -> bool {
    let waiting = open.iter().enumerate().filter(|(_, other)| may(other));
    let waiting = waiting.filter_map(|(i, other)| Some((other.waits_since()?, i)));
    let Some((_, longest)) = waiting.min() else {
        return false;
    };
    open.swap_remove(longest).leave.notify_one();
    true
}

/// The client behind an address. For IPv6, it is the network that a provider gives to one customer.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let network = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address => address,
    }
}

impl Connection {
    fn waits_since(&self) -> Option<Instant> {
        *self
            .waits_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_waiting(&self, waits: bool) {
        let since = waits.then(Instant::now);
        *self
            .waits_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = since;
        if waits {
            self.all.room.notify_one();
        }
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> AtWork {
        self.set_waiting(false);
        AtWork(self.clone())
    }

    /// A request waits for its client.
    pub(super) fn wait(self: &Arc<Self>) -> Waits {
        self.set_waiting(true);
        Waits(self.clone())
    }

    /// The client.
    pub(super) fn client(&self) -> IpAddr {
        self.client
    }

    /// Whether its reply takes [room](super::reply_room) from now on.
    pub(super) fn takes_room(&self, takes: bool) {
        self.has_room.store(takes, Relaxed);
    }

    /// Whether its reply takes [room](super::reply_room).
    pub(super) fn has_room(&self) -> bool {
        self.has_room.load(Relaxed)
    }

    /// Waits until the connection should be closed to make room.
    pub(super) async fn must_leave(&self) {
        self.leave.notified().await;
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.set_waiting(true);
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.set_waiting(false);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let all = &self.0.all;
        all.open().retain(|other| !Arc::ptr_eq(other, &self.0));
        all.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(all: &Arc<Connections>, address: &str) -> Option<Place> {
        match all.admit(address.parse().unwrap()).0 {
            Admission::Place(place) => Some(place),
            Admission::TooMany => None,
        }
    }

    /// Whether the connection is still among the open ones.
    fn is_open(place: &Place) -> bool {
        let open = place.0.all.open();
        open.iter().any(|other| Arc::ptr_eq(other, &place.0))
    }

    #[test]
    fn the_idle_make_room_and_the_busy_do_not() {
        let all = Connections::new(5, 3);
        let own: Vec<_> = (0..3).map(|_| admit(&all, "10.0.0.1").unwrap()).collect();
        let first = own[0].0.begin();
        // The address has reached its limit, so its connection that has waited longest is closed.
        let fourth = admit(&all, "::ffff:10.0.0.1").unwrap();
        let open: Vec<bool> = own.iter().map(is_open).collect();
        assert_eq!((open, is_open(&fourth)), (vec![true, false, true], true));
        let busy = [own[2].0.begin(), fourth.0.begin()];
        assert!(admit(&all, "10.0.0.1").is_none());
        // All places are taken: of those who wait, the address with most of them makes room.
        let others = [
            admit(&all, "2001:db8::1").unwrap(),
            admit(&all, "2001:db8::2").unwrap(),
        ];
        let third = admit(&all, "10.0.0.3").unwrap();
        assert_eq!((is_open(&others[0]), is_open(&others[1])), (false, true));
        assert_eq!(all.len(), 5);
        // While the server waits for a body, the connection counts as waiting for its client.
        let waits = own[0].0.wait();
        assert!(admit(&all, "10.0.0.1").is_some());
        assert!(!is_open(&own[0]));
        drop((waits, first, busy));
        all.close_waiting();
        assert_eq!(all.len(), 0);
        drop((own, others, third, fourth));
    }
}
