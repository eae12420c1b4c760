//! Tests of the metadata as a whole.
