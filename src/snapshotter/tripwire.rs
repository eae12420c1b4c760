//! The pool's transaction id as a tripwire: pool and store must be of the same age.
//!
//! A copy of it stands in the store. The pool's is moved on first, the copy second, so that at any crash
//! the pool is where the copy is or one ahead; anything else means that one of the two was put back from
//! a backup, and every change would damage what the other knows.
//!
//! It moves at every start and once in [`STRIDE`] new snapshots, in the background: a commit of the pool
//! for each snapshot would double their cost. What happened within one stride is caught at start by
//! comparing the device lists: a device that the store needs and the pool lacks.

use thinsnap_pool::{ErrorKind as PoolErrorKind, Mutation, ThinPool};

use crate::error::{Error, ErrorKind, Result};
use crate::store::{Records, Store};

/// New snapshots between two moves.
pub(crate) const STRIDE: u64 = 64;

/// Errors with `Corrupt` if one of the two is older than the other.
pub(crate) fn compare(pool: u64, copy: u64) -> Result<()> {
    if pool < copy {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("the pool is older than the store: it stands at transaction {pool}, the store knows {copy}"),
        )
        .advise("put back the pool that belongs to this store, or the store that belongs to this pool"));
    }
    if pool > copy.saturating_add(1) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("the store is older than the pool: it knows transaction {copy}, the pool stands at {pool}"),
        )
        .advise("put back the store that belongs to this pool, or the pool that belongs to this store"));
    }
    Ok(())
}

/// Moves the pool's id on by one and copies it.
pub(crate) fn advance(pool: &dyn ThinPool, store: &Store) -> Result<()> {
    let copy = store.read()?.transaction_id()?.unwrap_or(0);
    let at = pool.status()?.transaction_id;
    compare(at, copy)?;
    if at > copy {
        // The last move died between the two: the pool must not get two ahead, however often that happens.
        store.write(move |txn| txn.set_transaction_id(at))?;
    }
    if Mutation::CopyBeforePool.is_on() {
        store.write(move |txn| txn.set_transaction_id(at + 1))?;
    }
    match pool.set_transaction_id(at, at + 1) {
        Ok(()) => {}
        // A pool that takes no changes makes none that the tripwire could miss.
        Err(error) if matches!(error.kind(), PoolErrorKind::ReadOnly | PoolErrorKind::NeedsCheck) => return Ok(()),
        Err(error) => return Err(Error::from(error).doing("move the pool's transaction id on")),
    }
    store.write(move |txn| txn.set_transaction_id(at + 1))
}
