//! A wrapper of epoll.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};
use rustix::io::Errno;

pub(crate) use rustix::event::epoll::EventFlags as Flags;

/// Events per wait.
const EVENTS: usize = 512;

/// An epoll instance. Closing a socket removes it.
pub(crate) struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(EVENTS) })
    }

    /// Registers a socket. Its events have this token.
    pub(crate) fn add(&self, socket: impl AsFd, token: usize, interest: Flags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token as u64), interest)?)
    }

    /// Changes the interest of a registered socket.
    pub(crate) fn modify(&self, socket: impl AsFd, token: usize, interest: Flags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(token as u64), interest)?)
    }

    /// Waits for events, at most this long. Returns tokens and flags.
    pub(crate) fn wait(&mut self, at_most: Option<Duration>) -> io::Result<impl Iterator<Item = (usize, Flags)>> {
        let timeout =
            at_most.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) });
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.events.drain(..).map(|event| {
            let (token, flags) = (event.data, event.flags);
            (token.u64() as usize, flags)
        }))
    }
}
