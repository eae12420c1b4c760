//! The tidiness of the house: first lines, file sizes, names, dead files, leftovers of the workbench.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

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

/// The length of a body that begins with its opening brace.
fn body_len(code: &str) -> usize {
    let mut depth = 0_usize;
    let end = code.char_indices().find_map(|(n, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(n + 1)
    });
    end.unwrap_or(code.len())
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
        out.push_str(&rest[..at]);
        rest = &after[open + body_len(&after[open..])..];
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
fn every_program_in_python_says_what_it_is_for() {
    let programs: Vec<PathBuf> = paths(".", "py");
    let begins = |path: &PathBuf| {
        let text = fs::read_to_string(top().join(path)).unwrap();
        let lines = text.lines().skip_while(|line| line.starts_with("#!"));
        lines.take(1).any(|line| line.starts_with("\"\"\"") && line.len() > 20)
    };
    let failures: Vec<String> =
        programs.iter().filter(|path| !begins(path)).map(|path| path.display().to_string()).collect();
    assert_none("begin with a docstring of one sentence that a newcomer can repeat:", &failures);
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
    for package in ["", "pool/", "tests/fuzz/"] {
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
    // Modules with a body here, around the place that is looked at: (folder, end of the body).
    let mut around: Vec<(PathBuf, usize)> = Vec::new();
    for at in find_word(&file.code, "mod") {
        let rest = file.code[at + 3..].trim_start();
        let name = &rest[..rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())];
        let after = rest[name.len()..].trim_start();
        around.retain(|(_, end)| at < *end);
        let within = around.last().map_or(&own, |(dir, _)| dir);
        let written = written_path(&file.text[..at]);
        if after.starts_with(';') {
            match written {
                Some(written) => found.push(plain(&dir.join(written))),
                None => found.extend([within.join(format!("{name}.rs")), within.join(name).join("mod.rs")]),
            }
        } else if after.starts_with('{') {
            let open = file.code.len() - after.len();
            let room = written.map_or_else(|| within.join(name), |written| plain(&dir.join(written)));
            around.push((room, open + body_len(after)));
        }
    }
    found
}

/// The path in a `#[path = "…"]` at the end of a text that a module's line follows.
fn written_path(before: &str) -> Option<&str> {
    let before = before.trim_end().trim_end_matches("pub(crate)").trim_end_matches("pub").trim_end();
    before.strip_suffix("\"]")?.rsplit_once("#[path = \"").map(|(_, path)| path)
}

/// A path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        if part.as_os_str() == ".." {
            plain.pop();
        } else {
            plain.push(part);
        }
    }
    plain
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
                        !(path.ends_with("tidy.rs") || rest.starts_with('(') && rest.contains('#'))
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

#[test]
fn the_architecture_document_names_every_room() {
    let document = fs::read_to_string(top().join("docs/architecture.md")).unwrap();
    let mut failures = Vec::new();
    for house in ["src", "pool/src"] {
        for entry in fs::read_dir(top().join(house)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let room = name.trim_end_matches(".rs");
            if room != "lib" && !document.contains(&format!("| `{room}")) {
                failures.push(format!("{house}/{name}"));
            }
        }
        let rooms = document.lines().filter(|line| line.starts_with("| ") && line.contains(" | `"));
        for room in rooms.filter_map(|line| line.split('`').nth(1)).map(|room| room.trim_end_matches('/')) {
            let there = ["src", "pool/src"].iter().any(|house| {
                top().join(house).join(room).is_dir() || top().join(house).join(format!("{room}.rs")).is_file()
            });
            if !there {
                failures.push(format!("docs/architecture.md names `{room}`, which is not there"));
            }
        }
    }
    failures.dedup();
    assert_none("the code map has a line for each room and no other:", &failures);
}

/// Names of tests are claims of several words; `…` ends one that is cut.
#[test]
fn every_test_that_a_document_names_exists() {
    let code: String = all_rust_files().iter().map(|file| file.code.as_str()).collect();
    let mut failures = Vec::new();
    for document in paths("docs", "md") {
        let text = fs::read_to_string(top().join(&document)).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let stem = name.trim_end_matches('…');
            let is_test = stem.matches('_').count() >= 4 && stem.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let end = if stem.len() == name.len() { "(" } else { "" };
            if is_test && !code.contains(&format!("fn {stem}{end}")) {
                failures.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert_none("a document names a test that does not exist:", &failures);
}

#[test]
fn every_command_in_the_documents_exists() {
    let makefile = fs::read_to_string(top().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '#', '.']))
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    let mut failures = Vec::new();
    for document in paths(".", "md") {
        let text = fs::read_to_string(top().join(&document)).unwrap();
        for (n, line) in text.lines().enumerate() {
            let place = format!("{}:{}", document.display(), n + 1);
            let trimmed = line.trim_start_matches([' ', '`', '$', '|']);
            let quoted = line.split('`').skip(1).step_by(2);
            for command in quoted.chain(line.starts_with("    ").then_some(trimmed)) {
                let words: Vec<&str> =
                    command.split_whitespace().take_while(|word| !word.starts_with(['#', '|'])).collect();
                match words.first() {
                    Some(&"make") => {
                        for target in words[1..].iter().filter(|word| !word.contains('=')) {
                            if !targets.contains(target) {
                                failures.push(format!("{place}: the Makefile has no target `{target}`"));
                            }
                        }
                    }
                    Some(&"thinsnap") if words.len() > 1 => {
                        if let Err(reason) = understood(&words[1..]) {
                            failures.push(format!("{place}: `{command}`: {reason}"));
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    assert_none("a document names a command that does not exist:", &failures);
}

/// Asks the program itself for help on a command; its options must be named there.
fn understood(words: &[&str]) -> Result<(), String> {
    let nouns: Vec<&str> = words
        .iter()
        .take_while(|word| {
            word.len() > 1 && word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
        })
        .take(2)
        .copied()
        .collect();
    if nouns.is_empty() {
        return Ok(());
    }
    let help = |nouns: &[&str]| {
        let out =
            std::process::Command::new(env!("CARGO_BIN_EXE_thinsnap")).args(nouns).arg("--help").output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    // The second word may be an argument (`serve`), so one that fails is tried without it.
    let (mut known, mut text) = help(&nouns);
    if !known && nouns.len() == 2 {
        let (one_known, one_text) = help(&nouns[..1]);
        if one_text.contains("Commands:") {
            return Err(format!("there is no `{}`", nouns.join(" ")));
        }
        (known, text) = (one_known, one_text);
    }
    if !known {
        return Err(format!("there is no `{}`", nouns.join(" ")));
    }
    match words
        .iter()
        .filter(|word| word.starts_with("--"))
        .find(|option| !text.contains(option.split('=').next().unwrap_or(option).trim_end_matches([',', ']'])))
    {
        Some(option) => Err(format!("`{}` has no option `{option}`", nouns.join(" "))),
        None => Ok(()),
    }
}
