//! Whether an endpoint answers a request with a status that will do.

use std::ops::RangeInclusive;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri, Version};

use super::exchange::{self, Answer};
use super::{Failed, Target, USER};
use crate::config::checked::{HttpCheck, UpstreamProtocol};
use crate::transport::tls::{H2, HTTP_1_1};

/// Asks in the protocol that the service's requests are sent in.
///
/// # Errors
///
/// When there is no whole answer, or its status will not do. Of a long body, the beginning counts as the whole.
pub async fn check(target: &Target, check: &HttpCheck) -> Result<(), Failed> {
    let protocol = target.settings().protocol;
    let offered: &[&[u8]] = match protocol {
        UpstreamProtocol::Negotiated | UpstreamProtocol::Opaque => &[H2, HTTP_1_1],
        UpstreamProtocol::Http1 => &[HTTP_1_1],
        UpstreamProtocol::Http2 => &[H2],
    };
    let (stream, agreed) = target.connect(&[], offered).await?;
    let host = target.host(check.host.as_ref())?;
    let Answer { status, .. } = if agreed || protocol == UpstreamProtocol::Http2 {
        let uri = Uri::builder().scheme(target.scheme()).authority(host).path_and_query(check.path.clone());
        let request = Request::builder().method(check.method.clone()).version(Version::HTTP_2);
        let request = request.uri(uri.build()?).header(USER_AGENT, USER).body(())?;
        exchange::http2(stream, request, Bytes::new()).await?
    } else {
        let host = HeaderValue::from_str(host.as_str()).map_err(http::Error::from)?;
        let request = Request::builder().method(check.method.clone()).uri(Uri::from(check.path.clone()));
        let request = request.header(HOST, host).header(USER_AGENT, USER).header(CONNECTION, "close");
        exchange::http1(stream, request.body(())?).await?
    };
    if accepts(&check.statuses, status) { Ok(()) } else { Err(Failed::Status(status)) }
}

fn accepts(statuses: &[RangeInclusive<u16>], status: StatusCode) -> bool {
    statuses.iter().any(|range| range.contains(&status.as_u16()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_that_will_do() {
        let accepted = |status: u16| accepts(&[200..=200, 300..=399], StatusCode::from_u16(status).unwrap());
        let all = [200, 201, 299, 300, 399, 400, 500];
        assert_eq!(all.map(accepted), [true, false, false, true, true, false, false]);
    }
}
