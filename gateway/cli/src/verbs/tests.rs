//! Command lines that are understood, and those that are not.

use super::*;

fn parse(line: &str) -> Result<Alone, clap::Error> {
    Alone::try_parse_from(std::iter::once("hanse").chain(line.split_whitespace()))
}

#[test]
fn the_tree_is_well_formed() {
    command().debug_assert();
}

#[test]
fn every_verb_of_the_manual_is_understood() {
    for line in [
        "status",
        "status -o json",
        "link token west",
        "link token west --ttl 30m --lawmaker -o yaml",
        "link join",
        "link join -f token.txt",
        "link join -f -",
        "link join --wait",
        "link list -o table",
        "link status",
        "link status west --wait",
        "link tokens",
        "link remove west",
        "cluster list",
        "workload token web.shop --ttl 1h",
        "workload list",
        "service list",
        "service register payments.billing --port 8080",
        "service register payments --port 8080 --account a.b --account c,d.e",
        "service export payments.billing",
        "service export payments.billing --when-stale deny --lease 90s",
        "service register payments.billing --port 8080 --when-stale prefer-local",
        "service export payments.billing --to west,onprem",
        "intention allow web.shop payments.billing",
        "intention allow web.shop payments.billing --shadow",
        "intention deny * payments.billing --guardrail",
        "intention deny web.shop.* payments.billing.west -o json",
        "intention deny spiffe://west.mesh.internal/ns/shop/sa/web payments",
        "intention list",
        "intention delete web.shop payments.billing",
        "intention delete web.shop payments.billing --layer guardrail --action deny",
        "intention check web.shop payments.billing",
        "dns payments.billing.west.mesh.internal",
        "dns payments.billing.west.mesh.internal AAAA --as web.shop",
        "cert status",
        "cert rotate-root",
        "cert rotate-root --without east,north --without onprem --wait -o json",
        "cert rotate-root --wait --timeout 90s",
        "cert rotate-root --abort",
        "cert rotate-intermediate",
        "cert list",
        "cert revoke 0a:ff:10 -o json",
        "check -o json",
        "reload",
        "log info,federation_link=debug",
        "version -o json",
        "completions bash",
        "--socket /tmp/a.sock status",
        "link list --socket /tmp/a.sock",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn nonsense_is_refused_as_usage() {
    for line in [
        "",
        "frobnicate",
        "link",
        "link token",
        "link token west --ttl soon",
        "link token west --ttl 10",
        "link token west --ttl 0s",
        "link join hanse1.secret",
        "link remove",
        "workload token",
        "service register payments",
        "service register payments --port 0",
        "service register payments --port 80 --when-stale never",
        "service export payments --when-stale Keep",
        "service export payments --lease soon",
        "service export payments --lease 0s",
        "service register payments --port 65536",
        "intention allow web",
        "intention allow web payments --guardrail",
        "intention deny web payments --guardrail --shadow",
        "intention delete web payments --layer timed",
        "intention check web",
        "cert rotate-root --without",
        "cert rotate-root --abort --wait",
        "cert rotate-root --abort --without east",
        "dns",
        "log",
        "version -o xml",
        "completions tcl",
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("{line:?} was taken"));
        assert_eq!(error.exit_code(), 2, "{line:?}: {error}");
    }
}

#[test]
fn the_socket_may_stand_before_or_after_the_verb() {
    for line in ["--socket /a status", "status --socket /a"] {
        assert_eq!(parse(line).expect(line).globals.socket, PathBuf::from("/a"), "{line}");
    }
}

#[test]
fn a_token_is_never_an_argument() {
    // What looks like a token in the arguments ends as usage, wherever it stands.
    for line in ["link join hanse1.AAAA", "link join --token hanse1.AAAA", "link token --secret x west"] {
        assert!(parse(line).is_err(), "{line}");
    }
}
