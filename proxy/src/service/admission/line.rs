//! Those who wait for their turn.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

/// Those who wait: each wants a `W` and is given a `G`. Who came first is looked at first.
///
/// A `G` gives itself back when dropped, for which it may well come back to this line: none is dropped while the lock
/// is held.
#[derive(Debug)]
pub(super) struct Line<W, G> {
    /// How many wait, to be looked at without the lock.
    length: AtomicUsize,
    queue: Mutex<Queue<W, G>>,
}

#[derive(Debug)]
struct Queue<W, G> {
    /// Numbers that were given out so far.
    numbers: u64,
    waiters: VecDeque<Waiter<W, G>>,
}

#[derive(Debug)]
struct Waiter<W, G> {
    number: u64,
    wants: W,
    turn: oneshot::Sender<G>,
}

impl<W, G> Default for Line<W, G> {
    fn default() -> Self {
        Self { length: AtomicUsize::new(0), queue: Mutex::new(Queue { numbers: 0, waiters: VecDeque::new() }) }
    }
}

impl<W, G> Line<W, G> {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.length.load(SeqCst)
    }

    /// Gets into the line, at its end; none when `most` are there. Afterwards somebody has to look whether there is
    /// room ([`Line::serve`]).
    pub fn join(&self, wants: W, most: usize) -> Option<Waiting<'_, W, G>> {
        let mut queue = self.lock();
        if queue.waiters.len() >= most {
            return None;
        }
        queue.numbers += 1;
        let number = queue.numbers;
        let (turn, comes) = oneshot::channel();
        queue.waiters.push_back(Waiter { number, wants, turn });
        self.length.store(queue.waiters.len(), SeqCst);
        Some(Waiting { line: self, number, turn: comes, has_come: false })
    }

    /// Gives a turn to the first for whom `take` finds something; those that are `late` come after all others.
    pub fn serve(&self, late: impl Fn(&W) -> bool, mut take: impl FnMut(&W) -> Option<G>) {
        loop {
            let mut queue = self.lock();
            let found = [false, true].into_iter().find_map(|is_late| {
                let waiters = queue.waiters.iter().enumerate().filter(|(_, waiter)| late(&waiter.wants) == is_late);
                waiters.into_iter().find_map(|(place, waiter)| Some((place, take(&waiter.wants)?)))
            });
            let Some((place, given)) = found else { return };
            let waiter = self.remove(&mut queue, place);
            drop(queue);
            match waiter.map(|waiter| waiter.turn.send(given)) {
                Some(Ok(())) => return,
                // It has left in this moment: what it was given goes back, and to the next.
                Some(Err(given)) => drop(given),
                None => {}
            }
        }
    }

    /// Whether `is_next` holds for anybody, and what the first such wants.
    pub fn any(&self, is_next: impl FnMut(&W) -> bool) -> bool {
        self.lock().waiters.iter().map(|waiter| &waiter.wants).any(is_next)
    }

    /// How many `is_next` holds for.
    pub fn count(&self, mut is_next: impl FnMut(&W) -> bool) -> usize {
        self.lock().waiters.iter().filter(|waiter| is_next(&waiter.wants)).count()
    }

    /// What everybody wants, as `of` has it.
    pub fn all<T>(&self, of: impl FnMut(&W) -> T) -> Vec<T> {
        self.lock().waiters.iter().map(|waiter| &waiter.wants).map(of).collect()
    }

    /// Has the last for whom `is_it` holds leave, without a turn.
    pub fn expel(&self, is_it: impl Fn(&W) -> bool) {
        let mut queue = self.lock();
        let place = queue.waiters.iter().rposition(|waiter| is_it(&waiter.wants));
        let expelled = place.and_then(|place| self.remove(&mut queue, place));
        drop(queue);
        drop(expelled);
    }

    /// Takes the first for whom `is_next` holds out of the line, if `is_meant` holds for it too; and its number. Those
    /// that are `late` come after all others.
    pub fn call(
        &self,
        late: impl Fn(&W) -> bool,
        is_next: impl Fn(&W) -> bool,
        is_meant: impl FnOnce(&W) -> bool,
    ) -> Option<(u64, oneshot::Sender<G>)> {
        let mut queue = self.lock();
        let wants = || queue.waiters.iter().map(|waiter| &waiter.wants);
        let place = wants().position(|wants| is_next(wants) && !late(wants)).or_else(|| wants().position(&is_next))?;
        if !queue.waiters.get(place).is_some_and(|waiter| is_meant(&waiter.wants)) {
            return None;
        }
        self.remove(&mut queue, place).map(|waiter| (waiter.number, waiter.turn))
    }

    fn leave(&self, number: u64) {
        let mut queue = self.lock();
        // Numbers grow along the line.
        if let Ok(place) = queue.waiters.binary_search_by_key(&number, |waiter| waiter.number) {
            self.remove(&mut queue, place);
        }
    }

    fn remove(&self, queue: &mut Queue<W, G>, place: usize) -> Option<Waiter<W, G>> {
        let waiter = queue.waiters.remove(place);
        self.length.store(queue.waiters.len(), SeqCst);
        waiter
    }

    fn lock(&self) -> MutexGuard<'_, Queue<W, G>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a line, which is left when this is dropped. It becomes what the turn brings; none if it never comes.
#[derive(Debug)]
pub struct Waiting<'a, W, G> {
    line: &'a Line<W, G>,
    number: u64,
    turn: oneshot::Receiver<G>,
    has_come: bool,
}

impl<W, G> Waiting<'_, W, G> {
    /// What nobody else in this line is called.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl<W, G> Future for Waiting<'_, W, G> {
    type Output = Option<G>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<G>> {
        let turn = ready!(Pin::new(&mut self.turn).poll(cx));
        self.has_come = true;
        Poll::Ready(turn.ok())
    }
}

impl<W, G> Drop for Waiting<'_, W, G> {
    fn drop(&mut self) {
        if !self.has_come {
            self.line.leave(self.number);
        }
    }
}
