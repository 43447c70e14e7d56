//! Who the admin server may be called.
//!
//! A page in somebody's browser can have a name of its own point to 127.0.0.1, and then read whatever a server there
//! answers (DNS rebinding). The browser says in `Host` which name it was. So over TCP the host has to be an address,
//! `localhost`, or a name that the configuration has; a request without one, as HTTP/1.0 has it, is from no browser.
//! The Unix socket is out of reach for pages.

use std::net::{IpAddr, Ipv6Addr};

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, StatusCode, Version};

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong {
    pub status: StatusCode,
    pub text: &'static str,
}

const MISDIRECTED: Wrong = Wrong {
    status: StatusCode::MISDIRECTED_REQUEST,
    text: "the host is not this server's: expected an address, localhost, or one of `hosts` of [admin]",
};
const BAD: Wrong = Wrong { status: StatusCode::BAD_REQUEST, text: "expected one Host that is a host" };

/// Whether a request is for a server with these names.
///
/// # Errors
///
/// [`Wrong`] where it is not: 421, or 400 where `Host` is missing in HTTP/1.1, doubled or malformed.
pub fn check<B>(request: &http::Request<B>, names: &[String]) -> Result<(), Wrong> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let written = hosts.next();
    if hosts.next().is_some() || (written.is_none() && request.version() > Version::HTTP_10) {
        return Err(BAD);
    }
    if let Some(written) = written {
        check_host(&authority(written).ok_or(BAD)?, names)?;
    }
    request.uri().authority().map_or(Ok(()), |authority| check_host(authority, names))
}

fn authority(written: &HeaderValue) -> Option<Authority> {
    let authority = Authority::try_from(written.as_bytes()).ok()?;
    (!authority.as_str().contains('@')).then_some(authority)
}

fn check_host(authority: &Authority, names: &[String]) -> Result<(), Wrong> {
    let host = authority.host();
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')?.parse::<Ipv6Addr>().ok()).is_some();
    let is_known = |name: &String| name.eq_ignore_ascii_case(host);
    let is_ours =
        is_v6 || host.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost") || names.iter().any(is_known);
    if is_ours { Ok(()) } else { Err(MISDIRECTED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: Version, target: &str, hosts: &[&str]) -> u16 {
        let mut request = http::Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let names = ["heddle.example".to_owned()];
        let checked = check(&request.body(()).unwrap(), &names);
        checked.map_or_else(|wrong| wrong.status.as_u16(), |()| 200)
    }

    /// Issue 10, 15: a name that somebody else has chosen is not this server's.
    #[test]
    fn the_host_is_an_address_localhost_or_a_configured_name() {
        for host in [
            "127.0.0.1:4191",
            "10.1.2.3",
            "[::1]:4191",
            "[fe80::1]",
            "localhost",
            "LOCALHOST.:80",
            "heddle.example:4191",
            "Heddle.Example.",
        ] {
            assert_eq!(status(Version::HTTP_11, "/live", &[host]), 200, "{host}");
        }
        for host in ["rebind.example", "localhost.example:4191", "127.0.0.1.nip.io", "x.heddle.example", "2130706433"] {
            assert_eq!(status(Version::HTTP_11, "/live", &[host]), 421, "{host}");
            let target = format!("http://{host}/live");
            assert_eq!(status(Version::HTTP_11, &target, &["localhost"]), 421, "{target}");
            assert_eq!(status(Version::HTTP_10, "/live", &[host]), 421, "{host}");
        }
        for hosts in [&[][..], &["localhost", "localhost"], &[""], &["a b"], &["u@localhost"]] {
            assert_eq!(status(Version::HTTP_11, "/live", hosts), 400, "{hosts:?}");
        }
        assert_eq!(status(Version::HTTP_10, "/live", &[]), 200);
    }
}
