//! Snapshots as a forest: children under their parents, drawn with lines.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::admin::api;
use crate::cli::render::{clean, size};

/// A snapshot and its place. JSON has them in the same order, parents first, but flat: a chain of
/// hundreds of layers would nest deeper than most JSON readers go.
#[derive(Debug, Serialize)]
struct Node {
    #[serde(flatten)]
    snapshot: api::Snapshot,
    /// 0 for one without a listed parent.
    depth: usize,
    #[serde(skip)]
    lines: String,
}

/// The forest, in drawing order.
#[derive(Debug, Serialize)]
pub(crate) struct Forest {
    snapshots: Vec<Node>,
}

/// A chain without branches goes no further to the right than this, however long it is.
const CHAIN_COLUMNS: usize = 18;

/// Puts each snapshot under its parent; one whose parent is not listed is a root. Nothing recurses by
/// depth, as chains may be long.
pub(crate) fn grow(mut snapshots: Vec<api::Snapshot>) -> Forest {
    snapshots.sort_by(|a, b| (&a.space, &a.name).cmp(&(&b.space, &b.name)));
    let position: BTreeMap<(&str, &str), usize> =
        snapshots.iter().enumerate().map(|(i, s)| ((s.space.as_str(), s.name.as_str()), i)).collect();
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); snapshots.len()];
    let mut roots = Vec::new();
    for (index, snapshot) in snapshots.iter().enumerate() {
        let parent = snapshot.parent.as_deref().and_then(|name| position.get(&(snapshot.space.as_str(), name)));
        match parent {
            Some(parent) => children[*parent].push(index),
            None => roots.push(index),
        }
    }
    let mut waiting: Vec<Option<api::Snapshot>> = snapshots.into_iter().map(Some).collect();
    let mut nodes = Vec::with_capacity(waiting.len());
    // Still to draw: which, how deep, the lines before it, the lines before what is below it.
    let mut stack: Vec<(usize, usize, String, String)> =
        roots.iter().rev().map(|root| (*root, 0, String::new(), String::new())).collect();
    while let Some((index, depth, lines, below)) = stack.pop() {
        let Some(snapshot) = waiting[index].take() else { continue };
        let siblings = &children[index];
        for (place, child) in siblings.iter().enumerate().rev() {
            let last = place + 1 == siblings.len();
            let joint = if last { "└─ " } else { "├─ " };
            let under = match (siblings.len(), last) {
                (1, _) if below.chars().count() >= CHAIN_COLUMNS => "",
                (_, true) => "   ",
                (_, false) => "│  ",
            };
            stack.push((*child, depth + 1, format!("{below}{joint}"), format!("{below}{under}")));
        }
        nodes.push(Node { snapshot, depth, lines });
    }
    Forest { snapshots: nodes }
}

/// The forest for people.
pub(crate) fn text(forest: &Forest) -> String {
    forest.snapshots.iter().map(|node| format!("{}{}\n", node.lines, label(&node.snapshot))).collect()
}

fn label(snapshot: &api::Snapshot) -> String {
    let mut notes = vec![snapshot.kind.clone()];
    if let Some(bytes) = snapshot.usage_bytes {
        notes.push(size(bytes));
    }
    format!("{}  ({})", clean(&snapshot.name), notes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{grow, text};
    use crate::admin::api;

    fn snapshot(name: &str, parent: Option<&str>) -> api::Snapshot {
        api::Snapshot {
            space: "local".into(),
            name: name.into(),
            parent: parent.map(Into::into),
            kind: "committed".into(),
            ..api::Snapshot::default()
        }
    }

    #[test]
    fn children_stand_under_their_parents() {
        let forest = grow(vec![
            snapshot("web", Some("base")),
            snapshot("base", None),
            snapshot("db", Some("base")),
            snapshot("web-2", Some("web")),
        ]);
        let expected = "base  (committed)\n├─ db  (committed)\n└─ web  (committed)\n   └─ web-2  (committed)\n";
        assert_eq!(text(&forest), expected);
    }

    #[test]
    fn what_hangs_on_the_end_of_a_chain_stands_under_its_end() {
        let forest = grow(vec![snapshot("a", None), snapshot("b", Some("a")), snapshot("c", Some("b"))]);
        assert_eq!(text(&forest), "a  (committed)\n└─ b  (committed)\n   └─ c  (committed)\n");
    }

    #[test]
    fn a_snapshot_whose_parent_is_not_listed_is_a_root() {
        assert_eq!(text(&grow(vec![snapshot("a", Some("gone"))])), "a  (committed)\n");
    }

    #[test]
    fn a_long_chain_is_drawn_without_running_off_the_screen() {
        let name = |i: usize| format!("{i:04}");
        let mut chain = vec![snapshot(&name(0), None)];
        chain.extend((1..600).map(|i| snapshot(&name(i), Some(&name(i - 1)))));
        let drawn = text(&grow(chain));
        assert_eq!(drawn.lines().count(), 600);
        assert!(drawn.lines().all(|line| line.chars().count() < 40));
    }
}
