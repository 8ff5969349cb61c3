//! Images with known content: the same bytes on every machine, by a fixed seed.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use crate::measure::float;

/// Part of the directory the images are kept in: change it with what makes them.
const VERSION: u32 = 1;

/// An image as an OCI layout.
#[derive(Debug, Clone)]
pub struct Image {
    pub about: &'static str,
    pub layout: PathBuf,
    /// Its layers' blobs, base first.
    pub layers: Vec<PathBuf>,
    /// Bytes of the layers' archives.
    pub unpacked: f64,
}

impl Image {
    /// Bytes of its layers' blobs.
    pub fn compressed(&self) -> f64 {
        let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
        float(self.layers.iter().map(size).sum())
    }
}

#[derive(Clone, Copy)]
enum Compression {
    Gzip,
    Zstd,
}

/// What an image is made of.
struct Recipe {
    name: &'static str,
    about: &'static str,
    compression: Compression,
    layers: Vec<Layer>,
}

#[derive(Clone, Copy)]
enum Layer {
    /// So many files of all sizes, by a seed.
    Mix(u32, u64),
    /// So many tiny files, a third of them identical.
    Tiny(u32),
    /// One file of so many bytes.
    Huge(u64),
    /// One file of 10 KB, by a seed.
    Small(u64),
}

fn recipes() -> Vec<Recipe> {
    let mix = |last| {
        vec![
            Layer::Mix(11_800, 1),
            Layer::Mix(5_200, 2),
            Layer::Small(last),
        ]
    };
    let recipe = |name, about, compression, layers| Recipe {
        name,
        about,
        compression,
        layers,
    };
    vec![
        recipe(
            "mix",
            "17 000 files of all sizes in three layers, gzip",
            Compression::Gzip,
            mix(3),
        ),
        recipe(
            "mix-update",
            "the same, its last layer of 10 KB changed",
            Compression::Gzip,
            mix(4),
        ),
        recipe(
            "tiny",
            "100 000 tiny files, a third of them identical",
            Compression::Gzip,
            vec![Layer::Tiny(100_000)],
        ),
        recipe(
            "huge",
            "one file of 1 GB",
            Compression::Gzip,
            vec![Layer::Huge(1_000_000_000)],
        ),
        recipe(
            "zstd",
            "the mix with zstd layers",
            Compression::Zstd,
            mix(3),
        ),
        recipe(
            "many",
            "60 layers of 100 files",
            Compression::Gzip,
            (0..60).map(|seed| Layer::Mix(100, 100 + seed)).collect(),
        ),
    ]
}

/// The names of all images.
pub fn names() -> Vec<&'static str> {
    recipes().iter().map(|recipe| recipe.name).collect()
}

/// The image of this name, made below `directory` if it is not there yet.
pub fn image(directory: &Path, name: &str) -> io::Result<Image> {
    let recipes = recipes();
    let recipe = recipes
        .iter()
        .find(|recipe| recipe.name == name)
        .ok_or_else(|| io::Error::other(format!("no image \"{name}\": {:?}", names())))?;
    let layout = directory.join(format!("images-{VERSION}")).join(name);
    if !layout.join("index.json").exists() {
        eprintln!("making the image {name}: {}", recipe.about);
        write(recipe, &layout)?;
    }
    let made: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("made.json"))?)?;
    let blobs = made["layers"].as_array().into_iter().flatten();
    Ok(Image {
        about: recipe.about,
        layers: blobs
            .filter_map(|blob| Some(layout.join("blobs/sha256").join(blob.as_str()?)))
            .collect(),
        layout,
        unpacked: made["unpacked"].as_f64().unwrap_or(0.0),
    })
}

fn write(recipe: &Recipe, layout: &Path) -> io::Result<()> {
    let blobs = layout.join("blobs/sha256");
    let _ = std::fs::remove_dir_all(layout);
    std::fs::create_dir_all(&blobs)?;
    let (mut descriptors, mut diff_ids, mut digests, mut unpacked) = (vec![], vec![], vec![], 0);
    for layer in &recipe.layers {
        let temporary = blobs.join("layer");
        let blob = Summed::new(BufWriter::new(File::create(&temporary)?));
        let (plain, blob, kind) = match recipe.compression {
            Compression::Gzip => {
                let encoder = flate2::write::GzEncoder::new(blob, flate2::Compression::default());
                let (plain, encoder) = archive(*layer, encoder)?;
                (plain, encoder.finish()?, "gzip")
            }
            Compression::Zstd => {
                let encoder = zstd::stream::write::Encoder::new(blob, 3)?;
                let (plain, encoder) = archive(*layer, encoder)?;
                (plain, encoder.finish()?, "zstd")
            }
        };
        let (digest, size) = blob.finish()?;
        std::fs::rename(&temporary, blobs.join(&digest))?;
        descriptors.push(json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar+{kind}"),
            "digest": format!("sha256:{digest}"), "size": size}));
        digests.push(digest);
        diff_ids.push(format!("sha256:{}", plain.0));
        unpacked += plain.1;
    }
    let put = |value: &serde_json::Value| -> io::Result<(String, usize)> {
        let bytes = value.to_string();
        let digest = hex::encode(Sha256::digest(bytes.as_bytes()));
        std::fs::write(blobs.join(&digest), &bytes)?;
        Ok((format!("sha256:{digest}"), bytes.len()))
    };
    let (config, config_size) = put(&json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}}))?;
    let (manifest, manifest_size) = put(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": descriptors}))?;
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    std::fs::write(
        layout.join("made.json"),
        json!({"layers": digests, "unpacked": unpacked}).to_string(),
    )?;
    // Last: by this the image is known to be whole.
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size,
        "annotations": {"org.opencontainers.image.ref.name": "latest"}}]});
    std::fs::write(layout.join("index.json"), index.to_string())
}

/// Write a layer's archive; its digest and size.
fn archive<W: Write>(layer: Layer, out: W) -> io::Result<((String, u64), W)> {
    let mut builder = tar::Builder::new(Summed::new(out));
    match layer {
        Layer::Mix(files, seed) => mix(&mut builder, files, seed)?,
        Layer::Tiny(files) => tiny(&mut builder, files)?,
        Layer::Huge(bytes) => {
            file(
                &mut builder,
                "huge",
                bytes,
                &mut Noise::new(Random(7), bytes),
            )?;
        }
        Layer::Small(seed) => {
            directory(&mut builder, "srv")?;
            file(
                &mut builder,
                "srv/small",
                10_000,
                &mut Noise::new(Random(seed), 10_000),
            )?;
        }
    }
    let summed = builder.into_inner()?;
    Ok((
        (hex::encode(summed.sum.clone().finalize()), summed.bytes),
        summed.out,
    ))
}

fn mix<W: Write>(out: &mut tar::Builder<W>, files: u32, seed: u64) -> io::Result<()> {
    let mut random = Random(seed);
    directory(out, &format!("usr{seed}"))?;
    for number in 0..files {
        let directory_number = number / 12;
        let place = format!(
            "usr{seed}/part{}/d{directory_number}",
            directory_number / 20
        );
        if number % 240 == 0 {
            directory(out, place.rsplit_once('/').map_or("", |(above, _)| above))?;
        }
        if number % 12 == 0 {
            directory(out, &place)?;
        }
        let size = match random.below(1000) {
            0..600 => 200 + random.below(4_000),
            600..900 => 4_000 + random.below(28_000),
            900..995 => 32_000 + random.below(96_000),
            _ => 128_000 + random.below(900_000),
        };
        let noise = Random(random.next());
        file(
            out,
            &format!("{place}/file-{number}.so"),
            size,
            &mut Noise::new(noise, size),
        )?;
        if number % 10 == 0 {
            let mut header = header(EntryType::Symlink, 0o777, 0);
            out.append_link(
                &mut header,
                format!("{place}/link-{number}"),
                format!("file-{number}.so"),
            )?;
        }
    }
    Ok(())
}

fn tiny<W: Write>(out: &mut tar::Builder<W>, files: u32) -> io::Result<()> {
    let mut random = Random(5);
    for number in 0..files {
        let place = format!("d{}", number / 100);
        if number % 100 == 0 {
            directory(out, &place)?;
        }
        let path = format!("{place}/f{number}");
        if number % 3 == 0 {
            file(out, &path, 15, &mut &b"the same always"[..])?;
        } else {
            let size = 10 + random.below(190);
            file(
                out,
                &path,
                size,
                &mut Noise::new(Random(random.next()), size),
            )?;
        }
    }
    Ok(())
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(1_600_000_000);
    header
}

fn directory<W: Write>(out: &mut tar::Builder<W>, path: &str) -> io::Result<()> {
    let mut header = header(EntryType::Directory, 0o755, 0);
    out.append_data(&mut header, format!("{path}/"), io::empty())
}

fn file<W: Write>(
    out: &mut tar::Builder<W>,
    path: &str,
    size: u64,
    content: &mut impl Read,
) -> io::Result<()> {
    out.append_data(&mut header(EntryType::Regular, 0o644, size), path, content)
}

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // A seed of small numbers needs some turns first.
        self.0 = self
            .0
            .wrapping_mul(0x2545_f491_4f6c_dd1d)
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }
}

/// Content that compresses about as programs and texts do: new bytes, and runs of what was there.
struct Noise {
    random: Random,
    left: u64,
    block: Vec<u8>,
    at: usize,
}

impl Noise {
    fn new(random: Random, bytes: u64) -> Self {
        Self {
            random,
            left: bytes,
            block: Vec::new(),
            at: 0,
        }
    }

    fn refill(&mut self) {
        const BLOCK: usize = 32 * 1024;
        self.block.clear();
        self.at = 0;
        while self.block.len() < BLOCK.min(usize::try_from(self.left).unwrap_or(BLOCK)) {
            let length = 4 + usize::try_from(self.random.below(24)).unwrap_or(0);
            if self.block.len() > 64 && self.random.below(100) < 55 {
                let back = 1 + usize::try_from(self.random.below(self.block.len() as u64 - 32))
                    .unwrap_or(0);
                let start = self.block.len() - back.max(length);
                self.block.extend_from_within(start..start + length);
            } else {
                for _ in 0..length {
                    let byte = self.random.next();
                    // Mostly of a few values, as in machine code and texts.
                    let byte = if byte >> 62 == 0 {
                        byte >> 32
                    } else {
                        0x60 + (byte >> 40) % 24
                    };
                    self.block.push((byte & 0xff) as u8);
                }
            }
        }
    }
}

impl Read for Noise {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        if self.at == self.block.len() {
            self.refill();
        }
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX);
        let n = out.len().min(self.block.len() - self.at).min(limit);
        out[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        self.left -= n as u64;
        Ok(n)
    }
}

/// Passes bytes on and knows their digest.
struct Summed<W> {
    out: W,
    sum: Sha256,
    bytes: u64,
}

impl<W: Write> Summed<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            sum: Sha256::new(),
            bytes: 0,
        }
    }

    fn finish(mut self) -> io::Result<(String, u64)> {
        self.out.flush()?;
        Ok((hex::encode(self.sum.finalize()), self.bytes))
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.sum.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
