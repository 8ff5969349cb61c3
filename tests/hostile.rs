//! Images made to harm: each is refused with one error, or harmless, within limits of time and memory. What watches is a
//! listing of places outside, and of an inode that every case is after.
//!
//! The left column of each case names what it repeats, where that has a number.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::images::{Compression, Image, Layer, sha256};
use support::place::Place;
use support::tree::{difference, watched};
use support::{Said as _, must, program};
use tar::EntryType;

/// For one verb on one image, on a machine that does other things as well.
const LIMIT: Duration = Duration::from_mins(1);
/// A user who is nobody else.
const SOMEBODY: u32 = 64_711;
/// Address space, in KB, of which a large part is only mapped.
const MEMORY: u64 = 3 << 20;

/// A header of 512 bytes with its sum, and content rounded up.
fn entry(name: &[u8], kind: u8, size: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..124 + size.len()].copy_from_slice(size);
    header[136..148].copy_from_slice(b"13727410000\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut header);
    let mut out = header.to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn seal(header: &mut [u8]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn octal(size: usize) -> Vec<u8> {
    format!("{size:011o}\0").into_bytes()
}

fn file(name: &[u8], content: &[u8]) -> Vec<u8> {
    entry(name, b'0', &octal(content.len()), content)
}

fn pax(records: &[u8]) -> Vec<u8> {
    entry(b"pax", b'x', &octal(records.len()), records)
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn archive(parts: &[Vec<u8>]) -> Vec<Layer> {
    let mut bytes = parts.concat();
    bytes.extend([0; 1024]);
    vec![Layer::of(bytes, None)]
}

/// Layers of archives.
fn layers(outside: &str) -> Vec<(&'static str, Vec<Layer>)> {
    let many = |count: u32, one: &dyn Fn(u32) -> Vec<u8>| -> Vec<Vec<u8>> {
        (0..count).map(one).collect()
    };
    let long = |letter: u8, size: usize| vec![letter; size];
    let mut cases = vec![
        (
            "no archive at all (CVE-2021-20291)",
            vec![Layer::of(
                b"not an archive, whatever is said of it".repeat(100),
                None,
            )],
        ),
        (
            "nothing (CVE-2021-20291)",
            vec![Layer::of(Vec::new(), None)],
        ),
        (
            "cut off in a header",
            vec![Layer::of(file(b"f", b"x")[..300].to_vec(), None)],
        ),
        (
            "cut off in a file",
            vec![Layer::of(entry(b"f", b'0', &octal(5000), b"few"), None)],
        ),
        (
            "the root as a link (CVE-2021-29136)",
            vec![
                Layer::new().raw(b"./", EntryType::Symlink, outside),
                Layer::new().file("f", 0o644, "evil"),
            ],
        ),
        (
            "the root as a link, without a slash",
            vec![
                Layer::new().raw(b".", EntryType::Symlink, outside),
                Layer::new().file("f", 0o644, "evil"),
            ],
        ),
        (
            "the root as a file",
            vec![Layer::new().raw(b"/", EntryType::Regular, "")],
        ),
        ("an empty name", archive(&[file(b"", b"x")])),
        (
            "a link, and a file behind it (CVE-2014-6407, CVE-2026-46703)",
            vec![
                Layer::new()
                    .symlink("l", outside)
                    .file("l/f", 0o644, "evil"),
            ],
        ),
        (
            "a directory over a link, closed (CVE-2021-32760, CVE-2026-33056)",
            vec![
                Layer::new().symlink("l", outside),
                Layer::new().dir("l", 0o000),
            ],
        ),
        (
            "a hard link outside (CVE-2014-6407)",
            vec![Layer::new().raw(b"h", EntryType::Link, &format!("{outside}/f"))],
        ),
        (
            "a hard link to itself",
            vec![Layer::new().raw(b"h", EntryType::Link, "h")],
        ),
        (
            "a hard link to a directory",
            vec![Layer::new().dir("d", 0o755).raw(b"h", EntryType::Link, "d")],
        ),
        (
            "a hard link to the root",
            vec![Layer::new().raw(b"h", EntryType::Link, ".")],
        ),
        (
            "a whiteout by a link",
            vec![
                Layer::new().symlink("l", outside),
                Layer::new().whiteout("l", "f"),
            ],
        ),
        (
            "a whiteout of nothing",
            vec![Layer::new().file(".wh.", 0o644, "")],
        ),
        (
            "a whiteout of the root",
            vec![Layer::new().file(".wh..", 0o644, "")],
        ),
        (
            "passwd and group as links outside (CVE-2024-9676)",
            vec![
                Layer::new()
                    .symlink("etc/passwd", &format!("{outside}/f"))
                    .symlink("etc/group", &format!("{outside}/f")),
            ],
        ),
        (
            "shadow as a link outside",
            vec![Layer::new().symlink("etc", outside)],
        ),
        (
            "exports as a link (CVE-2024-1753)",
            vec![Layer::new().symlink("exports", outside)],
        ),
        (
            "files for the host by a link",
            vec![Layer::new().symlink("exports/hostfs", outside)],
        ),
        (
            "a PAX size that hides an entry (CVE-2025-62518)",
            archive(&[
                pax(&record("size", b"1024")),
                entry(b"f", b'0', &octal(0), b""),
                file(b"hidden", b"x"),
                file(b"g", b""),
            ]),
        ),
        (
            "a PAX record whose length lies (CVE-2026-32766)",
            archive(&[pax(b"999 path=x\n"), file(b"f", b"x")]),
        ),
        (
            "a PAX record without a length",
            archive(&[pax(b"path=x\n"), file(b"f", b"x")]),
        ),
        (
            "a PAX record without an end",
            archive(&[pax(b"8 path=x"), file(b"f", b"x")]),
        ),
        (
            "a PAX name with a NUL",
            archive(&[pax(&record("path", b"a\0b")), file(b"f", b"x")]),
        ),
        (
            "a PAX name with a line break",
            archive(&[pax(&record("path", b"a\nb")), file(b"f", b"x")]),
        ),
        (
            "a PAX name upwards",
            archive(&[pax(&record("path", b"../victim/f")), file(b"f", b"x")]),
        ),
        (
            "a negative PAX size",
            archive(&[pax(&record("size", b"-1")), file(b"f", b"x")]),
        ),
        (
            "a PAX header of 100 MB",
            archive(&[
                pax(&record("comment", &long(b'x', 100 << 20))),
                file(b"f", b"x"),
            ]),
        ),
        (
            "20 000 PAX records",
            archive(&[
                pax(&(0..20_000)
                    .flat_map(|n| record(&format!("SCHILY.xattr.user.n{n}"), b"x"))
                    .collect::<Vec<u8>>()),
                file(b"f", b"x"),
            ]),
        ),
        (
            "an attribute of 1 MB",
            archive(&[
                pax(&record("SCHILY.xattr.user.big", &long(b'x', 1 << 20))),
                file(b"f", b"x"),
            ]),
        ),
        (
            "a name of 4 MB",
            archive(&[
                entry(
                    b"././@LongLink",
                    b'L',
                    &octal(4 << 20),
                    &long(b'n', 4 << 20),
                ),
                file(b"f", b"x"),
            ]),
        ),
        (
            "a link target of 4 MB",
            archive(&[
                entry(
                    b"././@LongLink",
                    b'K',
                    &octal(4 << 20),
                    &long(b't', 4 << 20),
                ),
                entry(b"l", b'2', &octal(0), b""),
            ]),
        ),
        (
            "20 000 levels",
            archive(&[
                pax(&record("path", &b"d/".repeat(20_000))),
                file(b"f", b"x"),
            ]),
        ),
        (
            "1 500 levels",
            archive(&[
                pax(&record(
                    "path",
                    &[b"d/".repeat(1_500), b"f".to_vec()].concat(),
                )),
                file(b"f", b"x"),
            ]),
        ),
        (
            "a negative size",
            archive(&[entry(b"f", b'0', &[0xff; 12], b"")]),
        ),
        (
            "a size of 2^62",
            archive(&[entry(
                b"f",
                b'0',
                &[0x80, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0],
                b"",
            )]),
        ),
        (
            "a size in letters",
            archive(&[entry(b"f", b'0', b"xyzxyzxyzxy\0", b"")]),
        ),
        (
            "100 000 opaque directories (CVE-2026-95838)",
            archive(&many(100_000, &|n| {
                file(format!("d{}/.wh..wh..opq", n % 1000).as_bytes(), b"")
            })),
        ),
        (
            "100 000 whiteouts",
            archive(&many(100_000, &|n| {
                file(format!("a/b/.wh.f{n}").as_bytes(), b"")
            })),
        ),
        (
            "one name 20 000 times",
            archive(&many(20_000, &|n| file(b"same", n.to_string().as_bytes()))),
        ),
        (
            "one name as all kinds",
            vec![
                Layer::new()
                    .file("x", 0o644, "1")
                    .dir("x", 0o755)
                    .symlink("x", outside)
                    .fifo("x")
                    .file("x", 0o644, "2"),
                Layer::new().dir("x", 0o755).file("x/y", 0o644, "3"),
            ],
        ),
        (
            "names that are not UTF-8",
            vec![Layer::new().raw(b"\xff\xfe", EntryType::Regular, "").raw(
                b"d\xff/x",
                EntryType::Regular,
                "",
            )],
        ),
        (
            "a link target that is not UTF-8",
            archive(&[{
                let mut link = entry(b"l", b'2', &octal(0), b"");
                link[157..160].copy_from_slice(b"\xff\xfe/");
                seal(&mut link[..512]);
                link
            }]),
        ),
        (
            "kinds that nobody knows",
            archive(&[
                entry(b"a", b'V', &octal(0), b""),
                entry(b"b", b'M', &octal(0), b""),
                entry(b"c", b'Z', &octal(3), b"abc"),
            ]),
        ),
        (
            "a sparse file that claims 8 EB",
            archive(&[{
                let mut sparse = entry(b"s", b'S', &octal(512), &[7; 512]);
                sparse[386..398].copy_from_slice(b"00000000000\0");
                sparse[398..410].copy_from_slice(b"00000001000\0");
                sparse[483..495].copy_from_slice(b"77777777777\0");
                seal(&mut sparse[..512]);
                sparse
            }]),
        ),
        (
            "times and owners out of range",
            archive(&[
                pax(&[
                    record("mtime", b"99999999999999999999"),
                    record("uid", b"99999999999"),
                    record("gid", b"-5"),
                ]
                .concat()),
                file(b"f", b"x"),
            ]),
        ),
        (
            "devices of large numbers",
            vec![Layer::new().device("d", EntryType::Char, 0o7_777_777, 0o7_777_777)],
        ),
        (
            "an entry named like a whiteout of itself",
            vec![
                Layer::new()
                    .file("a", 0o644, "x")
                    .file(".wh.a", 0o644, "")
                    .file("a/.wh.a", 0o644, ""),
            ],
        ),
        // Decompression.
        (
            "a gzip of 1 : 1000 (CVE-2023-0821)",
            archive(&[entry(b"bomb", b'0', &octal(300 << 20), &vec![0; 300 << 20])]),
        ),
        (
            "gzip with garbage after it",
            vec![Layer::of(
                file(b"f", b"x"),
                Some({
                    let mut packed = gzip(&file(b"f", b"x"));
                    packed.extend(b"garbage");
                    packed
                }),
            )],
        ),
        (
            "gzip cut off",
            vec![Layer::of(
                file(b"f", b"x"),
                Some({
                    let packed = gzip(&file(b"f", b"x"));
                    packed[..packed.len() / 2].to_vec()
                }),
            )],
        ),
        (
            "gzip with a wrong sum",
            vec![Layer::of(
                file(b"f", b"x"),
                Some({
                    let mut packed = gzip(&file(b"f", b"x"));
                    let at = packed.len() - 6;
                    packed[at] ^= 1;
                    packed
                }),
            )],
        ),
        (
            "a diff_id of other bytes",
            vec![Layer::of(
                file(b"f", b"other"),
                Some(gzip(&file(b"f", b"x"))),
            )],
        ),
        (
            "a zstd window of 2 GB",
            vec![
                Layer::of(
                    file(b"f", b"x"),
                    Some(vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00]),
                )
                .compression(Compression::Zstd),
            ],
        ),
        (
            "zstd of many frames",
            vec![
                Layer::of(
                    b"x".repeat(50_000),
                    Some(
                        (0..50_000)
                            .flat_map(|_| zstd::stream::encode_all(&b"x"[..], 1).unwrap())
                            .collect(),
                    ),
                )
                .compression(Compression::Zstd),
            ],
        ),
    ];
    cases.push((
        "1 000 layers",
        (0..1000)
            .map(|n| Layer::new().file(&format!("f{n}"), 0o644, "x"))
            .collect(),
    ));
    cases
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn blob(layout: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    layout.join("blobs/sha256").join(hex)
}

/// Write a blob of a layout: its digest and size.
fn put(layout: &Path, bytes: &[u8]) -> (String, usize) {
    let digest = sha256(bytes);
    std::fs::write(blob(layout, &digest), bytes).unwrap();
    (digest, bytes.len())
}

/// A good layout whose manifest or config is changed.
fn layout(at: &Path, change: impl FnOnce(&mut Value, &mut Value)) {
    Image::new()
        .layer(Layer::new().file("f", 0o644, "x"))
        .write(at);
    let read =
        |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &Value| blob(at, digest.as_str().unwrap());
    let put = |value: &Value| put(at, &serde_json::to_vec(value).unwrap());
    let mut index = read(&at.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]["digest"]));
    let mut config = read(&blob(&manifest["config"]["digest"]));
    let before = config.clone();
    change(&mut manifest, &mut config);
    if config != before {
        let (digest, size) = put(&config);
        manifest["config"]["digest"] = digest.into();
        manifest["config"]["size"] = size.into();
    }
    let (digest, size) = put(&manifest);
    index["manifests"][0]["digest"] = digest.into();
    index["manifests"][0]["size"] = size.into();
    std::fs::write(at.join("index.json"), index.to_string()).unwrap();
}

type Change = Box<dyn FnOnce(&mut Value, &mut Value) + Send>;

/// Images whose JSON is wrong.
fn documents() -> Vec<(&'static str, Change)> {
    fn change(what: impl FnOnce(&mut Value, &mut Value) + Send + 'static) -> Change {
        Box::new(what)
    }
    vec![
        (
            "a digest with a path (CVE-2024-3727)",
            change(|manifest, _| {
                manifest["layers"][0]["digest"] = "sha256:../../../../etc/passwd".into();
            }),
        ),
        (
            "a digest of no kind",
            change(|manifest, _| manifest["layers"][0]["digest"] = "md5:00".into()),
        ),
        (
            "an empty digest",
            change(|manifest, _| manifest["layers"][0]["digest"] = "".into()),
        ),
        (
            "a config digest with a path",
            change(|manifest, _| manifest["config"]["digest"] = "sha256:/etc/shadow".into()),
        ),
        (
            "a negative size",
            change(|manifest, _| manifest["layers"][0]["size"] = (-1).into()),
        ),
        (
            "a size of 2^63 (CVE-2026-34155)",
            change(|manifest, _| {
                manifest["layers"][0]["size"] = json!(9_223_372_036_854_775_808_u64);
            }),
        ),
        (
            "a size that lies",
            change(|manifest, _| manifest["layers"][0]["size"] = 1.into()),
        ),
        (
            "layers that are no list",
            change(|manifest, _| manifest["layers"] = json!({"a": 1})),
        ),
        (
            "no layers",
            change(|manifest, _| manifest["layers"] = json!([])),
        ),
        (
            "manifest and index at once (CVE-2021-41190)",
            change(
                |manifest, _| manifest["manifests"] = json!([{"digest": sha256(b""), "size": 0, "mediaType": "application/vnd.oci.image.manifest.v1+json"}]),
            ),
        ),
        (
            "a manifest that says it is an index (CVE-2021-41190)",
            change(|manifest, _| {
                manifest["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
            }),
        ),
        (
            "a manifest of 30 MB",
            change(|manifest, _| manifest["annotations"] = json!({"a": "x".repeat(30 << 20)})),
        ),
        (
            "a config of 100 MB",
            change(|_, config| config["config"] = json!({"Env": ["x".repeat(100 << 20)]})),
        ),
        (
            "100 000 layers that are one",
            change(|manifest, config| {
                let (layer, id) = (
                    manifest["layers"][0].clone(),
                    config["rootfs"]["diff_ids"][0].clone(),
                );
                manifest["layers"] = vec![layer; 100_000].into();
                config["rootfs"]["diff_ids"] = vec![id; 100_000].into();
            }),
        ),
        (
            "fewer diff_ids than layers",
            change(|_, config| config["rootfs"]["diff_ids"] = json!([])),
        ),
        (
            "diff_ids of no kind",
            change(|_, config| config["rootfs"]["diff_ids"] = json!(["../../x"])),
        ),
        (
            "no rootfs",
            change(|_, config| config["rootfs"] = Value::Null),
        ),
        (
            "a config that is null",
            change(|_, config| *config = Value::Null),
        ),
        (
            "a config that is a list",
            change(|_, config| *config = json!([1, 2])),
        ),
        (
            "a deep document",
            change(|_, config| {
                let mut deep = json!(1);
                for _ in 0..120 {
                    deep = json!([deep]);
                }
                config["config"] = json!({"Labels": deep});
            }),
        ),
    ]
}

/// Run a verb within its limits; how long it took and whether the image was taken.
fn run(place: &Place, what: &str, words: &[&str]) -> (Duration, bool) {
    let start = Instant::now();
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "ulimit -v $0; limit=$1; shift; exec timeout -s KILL $limit \"$@\"",
            &MEMORY.to_string(),
            &LIMIT.as_secs().to_string(),
        ])
        .current_dir(place.directory())
        .env("ATOMIC_RS_CONFIG", place.path("config.toml"));
    if words[0] == "rootless" {
        // By somebody, with a store of their own.
        let home = place.path("home");
        std::fs::create_dir_all(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        let ids = [format!("--reuid={SOMEBODY}"), format!("--regid={SOMEBODY}")];
        command.arg("setpriv").args(ids).arg("--clear-groups");
        command.env("HOME", home);
    } else {
        command.env("ATOMIC_OSTREE_CHECKOUT_PATH", place.path("store"));
    }
    let output = command.arg(program()).args(words).output().unwrap();
    let took = start.elapsed();
    let said = output.err();
    assert!(
        matches!(output.code(), 0..=2),
        "{what}: {words:?}: {:?} after {took:?}: {said}",
        output.status
    );
    assert!(!said.contains("panicked"), "{what}: {said}");
    assert!(
        output.code() == 0 || !said.trim().is_empty(),
        "{what}: nothing was said"
    );
    assert!(
        output.code() == 0 || said.len() < 4000,
        "{what}: {} bytes were said",
        said.len()
    );
    (took, output.code() == 0)
}

/// An image, which is made in an empty directory.
type Case = (&'static str, Box<dyn FnOnce(&Path) + Send>);

fn cases(outside: &str) -> Vec<Case> {
    let mut out: Vec<Case> = Vec::new();
    for (what, layers) in layers(outside) {
        let image = layers.into_iter().fold(Image::new(), Image::layer);
        let make = move |at: &Path| {
            image.write(at);
        };
        out.push((what, Box::new(make)));
    }
    for (what, change) in documents() {
        out.push((what, Box::new(move |at| layout(at, change))));
    }
    // Indexes of indexes (GO-2026-6597), and one of 20 MB.
    for (what, width) in [
        ("an index of itself and indexes", 3),
        ("an index of 100 000", 100_000),
    ] {
        out.push((what, Box::new(move |at| indexes(at, width))));
    }
    out
}

fn indexes(at: &Path, width: usize) {
    layout(at, |_, _| {});
    let mut inner: Value =
        serde_json::from_slice(&std::fs::read(at.join("index.json")).unwrap()).unwrap();
    for _ in 0..20 {
        let (digest, size) = put(at, inner.to_string().as_bytes());
        let one = json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": size});
        inner = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": vec![one; 3]});
    }
    inner["manifests"] = vec![inner["manifests"][0].clone(); width].into();
    std::fs::write(at.join("index.json"), inner.to_string()).unwrap();
}

#[derive(Default)]
struct Found {
    cases: u32,
    taken: u32,
    made: u32,
    slowest: (Duration, &'static str),
}

/// Every verb on one image, with what may not change beside, and how that is.
fn check(place: &Place, (victim, before): (&Path, &str), (what, make): Case, found: &Mutex<Found>) {
    let (at, root) = (place.path("layout"), place.path("root"));
    make(&at);
    found.lock().unwrap().cases += 1;
    let plain = format!("oci:{}", at.display());
    for words in [
        vec!["pull", &plain],
        vec!["bootstrap", "--quiet", "--force", &plain, "./root"],
        vec!["archive", "save", &plain, "./saved"],
        // This mode changes files and links of the tree.
        vec!["rootless", "create", "--mode", "F1", &plain],
    ] {
        let (took, is_taken) = run(place, what, &words);
        println!("{took:?} {is_taken} {} {what}", words[0]);
        let mut found = found.lock().unwrap();
        if took > found.slowest.0 {
            found.slowest = (took, what);
        }
        found.taken += u32::from(is_taken && words[0] == "pull");
        found.made += u32::from(is_taken && words[0] == "rootless");
        drop(found);
        let after = watched(victim);
        assert!(
            after == before,
            "{what}: {words:?}: {}",
            difference(&after, before)
        );
    }
    if root.exists() {
        let found = must(
            Command::new("find")
                .arg(&root)
                .arg("-samefile")
                .arg(victim.join("f")),
        );
        assert!(found.is_empty(), "{what}: {found}");
    }
    for made in [root, place.path("saved"), place.path("home"), at] {
        let _ = std::fs::remove_dir_all(made);
    }
}

#[test]
fn hostile_images_are_refused_or_harmless_within_limits() {
    // Two at a time, each with stores of its own.
    let places = ["hostile"; 2].map(Place::new);
    for place in &places {
        std::fs::write(place.path("config.toml"), "max_layer_bytes = 200000000\n").unwrap();
    }
    let victim = places[0].path("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("f"), "of the host").unwrap();
    let before = watched(&victim);
    let queue = Mutex::new(cases(&victim.display().to_string()).into_iter());
    let found = Mutex::new(Found::default());
    std::thread::scope(|scope| {
        for place in &places {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(case) = next else {
                        return;
                    };
                    check(place, (&victim, &before), case, &found);
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    println!(
        "{} hostile images, {} of them harmless and taken, 0 escapes, 0 limits overrun; slowest: {:?}, {}",
        found.cases, found.taken, found.slowest.0, found.slowest.1
    );
    assert!(
        found.taken > 10 && found.made > 10,
        "hardly anything was taken: is it refused for what it is?"
    );
    // The stores are whole, and take a good image.
    for place in &places {
        let repo = place.path("store/.storage/ostree");
        must(
            Command::new("ostree")
                .args(["fsck", "--quiet"])
                .arg(format!("--repo={}", repo.display())),
        );
        let at = place.path("layout");
        layout(&at, |_, _| {});
        let good = format!("oci:{}", at.display());
        assert!(run(place, "a good one", &["pull", &good]).1);
    }
}
