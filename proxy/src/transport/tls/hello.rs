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

/// Reads the client's first message, which comes in several pieces as often as not: the shares of its key exchange alone
/// are larger than a packet. Each byte is looked at once.
#[derive(Default)]
pub struct HelloReader {
    acceptor: Acceptor,
    /// Bytes of the stream that it has been given.
    taken: usize,
}

impl HelloReader {
    /// What the first bytes of a stream say, of which this has seen a part before. Not to be asked again once it has said
    /// more than that more are needed.
    pub fn read(&mut self, start: &[u8]) -> Hello {
        let mut more = start.get(self.taken..).unwrap_or_default();
        self.taken = start.len();
        loop {
            match self.acceptor.accept() {
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                    return Hello::Whole(name.map(String::into_boxed_str));
                }
                Ok(None) if more.is_empty() => return Hello::Incomplete,
                Ok(None) => {}
                Err(_) => return Hello::Other,
            }
            if self.acceptor.read_tls(&mut more).is_err() {
                return Hello::Other;
            }
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

    fn client_hello(start: &[u8]) -> Hello {
        HelloReader::default().read(start)
    }

    /// Issue 10, 11: larger than a packet, in whatever pieces it comes, and also cut into records.
    #[test]
    fn a_message_of_several_packets_is_read_in_any_pieces() {
        let bytes = hello("users.example");
        assert!(bytes.len() > 1400, "{}", bytes.len());
        let (header, message) = bytes.split_at(5);
        let records: Vec<u8> = message
            .chunks(700)
            .flat_map(|part| [&header[..3], &(part.len() as u16).to_be_bytes(), part].concat())
            .collect();
        for bytes in [&bytes, &records] {
            for size in [1, 5, 6, 536, 1000, 1440, bytes.len()] {
                let mut reader = HelloReader::default();
                let mut end = 0;
                let found = loop {
                    end = (end + size).min(bytes.len());
                    match reader.read(&bytes[..end]) {
                        Hello::Incomplete => assert!(end < bytes.len(), "{size}"),
                        found => break found,
                    }
                };
                assert_eq!((found, end), (Hello::Whole(Some("users.example".into())), bytes.len()), "{size}");
            }
        }
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
