//! Why an engine has made a set of its own: some write down, beside what they compile, what went into their key. Two of these side
//! by side name the variable that differs. Values are not told: there may be secrets among them.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::profile::Profile;
use super::scan::Snapshot;
use crate::model::ManifestEntry;
use crate::model::engine::BundleKind;

/// Largest file of factors; vLLM's has some tens of kilobytes.
const LIMIT: u64 = 4 << 20;

/// Most names that are told.
const TOLD: usize = 5;

/// What differs between the factors of what was restored and of what is new, in words.
pub(super) fn differing(
    profile: &Profile,
    view: &Path,
    restored: &[ManifestEntry],
    after: &Snapshot,
) -> Option<String> {
    let name = profile.factors.as_deref()?;
    let is_factors = |path: &str| path.rsplit('/').next() == Some(name);
    let ours: Vec<&str> = restored.iter().map(|entry| entry.path.as_str()).filter(|path| is_factors(path)).collect();
    let theirs: Vec<&str> =
        after.keys().map(String::as_str).filter(|path| is_factors(path) && !ours.contains(path)).collect();
    let (old, new) = (read(view, ours.first()?)?, read(view, theirs.first()?)?);
    let mut names: Vec<&String> =
        old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name)).collect();
    names.sort();
    names.dedup();
    let directory = |path: &str| path.rsplit_once('/').map_or(path, |(directory, _)| directory).to_owned();
    let (was, is) = (directory(ours.first()?), directory(theirs.first()?));
    let shown: Vec<&str> = names.iter().take(TOLD).map(|name| name.as_str()).collect();
    let rest = names.len().saturating_sub(TOLD);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    Some(match shown.is_empty() {
        true => format!("it keeps its own in {is}, not in {was}"),
        false => format!("its own key differs in {}{more}: it keeps its own in {is}, not in {was}", shown.join(", ")),
    })
}

/// The factors by name, nested ones by their path.
fn read(view: &Path, path: &str) -> Option<BTreeMap<String, String>> {
    let place =
        BundleKind::ALL.into_iter().map(|kind| view.join(kind.as_str()).join(path)).find(|path| path.is_file())?;
    if std::fs::metadata(&place).ok()?.len() > LIMIT {
        return None;
    }
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(place).ok()?).ok()?;
    let mut found = BTreeMap::new();
    flatten(&json, "", 0, &mut found);
    Some(found)
}

fn flatten(json: &serde_json::Value, at: &str, depth: u8, found: &mut BTreeMap<String, String>) {
    match json {
        serde_json::Value::Object(fields) if depth < 4 => {
            for (name, value) in fields {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                flatten(value, &path, depth + 1, found);
            }
        }
        // A list of pairs is how some write a map.
        serde_json::Value::Array(items)
            if depth < 4 && items.iter().all(|item| item.get(0).is_some_and(serde_json::Value::is_string)) =>
        {
            for item in items {
                let name = item.get(0).and_then(serde_json::Value::as_str).unwrap_or_default();
                flatten(item.get(1).unwrap_or(&serde_json::Value::Null), &format!("{at}.{name}"), depth + 1, found);
            }
        }
        value => {
            found.insert(at.chars().filter(|c| !c.is_control()).take(120).collect(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::Seen;
    use super::*;
    use crate::digest::Hash;
    use crate::model::FilePath;

    #[test]
    fn the_variable_that_differs_is_named_and_its_value_is_not() {
        let view = tempfile::tempdir().unwrap();
        let put = |directory: &str, host: &str| {
            let place = view.path().join("graph/vllm").join(directory);
            std::fs::create_dir_all(&place).unwrap();
            let text = format!(r#"{{"env": {{"VLLM_HOST": "{host}", "VLLM_X": "1"}}, "config": "c"}}"#);
            std::fs::write(place.join("cache_key_factors.json"), text).unwrap();
            format!("vllm/{directory}/cache_key_factors.json")
        };
        let (ours, theirs) = (put("aaaa", "10.0.0.1"), put("bbbb", "10.0.0.2"));
        let entry = ManifestEntry::new(FilePath::new(ours.clone()).unwrap(), 1, Hash::of(b""));
        let seen = Seen { size: 1, mtime_ns: 0, read: false };
        let after: Snapshot = [(ours, seen), (theirs, seen)].into();
        let profile = Profile { factors: Some("cache_key_factors.json".to_owned()), ..Profile::default() };
        let told = differing(&profile, view.path(), std::slice::from_ref(&entry), &after).unwrap();
        assert!(told.contains("env.VLLM_HOST") && told.contains("vllm/bbbb") && !told.contains("10.0.0"), "{told}");
        assert_eq!(differing(&Profile::default(), view.path(), &[entry], &after), None);
    }
}
