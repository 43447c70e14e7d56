//! What HTTP versions have in common: messages, bodies, and the headers that a proxy treats.
//!
//! An exchange is an [`http::Request`] and an [`http::Response`] over our own [`Body`]. No type of the library that
//! speaks a protocol version appears outside the files that speak it.

pub mod body;
pub mod deadline;
pub mod frames;
pub mod grpc;
pub mod h1;
pub mod headers;
pub mod http2;
pub mod names;
pub mod trailers;
pub mod upgrade;

pub use body::{Body, BodyError};

/// A request as it goes through the proxy.
pub type Request = http::Request<Body>;

/// A response as it goes through the proxy.
pub type Response = http::Response<Body>;
