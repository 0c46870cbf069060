//! What the environment says of object stores, in the variables that their vendors' own tools read.

/// The first of these variables that is set to anything.
pub(super) fn first(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
}

/// Whether a variable says yes.
pub(super) fn says_yes(name: &str) -> bool {
    first(&[name]).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "true" | "1" | "yes"))
}

/// Checks the URL that a variable holds.
pub(super) fn check_url(name: &str, value: &str) -> Result<(), String> {
    let url = url::Url::parse(value).map_err(|error| format!("{name}: {error}"))?;
    // It becomes part of names and messages. What is wrong with it may be a password.
    let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !bare {
        return Err(format!("{name} is not http:// or https:// with a host, without a user and a query"));
    }
    Ok(())
}
