//! An S3 server over a directory, as the `s3s-fs` crate has it, that counts what is put and may stop taking it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::Method;
use hyper_util::rt::{TokioExecutor, TokioIo};

/// The server; it ends with the runtime.
#[derive(Clone)]
pub(crate) struct S3 {
    pub(crate) url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    put_bytes: AtomicU64,
    puts: AtomicUsize,
    /// Puts that are taken; the next one waits for ever.
    most: AtomicUsize,
}

impl S3 {
    /// Serves the directories of `root` as buckets, to whoever asks.
    pub(crate) async fn serve(root: &Path) -> Self {
        let service = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap()).build();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State { most: AtomicUsize::new(usize::MAX), ..State::default() });
        let server = Self { url, state: Arc::clone(&state) };
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                stream.set_nodelay(true).unwrap();
                let (service, state) = (service.clone(), Arc::clone(&state));
                tokio::spawn(async move {
                    let counted = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let (service, state) = (service.clone(), Arc::clone(&state));
                        async move {
                            if request.method() == Method::PUT {
                                if state.puts.fetch_add(1, Ordering::SeqCst) >= state.most.load(Ordering::SeqCst) {
                                    std::future::pending::<()>().await;
                                }
                                let length = request.headers().get("content-length");
                                let bytes = length.map_or(0, |value| value.to_str().unwrap().parse().unwrap());
                                state.put_bytes.fetch_add(bytes, Ordering::SeqCst);
                            }
                            hyper::service::Service::call(&service, request).await
                        }
                    });
                    let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // A client that has what it wants, or is killed, closes the connection.
                    let _ = http.serve_connection(TokioIo::new(stream), counted).await;
                });
            }
        });
        server
    }

    /// Bytes that were put, in whole objects and in parts.
    pub(crate) fn put_bytes(&self) -> u64 {
        self.state.put_bytes.load(Ordering::SeqCst)
    }

    pub(crate) fn puts(&self) -> usize {
        self.state.puts.load(Ordering::SeqCst)
    }

    /// Takes so many puts more, and no further one.
    pub(crate) fn take(&self, puts: usize) {
        self.state.most.store(self.puts().saturating_add(puts), Ordering::SeqCst);
    }

    /// Makes a command speak to it, without signatures.
    pub(crate) fn speak<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("AWS_ENDPOINT_URL", &self.url).env("AWS_REGION", "us-east-1")
    }
}
