//! Text for people: tables, sizes, errors with their next step. Never a control character from outside.

use std::fmt::Write;
use std::io::IsTerminal;

use thinsnap_pool::ByteCount;

use crate::error::Error;

/// What is printed of an error: what failed, details indented, the next step.
#[must_use]
pub fn error_text(error: &Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines();
    let mut shown = format!("{} {}\n", paint("error:", "1;31"), clean(lines.next().unwrap_or_default()));
    for line in lines {
        let _ = writeln!(shown, "  {}", clean(line));
    }
    if let Some(advice) = error.advice() {
        let _ = writeln!(shown, "  try: {}", clean(advice));
    }
    shown
}

/// The text without control characters: a name from outside must not steer the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Colours on a terminal, unless NO_COLOR says otherwise (no-color.org: any value but the empty one).
fn paint(text: &str, code: &str) -> String {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted && std::io::stderr().is_terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// One decimal and a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    ByteCount(bytes).to_string()
}

/// Whole percent, rounded down, so that 100 % means full.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let value = (u128::from(part) * 100).checked_div(u128::from(whole)).unwrap_or(0);
    format!("{value} %")
}

/// `1 layer`, `2 layers`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// A time as people read it: to the second.
pub(crate) fn time(rfc3339: &str) -> String {
    match rfc3339.split_once('T') {
        Some((date, rest)) => format!("{date} {}", rest.chars().take(8).collect::<String>()),
        None => clean(rfc3339),
    }
}

/// Columns under headings, two spaces apart; the last one is not padded. Without rows: nothing.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &[&str]| {
        for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
            if index + 1 == N {
                text.push_str(cell);
            } else {
                let _ = write!(text, "{cell:<width$}  ");
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    };
    line(&headings);
    for row in rows {
        line(&row.each_ref().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{clean, count, error_text, percent, table, time};
    use crate::error::{Error, ErrorKind};

    #[test]
    fn an_error_shows_what_and_the_next_step_without_control_characters() {
        let error = Error::new(ErrorKind::NotFound, "open \x1b[31mweb\nline 2").advise("look again");
        assert_eq!(error_text(&error), "error: open \u{fffd}[31mweb\n  line 2\n  try: look again\n");
    }

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_blanks() {
        let rows = [["a".to_owned(), "1".to_owned()], ["long".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "N"], &rows), "NAME  N\na     1\nlong\n");
        assert_eq!(table(["NAME"], &[]), "");
    }

    #[test]
    fn numbers_read_as_people_say_them() {
        assert_eq!((percent(1, 3), percent(5, 0)), ("33 %".into(), "0 %".into()));
        assert_eq!((count(1, "layer"), count(0, "layer")), ("1 layer".into(), "0 layers".into()));
        assert_eq!(time("2026-11-23T15:38:01.123Z"), "2026-11-23 15:38:01");
        assert_eq!(clean("a\tb\u{7f}"), "a\u{fffd}b\u{fffd}");
    }
}
