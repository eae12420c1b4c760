//! Writes tar archives byte by byte, good ones and bad ones, with full say over every field.

use std::io::Write;

/// Bytes of a tar block.
pub(crate) const BLOCK: usize = 512;

/// An archive being written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

/// A member: what its header says, and its content.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    pub(crate) flag: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) data: Vec<u8>,
    /// What the header says instead of the content's length.
    pub(crate) size: Option<u64>,
    pub(crate) magic: &'static [u8; 8],
    /// Records of a pax header in front.
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Member {
    /// A member of a type, 0644 or, for directories, 0755, root's, from 2020.
    pub(crate) fn new(flag: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            flag,
            link: Vec::new(),
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_600_000_000,
            device: (0, 0),
            data: Vec::new(),
            size: None,
            magic: b"ustar\x0000",
            pax: Vec::new(),
        }
    }

    pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self { data: data.as_ref().to_vec(), ..Self::new(b'0', name) }
    }

    pub(crate) fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'2', name) }
    }

    pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'1', name) }
    }

    pub(crate) fn node(flag: u8, name: impl AsRef<[u8]>, device: (u32, u32)) -> Self {
        Self { device, ..Self::new(flag, name) }
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    pub(crate) fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    pub(crate) fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
}

impl Tar {
    /// Appends a member; names too long for a header go into a pax header.
    pub(crate) fn add(mut self, member: Member) -> Self {
        let mut member = member;
        if member.name.len() > 100 {
            let name = member.name.clone();
            member.pax.push((b"path".to_vec(), name));
            member.name.truncate(100);
        }
        if member.link.len() > 100 {
            let link = member.link.clone();
            member.pax.push((b"linkpath".to_vec(), link));
            member.link.truncate(100);
        }
        if !member.pax.is_empty() {
            let records = pax_records(&member.pax);
            self = self.extended(b'x', &records);
        }
        let header = header(&member);
        self.raw(&header).data(&member.data)
    }

    /// Appends an extended header: `x`, `g`, `L` or `K`.
    pub(crate) fn extended(self, flag: u8, data: &[u8]) -> Self {
        let member = Member { data: data.to_vec(), ..Member::new(flag, "././@Header") };
        let header = header(&member);
        self.raw(&header).data(data)
    }

    /// Appends content and fills its last block.
    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Appends bytes as they are.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The archive with its end mark.
    pub(crate) fn end(self) -> Vec<u8> {
        self.raw(&[0; 2 * BLOCK]).bytes
    }

    /// The archive without an end mark.
    pub(crate) fn cut(self) -> Vec<u8> {
        self.bytes
    }
}

/// The header block of a member, its checksum right.
pub(crate) fn header(member: &Member) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block[..100], &member.name);
    number(&mut block[100..108], u64::from(member.mode));
    number(&mut block[108..116], member.uid);
    number(&mut block[116..124], member.gid);
    number(&mut block[124..136], member.size.unwrap_or(member.data.len() as u64));
    number(&mut block[136..148], member.mtime);
    block[156] = member.flag;
    put(&mut block[157..257], &member.link);
    block[257..265].copy_from_slice(member.magic);
    number(&mut block[329..337], u64::from(member.device.0));
    number(&mut block[337..345], u64::from(member.device.1));
    seal(&mut block);
    block
}

/// Writes a block's checksum.
pub(crate) fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Octal where it fits, else base 256.
pub(crate) fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if value < 1 << (3 * digits) {
        let text = format!("{value:0digits$o}\0");
        field.copy_from_slice(text.as_bytes());
    } else {
        field.fill(0);
        let end = field.len();
        field[end - 8..].copy_from_slice(&value.to_be_bytes());
        field[0] |= 0x80;
    }
}

fn put(field: &mut [u8], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

/// Pax records, each framed by its own length.
pub(crate) fn pax_records(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        write!(out, "{len} ").unwrap();
        out.extend_from_slice(key);
        out.push(b'=');
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

/// Packs with gzip.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Packs with zstd, with a checksum at the end.
pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
