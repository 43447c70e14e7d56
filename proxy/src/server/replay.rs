//! A request's body that may have to be sent again.
//!
//! What is here already is lent to each attempt as it is. A body that arrives while it is sent is kept on the way, up to a
//! bound: the next attempt gets what was kept, and then what is yet to come. One that has outgrown the bound is kept no
//! longer, and can be sent again only while nothing of it was taken. What is kept is a copy: a piece could hold on to the
//! whole block of which it is a part. Only what is a large part of any block is shared, so that the memory held on to is four
//! times the bound at most.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::proto::body::Stream;
use crate::proto::{Body, BodyError};

/// Smaller pieces are copied together. The largest blocks are those that connections are read with, of 80 KiB: less than
/// three times as much.
const LARGE: usize = 32 * 1024;

/// The body of a request that may have several attempts.
pub(super) enum Replay {
    /// For one attempt only.
    Once(Body),
    Empty,
    Full(Bytes),
    Stream(Rc<RefCell<Kept>>),
}

/// A body that arrives, and what was kept of it.
pub(super) struct Kept {
    stream: Stream,
    pieces: Vec<Bytes>,
    /// Copies of the smaller pieces that come after these.
    small: BytesMut,
    /// Bytes of all of them.
    length: usize,
    /// The most that is kept.
    limit: usize,
    /// Whether something was taken and is not kept.
    lost: bool,
    /// What the body ended with, once it has ended.
    end: Option<Option<HeaderMap>>,
}

impl Replay {
    /// Keeps up to `limit` bytes; without a limit the body is given to the first attempt as it is.
    pub fn new(body: Body, limit: Option<usize>) -> Self {
        let Some(limit) = limit else { return Self::Once(body) };
        let stream: Stream = match body {
            Body::Empty => return Self::Empty,
            Body::Full(bytes) if bytes.len() > limit => Box::pin(Body::Full(bytes)),
            Body::Full(bytes) if bytes.len() < LARGE => return Self::Full(Bytes::copy_from_slice(&bytes)),
            Body::Full(bytes) => return Self::Full(bytes),
            Body::Stream(stream) => stream,
        };
        Self::Stream(Rc::new(RefCell::new(Kept {
            // Of a body that is known to be too large, nothing is kept.
            limit: if stream.size_hint().lower() > limit as u64 { 0 } else { limit },
            stream,
            pieces: Vec::new(),
            small: BytesMut::new(),
            length: 0,
            lost: false,
            end: None,
        })))
    }

    /// The body for one attempt, while there is no other.
    pub fn body(&mut self) -> Body {
        match self {
            Self::Once(body) => std::mem::take(body),
            Self::Empty => Body::Empty,
            Self::Full(bytes) => Body::Full(bytes.clone()),
            Self::Stream(kept) => Replayed::body(kept),
        }
    }

    /// Whether it can be sent again from its beginning.
    pub fn is_replayable(&self) -> bool {
        match self {
            Self::Once(_) => false,
            Self::Empty | Self::Full(_) => true,
            Self::Stream(kept) => !kept.borrow().lost,
        }
    }

    /// The body for an attempt beside another one; none where not all of it is here.
    pub fn whole(&self) -> Option<Body> {
        match self {
            Self::Once(_) => None,
            Self::Empty => Some(Body::Empty),
            Self::Full(bytes) => Some(Body::Full(bytes.clone())),
            Self::Stream(kept) => kept.borrow().is_whole().then(|| Replayed::body(kept)),
        }
    }
}

impl Kept {
    fn is_whole(&self) -> bool {
        !self.lost && self.end.is_some()
    }

    fn keep(&mut self, data: &Bytes) {
        self.length += data.len();
        if self.lost || self.length > self.limit {
            self.lose();
        } else if data.len() < LARGE {
            self.small.extend_from_slice(data);
        } else {
            if !self.small.is_empty() {
                self.pieces.push(self.small.split().freeze());
            }
            self.pieces.push(data.clone());
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        self.pieces = Vec::new();
        self.small = BytesMut::new();
    }

    /// What was kept from a place on, up to the end of a piece.
    fn from(&mut self, mut place: usize) -> Option<Bytes> {
        if !self.small.is_empty() {
            self.pieces.push(self.small.split().freeze());
        }
        for piece in &self.pieces {
            if place < piece.len() {
                return Some(piece.slice(place..));
            }
            place -= piece.len();
        }
        None
    }
}

/// The body as one attempt sends it.
struct Replayed {
    kept: Rc<RefCell<Kept>>,
    sent: usize,
    ended: bool,
}

impl Replayed {
    fn body(kept: &Rc<RefCell<Kept>>) -> Body {
        Body::Stream(Box::pin(Self { kept: kept.clone(), sent: 0, ended: false }))
    }
}

impl HttpBody for Replayed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let kept = &mut *this.kept.borrow_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if !kept.lost && this.sent < kept.length {
            let data = kept.from(this.sent);
            this.sent = data.as_ref().map_or(kept.length, |data| this.sent + data.len());
            return Poll::Ready(data.map(|data| Ok(Frame::data(data))));
        }
        if let Some(end) = &kept.end {
            this.ended = true;
            return Poll::Ready(end.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = match ready!(kept.stream.as_mut().poll_frame(cx)) {
            None => {
                kept.end = Some(None);
                this.ended = true;
                return Poll::Ready(None);
            }
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                kept.lose();
                return Poll::Ready(Some(Err(error)));
            }
        };
        if let Some(data) = frame.data_ref() {
            kept.keep(data);
            this.sent = kept.length;
        } else if let Some(trailers) = frame.trailers_ref() {
            kept.end = Some(Some(trailers.clone()));
            this.ended = true;
        }
        if kept.end.is_none() && kept.stream.is_end_stream() {
            kept.end = Some(None);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        let is_behind = !kept.lost && self.sent < kept.length;
        self.ended || !is_behind && kept.end.as_ref().map_or_else(|| kept.stream.is_end_stream(), Option::is_none)
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        let behind = if kept.lost { 0 } else { kept.length.saturating_sub(self.sent) as u64 };
        let mut hint = match &kept.end {
            Some(None) => SizeHint::with_exact(0),
            // A message whose length is said has no trailers.
            Some(Some(_)) => SizeHint::default(),
            None => kept.stream.size_hint(),
        };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(behind));
        }
        hint.set_lower(hint.lower().saturating_add(behind));
        hint
    }
}

#[cfg(test)]
mod tests;
