//! What standard output can show: how wide it is, which characters, whether colours. And what is printed there: results alone,
//! with nothing in them that a terminal would take for an order.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};

use unicode_width::UnicodeWidthChar;

/// Columns where nobody says: what mail, logs and consoles have shown for decades.
const COLUMNS: usize = 80;

/// Narrower than this a picture says nothing; lines are wrapped by the terminal then.
const NARROWEST: usize = 40;

/// What a place for text can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Screen {
    /// Characters in a line.
    pub(super) columns: usize,
    /// Whether more than ASCII arrives as it was meant.
    pub(super) unicode: bool,
    /// Whether colours are wanted.
    pub(super) colour: bool,
}

// === impl Screen ===

impl Screen {
    /// Standard output.
    pub(super) fn of_stdout() -> Self {
        let stdout = std::io::stdout();
        let columns = crate::sys::terminal::columns(&stdout);
        Self::of(stdout.is_terminal(), columns, |name| std::env::var(name).ok())
    }

    /// A terminal shows what its locale says, and colours unless somebody objects (`NO_COLOR`, see no-color.org); a file or a
    /// pipe gets plain text, which every reader can read.
    fn of(terminal: bool, columns: Option<usize>, variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        // The first that is set decides, as POSIX has it.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_lowercase();
        let dumb = set("TERM").is_none_or(|kind| kind == "dumb");
        let asked = set("COLUMNS").and_then(|columns| columns.parse().ok());
        Self {
            columns: columns.or(asked).unwrap_or(COLUMNS).max(NARROWEST),
            unicode: terminal && (locale.contains("utf-8") || locale.contains("utf8")),
            colour: terminal && !dumb && set("NO_COLOR").is_none(),
        }
    }

    /// Text from elsewhere, harmless: control characters could move the cursor or change the title, and some that have no width
    /// turn the direction of what follows.
    pub(super) fn plain<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let shown =
            |c: char| c == ' ' || if self.unicode { c.width().is_some_and(|w| w > 0) } else { c.is_ascii_graphic() };
        if text.chars().all(shown) {
            return Cow::Borrowed(text);
        }
        Cow::Owned(text.chars().map(|c| if shown(c) { c } else { '?' }).collect())
    }

    /// The same in `columns`: what is too long loses its middle, since references differ at both ends.
    pub(super) fn fit(&self, text: &str, columns: usize) -> String {
        let text = self.plain(text);
        if width(&text) <= columns {
            return text.into_owned();
        }
        let gap = if self.unicode { "…" } else { "..." };
        let room = columns.saturating_sub(width(gap));
        let head = take(text.chars(), room / 2);
        let tail: String = take(text.chars().rev(), room - room / 2).chars().rev().collect();
        format!("{head}{gap}{tail}")
    }
}

/// Columns that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

fn take(characters: impl Iterator<Item = char>, columns: usize) -> String {
    let mut left = columns;
    characters
        .take_while(|c| {
            let wide = c.width().unwrap_or(0);
            let fits = wide <= left;
            left = left.saturating_sub(wide);
            fits
        })
        .collect()
}

/// Prints a result. A reader that has seen enough (`| head`) is no error.
pub(super) fn print(result: impl AsRef<[u8]>) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(result.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// Prints a result as one line of JSON.
pub(super) fn print_json(result: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(result)?;
    line.push(b'\n');
    Ok(print(line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(terminal: bool, columns: Option<usize>, variables: &[(&str, &str)]) -> Screen {
        Screen::of(terminal, columns, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_terminal_shows_what_its_locale_says_and_a_pipe_plain_text() {
        let terminal = |variables: &[(&str, &str)]| screen(true, Some(120), variables);
        let usual = terminal(&[("LANG", "en_GB.UTF-8"), ("TERM", "xterm")]);
        assert_eq!(usual, Screen { columns: 120, unicode: true, colour: true });
        assert!(!terminal(&[("LC_ALL", "C"), ("LANG", "en_GB.UTF-8"), ("TERM", "xterm")]).unicode);
        assert!(terminal(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8"), ("TERM", "xterm")]).unicode);
        assert!(!terminal(&[("TERM", "xterm"), ("NO_COLOR", "1")]).colour);
        assert!(terminal(&[("TERM", "xterm"), ("NO_COLOR", "")]).colour, "empty is not set");
        assert!(!terminal(&[("TERM", "dumb")]).colour && !terminal(&[]).colour);
        let piped = screen(false, None, &[("LANG", "C.UTF-8"), ("TERM", "xterm")]);
        assert_eq!(piped, Screen { columns: 80, unicode: false, colour: false });
        assert_eq!(screen(false, None, &[("COLUMNS", "132")]).columns, 132);
        assert_eq!(screen(true, Some(7), &[]).columns, NARROWEST);
    }

    #[test]
    fn nothing_that_is_printed_gives_orders_to_a_terminal() {
        let (ascii, unicode) = (screen(false, None, &[]), screen(true, None, &[("LANG", "C.UTF-8")]));
        assert_eq!(ascii.plain("a\u{1b}[2Jb\r\nü"), "a?[2Jb???");
        assert_eq!(unicode.plain("a\u{1b}]0;t\u{7}\u{9b}ü模"), "a?]0;t??ü模");
        assert_eq!(unicode.plain("x\u{202e}gpj.exe\u{200b}"), "x?gpj.exe?");
    }

    #[test]
    fn what_is_too_long_loses_its_middle() {
        let (ascii, unicode) = (screen(false, None, &[]), screen(true, None, &[("LANG", "C.UTF-8")]));
        assert_eq!(ascii.fit("hf://org/model", 14), "hf://org/model");
        assert_eq!(ascii.fit("hf://org/model", 11), "hf:/...odel");
        assert_eq!(unicode.fit("hf://org/model", 11), "hf://…model");
        assert_eq!(unicode.fit("模型模型模型", 8), "模…模型");
        assert!(width(&ascii.fit("hf://org/model", 2)) <= 3);
    }
}
