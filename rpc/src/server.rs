//! The server: accepts, checks who calls, reads, dispatches, answers in order.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::dispatch::error_text;
use crate::{BoundSocket, Dispatcher, Framer, FramingLimits, RpcError};

/// Bounds of the server.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Connections at a time; more wait to be accepted.
    pub connections_max: usize,
    /// Requests of one connection under way; more wait in the socket.
    pub pipelined_max: usize,
    /// How long a client may leave its answers unread before it is cut off.
    pub write_timeout: Duration,
    /// Bounds of one request.
    pub framing: FramingLimits,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            connections_max: 64,
            pipelined_max: 32,
            write_timeout: Duration::from_secs(30),
            framing: FramingLimits::default(),
        }
    }
}

/// A JSON-RPC server on a Unix socket.
pub struct Server {
    socket: BoundSocket,
    dispatcher: Dispatcher,
    limits: ServerLimits,
}

impl Server {
    /// A server on `socket`.
    #[must_use]
    pub fn new(socket: BoundSocket, dispatcher: Dispatcher, limits: ServerLimits) -> Server {
        Server { socket, dispatcher, limits }
    }

    /// Serves until `stop` becomes true, then lets calls under way finish and closes.
    ///
    /// # Errors
    /// The host system's, when it cannot listen.
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> io::Result<()> {
        let listener = self.socket.listener().try_clone()?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(self.limits.connections_max));
        let mut connections = JoinSet::new();
        let mut stopping = stop.clone();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = async {
                    let place = places.clone().acquire_owned().await.ok()?;
                    Some((listener.accept().await, place))
                } => accepted,
            };
            let Some((accepted, place)) = accepted else { break };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to come back instead of spinning.
                    tracing::warn!(target: "rpc", %error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if self.socket.admits(peer.uid()) => {}
                peer => {
                    tracing::warn!(target: "rpc", ?peer, "a caller of another user was refused");
                    continue;
                }
            }
            let (dispatcher, limits, stop) = (self.dispatcher.clone(), self.limits, stopping.clone());
            connections.spawn(async move {
                serve(stream, dispatcher, limits, stop).await;
                drop(place);
            });
        }
        let _ = stopping.wait_for(|stop| *stop).await;
        let drained = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(2), drained).await;
        Ok(())
    }
}

type Answers = mpsc::Sender<JoinHandle<Option<String>>>;

async fn serve(
    stream: UnixStream,
    dispatcher: Dispatcher,
    limits: ServerLimits,
    mut stop: watch::Receiver<bool>,
) {
    let (reader, writer) = stream.into_split();
    // A full channel stops the reading: that is the back-pressure on a client that pipelines without end.
    let (answers, queue) = mpsc::channel(limits.pipelined_max);
    let writing = tokio::spawn(write_answers(writer, queue, limits.write_timeout));
    tokio::select! {
        () = read_requests(reader, &dispatcher, limits.framing, &answers) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    drop(answers);
    let _ = writing.await;
}

async fn read_requests(
    mut reader: OwnedReadHalf,
    dispatcher: &Dispatcher,
    limits: FramingLimits,
    answers: &Answers,
) {
    let mut framer = Framer::new(limits);
    let mut chunk = vec![0u8; 16 * 1024];
    loop {
        let length = match reader.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        framer.push(chunk.get(..length).unwrap_or_default());
        loop {
            match framer.next_text() {
                Ok(None) => break,
                Ok(Some(text)) => {
                    let dispatcher = dispatcher.clone();
                    let call = tokio::spawn(async move { dispatcher.handle(&text).await });
                    if answers.send(call).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // Where the next request begins cannot be known: say so, and close.
                    let text = error_text("null", &RpcError::parse(format!("Parse error: {error}")));
                    let _ = answers.send(tokio::spawn(async move { Some(text) })).await;
                    return;
                }
            }
        }
    }
}

async fn write_answers(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<JoinHandle<Option<String>>>,
    timeout: Duration,
) {
    while let Some(call) = queue.recv().await {
        let text = match call.await {
            Ok(Some(mut text)) => {
                text.push('\n');
                text
            }
            Ok(None) => continue,
            Err(error) => {
                tracing::error!(target: "rpc", %error, "a handler failed");
                let error =
                    RpcError::internal("Internal error: the handler of this method failed; see the log");
                error_text("null", &error)
            }
        };
        match tokio::time::timeout(timeout, writer.write_all(text.as_bytes())).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{NoParameters, Phase, Registry, When};

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("pollux-srv-{name}-{}", std::process::id()))
    }

    async fn started(name: &str) -> (PathBuf, watch::Sender<bool>, JoinHandle<io::Result<()>>) {
        let gate = Arc::new(tokio::sync::Notify::new());
        let mut registry = Registry::new(gate, Phase::default(), "1");
        registry.register(
            "wait",
            When::Always,
            "Waits.",
            |gate: Arc<tokio::sync::Notify>, _: NoParameters| async move {
                gate.notified().await;
                Ok("waited")
            },
        );
        registry.register(
            "open",
            When::Always,
            "Opens.",
            |gate: Arc<tokio::sync::Notify>, _: NoParameters| async move {
                gate.notify_one();
                Ok("opened")
            },
        );
        registry.register(
            "die",
            When::Always,
            "Fails inside.",
            |_: Arc<tokio::sync::Notify>, _: NoParameters| async move {
                if true { panic!("on purpose") } else { Ok(1u8) }
            },
        );
        let path = place(name);
        let socket = BoundSocket::bind(&path).unwrap();
        let (stop, stopped) = watch::channel(false);
        let server = Server::new(socket, registry.finish(), ServerLimits::default());
        (path, stop, tokio::spawn(server.run(stopped)))
    }

    async fn exchange(path: &PathBuf, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn pipelined_calls_run_at_once_and_are_answered_in_order() {
        let (path, stop, server) = started("pipe").await;
        let text =
            exchange(&path, br#"{"id":1,"method":"wait"}{"id":2,"method":"open"}[{"id":3,"method":"open"}]"#)
                .await;
        let ids: Vec<&str> = text.lines().collect();
        assert_eq!(ids.len(), 3, "{text}");
        assert!(ids[0].contains("waited") && ids[1].contains("\"id\":2") && ids[2].starts_with("[{"));
        stop.send(true).unwrap();
        server.await.unwrap().unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn garbage_is_answered_and_ends_the_connection_only() {
        let (path, stop, server) = started("garbage").await;
        let text = exchange(&path, b"{\"id\":1,\"method\":\"open\"}GET / HTTP/1.1\r\n").await;
        assert!(text.contains("opened") && text.contains("-32700"), "{text}");
        let deep = "[".repeat(1000);
        assert!(exchange(&path, deep.as_bytes()).await.contains("deeper"));
        let text = exchange(&path, br#"{"id":1,"method":"die"}{"id":2,"method":"open"}"#).await;
        assert!(text.contains("-32603") && text.contains("opened"), "{text}");
        stop.send(true).unwrap();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_text_of_many_pieces_and_one_too_large() {
        let (path, stop, server) = started("pieces").await;
        let mut stream = UnixStream::connect(&path).await.unwrap();
        for byte in br#"{"id":1,"method":"open"}"# {
            stream.write_all(&[*byte]).await.unwrap();
        }
        let mut answer = [0u8; 128];
        let length = stream.read(&mut answer).await.unwrap();
        assert!(String::from_utf8_lossy(&answer[..length]).contains("opened"));
        let mut huge = b"{\"id\":1,\"method\":\"".to_vec();
        huge.resize(1024 * 1024 + 100, b'x');
        stream.write_all(&huge).await.ok();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        assert!(text.contains("longer than 1048576 bytes"), "{text}");
        stop.send(true).unwrap();
        server.await.unwrap().unwrap();
    }
}
