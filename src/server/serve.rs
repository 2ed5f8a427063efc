//! Accepts connections, and ends them in good order.
//!
//! Knows no routes.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use futures::future::join_all;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt as _;
use tracing::{debug, error, info, warn};

use crate::engine::{EngineHandle, EngineStatus};

use super::models::ServedModels;
use super::state::{App, AppState, turned};
use super::unread::Unread;
use crate::server::ServerConfig;

/// Time for the last bytes to reach their readers once all requests have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often it is looked which models are idle for too long.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Why a server ended otherwise than in order.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener has no address.
    #[error("the listener has no address")]
    Address(#[from] io::Error),
    /// The engine has stopped by itself. Nothing can be served until it is started anew.
    #[error("the engine has stopped: {0}")]
    EngineDied(Arc<str>),
}

/// How the accepting of connections ended.
enum End {
    Ordered,
    EngineDied(Arc<str>),
}

/// Serves `models`, which may be one [`crate::Llm`], on `listener` until `shutdown` completes, and then drains: new requests get 503, running ones have
/// `config.drain_timeout` to finish, and what is left ends with an error. The engine takes no requests afterwards.
///
/// Where the engine stops by itself, the server ends too, `config.engine_death_notice` later: until then `/health` says
/// why.
///
/// # Errors
/// [`ServeError`]: the engine has stopped by itself, or the listener has no address.
pub async fn serve(
    listener: TcpListener,
    models: impl Into<ServedModels>,
    config: ServerConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let address = listener.local_addr()?;
    let app = AppState::new(models.into(), config);
    let mut server = Server {
        listener,
        router: super::routes(app.clone()),
        permits: Arc::new(Semaphore::new(app.config.max_connections.clamp(1, Semaphore::MAX_PERMITS))),
        connections: JoinSet::new(),
        closing: watch::Sender::new(false),
        app,
    };
    info!(%address, "listening");
    let end = match server.accept_until_end(shutdown).await {
        End::Ordered => server.drain().await,
        died => died,
    };
    server.close().await;
    match end {
        End::Ordered => Ok(()),
        End::EngineDied(reason) => Err(ServeError::EngineDied(reason)),
    }
}

struct Server {
    listener: TcpListener,
    router: Router,
    app: App,
    permits: Arc<Semaphore>,
    connections: JoinSet<()>,
    closing: watch::Sender<bool>,
}

impl Server {
    /// Accepts until `shutdown`, or until the engine has been dead for as long as it is told.
    async fn accept_until_end(&mut self, shutdown: impl Future<Output = ()>) -> End {
        let (models, notice) = (self.app.models.clone(), self.app.config.engine_death_notice);
        let end = async {
            let mut shutdown = pin!(shutdown);
            let reason = tokio::select! {
                biased;
                () = shutdown.as_mut() => return End::Ordered,
                reason = models.died() => reason,
            };
            error!(%reason, notice_s = notice.as_secs(), "the engine has stopped; the server ends");
            // An order to stop is obeyed at once: it changes nothing but the wait.
            let _ = tokio::time::timeout(notice, shutdown).await;
            End::EngineDied(reason)
        };
        self.accept_until(end).await
    }

    async fn accept_until<T>(&mut self, end: impl Future<Output = T>) -> T {
        let mut end = pin!(end);
        let mut look = tokio::time::interval(IDLE_INTERVAL);
        loop {
            tokio::select! {
                biased;
                value = &mut end => return value,
                _ = look.tick() => self.unload_expired(),
                Some(_) = self.connections.join_next() => {}
                (stream, peer, permit) = accept(&self.listener, &self.permits) => self.spawn(stream, peer, permit),
            }
        }
    }

    /// Models that nobody has used for as long as they are kept leave.
    fn unload_expired(&self) {
        let models = self.app.models.clone();
        tokio::spawn(async move { models.unload_expired().await });
    }

    fn spawn(&mut self, stream: TcpStream, peer: SocketAddr, permit: Option<OwnedSemaphorePermit>) {
        // Tokens are small and people wait for each; a socket that refuses this still works.
        let _ = stream.set_nodelay(true);
        let connection = connection(stream, peer, self.router.clone(), self.app.clone(), self.closing.subscribe());
        self.connections.spawn(async move {
            let _permit = permit;
            connection.await;
        });
    }

    /// Goes on answering (503 to what is new) until no request runs, or cuts what still does.
    async fn drain(&mut self) -> End {
        self.app.models.close();
        let engines = self.app.models.engines();
        engines.iter().for_each(EngineHandle::drain);
        info!(timeout_s = self.app.config.drain_timeout.as_secs(), "draining");
        let idle =
            tokio::time::timeout(self.app.config.drain_timeout, join_all(engines.iter().map(EngineHandle::idle)));
        if self.accept_until(idle).await.is_err() {
            warn!("the drain timeout is over; what still runs is ended");
            self.app.cut.send_replace(true);
        }
        for engine in &engines {
            if let EngineStatus::Dead(reason) = engine.status() {
                return End::EngineDied(reason);
            }
        }
        engines.iter().for_each(|engine| engine.shutdown("the server is shutting down"));
        End::Ordered
    }

    /// Lets answers that are complete reach their readers, for a while.
    async fn close(mut self) {
        self.closing.send_replace(true);
        let ended =
            tokio::time::timeout(CLOSE_TIMEOUT, async { while self.connections.join_next().await.is_some() {} });
        if ended.await.is_err() {
            warn!(connections = self.connections.len(), "closing connections whose readers do not read");
        }
        self.connections.shutdown().await;
    }
}

/// The next connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed, so there is always a permit in the end.
    let permit = permits.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(error) => {
                warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, app: App, mut closing: watch::Receiver<bool>) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let router = router.clone();
        async move { router.oneshot(request).await.map_err(|never: Infallible| never) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.header_timeout)
        .serve_connection(TokioIo::new(Unread::new(stream, app.config.write_timeout)), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = turned(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, %peer, "a connection ended early");
    }
}
