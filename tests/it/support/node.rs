//! A store with transfers on it, in a directory that goes with the test.

use std::sync::Arc;
use std::time::Duration;

use preheat::base::BootId;
use preheat::base::lifecycle::CancellationToken;
use preheat::base::units::{ByteSize, Span};
use preheat::model::{Reference, Rights, Tenant};
use preheat::origin::{self, Origins};
use preheat::store::{Holder, Options, Store, StoreError};
use preheat::telemetry::metrics::Metrics;
use preheat::transfer::{Config, Fetched, Fetcher, Priority, Progress, Request, TransferError};

use super::model::{Files, MIB, read};

pub(crate) struct Node {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) fetcher: Fetcher,
    pub(crate) origins: Origins,
}

/// Small and impatient, so that every fault is reached within a test.
pub(crate) fn config() -> Config {
    Config {
        connections_max: 4,
        connections_total: 16,
        part_bytes: ByteSize(MIB as u64),
        memory: ByteSize(64 * MIB as u64),
        retry_attempts: 4,
        retry_first: Span(Duration::from_millis(5)),
        retry_longest: Span(Duration::from_millis(20)),
        retry_after_longest: Span(Duration::from_secs(2)),
        stall: Span(Duration::from_millis(500)),
        linger: Span(Duration::from_millis(20)),
        ..Config::default()
    }
}

fn own_options() -> Options {
    Options::new(BootId::from("11111111-2222-3333-4444-555555555555"))
}

fn open(directory: &tempfile::TempDir, options: Options) -> Result<Store, StoreError> {
    let holder = Holder { role: "test".to_owned(), pid: std::process::id() };
    Store::open(&directory.path().join("store"), &holder, options)
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(config(), |_| {})
    }

    pub(crate) fn with(config: Config, options: impl FnOnce(&mut Options)) -> Self {
        let mut directory = tempfile::tempdir().unwrap();
        if super::searched() {
            preheat::telemetry::logs::init(preheat::telemetry::logs::Format::Text, "trace");
            directory.disable_cleanup(true);
        }
        let mut wanted = own_options();
        options(&mut wanted);
        let store = open(&directory, wanted).unwrap();
        Self::on(directory, store, config)
    }

    /// The same store in another process, which ended without closing it.
    pub(crate) async fn reopened(self) -> Self {
        let Self { directory, store, fetcher, origins: _ } = self;
        fetcher.drain().await;
        drop((store, fetcher));
        let asked = std::time::Instant::now();
        let store = loop {
            match open(&directory, own_options()) {
                Ok(store) => break store,
                // Its last tasks let go of it in a moment.
                Err(error) => assert!(asked.elapsed().as_secs() < 10, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        Self::on(directory, store, config())
    }

    fn on(directory: tempfile::TempDir, store: Store, config: Config) -> Self {
        preheat::origin::install_tls_provider();
        let fetcher = Fetcher::new(store.clone(), Arc::new(Metrics::new()), config).unwrap();
        let origins = Origins::unguarded(origin::Config::default()).unwrap();
        Self { directory, store, fetcher, origins }
    }

    pub(crate) fn request(&self, reference: &str) -> Request {
        let reference: Reference = reference.parse().unwrap();
        Request {
            tenant: Tenant::default(),
            origin: self.origins.open(&reference, &Rights::Own).unwrap(),
            origin_id: self.origins.identity(&reference),
            reference,
            resolved: None,
            asked_by: None,
            priority: Priority::Demand,
            progress: Arc::new(Progress::default()),
            cancel: CancellationToken::new(),
        }
    }

    pub(crate) async fn fetch(&self, reference: &str) -> Result<Fetched, TransferError> {
        self.fetcher.fetch(self.request(reference)).await
    }

    /// Fetches, and the files as a process that opens the tree finds them.
    pub(crate) async fn files(&self, reference: &str) -> (Fetched, Files) {
        let fetched = self.fetch(reference).await.unwrap_or_else(|error| panic!("fetch {reference}: {error}"));
        let files = read(&fetched.model.path);
        (fetched, files)
    }

    /// Nothing half-published, and no space still promised.
    pub(crate) fn assert_nothing_published(&self) {
        assert!(self.store.models().is_empty(), "a model is published");
        let trees = self.directory.path().join("store/trees/default");
        let count = std::fs::read_dir(trees).map_or(0, Iterator::count);
        assert_eq!(count, 0, "a tree is visible");
    }
}
