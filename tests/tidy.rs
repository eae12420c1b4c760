//! The tidiness of the house: first lines, file sizes, names, dead files, leftovers of the workbench.

#[path = "house/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use source::{SourceFile, find_word, paths, rust_files, top};

/// Above this a file wants a second first-line sentence, that is, a second file.
const CODE_LINES_MAX: usize = 500;

/// File names that say where something was put, not what it is.
const BANNED_NAMES: &[&str] = &["utils", "util", "common", "base", "shared", "helpers", "helper", "misc", "toplevel"];

/// Where printing is the task; everywhere else `tracing` speaks.
const PRINTING_ROOMS: &[&str] = &["src/cli", "src/cli.rs", "src/main.rs"];

/// Everything written by us that a person reads.
const TEXT_FILES: &[&str] = &["rs", "md", "toml", "sh", "py", "fio", "proto", "service", "socket", "yml", "yaml"];

fn all_rust_files() -> Vec<SourceFile> {
    rust_files(".")
}

/// True for files that hold nothing but tests.
fn is_test_file(path: &Path) -> bool {
    path.components().any(|c| c.as_os_str() == "tests") || path.file_name().is_some_and(|n| n == "tests.rs")
}

fn assert_none(what: &str, failures: &[String]) {
    assert!(failures.is_empty(), "{what}\n  {}\n", failures.join("\n  "));
}

/// `code` with the bodies of `#[cfg(test)] mod … { }` taken out.
fn without_inner_tests(code: &str) -> String {
    let mut rest = code;
    let mut out = String::new();
    while let Some(at) = rest.find("#[cfg(test)]") {
        let after = &rest[at..];
        let open =
            after.find('{').filter(|&open| find_word(&after[..open], "mod").len() == 1 && !after[..open].contains(';'));
        let Some(open) = open else {
            out.push_str(&rest[..at + 1]);
            rest = &rest[at + 1..];
            continue;
        };
        let mut depth = 0_usize;
        let close = after[open..].char_indices().find_map(|(n, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0).then_some(open + n + 1)
        });
        out.push_str(&rest[..at]);
        rest = &after[close.unwrap_or(after.len())..];
    }
    out + rest
}

#[test]
fn the_first_line_of_every_file_says_what_it_is_for() {
    let failures: Vec<String> = all_rust_files()
        .iter()
        .filter(|f| !f.text.lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > 20))
        .map(|f| f.path.display().to_string())
        .collect();
    assert_none("begin with `//! one sentence that a newcomer can repeat`:", &failures);
}

#[test]
fn no_source_file_has_more_code_than_a_reader_holds() {
    let failures: Vec<String> = all_rust_files()
        .iter()
        .filter(|f| !is_test_file(&f.path))
        .map(|f| (f, without_inner_tests(&f.code).lines().filter(|line| !line.trim().is_empty()).count()))
        .filter(|(_, lines)| *lines > CODE_LINES_MAX)
        .map(|(f, lines)| format!("{}: {lines} lines of code, at most {CODE_LINES_MAX}", f.path.display()))
        .collect();
    assert_none("split where a second first-line sentence would be needed:", &failures);
}

#[test]
fn no_file_is_named_after_a_drawer() {
    let failures: Vec<String> = all_rust_files()
        .iter()
        .filter(|f| f.path.file_stem().is_some_and(|stem| BANNED_NAMES.iter().any(|banned| *banned == stem)))
        .map(|f| f.path.display().to_string())
        .collect();
    assert_none("name the file after its noun or its verb:", &failures);
}

/// Files that cargo builds by themselves: crate roots, tests, benches, examples, build scripts.
fn crate_roots() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    for package in ["", "pool/"] {
        for file in ["src/lib.rs", "src/main.rs", "build.rs"] {
            roots.push(PathBuf::from(format!("{package}{file}")));
        }
        for dir in ["tests", "benches", "examples", "src/bin"] {
            let below = format!("{package}{dir}");
            roots.extend(paths(&below, "rs").into_iter().filter(|path| {
                let inside: Vec<_> = path.strip_prefix(&below).unwrap().components().collect();
                inside.len() == 1 || (inside.len() == 2 && path.ends_with("main.rs"))
            }));
        }
        let manifest = fs::read_to_string(top().join(package).join("Cargo.toml")).unwrap();
        for line in manifest.lines().filter(|line| line.trim_start().starts_with("path = ")) {
            roots.push(Path::new(package).join(line.split('"').nth(1).unwrap()));
        }
    }
    roots
}

/// The files that a file's `mod name;` lines bring in.
fn children(file: &SourceFile, is_root: bool) -> Vec<PathBuf> {
    let dir = file.path.parent().unwrap();
    let own = if is_root || file.path.ends_with("mod.rs") { dir.to_owned() } else { file.path.with_extension("") };
    let mut found = Vec::new();
    for at in find_word(&file.code, "mod") {
        let rest = file.code[at + 3..].trim_start();
        let name = &rest[..rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())];
        if rest[name.len()..].trim_start().starts_with(';') {
            found.push(own.join(format!("{name}.rs")));
            found.push(own.join(name).join("mod.rs"));
        }
    }
    for at in file.text.match_indices("#[path = \"").map(|(at, _)| at) {
        let written = file.text[at..].split('"').nth(1).unwrap();
        let mut path = PathBuf::new();
        for part in dir.join(written).components() {
            if part.as_os_str() == ".." {
                path.pop();
            } else {
                path.push(part);
            }
        }
        found.push(path);
    }
    found
}

#[test]
fn no_file_is_dead() {
    let files = all_rust_files();
    let roots = crate_roots();
    let mut alive: BTreeSet<PathBuf> = BTreeSet::new();
    let mut open: Vec<PathBuf> = roots.clone();
    while let Some(path) = open.pop() {
        if let Some(file) = files.iter().find(|f| f.path == path)
            && alive.insert(path)
        {
            open.extend(children(file, roots.contains(&file.path)));
        }
    }
    let failures: Vec<String> =
        files.iter().filter(|f| !alive.contains(&f.path)).map(|f| f.path.display().to_string()).collect();
    assert_none("no `mod` line leads here: name it in its room's face or delete it:", &failures);
}

#[test]
fn every_name_tells_where_it_comes_from() {
    let mut failures = Vec::new();
    for file in all_rust_files() {
        for (at, _) in file.code.match_indices("::*") {
            let (line, text) = file.line_at(at);
            failures.push(format!("{}:{line}: {text}", file.path.display()));
        }
    }
    assert_none("no globs: import names:", &failures);
}

#[test]
fn nothing_of_the_workbench_is_left_in_the_house() {
    let mut failures = Vec::new();
    for file in all_rust_files() {
        let mut report = |at: usize, why: &str| {
            let (line, text) = file.line_at(at);
            failures.push(format!("{}:{line}: {why}: {text}", file.path.display()));
        };
        for word in ["todo", "unimplemented", "dbg"] {
            for at in find_word(&file.code, word) {
                if file.code[at + word.len()..].starts_with('!') {
                    report(at, "unfinished");
                }
            }
        }
        for at in find_word(&file.code, "allow").into_iter().filter(|&at| file.code[..at].ends_with("#[")) {
            report(at, "write #[expect(…, reason = \"…\")], which goes away when it is not needed");
        }
        for at in find_word(&file.code, "sleep").into_iter().filter(|&at| file.code[..at].ends_with("thread::")) {
            report(at, "wait for the event, with a deadline");
        }
        let prints = file.path.starts_with("src") || file.path.starts_with("pool/src");
        if prints && !is_test_file(&file.path) && !PRINTING_ROOMS.iter().any(|room| file.path.starts_with(room)) {
            let code = without_inner_tests(&file.code);
            for word in ["println", "eprintln", "print", "eprint"] {
                if find_word(&code, word).iter().any(|&at| code[at + word.len()..].starts_with('!')) {
                    report(0, &format!("{word}! outside the command line: use tracing"));
                }
            }
        }
    }
    for extension in TEXT_FILES {
        for path in paths(".", extension) {
            let text = fs::read_to_string(top().join(&path)).unwrap();
            for (n, line) in text.lines().enumerate() {
                // A marker is written `TODO(name, #issue)`.
                for marker in ["TODO", "FIXME", "XXX"] {
                    let bare = find_word(line, marker).into_iter().any(|at| {
                        let rest = &line[at + marker.len()..];
                        !(rest.starts_with('(') && rest.contains('#')) && !path.ends_with("tidy.rs")
                    });
                    if bare {
                        failures.push(format!("{}:{}: {marker} without name and issue", path.display(), n + 1));
                    }
                }
                if line.ends_with([' ', '\t']) {
                    failures.push(format!("{}:{}: space at the end of the line", path.display(), n + 1));
                }
            }
            if !text.is_empty() && !text.ends_with('\n') {
                failures.push(format!("{}: no newline at the end", path.display()));
            }
        }
    }
    assert_none("clear the workbench:", &failures);
}
