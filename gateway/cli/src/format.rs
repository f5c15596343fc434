//! How answers are printed: tables for people, JSON and YAML for programs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: columns may change.
    Table,
    /// For programs: the reply of the manage API, field by field.
    Json,
    /// The same as YAML.
    Yaml,
}

/// `value` as JSON or YAML, ending in a newline; `None` for a table.
pub(crate) fn machine(format: Format, value: &impl Serialize) -> Option<Result<String, String>> {
    match format {
        Format::Table => None,
        Format::Json => {
            Some(serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| error.to_string()))
        }
        Format::Yaml => Some(serde_norway::to_string(value).map_err(|error| error.to_string())),
    }
}

/// Rows under headings, without lines, as people know it from other tools.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings);
    for row in rows {
        table.add_row(row.map(|cell| if cell.is_empty() { "-".to_owned() } else { clean(&cell) }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    lines(&table)
}

/// Names and values, one a line; empty values are left out.
pub(crate) fn facts<const N: usize>(facts: [(&str, String); N]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in facts {
        if !value.is_empty() {
            table.add_row([format!("{name}:"), clean(&value)]);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    lines(&table)
}

fn lines(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The text with every control character shown as `?`: names and messages come from other clusters, and a terminal
/// obeys what it is sent.
pub(crate) fn clean(text: &str) -> String {
    // Besides C0 and C1, the marks that turn the direction of text around, which can make one name look like another.
    let hides = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if hides(c) { '?' } else { c }).collect()
}

/// A point in time, and how far from `now` it is. Zero is "never".
pub(crate) fn moment(millis: u64, now: SystemTime) -> String {
    if millis == 0 {
        return String::new();
    }
    let Some(at) = UNIX_EPOCH.checked_add(Duration::from_millis(millis)) else { return "never".into() };
    // Beyond the year 9999 the calendar of the formatter ends.
    if millis > 253_402_300_799_000 {
        return "never".into();
    }
    let stamp = humantime::format_rfc3339_seconds(at);
    match at.duration_since(now) {
        Ok(ahead) => format!("{stamp} (in {})", span(ahead)),
        Err(behind) => format!("{stamp} ({} ago)", span(behind.duration())),
    }
}

/// How long ago, or `-` if never.
pub(crate) fn ago(millis: u64, now: SystemTime) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_millis(millis)).map(|at| now.duration_since(at)) {
        _ if millis == 0 => String::new(),
        Some(Ok(behind)) => span(behind),
        _ => "0s".into(),
    }
}

/// A span as people read it: its two largest units.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let pair = |large: u64, unit: &str, small: u64, other: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{other}"),
    };
    match seconds {
        0 => format!("{}ms", span.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => pair(minutes, "m", seconds % 60, "s"),
        3600..86_400 => pair(hours, "h", minutes, "m"),
        _ => pair(days, "d", hours, "h"),
    }
}

/// Microseconds as milliseconds; zero is "not measured".
pub(crate) fn rtt(micros: u64) -> String {
    match micros {
        0 => String::new(),
        1..10_000 => format!("{}.{:02}ms", micros / 1000, micros % 1000 / 10),
        _ => format!("{}ms", micros / 1000),
    }
}

/// Bytes in binary units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count}B");
    }
    let power = count.ilog2() / 10;
    let unit = UNITS.get(power as usize - 1).copied().unwrap_or("EiB");
    let tenths = (u128::from(count) * 10) >> (10 * power);
    format!("{}.{}{unit}", tenths / 10, tenths % 10)
}

pub(crate) fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_their_two_largest_units() {
        for (seconds, wanted) in
            [(0, "0ms"), (59, "59s"), (60, "1m"), (61, "1m1s"), (3600, "1h"), (3660, "1h1m"), (90_000, "1d1h")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), wanted);
        }
        assert_eq!(span(Duration::from_millis(20)), "20ms");
    }

    #[test]
    fn sizes_and_round_trips_are_short() {
        for (count, wanted) in [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (1536, "1.5KiB"), (u64::MAX, "15.9EiB")] {
            assert_eq!(bytes(count), wanted);
        }
        for (micros, wanted) in [(0, ""), (90, "0.09ms"), (1234, "1.23ms"), (45_678, "45ms")] {
            assert_eq!(rtt(micros), wanted);
        }
    }

    #[test]
    fn moments_say_the_date_and_the_distance() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(moment(1_700_000_900_000, now), "2023-11-14T22:28:20Z (in 15m)");
        assert_eq!(moment(1_699_999_999_000, now), "2023-11-14T22:13:19Z (1s ago)");
        assert_eq!(moment(0, now), "");
        assert_eq!(moment(u64::MAX, now), "never");
    }

    #[test]
    fn what_comes_from_elsewhere_cannot_command_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\r\0\u{9b}d\u{202e}e"), "a?[2Jb?c???d?e");
        let shown = table(["NAME"], [["\u{1b}]0;title\u{7}".to_owned()]]);
        assert!(!shown.contains('\u{1b}') && !shown.contains('\u{7}'), "{shown:?}");
    }

    #[test]
    fn tables_have_no_trailing_blanks() {
        let shown = table(["NAME", "STATE"], [["west".to_owned(), String::new()]]);
        assert_eq!(shown, "NAME  STATE\nwest  -\n");
    }
}
