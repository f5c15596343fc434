//! The series that are kept, and those that are dropped.

use std::collections::HashMap;

use ::metrics::{counter, describe_histogram, histogram, with_local_recorder};

use super::*;

fn rendered(run: impl FnOnce()) -> String {
    let (recorder, exporter) = recorder().expect("buckets");
    with_local_recorder(&recorder, run);
    exporter.render()
}

/// What `promtool check metrics` asks of names, help and types; returns each family's type.
fn lint(text: &str) -> HashMap<String, String> {
    let (mut helped, mut typed) = (HashMap::new(), HashMap::new());
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("help text");
            assert!(helped.insert(name.to_owned(), help.to_owned()).is_none(), "{name} is helped twice");
            assert!(!help.trim().is_empty(), "{name} has no help");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(typed.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is typed twice");
            assert!(helped.contains_key(name), "{name} has no help before its type");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert_ne!(kind, "summary", "{name} has no buckets");
        } else {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(typed.contains_key(name) || typed.contains_key(family), "{line} has no type");
            let value = line.rsplit(' ').next().unwrap_or_default();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    typed
}

#[test]
fn what_runs_is_told_with_help_and_type() {
    let text = rendered(|| {
        describe("gateway", "0.1.0");
        counter!(SERIES_DROPPED).increment(0);
        gauge!(READY).set(1.0);
    });
    let kinds = lint(&text);
    assert_eq!(kinds.get(BUILD_INFO).map(String::as_str), Some("gauge"));
    assert_eq!(kinds.get(SERIES_DROPPED).map(String::as_str), Some("counter"));
    assert!(text.contains("hanse_build_info{program=\"gateway\",version=\"0.1.0\"} 1\n"), "{text}");
    let started = text.lines().find_map(|line| line.strip_prefix("process_start_time_seconds ")).expect("a start");
    assert!(started.parse::<f64>().is_ok_and(|seconds| seconds > 1.7e9));
}

#[test]
fn observations_become_buckets_by_the_unit_in_the_name() {
    let text = rendered(|| {
        for name in ["a_seconds", "b_bytes", "c_records"] {
            describe_histogram!(name, "Something.");
        }
        histogram!("a_seconds").record(0.003);
        histogram!("b_bytes").record(2000.0);
        histogram!("c_records").record(3.0);
    });
    assert_eq!(lint(&text).values().filter(|kind| *kind == "histogram").count(), 3);
    for wanted in [
        "a_seconds_bucket{le=\"0.0025\"} 0",
        "a_seconds_bucket{le=\"0.005\"} 1",
        "b_bytes_bucket{le=\"16384\"} 1",
        "c_records_bucket{le=\"2\"} 0",
        "c_records_bucket{le=\"+Inf\"} 1",
        "a_seconds_count 1",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
}

#[test]
fn a_million_labels_make_ten_thousand_series() {
    let (recorder, exporter) = recorder().expect("buckets");
    with_local_recorder(&recorder, || {
        describe("gateway", "0.1.0");
        for host in 0..1_000_000_u32 {
            counter!("hosts_total", "host" => host.to_string()).increment(1);
        }
        // What was known before still counts.
        counter!("hosts_total", "host" => "0").increment(41);
    });
    let begun = tokio::time::Instant::now();
    let text = exporter.render();
    let took = begun.elapsed();
    let series = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    assert_eq!(series, SERIES_MAX + 1, "the counter of what was dropped is one more");
    assert!(text.contains("hosts_total{host=\"0\"} 42\n"));
    let dropped = 1_000_000 - (SERIES_MAX - 2);
    assert!(text.contains(&format!("{SERIES_DROPPED} {dropped}\n")));
    // 100 ms, ten times over.
    assert!(took.as_secs_f64() < 1.0, "{took:?}");
}

#[test]
fn a_label_that_is_too_long_is_not_recorded() {
    let text = rendered(|| {
        counter!("hosts_total", "host" => "x".repeat(LABEL_BYTES_MAX + 1)).increment(1);
        counter!("hosts_total", "host" => "x".repeat(LABEL_BYTES_MAX)).increment(1);
    });
    assert_eq!(text.matches("hosts_total{").count(), 1);
    assert!(text.contains(&format!("{SERIES_DROPPED} 1\n")));
}

#[test]
fn gauges_and_histograms_are_bounded_as_well() {
    let text = rendered(|| {
        gauge!("g", "l" => "x".repeat(LABEL_BYTES_MAX + 1)).set(1.0);
        histogram!("h_seconds", "l" => "x".repeat(LABEL_BYTES_MAX + 1)).record(1.0);
    });
    assert!(!text.contains("# TYPE g ") && !text.contains("h_seconds"));
    assert!(text.contains(&format!("{SERIES_DROPPED} 2\n")));
}

#[test]
fn text_in_a_label_cannot_add_a_line() {
    let text = rendered(|| counter!("hosts_total", "host" => "a\"} 1\nforged_total 9\\").increment(1));
    assert!(!text.lines().any(|line| line.starts_with("forged_total")), "{text}");
}

#[test]
fn upkeep_keeps_what_was_observed() {
    let (recorder, exporter) = recorder().expect("buckets");
    with_local_recorder(&recorder, || {
        for _ in 0..3 {
            histogram!("a_seconds").record(1.0);
            exporter.upkeep();
        }
    });
    assert!(exporter.render().contains("a_seconds_count 3"));
}
