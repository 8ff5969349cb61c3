//! Root filesystems of virt-builder's templates, by the programs of libguestfs.

use camino::{Utf8Path, Utf8PathBuf};
use tempfile::TempDir;

use crate::command::{Child, find_program};
use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// Where large things are made that do not last.
const SCRATCH: &str = "/var/tmp";

/// The files of a template as an archive, which goes with this.
pub struct Template {
    archive: Utf8PathBuf,
    _scratch: TempDir,
}

impl Template {
    /// Have a template built, and its files put into an archive: all but what is in `/dev` and `/boot`, for there is no
    /// kernel to boot, and with an `/etc/fstab` that mounts nothing. Root has no password that lets anybody in.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where the programs are not installed.
    pub fn build(name: &str) -> Result<Self> {
        for program in ["virt-builder", "guestfish"] {
            if find_program(program).is_none() {
                fail!(
                    Kind::NotFound,
                    "templates of virt-builder need {program}, which is not installed: it is in guestfs-tools or libguestfs-tools"
                );
            }
        }
        let place = std::env::var_os("TMPDIR").unwrap_or_else(|| SCRATCH.into());
        let scratch = tempfile::Builder::new()
            .prefix("atomic-rs-")
            .tempdir_in(&place);
        let scratch =
            scratch.context(|| format!("cannot create a directory in {}", place.display()))?;
        let Some(path) = Utf8Path::from_path(scratch.path()) else {
            fail!(Kind::Invalid, "{} is not UTF-8", place.display());
        };
        let (disk, archive) = (path.join("disk"), path.join("rootfs.tar"));
        Child::new("virt-builder")
            .args(["--quiet", "--no-network", "--format", "raw", "--output"])
            .arg(&disk)
            .args(["--root-password", "locked:disabled"])
            .args(["--edit", "/etc/fstab:s/^/#/"])
            // What comes next is a name, whatever it looks like.
            .args(["--", name])
            .run()?;
        Child::new("guestfish")
            .args(["--ro", "--format=raw", "--add"])
            .arg(&disk)
            .args(["--inspector", "tar-out", "/"])
            .arg(&archive)
            .args(["xattrs:true", "selinux:true", "acls:true"])
            .arg("excludes:./dev/* ./boot/*")
            .run()?;
        std::fs::remove_file(&disk).context(|| format!("cannot remove {disk}"))?;
        Ok(Self {
            archive,
            _scratch: scratch,
        })
    }

    /// Where the archive is.
    pub fn archive(&self) -> &Utf8Path {
        &self.archive
    }
}
