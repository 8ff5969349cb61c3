//! Where an image may put files on the host.

use camino::{Utf8Path, Utf8PathBuf};

use crate::config::Config;
use crate::error::{Kind, Result};
use crate::fail;

/// What no image may write unless a person opens it: who may log in, how the host boots, what the
/// kernel shows, and what others keep their own books in.
const CLOSED: [&str; 31] = [
    "/boot",
    "/dev",
    "/efi",
    "/etc/crypttab",
    "/etc/fstab",
    "/etc/group",
    "/etc/group-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/ld.so.preload",
    "/etc/machine-id",
    "/etc/passwd",
    "/etc/passwd-",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/subgid",
    "/etc/subuid",
    "/etc/sudoers",
    "/etc/atomic-rs",
    "/etc/atomic-rs.toml",
    "/ostree",
    "/proc",
    "/root/.ssh",
    "/sys",
    "/sysroot",
    "/usr/lib/containers/atomic",
    "/usr/lib/sysimage",
    "/usr/share/rpm",
    "/var/lib/containers",
    "/var/lib/dpkg",
    "/var/lib/rpm",
];

/// Directories of the root that may be links to where they are below `/usr`. Source: file-hierarchy(7).
const MERGED: [&str; 6] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// A name in a directory, in bytes. Source: `NAME_MAX`, and what a staged name adds.
const MAX_NAME: usize = 255 - 32;
const MAX_PATH: usize = 1024;

/// What holds for one container's files.
#[derive(Debug, Clone)]
pub struct Rules {
    closed: Vec<Utf8PathBuf>,
    opened: Vec<Utf8PathBuf>,
}

impl Rules {
    /// The rules of this host. `opened`: paths that a person opened; what is below them is open, too.
    pub fn new(config: &Config, opened: &[Utf8PathBuf]) -> Self {
        let mut closed: Vec<Utf8PathBuf> = CLOSED.iter().map(Into::into).collect();
        closed.push(config.checkouts.clone());
        closed.extend(config.repository.clone());
        Self {
            closed,
            opened: opened.to_vec(),
        }
    }

    /// Check a target and return where it really is: below a merged `/usr`, as the case may be.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a path that is no plain absolute one, is closed, or leads through a link
    /// or a file.
    pub fn place(&self, target: &str) -> Result<Utf8PathBuf> {
        check_plain(target)?;
        let path = follow_merged(Utf8Path::new(target));
        for path in [Utf8Path::new(target), &path] {
            let is_closed = self.closed.iter().any(|closed| path.starts_with(closed));
            let is_open = self.opened.iter().any(|opened| path.starts_with(opened));
            if is_closed && !is_open {
                fail!(
                    Kind::Invalid,
                    "the image wants to write {path}, which is closed to images: --allow-host-path {path} opens it"
                );
            }
        }
        for above in path.ancestors().skip(1) {
            let Ok(found) = std::fs::symlink_metadata(above) else {
                continue;
            };
            if !found.is_dir() {
                fail!(
                    Kind::Invalid,
                    "the image wants to write {path}, and {above} is no directory but {}",
                    if found.is_symlink() {
                        "a link"
                    } else {
                        "a file"
                    }
                );
            }
        }
        Ok(path)
    }
}

fn check_plain(target: &str) -> Result<()> {
    let shown = target.escape_debug();
    let parts = || target.split('/').skip(1);
    if !target.starts_with('/') || target.len() < 2 || parts().any(|part| part == "..") {
        fail!(
            Kind::Invalid,
            "the image wants to write \"{shown}\", which is not a path below the host's root"
        );
    }
    if parts().any(|part| part.is_empty() || part == ".") || target.chars().any(char::is_control) {
        fail!(
            Kind::Invalid,
            "the image wants to write \"{shown}\", which is not a plain path"
        );
    }
    if target.len() > MAX_PATH || parts().any(|part| part.len() > MAX_NAME) {
        fail!(
            Kind::Invalid,
            "the image wants to write \"{shown}\", whose name is too long"
        );
    }
    Ok(())
}

/// The same path with a link at the root, as a merged `/usr` has them, resolved.
pub fn follow_merged(path: &Utf8Path) -> Utf8PathBuf {
    for top in MERGED {
        let Ok(rest) = path.strip_prefix(top) else {
            continue;
        };
        if let Ok(target) = std::fs::read_link(top)
            && let Ok(target) = Utf8PathBuf::try_from(target)
        {
            let target = Utf8Path::new("/").join(target);
            if target.starts_with("/usr") {
                return target.join(rest);
            }
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(opened: &[&str]) -> Rules {
        Rules {
            closed: CLOSED.iter().map(Into::into).collect(),
            opened: opened.iter().map(Into::into).collect(),
        }
    }

    #[test]
    fn closed_and_odd_targets_are_refused_with_their_path() {
        let long = format!("/usr/{}", "x".repeat(300));
        for bad in [
            "usr/x",
            "/",
            "/usr/../etc/x",
            "/usr//x",
            "/usr/./x",
            "/usr/x\ny",
            long.as_str(),
            "/etc/passwd",
            "/etc/passwd/x",
            "/boot/vmlinuz",
            "/proc/sys/kernel/core_pattern",
            "/var/lib/dpkg/status",
        ] {
            let error = rules(&[]).place(bad).unwrap_err().to_string();
            let end = bad.rsplit('/').next().unwrap().escape_debug().to_string();
            assert!(error.contains(&end), "{bad}: {error}");
        }
        for good in [
            "/usr/local/bin/x",
            "/etc/passwd.d/x",
            "/etc/udev/rules.d/1-x.rules",
        ] {
            assert_eq!(rules(&[]).place(good).unwrap(), good);
        }
        assert!(rules(&["/boot/loader"]).place("/boot/loader/x").is_ok());
        assert!(rules(&["/boot/loader"]).place("/boot/x").is_err());
    }

    #[test]
    fn a_link_on_the_way_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("link")).unwrap();
        std::fs::write(dir.join("file"), "").unwrap();
        for name in ["link/x", "file/x"] {
            let path = dir.join(name);
            assert!(rules(&[]).place(path.as_str()).is_err(), "{path}");
        }
        // A link as the target itself is somebody's file, not a way.
        assert!(rules(&[]).place(dir.join("link").as_str()).is_ok());
    }
}
