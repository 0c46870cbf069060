//! Just enough of Rust's lexical grammar to tell code from comments and text: identifiers and punctuation with their lines.
//! A search by regular expression would take `unsafe` in a sentence for code, and miss a path that is split over lines.

/// One identifier, `::`, or single character of punctuation. Literals, lifetimes and comments are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    /// Counted from 1.
    pub(super) line: usize,
}

impl Token<'_> {
    pub(super) fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let bytes = source.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let rest = &source[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if rest.starts_with('\'') {
            character_or_lifetime(rest)
        } else if rest.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            let name = rest.strip_prefix("r#").unwrap_or(rest);
            let end = name.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(name.len());
            found.push(Token { text: &name[..end], line });
            rest.len() - name.len() + end
        } else if rest.starts_with(|c: char| c.is_ascii_digit()) {
            rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            found.push(Token { text: "::", line });
            2
        } else {
            let length = rest.chars().next().map_or(1, char::len_utf8);
            if !rest.starts_with(char::is_whitespace) {
                found.push(Token { text: &rest[..length], line });
            }
            length
        };
        line += rest[..length].matches('\n').count();
        at += length;
    }
    found
}

/// Length of the block comment that `rest` begins with; they nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        let tail = &rest[at..];
        if tail.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            let Some(c) = tail.chars().next() else { return rest.len() };
            at += c.len_utf8();
        }
        if depth == 0 {
            return at;
        }
    }
}

/// Length of the string literal that `rest` begins with: plain, byte or C, raw or not.
fn string(rest: &str) -> Option<usize> {
    let body = rest.trim_start_matches(['b', 'c']);
    let prefix = rest.len() - body.len();
    if prefix > 1 {
        return None;
    }
    if let Some(raw) = body.strip_prefix('r') {
        let quoted = raw.trim_start_matches('#');
        let hashes = raw.len() - quoted.len();
        let inside = quoted.strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
        return Some(prefix + 1 + hashes + 1 + length);
    }
    let inside = body.strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in inside.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(prefix + 1 + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

/// `'a'` and `'\n'` are characters; `'a` is a lifetime.
fn character_or_lifetime(rest: &str) -> usize {
    let mut inside = rest.char_indices().skip(1);
    match (inside.next(), inside.next()) {
        (Some((_, '\\')), Some((after, _))) => {
            rest[after + 1..].find('\'').map_or(rest.len(), |end| after + 1 + end + 1)
        }
        (Some(_), Some((close, '\''))) => close + 1,
        _ => rest[1..].find(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(rest.len(), |end| 1 + end),
    }
}

#[cfg(test)]
mod tests {
    use super::tokens;

    fn words(source: &str) -> String {
        tokens(source).iter().map(|token| token.text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn text_and_comments_are_not_code() {
        assert_eq!(words("a // unsafe\nb /* unsafe /* nested */ unsafe */ c \"unsafe \\\" unsafe\" d"), "a b c d");
        assert_eq!(words("r#\"unsafe \" unsafe\"# e b\"unsafe\" c\"unsafe\" br##\"\"# unsafe\"## f"), "e f");
    }

    #[test]
    fn characters_and_lifetimes_hide_nothing() {
        assert_eq!(words("'\"' unsafe '\\'' x<'a> '\\u{1F600}' 'é' y 'outer: z"), "unsafe x < > y : z");
    }

    #[test]
    fn names_numbers_paths_and_lines() {
        assert_eq!(words("r#type::b 0x1f_u8 1.5e3 crate::c"), "type :: b . crate :: c");
        let lines: Vec<_> = tokens("a\n\"x\ny\" b\n/*\n*/c").iter().map(|token| (token.text, token.line)).collect();
        assert_eq!(lines, [("a", 1), ("b", 3), ("c", 5)]);
    }
}
