//! Secrets that must not leave with a bundle. Engines write what they were given into their caches (vLLM keeps the raw values of
//! variables in `cache_key_factors.json`), and a bundle goes to other nodes. So a file that has the value of a variable whose
//! name looks like a secret's is refused, and the variable is named; the value never is.

use aho_corasick::{AhoCorasick, MatchKind};

use super::EngineError;
use crate::model::Secret;

/// Parts of names of variables whose values are secrets.
const WORDS: [&str; 11] = [
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "API_KEY",
    "APIKEY",
    "ACCESS_KEY",
    "PRIVATE_KEY",
    "ACCOUNT_KEY",
    "CREDENTIAL",
];

/// Ends of names of variables that say where a secret is, and not what.
const PLACES: [&str; 4] = ["_FILE", "_PATH", "_DIR", "_URL"];

/// Shorter values are in every file by chance.
const SHORTEST: usize = 8;
/// Most values that are looked for.
const MOST: usize = 1024;

/// Values to look for.
#[derive(Debug)]
pub(super) struct Secrets {
    search: Option<AhoCorasick>,
    names: Vec<String>,
    longest: usize,
}

/// One file being searched. A value that lies across two pieces is found as well.
#[derive(Debug)]
pub(super) struct Search<'a> {
    secrets: &'a Secrets,
    tail: Vec<u8>,
}

/// The variables of an environment that look like secrets, with their values.
pub fn secrets_of(environment: impl IntoIterator<Item = (String, String)>) -> Vec<(String, Secret)> {
    let is_secret = |name: &str, value: &str| {
        let name = name.to_ascii_uppercase();
        let named = WORDS.iter().any(|word| name.contains(word)) && !PLACES.iter().any(|end| name.ends_with(end));
        // Counts of tokens are not secret, nor is where a token lies.
        named && value.len() >= SHORTEST && !value.starts_with('/') && !value.bytes().all(|byte| byte.is_ascii_digit())
    };
    let secrets = environment.into_iter().filter(|(name, value)| is_secret(name, value));
    secrets.map(|(name, value)| (name, Secret::new(value))).collect()
}

// === impl Secrets ===

impl Secrets {
    pub(super) fn new(secrets: &[(String, Secret)]) -> Result<Self, EngineError> {
        let (mut names, mut patterns) = (Vec::new(), Vec::new());
        for (name, secret) in secrets.iter().filter(|(_, secret)| secret.reveal().len() >= SHORTEST) {
            let value = secret.reveal();
            // As it stands in JSON, too.
            let quoted = serde_json::to_string(value).unwrap_or_default();
            let quoted = quoted.trim_matches('"');
            for pattern in std::iter::once(value).chain((quoted != value).then_some(quoted)) {
                names.push(name.clone());
                patterns.push(pattern.to_owned());
            }
        }
        if patterns.len() > MOST {
            return Err(EngineError::refused("secrets", format!("{} values, the limit is {MOST}", patterns.len())));
        }
        let longest = patterns.iter().map(String::len).max().unwrap_or(0);
        let search = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&patterns);
        let search = search.map_err(|error| EngineError::refused("secrets", error.to_string()))?;
        Ok(Self { search: (!patterns.is_empty()).then_some(search), names, longest })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.search.is_none()
    }

    pub(super) fn search(&self) -> Search<'_> {
        Search { secrets: self, tail: Vec::new() }
    }
}

// === impl Search ===

impl Search<'_> {
    /// The variable whose value is in what has been seen so far, if one's is.
    pub(super) fn see(&mut self, bytes: &[u8]) -> Option<&str> {
        let Secrets { search: Some(search), names, longest } = self.secrets else { return None };
        let keep = longest - 1;
        let found = search.find(bytes).or_else(|| {
            let border: Vec<u8> = self.tail.iter().chain(bytes.iter().take(keep)).copied().collect();
            if self.tail.is_empty() { None } else { search.find(&border) }
        });
        if let Some(found) = found {
            return names.get(found.pattern().as_usize()).map(String::as_str);
        }
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(keep)..]);
        let excess = self.tail.len().saturating_sub(keep);
        self.tail.drain(..excess);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[(&str, &str)]) -> Secrets {
        let values: Vec<_> =
            values.iter().map(|(name, value)| ((*name).to_owned(), Secret::new((*value).to_owned()))).collect();
        Secrets::new(&values).unwrap()
    }

    #[test]
    fn a_value_is_found_wherever_it_is_cut() {
        let secrets = secrets(&[("HF_TOKEN", "hf_abcdefgh"), ("OTHER_SECRET", "with\"quote")]);
        let text = b"{\"env\": \"hf_abcdefgh\"}";
        for cut in 0..=text.len() {
            for second in cut..=text.len() {
                let mut search = secrets.search();
                let pieces = [&text[..cut], &text[cut..second], &text[second..]];
                let found = pieces.into_iter().find_map(|piece| search.see(piece).map(str::to_owned));
                assert_eq!(found.as_deref(), Some("HF_TOKEN"), "{cut} {second}");
            }
        }
        assert_eq!(secrets.search().see(b"hf_abcdefg"), None);
        assert_eq!(secrets.search().see(b"x with\\\"quote x"), Some("OTHER_SECRET"), "as JSON has it");
        let mut bytewise = secrets.search();
        assert!(text.iter().any(|byte| bytewise.see(&[*byte]).is_some()));
    }

    #[test]
    fn variables_are_secret_by_their_names() {
        let taken = secrets_of(
            [
                ("HF_TOKEN", "hf_0123456789"),
                ("AWS_SECRET_ACCESS_KEY", "0123456789abcdef"),
                ("my_password", "correct horse"),
                ("VLLM_API_KEY", "sk-0123456789"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
                ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/key.json"),
                ("MAX_TOKENS", "0000000016384"),
                ("TOKENIZERS_PARALLELISM", "false"),
                ("VLLM_CACHE_ROOT", "/cache/vllm"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let names: Vec<_> = taken.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "my_password", "VLLM_API_KEY"]);
        assert_eq!(secrets(&[]).search().see(b"anything at all"), None);
    }
}
