//! Root filesystems: directories and chains of disk images, compared with what umoci unpacks of the same image.

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::images::{Compression, Image, Layer};
use support::place::Place;
use support::tree::{difference, listing, watched};
use support::{Host, Registry, Said as _, User, must, program};
use tar::EntryType;

/// `cap_net_raw+ep`. Source: linux/capability.h, version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// `user::rw-,user:7:r--,group::r--,mask::r--,other::r--`. Source: `linux/posix_acl_xattr.h`.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255,
    255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

/// What umoci makes of an image, as a listing.
fn reference(place: &Place, layout: &Path) -> String {
    let (named, bundle) = (place.path("named"), place.path("bundle"));
    // It reads no image without a tag.
    must(
        Command::new("skopeo")
            .args(["copy", "--quiet"])
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("oci:{}:latest", named.display())),
    );
    must(
        Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:latest", named.display()))
            .arg(&bundle),
    );
    let listing = undated(&listing(&bundle.join("rootfs")));
    std::fs::remove_dir_all(&bundle).unwrap();
    std::fs::remove_dir_all(&named).unwrap();
    listing
}

/// Directories that no layer declares are as old as they are on the disk there, and begin with 1970 in ours.
fn undated(listing: &str) -> String {
    const OF_LAYERS: &str = "1600000000.0000000000";
    let line = |line: &str| -> String {
        let word = |word: &str| match word.split_once('.') {
            Some((seconds, _))
                if seconds.parse().is_ok_and(|n: u64| n > 1_000_000_000) && word != OF_LAYERS =>
            {
                "0.0000000000".to_owned()
            }
            _ => word.to_owned(),
        };
        line.split(' ').map(word).collect::<Vec<_>>().join(" ") + "\n"
    };
    listing.lines().map(line).collect()
}

/// Three layers with what is seldom: kinds, names, attributes, and every way to take something away.
fn layers() -> [Layer; 3] {
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(200));
    let base = Layer::new()
        .dir("etc", 0o755)
        .file(
            "etc/shadow",
            0o640,
            "rootless:x:1::::::\nroot:*:19000:0:99999:7:::\nweb:!:1::::::\n",
        )
        .file("bin/tool", 0o4755, "tool")
        .xattr("security.capability", &CAPABILITY)
        .file("bin/ping", 0o755, "ping")
        .xattr("system.posix_acl_access", &ACL)
        .file("etc/shared", 0o644, "by an acl")
        .xattr("user.note", b"kept")
        .owned_dir("srv/web", 0o2750, 33)
        .owned_file("srv/web/page", 0o640, 33, "page")
        .hardlink("srv/web/again", "srv/web/page")
        .dir("dev", 0o755)
        .device("dev/null", EntryType::Char, 1, 3)
        .device("dev/disk", EntryType::Block, 8, 17)
        .fifo("run/pipe")
        .file("home/dev/kept", 0o644, "below a directory named dev")
        .file(&long, 0o600, "a long name")
        .file("ünï/cödé", 0o644, "of other alphabets")
        .raw(b"odd-\xff\xfe-name", EntryType::Regular, "")
        .symlink("dangling", "/nowhere")
        .symlink("to-dir", "etc")
        .dir("becomes-link", 0o755)
        .file("becomes-link/file", 0o644, "gone later")
        .dir("opaque/deep", 0o700)
        .file("opaque/deep/old", 0o644, "gone later")
        .file("opaque/old", 0o644, "gone later")
        .dir("closed", 0o000)
        .file("closed/inside", 0o644, "nobody sees it")
        .file("replaced", 0o644, "a file that becomes a directory")
        .file("hole", 0o644, vec![0; 300_000]);
    let second = Layer::new()
        .file(".wh.dangling", 0o644, "")
        .file(".wh.to-dir", 0o644, "")
        .whiteout("srv/web", "page")
        .symlink("becomes-link", "/etc")
        .dir("opaque", 0o711)
        .file("opaque/.wh..wh..opq", 0o644, "")
        .file("opaque/new", 0o644, "stays")
        .dir("replaced", 0o755)
        .file("replaced/by", 0o644, "what is in it")
        .file("etc/added", 0o644, "below a directory that is not declared");
    let third = Layer::new()
        .file("srv/web/new", 0o644, "new")
        .whiteout("opaque", "new")
        .file("hole", 0o644, "no hole any more");
    [base, second, third]
}

fn image(count: usize) -> Image {
    layers()
        .into_iter()
        .take(count)
        .fold(Image::new(), Image::layer)
}

#[test]
fn a_directory_is_what_umoci_unpacks() {
    let place = Place::new("bootstrap");
    for compression in [Compression::Gzip, Compression::Zstd] {
        let layout = place.path("layout");
        let _ = std::fs::remove_dir_all(&layout);
        image(3).write(&layout);
        let wanted = reference(&place, &layout);
        assert!(wanted.contains("dev/null 1:3"), "{wanted}");
        // Zstandard is too new for the reference; the layers are the same.
        if compression == Compression::Zstd {
            std::fs::remove_dir_all(&layout).unwrap();
            let layers = layers().map(|layer| layer.compression(compression));
            let image = layers.into_iter().fold(Image::new(), Image::layer);
            image.write(&layout);
        }
        place.ok("--force oci:./layout ./root");
        let found = listing(&place.path("root"));
        assert!(found == wanted, "{}", difference(&found, &wanted));
    }
    assert!(!place.path("root/becomes-link").join("file").exists());
    // From the store, and as JSON.
    let images = Command::new(program())
        .args(["images", "list", "--json"])
        .env("ATOMIC_OSTREE_CHECKOUT_PATH", place.path("store"))
        .output()
        .unwrap();
    let images: Value = serde_json::from_str(&images.out()).unwrap();
    let word = |key: &str| images[0][key].as_str().unwrap().to_owned();
    let name = format!("{}:{}", word("repo"), word("tag"));
    let said: Value =
        serde_json::from_str(&place.ok(&format!("--json {name} ./again"))).unwrap_or_default();
    let paths = said["paths"].as_array().map(Vec::len);
    assert_eq!(
        (paths, said["left_out"].as_u64()),
        (Some(1), Some(0)),
        "{said}"
    );
    // Nothing of the store is shared with it.
    std::fs::write(place.path("root/srv/web/new"), "changed").unwrap();
    assert_eq!(
        std::fs::read(place.path("again/srv/web/new")).unwrap(),
        b"new"
    );
}

/// A disk image, mounted while this is there.
struct Mounted {
    raw: PathBuf,
    path: PathBuf,
}

impl Mounted {
    fn new(image: &Path, path: PathBuf) -> Self {
        let raw = image.with_extension("raw-copy");
        must(Command::new("qemu-img").args(["check", "-q"]).arg(image));
        must(
            Command::new("qemu-img")
                .args(["convert", "-O", "raw"])
                .args([image, &raw]),
        );
        must(Command::new("e2fsck").arg("-fn").arg(&raw));
        // Who mounts it has nothing to recover.
        let said = must(Command::new("dumpe2fs").arg("-h").arg(&raw));
        let is_clean =
            |line: &str| line.starts_with("Filesystem state:") && line.ends_with(" clean");
        assert!(said.lines().any(is_clean), "{said}");
        std::fs::create_dir_all(&path).unwrap();
        must(
            Command::new("mount")
                .args(["-o", "loop,ro"])
                .args([&raw, &path]),
        );
        Self { raw, path }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        must(Command::new("umount").arg(&self.path));
        std::fs::remove_file(&self.raw).unwrap();
    }
}

/// An image of a chain has what umoci unpacks of so many layers.
fn assert_is_first_layers(place: &Place, image: fn(usize) -> Image, count: usize, path: &Path) {
    let part = place.path("part");
    let _ = std::fs::remove_dir_all(&part);
    image(count).write(&part);
    let wanted = reference(place, &part);
    let mounted = Mounted::new(path, place.path("mount"));
    let found = listing(&mounted.path);
    let shown = path.display();
    assert!(found == wanted, "{shown}: {}", difference(&found, &wanted));
}

/// Five layers that replace, remove and add files of which many are as long as others, or share a cluster with them: inodes
/// and blocks of what went are used again.
fn changing(count: usize) -> Image {
    let layer = |number: u32| {
        let mut layer = Layer::new();
        for file in 0..120_u32 {
            let name = format!("d{}/f{file}", file % 7);
            let mixed = (file * 31 + number * 17) % 11;
            if number == 0 || mixed < 3 {
                let length = 1 + (file as usize % 5) * 33_000;
                let word = format!("{number}-{file} ");
                layer = layer.file(&name, 0o644, word.repeat(length / word.len() + 1));
            } else if mixed == 3 {
                layer = layer.whiteout(&format!("d{}", file % 7), &format!("f{file}"));
            }
        }
        layer
    };
    (0..5)
        .take(count)
        .map(layer)
        .fold(Image::new(), Image::layer)
}

#[test]
fn what_is_replaced_is_never_taken_for_what_was_there() {
    let place = Place::new("bootstrap");
    changing(5).write(&place.path("layout"));
    for file_system in ["ext4", "ext3"] {
        let paths = place.ok(&format!(
            "--force --format qcow2 --size 256M --fs {file_system} oci:./layout ./disks"
        ));
        assert_eq!(paths.lines().count(), 5, "{paths}");
        for (number, path) in paths.lines().enumerate() {
            assert_is_first_layers(&place, changing, number + 1, Path::new(path));
        }
    }
}

#[test]
fn every_image_of_a_chain_is_what_umoci_unpacks_of_so_many_layers() {
    let place = Place::new("bootstrap");
    image(3).write(&place.path("layout"));
    let mut bytes = Vec::new();
    for (format, file_system, packed) in [
        ("relative", "ext4", ""),
        ("absolute", "ext3", ""),
        ("relative", "ext4", "--compress"),
    ] {
        let paths = place.ok(&format!(
            "--force --format qcow2 --size 256M --fs {file_system} --backing {format} {packed} oci:./layout ./disks"
        ));
        assert_eq!(paths.lines().count(), 3, "{paths}");
        let sizes = paths
            .lines()
            .map(|path| std::fs::metadata(path).unwrap().len());
        bytes.push(sizes.sum::<u64>());
        // Those with relative names can be moved.
        if format == "relative" {
            std::fs::rename(place.path("disks"), place.path("moved")).unwrap();
            std::fs::rename(place.path("moved"), place.path("disks")).unwrap();
        }
        for (number, path) in paths.lines().enumerate() {
            assert_is_first_layers(&place, image, number + 1, Path::new(path));
        }
    }
    assert!(bytes[2] < bytes[0], "{bytes:?}");
    place.refused(
        "--compress oci:./layout ./no",
        "--compress is for --format qcow2",
    );
    // One image of all, a raw one, and root's password in a layer of its own.
    std::fs::write(place.path("password"), "secret\nnot this\n").unwrap();
    let flat = place.ok("--format qcow2 --flat --size 256M oci:./layout ./flat");
    assert_eq!(flat.lines().count(), 1);
    let wanted = reference(&place, &place.path("layout"));
    let found = listing(&Mounted::new(Path::new(flat.trim()), place.path("mount")).path);
    assert!(found == wanted, "{}", difference(&found, &wanted));
    let raw = place.ok("--format raw --size 256M oci:./layout ./raw");
    must(Command::new("e2fsck").arg("-fn").arg(raw.trim()));
    let paths =
        place.ok("--format qcow2 --size 256M --root-password file:password oci:./layout ./secret");
    assert_eq!(paths.lines().count(), 4, "{paths}");
    let last = Mounted::new(
        Path::new(paths.lines().last().unwrap()),
        place.path("mount"),
    );
    let shadow = std::fs::read_to_string(last.path.join("etc/shadow")).unwrap();
    assert!(shadow.contains("root:$6$rounds="), "{shadow}");
    Image::new()
        .layer(Layer::new().file("big", 0o644, vec![7; 3_000_000]))
        .write(&place.path("big"));
    place.refused(
        "--format qcow2 --size 2M oci:./big ./small",
        "No space left",
    );
    assert!(!place.path("small").exists());
}

#[test]
fn root_gets_a_password_and_files_get_owners() {
    let place = Place::new("bootstrap");
    image(1).write(&place.path("layout"));
    std::fs::write(place.path("password"), "secret\n").unwrap();
    place.ok(
        "--root-password file:password --idmap 0:100000:33 --uidmap 33:500:1 oci:./layout ./root",
    );
    let shadow = std::fs::read_to_string(place.path("root/etc/shadow")).unwrap();
    let lines: Vec<&str> = shadow.lines().collect();
    assert!(
        lines[0] == "rootless:x:1::::::" && lines[2] == "web:!:1::::::",
        "{shadow}"
    );
    let fields: Vec<&str> = lines[1].split(':').collect();
    assert_eq!(fields[2..], ["19000", "0", "99999", "7", "", "", ""]);
    // What crypt makes of the password by that salt is that hash.
    let check = "import crypt,sys; print(crypt.crypt('secret', sys.argv[1]) == sys.argv[1])";
    let said = must(Command::new("python3").args(["-W", "ignore", "-c", check, fields[1]]));
    assert_eq!(said, "True\n");
    let stat = |path: &str| {
        let path = place.path("root").join(path);
        must(Command::new("stat").args(["-c", "%u:%g %a"]).arg(path))
    };
    assert_eq!(stat("etc/shadow"), "100000:100000 640\n");
    // Set-id bits and capabilities outlive it.
    assert_eq!(stat("bin/tool"), "100000:100000 4755\n");
    assert_eq!(stat("srv/web"), "500:33 2750\n");
    let has = must(Command::new("getcap").arg(place.path("root/bin/ping")));
    assert!(has.contains("cap_net_raw"), "{has}");
    // Where there is none, or no line for root, it is said.
    for (number, (layer, why)) in [
        (
            Layer::new().file("etc/shadow", 0o600, "rootless:x::\n"),
            "no line for root",
        ),
        (
            Layer::new().file("etc/x", 0o600, ""),
            "there is no /etc/shadow",
        ),
        (
            Layer::new().symlink("etc/shadow", "/etc/shadow"),
            "is a link",
        ),
        (Layer::new().symlink("etc", "/etc"), "is a link"),
        (Layer::new().fifo("etc/shadow"), "is no regular file"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("layout-{number}");
        Image::new().layer(layer).write(&place.path(&name));
        place.refused(
            &format!("--root-password env:SECRET oci:./{name} ./x"),
            "SECRET is not set",
        );
        place.refused(
            &format!("--root-password file:password oci:./{name} ./x"),
            why,
        );
        assert!(!place.path("x").exists());
    }
    place.refused(
        "--root-password secret oci:./layout ./x",
        "not from the command line",
    );
    place.refused("--idmap 0:5:10 --uidmap 3:90:1 oci:./layout ./x", "overlap");
}

#[test]
fn archives_of_all_kinds_are_one_layer() {
    let place = Place::new("bootstrap");
    std::fs::create_dir(place.path("tree")).unwrap();
    std::fs::write(place.path("tree/file"), "content").unwrap();
    for (number, (program, name)) in [
        ("cat", "a.tar"),
        ("gzip", "a.tar.gz"),
        ("zstd", "a.tar.zst"),
        ("xz", "a.tar.xz"),
        ("bzip2", "a.tar.bz2"),
    ]
    .into_iter()
    .enumerate()
    {
        let script = format!("tar -C tree -c . | {program} > {name}");
        must(
            Command::new("sh")
                .args(["-c", &script])
                .current_dir(place.directory()),
        );
        let source = match number {
            0 => format!("file://{}", place.path(name).display()),
            1 => format!("file:{name}"),
            _ => format!("./{name}"),
        };
        place.ok(&format!("{source} ./root-{number}"));
        let found = std::fs::read(place.path(&format!("root-{number}/file"))).unwrap();
        assert_eq!(found, b"content", "{name}");
    }
    place.ok("--format qcow2 --size 64M ./a.tar.xz ./disk");
    // What is damaged leaves nothing.
    let bytes = std::fs::read(place.path("a.tar.gz")).unwrap();
    std::fs::write(place.path("cut.tar.gz"), &bytes[..bytes.len() / 2]).unwrap();
    let before = std::fs::read_dir(place.directory()).unwrap().count();
    place.refused("./cut.tar.gz ./cut", "cut off");
    assert_eq!(
        std::fs::read_dir(place.directory()).unwrap().count(),
        before
    );
    // What is in the way stays.
    std::fs::create_dir(place.path("full")).unwrap();
    std::fs::write(place.path("full/mine"), "mine").unwrap();
    place.refused("./a.tar ./full", "is not empty");
    place.refused("./a.tar ./a.tar.gz", "is not a directory");
    place.refused("./a.tar /", "cannot be the destination");
    place.refused("./nothing.tar ./x", "there is no file");
    place.refused("nothing:1 ./x", "no stored image");
    place.refused("virt-builder://fedora ./x", "virt-builder");
    place.ok("--force ./a.tar ./full");
    assert!(!place.path("full/mine").exists() && place.path("full/file").exists());
    // By names of one part as well.
    std::fs::create_dir(place.path("short")).unwrap();
    place.ok("./a.tar short");
    place.ok("--force ./a.tar short");
    // Nobody else's directory of that kind of name is touched.
    let mount = place.path("mounted");
    std::fs::create_dir_all(&mount).unwrap();
    must(
        Command::new("mount")
            .args(["-t", "tmpfs", "tmpfs"])
            .arg(&mount),
    );
    let trap = place.path(".trap.atomic-rs-x");
    std::fs::create_dir_all(trap.join("new")).unwrap();
    std::os::unix::fs::symlink(&mount, trap.join("new/.mount")).unwrap();
    let made = place.run("./a.tar ./trap");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    must(Command::new("umount").arg(&mount));
    assert_eq!(made.code(), 0, "{}", made.err());
    assert!(mounts.contains(&mount.display().to_string()));
    assert!(trap.exists());
    // A bomb behind a bad entry is not unpacked.
    must(Command::new("sh").args(["-c", "tar -c --transform='s,^,../,' -P tree/file > bad.tar; head -c 3000000000 /dev/zero | xz -0 > zeros.xz; xz -c bad.tar > bad.tar.xz; cat zeros.xz >> bad.tar.xz"]).current_dir(place.directory()));
    let begun = std::time::Instant::now();
    place.refused("./bad.tar.xz ./bad", "leads upwards");
    assert!(begun.elapsed().as_secs() < 3, "{:?}", begun.elapsed());
    let empty = place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    place.ok("./a.tar ./empty");
}

#[test]
fn hostile_layers_reach_nothing_outside() {
    let place = Place::new("bootstrap");
    let victim = place.path("victim");
    std::fs::create_dir(&victim).unwrap();
    for name in ["f", "keep"] {
        std::fs::write(victim.join(name), name).unwrap();
    }
    let outside = victim.display().to_string();
    let plain = |layer: Layer| vec![layer];
    let cases: Vec<(&str, Vec<Layer>)> = vec![
        (
            "upwards",
            plain(Layer::new().raw(b"../victim/f", EntryType::Regular, "")),
        ),
        (
            "upwards in the middle",
            plain(Layer::new().raw(b"a/../../victim/f", EntryType::Regular, "")),
        ),
        (
            "whiteout upwards",
            plain(Layer::new().raw(b"../victim/.wh.f", EntryType::Regular, "")),
        ),
        (
            "absolute",
            plain(Layer::new().raw(format!("{outside}/f").as_bytes(), EntryType::Regular, "")),
        ),
        (
            "by a link",
            plain(
                Layer::new()
                    .symlink("link", &outside)
                    .file("link/f", 0o644, "evil"),
            ),
        ),
        (
            "by a link of another layer",
            vec![
                Layer::new().symlink("link", &outside),
                Layer::new()
                    .file("link/f", 0o644, "evil")
                    .file("link/new", 0o644, "evil"),
            ],
        ),
        (
            "by a relative link",
            vec![
                Layer::new().symlink("link", "../../victim"),
                Layer::new().file("link/f", 0o644, "evil"),
            ],
        ),
        (
            "whiteout by a link",
            vec![
                Layer::new().symlink("link", &outside),
                Layer::new().whiteout("link", "f"),
            ],
        ),
        (
            "opaque by a link",
            vec![
                Layer::new().symlink("link", &outside),
                Layer::new().file("link/.wh..wh..opq", 0o644, ""),
            ],
        ),
        (
            "whiteout of everything",
            plain(Layer::new().file(".wh..", 0o644, "")),
        ),
        (
            "whiteout of what is above",
            plain(Layer::new().file(".wh...", 0o644, "")),
        ),
        (
            "hard link outside",
            plain(Layer::new().raw(b"hard", EntryType::Link, &format!("{outside}/f"))),
        ),
        (
            "hard link by a link",
            plain(
                Layer::new()
                    .symlink("link", &outside)
                    .raw(b"hard", EntryType::Link, "link/f"),
            ),
        ),
        (
            "hard link upwards",
            plain(Layer::new().raw(b"hard", EntryType::Link, "../../victim/f")),
        ),
        (
            "a directory over a link",
            vec![
                Layer::new().symlink("link", &outside),
                Layer::new().dir("link", 0o777),
            ],
        ),
        (
            "device by a link",
            vec![
                Layer::new().symlink("link", &outside),
                Layer::new().device("link/dev", EntryType::Char, 1, 3),
            ],
        ),
        (
            "the root as a link",
            plain(Layer::new().raw(b"./", EntryType::Symlink, &outside)),
        ),
        (
            "a loop of links",
            plain(
                Layer::new()
                    .symlink("a", "b")
                    .symlink("b", "a")
                    .file("a/f", 0o644, "x"),
            ),
        ),
        (
            "a file as a directory",
            plain(Layer::new().file("f", 0o644, "").file("f/below", 0o644, "")),
        ),
    ];
    let before = watched(&victim);
    for (number, (what, layers)) in cases.into_iter().enumerate() {
        let layout = place.path(&format!("layout-{number}"));
        layers
            .into_iter()
            .fold(Image::new(), Image::layer)
            .write(&layout);
        for form in ["dir", "qcow2 --size 64M"] {
            // Whether it is refused or harmless is the same to the host.
            let output = place.run(&format!(
                "--format {form} oci:{} ./root-{number}-{}",
                layout.display(),
                &form[..1]
            ));
            assert!(output.code() >= 0, "{what}: killed");
            assert!(
                !output.err().contains("panicked"),
                "{what}: {}",
                output.err()
            );
        }
        let after = watched(&victim);
        assert!(after == before, "{what}: {}", difference(&after, &before));
        let inside = place.path(&format!("root-{number}-d"));
        if inside.exists() {
            let found = must(
                Command::new("find")
                    .arg(&inside)
                    .args(["-samefile"])
                    .arg(victim.join("f")),
            );
            assert!(found.is_empty(), "{what}: {found}");
        }
    }
    // Deep ones need no room of their own for each level.
    let mut deep = Layer::new();
    let part = ["d"; 250].join("/");
    deep = deep
        .dir(&part, 0o755)
        .symlink("s", &part)
        .dir(&format!("s/{part}"), 0o755);
    Image::new()
        .layer(deep)
        .layer(
            Layer::new()
                .file(".wh.d", 0o644, "")
                .file("d", 0o644, "a file now"),
        )
        .write(&place.path("deep"));
    place.ok("oci:./deep ./deep-root");
    assert_eq!(
        std::fs::read(place.path("deep-root/d")).unwrap(),
        b"a file now"
    );
}

#[test]
fn what_is_interrupted_leaves_nothing_mounted_and_nothing_behind() {
    let place = Place::new("bootstrap");
    let big = Layer::new().file("big", 0o644, vec![7; 60_000_000]);
    Image::new()
        .layer(big)
        .layer(Layer::new().file("x", 0o644, "x"))
        .write(&place.path("layout"));
    place.ok("oci:./layout ./first");
    for (number, form) in ["dir", "qcow2 --size 256M"]
        .into_iter()
        .cycle()
        .take(12)
        .enumerate()
    {
        let mut child = place
            .command(&format!("--format {form} oci:./layout ./out"))
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20 * (number as u64 + 1)));
        let signal = if number % 4 < 2 { "INT" } else { "KILL" };
        let _ = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(child.id().to_string())
            .status();
        let status = child.wait().unwrap();
        let out = place.path("out");
        assert!(out.exists() || !status.success(), "{form} {signal}");
        if !status.success() && out.exists() {
            // The signal came when it was over and had only to end: then all of it is there.
            if form == "dir" {
                assert_eq!(
                    std::fs::metadata(out.join("big")).unwrap().len(),
                    60_000_000
                );
                assert_eq!(std::fs::read(out.join("x")).unwrap(), b"x");
            } else {
                for layer in ["layer-0.qcow2", "layer-1.qcow2"] {
                    must(
                        Command::new("qemu-img")
                            .args(["check", "-q"])
                            .arg(out.join(layer)),
                    );
                }
            }
        }
        if out.exists() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        if signal == "INT" {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            assert!(!mounts.contains(".out.atomic-rs-"), "{mounts}");
        }
    }
    // The next one sweeps what killed ones left.
    place.ok("--format qcow2 --size 256M oci:./layout ./out");
    let left: Vec<_> = std::fs::read_dir(place.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains(".atomic-rs-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(".out.atomic-rs-"), "{mounts}");
    let loops = must(Command::new("losetup").args(["--list", "--noheadings"]));
    let own = place.directory().to_str().unwrap();
    assert!(!loops.contains(own), "{loops}");
}

/// By the other name: that one's options and exit codes.
#[test]
fn virt_bootstrap_is_a_name_of_ours() {
    let place = Place::new("bootstrap");
    let link = place.path("virt-bootstrap");
    std::os::unix::fs::symlink(program(), &link).unwrap();
    let run = |words: &str| {
        Command::new(&link)
            .args(words.split_whitespace())
            .current_dir(place.directory())
            .env("ATOMIC_OSTREE_CHECKOUT_PATH", place.path("store"))
            .output()
            .unwrap()
    };
    std::fs::create_dir(place.path("tree")).unwrap();
    std::fs::write(place.path("tree/file"), "content").unwrap();
    must(
        Command::new("tar")
            .args(["-C", "tree", "-cJf", "a.tar.xz", "."])
            .current_dir(place.directory()),
    );
    let archive = place.path("a.tar.xz").display().to_string();
    let made = run(&format!("--status-only file://{archive} ./root"));
    assert_eq!(made.code(), 0, "{}", made.err());
    assert!(made.err().contains("Progress: 100.00%"), "{}", made.err());
    assert!(place.path("root/file").exists());
    let made = run(&format!("-q -f qcow2 {archive} ./disks"));
    assert_eq!((made.code(), made.err().as_str()), (0, ""));
    let info = must(
        Command::new("qemu-img")
            .args(["info", "--output=json"])
            .arg(place.path("disks/layer-0.qcow2")),
    );
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], 5u64 << 30);
    for (words, code, why) in [
        ("", 2, "Usage"),
        ("--nonsense a b", 2, "nonsense"),
        (
            "file:///nothing.tar ./x",
            1,
            "virt-bootstrap: there is no file",
        ),
        ("ftp://host/x ./x", 1, "virt-bootstrap: "),
        ("-f iso a b", 2, "iso"),
    ] {
        let output = run(words);
        assert_eq!(output.code(), code, "{words}: {}", output.err());
        assert!(output.err().contains(why), "{words}: {}", output.err());
    }
    assert_eq!(run("--version").code(), 0);
    assert_eq!(run("--help").code(), 0);
}

/// The program as somebody who is not root, in a directory of theirs.
fn as_user(place: &Place) -> Command {
    let mine = place.path("mine");
    if !mine.exists() {
        std::fs::create_dir(&mine).unwrap();
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&mine, open).unwrap();
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=4711", "--regid=4711", "--clear-groups"])
        .arg(program())
        .arg("bootstrap")
        .current_dir(&mine)
        .env("HOME", &mine)
        .env("PATH", "/usr/bin:/bin")
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_RUNTIME_DIR")
        .env("ATOMIC_RS_CONFIG", "/no/such/file");
    command
}

/// Without root disks are made by other means, have the very files and owners, and are the same each time.
#[test]
fn ordinary_users_make_chains_of_disks_too() {
    let place = Place::new("bootstrap");
    image(3).write(&place.path("layout"));
    let layout = format!("oci:{}", place.path("layout").display());
    for file_system in ["ext4", "ext3"] {
        let make = |name: &str| {
            let output = as_user(&place)
                .args([
                    "--format",
                    "qcow2",
                    "--size",
                    "256M",
                    "--force",
                    "--fs",
                    file_system,
                ])
                .args([layout.as_str(), name])
                .output()
                .unwrap();
            assert_eq!(output.code(), 0, "{}", output.err());
            output.out()
        };
        let (paths, again) = (make("disks"), make("again"));
        assert_eq!(paths.lines().count(), 3, "{paths}");
        for (number, (path, other)) in paths.lines().zip(again.lines()).enumerate() {
            assert!(std::fs::read(path).unwrap() == std::fs::read(other).unwrap());
            assert_is_first_layers(&place, image, number + 1, Path::new(path));
        }
    }
    // Compressed clusters next to such as do not get smaller.
    let noise: Vec<u8> = (0..200_000u32)
        .flat_map(|n| support::images::sha256(&n.to_be_bytes()).into_bytes())
        .collect();
    let noise = Layer::new()
        .file("even", 0o644, vec![b'x'; 700_000])
        .file("noise", 0o644, noise);
    Image::new().layer(noise).write(&place.path("noise"));
    let output = as_user(&place)
        .args(["--format", "qcow2", "--compress", "--size", "64M"])
        .arg(format!("oci:{}", place.path("noise").display()))
        .arg("noise")
        .output()
        .unwrap();
    assert_eq!(output.code(), 0, "{}", output.err());
    let wanted = reference(&place, &place.path("noise"));
    let found = listing(&Mounted::new(Path::new(output.out().trim()), place.path("mount")).path);
    assert!(found == wanted, "{}", difference(&found, &wanted));
    // Odd names, a password, other owners, an archive, and one image of all.
    let odd = Layer::new()
        .file("etc/shadow", 0o640, "root:*:1::::::\n")
        .file("with \"quotes\" and 'others' \\ $x", 0o644, "odd")
        .owned_file("owned", 0o4755, 1000, "owned")
        .file("-dash", 0o644, "")
        .symlink("li nk", &"t".repeat(200))
        .hardlink("dir/hard", "owned");
    Image::new().layer(odd).write(&place.path("odd"));
    std::fs::write(place.path("password"), "secret\n").unwrap();
    let output = as_user(&place)
        .args([
            "--format",
            "qcow2",
            "--flat",
            "--size",
            "64M",
            "--idmap",
            "0:5000:1000",
            "--idmap",
            "1000:0:1",
        ])
        .args(["--root-password", "file:../password"])
        .arg(format!("oci:{}", place.path("odd").display()))
        .arg("odd")
        .output()
        .unwrap();
    assert_eq!(output.code(), 0, "{}", output.err());
    let mounted = Mounted::new(Path::new(output.out().trim()), place.path("mount"));
    let found = listing(&mounted.path);
    for text in [
        "./with \"quotes\" and 'others' \\ $x f 644 5000:5000",
        "./owned f 4755 0:0 1600000000.0000000000  2 5",
        "./dir/hard f 4755 0:0",
        "./etc/shadow f 640 5000:5000",
        "./-dash f 644",
    ] {
        assert!(found.contains(text), "{text}: {found}");
    }
    let shadow = std::fs::read_to_string(mounted.path.join("etc/shadow")).unwrap();
    assert!(shadow.starts_with("root:$6$"), "{shadow}");
    drop(mounted);
    // What does not fit is an error, and leaves nothing.
    Image::new()
        .layer(Layer::new().file("big", 0o644, vec![7; 3_000_000]))
        .write(&place.path("big"));
    let output = as_user(&place)
        .args(["--format", "qcow2", "--size", "2M"])
        .args([
            format!("oci:{}", place.path("big").display()).as_str(),
            "small",
        ])
        .output()
        .unwrap();
    assert_eq!(output.code(), 1, "{}", output.err());
    assert!(output.err().contains("No space left"), "{}", output.err());
    assert!(!place.path("mine/small").exists());
}

/// Without root all files are one's own, and devices are left out and counted.
#[test]
fn ordinary_users_make_directories_of_their_own() {
    let place = Place::new("bootstrap");
    image(3).write(&place.path("layout"));
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::create_dir(place.path("mine")).unwrap();
    std::fs::set_permissions(place.path("mine"), open).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=4711", "--regid=4711", "--clear-groups"])
        .arg(program())
        .args(["bootstrap", "--json"])
        .arg(format!("oci:{}", place.path("layout").display()))
        .arg(place.path("mine/root"))
        .env("HOME", place.path("mine"))
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_RUNTIME_DIR")
        .env("ATOMIC_RS_CONFIG", "/no/such/file");
    let output = command.output().unwrap();
    assert_eq!(output.code(), 0, "{}", output.err());
    let said: Value = serde_json::from_str(&output.out()).unwrap();
    assert_eq!(said["left_out"], 2, "{said}");
    let owner = must(
        Command::new("stat")
            .args(["-c", "%u %a"])
            .arg(place.path("mine/root/srv/web/new")),
    );
    assert_eq!(owner, "4711 644\n");
    assert!(!place.path("mine/root/opaque/new").exists());
    assert!(place.path("mine/root/run/pipe").exists());
    // Directories that their owner may not write to, which later layers write to or take away; a closed shadow file.
    let closed = Layer::new()
        .dir("a/b/c", 0o555)
        .dir("a/b", 0o500)
        .dir("gone/below", 0o555)
        .file("gone/below/file", 0o444, "x")
        .dir("gone", 0o555)
        .file("etc/shadow", 0o000, "root:*:1::::::\n");
    let later = Layer::new()
        .file("a/b/c/later", 0o644, "later")
        .file(".wh.gone", 0o644, "")
        .raw(b"top", EntryType::Regular, "");
    let root = Layer::new().dir(".", 0o555);
    Image::new()
        .layer(root)
        .layer(closed)
        .layer(later)
        .write(&place.path("closed"));
    std::fs::write(place.path("mine/password"), "secret\n").unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=4711", "--regid=4711", "--clear-groups"])
        .arg(program())
        .args(["bootstrap", "--root-password", "file:password"])
        .arg(format!("oci:{}", place.path("closed").display()))
        .arg("closed")
        .current_dir(place.path("mine"))
        .env("HOME", place.path("mine"))
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_RUNTIME_DIR")
        .env("ATOMIC_RS_CONFIG", "/no/such/file")
        .output()
        .unwrap();
    assert_eq!(output.code(), 0, "{}", output.err());
    let modes = must(
        Command::new("stat")
            .args(["-c", "%a", ".", "a/b", "a/b/c", "etc/shadow"])
            .current_dir(place.path("mine/closed")),
    );
    assert_eq!(modes, "555\n500\n555\n0\n");
    assert!(!place.path("mine/closed/gone").exists());
}

/// Without root files have the owners of the image by a user namespace, or say whose they would be.
#[test]
fn ordinary_users_give_files_to_their_subordinate_ids() {
    let registry = Registry::start();
    let host = Host::boot();
    let user = User::on_disk(&host);
    let layer = Layer::new()
        .file("etc/shadow", 0o640, "root:*:1::::::\n")
        .owned_dir("srv/web", 0o2750, 33)
        .xattr("security.capability", &CAPABILITY)
        .owned_file("srv/web/page", 0o4755, 33, "page")
        .symlink("srv/web/link", "page")
        .device("dev/null", EntryType::Char, 1, 3);
    Image::new().layer(layer).push(&registry, "owned");
    let name = registry.name("owned");
    user.ok(&format!("atomic-rs pull {name}"));
    let home = "/var/lib/containers/someone";
    let run = |words: &str| user.command(&format!("cd {home} && atomic-rs bootstrap {words}"));
    let ok = |words: &str| {
        let output = run(words);
        assert_eq!(output.code(), 0, "{words}: {}", output.err());
        output
    };
    let stat = |root: &str| {
        host.ok(&format!(
            "stat -c %n:%u:%g:%a {home}/{root} {home}/{root}/srv/web {home}/{root}/srv/web/page {home}/{root}/srv/web/link"
        ))
        .replace(&format!("{home}/{root}"), "")
    };
    let number = |words: &str| -> u32 { host.ok(words).trim().parse().unwrap() };
    let (uid, gid) = (number("id -u someone"), number("id -g someone"));
    let first = |file: &str| -> u32 {
        let line = host
            .sh(&format!("grep ^someone: /etc/{file} | head -1"))
            .out();
        line.split(':').nth(1).unwrap().parse().unwrap()
    };
    let (users, groups) = (first("subuid"), first("subgid"));
    host.sh(&format!(
        "umask 077; echo secret > {home}/password; chown someone {home}/password"
    ));

    let said = ok(&format!(
        "--owners namespace --root-password file:password {name} inside"
    ));
    assert!(
        said.err()
            .contains("1 entries of the image could not be made"),
        "{}",
        said.err()
    );
    let (web, web_group) = (users + 32, groups + 32);
    let wanted = format!(
        ":{uid}:{gid}:755\n/srv/web:{web}:{web_group}:2750\n/srv/web/page:{web}:{web_group}:4755\n/srv/web/link:{uid}:{gid}:777\n"
    );
    assert_eq!(stat("inside"), wanted);
    let capability = host.ok(&format!(
        "getfattr --absolute-names -d -m - -e hex {home}/inside/srv/web/page"
    ));
    assert!(capability.contains("security.capability"), "{capability}");
    assert!(
        host.read(&format!("{home}/inside/etc/shadow"))
            .starts_with("root:$6$")
    );
    // Again in its place: what others own in there goes as well.
    ok(&format!("--owners mine --force {name} inside"));
    assert!(stat("inside").starts_with(&format!(":{uid}:{gid}:755\n/srv/web:{uid}:{gid}:2750\n")));

    // Ranges mean what they mean for root.
    ok(&format!(
        "--idmap 33:300003:1 --uidmap 0:{uid}:1 --gidmap 0:{gid}:1 {name} mapped"
    ));
    assert!(
        stat("mapped").contains("/srv/web/page:300003:300003:4755"),
        "{}",
        stat("mapped")
    );
    for (words, why) in [
        (
            format!("--idmap 33:300003:1 {name} no"),
            "becomes nobody of yours",
        ),
        (
            format!("--idmap 0:0:100 {name} no"),
            "is neither you nor in your range",
        ),
        (
            format!("--idmap 0:{uid}:1 --owners mine {name} no"),
            "leave the ranges out",
        ),
        (
            format!("--owners namespace --format raw {name} no"),
            "is for directories",
        ),
        (format!("--owners nobody {name} no"), "none of mine"),
    ] {
        let refused = run(&words);
        assert!(
            refused.code() != 0 && refused.err().contains(why),
            "{words}: {}",
            refused.err()
        );
    }

    // Without ranges they are noted.
    ok(&format!("--owners recorded {name} noted"));
    assert!(stat("noted").contains(&format!("/srv/web/page:{uid}:{gid}:4755")));
    let noted = host.ok(&format!(
        "getfattr --only-values -n user.rootlesscontainers {home}/noted/srv/web/page"
    ));
    assert_eq!(noted.as_bytes(), [8, 33, 16, 33]);

    // What a kill leaves goes with the next one.
    let big = Layer::new().owned_file("a", 0o644, 33, "x").owned_file(
        "big",
        0o644,
        33,
        vec![0; 300_000_000],
    );
    Image::new().layer(big).push(&registry, "big");
    let name = registry.name("big");
    user.ok(&format!("atomic-rs pull {name}"));
    for signal in ["TERM", "INT", "KILL"] {
        let script = format!(
            "cd {home}; atomic-rs bootstrap --owners namespace {name} killed & until ls -d .killed.atomic-rs-*/new/a; do sleep 0.01; done 2> /dev/null; kill -{signal} $!; wait $!; echo $?"
        );
        // Jobs of a script ignore ^C where nobody controls them.
        let ended = user.command(&format!("set -m; {script}"));
        let code = match signal {
            "KILL" => "137",
            "TERM" => "143",
            _ => "130",
        };
        assert!(
            ended.out().trim_end().ends_with(code),
            "{signal}: {} {}",
            ended.out(),
            ended.err()
        );
        assert!(!host.exists(&format!("{home}/killed")), "{signal}");
        if signal != "KILL" {
            assert_eq!(
                host.sh(&format!("ls -d {home}/.killed*")).out(),
                "",
                "{signal}"
            );
        }
    }
    ok(&format!("--owners mine {name} killed"));
    assert_eq!(host.sh(&format!("ls -d {home}/.killed*")).out(), "");

    let user = user.without_ranges();
    let refused = user.command(&format!(
        "cd {home} && atomic-rs bootstrap --owners namespace {name} no"
    ));
    assert!(
        refused.err().contains("--owners recorded"),
        "{}",
        refused.err()
    );
}
