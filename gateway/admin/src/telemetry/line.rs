//! One event, one line.
//!
//! tracing-subscriber's own formatters bound no field and let a newline through as text; a log in which a peer can write
//! its own lines proves nothing. Here every value is escaped, and cut at [`FIELD_BYTES_MAX`].

use std::{
    error::Error,
    fmt::{self, Write},
    io,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

use super::Format;

/// Longest value of a field, and longest message, in bytes before escaping.
pub const FIELD_BYTES_MAX: usize = 1024;
/// Most fields of a line, its spans' fields included; the event's own come first.
const FIELDS_MAX: usize = 64;

/// The layer that writes.
pub(super) struct Lines<W> {
    format: Format,
    writer: Mutex<W>,
}

impl<W: io::Write> Lines<W> {
    pub(super) fn new(format: Format, writer: W) -> Self {
        Self { format, writer: Mutex::new(writer) }
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: io::Write + Send + 'static,
{
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        // Innermost span first: where a name comes twice, the nearest one says it.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.inherit(outer);
            }
        }
        let metadata = event.metadata();
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let line = match self.format {
            Format::Text => fields.text(&time, metadata.level().as_str(), metadata.target()),
            Format::Json => fields.json(&time, metadata.level().as_str(), metadata.target()),
        };
        // One write, so that lines of several threads do not mix. There is nowhere to report a failure to.
        let _ = self.writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}

/// The fields of an event or a span, as text.
#[derive(Default)]
struct Fields {
    message: Option<String>,
    named: Vec<(&'static str, Value)>,
}

enum Value {
    /// A number or truth value, the same in JSON and in text.
    Plain(String),
    Text(String),
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let name = field.name();
        match (name, value) {
            ("message", Value::Text(text) | Value::Plain(text)) => self.message = Some(text),
            (_, value) => {
                if let Some((_, held)) = self.named.iter_mut().find(|(known, _)| *known == name) {
                    *held = value;
                } else if self.named.len() < FIELDS_MAX {
                    self.named.push((name, value));
                }
            }
        }
    }

    fn inherit(&mut self, outer: &Self) {
        for (name, value) in &outer.named {
            if self.named.len() < FIELDS_MAX && !self.named.iter().any(|(known, _)| known == name) {
                let value = match value {
                    Value::Plain(text) => Value::Plain(text.clone()),
                    Value::Text(text) => Value::Text(text.clone()),
                };
                self.named.push((name, value));
            }
        }
    }

    fn text(&self, time: &str, level: &str, target: &str) -> String {
        let mut line = format!("{time} {level:>5} {target}: ");
        for character in self.message.as_deref().unwrap_or_default().chars() {
            match character {
                // Quotes read better as they are, and break nothing outside of a quoted value.
                '"' | '\'' => line.push(character),
                other => line.extend(other.escape_debug()),
            }
        }
        for (name, value) in &self.named {
            // Writing into a String cannot fail.
            let _ = match value {
                Value::Plain(text) => write!(line, " {name}={text}"),
                Value::Text(text) if is_word(text) => write!(line, " {name}={text}"),
                Value::Text(text) => write!(line, " {name}={text:?}"),
            };
        }
        line.push('\n');
        line
    }

    fn json(&self, time: &str, level: &str, target: &str) -> String {
        // serde_json quotes and escapes; a text cannot fail to be one.
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned());
        let message = quoted(self.message.as_deref().unwrap_or_default());
        let mut line = format!("{{\"timestamp\":\"{time}\",\"level\":\"{level}\",\"target\":{},", quoted(target));
        let _ = write!(line, "\"message\":{message}");
        for (name, value) in &self.named {
            // A field may not pose as one of the four that every line has.
            let prefix = if matches!(*name, "timestamp" | "level" | "target") { "field." } else { "" };
            let name = quoted(&format!("{prefix}{name}"));
            let _ = match value {
                Value::Plain(text) => write!(line, ",{name}:{text}"),
                Value::Text(text) => write!(line, ",{name}:{}", quoted(text)),
            };
        }
        line.push_str("}\n");
        line
    }
}

/// Whether a value can stand without quotes and still be told from what follows.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/@[]*+%".contains(&byte))
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(cut(format_args!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(cut(format_args!("{value}"))));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = cut(format_args!("{value}"));
        let mut source = value.source();
        while let Some(cause) = source.filter(|_| text.len() < FIELD_BYTES_MAX) {
            text = cut(format_args!("{text}: {cause}"));
            source = cause.source();
        }
        self.put(field, Value::Text(text));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Plain(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Plain(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Plain(value.to_string()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for what is no number.
        let text = value.to_string();
        self.put(field, if value.is_finite() { Value::Plain(text) } else { Value::Text(text) });
    }
}

/// Formats until [`FIELD_BYTES_MAX`], then stops the formatting itself: a megabyte is never made.
fn cut(text: fmt::Arguments<'_>) -> String {
    struct Cut(String);
    impl Write for Cut {
        fn write_str(&mut self, piece: &str) -> fmt::Result {
            let left = FIELD_BYTES_MAX.saturating_sub(self.0.len());
            if piece.len() <= left {
                self.0.push_str(piece);
                return Ok(());
            }
            self.0.push_str(piece.get(..piece.floor_char_boundary(left)).unwrap_or_default());
            self.0.push('…');
            Err(fmt::Error)
        }
    }
    let mut cut = Cut(String::new());
    // The error is how it stops.
    let _ = cut.write_fmt(text);
    cut.0
}
