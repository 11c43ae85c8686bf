//! HTTP requests of commands to a node, with limits on time and on the size of the answer.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::failure::{Exit, Failure};

/// The limit of a whole request, including the connection.
const LIMIT: Duration = Duration::from_secs(10);

/// Maximum number of bytes of an answer.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The address of a node's HTTP server: host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    authority: String,
}

impl From<SocketAddr> for Origin {
    fn from(address: SocketAddr) -> Self {
        Origin { authority: address.to_string() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl Origin {
    /// Parses `http://host:port`, with or without a trailing slash.
    pub(super) fn parse(url: &str) -> Result<Self, Failure> {
        let told = || Failure::new(Exit::Usage, format!("--url {url:?}: the form is http://HOST:PORT"));
        let uri: Uri = url.parse().map_err(|_| told())?;
        let fits =
            uri.scheme_str() == Some("http") && uri.query().is_none() && matches!(uri.path(), "" | "/");
        match uri.authority() {
            Some(authority) if fits && !authority.as_str().contains('@') => {
                let port = authority.port_u16().unwrap_or(80);
                Ok(Origin { authority: format!("{}:{port}", authority.host()) })
            }
            _ => Err(told()),
        }
    }
}

/// Requests `path` with `token` and returns the body.
pub(super) async fn get(origin: &Origin, path: &str, token: &str) -> Result<Vec<u8>, Failure> {
    let request = Request::get(path).header("authorization", format!("Bearer {token}"));
    send(origin, request, Vec::new()).await
}

/// Logs in with a password and returns the token.
pub(super) async fn login(origin: &Origin, email: &str, password: &str) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Credentials<'a> {
        email: &'a str,
        password: &'a str,
    }
    #[derive(Deserialize)]
    struct Token {
        token: String,
    }
    let failed = |_| Failure::new(Exit::Failed, format!("{origin} answers with no token"));
    let credentials = serde_json::to_vec(&Credentials { email, password }).map_err(failed)?;
    let request = Request::post("/auth/login").header("content-type", "application/json");
    let answer = send(origin, request, credentials).await?;
    serde_json::from_slice::<Token>(&answer).map(|answer| answer.token).map_err(failed)
}

async fn send(
    origin: &Origin,
    request: hyper::http::request::Builder,
    body: Vec<u8>,
) -> Result<Vec<u8>, Failure> {
    let away =
        |reason: String| Failure::new(Exit::Unavailable, format!("{origin} does not answer: {reason}"));
    let (status, body) = match tokio::time::timeout(LIMIT, exchange(&origin.authority, request, body)).await {
        Err(_) => return Err(away(format!("not within {} ms", LIMIT.as_millis()))),
        Ok(Err(error)) => return Err(away(error.to_string())),
        Ok(Ok(answer)) => answer,
    };
    if status.is_success() {
        return Ok(body);
    }
    let exit = if status.is_server_error() { Exit::Unavailable } else { Exit::Failed };
    Err(Failure::new(exit, format!("{origin} answers {status}{}", detail(&body))))
}

/// Extracts the detail of a problem (RFC 9457).
fn detail(body: &[u8]) -> String {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Problem {
        detail: String,
    }
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    let shown: String = problem.detail.chars().filter(|c| !c.is_control()).take(200).collect();
    if shown.is_empty() { shown } else { format!(": {shown}") }
}

async fn exchange(
    authority: &str,
    request: hyper::http::request::Builder,
    body: Vec<u8>,
) -> Result<(StatusCode, Vec<u8>), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(authority).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = request.header("host", authority).body(Full::new(Bytes::from(body)))?;
    // The task ends once the answer is read or the peer has closed the connection.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await?.to_bytes();
    Ok((status, body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_http_with_a_host() {
        for (url, authority) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://front/", "front:80"),
            ("http://[::1]:81", "[::1]:81"),
        ] {
            assert_eq!(Origin::parse(url).unwrap().authority, authority, "{url}");
        }
        for bad in
            ["front:8080", "https://front", "http://front/cluster", "http://u:canary@front", "http://", ""]
        {
            assert_eq!(Origin::parse(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn of_a_failure_its_detail_is_told() {
        assert_eq!(detail(br#"{"detail": "A token is needed\u001b", "code": "x"}"#), ": A token is needed");
        assert_eq!(detail(b"<html>"), "");
    }
}
