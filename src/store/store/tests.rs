//! The store by itself: durability, isolation, ids, indexes, and the files it refuses.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};

use thinsnap_pool::{ByteCount, DeviceId};

use crate::error::{Error, ErrorKind};
use crate::snapshot::{FsType, Kind, Labels, Name, Snapshot, Space};
use crate::store::devices::Limbo;
use crate::store::rows::Rows;
use crate::store::schema::{META, META_NEXT_DEVICE, META_SCHEMA, Table};
use crate::store::snapshots::{REF_LABEL, Records};
use crate::store::{Store, codec};

const THINGS: Table = Table::new("things");

fn store() -> Store {
    Store::with_backend(redb::backends::InMemoryBackend::new()).unwrap()
}

fn space(text: &str) -> Space {
    Space::new(text).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

fn snapshot(text: &str, parent: Option<&str>, kind: Kind, device: u32) -> Snapshot {
    Snapshot {
        name: name(text),
        parent: parent.map(name),
        kind,
        labels: Labels::from([(REF_LABEL.to_owned(), format!("ref of {text}"))]),
        created_ns: 1,
        updated_ns: 2,
        device: id(device),
        size: ByteCount(1 << 30),
        fs: FsType::Ext4,
        usage: None,
    }
}

fn insert(store: &Store, at: &Space, snapshot: &Snapshot) {
    let (at, snapshot) = (at.clone(), snapshot.clone());
    store.write(move |txn| txn.insert_snapshot(&at, &snapshot)).unwrap();
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Store::open(&path).unwrap();
    insert(&store, &space("s"), &snapshot("a", None, Kind::Committed, 7));
    store.write(|txn| txn.put_json(THINGS, "k", &vec![1, 2, 3])).unwrap();
    drop(store);

    let reopened = Store::open(&path).unwrap();
    let reader = reopened.read().unwrap();
    assert_eq!(reader.get_snapshot(&space("s"), &name("a")).unwrap(), snapshot("a", None, Kind::Committed, 7));
    assert_eq!(reader.get_json::<Vec<u8>>(THINGS, "k").unwrap(), Some(vec![1, 2, 3]));
}

/// A store that a crash left half made: the whole of it is there, but for the mark that is written last.
#[test]
fn what_a_crash_left_of_a_store_in_the_making_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, young) = (dir.path().join("store"), dir.path().join("store.new"));
    for rest in [vec![0; 1 << 20], b"redb\x1a\x0a".repeat(1000), Vec::new()] {
        std::fs::write(&young, rest).unwrap();
        drop(Store::open(&path).unwrap());
        assert!(path.exists() && !young.exists());
        drop(Store::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn of_many_makers_at_once_one_gets_the_store_and_nobody_harms_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for _ in 0..20 {
        let together = Barrier::new(4);
        let made: Vec<Option<Store>> = std::thread::scope(|scope| {
            let open = || {
                together.wait();
                Store::open(&path).inspect_err(|e| assert_eq!(e.kind(), ErrorKind::InUse, "{e}")).ok()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(made.iter().flatten().count() <= 1);
        drop(made);
        drop(Store::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_store_that_is_open_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let _open = Store::open(&path).unwrap();
    let error = Store::open(&path).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn a_foreign_a_cut_and_a_damaged_file_are_corrupt_and_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    drop(Store::open(&path).unwrap());
    let whole = std::fs::read(&path).unwrap();
    let mut cases = vec![("foreign", b"not a store at all, but longer than any magic number".repeat(200))];
    cases.push(("cut", whole[..whole.len() / 2].to_vec()));
    let mut damaged = whole.clone();
    damaged[64..4096].fill(0xa5);
    cases.push(("damaged", damaged));
    for (case, bytes) in cases {
        std::fs::write(&path, &bytes).unwrap();
        let error = Store::open(&path).err().unwrap_or_else(|| panic!("{case}: opened"));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{case}: {error}");
        assert!(std::fs::read(&path).unwrap() == bytes, "{case}: the file was changed");
    }
}

#[test]
fn a_newer_layout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Store::open(&path).unwrap();
    store
        .write(|txn| {
            txn.put(META, META_SCHEMA, codec::encode(&2_u32)?);
            Ok(())
        })
        .unwrap();
    drop(store);
    assert_eq!(Store::open(&path).err().unwrap().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_change_that_fails_or_panics_leaves_no_trace_and_its_neighbours_stay() {
    let store = store();
    let callers = 24;
    let start = Arc::new(Barrier::new(callers));
    let threads: Vec<_> = (0..callers)
        .map(|i| {
            let (store, start) = (store.clone(), start.clone());
            std::thread::spawn(move || {
                start.wait();
                store.write(move |txn| {
                    txn.put_json(THINGS, &format!("{i:02}"), &i)?;
                    match i % 3 {
                        0 => Ok(()),
                        1 => Err(Error::new(ErrorKind::InvalidArgument, "on purpose")),
                        // Unwinds as a panic does, without its report in the output.
                        _ => std::panic::resume_unwind(Box::new("on purpose")),
                    }
                })
            })
        })
        .collect();
    for (i, thread) in threads.into_iter().enumerate() {
        let answer = thread.join().unwrap();
        match i % 3 {
            0 => answer.unwrap(),
            1 => assert_eq!(answer.unwrap_err().kind(), ErrorKind::InvalidArgument),
            _ => assert_eq!(answer.unwrap_err().kind(), ErrorKind::Internal),
        }
    }
    let kept: Vec<usize> =
        store.read().unwrap().scan_json::<usize>(THINGS, "").unwrap().into_iter().map(|(_, i)| i).collect();
    assert_eq!(kept, (0..callers).step_by(3).collect::<Vec<_>>());
}

#[test]
fn a_transaction_sees_its_own_changes_merged_in_order() {
    let store = store();
    store.write(|txn| ["b", "d", "f"].iter().try_for_each(|k| txn.put_json(THINGS, k, k))).unwrap();
    let seen = store
        .write(|txn| {
            txn.put_json(THINGS, "a", &"a")?;
            txn.put_json(THINGS, "d", &"D")?;
            txn.put_json(THINGS, "e", &"e")?;
            txn.put_json(THINGS, "g", &"g")?;
            assert!(txn.delete_json(THINGS, "b")?);
            assert!(!txn.delete_json(THINGS, "x")?);
            txn.scan_json::<String>(THINGS, "")
        })
        .unwrap();
    let pairs: Vec<_> = seen.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(pairs, [("a", "a"), ("d", "D"), ("e", "e"), ("f", "f"), ("g", "g")]);
    assert_eq!(store.read().unwrap().scan_json::<String>(THINGS, "").unwrap(), seen);
}

#[test]
fn spaces_children_and_refs_never_mix() {
    let store = store();
    let (one, two) = (space("one"), space("one two"));
    insert(&store, &one, &snapshot("p", None, Kind::Committed, 1));
    insert(&store, &one, &snapshot("p q", Some("p"), Kind::Committed, 2));
    insert(&store, &one, &snapshot("v", Some("p q"), Kind::View, 2));
    insert(&store, &two, &snapshot("p", None, Kind::Active, 3));
    let reader = store.read().unwrap();
    assert_eq!(reader.spaces_in_use().unwrap(), [one.clone(), two.clone()]);
    assert_eq!(reader.children(&one, &name("p")).unwrap(), [name("p q")]);
    assert!(!reader.has_children(&two, &name("p")).unwrap());
    assert!(!reader.has_children(&one, &name("v")).unwrap());
    assert_eq!(reader.find_by_ref(&one, "ref of p q", Some(&name("p"))).unwrap(), Some(name("p q")));
    assert_eq!(reader.find_by_ref(&one, "ref of p q", None).unwrap(), None);
    assert_eq!(reader.find_by_ref(&two, "ref of p", None).unwrap(), None, "an active one is no match");
    assert!(reader.is_viewed(id(2)).unwrap() && !reader.is_viewed(id(1)).unwrap());
    assert_eq!(reader.owned_devices().unwrap(), BTreeSet::from([id(1), id(2), id(3)]));
    let mut names = Vec::new();
    reader.snapshots(&one, &mut |s| names.push(s.name)).unwrap();
    assert_eq!(names, [name("p"), name("p q"), name("v")]);
}

#[test]
fn a_dropped_record_leaves_no_index_behind() {
    let store = store();
    let at = space("s");
    insert(&store, &at, &snapshot("p", None, Kind::Committed, 1));
    insert(&store, &at, &snapshot("c", Some("p"), Kind::Committed, 2));
    let in_txn = at.clone();
    store
        .write(move |txn| {
            let child = txn.get_snapshot(&in_txn, &name("c"))?;
            txn.drop_snapshot(&in_txn, &child);
            Ok(())
        })
        .unwrap();
    let reader = store.read().unwrap();
    assert!(!reader.has_children(&at, &name("p")).unwrap());
    assert_eq!(reader.find_by_ref(&at, "ref of c", Some(&name("p"))).unwrap(), None);
    assert_eq!(reader.owned_devices().unwrap(), BTreeSet::from([id(1)]));
    assert_eq!(reader.get_snapshot(&at, &name("c")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn ids_in_limbo_in_use_or_foreign_are_never_handed_out_and_numbering_wraps() {
    let store = store();
    insert(&store, &space("s"), &snapshot("a", None, Kind::Committed, 2));
    let foreign = BTreeSet::from([id(4)]);
    let ids = store
        .write(move |txn| {
            txn.put(META, META_NEXT_DEVICE, codec::encode(&((1_u32 << 24) - 2))?);
            txn.enter_limbo(id(5));
            txn.reserve_devices(5, &foreign)
        })
        .unwrap();
    assert_eq!(ids, [id((1 << 24) - 2), id((1 << 24) - 1), id(1), id(3), id(6)]);
    let mut limbo = ids;
    limbo.push(id(5));
    limbo.sort_unstable();
    let reader = store.read().unwrap();
    assert_eq!(reader.limbo().unwrap(), limbo);
    assert!(reader.in_limbo(id(5)).unwrap() && !reader.in_limbo(id(2)).unwrap());
}

#[test]
fn readers_do_not_wait_for_a_writer() {
    let store = store();
    let (inside, entered) = std::sync::mpsc::channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let writer = {
        let store = store.clone();
        std::thread::spawn(move || {
            store.write(move |txn| {
                txn.put_json(THINGS, "k", &1)?;
                inside.send(()).unwrap();
                wait.recv().unwrap();
                Ok(())
            })
        })
    };
    entered.recv().unwrap();
    assert_eq!(store.read().unwrap().get_json::<u8>(THINGS, "k").unwrap(), None);
    go.send(()).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(store.read().unwrap().get_json::<u8>(THINGS, "k").unwrap(), Some(1));
}
