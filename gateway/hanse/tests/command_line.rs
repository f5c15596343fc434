//! The executable's own answers: usage, bad files, a gateway that is not there.

use std::process::{Command, Output};

fn hanse(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hanse")).args(arguments).output().expect("hanse runs");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, words)
}

#[test]
fn usage_is_exit_code_two() {
    for arguments in [&["bogus"][..], &["gateway"], &["intention", "allow"], &["link", "token"]] {
        assert_eq!(hanse(arguments).0.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_gateway_that_is_not_there_is_exit_code_three_and_says_what_to_do() {
    let (output, words) = hanse(&["--socket", "/nowhere/hanse.sock", "cluster", "list"]);
    assert_eq!(output.status.code(), Some(3), "{words}");
    assert!(words.contains("/nowhere/hanse.sock") && words.contains("hanse gateway"), "{words}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_wrong_configuration_names_file_place_and_fix() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("gateway.toml");
    let text = path.to_str().expect("UTF-8");
    for (config, wanted) in [
        ("cluster = \"west\"\ndata_dr = \"/d\"", "did you mean `data_dir`?"),
        ("cluster = \"default\"\ndata_dir = \"/d\"", "cluster name \"default\" is refused"),
        ("cluster = \"west\"\ndata_dir = \"/d\"\n[svid]\nttl = \"soon\"", "\"soon\""),
    ] {
        std::fs::write(&path, config).expect("write");
        let (output, words) = hanse(&["gateway", "--config", text, "--check-config"]);
        assert!(!output.status.success(), "{config}");
        assert!(words.contains(text) && words.contains(wanted), "{words}");
    }
    std::fs::write(&path, "cluster = \"west\"\ndata_dir = \"/d\"").expect("write");
    assert!(hanse(&["gateway", "--config", text, "--check-config"]).0.status.success());
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("gateway.toml");
    let data = folder.path().join("data");
    std::fs::write(&path, format!("cluster = \"west\"\ndata_dir = {data:?}\n[mesh]\nlisten = \"{address}\""))
        .expect("write");
    let (output, words) = hanse(&["gateway", "--config", path.to_str().expect("UTF-8")]);
    assert!(!output.status.success());
    assert!(words.contains("mesh.listen") && words.contains(&address.to_string()), "{words}");
}

#[test]
fn version_and_completions_need_no_gateway() {
    let (version, _) = hanse(&["version"]);
    assert!(version.status.success());
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
    let (completions, _) = hanse(&["completions", "bash"]);
    assert!(completions.status.success() && completions.stdout.len() > 1000);
}
