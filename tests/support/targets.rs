//! What is fuzzed: each takes bytes that anybody may have written, and panics where a promise is broken.

use std::io::Read as _;

use atomic_rs::deployment::Info;
use atomic_rs::image::{Digest, ImageConfig, Manifest, Reference, refname};
use atomic_rs::store::tar::{EntryKind, TarStream};
use atomic_rs::template::{Place, Value, substitute};
use atomic_rs::transaction::Journal;

/// One of them, and what its inputs are put together of beside bytes.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub words: &'static [&'static str],
}

pub const TARGETS: [Target; 6] = [
    Target {
        name: "reference",
        run: reference,
        words: &[
            "docker://",
            "oci:",
            "http:",
            "docker-archive:",
            "/",
            ":",
            "@",
            "sha256:",
            "latest",
            "..",
            "[::1]",
            ":5000",
            "registry.example",
            "%",
            "\n",
            "é",
            "-",
            "_",
            "A",
        ],
    },
    Target {
        name: "manifest",
        run: manifest,
        words: &[
            "{",
            "}",
            "[",
            "]",
            ",",
            "\"schemaVersion\":2",
            "\"mediaType\":",
            "\"config\":",
            "\"layers\":",
            "\"manifests\":",
            "\"digest\":\"sha256:",
            "\"size\":",
            "-1",
            "9223372036854775808",
            "1e400",
            "\"platform\":",
            "\"rootfs\":",
            "\"diff_ids\":",
            "\"Labels\":",
            "null",
            "\\u0000",
            "\\ud800",
            "\"fsLayers\":",
            "\"history\":",
        ],
    },
    Target {
        name: "refname",
        run: ref_name,
        words: &[
            "ociimage/",
            "ociimage-tree/",
            "ociimage-side/",
            "_3A",
            "_2F",
            "_",
            "_FF",
            "_00",
            "a",
            "@",
        ],
    },
    Target {
        name: "template",
        run: template,
        words: &[
            "$", "$$", "${", "}", "$NAME", "${NAME}", "\"", "\\", "\n", "%", "\u{7f}", "\0", "]",
            "\u{2028}", "é",
        ],
    },
    Target {
        name: "journal",
        run: journal,
        words: &[
            "{",
            "}",
            "\"format\":",
            "\"phase\":",
            "\"stage\"",
            "\"direction\":",
            "\"back\"",
            "\"plan\":",
            "\"name\":",
            "\"verb\":",
            "\"from\":",
            "\"to\":",
            "null",
            "[",
            "]",
            "../",
            "\"revision\":",
            "\"installed-files\":",
        ],
    },
    Target {
        name: "tar",
        run: tar,
        words: &[
            "ustar\0",
            "ustar  \0",
            "path=",
            "linkpath=",
            "size=",
            "mtime=",
            "SCHILY.xattr.",
            "GNU.sparse.",
            "././@LongLink",
            "0000644\0",
            "\u{80}",
            "7777777777\0",
            "-1",
            "\0\0\0\0",
            "11 size=",
            "GNU.sparse.map=",
            "x",
            "g",
            "L",
            "K",
            "S",
        ],
    },
];

/// What is read is the same when it is written and read again.
fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(read) = text.parse::<Reference>() else {
        return;
    };
    let shown = read.to_string();
    let again: Reference = shown
        .parse()
        .unwrap_or_else(|error| panic!("{text:?} is shown as {shown:?}: {error}"));
    assert_eq!(again, read, "{text:?}, {shown:?}");
    assert!(
        !read.to_skopeo().contains('\n') || text.contains('\n'),
        "{text:?}"
    );
    let _ = read.is_unqualified();
    if let Ok(name) = read.fallback_name() {
        assert_eq!(
            name.to_string().parse().ok().as_ref(),
            Some(&name),
            "{text:?}"
        );
        let _ = (
            name.registry(),
            name.repository(),
            name.tag(),
            name.digest(),
        );
        assert!(!name.default_container_name().is_empty(), "{text:?}");
        assert!(
            name.to_string().starts_with(&name.without_tag()),
            "{text:?}"
        );
    }
    let _ = read.pinned_to(Digest::of(bytes)).to_string();
}

fn manifest(bytes: &[u8]) {
    if let Ok(read) = Manifest::parse(bytes) {
        let layers = read.layer_digests();
        let _ = (read.config_digest(), layers.len());
    }
    if let Ok(config) = ImageConfig::parse(bytes) {
        let _ = (
            config.platform(),
            config.foreign_platform(),
            config.label("a"),
        );
        for layers in 0..3 {
            if let Ok(ids) = config.diff_ids(layers) {
                assert!(ids.len() == layers || ids.is_empty());
            }
        }
    }
}

/// Whatever is encoded is decoded to what it was.
fn ref_name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let encoded = refname::encode(&text);
    assert_eq!(refname::decode(&encoded).as_deref(), Some(&*text));
    assert!(!encoded.contains('/'), "{encoded}");
    if let Some(decoded) = refname::decode(&text) {
        let again = refname::encode(&decoded);
        assert_eq!(refname::decode(&again), Some(decoded), "{text:?}");
    }
    let _ = refname::classify(&text);
    let _ = refname::classify(&format!("ociimage/{text}"));
}

/// A value stays a value: in a JSON string it is read as what it was, and it adds no line to a unit.
fn template(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let value = |_: &str| Some(Value::Text(&text));
    if let Ok(json) = substitute(
        "t",
        r#"{"a": "$A", "b": ["x${B}y", "$$"]}"#,
        Place::Json,
        value,
    ) {
        let read: serde_json::Value = serde_json::from_str(&json)
            .unwrap_or_else(|error| panic!("{text:?} makes {json:?}: {error}"));
        assert_eq!(read["a"], *text);
        assert_eq!(read["b"][0], format!("x{text}y"));
        assert_eq!(read["b"][1], "$");
    }
    for place in [Place::Unit, Place::Tmpfiles] {
        if let Ok(made) = substitute(
            "t",
            "[Service]\nExecStart=/bin/x $A\nUser=$B\n",
            place,
            value,
        ) {
            assert_eq!(made.lines().count(), 3, "{text:?} makes {made:?}");
            assert!(!made.contains('\0') && !made.contains('\r'), "{text:?}");
        }
    }
    // As a template of somebody's.
    for place in [Place::Json, Place::Unit, Place::Tmpfiles, Place::Plain] {
        let _ = substitute("t", &text, place, |_| Some(Value::Text("\"\\x")));
    }
}

fn journal(bytes: &[u8]) {
    let _ = Journal::parse(bytes, "journal".into());
    if let Ok(info) = Info::parse(bytes, "info".into()) {
        let text = info.to_text();
        let again = Info::parse(text.as_bytes(), "info".into())
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(again.to_text(), text);
    }
}

/// Every archive has an end, and no entry is longer than it says.
fn tar(bytes: &[u8]) {
    let _ = names(bytes);
}

/// The names of an archive's entries, if it is one.
pub fn names(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut stream = TarStream::new(bytes);
    let mut names = Vec::new();
    loop {
        let entry = stream.next_entry().ok()?;
        let Some(entry) = entry else {
            stream.drain().ok()?;
            return Some(names);
        };
        if let EntryKind::File { size } = entry.kind {
            // Holes take no bytes: who reads them all would not come to an end.
            let limit = size.min(1 << 20);
            let read = std::io::copy(&mut stream.content().take(limit), &mut std::io::sink());
            if let Ok(read) = read {
                assert_eq!(read, limit);
            } else {
                return None;
            }
        }
        names.push(entry.path);
        assert!(names.len() <= bytes.len() / 512 + 1);
    }
}
