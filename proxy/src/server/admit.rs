//! Admission to a service: where the number of its requests is limited, each has a place among them or waits for one.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::refusal::{Limit, Refusal};
use crate::service::{Admitted, Service};
use crate::timer::Timers;

/// A place among the requests of the service, none where there is no limit; and since when it is there, for a request
/// that arrived at the time `began`. A service that is full is waited for in its queue, if it has one, but not beyond the
/// tick `until` of the request's own deadline.
///
/// # Errors
///
/// When the service is full, or the deadline passes.
pub(super) async fn admit(
    service: &Service,
    timers: &Rc<Timers>,
    began: Instant,
    until: Option<u64>,
) -> Result<(Option<Admitted>, Instant), Refusal> {
    let settings = &service.settings;
    let Some(limit) = settings.max_requests else { return Ok((None, began)) };
    if let Some(admitted) = service.fleet.requests.try_admit(limit) {
        return Ok((Some(admitted), began));
    }
    let full = |limit| Refusal::Full { service: service.name().to_string(), limit };
    let most = usize::try_from(settings.max_pending).unwrap_or(usize::MAX);
    let mut waiting = service.fleet.requests.wait(limit, most).ok_or_else(|| full(Limit::Requests))?;
    let mut patience = timers.deadline(settings.max_pending_time);
    let mut deadline = until.map(|tick| timers.deadline_at(tick));
    let admitted = poll_fn(|cx| {
        if let Poll::Ready(admitted) = Pin::new(&mut waiting).poll(cx) {
            return Poll::Ready(admitted.ok_or_else(|| full(Limit::Requests)));
        }
        if deadline.as_mut().is_some_and(|deadline| deadline.poll_passed(cx).is_ready()) {
            return Poll::Ready(Err(Refusal::Deadline));
        }
        patience.poll_passed(cx).map(|()| Err(full(Limit::Pending)))
    })
    .await?;
    Ok((Some(admitted), Instant::now()))
}
