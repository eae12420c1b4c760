//! Tests of the metadata through its public face: golden pools, promises, random stories, power cuts, damage.
#![expect(clippy::unwrap_used, reason = "what supports a test may panic where a test would")]
#[path = "../support/block_kind.rs"]
mod block_kind;
mod crash;
mod damage;
mod deep;
mod facts;
mod golden;
#[path = "../support/judges.rs"]
mod judges;
mod model;
mod promises;
mod repair;
mod restore;
mod story;
mod surgeon;
