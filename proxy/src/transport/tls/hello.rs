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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::transport::tls::provider;

    fn hello(name: &'static str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_name_is_found_once_the_message_is_whole() {
        let bytes = hello("Users.example");
        for end in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..end]), Hello::Incomplete, "{end}");
        }
        assert_eq!(client_hello(&bytes), Hello::Whole(Some("users.example".into())));
        assert_eq!(client_hello(&hello("10.0.0.1")), Hello::Whole(None));
        assert_eq!(client_hello(b"GET / HTTP/1.1\r\n\r\n"), Hello::Other);
    }

    proptest! {
        /// Whatever comes, there is an answer.
        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0_usize..300, with: u8) {
            client_hello(&bytes);
            let mut bytes = hello("users.example");
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            client_hello(&bytes);
        }
    }
}
