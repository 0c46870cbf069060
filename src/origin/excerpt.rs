//! What of an upstream's text may be shown. An error without the server's own word is a riddle; but servers echo requests
//! (`Authorization` and all), put signed URLs into redirect pages, and S3 prints what was signed, session token included.
//!
//! So an excerpt keeps prose and drops whatever could be a secret: queries of URLs, what follows `Bearer`, values of telling
//! names, and long words that look random. Secrets that are known are masked besides (see [`super::discreet`]); this also
//! covers those that are not: signatures, and credentials that a library has fetched by itself.

use std::borrow::Cow;

use crate::sys::mutant::mutant;

/// Characters of an upstream's text that go into a message.
const LENGTH: usize = 200;

/// Words of this length with digits and letters of both cases, or of this length in hex, are taken for secrets. Names of classes
/// and files are long too, but have no such mixture.
const RANDOM: usize = 20;

/// Parts of a name whose value is not shown, and ends of such names.
const TELLING: [&str; 6] = ["authorization", "credential", "passw", "secret", "signature", "stringtosign"];
/// See [`TELLING`]. A `tokenizer` tells nothing.
const TELLING_ENDS: [&str; 4] = ["token", "key", "keyid", "sig"];

/// Where words end.
const BETWEEN: &str = "\"'`<>(){}[],;=\\";

/// What the last name means for the word that comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Shown,
    /// A telling name has come; its value follows if there is a colon, an equals sign or the end of a tag between.
    Named,
    Hidden,
}

/// The beginning of a text, on one line and without what could be a secret.
pub(super) fn excerpt(text: &str) -> String {
    if mutant("echoes_shown") {
        return text.chars().filter(|c| !c.is_control()).take(LENGTH).collect();
    }
    // What is left out is not looked at either: texts are cut to some KiB when they are read, this only bounds the work.
    let text: String = text.chars().take(20 * LENGTH).collect();
    let (mut shown, mut next) = (String::new(), Next::Shown);
    for token in pieces(&text, |c| c.is_whitespace() || "\"'`<>".contains(c)) {
        for word in
            pieces(without_query(token).as_ref(), |c| c.is_whitespace() || c.is_control() || BETWEEN.contains(c))
        {
            next = take(word, next, &mut shown);
        }
        if shown.len() >= LENGTH {
            break;
        }
    }
    shown.trim().chars().take(LENGTH).collect()
}

/// Appends a word, or what stands for it.
fn take(word: &str, next: Next, shown: &mut String) -> Next {
    let plain = word.trim_matches(|c: char| !c.is_alphanumeric());
    let leads = word.ends_with([':', '=', '>']);
    if plain.is_empty() {
        shown.extend(word.chars().map(|c| if c.is_control() { ' ' } else { c }));
        return if leads && next == Next::Named { Next::Hidden } else { next };
    }
    // `name:value`, but not the colon of a URL, or of a time.
    if let Some((name, value)) = word.split_once(':').filter(|(name, value)| is_telling(name) && !value.is_empty()) {
        shown.push_str(name);
        shown.push(':');
        return take(value, Next::Hidden, shown);
    }
    if plain.eq_ignore_ascii_case("bearer") || plain.eq_ignore_ascii_case("basic") {
        shown.push_str(word);
        return Next::Hidden;
    }
    if next == Next::Hidden || is_random(plain) {
        shown.push('…');
        return Next::Shown;
    }
    shown.push_str(word);
    match (is_telling(plain), leads) {
        (true, true) => Next::Hidden,
        (true, false) => Next::Named,
        _ => Next::Shown,
    }
}

/// The text in order: runs without `between`, and each character of it by itself.
fn pieces(text: &str, between: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let end = if between(first) { first.len_utf8() } else { rest.find(&between).unwrap_or(rest.len()) };
        let (piece, left) = rest.split_at(end);
        rest = left;
        Some(piece)
    })
}

fn is_telling(word: &str) -> bool {
    let word: String = word.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    TELLING.iter().any(|part| word.contains(part)) || TELLING_ENDS.iter().any(|end| word.ends_with(end))
}

fn is_random(word: &str) -> bool {
    let random = |part: &str| {
        let has = |test: fn(&u8) -> bool| part.bytes().any(|byte| test(&byte));
        let mixed = has(u8::is_ascii_digit) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
        let hex = part.bytes().all(|byte| byte.is_ascii_hexdigit()) && has(u8::is_ascii_digit);
        part.len() >= RANDOM && (mixed || hex)
    };
    // Of a path every segment is looked at: its names stay, a token in it does not.
    if word.contains("://") { word.split('/').any(random) } else { random(word) || word.split('/').any(random) }
}

/// A URL, also a relative one, without query, fragment and userinfo.
fn without_query(word: &str) -> Cow<'_, str> {
    let end = word.find(['?', '#']).unwrap_or(word.len());
    let (cut, rest) = word.split_at(end);
    let more = if rest.contains(char::is_alphanumeric) { "?…" } else { rest };
    let userinfo = cut.find("://").and_then(|at| {
        let authority = &cut[at + 3..];
        let authority = &authority[..authority.find('/').unwrap_or(authority.len())];
        Some((at + 3, at + 3 + authority.rfind('@')? + 1))
    });
    match userinfo {
        Some((from, to)) => Cow::Owned(format!("{}{}{more}", &cut[..from], &cut[to..])),
        None if more == rest => Cow::Borrowed(word),
        None => Cow::Owned(format!("{cut}{more}")),
    }
}

#[cfg(test)]
mod tests {
    use super::excerpt;

    #[test]
    fn prose_stays() {
        for text in [
            "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
            "{\"error\":\"Repository not found\"}",
            "model-00001-of-00002.safetensors is not here: RepositoryNotFoundError",
            "is it there? no",
            "Invalid credentials in Authorization header",
            "see https://hub.example/org/model for more",
        ] {
            assert_eq!(excerpt(text), text);
        }
    }

    #[test]
    fn what_could_be_a_secret_goes() {
        for (text, shown) in [
            ("Authorization: Bearer abc", "Authorization: Bearer …"),
            ("{\"authorization\": \"Bearer abc\", \"a\": 1}", "{\"authorization\": \"Bearer …\", \"a\": 1}"),
            ("{\"X-Token\":\"abc\"}", "{\"X-Token\":\"…\"}"),
            ("x-amz-security-token:abc", "x-amz-security-token:…"),
            ("Basic dTpw!", "Basic …"),
            ("at https://cdn/x?Signature=abc&b=c now", "at https://cdn/x?… now"),
            ("at /x?sig now", "at /x?… now"),
            ("https://user:pass@proxy:1/x failed", "https://proxy:1/x failed"),
            ("<a href='https://u:p@h/?k'>", "<a href='https://h/?…'>"),
            ("hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789", "…"),
            ("/models/hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789/x", "…"),
            ("<SignatureProvided>abc</SignatureProvided>", "<SignatureProvided>…</SignatureProvided>"),
            ("token=abc Token: abc", "token=… Token: …"),
            ("AWS4-HMAC-SHA256 Credential=abc/s3, Signature=abc", "AWS4-HMAC-SHA256 Credential=…, Signature=…"),
        ] {
            assert_eq!(excerpt(text), shown, "{text}");
        }
        assert!(!excerpt("StringToSign 0123456789abcdef0123456789abcdef").contains("abcdef"));
    }

    #[test]
    fn it_is_short_and_on_one_line() {
        let found = excerpt(&"many words\n".repeat(1000));
        assert!(found.len() <= 200 && !found.contains('\n'), "{found}");
        assert_eq!(excerpt("  "), "");
    }
}
