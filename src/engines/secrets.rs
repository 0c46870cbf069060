//! Secrets that must not leave with a bundle. Engines write what they were given into their caches (vLLM keeps the raw values of
//! variables in `cache_key_factors.json`), and a bundle goes to other nodes. So a file that has the value of a variable whose
//! name looks like a secret's is refused, and the variable is named; the value never is.

use aho_corasick::{AhoCorasick, MatchKind};

use super::EngineError;
use crate::model::Secret;

/// Parts of names, between dashes and underscores, that say that their value is a credential.
const CREDENTIALS: [&str; 13] = [
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWORDS",
    "PASSWD",
    "PWD",
    "PASSPHRASE",
    "APIKEY",
    "APIKEYS",
    "CREDENTIAL",
    "CREDENTIALS",
    "AUTHORIZATION",
    "BEARER",
];

/// Parts that say so of a key or a token that stands behind them.
const OF_ACCESS: [&str; 10] =
    ["API", "ACCESS", "PRIVATE", "ACCOUNT", "AUTH", "SIGNING", "ENCRYPTION", "SESSION", "HF", "HUB"];

/// Keys and tokens: of a door, of a table, of a text.
const KEYS: [&str; 4] = ["KEY", "KEYS", "TOKEN", "TOKENS"];

/// Parts of names of variables whose values are looked for.
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

/// One text being searched. A value that lies across two pieces is found as well.
#[derive(Debug)]
pub(super) struct Search<'a> {
    secrets: &'a Secrets,
    tail: Vec<u8>,
}

/// Whether a name (of a variable, an option, a field of JSON) says that what it has lets somebody in.
#[must_use]
pub(super) fn names_credential(name: &str) -> bool {
    let parts = parts(name);
    parts.iter().any(|part| CREDENTIALS.contains(&part.as_str()))
        || parts.windows(2).any(|two| OF_ACCESS.contains(&two[0].as_str()) && KEYS.contains(&two[1].as_str()))
        || matches!(parts.as_slice(), [only] if KEYS.contains(&only.as_str()))
}

/// Whether the value that a name has lets somebody in, so that nobody else may have it.
#[must_use]
pub(super) fn is_credential(name: &str, value: &str) -> bool {
    // Drawn by chance, and called a token: `<|endoftext|>` is one of another sort.
    let drawn = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '/' | '=');
    let random = value.len() >= 16 && value.chars().all(drawn) && !is_plain(value);
    names_credential(name) || random && parts(name).last().is_some_and(|part| KEYS.contains(&part.as_str()))
}

/// Whether a value is better not shown: a credential, or what is called a key or a token and is no number. The rest of the names
/// with a token in them count tokens.
#[must_use]
pub(super) fn is_secret(name: &str, value: &str) -> bool {
    !value.is_empty()
        && (names_credential(name) || parts(name).iter().any(|part| KEYS.contains(&part.as_str())) && !is_plain(value))
}

/// Numbers, one or several, and switches.
fn is_plain(value: &str) -> bool {
    let switch =
        |word: &str| matches!(word.to_ascii_lowercase().as_str(), "true" | "false" | "on" | "off" | "none" | "auto");
    value.split([',', ' ', ':']).all(|word| word.is_empty() || word.parse::<f64>().is_ok() || switch(word))
}

/// Words of a name, capitals only.
fn parts(name: &str) -> Vec<String> {
    let upper = name.to_ascii_uppercase();
    let words = upper.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    words.map(str::to_owned).collect()
}

/// The variables of an environment that look like secrets, with their values.
pub(super) fn secrets_of(environment: impl IntoIterator<Item = (String, String)>) -> Vec<(String, Secret)> {
    let is_secret = |name: &str, value: &str| {
        let name = name.to_ascii_uppercase();
        let named = WORDS.iter().any(|word| name.contains(word)) && !PLACES.iter().any(|end| name.ends_with(end));
        named && is_searched(value)
    };
    let secrets = environment.into_iter().filter(|(name, value)| is_secret(name, value));
    secrets.map(|(name, value)| (name, Secret::new(value))).collect()
}

/// Whether a value is worth looking for. Counts of tokens are not secret, nor is where a token lies.
pub(super) fn is_searched(value: &str) -> bool {
    value.len() >= SHORTEST && !value.starts_with('/') && !value.bytes().all(|byte| byte.is_ascii_digit())
}

/// How a source of a secret is called in a message: a variable, or an option of the command.
pub(super) fn called(name: &str) -> String {
    if name.starts_with('-') { format!("`{name}`") } else { format!("${name}") }
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

    /// Whose value is in a text, if one's is.
    pub(super) fn in_text(&self, text: &str) -> Option<&str> {
        let found = self.search.as_ref()?.find(text)?;
        self.names.get(found.pattern().as_usize()).map(String::as_str)
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
    fn names_tell_credentials_from_counts() {
        for name in ["VLLM_API_KEY", "--api-key", "--admin-api-key", "token", "HF_TOKEN", "x.password", "Authorization"]
        {
            assert!(names_credential(name) && is_secret(name, "12345678"), "{name}");
        }
        for name in [
            "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE",
            "--max-num-batched-tokens",
            "SGLANG_LOG_DECODE_GRAPH_KEY",
            "--monkey",
        ] {
            assert!(!names_credential(name) && !is_secret(name, "8192") && !is_secret(name, "true"), "{name}");
        }
        assert!(is_secret("--stop-token", "<end>") && !is_credential("--stop-token", "<|a very long end|>"));
        assert!(is_credential("--my-token", "tk-0123456789abcdef") && !is_credential("--my-token", "0123456789012345"));
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
