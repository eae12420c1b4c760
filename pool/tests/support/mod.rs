//! What the tests of the metadata have in common: golden pools, and the judges of others.
pub mod golden;
pub mod judges;
pub mod story;
pub mod surgeon;
