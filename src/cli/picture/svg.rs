//! A chart as SVG: one file that needs no other, no script, no font; light or dark as its reader has it. Hovering tells a bar's
//! seconds. All text is escaped, and cut to what its place holds; the whole of it is in the title.

use std::fmt::Write;

use super::super::words;
use super::{Chart, Row, Tone, mark, step};

// In user units; a browser shows them as pixels.
const WIDTH: f64 = 960.0;
const MARGIN: f64 = 20.0;
const LABELS: f64 = 130.0;
const NOTES: f64 = 90.0;
const ROW: f64 = 22.0;
const BAR: f64 = 14.0;
const LINE: f64 = 20.0;

/// A bar is never narrower, or nobody sees it.
const THINNEST: f64 = 1.5;

/// Characters of a line over the whole width: at 13 units of height a letter is about 7 wide, a broad one 9.
const LINE_CHARACTERS: usize = 110;

/// Characters of a label.
const LABEL_CHARACTERS: usize = 18;

/// Marks on the axis at most.
const MARKS: usize = 12;

/// Draws a chart as a document.
pub(in super::super) fn draw(chart: &Chart) -> String {
    let head = MARGIN + LINE * (1 + chart.subtitles.len()) as f64 + 26.0;
    let height = head + ROW * chart.rows.len() as f64 + MARGIN;
    let (left, right) = (MARGIN + LABELS, WIDTH - MARGIN - NOTES);
    let total = chart.seconds.max(f64::EPSILON);
    let x = |seconds: f64| left + (seconds / total).clamp(0.0, 1.0) * (right - left);
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{text}");
    };
    line(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">"#
    ));
    line(format_args!("<title>{}</title>", escaped(&chart.title, usize::MAX)));
    line(format_args!("<style>\n{}</style>", style()));
    line(format_args!(r#"<rect class="ground" width="{WIDTH}" height="{height}"/>"#));
    let mut y = MARGIN + 12.0;
    let title = escaped(&chart.title, LINE_CHARACTERS);
    line(format_args!(r#"<text class="title" x="{MARGIN}" y="{y}">{title}</text>"#));
    for subtitle in &chart.subtitles {
        y += LINE;
        let subtitle = escaped(subtitle, LINE_CHARACTERS);
        line(format_args!(r#"<text class="quiet" x="{MARGIN}" y="{y}">{subtitle}</text>"#));
    }
    let every = step(total, MARKS);
    let mut number = 0.0;
    while number * every <= total {
        let at = x(number * every);
        line(format_args!(
            r#"<path class="grid" d="M{at:.1} {top:.1}V{bottom:.1}"/><text class="mark" x="{at:.1}" y="{y:.1}">{name}</text>"#,
            top = head - 6.0,
            bottom = height - MARGIN,
            y = head - 12.0,
            name = mark(number * every, every),
        ));
        number += 1.0;
    }
    for (number, row) in chart.rows.iter().enumerate() {
        let top = head + ROW * number as f64;
        let base = top + ROW / 2.0 + 4.5;
        match row {
            Row::Heading(text) => {
                let text = escaped(text, LINE_CHARACTERS);
                line(format_args!(r#"<text class="heading" x="{MARGIN}" y="{base:.1}">{text}</text>"#));
            }
            Row::Bars { label, bars, note } => {
                let indent = if label.starts_with(' ') { 12.0 } else { 0.0 };
                let (name, note) = (escaped(label.trim_start(), LABEL_CHARACTERS), escaped(note, LABEL_CHARACTERS));
                line(format_args!(r#"<text x="{:.1}" y="{base:.1}">{name}</text>"#, MARGIN + indent));
                for bar in bars {
                    let from = x(bar.start).min(right - THINNEST);
                    line(format_args!(
                        r#"<rect class="{class}{open}" x="{from:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}" rx="2"><title>{name}: {seconds}, from {start}{on}</title></rect>"#,
                        class = bar.tone.class(),
                        open = if bar.open { " open" } else { "" },
                        y = top + (ROW - BAR) / 2.0,
                        width = (x(bar.end) - from).max(THINNEST),
                        seconds = words::seconds(bar.end - bar.start),
                        start = words::seconds(bar.start),
                        on = if bar.open { ", goes on" } else { "" },
                    ));
                }
                line(format_args!(r#"<text class="note" x="{:.1}" y="{base:.1}">{note}</text>"#, WIDTH - MARGIN));
            }
        }
    }
    line(format_args!("</svg>"));
    out
}

/// Plain rules, light first: a reader that knows no media queries shows light.
fn style() -> String {
    let mut style = String::from(
        "text{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2328}\n\
         .title{font-size:15px;font-weight:600}.quiet,.mark{fill:#59636e}\n\
         .heading{font-weight:600;paint-order:stroke;stroke:#ffffff;stroke-width:4px}\n\
         .mark{font-size:11px;text-anchor:middle}.note{text-anchor:end}\n\
         .ground{fill:#ffffff}.grid{stroke:#d1d9e0;stroke-width:1;fill:none}.open{fill-opacity:.55}\n",
    );
    for tone in Tone::ALL {
        let _ = write!(style, ".{}{{fill:{}}}", tone.class(), colour(tone));
    }
    style.push_str(
        "\n@media (prefers-color-scheme:dark){text{fill:#e6edf3}.quiet,.mark{fill:#9198a1}.ground{fill:#0d1117}\
         .grid{stroke:#3d444d}.heading{stroke:#0d1117}\
         .plain{fill:#e6edf3}.wait{fill:#9198a1}.ask{fill:#a5d8f3}.transfer{fill:#2f81f7}}\n",
    );
    style
}

/// After Okabe and Ito; all of them stand out from white and, but for those that the style sheet replaces, from black.
fn colour(tone: Tone) -> &'static str {
    match tone {
        Tone::Wait => "#8c959f",
        Tone::Ask => "#56b4e9",
        Tone::FirstByte => "#e69f00",
        Tone::Transfer => "#0072b2",
        Tone::Verify => "#cc79a7",
        Tone::Keep => "#009e73",
        Tone::Warm => "#d55e00",
        Tone::Plain => "#1f2328",
    }
}

/// Text for an element or a title: no markup, none of the characters that XML forbids or that turn the direction of text, and no
/// more than `most` of them.
fn escaped(text: &str, most: usize) -> String {
    let mut safe = String::new();
    let mut cut = text.chars();
    let cut_off = text.chars().count() > most;
    for c in cut.by_ref().take(if cut_off { most - 1 } else { most }) {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() || is_forbidden(c) => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    if cut_off {
        safe.push('…');
    }
    safe
}

fn is_forbidden(c: char) -> bool {
    matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text() {
        assert_eq!(
            escaped("<script>\"&'\u{0}\u{1b}\u{202e}", 99),
            "&lt;script&gt;&quot;&amp;&#39;\u{fffd}\u{fffd}\u{fffd}"
        );
        assert_eq!(escaped("abcdef", 6), "abcdef");
        assert_eq!(escaped("abcdefg", 6), "abcde…");
    }
}
