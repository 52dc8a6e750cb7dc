//! Tells the tasks of a worker that serve open inbound calls when these may no longer be allowed: policies or the mode of
//! mutual TLS have changed. Each judges its calls again, and ends those that are now refused.
//!
//! A task registers once for a connection or relay, so a request costs nothing, and no timer runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use hashbrown::HashMap;

/// The changes that a worker has seen, and the tasks that are woken by the next one.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    seen: Cell<u64>,
    next_key: Cell<u64>,
    tasks: RefCell<HashMap<u64, Waker>>,
}

/// A task is woken by each change until this is dropped.
pub(crate) struct Registration {
    changes: Rc<Changes>,
    key: u64,
}

impl Changes {
    /// How many changes there were. Read it before the configuration: a call that is judged by an older configuration
    /// is then judged again.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.get()
    }

    /// There is another change.
    pub(crate) fn announce(&self) {
        self.seen.set(self.seen.get() + 1);
        self.tasks.borrow().values().for_each(Waker::wake_by_ref);
    }

    /// Wakes a task by each change.
    pub(crate) fn register(self: &Rc<Self>, task: Waker) -> Registration {
        let key = self.next_key.replace(self.next_key.get() + 1);
        self.tasks.borrow_mut().insert(key, task);
        Registration { changes: self.clone(), key }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut tasks = self.changes.tasks.borrow_mut();
        tasks.remove(&self.key);
        if tasks.is_empty() {
            tasks.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn tasks_are_woken_by_each_change_while_they_are_registered() {
        let changes = Rc::new(Changes::default());
        let woken = [(); 2].map(|()| Arc::new(Count(AtomicUsize::new(0))));
        let [first, second] = woken.each_ref().map(|count| changes.register(count.clone().into()));
        let counts = || woken.each_ref().map(|count| count.0.load(Ordering::Relaxed));
        let seen = changes.seen();
        changes.announce();
        assert_eq!((changes.seen(), counts()), (seen + 1, [1, 1]));
        drop(first);
        changes.announce();
        assert_eq!(counts(), [1, 2]);
        drop(second);
        assert!(changes.tasks.borrow().is_empty());
    }
}
