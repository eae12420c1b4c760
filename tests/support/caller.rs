//! A client that does random verbs and knows, at every moment, what the service must answer.
//!
//! Its keys are its own, so every answer has one legal form. Calls that the service did not live to answer
//! are looked up afterwards: they may have happened or not, wholly. Into some devices it writes a mark, far
//! behind the file system's first blocks, and expects it back from every snapshot that descends from it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use thinsnap::grpc::snapshots_api::{Info, Kind};
use tonic::Code;

use super::blocks;
use super::dice::Dice;
use super::proxy::{Client, known};

/// Where the mark stands: block of 4 KiB at 1 GiB.
const MARK_AT: u64 = (1 << 30) / 4096;
/// Most snapshots that one caller keeps.
const MINE_MAX: usize = 8;

/// Longest time without any answer. A busy machine may kill the service in the middle of one call for as long as the kills go
/// on, two minutes; after the last of them it stays.
const PATIENCE: Duration = Duration::from_secs(400);

/// What a caller knows about one of its snapshots.
#[derive(Debug, Clone, PartialEq)]
struct Mine {
    kind: Kind,
    parent: String,
    /// What the block at [`MARK_AT`] holds.
    mark: u64,
}

/// A call without an answer.
#[derive(Debug)]
enum Lost {
    New(String, Mine),
    Commit { name: String, key: String },
    Remove(String),
    Nothing,
}

/// A client with a model of its own snapshots.
pub(crate) struct Caller {
    client: Client,
    name: String,
    dice: Dice,
    layers: Vec<String>,
    mine: BTreeMap<String, Mine>,
    made: u64,
    /// Calls that were answered.
    pub(crate) answered: u64,
}

impl Caller {
    /// `layers` are committed snapshots, without a mark, that stay for the whole test.
    pub(crate) fn new(client: Client, name: String, seed: u64, layers: &[String]) -> Self {
        let (dice, layers) = (Dice::new(seed), layers.to_vec());
        Self { client, name, dice, layers, mine: BTreeMap::new(), made: 0, answered: 0 }
    }

    /// One random call. True if it was answered, as it had to be; false if the service went away meanwhile.
    pub(crate) async fn step(&mut self) -> bool {
        let crowded = self.mine.len() >= MINE_MAX;
        let lost = match self.dice.below(100) {
            0..30 if !crowded => self.create(Kind::Active).await,
            30..38 if !crowded => self.create(Kind::View).await,
            0..38 => self.remove().await,
            38..42 => self.create_again().await,
            42..58 => self.commit().await,
            58..76 => self.remove().await,
            76..84 => self.list().await,
            84..88 => self.list_everything().await,
            88..92 => self.stat().await,
            92..96 => self.usage().await,
            _ => self.mounts().await,
        };
        match lost {
            None => {
                self.answered += 1;
                true
            }
            Some(lost) => {
                self.look_up(lost).await;
                false
            }
        }
    }

    /// Lists until the service answers; panics unless exactly the model's snapshots are there.
    pub(crate) async fn check(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.list().await.is_some() {
            assert!(Instant::now() < deadline, "no service answered for {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Reads the mark of every snapshot through a device of its own.
    pub(crate) async fn check_marks(&mut self) {
        for (key, mine) in self.mine.clone() {
            let found = if mine.kind == Kind::Committed {
                let look = self.fresh("look");
                let device = self.client.view(&look, &key).await.expect("a committed snapshot can be viewed");
                let found = read_mark(device).await;
                self.client.remove(&look).await.expect("a view can be removed");
                found
            } else {
                read_mark(self.client.mounts(&key).await.expect("it has mounts")).await
            };
            assert_eq!(found, mine.mark, "the mark of {key}, {mine:?}");
        }
    }

    /// Removes everything it has, children first.
    pub(crate) async fn remove_everything(&mut self) {
        while !self.mine.is_empty() {
            let leaf = self.mine.keys().find(|key| !self.has_children(key)).expect("a tree has leaves").clone();
            self.client.remove(&leaf).await.unwrap_or_else(|e| panic!("{leaf} can be removed: {e}"));
            self.mine.remove(&leaf);
        }
        self.check().await;
    }

    async fn create(&mut self, kind: Kind) -> Option<Lost> {
        let mut parents: Vec<String> = self.of_kind(&[Kind::Committed]);
        parents.extend(self.layers.iter().cloned());
        parents.push(String::new());
        let parent = self.dice.pick(&parents).cloned().unwrap_or_default();
        let mark = self.mine.get(&parent).map_or(0, |mine| mine.mark);
        let key = self.fresh("key with blanks/and:marks");
        let mut mine = Mine { kind, parent: parent.clone(), mark };
        let answer = match kind {
            Kind::View => self.client.view(&key, &parent).await,
            _ => self.client.prepare(&key, &parent).await,
        };
        let device = match known(answer) {
            Ok(answer) => answer.unwrap_or_else(|e| panic!("{key} on {parent:?} can be made: {e}")),
            Err(()) => return Some(Lost::New(key, mine)),
        };
        if kind == Kind::Active && self.dice.below(4) == 0 {
            mine.mark = self.dice.roll();
            write_mark(device, mine.mark).await;
        }
        self.mine.insert(key, mine);
        None
    }

    async fn create_again(&mut self) -> Option<Lost> {
        let all: Vec<String> = self.mine.keys().cloned().collect();
        let key = self.dice.pick(&all)?.clone();
        match known(self.client.prepare(&key, "").await) {
            Ok(answer) => assert_eq!(answer.err().map(|e| e.code()), Some(Code::AlreadyExists), "prepare {key} again"),
            Err(()) => return Some(Lost::Nothing),
        }
        None
    }

    async fn commit(&mut self) -> Option<Lost> {
        let actives = self.of_kind(&[Kind::Active]);
        let key = self.dice.pick(&actives)?.clone();
        let name = self.fresh("name");
        match known(self.client.commit(&name, &key).await) {
            Ok(answer) => answer.unwrap_or_else(|e| panic!("{key} can be committed: {e}")),
            Err(()) => return Some(Lost::Commit { name, key }),
        }
        self.committed(name, &key);
        None
    }

    async fn remove(&mut self) -> Option<Lost> {
        let all: Vec<String> = self.mine.keys().cloned().collect();
        let key = self.dice.pick(&all)?.clone();
        let answer = match known(self.client.remove(&key).await) {
            Ok(answer) => answer,
            Err(()) if self.has_children(&key) => return Some(Lost::Nothing),
            Err(()) => return Some(Lost::Remove(key)),
        };
        if self.has_children(&key) {
            assert_eq!(answer.err().map(|e| e.code()), Some(Code::FailedPrecondition), "remove {key} with children");
        } else {
            answer.unwrap_or_else(|e| panic!("{key} can be removed: {e}"));
            self.mine.remove(&key);
        }
        None
    }

    async fn list(&mut self) -> Option<Lost> {
        let answer = known(self.client.list(&format!("name~=\"^{} \"", self.name)).await);
        let Ok(answer) = answer else { return Some(Lost::Nothing) };
        let infos = answer.unwrap_or_else(|e| panic!("snapshots can be listed: {e}"));
        let found: BTreeMap<String, (Kind, String)> = infos.iter().map(seen).collect();
        assert_eq!(found.len(), infos.len(), "List names nothing twice");
        let wanted = self.mine.iter().map(|(key, mine)| (key.clone(), (mine.kind, mine.parent.clone()))).collect();
        assert_eq!(found, wanted, "what {} lists", self.name);
        None
    }

    async fn list_everything(&mut self) -> Option<Lost> {
        let Ok(answer) = known(self.client.list("").await) else { return Some(Lost::Nothing) };
        let infos = answer.unwrap_or_else(|e| panic!("snapshots can be listed: {e}"));
        let found: BTreeMap<String, (Kind, String)> = infos.iter().map(seen).collect();
        assert_eq!(found.len(), infos.len(), "List names nothing twice");
        let missing: Vec<_> = self.mine.keys().chain(&self.layers).filter(|key| !found.contains_key(*key)).collect();
        assert!(missing.is_empty(), "{missing:?} are not listed");
        None
    }

    async fn stat(&mut self) -> Option<Lost> {
        let all: Vec<String> = self.mine.keys().cloned().collect();
        let key = self.dice.pick(&all)?.clone();
        let Ok(answer) = known(self.client.stat(&key).await) else { return Some(Lost::Nothing) };
        let info = answer.unwrap_or_else(|e| panic!("{key} can be looked at: {e}"));
        let mine = &self.mine[&key];
        let wanted = (key, (mine.kind, mine.parent.clone()));
        assert_eq!(info.as_ref().map(seen), Some(wanted));
        None
    }

    async fn usage(&mut self) -> Option<Lost> {
        let all: Vec<String> = self.mine.keys().cloned().collect();
        let key = self.dice.pick(&all)?.clone();
        let Ok(answer) = known(self.client.usage(&key).await) else { return Some(Lost::Nothing) };
        let bytes = answer.unwrap_or_else(|e| panic!("{key} has a usage: {e}"));
        assert!((0..64 << 20).contains(&bytes), "{key} holds {bytes} bytes");
        None
    }

    async fn mounts(&mut self) -> Option<Lost> {
        let all: Vec<String> = self.mine.keys().cloned().collect();
        let key = self.dice.pick(&all)?.clone();
        let Ok(answer) = known(self.client.mounts(&key).await) else { return Some(Lost::Nothing) };
        let mine = &self.mine[&key];
        if mine.kind == Kind::Committed {
            assert_eq!(answer.err().map(|e| e.code()), Some(Code::FailedPrecondition), "mounts of committed {key}");
        } else {
            let device = answer.unwrap_or_else(|e| panic!("{key} has mounts: {e}"));
            assert_eq!(read_mark(device).await, mine.mark, "the mark of {key}, {mine:?}");
        }
        None
    }

    /// Brings the model up to date after a call without an answer: it happened wholly, or not at all.
    async fn look_up(&mut self, lost: Lost) {
        match lost {
            Lost::Nothing => {}
            Lost::New(key, mine) => {
                if let Some(info) = self.look(&key).await {
                    assert_eq!(seen(&info).1, (mine.kind, mine.parent.clone()), "{key} is what was asked for");
                    self.mine.insert(key, mine);
                }
            }
            Lost::Commit { name, key } => {
                let there = (self.look(&name).await.is_some(), self.look(&key).await.is_some());
                match there {
                    (true, false) => self.committed(name, &key),
                    (false, true) => {}
                    _ => panic!("commit of {key} as {name} happened in part: (name, key) are there: {there:?}"),
                }
            }
            Lost::Remove(key) => {
                if self.look(&key).await.is_none() {
                    self.mine.remove(&key);
                }
            }
        }
        self.check().await;
    }

    async fn look(&mut self, key: &str) -> Option<Info> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no service answered for {PATIENCE:?}");
            if let Ok(answer) = known(self.client.stat(key).await) {
                return answer.unwrap_or_else(|e| panic!("{key} can be looked at: {e}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn committed(&mut self, name: String, key: &str) {
        let mine = self.mine.remove(key).expect("it was active");
        self.mine.insert(name, Mine { kind: Kind::Committed, ..mine });
    }

    fn of_kind(&self, kinds: &[Kind]) -> Vec<String> {
        self.mine.iter().filter(|(_, mine)| kinds.contains(&mine.kind)).map(|(key, _)| key.clone()).collect()
    }

    fn has_children(&self, key: &str) -> bool {
        self.mine.values().any(|mine| mine.parent == key)
    }

    fn fresh(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{} {what} {}", self.name, self.made)
    }
}

fn seen(info: &Info) -> (String, (Kind, String)) {
    (info.name.clone(), (info.kind(), info.parent.clone()))
}

async fn write_mark(device: PathBuf, mark: u64) {
    let written = tokio::task::spawn_blocking(move || {
        let file = blocks::open(&device, true)?;
        blocks::write(&file, MARK_AT, mark)?;
        file.sync_all()
    });
    written.await.expect("the writer does not panic").expect("an active snapshot's device can be written");
}

async fn read_mark(device: PathBuf) -> u64 {
    let read = tokio::task::spawn_blocking(move || blocks::read(&blocks::open(&device, false)?, MARK_AT));
    read.await.expect("the reader does not panic").expect("a snapshot's device can be read")
}
