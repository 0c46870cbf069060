//! What stands first in the place of a reference: the names of hosts, organisations, buckets and containers, as those who give
//! them out allow them. `None` is a name that cannot be.

use super::Scheme;

/// Host and port of a web server.
pub(super) fn host(scheme: Scheme, authority: &str) -> Option<String> {
    let parsed = url::Url::parse(&format!("{}://{authority}/", scheme.as_str())).ok()?;
    let name = parsed.host_str()?;
    // The default port is normalised away, so that one origin has one identity.
    Some(parsed.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}")))
}

/// An organisation's or a model's name.
pub(super) fn repository(name: &str) -> Option<String> {
    let ok = (1..=96).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && !name.starts_with(['.', '-'])
        && !matches!(name, "datasets" | "spaces" | "api");
    ok.then(|| name.to_owned())
}

/// A bucket of S3's and of what speaks like it.
pub(super) fn bucket(name: &str) -> Option<String> {
    let ok = (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    ok.then(|| name.to_owned())
}

/// A bucket of Google's: dots part it as in a host name, and make room for a longer one.
pub(super) fn google_bucket(name: &str) -> Option<String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    let ok = (3..=222).contains(&name.len())
        && name.split('.').all(|part| (1..=63).contains(&part.len()) && part.bytes().all(inner))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    ok.then(|| name.to_owned())
}

/// A container of Azure's; `$root` and `$web` are the two that the service itself names.
pub(super) fn container(name: &str) -> Option<String> {
    let ok = (3..=63).contains(&name.len())
        && name
            .split('-')
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    (ok || matches!(name, "$root" | "$web")).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_can_be() {
        let long = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(30));
        for (name, s3, gs, az) in [
            ("models", true, true, true),
            ("my-models.v1", true, true, false),
            ("my_models", true, true, false),
            ("my--models", true, true, false),
            ("a.b", true, true, false),
            ("a..b", true, false, false),
            ("-models", false, false, false),
            ("models-", true, false, false),
            ("Models", false, false, false),
            ("ab", false, false, false),
            ("$root", false, false, true),
            (&"a".repeat(64), false, false, false),
            (&long, false, true, false),
            (&format!("{long}e"), false, false, false),
        ] {
            let found = (bucket(name).is_some(), google_bucket(name).is_some(), container(name).is_some());
            assert_eq!(found, (s3, gs, az), "{name}");
        }
    }
}
