//! Bytes elsewhere: one folder for each kind of origin, all cut the same way, all held to one conformance suite.
//!
//! An origin lists, selects and pins ([`Origin::resolve`]), and then yields ranges of exactly what it has pinned
//! ([`crate::model::source::RangeSource::open`]). Retries, hedging and pace are not here: `transfer` decides those for every
//! kind alike.

mod config;
pub mod conformance;
mod discreet;
mod egress;
mod encoding;
mod excerpt;
mod file;
mod held;
mod http;
mod hub;
mod object;
mod own;
mod pause;
mod published;
mod range;
mod selected;

use std::sync::Arc;

pub use config::{Config, Listing, ListingError};
pub use egress::install_tls_provider;
pub use file::list_directory;
pub use held::{Held, Snapshot};
pub use own::own_credential;
use url::Url;

use self::discreet::Discreet;
use self::egress::{AllowList, Border};
use self::pause::Pauses;
use crate::model::sink::Sink;
use crate::model::source::{Origin, SourceError};
use crate::model::{OriginId, Reference, Rights, Scheme};

/// The origins that this process may read from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Origins {
    config: Arc<Config>,
    allow: Arc<AllowList>,
    border: Arc<Border>,
    /// Servers that want to be left alone.
    pauses: Pauses,
    /// Listings that one of them has interrupted.
    unfinished: hub::Unfinished,
}

// === impl Origins ===

impl Origins {
    /// Those of a daemon: asked on behalf of others, so that an address in the own network takes the operator's word.
    ///
    /// # Errors
    /// An unreadable CA bundle, or a prefix that is not a URL.
    pub fn new(config: Config) -> Result<Self, SourceError> {
        Self::with(config, false)
    }

    /// Those of a command that acts for whoever runs it: every address of the network that it runs in may be asked, as by any
    /// other program of his. Only where a cloud tells a machine its credentials nothing but his own words lead.
    ///
    /// # Errors
    /// As for [`Origins::new`].
    pub fn unguarded(config: Config) -> Result<Self, SourceError> {
        Self::with(config, true)
    }

    fn with(config: Config, own_network: bool) -> Result<Self, SourceError> {
        let allow = Arc::new(AllowList::new(&config.allow)?);
        let border = Arc::new(Border::new(&config, Arc::clone(&allow), own_network)?);
        Ok(Self {
            config: Arc::new(config),
            allow,
            border,
            pauses: Pauses::default(),
            unfinished: hub::Unfinished::default(),
        })
    }

    /// The origin of a reference, asked with these rights.
    ///
    /// # Errors
    /// `Denied` outside the allow-list, and for an endpoint at an address that takes the operator's word; `Invalid` for
    /// settings that cannot work.
    pub fn open(&self, reference: &Reference, rights: &Rights) -> Result<Arc<dyn Origin>, SourceError> {
        self.allow.check_reference(reference)?;
        crate::model::check_globs(&reference.selection)
            .map_err(|error| SourceError::Invalid { detail: error.to_string() })?;
        let egress = || self.border.egress(reference, endpoint_of(reference));
        let origin: Arc<dyn Origin> = match reference.scheme {
            Scheme::File => Arc::new(file::FileOrigin::new(self.config.files_max, rights)?),
            Scheme::Http | Scheme::Https => Arc::new(http::HttpOrigin::new(egress()?, rights)?),
            Scheme::Hf => {
                let egress = egress()?;
                Arc::new(hub::HubOrigin::new(reference, &egress, rights, &self.config, &self.pauses, &self.unfinished)?)
            }
            Scheme::S3 | Scheme::Gs | Scheme::Az => {
                Arc::new(object::ObjectOrigin::new(reference, egress()?, rights, &self.config)?)
            }
        };
        Ok(Arc::new(Discreet::new(origin, rights)))
    }

    /// The place of a reference, to be written to with these rights: a directory or a bucket.
    ///
    /// # Errors
    /// As for [`Origins::open`]; `Invalid` for kinds of origin that cannot be written.
    pub fn sink(&self, reference: &Reference, rights: &Rights) -> Result<Arc<dyn Sink>, SourceError> {
        self.allow.check_reference(reference)?;
        let egress = || self.border.egress(reference, endpoint_of(reference));
        let sink: Arc<dyn Sink> = match reference.scheme {
            Scheme::File => Arc::new(file::FileSink::new(reference)),
            Scheme::S3 | Scheme::Gs | Scheme::Az => object::sink(reference, egress()?, rights, &self.config)?,
            Scheme::Http | Scheme::Https | Scheme::Hf => {
                let detail = format!("{} cannot be written to: name a directory or a bucket", reference.base());
                return Err(SourceError::Invalid { detail });
            }
        };
        Ok(Arc::new(Discreet::new(sink, rights)))
    }

    /// The identity of a reference's origin: for object stores and hf it includes the endpoint in force.
    #[must_use]
    pub fn identity(&self, reference: &Reference) -> OriginId {
        let endpoint = match reference.scheme {
            Scheme::Hf => Some(hub::endpoint_in_force()),
            other => object::endpoint_in_force(other),
        };
        OriginId::of(reference, endpoint.as_deref())
    }

    /// What the allow-list says of a reference.
    #[must_use]
    pub fn listing(&self, reference: &Reference) -> Option<&Listing> {
        self.allow.listing(reference)
    }

    /// Whether the allow-list names this reference explicitly.
    #[must_use]
    pub fn lists(&self, reference: &Reference) -> bool {
        self.allow.lists(reference)
    }
}

/// The server that a reference is asked at where its own text does not name it, and whether the environment does. What is not
/// a URL, or has a password in it, is told by the origin itself.
fn endpoint_of(reference: &Reference) -> Option<(Url, bool)> {
    let set = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    let (endpoint, named) = match reference.scheme {
        Scheme::S3 | Scheme::Gs | Scheme::Az => object::endpoint_of(reference.scheme)?,
        Scheme::Hf => (hub::endpoint_in_force(), set("HF_ENDPOINT")),
        Scheme::File | Scheme::Http | Scheme::Https => return None,
    };
    let url = Url::parse(&endpoint).ok().filter(|url| url.username().is_empty() && url.password().is_none());
    Some((url?, named))
}
