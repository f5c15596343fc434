//! The house rules that a compiler does not know: who may call what, who may use whom, and how a file starts.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Calls that make a proof out of nothing, and the one room that may: it has just checked what they assert.
const ASSERTIONS: [&str; 2] = ["VerifiedPeer::assertion(", "Authentic::assertion("];
const ASSERTING_ROOM: &str = "federation/identity/src/";
/// Code that is in no product: it makes proofs so that rules can be tried without cryptography, where identity cannot be
/// used (model uses nothing, simulation and figures have no keys). Files, and folders with all that is in them.
const TRUSTED: [&str; 5] = [
    "federation/model/src/authorizer/tests.rs",
    "federation/model/src/testing.rs",
    "testbed/src/bench/",
    "testbed/src/sim/",
    "testbed/tests/tidy.rs",
];
/// Heavy packages and their one owner, as docs/architecture.md says below its table.
const OWNED: [(&str, &str); 4] = [
    ("sled", "federation-store"),
    ("quinn", "federation-link"),
    ("rcgen", "federation-identity"),
    ("hickory", "gateway-dns"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("testbed lies in the workspace").to_owned()
}

/// Every Rust file of the workspace: its path from the root, and its text.
fn files() -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["proto", "federation", "gateway", "testbed"].iter().map(|room| root.join(room)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the workspace") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                // A build folder, should somebody build inside a crate.
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                found.push((name, std::fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    found.sort();
    assert!(found.len() > 100, "only {} files were found below {}", found.len(), root.display());
    found
}

/// Whether the code outside comments holds `call`.
fn calls(text: &str, call: &str) -> bool {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).any(|code| code.contains(call))
}

#[test]
fn only_identity_asserts_that_something_is_proved() {
    let mut wrong = Vec::new();
    let mut inside = 0;
    for (name, text) in files() {
        for call in ASSERTIONS.into_iter().filter(|call| calls(&text, call)) {
            if name.starts_with(ASSERTING_ROOM) {
                inside += 1;
            } else if !TRUSTED.iter().any(|trusted| name.starts_with(trusted)) {
                wrong.push(format!("{name} calls {call}"));
            }
        }
    }
    assert!(inside > 0, "identity asserts nothing any more: were the constructors renamed?");
    assert!(wrong.is_empty(), "only {ASSERTING_ROOM} may assert a proof:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_first_what_it_is() {
    let wrong: Vec<String> =
        files().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(name, _)| name).collect();
    assert!(wrong.is_empty(), "these do not start with `//!`:\n{}", wrong.join("\n"));
}

/// What each crate of the workspace depends on, by the names in its manifest; and which crates are of the workspace.
fn dependencies() -> BTreeMap<String, (PathBuf, BTreeSet<String>)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            let folder =
                manifest.parent().expect("a folder").strip_prefix(root()).expect("in the workspace").to_owned();
            let uses = package["dependencies"].as_array().expect("dependencies").iter();
            (text(&package["name"]), (folder, uses.map(|dependency| text(&dependency["name"])).collect()))
        })
        .collect()
}

/// The table of doors: room, and what it may use, as they stand in docs/architecture.md.
fn doors() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).expect("docs/architecture.md");
    let section = text.split("\n## Doors\n").nth(1).expect("a section called Doors");
    let section = section.split("\n## ").next().expect("its text");
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let (room, uses) = (cells.next().expect("a room"), cells.next().expect("what it may use"));
        (room.to_owned(), uses.to_owned())
    })
    .collect()
}

/// Last word of a room's path: what the table calls it in its second column.
fn short(folder: &Path) -> String {
    folder.file_name().expect("a name").to_string_lossy().into_owned()
}

/// Whether a cell of the table lets a crate use the room called `used`, in folder `folder`.
fn allows(cell: &str, used: &str, folder: &Path, programs: &[&str]) -> bool {
    match cell {
        "nothing" => false,
        "all libraries" => !programs.contains(&used),
        all if all.starts_with("all but ") => {
            let but = all.trim_start_matches("all but ");
            !but.split([',', ' ']).any(|word| word == used)
        }
        list => list.split(',').map(str::trim).any(|entry| {
            let room = entry.split("'s ").next().unwrap_or_default();
            room == used || Path::new(room) == folder
        }),
    }
}

#[test]
fn no_crate_uses_one_that_the_table_of_doors_does_not_give_it() {
    let (crates, doors) = (dependencies(), doors());
    // Programs are not libraries, and who may use one is named one by one.
    let programs = ["edge", "sidecar", "cli", "demo", "hanse", "testbed"];
    let mut wrong = Vec::new();
    for (name, (folder, uses)) in &crates {
        let room = folder.to_string_lossy().into_owned();
        let Some(cell) = doors.get(&room) else {
            wrong.push(format!("{room} is not in the table"));
            continue;
        };
        for used in uses.iter().filter(|used| *used != name) {
            if let Some((used_folder, _)) = crates.get(used)
                && !allows(cell, &short(used_folder), used_folder, &programs)
            {
                wrong.push(format!("{room} uses {}, and may use: {cell}", used_folder.display()));
            }
        }
    }
    for room in doors.keys() {
        if !crates.values().any(|(folder, _)| folder == Path::new(room)) {
            wrong.push(format!("{room} is in the table and not in the workspace"));
        }
    }
    assert!(wrong.is_empty(), "docs/architecture.md and the manifests differ:\n{}", wrong.join("\n"));
}

#[test]
fn a_heavy_package_is_used_by_its_owner_alone() {
    let mut wrong = Vec::new();
    for (package, owner) in OWNED {
        let mut owned = false;
        for (name, (_, uses)) in dependencies() {
            let family = |used: &String| used == package || used.starts_with(&format!("{package}-"));
            if uses.iter().any(family) {
                if name == owner { owned = true } else { wrong.push(format!("{name} uses {package}, {owner} owns it")) }
            }
        }
        assert!(owned, "{owner} does not use {package} any more: mend this table");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is wrong with a page of claims: a table whose cells name numbered notes, and notes that name tests.
fn claims(page: &str, is_test: impl Fn(&str) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let (table, notes) = page.split_once("\n## The tests\n").expect("the notes follow under \"The tests\"");
    let (_, table) = table.split_once("\n## The matrix\n").expect("the table stands under \"The matrix\"");
    let mut used = BTreeSet::new();
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        for cell in cells.iter().skip(1).filter(|cell| **cell != "—") {
            let inside = cell.split('(').skip(1).filter_map(|rest| rest.split_once(')'));
            let numbers = inside.flat_map(|(numbers, _)| numbers.split(',')).map(|number| number.trim().parse::<u32>());
            let numbers: Vec<u32> = numbers.filter_map(Result::ok).collect();
            if numbers.is_empty() {
                wrong.push(format!("{:?} claims {cell:?} and names no test", cells[0]));
            }
            used.extend(numbers);
        }
    }
    let mut noted: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for line in notes.lines() {
        if let Some((number, _)) = line.split_once(". ").and_then(|(number, rest)| Some((number.parse().ok()?, rest))) {
            noted.entry(number).or_default();
        }
        if let Some(mut last) = noted.last_entry() {
            last.get_mut().extend(line.split('`').skip(1).step_by(2));
        }
    }
    for (number, tests) in &noted {
        if tests.is_empty() || !used.contains(number) {
            wrong.push(format!("note {number} names no test, or nobody refers to it"));
        }
        wrong.extend(
            tests.iter().filter(|name| !is_test(name)).map(|name| format!("{number}: there is no test {name}")),
        );
    }
    wrong.extend(used.iter().filter(|number| !noted.contains_key(number)).map(|number| format!("no note {number}")));
    if used.is_empty() {
        wrong.push("the table was not found".to_owned());
    }
    wrong
}

#[test]
fn every_claim_of_the_partitions_page_names_a_test_that_exists() {
    let files = files();
    let is_test = |name: &str| {
        let (plain, asynchronous) = (format!("]\nfn {name}("), format!("]\nasync fn {name}("));
        files.iter().any(|(_, text)| text.contains(&plain) || text.contains(&asynchronous))
    };
    let page = std::fs::read_to_string(root().join("docs/operate/partitions.md")).expect("the page");
    let wrong = claims(&page, is_test);
    assert!(wrong.is_empty(), "docs/operate/partitions.md:\n{}", wrong.join("\n"));
}

#[test]
fn a_claim_without_a_test_is_found() {
    let page = |cell: &str, notes: &str| {
        format!("x\n## The matrix\n\n| gone | a |\n|---|---|\n| all | {cell} |\n\n## The tests\n\n{notes}")
    };
    let is_test = |name: &str| name == "it_is_so";
    for (cell, notes, wanted) in [
        ("goes on (1)", "1. `it_is_so`", ""),
        ("—, never", "1. `it_is_so`", "names no test"),
        ("goes on", "1. `it_is_so`", "names no test"),
        ("goes on (within 3 s)", "1. `it_is_so`", "names no test"),
        ("goes on (2)", "1. `it_is_so`", "no note 2"),
        ("goes on (1)", "1. `it_was_so`", "there is no test it_was_so"),
        ("goes on (1)", "1. nothing", "names no test"),
        ("—", "", "was not found"),
    ] {
        let wrong = claims(&page(cell, notes), is_test).join("; ");
        assert!(if wanted.is_empty() { wrong.is_empty() } else { wrong.contains(wanted) }, "{cell} {notes}: {wrong:?}");
    }
}

#[test]
fn the_reading_of_the_table_can_say_no() {
    let (programs, folder) = (["cli", "demo"], Path::new("federation/link"));
    for (cell, wanted) in [
        ("nothing", false),
        ("all libraries", true),
        ("all but cli and demo", true),
        ("all but link", false),
        ("model, proto", false),
        ("model, link", true),
        ("proto, cli, link's probe", true),
    ] {
        assert_eq!(allows(cell, "link", folder, &programs), wanted, "{cell}");
    }
    assert!(!allows("all libraries", "cli", Path::new("gateway/cli"), &programs));
    assert!(!allows("all but cli and demo", "demo", Path::new("gateway/demo"), &programs));
    assert!(calls("let p = Authentic::assertion(x);", ASSERTIONS[1]));
    assert!(!calls("// Authentic::assertion( is for identity", ASSERTIONS[1]));
}
