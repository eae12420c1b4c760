//! Random numbers that a printed seed brings back.

/// A xorshift generator: tests need repeatable, not unpredictable.
pub(crate) struct Dice(u64);

impl Dice {
    /// A seed of zero would give zeroes for ever.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Evenly from 0 to below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a count fits");
        usize::try_from(self.roll() % end).expect("it is below a usize")
    }

    /// One of the items; `None` if there are none.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        (!items.is_empty()).then(|| &items[self.below(items.len())])
    }
}

/// A seed from the clock, printed so that a failure can be repeated.
pub(crate) fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is past 1970");
    let seed = std::env::var("THINSNAP_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(now.subsec_nanos()));
    println!("seed {seed} (repeat with THINSNAP_SEED={seed})");
    seed
}
