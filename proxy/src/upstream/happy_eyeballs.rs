//! Connecting to one of several addresses: Happy Eyeballs version 2 (RFC 8305).
//!
//! A name may stand for addresses of which some do not answer at all: an IPv6 address where the path has none, a machine
//! that is gone. Trying one address after the other gives the first of these the whole connect timeout. Here the next
//! address is tried as soon as an attempt fails, or [`ATTEMPT_DELAY`] after the last attempt began; the earlier ones go
//! on, and the first connection that is established is used. The others are dropped, which closes them.
//!
//! Addresses keep the order in which the resolver gave them (RFC 6724 has sorted them by preference), but for the family,
//! which alternates from the first one's on (section 4, with a First Address Family Count of 1). The caller bounds the time of all
//! attempts together, so that at most one socket in 250 ms of its timeout is open at once, and never more than
//! [`MOST_AT_ONCE`]. A single address costs nothing of this.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::sleep;

/// The Connection Attempt Delay that RFC 8305 recommends (section 5).
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Attempts under way at once; the next one then waits for one of them to fail.
pub const MOST_AT_ONCE: usize = 16;

/// The addresses in the order in which they are tried: each once, families alternating as long as there are both.
pub fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else { return addresses };
    let is_preferred = first.is_ipv4();
    let (preferred, other): (Vec<SocketAddr>, Vec<SocketAddr>) =
        addresses.iter().copied().partition(|address| address.is_ipv4() == is_preferred);
    if other.is_empty() {
        return addresses;
    }
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    let mut ordered = Vec::with_capacity(addresses.len());
    loop {
        let pair = [preferred.next(), other.next()];
        if pair == [None, None] {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
}

/// The first connection that `connect` establishes to one of these addresses, tried in this order. None without an
/// address.
///
/// # Errors
///
/// The failure that came last, where every attempt failed.
pub async fn race<F, T, E>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    delay: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> Option<Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut addresses = addresses.into_iter().fuse().peekable();
    let mut under_way: Vec<Pin<Box<F>>> = Vec::new();
    let mut failure = None;
    loop {
        if under_way.len() < MOST_AT_ONCE
            && let Some(address) = addresses.next()
        {
            under_way.push(Box::pin(connect(address)));
        }
        if under_way.is_empty() {
            return failure.map(Err);
        }
        let may_begin_another = under_way.len() < MOST_AT_ONCE && addresses.peek().is_some();
        let mut next_is_due = pin!(sleep(delay));
        let connected = poll_fn(|cx| {
            let mut failed = false;
            let mut index = 0;
            while let Some(attempt) = under_way.get_mut(index) {
                match attempt.as_mut().poll(cx) {
                    Poll::Ready(Ok(connection)) => return Poll::Ready(Some(connection)),
                    Poll::Ready(Err(error)) => {
                        failure = Some(error);
                        failed = true;
                        drop(under_way.remove(index));
                    }
                    Poll::Pending => index += 1,
                }
            }
            let is_due = failed || may_begin_another && next_is_due.as_mut().poll(cx).is_ready();
            if is_due { Poll::Ready(None) } else { Poll::Pending }
        });
        if let Some(connection) = connected.await {
            return Some(Ok(connection));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::pending;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    /// Longer than a test may take.
    const NEVER: Duration = Duration::from_secs(3600);

    fn v4(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 80))
    }

    fn v6(last: u16) -> SocketAddr {
        SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 80))
    }

    /// Counts the attempts that are under way.
    struct UnderWay<'a>(&'a Cell<usize>);

    impl<'a> UnderWay<'a> {
        fn new(count: &'a Cell<usize>) -> Self {
            count.set(count.get() + 1);
            Self(count)
        }
    }

    impl Drop for UnderWay<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }

    #[test]
    fn families_alternate_from_the_first_ones_on() {
        assert_eq!(interleaved(vec![v6(1), v6(2), v6(3), v4(1), v4(2)]), [v6(1), v4(1), v6(2), v4(2), v6(3)]);
        assert_eq!(interleaved(vec![v4(1), v6(1), v6(2)]), [v4(1), v6(1), v6(2)]);
        assert_eq!(interleaved(vec![v4(2), v4(1)]), [v4(2), v4(1)]);
        assert_eq!(interleaved(Vec::new()), []);
    }

    /// Issue 10, 16: the first address, which does not answer, had the whole connect timeout.
    #[tokio::test]
    async fn an_address_that_does_not_answer_holds_up_no_other_one() {
        let (tried, count) = (RefCell::default(), Cell::new(0));
        let connect = async |address: SocketAddr| {
            let _counted = UnderWay::new(&count);
            RefCell::<Vec<SocketAddr>>::borrow_mut(&tried).push(address);
            if address == v4(1) { Ok::<_, ()>(address) } else { pending().await }
        };
        let connected = race([v6(1), v6(2), v4(1), v4(2)], SOON, connect).await;
        assert_eq!(connected, Some(Ok(v4(1))));
        assert_eq!(*tried.borrow(), [v6(1), v6(2), v4(1)], "no more than it takes");
        assert_eq!(count.get(), 0, "the others are cancelled");
    }

    #[tokio::test]
    async fn an_attempt_that_fails_is_followed_by_the_next_at_once() {
        let tried = RefCell::new(Vec::new());
        let connect = async |address: SocketAddr| {
            tried.borrow_mut().push(address);
            if address == v4(3) { Ok(address) } else { Err(address) }
        };
        assert_eq!(race([v4(1), v4(2), v4(3)], NEVER, connect).await, Some(Ok(v4(3))));
        assert_eq!(*tried.borrow(), [v4(1), v4(2), v4(3)]);
        assert_eq!(race([v4(1), v4(2)], NEVER, connect).await, Some(Err(v4(2))), "the last failure");
        assert_eq!(race([], NEVER, connect).await, None);
    }

    /// A slow address that was tried first wins where the later ones are slower still.
    #[tokio::test]
    async fn an_earlier_attempt_goes_on_beside_the_later_ones() {
        let (begun, later) = (Cell::new(0), tokio::sync::Notify::new());
        let connect = async |address: SocketAddr| {
            begun.set(begun.get() + 1);
            if begun.get() == 3 {
                later.notify_one();
            }
            if address == v4(1) {
                later.notified().await;
                return Ok::<_, ()>(address);
            }
            pending().await
        };
        assert_eq!(race([v4(1), v4(2), v4(3)], SOON, connect).await, Some(Ok(v4(1))));
    }

    #[tokio::test]
    async fn so_many_are_tried_at_once_and_no_more() {
        let (count, most) = (Cell::new(0), Cell::new(0));
        let connect = async |_: SocketAddr| {
            let _counted = UnderWay::new(&count);
            most.set(most.get().max(count.get()));
            pending::<Result<(), ()>>().await
        };
        let racing = race((0..200).map(v4), SOON, connect);
        assert!(tokio::time::timeout(SOON * 200, racing).await.is_err());
        assert!((2..=MOST_AT_ONCE).contains(&most.get()), "{}", most.get());
        assert_eq!(count.get(), 0);
    }
}
