//! Another attempt after a failed one.
//!
//! A request has up to `attempts` tries under one overall `timeout`, and each asks the balancer again: the semantics of
//! go-kit's `lb.Retry`. The balancer is told what was tried, so that each try goes to another endpoint while there is one.
//!
//! # What is tried again
//!
//! What may have gone well at the endpoint must not be done twice. So a request is sent again where it provably did not
//! leave the proxy, or the endpoint said that it did not process it, or its method is idempotent (RFC 9110, 9.2.2); and
//! otherwise only with `non_idempotent`. A gRPC call is a `POST` and knows no idempotence: with `non_idempotent` all the
//! calls of a service are tried again that end with one of `grpc_statuses`.
//!
//! Tried again are connections that do not come about, requests that are refused, reset or not answered in time, and the
//! answers in `statuses` and `grpc_statuses`. By default these say that somebody in between had no answer, or that the
//! endpoint has too much to do; 500 is the answer of a program that will most likely fail in the same way again.
//!
//! # When
//!
//! After a time drawn evenly from 0 to a bound that begins with `backoff` and doubles with each try up to `max_backoff`
//! ("full jitter": of the ways to spread clients that failed together, the one with the least work in all; M. Brooker,
//! "Exponential Backoff And Jitter", 2015). The defaults of 25 and 250 ms are Envoy's. `Retry-After` says when the
//! endpoint that sent it wants to be asked again. While another endpoint is eligible that was not tried, the request goes
//! there without waiting for it. Otherwise there is no attempt before that time; and where that is more than
//! `retry_after_max`, the client is told so instead of being kept waiting.
//!
//! # Settings
//!
//! | name | default | meaning |
//! |---|---|---|
//! | `attempts` | 3 | tries in all, the first and a hedge counted (1 to 16) |
//! | `timeout` | none | for all of them together, delays and the wait in the service's queue counted |
//! | `per_try_timeout` | the service's `request_timeout` | for each, up to the response's head |
//! | `backoff`, `max_backoff` | 25ms, 250ms | see above (up to 60s) |
//! | `statuses` | 502, 503, 504 | HTTP statuses that are tried again |
//! | `grpc_statuses` | unavailable | gRPC statuses that are tried again |
//! | `retry_after_max` | 1s | the longest `Retry-After` that is waited for (up to 60s) |
//! | `non_idempotent` | false | whether what is not idempotent is tried again though it was sent |
//! | `hedge` | off | `p95`: a second try beside a first one that is slower than the 95th percentile of late (from 2 `attempts` on) |

mod settings;

use std::time::Duration;

use heddle_plugin::{Config, Kind, Outcome, Random, Request, RetryPolicy, Terms};
use settings::Settings;

struct Retry {
    settings: Settings,
    random: Random,
}

impl Retry {
    fn is_to_be_tried_again(&self, outcome: &Outcome) -> bool {
        match outcome.kind() {
            Kind::Response => {
                outcome.status().is_some_and(|status| self.settings.statuses.contains(&status))
                    || outcome.grpc_status().is_some_and(|status| self.settings.grpc_statuses.contains(&status))
            }
            // Where nobody could be asked, there will be nobody a moment later; the client can wait as well.
            Kind::NoEndpoint | Kind::ClientGone | Kind::Broken => false,
            _ => true,
        }
    }

    fn may_be_sent_again(&self, request: &Request, outcome: &Outcome) -> bool {
        outcome.replayable() == Some(true)
            && (outcome.sent() == Some(false)
                || self.settings.non_idempotent
                || request.method().is_some_and(|method| is_idempotent(&method)))
    }

    /// A random delay after so many attempts.
    fn backoff(&mut self, attempts: u32) -> Duration {
        let doubled = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        let bound = self.settings.backoff.saturating_mul(doubled).min(self.settings.max_backoff);
        Duration::from_millis(self.random.below(bound.as_millis() as u64 + 1))
    }
}

/// RFC 9110, 9.2.2.
fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

impl RetryPolicy for Retry {
    fn new(config: Config<'_>, seed: u64) -> Result<Self, String> {
        Ok(Self { settings: Settings::read(config)?, random: Random::new(seed) })
    }

    fn terms(&self) -> Terms {
        let Settings { timeout, per_try_timeout, hedge, .. } = self.settings;
        Terms { timeout, try_timeout: per_try_timeout, hedging: hedge }
    }

    fn decide(&mut self, request: &Request, outcome: &Outcome) -> Option<Duration> {
        if !self.is_to_be_tried_again(outcome) || !self.may_be_sent_again(request, outcome) {
            return None;
        }
        let attempts = request.attempt();
        let others = outcome.others_eligible().unwrap_or(0);
        let asked = outcome.retry_after().filter(|_| others == 0).unwrap_or_default();
        if attempts >= self.settings.attempts || asked > self.settings.retry_after_max {
            return None;
        }
        Some(self.backoff(attempts).max(asked))
    }
}

heddle_plugin::export_retry_policy!(Retry);

#[cfg(test)]
mod tests;
