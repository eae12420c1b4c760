//! One caller's changes inside a batch that commits as a whole.
//!
//! A closure gets a [`Txn`] and nothing else: no pool, no mkfs, no mount and no wait can be reached from
//! it, so a batch lasts as long as its page writes. Changes are gathered apart from the batch and laid
//! into it only when the closure succeeds: one that fails leaves no trace, and its neighbours go on.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use redb::{ReadableTable, WriteTransaction};
use serde::Serialize;

use crate::error::Result;
use crate::store::codec;
use crate::store::redb_error::storage_error;
use crate::store::rows::{EachRow, Rows, definition};
use crate::store::schema::Table;

type Changes = BTreeMap<Table, BTreeMap<Vec<u8>, Option<Vec<u8>>>>;

/// A running transaction: reads see its own changes.
pub struct Txn<'a> {
    batch: &'a WriteTransaction,
    changes: Changes,
}

impl<'a> Txn<'a> {
    pub(crate) fn new(batch: &'a WriteTransaction) -> Self {
        Self { batch, changes: Changes::new() }
    }

    /// Sets the value under `key`.
    pub(crate) fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.entry(table).or_default().insert(key.into(), Some(value.into()));
    }

    /// Drops the value under `key`; an absent one is a success.
    pub(crate) fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.changes.entry(table).or_default().insert(key.into(), None);
    }

    /// Sets the JSON record under `key` in a table of a room above.
    pub fn put_json<T: Serialize>(&mut self, table: Table, key: &str, record: &T) -> Result<()> {
        self.put(table, key.as_bytes(), codec::encode_json(record)?);
        Ok(())
    }

    /// Drops the JSON record under `key`. True if there was one.
    pub fn delete_json(&mut self, table: Table, key: &str) -> Result<bool> {
        let there = self.row(table, key.as_bytes())?.is_some();
        self.delete(table, key.as_bytes());
        Ok(there)
    }

    /// Lays the changes into the batch. True if there was one.
    pub(crate) fn apply(self) -> Result<bool> {
        let mut any = false;
        for (table, rows) in self.changes {
            let mut open =
                self.batch.open_table(definition(table)).map_err(|e| storage_error("open a table of the store", e))?;
            for (key, value) in rows {
                any = true;
                match value {
                    Some(value) => open.insert(key.as_slice(), value.as_slice()).map(drop),
                    None => open.remove(key.as_slice()).map(drop),
                }
                .map_err(|e| storage_error("write the store", e))?;
            }
        }
        Ok(any)
    }
}

impl Rows for Txn<'_> {
    fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(changed) = self.changes.get(&table).and_then(|rows| rows.get(key)) {
            return Ok(changed.clone());
        }
        let rows =
            self.batch.open_table(definition(table)).map_err(|e| storage_error("open a table of the store", e))?;
        let value = rows.get(key).map_err(|e| storage_error("read the store", e))?;
        Ok(value.map(|guard| guard.value().to_vec()))
    }

    fn walk(&self, table: Table, from: &[u8], each: &mut EachRow<'_>) -> Result<()> {
        let rows =
            self.batch.open_table(definition(table)).map_err(|e| storage_error("open a table of the store", e))?;
        let mut changed = self
            .changes
            .get(&table)
            .into_iter()
            .flat_map(|rows| rows.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Unbounded)))
            .peekable();
        // Two ascending lists merged; where both have a key, the change wins.
        for row in rows.range(from..).map_err(|e| storage_error("walk the store", e))? {
            let (key, value) = row.map_err(|e| storage_error("walk the store", e))?;
            while let Some((new_key, new_value)) = changed.next_if(|(k, _)| k.as_slice() < key.value()) {
                if let Some(new_value) = new_value
                    && each(new_key, new_value)?.is_break()
                {
                    return Ok(());
                }
            }
            let flow = match changed.next_if(|(k, _)| k.as_slice() == key.value()) {
                Some((_, None)) => ControlFlow::Continue(()),
                Some((_, Some(new_value))) => each(key.value(), new_value)?,
                None => each(key.value(), value.value())?,
            };
            if flow.is_break() {
                return Ok(());
            }
        }
        for (new_key, new_value) in changed {
            if let Some(new_value) = new_value
                && each(new_key, new_value)?.is_break()
            {
                return Ok(());
            }
        }
        Ok(())
    }
}
