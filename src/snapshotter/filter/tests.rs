//! The filter grammar as a table: text, and which of the corpus it selects, or where it is wrong.

use thinsnap_pool::{ByteCount, DeviceId};

use crate::error::ErrorKind;
use crate::snapshot::{FsType, Kind, Name, Snapshot};
use crate::snapshotter::filter::Filter;

fn snapshot(name: &str, parent: Option<&str>, kind: Kind, labels: &[(&str, &str)]) -> Snapshot {
    Snapshot {
        name: Name::new(name).unwrap(),
        parent: parent.map(|p| Name::new(p).unwrap()),
        kind,
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        created_ns: 0,
        updated_ns: 0,
        device: DeviceId::new(1).unwrap(),
        size: ByteCount(1 << 30),
        fs: FsType::Ext4,
        usage: None,
    }
}

/// Letters name the corpus in the tables: a base, its child, a view, an active with odd labels, one more.
fn corpus() -> Vec<(char, Snapshot)> {
    vec![
        ('a', snapshot("sha256:base", None, Kind::Committed, &[("containerd.io/snapshot.ref", "sha256:base")])),
        ('b', snapshot("k8s.io/7/child one", Some("sha256:base"), Kind::Committed, &[("foo", "true")])),
        ('c', snapshot("view", Some("sha256:base"), Kind::View, &[("foo", "present"), ("a.b", "dots")])),
        ('d', snapshot("active", None, Kind::Active, &[("odd \\ and \"", "x,y z"), ("tab", "1\t2")])),
        ('e', snapshot("牛", None, Kind::Active, &[("n", "牛/moo"), ("odd \\ and \".post", "p"), ("foo_1", "a-b.c")])),
    ]
}

fn selected(text: &str) -> String {
    let filter = Filter::parse(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
    corpus().into_iter().filter(|(_, s)| filter.matches(s)).map(|(letter, _)| letter).collect()
}

#[test]
fn every_filter_selects_what_containerd_would() {
    let table: &[(&str, &str)] = &[
        ("", "abcde"),
        ("name", "abcde"),
        ("parent", "abcde"),
        ("kind", "abcde"),
        ("size", ""),
        ("labels", ""),
        ("labels.foo", "bc"),
        ("labels.foo,name", "bc"),
        ("labels.a.b", "c"),
        ("labels.\"a.b\"", "c"),
        ("labels.\"a\".\"b\"==dots", "c"),
        ("labels.foo==true", "b"),
        ("labels.foo == true", "b"),
        (" labels.foo==true ", "b"),
        ("labels.foo==true , kind==committed", "b"),
        ("labels.foo==true,kind==active", ""),
        ("labels.foo!=true", "acde"),
        ("labels.foo!=\"\"", "bc"),
        ("labels.foo==\"\"", ""),
        ("labels.foo_1==a-b.c", "e"),
        ("labels.\"foo\"==true", "b"),
        ("\"labels\".foo==true", "b"),
        ("labels.\"containerd.io/snapshot.ref\"==sha256:base", "a"),
        ("labels.\"containerd.io/snapshot.ref\"==sha256:base,parent==\"\"", "a"),
        ("labels.\"containerd.io/snapshot.ref\"==\"sha256:base\",parent==\"x\"", ""),
        ("name==active", "d"),
        ("name!=active", "abce"),
        ("name==\"k8s.io/7/child one\"", "b"),
        ("name==k8s.io/7/child", ""),
        ("name==sha256:base", "a"),
        ("name==牛", "e"),
        ("name~=牛", "e"),
        ("name~=|牛|", "e"),
        ("name~=/牛/", "e"),
        ("parent==sha256:base", "bc"),
        ("parent!=sha256:base", "ade"),
        ("parent!=\"\"", "bc"),
        ("parent==\"\"", "ade"),
        ("kind==active", "de"),
        ("kind==view", "c"),
        ("kind==committed", "ab"),
        ("kind!=committed", "cde"),
        ("kind==unknown", ""),
        ("kind~=\"^(active|view)$\"", "cde"),
        ("kind~=^act", "de"),
        ("kind~=tive", "de"),
        ("name~=[abc]+,kind!=view", "abd"),
        ("name~=/[abc]{1,2}/,kind!=view", "abd"),
        ("name~=/sha256:[a-z]{4}$/", "a"),
        ("name~=|/7/|", "b"),
        ("name~=/\\/7\\//", "b"),
        ("name~=/^k8s\\\\.io/", "b"),
        ("name~=\"\\\\d+\"", "ab"),
        ("name~=\\d+", "ab"),
        ("labels.foo~=/./", "bc"),
        ("labels.foo~=\"^$\"", "ade"),
        ("labels.\"odd \\\\ and \\\"\"==\"x,y z\"", "d"),
        ("labels.\"odd \\\\ and \\\"\".post==p", "e"),
        ("labels.tab==\"1\\t2\"", "d"),
        ("labels.tab==\"1\\x092\"", "d"),
        ("labels.tab==\"1\\0112\"", "d"),
        ("labels.tab==\"1\\u00092\"", "d"),
        ("labels.tab==\"\\U00000031\\t2\"", "d"),
        ("labels.n==\"\\u725b/moo\"", "e"),
        ("labels.n==\"\\xe7\\x89\\x9b/moo\"", "e"),
        ("labels.n==\"\\347\\211\\233/moo\"", "e"),
        ("labels.n==牛/moo", "e"),
        ("unknown.field==1", ""),
        ("unknown.field!=1", "abcde"),
        ("name.more==active", ""),
        ("123==x", ""),
    ];
    for (text, letters) in table {
        assert_eq!(selected(text), *letters, "filter {text:?}");
    }
}

#[test]
fn a_wrong_filter_is_refused_and_the_place_is_named() {
    let table: &[(&str, &str)] = &[
        (",", "at byte 0"),
        ("name==foo,", "at byte 10"),
        ("labels.", "at byte 7"),
        (".name", "at byte 0"),
        ("labels.?\"x\"==y", "at byte 7"),
        ("name=foo", "operator"),
        ("name===foo", "operator"),
        ("name=~foo", "operator"),
        ("name foo", "operator"),
        ("name<foo", "operator"),
        ("name==", "expected a value"),
        ("name==,kind==view", "at byte 6"),
        ("name==.x", "expected a value"),
        ("name==a b", "expected a comma"),
        ("name==\"a\"b", "expected a comma"),
        ("labels.ns/key==value", "operator"),
        ("labels.|foo|==x", "expected a field"),
        ("labels.key==/value/", "only ~="),
        ("labels.key==|value|", "only ~="),
        ("name~=/value", "not closed"),
        ("name==\"value", "not closed"),
        ("labels.\"a\nb\"==value", "not closed"),
        ("labels.\"\\g\"", "unknown escape"),
        ("labels.\"\\'\"", "unknown escape"),
        ("name~=/\\d/", "unknown escape"),
        ("labels.\"\\xaz\"", "too few digits"),
        ("labels.\"\\8\"", "unknown escape"),
        ("labels.\"\\777\"", "above one byte"),
        ("labels.\"\\ud800\"", "no character"),
        ("labels.\"\\xff\"", "not UTF-8"),
        ("name~=(", "regular expression"),
        ("name~=\"[z-a]\"", "regular expression"),
        ("name==\u{0}", "expected a value"),
    ];
    for (text, place) in table {
        let error = Filter::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text:?}");
        assert!(error.to_string().contains(place), "{text:?}: {error} does not name {place:?}");
    }
}

#[test]
fn a_filter_that_names_one_snapshot_says_so() {
    assert_eq!(Filter::parse("kind==view,name==\"x y\"").unwrap().exact_name(), Some("x y"));
    assert_eq!(Filter::parse("name!=x").unwrap().exact_name(), None);
    assert_eq!(Filter::parse("labels.name==x").unwrap().exact_name(), None);
}

#[test]
fn a_huge_filter_or_expression_is_refused() {
    assert!(Filter::parse(&format!("name=={}", "x".repeat(20_000))).is_err());
    assert!(Filter::parse("name~=/(((a{100}){100}){100}){100}/").is_err());
}
