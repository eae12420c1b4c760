//! What a sector holds: one number, repeated; each write has its own, so that bytes tell where they come from.

use std::collections::HashMap;
use std::sync::Arc;

use thinsnap_pool::DiskImage;

pub(crate) const SECTOR: u64 = 512;
pub(crate) const BLOCK: u64 = 64 * 1024;
pub(crate) const SECTORS_PER_BLOCK: u64 = BLOCK / SECTOR;
pub(crate) const SECTORS_PER_PAGE: usize = 8;
pub(crate) const PAGES_PER_BLOCK: u64 = BLOCK / 4096;
/// Blocks at the start of every device that stories write to; the others stay holes.
pub(crate) const TOLD_BLOCKS: u64 = TOLD_SLOTS as u64;
pub(crate) const TOLD_SLOTS: usize = 5;
pub(crate) const TOLD_SECTORS: u64 = TOLD_BLOCKS * SECTORS_PER_BLOCK;
/// What lies on the data device before anybody writes there: another's bytes.
pub(crate) const FOREIGN: u8 = 0xa5;

pub(crate) type Token = u64;

/// `sectors` sectors that hold `token`.
pub(crate) fn bytes_of(token: Token, sectors: u64) -> Vec<u8> {
    token.to_le_bytes().repeat(index(sectors * SECTOR / 8))
}

/// The token of a sector. Errors if it does not hold one throughout.
pub(crate) fn token_of(sector: &[u8]) -> Result<Token, String> {
    let (first, rest) = sector.split_at(8);
    // Shifted by one word onto itself: equal means that every word is the first.
    if sector[..rest.len()] != *rest {
        return Err("a sector holds two things at once".into());
    }
    Ok(Token::from_le_bytes(first.try_into().unwrap()))
}

pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

type PageTokens = Result<[Token; SECTORS_PER_PAGE], String>;

/// The tokens of pages that were read before, by the page's address.
#[derive(Default)]
pub(crate) struct PageReader {
    // With the page itself, so that its address is not used again.
    known: HashMap<usize, (Arc<[u8; 4096]>, PageTokens)>,
}

/// A page's name as long as its reader lives; 0: all zero.
pub(crate) type PageName = usize;

impl PageReader {
    pub(crate) fn name(&self, image: &DiskImage, page: u64) -> PageName {
        image.page(index(page)).map_or(0, |page| Arc::as_ptr(page).addr())
    }

    pub(crate) fn tokens(&mut self, image: &DiskImage, page: u64) -> PageTokens {
        let Some(bytes) = image.page(index(page)) else { return Ok([0; SECTORS_PER_PAGE]) };
        let read = || {
            let mut tokens = [0; SECTORS_PER_PAGE];
            for (token, sector) in tokens.iter_mut().zip(bytes.chunks_exact(index(SECTOR))) {
                *token = token_of(sector)?;
            }
            Ok(tokens)
        };
        self.known.entry(Arc::as_ptr(bytes).addr()).or_insert_with(|| (bytes.clone(), read())).1.clone()
    }
}
