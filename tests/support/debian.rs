//! A Debian tree, from the packages that are installed on this machine: what debootstrap's smallest variant
//! has, with nothing downloaded.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use super::images::Layer;
use super::must;

/// Beside the essential ones.
const PACKAGES: [&str; 4] = ["apt", "adduser", "passwd", "debian-archive-keyring"];
/// What a merged `/usr` has in place of these.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Its layer.
pub fn tree() -> Layer {
    let packages = packages();
    let mut layer = Layer::new();
    for name in MERGED {
        layer = layer.dir(&format!("usr/{name}"), 0o755);
        layer = layer.symlink(name, &format!("usr/{name}"));
    }
    let mut seen: BTreeSet<String> = MERGED.iter().map(|name| format!("usr/{name}")).collect();
    let info = Path::new("/var/lib/dpkg/info");
    for package in &packages {
        let list = must(Command::new("dpkg-query").args(["--listfiles", package]));
        for path in list
            .lines()
            .filter(|path| path.starts_with('/') && path.len() > 2)
        {
            let name = merged(path.trim_start_matches('/'));
            if MERGED.contains(&name.as_str())
                || name.starts_with("usr/share/doc/")
                || !seen.insert(name.clone())
            {
                continue;
            }
            layer = add(layer, path, &name);
        }
    }
    for entry in std::fs::read_dir(info).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let package = name.split(['.', ':']).next().unwrap_or_default();
        if packages.contains(package) {
            layer = add(
                layer,
                &entry.path().display().to_string(),
                &format!("var/lib/dpkg/info/{name}"),
            );
        }
    }
    let base = |name: &str| std::fs::read(format!("/usr/share/base-passwd/{name}.master")).unwrap();
    layer
        .file("var/lib/dpkg/status", 0o644, status(&packages))
        .file("etc/passwd", 0o644, base("passwd"))
        .file("etc/group", 0o644, base("group"))
        .file("etc/shadow", 0o640, "root:*:19000:0:99999:7:::\n")
        .file(
            "etc/ld.so.conf",
            0o644,
            "include /etc/ld.so.conf.d/*.conf\n",
        )
        .file("etc/debian_version", 0o644, "12\n")
        .dir("root", 0o700)
        .dir("tmp", 0o1777)
        .dir("var/tmp", 0o1777)
}

fn merged(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) && first != path {
        return format!("usr/{path}");
    }
    path.to_owned()
}

fn add(layer: Layer, path: &str, name: &str) -> Layer {
    let Ok(meta) = std::fs::symlink_metadata(path) else {
        // Documentation may have been left out.
        return layer;
    };
    let mode = meta.mode() & 0o7777;
    if meta.is_symlink() {
        let target = std::fs::read_link(path).unwrap();
        return layer.symlink(name, &target.display().to_string());
    }
    if meta.is_dir() {
        return layer.dir(name, mode);
    }
    layer.owned_file(name, mode, meta.gid(), std::fs::read(path).unwrap())
}

/// The paragraphs of these packages.
fn status(packages: &BTreeSet<String>) -> String {
    let text = std::fs::read_to_string("/var/lib/dpkg/status").unwrap();
    let of = |paragraph: &&str| {
        let name = paragraph
            .lines()
            .find_map(|line| line.strip_prefix("Package: "));
        name.is_some_and(|name| packages.contains(name))
    };
    text.split("\n\n")
        .filter(of)
        .map(|paragraph| format!("{paragraph}\n\n"))
        .collect()
}

/// The essential ones and what they need.
fn packages() -> BTreeSet<String> {
    let form = "${Package}\t${Essential}\t${Pre-Depends}, ${Depends}\t${db:Status-Status}\n";
    let all = must(Command::new("dpkg-query").args(["--show", "--showformat", form]));
    let mut needs: BTreeMap<&str, &str> = BTreeMap::new();
    let mut wanted: Vec<&str> = PACKAGES.to_vec();
    for line in all.lines() {
        if let [name, essential, depends, "installed"] = line.split('\t').collect::<Vec<_>>()[..] {
            needs.insert(name, depends);
            if essential == "yes" {
                wanted.push(name);
            }
        }
    }
    let mut out = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        let Some(depends) = needs.get(name) else {
            continue;
        };
        if !out.insert(name.to_owned()) {
            continue;
        }
        for alternatives in depends.split(',') {
            let names = alternatives.split('|').map(|word| {
                let word = word.trim().split([' ', '(', ':']).next();
                word.unwrap_or_default()
            });
            wanted.extend(names.filter(|name| needs.contains_key(name)).take(1));
        }
    }
    out
}
