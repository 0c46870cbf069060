//! What a process may show an origin of its own, as the tools of each kind of origin find it: for a command that passes it to a
//! daemon which does not have the same environment. Only what is a credential by itself is passed: workload identities and
//! profiles stay with who they were given to.

use crate::model::source::SourceError;
use crate::model::{Credential, Reference, Scheme, Secret};

/// The credential of this process for the origin of a reference, if it has one.
///
/// # Errors
/// `Invalid` for one that cannot be read.
pub fn own_credential(reference: &Reference) -> Result<Option<Credential>, SourceError> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Ok(match reference.scheme {
        Scheme::Hf => super::hub::own_token()?.map(Credential::Bearer),
        Scheme::S3 => {
            set("AWS_ACCESS_KEY_ID").zip(set("AWS_SECRET_ACCESS_KEY")).map(|(access, secret)| Credential::Aws {
                access_key_id: Secret::new(access),
                secret_access_key: Secret::new(secret),
                session_token: set("AWS_SESSION_TOKEN").map(Secret::new),
            })
        }
        Scheme::File | Scheme::Http | Scheme::Https => None,
    })
}
