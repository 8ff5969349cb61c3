//! The loops that every pull and every installation go through, on their own: reading an archive, merging
//! trees, filling in templates, reading references.
//!
//! `cargo bench --bench micro`; what criterion measures it keeps below `target/criterion`.
#![allow(missing_docs)]

use std::collections::HashSet;
use std::hint::black_box;
use std::io::{Read as _, sink};

use atomic_rs::image::Reference;
use atomic_rs::store::objects::{
    DirMeta, DirTree, NO_CANCEL, checksum, write_dirmeta, write_dirtree,
};
use atomic_rs::store::tar::TarStream;
use atomic_rs::store::writers::Writers;
use atomic_rs::store::{LayerRoot, tree};
use atomic_rs::template::{Place, Value, substitute};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Entries of the archive that is read.
const ENTRIES: usize = 10_000;
/// Bytes of each.
const ENTRY_BYTES: usize = 1000;
/// Directories of each layer that is merged, and files in each of them.
const DIRECTORIES: usize = 500;
const FILES: usize = 20;
/// Lines of the template.
const LINES: usize = 200;

fn archive() -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for number in 0..ENTRIES {
        let mut header = tar::Header::new_ustar();
        header.set_size(ENTRY_BYTES as u64);
        header.set_mode(0o644);
        let path = format!("usr/share/directory-{}/file-{number}", number / 50);
        out.append_data(&mut header, path, &[b'x'; ENTRY_BYTES][..])
            .unwrap();
    }
    out.into_inner().unwrap()
}

fn read_tar(criterion: &mut Criterion) {
    let bytes = archive();
    let mut group = criterion.benchmark_group("tar");
    group.throughput(Throughput::Elements(ENTRIES as u64));
    group.bench_function("10 000 files of 1000 bytes", |bencher| {
        bencher.iter(|| {
            let mut stream = TarStream::new(&bytes[..]);
            let mut entries = 0;
            while stream.next_entry().unwrap().is_some() {
                std::io::copy(&mut stream.content(), &mut sink()).unwrap();
                entries += 1;
            }
            assert_eq!(entries, ENTRIES);
            stream.into_inner().0.read(&mut [0]).unwrap()
        });
    });
    group.finish();
}

/// A layer whose directories are those of every other one, with files of its own.
fn layer(repo: &ostree::Repo, number: usize) -> LayerRoot {
    let written = repo.write_regfile_inline(None, 0, 0, 0o100_644, None, &[0, 1, 2], NO_CANCEL);
    let file = checksum(&written.unwrap()).unwrap();
    let meta = write_dirmeta(repo, &DirMeta::default()).unwrap();
    let mut root = DirTree::default();
    for directory in 0..DIRECTORIES {
        let mut below = DirTree::default();
        for name in 0..FILES {
            let name = format!("file-{directory}-{number}-{name}");
            below.files.insert(name, file);
        }
        let below = write_dirtree(repo, &below).unwrap();
        root.dirs
            .insert(format!("directory-{directory}"), (below, meta));
    }
    LayerRoot {
        tree: write_dirtree(repo, &root).unwrap(),
        meta,
        implied: HashSet::new(),
        whiteouts: Some(std::collections::BTreeSet::new()),
        left_out: Vec::new(),
    }
}

fn merge_trees(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    atomic_rs::safefs::libostree::load().unwrap();
    let repo = ostree::Repo::new_for_path(dir.path());
    repo.create(ostree::RepoMode::BareUser, NO_CANCEL).unwrap();
    let layers: Vec<LayerRoot> = (0..3).map(|number| layer(&repo, number)).collect();
    let path = camino::Utf8Path::from_path(dir.path()).unwrap();
    let writers = Writers::start(&repo, path, false).unwrap();
    let staged = writers.staged(&repo);
    let mut group = criterion.benchmark_group("tree");
    group.throughput(Throughput::Elements((DIRECTORIES * FILES * 3) as u64));
    group.bench_function("merge three layers of 10 000 files", |bencher| {
        bencher.iter(|| tree::merge(&staged, black_box(&layers)).unwrap());
    });
    group.finish();
}

fn fill_in(criterion: &mut Criterion) {
    let line = "ExecStart=/bin/true $NAME ${IMAGE} $$\n";
    let text = line.repeat(LINES);
    let look_up = |name: &str| match name {
        "NAME" => Some(Value::Text("web")),
        "IMAGE" => Some(Value::Text("registry.example/app:1")),
        _ => None,
    };
    let mut group = criterion.benchmark_group("template");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("a unit of 200 lines", |bencher| {
        bencher.iter(|| substitute("unit", black_box(&text), Place::Unit, look_up).unwrap());
    });
    group.finish();
}

fn read_references(criterion: &mut Criterion) {
    let digest = format!("@sha256:{}", "a".repeat(64));
    let texts = [
        "app".to_owned(),
        "docker://registry.example:5000/group/app:1.2".to_owned(),
        format!("registry.example/group/app{digest}"),
        "oci:/srv/layout:1".to_owned(),
    ];
    let mut group = criterion.benchmark_group("reference");
    group.throughput(Throughput::Elements(texts.len() as u64));
    group.bench_function("four kinds", |bencher| {
        bencher.iter(|| {
            for text in &texts {
                black_box(text.parse::<Reference>().unwrap());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, read_tar, merge_trees, fill_in, read_references);
criterion_main!(benches);
