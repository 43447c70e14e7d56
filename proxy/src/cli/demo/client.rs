//! A client of the proxy: one connection, one request at a time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest that one request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("answered {status}: {text}")]
    Status { status: StatusCode, text: String },
}

/// One connection, made anew when it is gone.
pub struct Client {
    address: SocketAddr,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    /// The text of the answer to a GET of `target`, which may be a whole URL: so a proxy is asked.
    ///
    /// # Errors
    ///
    /// When there is no answer, or none of status 200.
    pub async fn get(&mut self, target: &str, host: &str) -> Result<String, ClientError> {
        timeout(PATIENCE, self.request(target, host)).await.unwrap_or(Err(ClientError::Late))
    }

    async fn request(&mut self, target: &str, host: &str) -> Result<String, ClientError> {
        let mut sender = match self.sender.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await?;
        let request = Request::get(target).header(HOST, host).body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let text = String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned();
        self.sender = Some(sender);
        if status == StatusCode::OK { Ok(text) } else { Err(ClientError::Status { status, text }) }
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, ClientError> {
        let address = self.address;
        let stream = TcpStream::connect(address).await.map_err(|source| ClientError::Connect { address, source })?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
