//! Which parts of what was not flushed survive a cut: all, none, whole disks, single writes, torn pages, chance.

use thinsnap_pool::{Cut, Piece};

use crate::disks::{DATA, METADATA, STORE};
use crate::random::Random;

pub(crate) const WHOLE: u8 = u8::MAX;

/// For each pending piece the sectors that survive.
pub(crate) type Masks = Vec<u8>;

/// Up to this many pieces every subset is taken.
const EXHAUSTIVE_MAX: usize = 5;
const CHANCES: [u64; 5] = [10, 30, 50, 70, 90];

/// The subsets to judge at a cut: those that always are, and others by chance up to about `budget` in all.
pub(crate) fn subsets(cut: &Cut, random: &mut Random, budget: usize) -> Vec<Masks> {
    let pieces = cut.pending();
    if pieces.is_empty() {
        return vec![Masks::new()];
    }
    let mut always = whole_disks(pieces);
    if pieces.len() <= EXHAUSTIVE_MAX {
        always.extend(
            (0..1_usize << pieces.len())
                .map(|set| (0..pieces.len()).map(|piece| if set >> piece & 1 == 1 { WHOLE } else { 0 }).collect()),
        );
    }
    let mut some = single_writes(pieces);
    let writes = some.len();
    // As many torn and mixed ones as there are single writes: none of the three crowds out the others.
    for _ in 0..writes.clamp(8, 64) / 2 {
        some.push(by_chance(pieces, random));
        some.push(torn(pieces, random));
    }
    while always.len() < budget && !some.is_empty() {
        let at = usize::try_from(random.below(some.len() as u64)).unwrap();
        always.push(some.swap_remove(at));
    }
    always
}

/// Each disk keeps all or nothing.
fn whole_disks(pieces: &[Piece]) -> Vec<Masks> {
    let disks: Vec<usize> =
        [DATA, METADATA, STORE].into_iter().filter(|disk| pieces.iter().any(|piece| piece.device == *disk)).collect();
    (0..1_usize << disks.len())
        .map(|kept| {
            let keeps = |piece: &Piece| disks.iter().position(|disk| *disk == piece.device).unwrap();
            pieces.iter().map(|piece| if kept >> keeps(piece) & 1 == 1 { WHOLE } else { 0 }).collect()
        })
        .collect()
}

/// Each write alone, and each missing alone.
fn single_writes(pieces: &[Piece]) -> Vec<Masks> {
    let mut writes: Vec<usize> = pieces.iter().map(|piece| piece.event).collect();
    writes.dedup();
    let only = |write: usize, inside: u8| -> Masks {
        pieces.iter().map(|piece| if piece.event == write { inside } else { !inside }).collect()
    };
    writes.iter().flat_map(|&write| [only(write, WHOLE), only(write, 0)]).collect()
}

fn by_chance(pieces: &[Piece], random: &mut Random) -> Masks {
    let chance = random.pick(&CHANCES);
    pieces.iter().map(|_| if random.chance(chance) { WHOLE } else { 0 }).collect()
}

/// A few pages torn at their sectors, the others whole or lost.
fn torn(pieces: &[Piece], random: &mut Random) -> Masks {
    let mut masks = match random.below(4) {
        0 => vec![WHOLE; pieces.len()],
        1 => vec![0; pieces.len()],
        _ => by_chance(pieces, random),
    };
    for _ in 0..random.pick(&[1, 1, 2, 5]) {
        let at = usize::try_from(random.below(pieces.len() as u64)).unwrap();
        let some = u8::try_from(1 + random.below(254)).unwrap();
        // A page is usually cut once: the sectors before a place or behind it.
        let place = random.below(7) + 1;
        masks[at] = random.pick(&[some, WHOLE << place, WHOLE >> place]);
    }
    masks
}
