//! A chart as lines of text. Blocks and box lines where the screen has them, ASCII elsewhere; a bar shorter than half a column
//! is a mark, so that no stage is invisible.

use super::super::screen::{Screen, width};
use super::{Bar, Chart, Row, Tone, mark, step};

/// Columns that a label or a note takes at most, and a third of the screen at most: the bars are what is looked at.
const BESIDE_MOST: usize = 24;

/// Columns from one mark of the axis to the next, at least: as many as `400 ms` and a gap.
const MARK_EVERY: usize = 8;

/// What bars and axis are made of.
struct Glyphs {
    full: char,
    thin: char,
    open: char,
    line: char,
    tick: char,
}

const BLOCKS: Glyphs = Glyphs { full: '█', thin: '▏', open: '▶', line: '─', tick: '┬' };
const ASCII: Glyphs = Glyphs { full: '#', thin: '|', open: '>', line: '-', tick: '+' };

/// How the columns of a chart are shared out.
struct Layout {
    label: usize,
    bars: usize,
    note: usize,
}

/// Draws a chart, each line ended.
pub(in super::super) fn draw(chart: &Chart, screen: &Screen) -> String {
    let glyphs = if screen.unicode { BLOCKS } else { ASCII };
    let layout = Layout::of(chart, screen);
    let total = chart.seconds.max(f64::EPSILON);
    let mut picture = String::new();
    let mut line = |text: String| {
        picture.push_str(text.trim_end());
        picture.push('\n');
    };
    let every = step(total, (layout.bars / MARK_EVERY).max(1));
    for text in axis(&layout, total, every, &glyphs) {
        line(text);
    }
    for row in &chart.rows {
        match row {
            Row::Heading(text) => line(screen.fit(text, screen.columns)),
            Row::Bars { label, bars, note } => {
                let label = padded(&screen.fit(label, layout.label), layout.label);
                let note = screen.fit(note, layout.note);
                let pad = " ".repeat(layout.note - width(&note));
                let bars = cells(bars, &layout, total, &glyphs);
                line(format!("{label} {} {pad}{note}", coloured(&bars, screen)));
            }
        }
    }
    picture
}

// === impl Layout ===

impl Layout {
    fn of(chart: &Chart, screen: &Screen) -> Self {
        let most = BESIDE_MOST.min(screen.columns / 3);
        let (mut label, mut note) = (0, 0);
        for row in &chart.rows {
            if let Row::Bars { label: l, note: n, .. } = row {
                label = label.max(width(&screen.plain(l))).min(most);
                note = note.max(width(&screen.plain(n))).min(most);
            }
        }
        Self { label, note, bars: screen.columns.saturating_sub(label + note + 2).max(1) }
    }
}

/// Names of the marks, and the line with them.
fn axis(layout: &Layout, total: f64, every: f64, glyphs: &Glyphs) -> [String; 2] {
    let mut names = " ".repeat(layout.label + 1);
    let mut line = vec![glyphs.line; layout.bars];
    let mut number = 0.0;
    loop {
        let at = (number * every / total * layout.bars as f64).round() as usize;
        if at >= layout.bars {
            break;
        }
        line[at] = glyphs.tick;
        let name = mark(number * every, every);
        let column = layout.label + 1 + at;
        // Names are ASCII; one that would run into the last is left out.
        if names.len() <= column && column + name.len() <= layout.label + layout.bars + layout.note + 2 {
            names.push_str(&" ".repeat(column - names.len()));
            names.push_str(&name);
            names.push(' ');
        }
        number += 1.0;
    }
    [names, format!("{} {}", " ".repeat(layout.label), line.into_iter().collect::<String>())]
}

/// One row of bars, a character and its colour for each column.
fn cells(bars: &[Bar], layout: &Layout, total: f64, glyphs: &Glyphs) -> Vec<(char, Option<Tone>)> {
    let mut cells = vec![(' ', None); layout.bars];
    let column = |seconds: f64| ((seconds / total * layout.bars as f64).round().max(0.0) as usize).min(layout.bars);
    for bar in bars {
        let (from, to) = (column(bar.start), column(bar.end));
        let from = from.min(layout.bars - 1);
        if to <= from {
            // What is longer and shares the column is not covered.
            if cells[from].1.is_none() {
                cells[from] = (if bar.open { glyphs.open } else { glyphs.thin }, Some(bar.tone));
            }
            continue;
        }
        cells[from..to].fill((glyphs.full, Some(bar.tone)));
        if bar.open {
            cells[to - 1] = (glyphs.open, Some(bar.tone));
        }
    }
    cells
}

fn coloured(cells: &[(char, Option<Tone>)], screen: &Screen) -> String {
    let mut text = String::new();
    for run in cells.chunk_by(|one, other| one.1 == other.1) {
        let characters: String = run.iter().map(|(character, _)| *character).collect();
        match run[0].1.filter(|_| screen.colour) {
            Some(tone) => text.push_str(&format!("\u{1b}[{}m{characters}\u{1b}[0m", code(tone))),
            None => text.push_str(&characters),
        }
    }
    text
}

/// Of the sixteen colours that every terminal has, in the shades that its owner chose.
fn code(tone: Tone) -> u8 {
    match tone {
        Tone::Wait => 90,
        Tone::Ask => 36,
        Tone::FirstByte => 33,
        Tone::Transfer => 34,
        Tone::Verify => 35,
        Tone::Keep => 32,
        Tone::Warm => 31,
        Tone::Plain => 39,
    }
}

fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Screen = Screen { columns: 60, unicode: false, colour: false };

    fn row(label: &str, bars: &[(f64, f64, bool)]) -> Row {
        let bar = |&(start, end, open): &(f64, f64, bool)| Bar { start, end, open, tone: Tone::Transfer };
        Row::Bars { label: label.to_owned(), bars: bars.iter().map(bar).collect(), note: format!("{label}!") }
    }

    fn chart(seconds: f64, rows: Vec<Row>) -> Chart {
        Chart { seconds, rows, ..Chart::default() }
    }

    #[test]
    fn bars_scale_to_the_axis_and_none_is_invisible() {
        let rows = vec![
            row("whole", &[(0.0, 10.0, false)]),
            row("half", &[(5.0, 10.0, false)]),
            row("twice", &[(0.0, 2.5, false), (7.5, 10.0, true)]),
            row("tiny", &[(3.0, 3.004, false)]),
            row("late", &[(10.0, 10.0, true)]),
        ];
        insta::assert_snapshot!(draw(&chart(10.0, rows), &PLAIN), @r"
              0 s      2 s       4 s      6 s       8 s
              +--------+---------+--------+---------+--------
        whole ############################################### whole!
        half                          #######################  half!
        twice ############                       ###########> twice!
        tiny                |                                  tiny!
        late                                                >  late!
        ");
    }

    #[test]
    fn a_screen_that_can_gets_blocks_and_colours() {
        let rows = vec![Row::Heading("hf://org/модель".to_owned()), row("warm", &[(0.0, 1.0, true)])];
        let screen = Screen { columns: 40, unicode: true, colour: true };
        let picture = draw(&chart(2.0, rows.clone()), &screen);
        insta::assert_snapshot!(picture.replace('\u{1b}', "ESC"), @r"
             0 s            1 s
             ┬──────────────┬─────────────
        hf://org/модель
        warm ESC[34m██████████████▶ESC[0m               warm!
        ");
        let picture = draw(&chart(2.0, rows), &PLAIN);
        assert!(picture.is_ascii(), "{picture}");
    }

    #[test]
    fn lines_are_no_wider_than_the_screen() {
        for columns in [40, 61, 200] {
            for seconds in [0.0, 0.003, 0.7, 9.99, 61.0, 86_400.0] {
                let rows = vec![
                    Row::Heading("x".repeat(300)),
                    row(&"label".repeat(9), &[(0.0, seconds, false), (seconds * 2.0, seconds * 3.0, false)]),
                ];
                let picture = draw(&chart(seconds, rows), &Screen { columns, unicode: true, colour: false });
                for line in picture.lines() {
                    assert!(width(line) <= columns, "{columns} {seconds}: {line}");
                }
            }
        }
    }
}
