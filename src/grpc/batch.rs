//! Cuts a list of records into messages of a stream: bounded in number and in bytes.

use prost::Message;

/// Records in one message of a List stream, as containerd's reference has it.
const RECORDS_MAX: usize = 100;
/// Bytes after which a message is closed early; far below the limit of 16 MiB for one message.
const BYTES_MAX: usize = 4 << 20;

/// The records in batches, in order; no batch is empty.
pub fn batches<R: Message>(records: impl Iterator<Item = R>) -> impl Iterator<Item = Vec<R>> {
    let mut records = records.peekable();
    std::iter::from_fn(move || {
        records.peek()?;
        let mut batch = Vec::with_capacity(RECORDS_MAX.min(records.size_hint().0));
        let mut bytes = 0;
        while batch.len() < RECORDS_MAX && bytes < BYTES_MAX {
            let Some(record) = records.next() else { break };
            bytes += record.encoded_len();
            batch.push(record);
        }
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::batches;

    #[test]
    fn a_batch_ends_at_a_hundred_records() {
        let sizes: Vec<usize> = batches((0..250).map(|n| format!("{n}"))).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        assert_eq!(batches(std::iter::empty::<String>()).count(), 0);
    }

    #[test]
    fn large_records_make_short_batches() {
        let sizes: Vec<usize> = batches((0..3).map(|_| "x".repeat(3 << 20))).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [2, 1]);
    }
}
