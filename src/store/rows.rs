//! Reading rows: the same questions to a read snapshot of the store and to a running transaction.

use std::ops::ControlFlow;

use redb::{ReadTransaction, TableDefinition, TableError};
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::store::codec;
use crate::store::redb_error::storage_error;
use crate::store::schema::Table;

pub(crate) fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

/// What a walk does with each row: key and value in, go on or stop out.
pub type EachRow<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>> + 'a;

/// Tables that can be read.
pub trait Rows {
    /// The value under `key`.
    fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Walks the rows whose keys are `from` or above, ascending, until `each` breaks.
    fn walk(&self, table: Table, from: &[u8], each: &mut EachRow<'_>) -> Result<()>;

    /// Walks the rows whose keys begin with `prefix`, ascending, until `each` breaks.
    fn walk_prefix(&self, table: Table, prefix: &[u8], each: &mut EachRow<'_>) -> Result<()> {
        self.walk(table, prefix, &mut |key, value| {
            if key.starts_with(prefix) { each(key, value) } else { Ok(ControlFlow::Break(())) }
        })
    }

    /// True if some key begins with `prefix`: one look-up, whatever the table holds.
    fn any_with_prefix(&self, table: Table, prefix: &[u8]) -> Result<bool> {
        let mut found = false;
        self.walk_prefix(table, prefix, &mut |_, _| {
            found = true;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// The JSON record under `key` in a table of a room above.
    fn get_json<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>>
    where
        Self: Sized,
    {
        self.row(table, key.as_bytes())?.map(|bytes| codec::decode_json(&bytes)).transpose()
    }

    /// The JSON records whose keys begin with `prefix`, ascending by key.
    fn scan_json<T: DeserializeOwned>(&self, table: Table, prefix: &str) -> Result<Vec<(String, T)>>
    where
        Self: Sized,
    {
        let mut records = Vec::new();
        self.walk_prefix(table, prefix.as_bytes(), &mut |key, value| {
            records.push((String::from_utf8_lossy(key).into_owned(), codec::decode_json(value)?));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(records)
    }
}

/// The store as it was at one moment; never waits for writers, and they never wait for it.
pub struct Reader {
    txn: ReadTransaction,
}

impl Reader {
    pub(crate) fn new(txn: ReadTransaction) -> Self {
        Self { txn }
    }
}

impl Rows for Reader {
    fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let rows = match self.txn.open_table(definition(table)) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(e) => return Err(storage_error("open a table of the store", e)),
        };
        let value = rows.get(key).map_err(|e| storage_error("read the store", e))?;
        Ok(value.map(|guard| guard.value().to_vec()))
    }

    fn walk(&self, table: Table, from: &[u8], each: &mut EachRow<'_>) -> Result<()> {
        let rows = match self.txn.open_table(definition(table)) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(e) => return Err(storage_error("open a table of the store", e)),
        };
        for row in rows.range(from..).map_err(|e| storage_error("walk the store", e))? {
            let (key, value) = row.map_err(|e| storage_error("walk the store", e))?;
            if each(key.value(), value.value())?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
