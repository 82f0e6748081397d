//! `allmend-testnet`.

fn main() {}
