//! Random stories told to the metadata and to a plain map: both must agree, and every judge must be content.

use crate::judges::{assert_device_sound, assert_thin_check_accepts};
use crate::story::{Sizes, Step, Teller, story};
use proptest::prelude::{ProptestConfig, proptest};

/// Audits after each commit; every so many commits others judge too.
fn tell(sizes: Sizes, steps: &[Step]) -> usize {
    let mut teller = Teller::new(sizes);
    for (nr, step) in steps.iter().enumerate() {
        teller.tell(step);
        if matches!(step, Step::Commit | Step::Reopen) {
            assert_device_sound(&*teller.device, &format!("after step {nr}, {step:?}"));
        }
        if matches!(step, Step::Reopen) {
            teller.compare();
        }
    }
    teller.compare();
    teller.commit();
    let image = teller.device.to_bytes();
    assert_device_sound(&*teller.device, "at the end");
    assert_thin_check_accepts(&image, "at the end");
    teller.reopen();
    teller.compare();
    teller.refused
}

/// `PROPTEST_CASES`, or what takes a minute.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(35), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn metadata_holds_what_it_was_told(steps in story(3000, 100..200)) {
        tell(Sizes { metadata_blocks: 4096, data_blocks: 60_000 }, &steps);
    }

    /// Few data blocks, and metadata that runs out now and then.
    #[test]
    fn a_crowded_pool_refuses_and_stays_sound(steps in story(3000, 100..200)) {
        tell(Sizes { metadata_blocks: 512, data_blocks: 9000 }, &steps);
    }
}
