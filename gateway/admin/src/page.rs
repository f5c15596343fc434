//! A plain status page: what the program says of itself, as HTML without scripts.
//!
//! In: text from anywhere, peers' names among it. Out: HTML in which all of it is escaped and cut. Never: takes HTML.

use std::fmt::Write;

/// Most rows that are shown of one table; the page says how many it left out.
pub const ROWS_MAX: usize = 1000;
/// Longest text that is shown in one place, in bytes.
pub const CELL_BYTES_MAX: usize = 1024;

/// Whatever has something to show. Called for every request, so it should only read what is in memory.
pub trait StatusPage: Send + Sync + 'static {
    fn status(&self) -> Status;
}

/// What the page shows, as plain text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub title: String,
    /// Single facts: name and value.
    pub facts: Vec<(String, String)>,
    pub tables: Vec<Table>,
}

/// One table of the page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub heading: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// The style sheet, a file of its own so that the page needs no inline style.
pub(crate) const STYLE: &str = "\
:root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}body{margin:2rem auto;max-width:72rem;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
th,td{border-bottom:1px solid #8884;padding:.3rem .6rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}\
.none{opacity:.7}";

/// The page with its state of readiness first.
pub(crate) fn render(status: &Status, blocked_by: &[&'static str]) -> String {
    let mut html = String::with_capacity(4096);
    let title = Text(&status.title);
    let ready =
        if blocked_by.is_empty() { "ready".to_owned() } else { format!("waits for: {}", blocked_by.join(", ")) };
    // Writing into a String cannot fail.
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><meta http-equiv=\"refresh\" content=\"5\">\
         <link rel=\"stylesheet\" href=\"/style.css\"></head><body><main><h1>{title}</h1>\n\
         <table><tbody><tr><th scope=\"row\">state</th><td>{}</td></tr>",
        Text(&ready)
    );
    for (name, value) in status.facts.iter().take(ROWS_MAX) {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", Text(name), Text(value));
    }
    html.push_str("</tbody></table>\n");
    for table in &status.tables {
        render_table(&mut html, table);
    }
    html.push_str("</main></body></html>\n");
    html
}

fn render_table(html: &mut String, table: &Table) {
    let _ = write!(html, "<h2>{}</h2>", Text(&table.heading));
    if table.rows.is_empty() {
        html.push_str("<p class=\"none\">none</p>\n");
        return;
    }
    html.push_str("<table><thead><tr>");
    for column in &table.columns {
        let _ = write!(html, "<th scope=\"col\">{}</th>", Text(column));
    }
    html.push_str("</tr></thead><tbody>");
    for row in table.rows.iter().take(ROWS_MAX) {
        html.push_str("<tr>");
        for cell in row {
            let _ = write!(html, "<td>{}</td>", Text(cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table>\n");
    if let Some(more @ 1..) = table.rows.len().checked_sub(ROWS_MAX) {
        let _ = writeln!(html, "<p class=\"none\">and {more} more</p>");
    }
}

/// Text made safe between tags and in quoted attributes, and cut at [`CELL_BYTES_MAX`].
struct Text<'a>(&'a str);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, character) in self.0.char_indices() {
            if at >= CELL_BYTES_MAX {
                return f.write_char('…');
            }
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Controls and the marks that reorder text say one thing and show another.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_char('\u{fffd}')?,
                other if other.is_control() && other != '\n' && other != '\t' => f.write_char('\u{fffd}')?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(cell: &str) -> String {
        let table = Table { heading: cell.into(), columns: vec![cell.into()], rows: vec![vec![cell.into()]] };
        let facts = vec![(cell.to_owned(), cell.to_owned())];
        render(&Status { title: cell.into(), facts, tables: vec![table] }, &[])
    }

    #[test]
    fn escapes_text_in_every_place() {
        let html = page("<script>alert(\"1\")</script>' onload='x");
        assert!(!html.contains("<script") && !html.contains("\"1\"") && !html.contains("' onload"), "{html}");
        assert_eq!(html.matches("&lt;script&gt;").count(), 7);
    }

    #[test]
    fn cuts_long_text_at_a_character() {
        let html = page(&"é".repeat(100_000));
        assert!(html.len() < 10 * CELL_BYTES_MAX, "{}", html.len());
        assert!(html.contains('…'));
    }

    #[test]
    fn shows_no_control_or_reordering_character() {
        let html = page("a\u{0}b\u{1b}[31mc\u{202e}d\u{2066}e\u{7f}\u{9b}");
        assert!(html.chars().all(|c| c == '\n' || !(c.is_control() || ('\u{202a}'..='\u{2069}').contains(&c))));
    }

    #[test]
    fn shows_a_thousand_rows_and_says_how_many_are_left_out() {
        let rows = (0..ROWS_MAX + 5).map(|row| vec![format!("row-{row}.")]).collect();
        let table = Table { heading: "members".into(), columns: vec!["name".into()], rows };
        let html = render(&Status { tables: vec![table], ..Status::default() }, &[]);
        assert!(html.contains("row-999.") && !html.contains("row-1000.") && html.contains("and 5 more"));
    }

    #[test]
    fn an_empty_table_says_none_and_a_blocked_program_says_why() {
        let status =
            Status { tables: vec![Table { heading: "links".into(), ..Table::default() }], ..Status::default() };
        let html = render(&status, &["first snapshot", "identity"]);
        assert!(html.contains("none") && html.contains("waits for: first snapshot, identity"));
        assert!(render(&Status::default(), &[]).contains("<td>ready</td>"));
    }
}
