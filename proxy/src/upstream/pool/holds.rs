//! What a worker's exchanges and tunnels hold of an endpoint's connections.
//!
//! Each has a [`Hold`] on its way, which says to all workers for whom it is (see `service::admission`). Where others wait
//! for a connection and its client has more than its share, it may be ended: it is woken then. A response whose client
//! takes nothing of it is looked at by nobody, though, and so its body is kept here, where it can be dropped from
//! without: with it goes the connection.
//!
//! Holds are used again, so that a request makes none.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::Pool;
use crate::proto::BodyError;
use crate::proto::body::Stream;
use crate::service::{Client, Holder};

/// All of a pool's.
#[derive(Default)]
pub(super) struct Holds {
    all: RefCell<Vec<Rc<Seat>>>,
    spare: RefCell<Vec<Rc<Seat>>>,
}

struct Seat {
    holder: Arc<Holder>,
    /// Who is to be told that it is ended.
    waker: RefCell<Option<Waker>>,
    /// The body of the response.
    response: RefCell<Option<Stream>>,
}

/// What an exchange, or a tunnel, holds of an endpoint until it is dropped: nothing before it has a connection.
pub struct Hold {
    seat: Rc<Seat>,
    pool: Rc<Pool>,
    client: Client,
    has_body: Cell<bool>,
}

impl Pool {
    /// What something of this client's is going to hold.
    pub fn hold(self: &Rc<Self>, client: Client) -> Hold {
        let spare = self.holds.spare.borrow_mut().pop();
        let seat = spare.unwrap_or_else(|| {
            let holder = self.target.connections.holder(&self.target.load);
            let seat = Rc::new(Seat { holder, waker: RefCell::default(), response: RefCell::default() });
            self.holds.all.borrow_mut().push(seat.clone());
            seat
        });
        Hold { seat, pool: self.clone(), client, has_body: Cell::new(false) }
    }

    /// Ends what is to be ended for others.
    pub fn end_holds(&self) {
        let ended = |seat: &&Rc<Seat>| seat.holder.is_ended();
        let ended: Vec<Rc<Seat>> = self.holds.all.borrow().iter().filter(ended).cloned().collect();
        for seat in ended {
            let response = seat.response.take();
            drop(response);
            if let Some(waker) = seat.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Hold {
    pub(super) fn client(&self) -> Client {
        self.client
    }

    /// It has a connection from now on, or is about to have one.
    pub(super) fn begin(&self) {
        self.seat.holder.begin(self.client, self.pool.timers.now(), self.has_body.get());
    }

    /// Whether a body is under way that can be ended for others.
    pub fn set_body(&self, has_body: bool) {
        self.has_body.set(has_body);
        self.seat.holder.set_body(has_body);
    }

    /// What counts the bytes that move, and may do so for longer than this is there.
    pub fn counter(&self) -> Arc<Holder> {
        self.seat.holder.clone()
    }

    /// Bytes have moved.
    pub fn moved(&self, bytes: usize) {
        self.seat.holder.moved(bytes);
    }

    /// Ready once it has to end for others.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_ended() {
            return Poll::Ready(());
        }
        let mut waker = self.seat.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether it has to end for others.
    pub fn is_ended(&self) -> bool {
        self.seat.holder.is_ended()
    }

    /// The body of the response, which ends with this.
    pub fn respond(self, body: Stream) -> Held {
        self.set_body(true);
        self.seat.response.replace(Some(body));
        Held(self)
    }

    /// Drops the body of the response, and all that it holds.
    fn let_go(&self) {
        let response = self.seat.response.take();
        drop(response);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.let_go();
        self.seat.holder.end();
        self.seat.waker.take();
        self.pool.holds.spare.borrow_mut().push(self.seat.clone());
    }
}

/// A response's body that may be ended for others.
pub struct Held(Hold);

impl Held {
    /// Whether it was.
    pub fn is_ended(&self) -> bool {
        self.0.is_ended()
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self(hold) = &*self;
        if hold.poll_ended(cx).is_ready() {
            hold.let_go();
            return Poll::Ready(Some(Err(BodyError::GivenUp)));
        }
        let Some(mut response) = hold.seat.response.take() else { return Poll::Ready(None) };
        let frame = response.as_mut().poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            hold.moved(data.len());
        }
        hold.seat.response.replace(Some(response));
        frame
    }

    fn is_end_stream(&self) -> bool {
        let Self(hold) = self;
        // What was ended has its error to tell yet.
        !hold.is_ended() && hold.seat.response.borrow().as_ref().is_none_or(|response| response.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let Self(hold) = self;
        hold.seat.response.borrow().as_ref().map_or_else(SizeHint::default, |response| response.size_hint())
    }
}
