//! Tricks that other unpackers fell for, as their advisories tell: two programs that see two archives, links behind names
//! that change, names that are not what they seem, numbers at their ends.

use crate::archive::{BLOCK, Member, Tar, gzip, header, number, pax_records, seal, zstd};
use crate::archive_hostile::{Hostile, Outcome, inside, of, refused};

/// All of them. `canary` as in [`crate::archive_hostile::corpus`].
pub(crate) fn tricks(canary: &str) -> Vec<Hostile> {
    let mut all = changing_names(canary);
    all.extend(whiteouts(canary));
    all.extend(two_readings());
    all.extend(odd_names());
    all.extend(odd_numbers());
    all.extend(odd_files());
    all.extend(old_sparse());
    all.extend(odd_packing());
    all
}

fn without(name: &'static str, bytes: Vec<u8>, path: &'static str) -> Hostile {
    Hostile { name, bytes, outcome: Outcome::Without(path) }
}

/// Names that mean one thing when they are checked and another when they are used.
fn changing_names(canary: &str) -> Vec<Hostile> {
    let up = "../".repeat(30);
    vec![
        refused(
            "a hard link through a directory that became a symlink",
            of([Member::file("d/bird", "x"), Member::symlink("d", canary), Member::hard_link("l", "d/bird")]),
            "is not there",
        ),
        inside(
            "a file through a directory that became a symlink",
            of([Member::file("d/a", "x"), Member::symlink("d", canary), Member::file("d/evil", "x")]),
            "d",
        ),
        inside(
            "a directory, a symlink and a directory again",
            of([
                Member::directory("d"),
                Member::symlink("d", canary),
                Member::directory("d").mode(0o777),
                Member::file("d/evil", "x"),
            ]),
            "d/evil",
        ),
        inside(
            "a symlink to a symlink that is laid down later",
            of([Member::symlink("a", "b/c"), Member::symlink("b", canary), Member::file("a/evil", "x")]),
            "a",
        ),
        inside(
            "a chain of symlinks that climbs step by step",
            of([
                Member::directory("a/b/c"),
                Member::symlink("a/b/c/up", ".."),
                Member::symlink("a/b/out", format!("c/up/{up}{canary}")),
                Member::file("a/b/out/evil", "x"),
            ]),
            "a/b/out",
        ),
        inside(
            "attributes for a symlink to the canary",
            of([Member::symlink("s", format!("{canary}/bird")).mode(0o777).owner(7, 7).mtime(1)]),
            "s",
        ),
        inside(
            "a hard link of a symlink gets attributes",
            of([
                Member::symlink("s", format!("{canary}/bird")),
                Member::hard_link("h", "s").mode(0o777).owner(7, 7).pax("SCHILY.xattr.user.x", "1"),
            ]),
            "h",
        ),
        inside(
            "a device over a symlink to the canary",
            of([Member::symlink("n", format!("{canary}/bird")), Member::node(b'3', "n", (1, 3))]),
            "n",
        ),
        inside(
            "a fifo over a symlink to the canary",
            of([Member::symlink("n", format!("{canary}/bird")), Member::new(b'6', "n")]),
            "n",
        ),
        refused(
            "a hard link with dot dot in the middle",
            of([Member::file("d/f", "x"), Member::hard_link("l", "d/../d/f")]),
            "\"..\"",
        ),
        inside(
            "one name, a hundred times something else",
            {
                let turns = (0..100).map(|turn| match turn % 4 {
                    0 => Member::file("n", "x"),
                    1 => Member::symlink("n", canary),
                    2 => Member::directory("n"),
                    _ => Member::new(b'6', "n"),
                });
                of(turns.chain([Member::file("n", "last")]))
            },
            "n",
        ),
        inside("one directory, ten thousand times", of((0..10_000).map(|_| Member::directory("d"))), "d"),
        inside(
            "the root's attributes, again and again",
            of([Member::directory("./").mode(0o755), Member::directory("/"), Member::directory(".///.")]),
            "",
        ),
    ]
}

/// Names that hide others, in disguise.
fn whiteouts(canary: &str) -> Vec<Hostile> {
    vec![
        inside(
            "a whiteout of a symlink of the same layer",
            of([Member::symlink("s", canary), Member::file(".wh.s", "")]),
            "s",
        ),
        inside("a whiteout in front of what it names", of([Member::file(".wh.f", ""), Member::file("f", "x")]), "f"),
        without("a whiteout that is a directory", of([Member::directory(".wh.d/")]), ".wh.d"),
        without("a whiteout that is a symlink", of([Member::symlink(".wh.s", canary)]), ".wh.s"),
        without("a whiteout that is a hard link", of([Member::hard_link(".wh.h", "nowhere")]), ".wh.h"),
        without("a whiteout that is a device", of([Member::node(b'4', ".wh.n", (7, 0))]), ".wh.n"),
        without("a whiteout with content", of([Member::file(".wh.c", vec![7; 3000]), Member::file("f", "x")]), ".wh.c"),
        without("an opaque whiteout as a directory", of([Member::file(".wh..wh..opq/x", "x")]), ".wh..wh..opq"),
        without("a whiteout of a whiteout", of([Member::file(".wh..wh.f", "x")]), ".wh..wh.f"),
        inside("a whiteout below a file", of([Member::file("f", "x"), Member::file("f/.wh.x", "")]), "f"),
        inside("overlayfs's own whiteout, a device of zeros", of([Member::node(b'3', "w", (0, 0))]), "w"),
        inside(
            "overlayfs's own attributes",
            of([Member::directory("d")
                .pax("SCHILY.xattr.trusted.overlay.opaque", "y")
                .pax("SCHILY.xattr.trusted.overlay.redirect", "/../../etc")]),
            "d",
        ),
        refused(
            "a hard link to what an opaque whiteout hides, which is not there",
            of([Member::file("d/.wh..wh..opq", ""), Member::hard_link("l", "d/f")]),
            "is not there",
        ),
    ]
}

/// Archives of which two programs see two versions: ours is one of them, or none.
fn two_readings() -> Vec<Hostile> {
    let smuggled = header(&Member::file("smuggled", ""));
    let size = |size: &str| pax_records(&[(b"size".to_vec(), size.as_bytes().to_vec())]);
    vec![
        // The pax size is the member's, not that of the long name between them.
        without(
            "a pax size in front of a long name",
            Tar::default()
                .extended(b'x', &size("512"))
                .extended(b'L', b"shown\0")
                .raw(&header(&Member::file("f", "").size(0)))
                .raw(&smuggled)
                .end(),
            "smuggled",
        ),
        inside(
            "a long name behind a pax header",
            Tar::default().extended(b'x', &size("1")).extended(b'L', b"shown\0").add(Member::file("f", "x")).end(),
            "shown",
        ),
        inside(
            "a long name with something behind its NUL",
            Tar::default().extended(b'L', b"shown\0../evil").add(Member::file("f", "x")).end(),
            "shown",
        ),
        refused(
            "a long name of nothing",
            Tar::default().extended(b'L', b"\0").add(Member::file("f", "x")).end(),
            "empty",
        ),
        inside(
            "two pax paths in one header",
            of([Member::file("f", "x").pax("path", "../evil").pax("path", "shown")]),
            "shown",
        ),
        inside("an empty pax path", of([Member::file("f", "x").pax("path", "")]), "f"),
        refused(
            "a pax size of more than there is",
            of([Member::file("f", "x").pax("size", "1000000")]),
            "in the middle",
        ),
        refused(
            "a pax size of twenty digits",
            of([Member::file("f", "x").pax("size", "18446744073709551616")]),
            "not a number",
        ),
        refused("a pax size with a sign", of([Member::file("f", "x").pax("size", "+1")]), "not a number"),
        refused("a pax size with a blank", of([Member::file("f", "x").pax("size", " 1")]), "not a number"),
        inside("a character set", of([Member::file("f", "x").pax("hdrcharset", "BINARY")]), "f"),
        refused(
            "a pax record whose length counts characters",
            Tar::default().extended(b'x', "13 path=größe\n".as_bytes()).add(Member::file("f", "x")).end(),
            "pax record",
        ),
        refused(
            "a pax record with a leading zero byte",
            Tar::default().extended(b'x', b"\x0011 path=abc\n").add(Member::file("f", "x")).end(),
            "pax record",
        ),
        inside(
            "a thousand global headers",
            (0..1000)
                .fold(Tar::default(), |tar, _| {
                    tar.extended(b'g', &pax_records(&[(b"comment".to_vec(), b"x".to_vec())]))
                })
                .add(Member::file("f", "x"))
                .end(),
            "f",
        ),
        refused(
            "a pax header for a pax header",
            Tar::default().extended(b'x', &size("0")).extended(b'x', &size("1")).add(Member::file("f", "x")).end(),
            "two extended",
        ),
        refused("a pax header of Solaris", of([Member::new(b'X', "x")]), "not one that an image may hold"),
        refused("a dump directory of GNU", of([Member::new(b'D', "d")]), "not one that an image may hold"),
        refused("a long name of an old GNU", of([Member::new(b'N', "n")]), "not one that an image may hold"),
        inside("a contiguous file", of([Member { data: b"x".to_vec(), ..Member::new(b'7', "f") }]), "f"),
    ]
}

/// Names that are not what they seem.
fn odd_names() -> Vec<Hostile> {
    let prefixed = |prefix: &[u8], name: &str| {
        let mut block = header(&Member::file(name, "x"));
        block[345..345 + prefix.len()].copy_from_slice(prefix);
        seal(&mut block);
        Tar::default().raw(&block).data(b"x").end()
    };
    let nested = |depth: usize| of([Member::file(format!("{}f", "d/".repeat(depth)), "x")]);
    vec![
        refused("dot dot in the prefix", prefixed(b"../..", "evil"), "\"..\""),
        inside("an absolute prefix", prefixed(b"/etc", "f"), "etc/f"),
        refused("dot dot cut by a NUL", of([Member::file("..\0/x", "x")]), "\"..\""),
        inside("a name cut by a NUL", of([Member::file("a\0b", "x")]), "a"),
        refused("dot dot between dots", of([Member::file("a/./../b", "x")]), "\"..\""),
        refused("dot dot with many slashes", of([Member::file("a//..//b", "x")]), "\"..\""),
        inside("three dots", of([Member::file(".../x", "x")]), ".../x"),
        inside("dot dot and a blank", of([Member::file(".. /x", "x")]), ".. /x"),
        inside("backslashes", of([Member::file("..\\..\\evil", "x")]), "..\\..\\evil"),
        inside("a drive", of([Member::file("C:/x", "x")]), "C:/x"),
        inside("a line feed and an escape", of([Member::file("a\n\u{1b}[2J", "x")]), "a\n\u{1b}[2J"),
        inside("a turned-round name", of([Member::file("a\u{202e}gpj.exe", "x")]), "a\u{202e}gpj.exe"),
        inside("no UTF-8, and a good name", of([Member::file(b"\xff\xfe\x80", "x"), Member::file("f", "x")]), "f"),
        inside(
            "two normal forms of one name",
            of([Member::file("\u{e9}", "1"), Member::file("e\u{301}", "2")]),
            "e\u{301}",
        ),
        inside("a long form of a slash", of([Member::file(b"a\xc0\xafb", "x"), Member::file("f", "x")]), "f"),
        inside("a file that ends with a slash", of([Member::file("f/", "x")]), "f"),
        inside("a symlink that ends with a slash", of([Member::symlink("s/", "target")]), "s"),
        inside("a thousand directories deep", nested(1000), "d/d/d/d"),
        refused("deeper than the limit", nested(4097), "path_depth"),
        refused("a symlink as deep", of([Member::symlink("l", "d/".repeat(4098))]), "path_depth"),
        refused("a name of more than the limit", of([Member::file("n".repeat((64 << 10) + 1), "x")]), "path_bytes"),
    ]
}

/// Numbers at their ends.
fn odd_numbers() -> Vec<Hostile> {
    let field = |at: usize, bytes: &[u8]| {
        let mut block = header(&Member::file("f", "x"));
        block[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut block);
        Tar::default().raw(&block).data(b"x").end()
    };
    let time = |time: &str| of([Member::file("f", "x").pax("mtime", time)]);
    vec![
        inside("the last second", time("9223372036854775807"), "f"),
        inside("a second before the first", time("-0.5"), "f"),
        inside("the first second", time("-9223372036854775807"), "f"),
        refused("before the first second", time("-9223372036854775808.5"), "mtime"),
        refused("a time with an exponent", time("1e9"), "mtime"),
        refused("a time with two dots", time("1.5.5"), "mtime"),
        refused("a time that is no number", time("nan"), "mtime"),
        inside("a hundred digits behind the dot", time(&format!("1.{}", "9".repeat(100))), "f"),
        inside("a time before 1970 in base 256", field(136, &[0xff; 12]), "f"),
        refused("a time of 90 bits", field(136, &[0x81; 12]), "63 bits"),
        refused("a negative owner", field(108, &[0xff; 8]), "negative"),
        refused("a negative mode", field(100, &[0xff; 8]), "negative"),
        inside("a mode of every bit", field(100, b"7777777\0"), "f"),
        refused("an owner with a sign", field(108, b"-000001\0"), "octal"),
        refused("a size of digits of another base", field(124, b"0000000009a\0"), "octal"),
        refused("a pax owner with a sign", of([Member::file("f", "x").pax("uid", "-1")]), "not a number"),
        inside("the largest owner", of([Member::file("f", "x").pax("uid", (u32::MAX - 1).to_string())]), "f"),
        refused(
            "a device of 64 bits",
            {
                let mut block = header(&Member::node(b'4', "n", (1, 1)));
                number(&mut block[337..345], u64::from(u32::MAX));
                seal(&mut block);
                Tar::default().raw(&block).end()
            },
            "out of range",
        ),
    ]
}

/// Good things that a careless unpacker makes bad.
fn odd_files() -> Vec<Hostile> {
    // Version 2, no flags, CAP_NET_RAW permitted: what the kernel takes.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let with_attributes = |count: usize| {
        (0..count).fold(Member::file("f", "x"), |member, n| member.pax(format!("SCHILY.xattr.user.{n}"), "1"))
    };
    vec![
        inside(
            "setuid and a capability",
            of([Member::file("f", "x").mode(0o4755).pax("SCHILY.xattr.security.capability", capability)]),
            "f",
        ),
        inside("a disk of the host", of([Member::node(b'4', "sda", (8, 0)).mode(0o666)]), "sda"),
        inside("the memory of the host", of([Member::node(b'3', "mem", (1, 1)).mode(0o666)]), "mem"),
        inside("a directory that is setgid and sticky", of([Member::directory("d").mode(0o7777)]), "d"),
        refused("more attributes than the limit", of([with_attributes(513)]), "xattrs"),
        refused(
            "an attribute's name of 256 bytes",
            of([Member::file("f", "x").pax(format!("SCHILY.xattr.user.{}", "n".repeat(251)), "1")]),
            "too long",
        ),
        refused(
            "a fifo with content",
            Tar::default().raw(&header(&Member::new(b'6', "p").size(512))).raw(&[7; BLOCK]).end(),
            "bytes of content",
        ),
        refused(
            "a device with content by pax",
            of([Member::node(b'3', "n", (1, 3)).size(0).pax("size", "512")]),
            "bytes of content",
        ),
    ]
}

/// GNU's old sparse files, whose map stands in the header and behind it.
fn old_sparse() -> Vec<Hostile> {
    let old = |pairs: &[(u64, u64)], real: u64, more: bool, rest: &[u8]| {
        let member = Member { magic: b"ustar  \0", ..Member::new(b'S', "s") };
        let mut block = header(&member.size(4));
        for (n, (offset, len)) in pairs.iter().enumerate() {
            let at = 386 + n * 24;
            number(&mut block[at..at + 12], *offset);
            number(&mut block[at + 12..at + 24], *len);
        }
        block[482] = u8::from(more);
        number(&mut block[483..495], real);
        seal(&mut block);
        Tar::default().raw(&block).raw(rest).data(b"xxxx").end()
    };
    vec![
        inside("an old sparse file", old(&[(0, 4), (100, 0)], 100, false, &[]), "s"),
        refused("an old sparse map that overlaps", old(&[(0, 3), (2, 1)], 100, false, &[]), "overlap"),
        refused("an old sparse map that goes backwards", old(&[(50, 2), (0, 2)], 100, false, &[]), "backwards"),
        refused("an old sparse map beyond the file", old(&[(98, 4)], 100, false, &[]), "behind the file's size"),
        refused("an old sparse map of 63 bits", old(&[(u64::MAX >> 1, 4)], 100, false, &[]), "sparse map"),
        refused("an old sparse map that holds less", old(&[(0, 2)], 100, false, &[]), "its sparse map holds"),
        refused("an old sparse map that goes on and ends", old(&[(0, 4)], 100, true, &[]), ""),
        refused(
            "an old sparse map of a size of 63 bits",
            old(&[(0, 4)], u64::MAX >> 1, false, &[]),
            "set the file's size",
        ),
    ]
}

/// Packings that are not what they seem.
fn odd_packing() -> Vec<Hostile> {
    let good = of([Member::file("a", "x")]);
    let flagged = |flags: u8, extra: &[u8]| [&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3], extra].concat();
    let skippable = |len: u32, bytes: &[u8]| [&[0x50, 0x2a, 0x4d, 0x18], len.to_le_bytes().as_slice(), bytes].concat();
    vec![
        refused("gzip of nothing", gzip(b""), "end mark"),
        refused("a gzip header with an endless name", flagged(8, &[b'n'; 70_000]), "gzip"),
        refused("a gzip header with more extra bytes than there are", flagged(4, &[0xff, 0xff, 1]), "gzip"),
        refused("a gzip header of a method of its own", vec![0x1f, 0x8b, 9, 0, 0, 0, 0, 0, 0, 3], "gzip"),
        refused("two members, the second cut", [gzip(&good), gzip(&good)[..12].to_vec()].concat(), "gzip"),
        inside("a thousand empty members, and a good one", [gzip(b"").repeat(1000), gzip(&good)].concat(), "a"),
        inside("zstd behind a frame to be skipped", [skippable(3, b"abc"), zstd(&good)].concat(), "a"),
        refused("a frame to be skipped, of 4 GiB", skippable(u32::MAX, b"abc"), "zstd"),
        refused("only frames to be skipped", skippable(3, b"abc").repeat(100), "end mark"),
        refused("zstd with a window of terabytes", vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x01, 0x00, 0x00], "zstd"),
        refused("zstd with a dictionary", vec![0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x00, 0x07, 0x01, 0x00, 0x00], "zstd"),
        refused("zstd in gzip", gzip(&zstd(&good)), "archive block"),
        inside("a sea of zeros behind the end", gzip(&[good.clone(), vec![0; 32 << 20]].concat()), "a"),
    ]
}
