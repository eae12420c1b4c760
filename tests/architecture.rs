//! The floors of the house: which room may import from which, read from the source itself.
//!
//! A failure names the two rooms, the line, and the cure. The tables here are the law; the picture of them is
//! in docs/architecture.md.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "house/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use source::{SourceFile, find_word, rust_files};

/// One of the two crates: where it stands and which rooms are on which floor, lowest first. A room imports
/// from lower floors; rooms of one floor may import from each other in one direction, never in a circle.
struct House {
    top: &'static str,
    floors: &'static [&'static [&'static str]],
}

const POOL: House = House {
    top: "pool/src",
    floors: &[
        &["error", "mutation"],
        &["device", "units"],
        &["format", "export", "status", "claims"],
        &["meta", "thin_pool"],
        &["embedded", "kernel", "check"],
        &["host", "repair"],
        &["open"],
        &["lib"],
    ],
};

const SERVICE: House = House {
    top: "src",
    floors: &[
        &["snapshot", "error"],
        &["store", "fs", "config", "bolt"],
        &["snapshotter"],
        &["grpc", "image", "container", "volume", "watch", "migrate"],
        &["admin"],
        &["serve", "cli"],
        &["main"],
    ],
};

/// Rooms that never name each other in any direction: engines are chosen in one place above them.
const STRANGERS: &[&str] = &["embedded", "kernel", "check"];

/// Names that may be imported from a higher floor, because they are plain values: (room, path).
const PLAIN_VALUES: &[(&str, &str)] = &[("export", "thin_pool::Access")];

/// The only places with `unsafe`.
const UNSAFE_ROOMS: &[&str] = &["pool/src/device/sys.rs", "pool/src/export/"];

/// Words that a part of the house must not know: (where, words, why).
const ABSENCES: &[(&str, &[&str], &str)] = &[
    ("pool/src", &["containerd", "ext4", "xfs", "overlayfs"], "the pool knows no container and no file system"),
    ("pool/src", &["tokio", "async"], "the pool is plain blocking code"),
    ("pool/src/format", &["BlockDevice", "File", "Mutex"], "format turns bytes into structs and does no I/O"),
    ("pool/src/embedded/plan.rs", &["BlockDevice", "File", "Mutex", "RwLock"], "a plan is a pure function"),
    ("src", &["DataBlock", "MetaBlock", "VirtualBlock"], "the service knows snapshots, not blocks"),
    ("src/store", &["tokio", "async", "ThinPool", "Command"], "nothing waits inside a store transaction"),
    ("src/snapshotter", &["tokio", "async", "tonic"], "async ends at grpc/ and admin/"),
    ("src/fs", &["tokio", "async", "tonic"], "async ends at grpc/ and admin/"),
    ("src/image", &["tokio", "async", "tonic"], "async ends at grpc/ and admin/"),
];

/// The room of a file: the first part of its path below the crate's top.
fn room(house: &House, path: &Path) -> String {
    let below = path.strip_prefix(house.top).unwrap();
    Path::new(below.components().next().unwrap().as_os_str()).file_stem().unwrap().to_string_lossy().into_owned()
}

fn floor(house: &House, room: &str) -> Option<usize> {
    house.floors.iter().position(|rooms| rooms.contains(&room)).map(|n| n + 1)
}

/// A `mod.rs` or `lib.rs`: it shows what others define.
fn is_face(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n == "mod.rs" || n == "lib.rs")
}

/// The module path of a file, as names below the crate root.
fn module_path(house: &House, path: &Path) -> Vec<String> {
    let mut parts: Vec<String> = path
        .strip_prefix(house.top)
        .unwrap()
        .with_extension("")
        .components()
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .collect();
    if parts.last().is_some_and(|p| p == "mod" || p == "lib" || p == "main") {
        parts.pop();
    }
    parts
}

/// The paths that begin at a byte offset, groups in braces multiplied out: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths_at(code: &str) -> Vec<Vec<String>> {
    let code = code.trim_start();
    if let Some(group) = code.strip_prefix('{') {
        return group_members(group).iter().flat_map(|member| paths_at(member)).collect();
    }
    let end = code.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(code.len());
    let name = code[..end].to_owned();
    let rest = code[end..].trim_start();
    match rest.strip_prefix("::") {
        Some(rest) if !rest.starts_with('<') && !name.is_empty() => {
            let tails = paths_at(rest);
            tails.into_iter().map(|tail| [vec![name.clone()], tail].concat()).collect()
        }
        _ => vec![vec![name]],
    }
}

/// The members of a group, its opening brace already taken off.
fn group_members(group: &str) -> Vec<&str> {
    let mut members = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                members.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    members.retain(|m| !m.trim().is_empty());
    members
}

/// What a file names of its own crate: (offset, path below the crate root).
fn imports(house: &House, file: &SourceFile) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    // `pub(crate)`, `pub(super)` and `pub(in …)` say who may see a name; they bring none in.
    let visibility = |at: usize| ["pub(", "pub(in "].iter().any(|open| file.code[..at].ends_with(open));
    for at in find_word(&file.code, "crate").into_iter().filter(|&at| !visibility(at)) {
        if let Some(rest) = file.code[at + "crate".len()..].strip_prefix("::") {
            found.extend(paths_at(rest).into_iter().map(|path| (at, path)));
        }
    }
    for at in find_word(&file.code, "super") {
        // Only the first `super` of a chain begins a path.
        if file.code[..at].ends_with("::") || visibility(at) {
            continue;
        }
        for path in paths_at(&file.code[at..]) {
            let ups = path.iter().take_while(|part| *part == "super").count();
            let mut from = module_path(house, &file.path);
            // A file's inner `mod tests` stands one level lower: one `super` fewer leaves the file's module.
            let inner = file.code[..at].contains("mod tests {");
            from.truncate(from.len().saturating_sub(ups - usize::from(inner && ups > 0)));
            found.push((at, [from, path[ups..].to_vec()].concat()));
        }
    }
    found
}

/// All arrows between rooms: (from, to) → where.
fn arrows(house: &House) -> BTreeMap<(String, String), Vec<String>> {
    let mut arrows = BTreeMap::new();
    for file in rust_files(house.top) {
        let from = room(house, &file.path);
        for (at, path) in imports(house, &file) {
            let Some(to) = path.first().filter(|to| floor(house, to).is_some()) else { continue };
            let plain = PLAIN_VALUES.iter().any(|(room, name)| *room == from && path.join("::").starts_with(name));
            if *to != from && !plain {
                let (line, text) = file.line_at(at);
                let seen: &mut Vec<String> = arrows.entry((from.clone(), to.clone())).or_default();
                seen.push(format!("{}:{line}: {text}", file.path.display()));
            }
        }
    }
    arrows
}

fn assert_none(what: &str, failures: &[String]) {
    assert!(failures.is_empty(), "{what}\n  {}\n", failures.join("\n  "));
}

#[test]
fn every_room_stands_on_a_floor() {
    let mut failures = Vec::new();
    for house in [&POOL, &SERVICE] {
        for file in rust_files(house.top) {
            let room = room(house, &file.path);
            if floor(house, &room).is_none() && !is_face(&file.path) {
                failures.push(format!("{}: room `{room}` is on no floor", file.path.display()));
            }
            for (at, path) in imports(house, &file) {
                let Some(first) = path.first().filter(|p| p.starts_with(|c: char| c.is_lowercase())) else { continue };
                if floor(house, first).is_none() && !is_face(&file.path) {
                    let (line, text) = file.line_at(at);
                    failures.push(format!("{}:{line}: `{first}` is on no floor: {text}", file.path.display()));
                }
            }
        }
    }
    assert_none("give each room a floor in the table of tests/architecture.rs and in docs/architecture.md:", &failures);
}

#[test]
fn no_room_imports_from_a_higher_floor() {
    let mut failures = Vec::new();
    for house in [&POOL, &SERVICE] {
        for ((from, to), places) in arrows(house) {
            let (Some(low), Some(high)) = (floor(house, &from), floor(house, &to)) else { continue };
            if high > low {
                failures.push(format!(
                    "`{from}` (floor {low}) imports from `{to}` (floor {high}): move the name down or pass a value\n    {}",
                    places.join("\n    ")
                ));
            }
        }
    }
    assert_none("floors are broken:", &failures);
}

#[test]
fn rooms_of_one_floor_make_no_circle() {
    let mut failures = Vec::new();
    for house in [&POOL, &SERVICE] {
        let arrows = arrows(house);
        for ((from, to), places) in &arrows {
            let same = floor(house, from) == floor(house, to);
            if same && from < to && reaches(&arrows, to, from) {
                failures.push(format!("`{from}` and `{to}` import each other: {}", places.join("; ")));
            }
        }
    }
    assert_none("a circle: move what both need to a lower floor:", &failures);
}

/// True if arrows lead from `start` to `goal`.
fn reaches(arrows: &BTreeMap<(String, String), Vec<String>>, start: &str, goal: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![start.to_owned()];
    while let Some(room) = open.pop() {
        if room == goal {
            return true;
        }
        if seen.insert(room.clone()) {
            open.extend(arrows.keys().filter(|(from, _)| *from == room).map(|(_, to)| to.clone()));
        }
    }
    false
}

#[test]
fn the_engines_and_the_checker_never_name_each_other() {
    let failures: Vec<String> = arrows(&POOL)
        .into_iter()
        .filter(|((from, to), _)| STRANGERS.contains(&from.as_str()) && STRANGERS.contains(&to.as_str()))
        .map(|((from, to), places)| format!("`{from}` names `{to}`: {}", places.join("; ")))
        .collect();
    assert_none("an engine or the checker knows another: what they share belongs to meta/ or below:", &failures);
}

#[test]
fn faces_hold_mod_and_pub_use_only() {
    let mut failures = Vec::new();
    for file in [POOL.top, SERVICE.top].iter().flat_map(|top| rust_files(top)).filter(|f| is_face(&f.path)) {
        let mut statement = String::new();
        for (n, line) in file.code.lines().enumerate() {
            statement.push_str(line.trim());
            statement.push(' ');
            let whole = line.trim_end().ends_with(';') || (line.trim_end().ends_with(']') && line.contains("#["));
            if !whole && !line.contains("#![") {
                continue;
            }
            let words = statement.trim();
            let shown = words.strip_prefix("pub").map_or(words, |rest| {
                let scope = rest.starts_with('(').then(|| rest.find(')').map_or(0, |end| end + 1));
                rest[scope.unwrap_or(0)..].trim_start()
            });
            let harmless = shown.starts_with("mod ")
                || (shown.starts_with("use ") && words.starts_with("pub"))
                || words.starts_with("#[")
                || words.starts_with("#![");
            if !harmless {
                failures.push(format!("{}:{}: {words}", file.path.display(), n + 1));
            }
            statement.clear();
        }
        if !statement.trim().is_empty() {
            failures.push(format!("{}: {}", file.path.display(), statement.trim()));
        }
    }
    assert_none("a face only shows: move the code into a named file beside it:", &failures);
}

#[test]
fn nobody_imports_through_the_face_above_him() {
    let mut failures = Vec::new();
    for house in [&POOL, &SERVICE] {
        let files = rust_files(house.top);
        let modules: BTreeSet<Vec<String>> = files.iter().map(|f| module_path(house, &f.path)).collect();
        for file in &files {
            if is_face(&file.path) {
                continue;
            }
            let own = module_path(house, &file.path);
            for (at, path) in imports(house, file) {
                let (line, text) = file.line_at(at);
                let place = format!("{}:{line}: {text}", file.path.display());
                // Through the crate's face: a name that is no module stands at the crate root.
                if path.first().is_some_and(|p| p.starts_with(char::is_uppercase)) {
                    failures.push(place);
                    continue;
                }
                // Through its own room's face: the path's module is one that this file stands below.
                let module: Vec<String> = (0..=path.len())
                    .rev()
                    .map(|n| path[..n].to_vec())
                    .find(|head| modules.contains(head))
                    .unwrap_or_default();
                let above = !module.is_empty() && module.len() < own.len() && own.starts_with(&module);
                // A test stands outside: it may use its room as a client does.
                let in_test =
                    own.last().is_some_and(|n| n == "tests") || file.code[..at].contains("#[cfg(test)]\nmod ");
                let is_directory =
                    files.iter().any(|f| f.path.ends_with("mod.rs") && module_path(house, &f.path) == module);
                if above && is_directory && !in_test {
                    failures.push(place);
                }
            }
        }
    }
    assert_none(
        "import from the file that defines the name (`crate::room::file::Name`), not from the face:",
        &failures,
    );
}

#[test]
fn the_service_knows_only_the_face_of_the_pool() {
    let mut failures = Vec::new();
    for file in rust_files(SERVICE.top) {
        for at in find_word(&file.code, "thinsnap_pool") {
            let Some(rest) = file.code[at + "thinsnap_pool".len()..].strip_prefix("::") else { continue };
            if paths_at(rest).iter().any(|path| path.len() > 1 && path[0].starts_with(char::is_lowercase)) {
                let (line, text) = file.line_at(at);
                failures.push(format!("{}:{line}: {text}", file.path.display()));
            }
        }
    }
    for file in rust_files(POOL.top).iter().filter(|f| f.path.ends_with("lib.rs")) {
        for at in find_word(&file.code, "mod").into_iter().filter(|&at| file.code[..at].ends_with("pub ")) {
            failures.push(format!("{}:{}: a room of the pool is public", file.path.display(), file.line_at(at).0));
        }
    }
    assert_none("the pool shows names, not rooms: export the name in pool/src/lib.rs:", &failures);
}

#[test]
fn unsafe_stands_only_in_the_named_rooms() {
    let mut failures = Vec::new();
    for file in [POOL.top, SERVICE.top].iter().flat_map(|top| rust_files(top)) {
        if UNSAFE_ROOMS.iter().any(|room| file.path.to_string_lossy().starts_with(room)) {
            continue;
        }
        for at in find_word(&file.code, "unsafe") {
            let (line, text) = file.line_at(at);
            failures.push(format!("{}:{line}: {text}", file.path.display()));
        }
    }
    assert_none("put the call behind a safe function in pool/src/device/sys.rs or pool/src/export/:", &failures);
}

#[test]
fn what_a_room_must_not_know_is_absent() {
    let mut failures = Vec::new();
    for (top, words, why) in ABSENCES {
        let dir = if Path::new(top).extension().is_some() { Path::new(top).parent().unwrap() } else { Path::new(top) };
        for file in rust_files(&dir.to_string_lossy()).iter().filter(|f| f.path.starts_with(top)) {
            for word in *words {
                for at in find_word(&file.code, word) {
                    let (line, text) = file.line_at(at);
                    failures.push(format!("{}:{line}: `{word}`: {why}: {text}", file.path.display()));
                }
            }
        }
    }
    assert_none("a room knows what it must not know:", &failures);
}
