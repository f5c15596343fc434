//! Log lines that nobody can forge, and levels that change.

use std::io::Write;

use tracing::{debug, error, info, info_span, trace, warn};

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("sink").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that `run` logs.
fn logged(format: Format, filter: &str, run: impl FnOnce(&LogControl)) -> String {
    let sink = Sink::default();
    let (layer, control) = layer(format, filter, sink.clone()).expect("a filter");
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || run(&control));
    let bytes = sink.0.lock().expect("sink").clone();
    String::from_utf8(bytes).expect("UTF-8")
}

fn json(run: impl FnOnce()) -> Vec<serde_json::Value> {
    let text = logged(Format::Json, "trace", |_| run());
    text.lines().map(|line| serde_json::from_str(line).expect("one JSON object in each line")).collect()
}

const HOSTILE: &str = "x\n2026-01-01T00:00:00Z ERROR forged: y\r\u{1b}[2J\u{0}\u{7f}\u{9b}\u{202e}\",\"level\":\"ERROR";

#[test]
fn text_has_time_level_target_sentence_and_fields() {
    let line = logged(Format::Text, "info", |_| {
        info!(cluster = "west", rtt_ms = 12, up = true, error = "no route to host", "link lost");
    });
    let (time, rest) = line.split_once(' ').expect("a time");
    assert_eq!(time.len(), "2026-11-23T12:00:00.000Z".len());
    let target = "gateway_admin::telemetry::tests";
    assert_eq!(rest, format!(" INFO {target}: link lost cluster=west rtt_ms=12 up=true error=\"no route to host\"\n"));
}

#[test]
fn json_has_stable_keys_and_typed_values() {
    let lines = json(|| warn!(cluster = %"west", tunnels = 3_u64, skew = -0.5, lost = f64::NAN, "it's \"late\""));
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["target"], "gateway_admin::telemetry::tests");
    assert_eq!(line["message"], "it's \"late\"");
    assert_eq!((&line["cluster"], &line["tunnels"], &line["skew"]), (&"west".into(), &3.into(), &(-0.5).into()));
    assert_eq!(line["lost"], "NaN");
    assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
}

#[test]
fn no_text_can_start_a_line_or_a_key_of_its_own() {
    let log = |format| {
        logged(format, "trace", |_| {
            let span = info_span!("session", peer = HOSTILE);
            let _entered = span.enter();
            info!(sni = HOSTILE, debugged = ?HOSTILE, displayed = %HOSTILE, "{HOSTILE}");
        })
    };
    for format in [Format::Text, Format::Json] {
        let text = log(format);
        let line = text.strip_suffix('\n').expect("a final newline");
        assert!(line.chars().all(|c| !('\u{0}'..'\u{20}').contains(&c)), "{line:?}");
        assert_eq!(text.lines().count(), 1);
    }
    let text = log(Format::Text);
    assert!(!text.trim_end().chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
    let value: serde_json::Value = serde_json::from_str(&log(Format::Json)).expect("JSON");
    assert_eq!((&value["level"], &value["sni"], &value["peer"]), (&"INFO".into(), &HOSTILE.into(), &HOSTILE.into()));
}

#[test]
fn a_field_cannot_pose_as_one_that_every_line_has() {
    let lines = json(|| info!(level = "ERROR", target = "x", timestamp = "never", "sentence"));
    let line = lines.first().expect("a line");
    assert_eq!((&line["level"], &line["field.level"]), (&"INFO".into(), &"ERROR".into()));
    assert_eq!((&line["field.target"], &line["field.timestamp"]), (&"x".into(), &"never".into()));
}

#[test]
fn a_megabyte_is_cut_and_never_made() {
    struct Endless(std::cell::Cell<usize>);
    impl fmt::Display for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            loop {
                self.0.set(self.0.get() + 1);
                f.write_str("äbc")?;
            }
        }
    }
    let endless = Endless(0.into());
    let big = "\u{1}".repeat(1 << 20);
    let lines = json(|| info!(endless = %endless, big, "{}", "m".repeat(1 << 20)));
    let line = lines.first().expect("a line");
    assert!(endless.0.get() < FIELD_BYTES_MAX);
    for key in ["endless", "big", "message"] {
        let text = line[key].as_str().expect(key);
        assert!(text.len() <= FIELD_BYTES_MAX + '…'.len_utf8() && text.ends_with('…'), "{key}");
    }
}

#[test]
fn fields_of_spans_are_on_the_line_and_the_nearest_wins() {
    let lines = json(|| {
        let outer = info_span!("session", cluster = "west", id = 1, late = tracing::field::Empty);
        let _outer = outer.enter();
        let inner = info_span!("tunnel", id = 2, service = "web");
        let _inner = inner.enter();
        outer.record("late", "recorded");
        info!(service = "api", "opened");
    });
    let line = lines.first().expect("a line");
    assert_eq!((&line["cluster"], &line["id"], &line["service"]), (&"west".into(), &2.into(), &"api".into()));
    assert_eq!(line["late"], "recorded");
}

#[test]
fn an_error_brings_its_causes() {
    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);
    let failure = Outer(io::Error::other("inner"));
    let lines = json(|| error!(error = &failure as &dyn std::error::Error, "failed"));
    assert_eq!(lines.first().map(|line| line["error"].clone()), Some("outer: inner".into()));
}

#[test]
fn the_level_changes_while_the_program_runs() {
    let text = logged(Format::Text, "info", |control| {
        debug!("one");
        control.set_level("debug").expect("a level");
        debug!("two");
        control.set_level("warn,gateway_admin::telemetry=trace").expect("a filter");
        trace!("three");
        trace!(target: "elsewhere", "four");
        assert_eq!(control.level(), "warn,gateway_admin::telemetry=trace");
        control.set_level("off").expect("a level");
        error!("five");
    });
    let seen: Vec<bool> = ["one", "two", "three", "four", "five"].map(|word| text.contains(word)).into();
    assert_eq!(seen, [false, true, true, false, false]);
}

#[test]
fn a_filter_that_cannot_be_read_changes_nothing() {
    let text = logged(Format::Text, "info", |control| {
        for bad in [
            "",
            "infoo",
            "info,",
            ",info",
            "gateway_dns",
            "gateway_dns=",
            "=info",
            "gateway_dns=loud",
            "info;debug",
            "[span]=info",
            "gateway_dns=info=debug",
            "5",
            &"info,".repeat(500),
        ] {
            let message = control.set_level(bad).expect_err(bad).to_string();
            assert!(message.len() < 300, "{message}");
        }
        info!("still here");
        assert_eq!(control.level(), "info");
    });
    assert!(text.contains("still here"));
}

#[test]
fn formats_are_named() {
    assert_eq!(("text".parse(), "json".parse()), (Ok(Format::Text), Ok(Format::Json)));
    for bad in ["", "JSON", "logfmt"] {
        let message = bad.parse::<Format>().expect_err(bad).to_string();
        assert!(message.contains(&format!("{bad:?}")) && message.contains("\"json\""), "{message}");
    }
}

#[test]
fn logging_is_set_up_once() {
    // The only test that touches the process; what the others log goes to their own sinks.
    let first = init(Format::Text, "off");
    assert!(first.is_ok());
    assert_eq!(init(Format::Text, "off").err(), Some(TelemetryError::Installed));
    assert!(matches!(init(Format::Text, "loud"), Err(TelemetryError::Filter(_))));
}
