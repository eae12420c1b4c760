//! Every limit of an import: at the limit it passes, one above it is refused, and the refusal says which field to raise.

use std::fs::File;
use std::os::fd::AsFd;

use crate::archive::{Member, Tar, gzip, pax_records, zstd};
use crate::archive_layout::{Layout, Packed, host, one_image};
use crate::archive_pool::request;
use tempfile::TempDir;
use thinsnap::config::{Config, Overrides};
use thinsnap::error::{Error, ErrorKind};
use thinsnap::image::{ImportRequest, Limits, apply_layer, inspect};
use thinsnap_pool::ByteCount;

/// Lays a layer down within limits.
fn lay_down(bytes: &[u8], limits: &Limits) -> Result<u64, Error> {
    let dir = TempDir::new().unwrap();
    let (archive, root) = (dir.path().join("archive"), dir.path().join("root"));
    std::fs::write(&archive, bytes).unwrap();
    std::fs::create_dir(&root).unwrap();
    apply_layer(&archive, File::open(&root).unwrap().as_fd(), limits).map(|laid| laid.entries)
}

/// Looks into an archive of images within limits.
fn look(bytes: &[u8], limits: &Limits) -> Result<usize, Error> {
    let dir = TempDir::new().unwrap();
    let (source, work) = (dir.path().join("archive"), dir.path().join("work"));
    std::fs::write(&source, bytes).unwrap();
    std::fs::create_dir(&work).unwrap();
    let looked = inspect(&ImportRequest { limits: limits.clone(), ..request(&source, "it") }, &work);
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0, "a temporary file is left");
    looked.map(|image| image.layers.len())
}

/// The refusal is the archive's fault and names the field.
#[track_caller]
fn assert_over(result: Result<impl std::fmt::Debug, Error>, field: &str) {
    let error = result.expect_err(field);
    assert_eq!(error.kind(), ErrorKind::BadArchive, "{error}");
    let cure = format!("raise `{field}` in the table [import]");
    assert!(error.to_string().contains(&cure), "{error}");
}

/// The first passes, the second is refused for this field.
#[track_caller]
fn assert_edge<T: std::fmt::Debug>(field: &str, at: Result<T, Error>, above: Result<T, Error>) {
    at.unwrap_or_else(|error| panic!("{field}: at the limit: {error}"));
    assert_over(above, field);
}

fn files(count: usize) -> Vec<u8> {
    (0..count).fold(Tar::default(), |tar, n| tar.add(Member::file(format!("f{n}"), "x"))).end()
}

fn one(member: Member) -> Vec<u8> {
    Tar::default().add(member).end()
}

#[test]
fn root_a_layer_is_laid_down_up_to_each_limit_and_no_further() {
    let limits = Limits::default();
    let few = Limits { entries: 3, ..limits.clone() };
    assert_edge("entries", lay_down(&files(3), &few), lay_down(&files(4), &few));

    let short = Limits { path_bytes: 200, ..limits.clone() };
    let named =
        |len: usize| one(Member::directory(format!("{}/{}", "a".repeat(len / 2 - 1), "b".repeat(len - len / 2))));
    assert_edge("path_bytes", lay_down(&named(200), &short), lay_down(&named(201), &short));
    let linked = |len: usize| one(Member::symlink("l", "a".repeat(len)));
    assert_edge("path_bytes", lay_down(&linked(200), &short), lay_down(&linked(201), &short));

    let flat = Limits { path_depth: 3, ..limits.clone() };
    assert_edge(
        "path_depth",
        lay_down(&one(Member::file("./a/b/c/file", "x")), &flat),
        lay_down(&one(Member::file("./a/b/c/d/file", "x")), &flat),
    );

    let headers = Limits { header_bytes: 900, ..limits.clone() };
    let padded = |total: usize| {
        let mut records = (0..total).map(|len| pax_records(&[(b"comment".to_vec(), vec![b'x'; len])]));
        let records = records.rfind(|records| records.len() == total).unwrap();
        Tar::default().extended(b'x', &records).add(Member::file("f", "x")).end()
    };
    assert_edge("header_bytes", lay_down(&padded(900), &headers), lay_down(&padded(901), &headers));

    let attributes = Limits { xattrs: 3, xattr_bytes: 100, ..limits.clone() };
    let with = |count: usize, len: usize| {
        let member = (0..count)
            .fold(Member::file("f", "x"), |member, n| member.pax(format!("SCHILY.xattr.user.n{n}"), vec![b'x'; len]));
        one(member)
    };
    assert_edge("xattrs", lay_down(&with(3, 1), &attributes), lay_down(&with(4, 1), &attributes));
    assert_edge("xattr_bytes", lay_down(&with(1, 100), &attributes), lay_down(&with(1, 101), &attributes));

    let torn = Limits { sparse_fragments: 2, ..limits.clone() };
    let sparse =
        |map: &str, data: &str| one(Member::file("s", data).pax("GNU.sparse.map", map).pax("GNU.sparse.size", "99"));
    assert_edge(
        "sparse_fragments",
        lay_down(&sparse("0,1,9,1", "xx"), &torn),
        lay_down(&sparse("0,1,9,1,20,1", "xxx"), &torn),
    );

    let directories = |count: usize| (0..count).fold(Tar::default(), |tar, _| tar.add(Member::directory("d"))).end();
    let small = Limits { directory_bytes: 1000, ..limits.clone() };
    // The same directory again and again: it takes memory each time, and none of the file system.
    assert_edge("directory_bytes", lay_down(&directories(10), &small), lay_down(&directories(100), &small));
}

#[test]
fn root_a_layer_unpacks_up_to_each_limit_and_no_further() {
    let zeros = |len: usize| one(Member::file("zeros", vec![0; len]));
    let plain = zeros(1 << 20);
    let total = |bytes: usize| Limits { total: ByteCount(bytes as u64), ..Limits::default() };
    for pack in [|bytes: &[u8]| bytes.to_vec(), |bytes: &[u8]| gzip(bytes), |bytes: &[u8]| zstd(bytes)] {
        let packed = pack(&plain);
        assert_edge("total", lay_down(&packed, &total(plain.len())), lay_down(&packed, &total(plain.len() - 1)));
    }
    let packed = gzip(&plain);
    let real = (plain.len() / packed.len()) as u64;
    let ratio = |ratio: u64, free: u64| Limits { ratio, ratio_free: ByteCount(free), ..Limits::default() };
    assert_edge("ratio", lay_down(&packed, &ratio(real + 1, 0)), lay_down(&packed, &ratio(real - 1, 0)));
    // What is free of the ratio is not held against it.
    lay_down(&packed, &ratio(1, plain.len() as u64)).unwrap();
}

#[test]
fn an_archive_of_images_is_read_up_to_each_limit_and_no_further() {
    let layers = |count: usize| -> Vec<Packed> { (0..count).map(|n| Packed::plain(files(n + 1))).collect() };
    let limits = Limits::default();
    let image = |count: usize| one_image(&layers(count), |_, _| {}).tar();
    let two = Limits { layers: 2, ..limits.clone() };
    assert_edge("layers", look(&image(2), &two), look(&image(3), &two));

    // One layer: its blob, configuration, manifest, index.json, oci-layout.
    let members = |members: usize| Limits { members, ..limits.clone() };
    assert_edge("members", look(&image(1), &members(5)), look(&image(1), &members(4)));

    let longest = one_image(&layers(1), |_, _| {})
        .files
        .iter()
        .filter(|(path, bytes)| !path.ends_with("oci-layout") && bytes.first() == Some(&b'{'))
        .map(|(_, bytes)| bytes.len() as u64)
        .max()
        .unwrap();
    let documents_of = |document_bytes: u64| Limits { document_bytes, ..limits.clone() };
    assert_edge("document_bytes", look(&image(1), &documents_of(longest)), look(&image(1), &documents_of(longest - 1)));

    let nested = |depth: usize| {
        let mut layout = Layout::default();
        let mut top = layout.image(("linux", host()), &layers(1), |_, _| {});
        for _ in 0..depth {
            top = layout.index(&[top]);
        }
        layout.name(top, "it").end().tar()
    };
    let deep = Limits { index_depth: 2, ..limits.clone() };
    assert_edge("index_depth", look(&nested(2), &deep), look(&nested(3), &deep));

    // The manifest is found (1) and read with its configuration (2).
    let documents = |documents: usize| Limits { documents, ..limits.clone() };
    assert_edge("documents", look(&nested(0), &documents(3)), look(&nested(0), &documents(2)));

    // An index that names the same children again and again, in an index that does the same.
    let mut layout = Layout::default();
    let manifest = layout.image(("linux", "riscv64"), &layers(1), |_, _| {});
    let wide = layout.index(&vec![manifest; 999]);
    let wider = layout.index(&vec![wide; 999]);
    let bomb = layout.name(wider, "it").end().tar();
    assert_over(look(&bomb, &limits), "documents");

    let packed = zstd(&one_image(&[Packed::plain(one(Member::file("zeros", vec![0; 1 << 20])))], |_, _| {}).tar());
    let (tight, free) = (Limits { ratio: 10, ratio_free: ByteCount(1 << 19), ..limits.clone() }, limits.clone());
    assert_edge("ratio", look(&packed, &free), look(&packed, &tight));
    let total = |bytes: u64| Limits { total: ByteCount(bytes), ..limits.clone() };
    assert_edge("total", look(&packed, &total(2 << 20)), look(&packed, &total(1 << 20)));
}

#[test]
fn every_limit_is_a_field_of_the_configuration() {
    let parse = |text: &str| Config::parse(text, Overrides::default());
    let fields = "document_bytes = 1\ndocuments = 2\nindex_depth = 3\nmembers = 4\nlayers = 5\nentries = 6\n\
        path_bytes = 7\npath_depth = 8\ndirectory_bytes = 9\nheader_bytes = 10\nxattrs = 11\nxattr_bytes = 12\n\
        sparse_fragments = 13\nratio = 14\nratio_free = '15K'\ntotal = '16M'\n";
    let expected = Limits {
        document_bytes: 1,
        documents: 2,
        index_depth: 3,
        members: 4,
        layers: 5,
        entries: 6,
        path_bytes: 7,
        path_depth: 8,
        directory_bytes: 9,
        header_bytes: 10,
        xattrs: 11,
        xattr_bytes: 12,
        sparse_fragments: 13,
        ratio: 14,
        ratio_free: ByteCount(15 << 10),
        total: ByteCount(16 << 20),
    };
    assert_eq!(parse(&format!("[import]\n{fields}")).unwrap().import, expected);
    assert_eq!(parse("").unwrap().import, Limits::default());
    let refused = |text: &str| parse(text).unwrap_err().to_string();
    assert!(refused("[import]\nlayers = 0").contains("field `import.layers`: a limit of zero"), "zero");
    assert!(refused("[import]\ntotal = 'much'").contains("import.total"), "no size");
    assert!(refused("[import]\nlayer = 3").contains("unknown field `import.layer`"), "misspelt");
    refused("[import]\nlayers = -1");
}
