//! What all TLS connections of a process have in common: ring, the system's certificate authorities and the configured ones.
//! Read once, and only when the first connection needs it or a client is built.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::Verifier;
use tokio_rustls::TlsConnector;

use crate::model::source::SourceError;
use crate::origin::Config;

/// How TLS is spoken. `None`: not at all, in an image without any certificate authority.
pub(super) struct Tls(Option<Arc<ClientConfig>>);

/// Makes ring the process's TLS provider. Done first thing; again changes nothing.
pub fn install_tls_provider() {
    // An error means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

// === impl Tls ===

impl Tls {
    /// # Errors
    /// A CA bundle that cannot be read, or has no certificate.
    pub(super) fn new(config: &Config) -> Result<Self, SourceError> {
        install_tls_provider();
        let mut own = Vec::new();
        if let Some(path) = &config.ca_bundle {
            let invalid =
                |detail: String| SourceError::Invalid { detail: format!("CA bundle {}: {detail}", path.display()) };
            let pem = std::fs::read(path).map_err(|error| invalid(error.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                own.push(certificate.map_err(|error| invalid(error.to_string()))?);
            }
            if own.is_empty() {
                return Err(invalid("has no certificate".to_owned()));
            }
        }
        Ok(Self(configure(own)))
    }

    /// The configuration for a client that speaks HTTP/1.1.
    pub(super) fn config(&self) -> Option<ClientConfig> {
        self.0.as_deref().cloned()
    }

    pub(super) fn connector(&self) -> Option<TlsConnector> {
        self.0.clone().map(TlsConnector::from)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.0.is_some()).finish()
    }
}

fn configure(own: Vec<CertificateDer<'static>>) -> Option<Arc<ClientConfig>> {
    let provider = Arc::clone(CryptoProvider::get_default()?);
    let verifier = Verifier::new_with_extra_roots(own, Arc::clone(&provider)).ok()?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    // "Dangerous" is what rustls calls any verifier but its own: this one asks the system's authorities.
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Some(Arc::new(config))
}
