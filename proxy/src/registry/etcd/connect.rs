//! One client for one member: options, TLS, and what its errors say.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use crate::config::checked::{self, Password};
use crate::supervise::blocking;

/// etcd takes HTTP/2 pings at most every 5 s (`--grpc-keepalive-min-time`), and none on a connection without a request
/// under way; it closes the connection of a client that sends more.
const PING_AT_MOST_EVERY: Duration = Duration::from_secs(6);

/// The longest password that is read from a file, in bytes.
const LONGEST_PASSWORD: u64 = 4096;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("cannot read {}: {error}", path.display())]
    File { path: PathBuf, error: std::io::Error },
    #[error("{} holds no password", .0.display())]
    NoPassword(PathBuf),
    #[error("{}", describe(.0))]
    Client(etcd_client::Error),
}

/// A client for `member`, logged in where a user is configured.
pub(super) async fn connect(config: &checked::Etcd, member: &str) -> Result<Client, ConnectError> {
    let ping = (config.liveness / 2).max(PING_AT_MOST_EVERY);
    let mut options = ConnectOptions::new()
        .with_connect_timeout(config.connect_timeout)
        .with_keep_alive(ping, config.liveness / 3)
        .with_keep_alive_while_idle(false)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    // Files are read at each login, so that a password or certificate that is renewed needs no restart; and not on this
    // thread, since a file system may take its time.
    let (login, with_tls) = (config.login.clone(), member.starts_with("https://").then(|| config.tls.clone()));
    let read = blocking(move || {
        let login = login.map(|login| Ok::<_, ConnectError>((login.user, password(login.password)?))).transpose()?;
        Ok::<_, ConnectError>((login, with_tls.map(|config| tls(config.as_ref())).transpose()?))
    });
    let (login, with_tls) = read.await?;
    if let Some((user, password)) = login {
        options = options.with_user(user, password);
    }
    if let Some(tls) = with_tls {
        options = options.with_tls(tls);
    }
    Client::connect([member], Some(options)).await.map_err(ConnectError::Client)
}

fn password(written: Password) -> Result<String, ConnectError> {
    let path = match written {
        Password::Text(text) => return Ok(text),
        Password::File(path) => path,
    };
    let read = crate::regular::read(&path, LONGEST_PASSWORD);
    let text = read.and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
    let text = match text {
        Ok(text) => text,
        Err(error) => return Err(ConnectError::File { path, error }),
    };
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(ConnectError::NoPassword(path)),
        password => Ok(password.to_owned()),
    }
}

fn tls(config: Option<&checked::EtcdTls>) -> Result<TlsOptions, ConnectError> {
    let mut options = TlsOptions::new();
    options = match config.and_then(|tls| tls.ca.as_deref()) {
        Some(ca) => options.ca_certificate(Certificate::from_pem(read(ca)?)),
        None => options.with_native_roots(),
    };
    if let Some((certificate, key)) = config.and_then(|tls| tls.client.as_ref()) {
        options = options.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    if let Some(name) = config.and_then(|tls| tls.server_name.as_ref()) {
        options = options.domain_name(name);
    }
    Ok(options)
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    crate::regular::read(path, crate::regular::TEXT)
        .map_err(|error| ConnectError::File { path: path.to_owned(), error })
}

/// An error of etcd-client with its causes, which its own text leaves out.
pub(super) fn describe(error: &etcd_client::Error) -> String {
    let (text, cause) = match error {
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        etcd_client::Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), None),
    };
    with_causes(text, cause)
}

/// Appends what each cause adds: several repeat another's text, or say no more than where they came from.
fn with_causes(mut text: String, mut cause: Option<&(dyn Error + 'static)>) -> String {
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) && more != "transport error" {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn each_cause_is_said_once() {
        let chain = ["transport error", "tcp connect error", "refused"].into_iter().rev();
        let chain = chain.fold(None, |source, text| Some(Box::new(Link { text, source })));
        let chain = chain.as_deref().map(|link| link as &(dyn Error + 'static));
        assert_eq!(with_causes("tcp connect error".into(), chain), "tcp connect error: refused");
        assert_eq!(with_causes("no leader".into(), None), "no leader");
    }
}
