//! Archives that mean harm, or are broken: what each does, and what must come of it.

use crate::archive::{BLOCK, Member, Tar, gzip, header, number, pax_records, seal, zstd};
use crate::archive_tricks::tricks;

/// What must come of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A `BadArchive` error whose text holds this.
    Refused(&'static str),
    /// It is laid down inside the root: this path is there afterwards.
    Inside(&'static str),
    /// It is laid down, and this path is not there afterwards.
    Without(&'static str),
}

/// One such archive.
#[derive(Debug)]
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) outcome: Outcome,
}

pub(crate) fn refused(name: &'static str, bytes: Vec<u8>, why: &'static str) -> Hostile {
    Hostile { name, bytes, outcome: Outcome::Refused(why) }
}

pub(crate) fn inside(name: &'static str, bytes: Vec<u8>, path: &'static str) -> Hostile {
    Hostile { name, bytes, outcome: Outcome::Inside(path) }
}

pub(crate) fn of(members: impl IntoIterator<Item = Member>) -> Vec<u8> {
    members.into_iter().fold(Tar::default(), Tar::add).end()
}

/// All of them. `canary` is the absolute path of a directory outside the root, with a file `bird` in it, that nothing may touch.
pub(crate) fn corpus(canary: &str) -> Vec<Hostile> {
    let mut all = ways_out(canary);
    all.extend(links(canary));
    all.extend(framing());
    all.extend(headers());
    all.extend(sparse());
    all.extend(packing());
    all.extend(tricks(canary));
    all
}

/// Paths that lead out.
fn ways_out(canary: &str) -> Vec<Hostile> {
    let up = "../".repeat(30);
    vec![
        refused("dot dot", of([Member::file("../evil", "x")]), "\"..\""),
        refused("dot dot inside", of([Member::file(format!("a/{up}{canary}/evil"), "x")]), "\"..\""),
        refused("only dot dot", of([Member::directory("..")]), "\"..\""),
        inside("absolute name", of([Member::file("/etc/passwd-of-the-layer", "x")]), "etc/passwd-of-the-layer"),
        inside("absolute name of the canary", of([Member::file(format!("{canary}/evil"), "x")]), ""),
        inside("many slashes", of([Member::file("////a////b", "x")]), "a/b"),
        inside(
            "through an absolute symlink",
            of([Member::symlink("way", canary), Member::file("way/evil", "x")]),
            "way",
        ),
        inside(
            "through a symlink with dot dot",
            of([Member::symlink("way", format!("{up}{canary}")), Member::file("way/evil", "x")]),
            "way",
        ),
        inside(
            "through two symlinks",
            of([Member::symlink("a", "/b"), Member::symlink("b", canary), Member::file("a/evil", "x")]),
            "a",
        ),
        inside(
            "a file over a symlink to the canary",
            of([Member::symlink("bird", format!("{canary}/bird")), Member::file("bird", "x")]),
            "bird",
        ),
        inside(
            "a directory over a symlink to the canary, then a file in it",
            of([Member::symlink("d", canary), Member::directory("d"), Member::file("d/evil", "x")]),
            "d/evil",
        ),
        inside(
            "modes of a directory that is a symlink",
            of([Member::symlink("d", canary), Member::directory("d/").mode(0o777).owner(7, 7)]),
            "d",
        ),
        inside(
            "a whiteout through a symlink",
            of([Member::symlink("way", canary), Member::file("way/.wh.bird", "")]),
            "way",
        ),
        inside(
            "an opaque whiteout through a symlink",
            of([Member::symlink("way", canary), Member::file("way/.wh..wh..opq", "")]),
            "way",
        ),
        refused("a whiteout of dot dot", of([Member::file("a/.wh...", "")]), "names nothing"),
        refused("a whiteout of dot", of([Member::file("a/.wh..", "")]), "names nothing"),
        refused("a whiteout of nothing", of([Member::file("a/.wh.", "")]), "names nothing"),
        refused("a directory named like a whiteout", of([Member::file(".wh.a/b", "")]), "named like a whiteout"),
        Hostile {
            name: "metadata of AUFS",
            bytes: of([Member::file(".wh..wh.aufs", "x"), Member::file(".wh..wh.plnk/1.2", "x")]),
            outcome: Outcome::Without(".wh..wh.aufs"),
        },
        refused("a file in the place of the root", of([Member::file("./", "x")]), "root directory"),
        refused("a symlink in the place of the root", of([Member::symlink("/", canary)]), "root directory"),
        refused(
            "a file as a directory",
            of([Member::file("a", "x"), Member::file("a/b", "x")]),
            "cannot reach its directory",
        ),
        refused(
            "symlinks in circles",
            of([Member::symlink("a", "b"), Member::symlink("b", "a"), Member::file("a/c", "x")]),
            "cannot reach its directory",
        ),
        refused("a component of 256 bytes", of([Member::file("a".repeat(256), "x")]), "cannot create the file"),
    ]
}

/// Links that lead out, or nowhere.
fn links(canary: &str) -> Vec<Hostile> {
    let up = "../".repeat(30);
    vec![
        refused("a hard link out", of([Member::hard_link("l", format!("{up}{canary}/bird"))]), "\"..\""),
        refused("an absolute hard link", of([Member::hard_link("l", format!("{canary}/bird"))]), "is not there"),
        refused(
            "a hard link through a symlink",
            of([Member::symlink("way", canary), Member::hard_link("l", "way/bird")]),
            "is not there",
        ),
        inside(
            "a hard link to a symlink, then a file over it",
            of([Member::symlink("s", format!("{canary}/bird")), Member::hard_link("l", "s"), Member::file("l", "x")]),
            "l",
        ),
        refused("a hard link to nothing", of([Member::hard_link("l", "nowhere/at/all")]), "is not there"),
        refused("a hard link to a directory", of([Member::directory("d"), Member::hard_link("l", "d")]), "a directory"),
        refused("a hard link to the root", of([Member::hard_link("l", "/")]), "root directory"),
        refused("a hard link to itself", of([Member::file("f", "x"), Member::hard_link("f", "./f")]), "to itself"),
        refused(
            "a hard link over the directory that holds its target",
            of([Member::file("d/f", "x"), Member::hard_link("d", "d/f")]),
            "cannot create the hard link",
        ),
        refused("a hard link without a target", of([Member::hard_link("l", "")]), "empty"),
        refused("a symlink without a target", of([Member::symlink("l", "")]), "empty"),
        refused("a symlink of 5000 bytes", of([Member::symlink("l", "x".repeat(5000))]), "cannot create the symlink"),
    ]
}

/// Blocks that do not add up.
fn framing() -> Vec<Hostile> {
    let good = of([Member::file("a", "x"), Member::file("b", vec![7; 5000])]);
    let smuggled = header(&Member::file("smuggled", ""));
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    vec![
        refused("nothing at all", Vec::new(), "end mark"),
        refused("garbage", (0..=255u8).cycle().take(4 * BLOCK).collect(), "not a tar header"),
        refused("a wrong checksum", flipped, "not a tar header"),
        refused("cut in a header", good[..BLOCK * 2 + 100].to_vec(), "in the middle"),
        refused("cut in the content", good[..BLOCK * 4].to_vec(), "in the middle"),
        refused("cut between two entries", good[..BLOCK * 2].to_vec(), "end mark"),
        refused(
            "one block of zeros inside",
            Tar::default().add(Member::file("a", "x")).raw(&[0; BLOCK]).add(Member::file("b", "x")).end(),
            "one block of zeros",
        ),
        Hostile {
            name: "entries behind the end mark",
            bytes: [of([Member::file("a", "x")]), of([Member::file("late", "x")])].concat(),
            outcome: Outcome::Without("late"),
        },
        refused(
            "a size beyond the end",
            Tar::default().raw(&header(&Member::file("big", "").size(1 << 33))).data(b"short").cut(),
            "in the middle",
        ),
        refused("a size beyond all", of([Member::file("big", "").size(u64::MAX >> 1)]), "out of range"),
        refused(
            "a directory with content",
            Tar::default().raw(&header(&Member::directory("d").size(512))).raw(&smuggled).end(),
            "bytes of content",
        ),
        refused(
            "a symlink with content",
            Tar::default().raw(&header(&Member::symlink("s", "t").size(512))).raw(&smuggled).end(),
            "bytes of content",
        ),
        refused(
            "a hard link with content by pax",
            Tar::default()
                .add(Member::file("f", "x"))
                .add(Member { data: smuggled.to_vec(), ..Member::hard_link("l", "f").size(0).pax("size", "512") })
                .end(),
            "bytes of content",
        ),
        Hostile {
            name: "an entry hidden in the content by a pax size",
            bytes: of([Member { data: smuggled.to_vec(), ..Member::file("f", "").size(0).pax("size", "512") }]),
            outcome: Outcome::Without("smuggled"),
        },
        inside(
            "an entry shown by a pax size of zero",
            Tar::default().add(Member::file("f", "").size(512).pax("size", "0")).add(Member::file("shown", "x")).end(),
            "shown",
        ),
        refused("a pax size that is no number", of([Member::file("f", "x").pax("size", "0x1")]), "not a number"),
        refused("a negative pax size", of([Member::file("f", "x").pax("size", "-1")]), "not a number"),
    ]
}

/// Headers that lie, contradict each other, or are too large.
fn headers() -> Vec<Hostile> {
    let file = || Member::file("f", "x");
    let huge = {
        let mut block = header(&Member::new(b'x', "pax"));
        number(&mut block[124..136], 1 << 40);
        seal(&mut block);
        Tar::default().raw(&block).end()
    };
    let field = |at: std::ops::Range<usize>, bytes: &[u8]| {
        let mut block = header(&file());
        block[at.start..at.start + bytes.len()].copy_from_slice(bytes);
        seal(&mut block);
        Tar::default().raw(&block).data(b"x").end()
    };
    let pax = |data: &[u8]| Tar::default().extended(b'x', data).add(file()).end();
    let long = |name: &[u8]| Tar::default().extended(b'L', name).add(file()).end();
    vec![
        refused("a pax header of a tebibyte", huge, "the limit is"),
        refused("a pax record that is too long", pax(b"99 path=a\n"), "does not fit"),
        refused("a pax record that is too short", pax(b"9 path=a\nx"), "pax record"),
        refused("a pax record of length zero", pax(b"0 path=a\n"), "does not fit"),
        refused("a pax record without a key", pax(b"5 =a\n"), "key"),
        refused("a pax record without an equals sign", pax(b"5 ab\n"), "key"),
        refused("a pax record of endless digits", pax(&[b'9'; 100]), "without a length"),
        refused("a NUL in a pax path", of([file().pax("path", "a\0b")]), "NUL"),
        refused("a NUL in a pax link", of([Member::symlink("l", "t").pax("linkpath", "a\0b")]), "NUL"),
        refused("a NUL in an attribute's name", of([file().pax("SCHILY.xattr.user.a\0b", "1")]), "NUL"),
        refused("an attribute without a name", of([file().pax("SCHILY.xattr.", "1")]), "no name"),
        inside("an attribute of no name space", of([file().pax("SCHILY.xattr.nonsense", "1")]), "f"),
        refused(
            "an attribute that the kernel refuses",
            of([file().pax("SCHILY.xattr.security.capability", "nonsense")]),
            "cannot set the extended attribute",
        ),
        refused(
            "an attribute that is too large",
            of([file().pax("SCHILY.xattr.user.big", vec![b'x'; 70_000])]),
            "too large",
        ),
        refused("dot dot in a pax path", of([file().pax("path", "../evil")]), "\"..\""),
        refused("dot dot in a GNU long name", long(b"../evil\0"), "\"..\""),
        refused(
            "two pax headers",
            Tar::default().extended(b'x', b"").extended(b'x', b"").add(file()).end(),
            "two extended",
        ),
        refused(
            "two long names",
            Tar::default().extended(b'L', b"a").extended(b'L', b"b").add(file()).end(),
            "two extended",
        ),
        refused(
            "a pax and a GNU name",
            Tar::default()
                .extended(b'x', &pax_records(&[(b"path".to_vec(), b"a".to_vec())]))
                .extended(b'L', b"b")
                .add(file())
                .end(),
            "both name",
        ),
        refused("a pax header without an entry", Tar::default().extended(b'x', b"").end(), "without its entry"),
        refused("a long name without an entry", Tar::default().extended(b'L', b"a").cut(), "without its entry"),
        refused(
            "a global header that renames",
            Tar::default().extended(b'g', &pax_records(&[(b"path".to_vec(), b"evil".to_vec())])).add(file()).end(),
            "global pax header",
        ),
        refused(
            "a global header that resizes",
            Tar::default().extended(b'g', &pax_records(&[(b"size".to_vec(), b"512".to_vec())])).add(file()).end(),
            "global pax header",
        ),
        inside(
            "a global header with a comment",
            {
                Tar::default()
                    .extended(b'g', &pax_records(&[(b"comment".to_vec(), b"made by git".to_vec())]))
                    .add(file())
                    .end()
            },
            "f",
        ),
        refused("an empty name", field(0..1, &[0; 100]), "empty"),
        refused("a size in letters", field(124..136, b"abcdefghijk\0"), "octal"),
        refused("a negative size", field(124..136, &[0xff; 12]), "negative"),
        refused("a size of 90 bits", field(124..136, &[0x81; 12]), "63 bits"),
        refused("an owner that means nobody", of([file().pax("uid", u32::MAX.to_string())]), "out of range"),
        refused("an owner of 64 bits", of([file().pax("gid", "99999999999")]), "out of range"),
        refused("a device out of range", of([Member::node(b'3', "null", (4096, 0))]), "out of range"),
        refused("a type of its own", of([Member::new(b'V', "volume")]), "not one that an image may hold"),
        refused("a member of several volumes", of([Member::new(b'M', "rest")]), "not one that an image may hold"),
    ]
}

/// Sparse files whose maps do not add up.
fn sparse() -> Vec<Hostile> {
    let version_1 = |map: &str, real: &str| {
        let mut data = map.as_bytes().to_vec();
        data.resize(data.len().next_multiple_of(BLOCK).max(BLOCK), 0);
        data.extend_from_slice(&[b'x'; 4]);
        let member = Member { data, ..Member::new(b'0', "s") };
        of([member.pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0").pax("GNU.sparse.realsize", real)])
    };
    let map_0 =
        |map: &str, real: &str| of([Member::file("s", "xxxx").pax("GNU.sparse.map", map).pax("GNU.sparse.size", real)]);
    vec![
        refused("a sparse map that overlaps", map_0("0,2,1,2", "100"), "overlap"),
        refused("a sparse map beyond the file", map_0("98,4", "100"), "behind the file's size"),
        refused("a sparse map of too little", map_0("0,2", "100"), "its sparse map holds"),
        refused("a sparse map that overflows", map_0("9223372036854775807,9223372036854775807", "100"), "sparse map"),
        refused("a sparse map cut in two", map_0("0,4,8", "100"), "without a length"),
        refused("a sparse map of letters", map_0("a,b", "100"), "not a number"),
        refused("a sparse map in the content, endless", version_1("99999999\n", "100"), "fragments"),
        refused("a sparse map in the content, cut", version_1("40\n0\n4\n", "100"), "sparse map"),
        refused("a sparse format of the future", of([Member::file("s", "x").pax("GNU.sparse.major", "2")]), "unknown"),
        refused("a sparse file larger than can be", map_0("0,4", "9223372036854775807"), "cannot set the file's size"),
        refused("a sparse directory", of([Member::directory("d").pax("GNU.sparse.size", "5")]), "not a file"),
        refused("an old sparse file in a new header", of([Member::new(b'S', "s")]), "header that is not GNU's"),
    ]
}

/// Packed archives that are cut, damaged, or bombs.
fn packing() -> Vec<Hostile> {
    let good = of([Member::file("a", (0..100_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())]);
    let (gzipped, zstded) = (gzip(&good), zstd(&good));
    let damaged = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let at = bytes.len() / 2;
        bytes[at..at + 64].fill(0x55);
        bytes
    };
    vec![
        refused("gzip, cut", gzipped[..gzipped.len() / 2].to_vec(), "cut off"),
        refused("gzip, its end cut", gzipped[..gzipped.len() - 4].to_vec(), "cut off"),
        refused("gzip, damaged", damaged(&gzipped), ""),
        refused("gzip with something behind it", [gzipped.clone(), b"something".to_vec()].concat(), "gzip"),
        refused("zstd, cut", zstded[..zstded.len() / 2].to_vec(), "zstd"),
        refused("zstd, damaged", damaged(&zstded), ""),
        refused("gzip in gzip", gzip(&gzipped), "not a tar header"),
        inside("gzip of two members", [gzip(&good[..1000]), gzip(&good[1000..])].concat(), "a"),
    ]
}
