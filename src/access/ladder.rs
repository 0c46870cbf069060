//! With whose rights a reference is tried, in which order, and where what is found is kept. Pure.

use super::Identity;
use crate::model::source::SourceError;
use crate::model::{Credential, Reference, Rights, Scheme, Tenant};
use crate::origin::Listing;

/// One try.
#[derive(Clone, Debug)]
pub struct Rung {
    /// With whose rights.
    pub rights: Rights,
    /// The scope that keeps what they open.
    pub scope: Tenant,
}

/// The tries for a caller and a reference. `listing` is what the operator says of the reference.
///
/// # Errors
/// `Denied` where a directory would be read with the daemon's rights for somebody who does not have them, `Invalid` for a
/// credential that cannot be one.
pub(super) fn ladder(
    identity: &Identity,
    reference: &Reference,
    listing: Option<&Listing>,
    credential: Option<&Credential>,
) -> Result<Vec<Rung>, SourceError> {
    if let Some(credential) = credential {
        credential.check().map_err(|detail| SourceError::Invalid { detail })?;
    }
    if reference.scheme == Scheme::File {
        return files(identity, reference, listing);
    }
    let mut rungs = vec![Rung { rights: Rights::Anonymous, scope: Tenant::default() }];
    if let Some(listing) = listing.filter(|listing| listing.credentials) {
        if listing.scopes.is_empty() {
            rungs.push(Rung { rights: Rights::Own, scope: Tenant::node() });
        } else if listing.scopes.contains(&identity.scope) {
            rungs.push(Rung { rights: Rights::Own, scope: identity.scope.clone() });
        }
    }
    if let Some(credential) = credential {
        rungs.push(Rung { rights: Rights::Caller(credential.clone()), scope: identity.scope.clone() });
    }
    Ok(rungs)
}

/// A directory is read with the daemon's rights: for whom the operator lists it, or who has the same.
fn files(identity: &Identity, reference: &Reference, listing: Option<&Listing>) -> Result<Vec<Rung>, SourceError> {
    match listing {
        Some(listing) if listing.scopes.is_empty() => Ok(vec![Rung { rights: Rights::Own, scope: Tenant::default() }]),
        Some(listing) if listing.scopes.contains(&identity.scope) => {
            Ok(vec![Rung { rights: Rights::Own, scope: identity.scope.clone() }])
        }
        // What every user of the machine may read is public; the rest stays with who may.
        _ if identity.has_our_rights => Ok(vec![
            Rung { rights: Rights::Anonymous, scope: Tenant::default() },
            Rung { rights: Rights::Own, scope: identity.scope.clone() },
        ]),
        _ => Err(SourceError::Denied {
            what: reference.base(),
            detail: format!(
                "it would be read with the daemon's rights: start the daemon with --allow-origin {}, or ask over its Unix socket as \
                 the same user",
                reference.base()
            ),
        }),
    }
}

/// Says what may be done about a refusal.
pub(super) fn explain(error: SourceError, rights: &Rights, reference: &Reference) -> SourceError {
    match (error, rights) {
        (SourceError::Denied { what, detail }, Rights::Anonymous) if reference.scheme != Scheme::File => {
            let base = reference.base();
            let detail = format!(
                "{detail}; it was read anonymously: pass a credential with the request, or have the daemon use its own: \
                 --allow-origin '{base},credentials'"
            );
            SourceError::Denied { what, detail }
        }
        (error, _) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Secret;

    fn rungs(identity: &Identity, reference: &str, listing: Option<&str>, credential: bool) -> Result<String, String> {
        let listing: Option<Listing> = listing.map(|text| text.parse().unwrap());
        let credential = credential.then(|| Credential::Bearer(Secret::new("t".to_owned())));
        let found = ladder(identity, &reference.parse().unwrap(), listing.as_ref(), credential.as_ref());
        let found = found.map_err(|error| error.kind().to_string())?;
        let rung = |Rung { rights, scope }: &Rung| match rights {
            Rights::Anonymous => format!("anonymous:{scope}"),
            Rights::Own => format!("own:{scope}"),
            Rights::Caller(_) => format!("caller:{scope}"),
        };
        Ok(found.iter().map(rung).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn anonymous_comes_first_and_the_daemons_own_only_where_listed() {
        let one = Identity { scope: Tenant::of_uid(1001), operator: false, has_our_rights: false };
        let root = Identity { scope: Tenant::of_uid(0), operator: true, has_our_rights: true };
        for (who, reference, listing, credential, expected) in [
            (&one, "hf://org/m", None, false, "anonymous:default"),
            (&root, "hf://org/m", None, false, "anonymous:default"),
            (&one, "hf://org/m", Some("hf://org"), false, "anonymous:default"),
            (&one, "hf://org/m", Some("hf://org,credentials"), false, "anonymous:default own:node"),
            (&one, "hf://org/m", Some("hf://org,credentials,scope=uid-1001"), false, "anonymous:default own:uid-1001"),
            (&one, "hf://org/m", Some("hf://org,credentials,scope=uid-1002"), false, "anonymous:default"),
            (&one, "hf://org/m", None, true, "anonymous:default caller:uid-1001"),
            (&one, "hf://org/m", Some("hf://org,credentials"), true, "anonymous:default own:node caller:uid-1001"),
            (&root, "file:///m", None, false, "anonymous:default own:uid-0"),
            (&one, "file:///m", Some("file:///m"), false, "own:default"),
            (&one, "file:///m", Some("file:///m,scope=uid-1001"), false, "own:uid-1001"),
        ] {
            assert_eq!(rungs(who, reference, listing, credential).as_deref(), Ok(expected), "{reference} {listing:?}");
        }
        assert_eq!(rungs(&one, "file:///m", None, false).unwrap_err(), "denied");
        assert_eq!(rungs(&one, "file:///m", Some("file:///m,scope=uid-1002"), true).unwrap_err(), "denied");
    }
}
