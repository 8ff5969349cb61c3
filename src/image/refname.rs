//! `OSTree` refs of images and blobs.
//!
//! `ociimage/` and the encoded name for an image, `ociimage/` and 64 hexadecimal digits for a layer
//! or config blob, `ociimage-tree/` and 64 digits for the merged tree of a manifest. In an encoded
//! name every byte outside `[A-Za-z0-9.-]` is `_` and two upper-case hexadecimal digits.

use super::digest::{Digest, hex};

/// Prefix of image and blob refs.
pub const IMAGE_PREFIX: &str = "ociimage/";
/// Prefix of the refs of merged trees.
pub const TREE_PREFIX: &str = "ociimage-tree/";

/// Prefix of the refs of layers' side data.
pub const SIDE_PREFIX: &str = "ociimage-side/";
/// Prefix of the refs of blobs kept as they came.
pub const KEPT_PREFIX: &str = "ociimage-kept/";

/// What a ref below [`IMAGE_PREFIX`] stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefKind {
    /// An image, with its decoded name.
    Image(String),
    /// A layer or config blob.
    Blob(Digest),
    /// Something this program did not write.
    Unknown,
}

/// The ref of the image called `name` (with its tag).
pub fn image_ref(name: &str) -> String {
    format!("{IMAGE_PREFIX}{}", encode(name))
}

/// The ref of a layer or config blob.
pub fn blob_ref(digest: Digest) -> String {
    format!("{IMAGE_PREFIX}{}", digest.hex())
}

/// The ref of the merged tree of the image with this manifest digest.
pub fn tree_ref(manifest: Digest) -> String {
    format!("{TREE_PREFIX}{}", manifest.hex())
}

/// The ref of a layer's side data.
pub fn side_ref(layer: Digest) -> String {
    format!("{SIDE_PREFIX}{}", layer.hex())
}

/// The ref of a layer's blob as it came.
pub fn kept_ref(layer: Digest) -> String {
    format!("{KEPT_PREFIX}{}", layer.hex())
}

/// What `name`, a full ref, stands for.
pub fn classify(name: &str) -> RefKind {
    let Some(rest) = name.strip_prefix(IMAGE_PREFIX) else {
        return RefKind::Unknown;
    };
    // An image name always has a tag or digest, so its encoding is never 64 plain hex digits.
    match Digest::from_hex(rest) {
        Some(digest) => RefKind::Blob(digest),
        None => decode(rest).map_or(RefKind::Unknown, RefKind::Image),
    }
}

/// Encode an image name as the last component of a ref.
pub fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 16);
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-' {
            out.push(char::from(byte));
        } else {
            out.push('_');
            out.push_str(&hex(&[byte]).to_uppercase());
        }
    }
    out
}

/// The image name behind an encoded ref component, or nothing if it is not one.
pub fn decode(encoded: &str) -> Option<String> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'_' => {
                let digit = |c: Option<u8>| match c? {
                    c @ b'0'..=b'9' => Some(c - b'0'),
                    c @ b'A'..=b'F' => Some(c - b'A' + 10),
                    _ => None,
                };
                out.push(digit(bytes.next())? << 4 | digit(bytes.next())?);
            }
            c if c.is_ascii_alphanumeric() || c == b'.' || c == b'-' => out.push(c),
            _ => return None,
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_encoding() {
        for (name, encoded) in [
            ("busybox:latest", "busybox_3Alatest"),
            ("docker.io/busybox:latest", "docker.io_2Fbusybox_3Alatest"),
            ("a_b@sha256:00", "a_5Fb_40sha256_3A00"),
            ("cafe:12", "cafe_3A12"),
        ] {
            assert_eq!(encode(name), encoded);
            assert_eq!(decode(encoded).unwrap(), name);
        }
        for bad in ["a_", "a_4", "a_4g", "a_3a", "a/b", "a b", "a_FF"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_hexadecimal_name_is_an_image_and_64_digits_are_a_blob() {
        let hex = "ab".repeat(32);
        assert_eq!(
            classify(&format!("ociimage/{hex}")),
            RefKind::Blob(Digest::from_hex(&hex).unwrap())
        );
        assert_eq!(
            classify("ociimage/cafe_3A12"),
            RefKind::Image("cafe:12".into())
        );
        assert_eq!(classify("other/x"), RefKind::Unknown);
        assert_eq!(classify("ociimage/a_"), RefKind::Unknown);
    }
}
