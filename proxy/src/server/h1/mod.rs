//! HTTP/1 from clients.
//!
//! One task serves a connection: it reads a request's head, drives the exchange and then the response's body, and has
//! an eye on the client all the while, whose going away cancels what is under way. What the connection needs for that
//! is made when something arrives and dropped when nothing has for a moment: an idle connection is a stream and a
//! waiting task.
//!
//! Requests are served one after the other. Those that a client sends ahead wait where they are, in a buffer of some
//! KiB and then in the client's own.

mod codec;
mod socket;

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body as _;
use tokio::io::AsyncWriteExt;

use self::codec::{After, Asks, Head, Limits, decode_request, encode_response, response_form};
use self::socket::{Begun, Socket, Writer};
use super::client_body::{whole_within_limits, within_limits};
use super::connection::{BLOCKED, Connection, FAREWELL, is_readable};
use super::exchange::{self, Answer, Next};
use super::refusal::Refusal;
use super::worker::Worker;
use crate::proto::h1::{self, Framing, SendError, Sender};
use crate::proto::{Body, Request};
use crate::timer::Deadline;
use crate::transport::Stream;

/// A connection that was idle for this long is put away.
const PARKED_AFTER: Duration = Duration::from_millis(200);

/// What a client has to take within [`BLOCKED`], in bytes. Who takes one now and then takes nothing: the endpoint's
/// connection would be kept for ever for it.
const LEAST: u64 = 1024;

/// Up to this size what was read too early is copied: what is kept while a request is served, maybe for long, must not
/// keep a large block of read buffer with it.
const SMALL: usize = 4 * 1024;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Serves a connection until it ends, or is no longer HTTP: then what it becomes.
pub async fn serve(connection: Rc<Connection>, mut stream: Stream) -> Option<(Stream, Next)> {
    let idle_timeout = connection.listener.settings.idle_timeout;
    loop {
        let socket = Socket::new(stream, &connection.worker.scratch);
        let ended = Box::pin(Serving::new(&connection, &socket).run()).await;
        stream = socket.take()?;
        match ended {
            Ended::Idle => {}
            Ended::Changed(next) => return Some((stream, next)),
            Ended::Last { all_read } => {
                close(&connection.worker, stream, all_read).await;
                return None;
            }
            Ended::GivenUp => return None,
            Ended::Cut => {
                stream.break_off();
                return None;
            }
        }
        drop(socket);
        if !is_readable(&connection, &mut stream, idle_timeout).await {
            close(&connection.worker, stream, true).await;
            return None;
        }
    }
}

/// How serving a connection ended.
enum Ended {
    /// Nothing has happened for a moment.
    Idle,
    /// The client and somebody else speak something else on it now.
    Changed(Next),
    /// The last response has been written. What the client may still be sending is no request.
    Last { all_read: bool },
    /// The client has gone away or was too slow, or the response broke off.
    GivenUp,
    /// The same within a body that ends with the connection: its end must not look like that.
    Cut,
}

/// What the client has sent, between requests.
enum Arrived {
    Request(Head),
    Refused(Refusal),
    /// Nothing for a moment.
    Nothing,
    End,
}

/// A connection on which something happens.
struct Serving<'a> {
    connection: &'a Rc<Connection>,
    socket: &'a Rc<Socket>,
    sender: Sender,
    deadline: Deadline,
    limits: Limits,
}

impl<'a> Serving<'a> {
    fn new(connection: &'a Rc<Connection>, socket: &'a Rc<Socket>) -> Self {
        let settings = &connection.listener.settings;
        let limits =
            Limits { headers: settings.max_headers, bytes: settings.max_header_bytes, target: settings.max_uri_bytes };
        let deadline = connection.worker.timers.deadline(PARKED_AFTER);
        Self { connection, socket, sender: Sender::default(), deadline, limits }
    }

    /// Serves one request after another.
    async fn run(mut self) -> Ended {
        loop {
            let arrived = self.next_request().await;
            let _under_way = self.connection.worker.begin();
            let is_request = matches!(arrived, Arrived::Request(_));
            let (answer, asks) = match arrived {
                Arrived::Request(head) => match self.answer(head).await {
                    Some(answered) => answered,
                    None => return Ended::GivenUp,
                },
                Arrived::Refused(refusal) => (self.refuse(&refusal), Asks::NOTHING_MORE),
                Arrived::Nothing => return Ended::Idle,
                Arrived::End => return Ended::Last { all_read: true },
            };
            let Answer { response, next } = answer;
            let (head, body) = response.into_parts();
            let worker = &self.connection.worker;
            let leaves = worker.is_leaving() || self.connection.is_outlived();
            let keep_alive = self.socket.begin_response() && !leaves;
            let form = response_form(head.status, body.size_hint().exact(), asks, keep_alive);
            let date = worker.date.at(worker.timers.now());
            encode_response(&head, form, asks.version, &date, self.sender.output());
            self.sender.follow_with(body, form.body, asks.trailers);
            drop(head);
            if !self.send().await {
                return if form.body == Some(Framing::UntilClose) { Ended::Cut } else { Ended::GivenUp };
            }
            let whole = self.socket.is_at_end_of_body();
            match (form.after, next) {
                (After::Changed, Some(next)) if whole => return Ended::Changed(next),
                (After::Open, _) if whole => {}
                _ => return Ended::Last { all_read: is_request && whole && !self.socket.has_input() },
            }
        }
    }

    /// Waits for the head of another request.
    async fn next_request(&mut self) -> Arrived {
        let mut held = BytesMut::new();
        let mut unread = self.socket.take_input();
        let mut begun = None;
        self.deadline.reset(PARKED_AFTER);
        poll_fn(|cx| {
            loop {
                if !unread.is_empty() {
                    if begun.is_none() {
                        begun = Some(self.connection.worker.begin());
                        self.deadline.reset(self.connection.listener.settings.header_timeout);
                    }
                    match self.take_head(&mut held, std::mem::take(&mut unread)) {
                        Ok(Some(head)) => return Poll::Ready(Arrived::Request(head)),
                        Ok(None) => {}
                        Err(refusal) => return Poll::Ready(Arrived::Refused(refusal)),
                    }
                }
                match self.socket.poll_read(h1::HEAD, cx) {
                    Poll::Ready(Ok(read)) if !read.is_empty() => unread = read,
                    Poll::Ready(_) => return Poll::Ready(Arrived::End),
                    Poll::Pending => return self.poll_too_late(begun.is_some(), cx),
                }
            }
        })
        .await
    }

    fn poll_too_late(&mut self, begun: bool, cx: &mut Context<'_>) -> Poll<Arrived> {
        if !begun && self.connection.worker.is_draining() {
            return Poll::Ready(Arrived::End);
        }
        ready!(self.deadline.poll_passed(cx));
        Poll::Ready(if begun { Arrived::Refused(Refusal::HeadTimeout) } else { Arrived::Nothing })
    }

    /// The head that begins with what is held and goes on with what was read; none while it is incomplete. Then what
    /// there is of it is held in a buffer of its own, and not read anew before a line has ended.
    fn take_head(&self, held: &mut BytesMut, read: Bytes) -> Result<Option<Head>, Refusal> {
        if held.is_empty() {
            let head = decode_request(&read, self.limits)?;
            match &head {
                Some(head) => self.put_back_after(head, read),
                None => held.extend_from_slice(&read),
            }
            return Ok(head);
        }
        let ends_a_line = read.contains(&b'\n');
        held.extend_from_slice(&read);
        if !ends_a_line && held.len() <= self.limits.bytes {
            return Ok(None);
        }
        let head = decode_request(held, self.limits)?;
        if let Some(head) = &head {
            self.put_back_after(head, std::mem::take(held).freeze());
        }
        Ok(head)
    }

    fn put_back_after(&self, head: &Head, mut read: Bytes) {
        if head.length < read.len() {
            read.advance(head.length);
            let is_small = read.len() <= SMALL;
            self.socket.put_input(if is_small { Bytes::copy_from_slice(&read) } else { read });
        }
    }

    /// Has a request answered; none when the client goes away in the meantime.
    async fn answer(&mut self, head: Head) -> Option<(Answer, Asks)> {
        let Head { parts, framing, asks, .. } = head;
        let body = match self.socket.begin_body(framing, asks.to_continue) {
            Begun::Whole(bytes) if bytes.is_empty() => Ok(Body::Empty),
            Begun::Whole(bytes) => whole_within_limits(bytes, self.connection),
            Begun::Rest(body) => within_limits(body, self.connection),
        };
        let body = match body {
            Ok(body) => body,
            Err(refusal) => return Some((exchange::refuse(self.connection, &parts, &refusal), asks)),
        };
        let mut exchange = pin!(exchange::serve(self.connection.clone(), Request::from_parts(parts, body)));
        poll_fn(|cx| {
            self.socket.attend(cx);
            if let Poll::Ready(answer) = exchange.as_mut().poll(cx) {
                return Poll::Ready(Some((answer, asks)));
            }
            if self.socket.takes_word_to_continue() {
                self.sender.output().extend_from_slice(CONTINUE);
            }
            if self.sender.is_blocked()
                && let Poll::Ready(Err(_)) = self.sender.poll_send(&mut Writer(self.socket), cx)
            {
                return Poll::Ready(None);
            }
            self.socket.poll_gone(cx).map(|()| None)
        })
        .await
    }

    /// Says why what has arrived is no request.
    fn refuse(&self, refusal: &Refusal) -> Answer {
        refusal.record(&self.connection.worker.unrouted, Instant::now());
        refusal.response(self.connection.listener.settings.expose_addresses).into()
    }

    /// Writes the response; whether the client has it.
    async fn send(&mut self) -> bool {
        let mut pace = Pace::default();
        let mut is_cut = false;
        poll_fn(|cx| {
            self.socket.attend(cx);
            let mut sent = self.sender.poll_send(&mut Writer(self.socket), cx);
            // A client that gets the head, and not the end, knows that there was an answer.
            if matches!(sent, Poll::Ready(Err(SendError::Body(_)))) {
                is_cut = true;
                self.sender.cut();
                sent = self.sender.poll_send(&mut Writer(self.socket), cx);
            }
            if let Poll::Ready(sent) = sent {
                return Poll::Ready(sent.is_ok() && !is_cut);
            }
            if self.socket.poll_gone(cx).is_ready() {
                return Poll::Ready(false);
            }
            if !self.sender.is_blocked() {
                pace = Pace::default();
                return Poll::Pending;
            }
            if pace.is_kept(self.sender.taken()) {
                self.deadline.reset(BLOCKED);
            }
            self.deadline.poll_passed(cx).map(|()| false)
        })
        .await
    }
}

/// How a client takes what waits for it.
#[derive(Default)]
struct Pace {
    /// What it had taken when its time began.
    mark: Option<u64>,
}

impl Pace {
    /// Whether its time begins anew, now that it has taken so much (a count that may wrap).
    fn is_kept(&mut self, taken: u64) -> bool {
        let is_kept = self.mark.is_none_or(|mark| taken.wrapping_sub(mark) >= LEAST);
        if is_kept {
            self.mark = Some(taken);
        }
        is_kept
    }
}

/// A refusal as the last bytes on a stream, where what came is not for HTTP/1 to answer.
pub fn last_bytes(worker: &Worker, refusal: &Refusal) -> Vec<u8> {
    let (head, body) = refusal.response(false).into_parts();
    let asks = Asks::NOTHING_MORE;
    let form = response_form(head.status, body.size_hint().exact(), asks, false);
    let mut bytes = Vec::new();
    encode_response(&head, form, asks.version, &worker.date.at(worker.timers.now()), &mut bytes);
    if let Body::Full(text) = body {
        bytes.extend_from_slice(&text);
    }
    bytes
}

/// Closes a connection after its last response, once the client has seen that it is the last. What it may still be
/// sending is taken for a while: were the socket closed instead, the client would be told that the connection was
/// reset, and might never see the response (RFC 9112, 9.6).
pub async fn close(worker: &Worker, mut stream: Stream, all_read: bool) {
    let ended = worker.timers.within(FAREWELL, stream.shutdown()).await;
    if all_read || !matches!(ended, Ok(Ok(()))) {
        return;
    }
    drop(stream.take_ahead());
    let mut deadline = worker.timers.deadline(FAREWELL);
    poll_fn(|cx| {
        while !worker.is_draining() && deadline.poll_passed(cx).is_pending() {
            match ready!(worker.scratch.poll_read(&mut stream, h1::BODY, cx)) {
                Ok(read) if !read.is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_now_and_then_is_no_pace() {
        let mut pace = Pace::default();
        let begin = u64::MAX - 100;
        let kept = |pace: &mut Pace, taken| pace.is_kept(begin.wrapping_add(taken));
        assert!(kept(&mut pace, 0), "its time begins");
        for taken in 0..LEAST {
            assert!(!kept(&mut pace, taken), "{taken}");
        }
        assert!(kept(&mut pace, LEAST));
        assert!(!kept(&mut pace, 2 * LEAST - 1));
        assert!(kept(&mut pace, 9 * LEAST));
    }
}
