//! Two streams joined: what is read from one is written to the other, in both directions at once.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::Stream;
use crate::timer::Timers;

/// Joins two streams until both directions have ended, or nothing has moved in either for `idle_timeout`. The end of
/// one direction is passed on, and the other goes on.
///
/// # Errors
///
/// When a stream breaks.
pub async fn relay(
    timers: &Rc<Timers>,
    mut client: Stream,
    mut other: Stream,
    idle_timeout: Duration,
) -> io::Result<()> {
    let copied = tokio::io::copy_bidirectional(&mut client, &mut other);
    match timers.within(idle_timeout, copied).await {
        Ok(result) => result.map(drop),
        Err(_) => Ok(()),
    }
}
