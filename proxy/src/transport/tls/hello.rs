//! What a client's first message says, looked at before anybody answers it.

use rustls::server::Acceptor;

/// What the beginning of a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed to tell.
    Incomplete,
    /// TLS, for the server of this name in lower case, if the client gives one (SNI).
    Whole(Option<Box<str>>),
    /// Something else, or TLS that cannot be understood.
    Other,
}

/// Reads the client's first message from the first bytes of a stream.
pub fn client_hello(mut start: &[u8]) -> Hello {
    let mut acceptor = Acceptor::default();
    loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(|name| name.to_ascii_lowercase().into_boxed_str());
                return Hello::Whole(name);
            }
            Ok(None) if start.is_empty() => return Hello::Incomplete,
            Ok(None) => {}
            Err(_) => return Hello::Other,
        }
        if acceptor.read_tls(&mut start).is_err() {
            return Hello::Other;
        }
    }
}
