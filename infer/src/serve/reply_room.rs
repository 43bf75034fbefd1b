//! Limits the memory for large replies, in total and for each client.
//!
//! A reply holds room from its request until the connection has taken its last byte. A client can hold at most half of
//! all room, and must read at a minimum [speed](super::client) while it holds any, so no client keeps others out for
//! long.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::connections::Connection;

/// The room for large replies.
#[derive(Debug)]
pub(super) struct ReplyRooms {
    bytes: usize,
    /// The bytes that each client holds. Every entry is above 0.
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// The room that a reply holds, until this value is dropped.
#[derive(Debug)]
pub(super) struct ReplyRoom {
    bytes: usize,
    connection: Arc<Connection>,
    all: Arc<ReplyRooms>,
}

impl ReplyRooms {
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        let taken = Mutex::default();
        Arc::new(Self { bytes, taken })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that are taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().values().sum()
    }

    /// Takes room for a reply of this size on `connection`; `None` if its client cannot have that much now.
    pub(super) fn take(
        self: &Arc<Self>,
        bytes: usize,
        connection: &Arc<Connection>,
    ) -> Option<ReplyRoom> {
        let mut taken = self.lock();
        let own = taken.get(&connection.client()).copied().unwrap_or(0);
        let fits = |taken: usize, room| taken.checked_add(bytes).is_some_and(|sum| sum <= room);
        if !fits(own, self.bytes / 2) || !fits(taken.values().sum(), self.bytes) {
            return None;
        }
        taken.insert(connection.client(), own + bytes);
        connection.takes_room(true);
        Some(ReplyRoom {
            bytes,
            connection: connection.clone(),
            all: self.clone(),
        })
    }
}

impl ReplyRoom {
    /// Gives back the room that a reply of this size does not need.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        self.give_back(surplus);
    }

    fn give_back(&self, bytes: usize) {
        let mut taken = self.all.lock();
        let client = self.connection.client();
        let Some(own) = taken.get_mut(&client) else {
            return;
        };
        *own = own.saturating_sub(bytes);
        if *own == 0 {
            taken.remove(&client);
        }
    }
}

impl Drop for ReplyRoom {
    fn drop(&mut self) {
        self.give_back(self.bytes);
        self.connection.takes_room(false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::connections::{Admission, Connections};
    use super::*;

    #[test]
    fn a_client_takes_half_of_the_room() {
        let connections = Connections::new(10, 10);
        let connect = |address: &str| match connections.admit(address.parse().unwrap()).0 {
            Admission::Place(place) => place.0.clone(),
            Admission::TooMany => panic!("too many"),
        };
        let rooms = ReplyRooms::new(400);
        let (own, other) = (connect("10.0.0.1"), connect("10.0.0.2"));
        let first = rooms.take(100, &own);
        let mut second = rooms.take(100, &connect("::ffff:10.0.0.1"));
        assert!(own.has_room() && first.is_some() && second.is_some());
        assert!(rooms.take(1, &own).is_none());
        assert!(rooms.take(usize::MAX, &other).is_none());
        let third = rooms.take(200, &other);
        assert!(third.is_some() && rooms.take(1, &connect("10.0.0.3")).is_none());
        assert_eq!(rooms.taken(), 400);
        // A reply is seldom as long as it could have been.
        second.as_mut().unwrap().shrink_to(10);
        assert!(rooms.take(90, &own).is_some());
        drop((first, second));
        assert_eq!((rooms.taken(), own.has_room()), (200, false));
        drop(third);
        assert_eq!(rooms.taken(), 0);
        assert!(rooms.lock().is_empty());
    }
}
