//! The intent log that a dead pool host left: headers, tail and records of anybody's making.

use thinsnap_pool::parse_intent_log;

/// Records in the ring: the fewest that a log may have, so that inputs are small.
const CAPACITY: u64 = 128;
/// Words in front of the records.
const PAGE: usize = 512;
/// Where the two headers begin, and how many words each has without its checksum.
const SLOTS: [usize; 2] = [0, 64];
const SLOT: usize = 13;
/// Where the tail and its complement stand.
const TAIL: usize = 128;
/// Words of a record without its checksum.
const RECORD: usize = 5;

/// Parses a log. The first byte says how it comes: as it is (0), or put together and sealed from words (1): two headers, the
/// tail, then records from the place on that the first header tells.
pub fn intent_log(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let whole = if how & 1 == 0 { bytes.to_vec() } else { sealed(bytes) };
    let Ok(content) = parse_intent_log(&whole) else { return };
    let epochs = [Some(content.header.durable), content.header.coming];
    for epoch in epochs.into_iter().flatten() {
        let (found, changes) = content.since(epoch.fingerprint).expect("a log builds on its own epochs");
        assert_eq!(changes.len() as u64, content.tail - found.first, "a change is missing");
    }
}

fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let mut log = vec![0; PAGE + usize::try_from(CAPACITY).expect("small") * (RECORD + 1)];
    for slot in SLOTS {
        put(&mut log, slot, &mut words, SLOT);
    }
    let tail = words.next().unwrap_or_default();
    (log[TAIL], log[TAIL + 1]) = (tail, !tail);
    let first = log[SLOTS[0] + 9];
    for nth in 0..CAPACITY {
        let place = usize::try_from(first.wrapping_add(nth) % CAPACITY).expect("small");
        put(&mut log, PAGE + place * (RECORD + 1), &mut words, RECORD);
    }
    log.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Puts words and their checksum.
fn put(log: &mut [u64], at: usize, words: &mut impl Iterator<Item = u64>, len: usize) {
    let mut sum = 0;
    for place in &mut log[at..at + len] {
        *place = words.next().unwrap_or_default();
        sum = crc32c::crc32c_append(sum, &place.to_le_bytes());
    }
    log[at + len] = u64::from(sum) | u64::from(!sum) << 32;
}
