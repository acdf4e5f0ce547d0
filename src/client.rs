//! A blocking JSON-RPC client: what the command-line tool and the tests speak.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rpc::{Framer, FramingLimits};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long an answer may take: a change waits for task management, which is bounded by half a minute.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("no daemon answers at {}: {error}. Remedy: start one with \"polluxd -r {}\", or name its socket with -r", path.display(), path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The connection broke, or the answer cannot be read.
    #[error("the daemon's answer cannot be read: {0}")]
    Broken(String),
    /// The daemon refused.
    #[error("{message} (code {code})")]
    Refused {
        /// JSON-RPC error code.
        code: i32,
        /// Its text.
        message: String,
    },
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    result: Value,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    code: i32,
    message: String,
}

/// A connection to a daemon.
pub struct Client {
    stream: UnixStream,
    framer: Framer,
}

impl Client {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`].
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let fail = |error| ClientError::NoDaemon { path: path.to_owned(), error };
        let stream = UnixStream::connect(path).map_err(fail)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(fail)?;
        // Answers may be long; they come from a daemon that was checked by the socket's mode.
        let limits = FramingLimits { bytes_max: 256 << 20, depth_max: 128, values_max: u32::MAX };
        Ok(Client { stream, framer: Framer::new(limits) })
    }

    /// Waits for answers this long instead of two minutes.
    ///
    /// # Errors
    /// [`ClientError::Broken`] when the time is zero.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), ClientError> {
        self.stream.set_read_timeout(Some(timeout)).map_err(|error| ClientError::Broken(error.to_string()))
    }

    /// Calls `method` and waits for its result.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call(&mut self, method: &str, params: Option<Value>) -> Result<Value, ClientError> {
        let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
        if let Some(params) = params {
            request["params"] = params;
        }
        let broken = |error: io::Error| ClientError::Broken(error.to_string());
        self.stream.write_all(request.to_string().as_bytes()).map_err(broken)?;
        let mut chunk = vec![0u8; 64 * 1024];
        loop {
            if let Some(text) =
                self.framer.next_text().map_err(|error| ClientError::Broken(error.to_string()))?
            {
                let answer: Answer =
                    serde_json::from_slice(&text).map_err(|error| ClientError::Broken(error.to_string()))?;
                return match answer.error {
                    None => Ok(answer.result),
                    Some(Refusal { code, message }) => Err(ClientError::Refused { code, message }),
                };
            }
            let length = self.stream.read(&mut chunk).map_err(broken)?;
            if length == 0 {
                return Err(ClientError::Broken("the daemon closed the connection".to_owned()));
            }
            self.framer.push(chunk.get(..length).unwrap_or_default());
        }
    }
}
