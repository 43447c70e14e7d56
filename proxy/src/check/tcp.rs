//! Whether an endpoint takes connections: of TCP, and of TLS where the service has it.

use tokio::io::AsyncWriteExt;

use super::{Failed, Target};
use crate::transport::proxy_protocol;

/// Connects, and ends the connection in good order. Where the service's connections begin with a PROXY protocol header,
/// this one does too, with one that says that the proxy speaks for itself.
///
/// # Errors
///
/// When there is no connection.
pub async fn check(target: &Target) -> Result<(), Failed> {
    let header = target.settings().proxy_protocol.map(proxy_protocol::encode_local).unwrap_or_default();
    let (mut stream, _) = target.connect(&header, &[]).await?;
    let _it_was_there = stream.shutdown().await;
    Ok(())
}
