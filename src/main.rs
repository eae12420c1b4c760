//! The command line's contents page: parse, dispatch, exit status.

fn main() {}
