//! A disk that is not as it must be: made as small as it can be, and told so that it can be seen again.

use thinsnap_pool::Cut;

use crate::cuts::{Masks, WHOLE};
use crate::disks::disk_name;
use crate::story::Story;

/// What a replay needs.
pub(crate) struct Finding {
    pub(crate) seed: u64,
    pub(crate) cut: usize,
    pub(crate) masks: Masks,
    pub(crate) what: String,
}

impl Finding {
    /// Loses and mends as many writes as it can, the finding staying one.
    pub(crate) fn minimised(mut self, mut judge: impl FnMut(&Masks) -> Result<(), String>) -> Self {
        let mut smaller = true;
        while std::mem::take(&mut smaller) {
            for at in 0..self.masks.len() {
                let now = self.masks[at];
                // Lost is simplest, whole simpler than torn.
                let simpler: &[u8] = match now {
                    0 => &[],
                    WHOLE => &[0],
                    _ => &[0, WHOLE],
                };
                for &mask in simpler {
                    let mut masks = self.masks.clone();
                    masks[at] = mask;
                    if let Err(what) = judge(&masks) {
                        (self.masks, self.what) = (masks, what);
                        smaller = true;
                        break;
                    }
                }
            }
        }
        self
    }

    /// The line that judges this disk again.
    pub(crate) fn replay(&self) -> String {
        let masks: String = self.masks.iter().map(|mask| format!("{mask:02x}")).collect();
        format!("THINSNAP_EXPLORE={}/{}/{masks}", self.seed, self.cut)
    }

    /// Story, cut and survivors in words.
    pub(crate) fn tell(&self, story: &Story, cut: &Cut) -> String {
        let mut text = format!("{}\nreplay with {}\nseed {}, ", self.what, self.replay(), self.seed);
        text.push_str(&format!("cut behind {} events of\n", self.cut));
        let begun: Vec<_> = story.log.iter().filter(|(at, _)| *at <= self.cut).collect();
        for (at, what) in begun.iter().rev().take(30).rev() {
            text.push_str(&format!("  {at:>5}  {what}\n"));
        }
        text.push_str("of what was not flushed these survive:\n");
        for (piece, mask) in cut.pending().iter().zip(&self.masks).filter(|(_, mask)| **mask != 0) {
            let (disk, offset) = (disk_name(piece.device), piece.offset);
            text.push_str(&format!(
                "  {:>5}  {disk} at {offset} (page {}), sectors {mask:08b}\n",
                piece.event,
                offset / 4096
            ));
        }
        text
    }
}
