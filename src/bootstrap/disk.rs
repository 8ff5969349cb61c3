//! Disk images: a file system in a sparse file, the layers laid into it, and an image cut after each.

use std::fs::File;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};

use super::directory::is_mount_point;
use super::lay::Lay;
use super::script::{self, Script};
use super::{Form, Layers, NEW, Progress, Request, password, qcow2, set_password};
use crate::command::Child;
use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;

/// Where the file system is mounted meanwhile.
const MOUNT: &str = ".mount";
/// Where scripts are that do without.
const SCRATCH: &str = ".scratch";
/// A file system's name where the same layers are to give the same bytes.
const UUID: &str = "6e1d2a52-8c07-4b8e-9d5e-3f0f5b0c7a11";

/// What goes onto a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// As most have today.
    Ext4,
    /// Without extents, as its predecessors made it.
    Ext3,
}

impl FileSystem {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Ext3 => "ext3",
        }
    }
}

impl FromStr for FileSystem {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "ext3" => Ok(Self::Ext3),
            _ => fail!(Kind::Usage, "\"{text}\" is not a file system: ext4 or ext3"),
        }
    }
}

/// How an image names the one below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// By its path: it cannot be moved.
    Absolute,
    /// By its name: all of them can be moved together.
    Relative,
}

impl FromStr for Backing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "absolute" => Ok(Self::Absolute),
            "relative" => Ok(Self::Relative),
            _ => fail!(Kind::Usage, "\"{text}\" is neither absolute nor relative"),
        }
    }
}

/// Make the images in `directory`: their names, and how many entries could not be made.
pub fn make(
    config: &Config,
    layers: &Layers<'_>,
    request: &Request,
    form: &Form,
    directory: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<(Vec<Utf8PathBuf>, u64)> {
    let (disk, chain) = match form {
        Form::Qcow2 {
            disk,
            flat,
            backing,
        } => (disk, Some((*flat, *backing))),
        Form::Raw { disk } => (disk, None),
        Form::Directory => fail!(Kind::Usage, "a directory is no disk"),
    };
    let raw = directory.join("disk.raw");
    let file = File::create_new(&raw).context(|| format!("cannot create {raw}"))?;
    file.set_len(disk.size)
        .context(|| format!("cannot create {raw}"))?;
    let is_root = rustix::process::geteuid().is_root();
    make_file_system(&raw, disk.file_system, is_root)?;
    let file = File::open(&raw).context(|| format!("cannot open {raw}"))?;
    let mut cuts = Cuts {
        disk: qcow2::Disk::new(file, disk.size),
        directory,
        destination: camino::absolute_utf8(&request.destination)
            .context(|| request.destination.to_string())?,
        names: Vec::new(),
    };
    let way = Way {
        config,
        layers,
        request,
        chain: chain.and_then(|(flat, backing)| (!flat).then_some(backing)),
    };
    let left_out = if is_root {
        way.mounted(&raw, directory, &mut cuts, progress)?
    } else {
        way.scripted(&raw, directory, &mut cuts, progress)?
    };
    if let Some((_, backing)) = chain {
        cuts.cut(backing)?;
    }
    if chain.is_none() {
        return Ok((vec!["disk.raw".into()], left_out));
    }
    std::fs::remove_file(&raw).context(|| format!("cannot remove {raw}"))?;
    Ok((cuts.names, left_out))
}

/// How the file system is filled. All but the last image of a chain are cut on the way.
struct Way<'w> {
    config: &'w Config,
    layers: &'w Layers<'w>,
    request: &'w Request,
    chain: Option<Backing>,
}

impl Way<'_> {
    fn steps(&self) -> usize {
        self.layers.count() + usize::from(self.request.root_password.is_some())
    }

    /// By the kernel, which is much quicker about it.
    fn mounted(
        &self,
        raw: &Utf8Path,
        directory: &Utf8Path,
        cuts: &mut Cuts<'_>,
        progress: &mut dyn Progress,
    ) -> Result<u64> {
        let mount = directory.join(MOUNT);
        std::fs::create_dir(&mount).context(|| format!("cannot create {mount}"))?;
        let mounted = Mounted::new(raw, &mount)?;
        let mut left_out = 0;
        for number in 0..self.steps() {
            if number < self.layers.count() {
                let is_new = number == 0;
                let mut lay = Lay::into(
                    mount.as_std_path(),
                    &self.request.ids,
                    true,
                    is_new,
                    &self.config.interrupt,
                )?;
                self.layers.lay(number, &mut lay, progress)?;
                left_out += lay.finish()?;
            } else {
                set_password(self.request, &mount)?;
            }
            if let Some(backing) = self.chain
                && number + 1 < self.steps()
            {
                mounted.while_frozen(|| cuts.cut(backing))?;
            }
        }
        mounted.end()?;
        std::fs::remove_dir(&mount).context(|| format!("cannot remove {mount}"))?;
        Ok(left_out)
    }

    /// By scripts for debugfs, for those who may mount nothing.
    fn scripted(
        &self,
        raw: &Utf8Path,
        directory: &Utf8Path,
        cuts: &mut Cuts<'_>,
        progress: &mut dyn Progress,
    ) -> Result<u64> {
        let scratch = directory.join(SCRATCH);
        std::fs::create_dir(&scratch).context(|| format!("cannot create {scratch}"))?;
        let script = Script::new(raw, scratch.clone())?;
        let mut lay = Lay::onto(script, &self.request.ids, &self.config.interrupt);
        for number in 0..self.layers.count() {
            self.layers.lay(number, &mut lay, progress)?;
            if let Some(backing) = self.chain
                && number + 1 < self.steps()
            {
                cuts.cut(backing)?;
            }
        }
        if let Some(password) = &self.request.root_password {
            lay.target().set_password(&password::hash(password)?)?;
        }
        std::fs::remove_dir_all(&scratch).context(|| format!("cannot remove {scratch}"))?;
        // It is not the kernel that has written it.
        let check = Child::new(script::program("e2fsck")).args(["-fn", raw.as_str()]);
        check
            .run()
            .map_err(|error| error.within("the file system is not what it should be"))?;
        lay.finish()
    }
}

/// The images of a chain.
struct Cuts<'d> {
    disk: qcow2::Disk,
    directory: &'d Utf8Path,
    destination: Utf8PathBuf,
    names: Vec<Utf8PathBuf>,
}

impl Cuts<'_> {
    fn cut(&mut self, backing: Backing) -> Result<()> {
        let name = Utf8PathBuf::from(format!("layer-{}.qcow2", self.names.len()));
        let path = self.directory.join(&name);
        let out = File::create_new(&path).context(|| format!("cannot create {path}"))?;
        let below = self.names.last().map(|below| match backing {
            Backing::Absolute => self.destination.join(below),
            Backing::Relative => below.clone(),
        });
        self.disk
            .cut(&out, below.as_ref().map(|path| path.as_str()))?;
        self.names.push(name);
        Ok(())
    }
}

/// By root with a name of its own; by others always the same one.
fn make_file_system(raw: &Utf8Path, kind: FileSystem, is_root: bool) -> Result<()> {
    // What is not written is zeros already.
    let mut extended = "nodiscard,root_owner=0:0".to_owned();
    let mut child = Child::new(script::program("mke2fs")).args(["-q", "-F", "-t", kind.name()]);
    if !is_root {
        extended.push_str(",hash_seed=");
        extended.push_str(UUID);
        child = child.args(["-U", UUID]);
        child = child.env(script::TIME_VARIABLE, script::TIME);
    }
    child.args(["-E", &extended]).arg(raw).run().map(|_| ())
}

/// Unmount what a killed one has left mounted in its directory.
pub fn unmount_abandoned(staged: &Utf8Path) -> Result<()> {
    let mount = staged.join(NEW).join(MOUNT);
    let is_dir = |path: &Utf8Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    if is_dir(&staged.join(NEW)) && is_dir(&mount) && is_mount_point(mount.as_std_path()) {
        // It may have been killed in the middle of a cut.
        let _ = thaw(&mount);
        Child::new("umount").args(["--", mount.as_str()]).run()?;
    }
    Ok(())
}

/// A file system that is mounted until this is gone.
struct Mounted<'m> {
    path: &'m Utf8Path,
    is_mounted: bool,
}

impl<'m> Mounted<'m> {
    fn new(raw: &Utf8Path, path: &'m Utf8Path) -> Result<Self> {
        // By way of the cache: what is removed before it is on the disk never needs to get there.
        let device = Child::new("losetup")
            .args(["--find", "--show", "--direct-io=off", "--", raw.as_str()])
            .run()?;
        let device = String::from_utf8_lossy(&device).trim().to_owned();
        // What the kernel would write in the background would be in later images.
        let options = "noatime,discard,noinit_itable,barrier=0,nodev,nosuid,noexec";
        let mounted = Child::new("mount")
            .args(["-t", "ext4", "-o", options, "--", &device, path.as_str()])
            .run();
        // It goes with the mount, or else at once.
        let detached = Child::new("losetup").args(["--detach", &device]).run();
        mounted?;
        let out = Self {
            path,
            is_mounted: true,
        };
        detached?;
        Ok(out)
    }

    /// Do something while all of it is in the file, in good order.
    fn while_frozen<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<T> {
        let frozen = Frozen::new(self.path)?;
        let done = what();
        frozen.end()?;
        done
    }

    /// Unmount it: all of it is in the file then.
    fn end(mut self) -> Result<()> {
        self.is_mounted = false;
        Child::new("umount")
            .args(["--", self.path.as_str()])
            .run()
            .map(|_| ())
    }
}

/// A file system that is frozen until this is gone: unmounted before, it would stay in the kernel's memory.
struct Frozen<'m>(Option<&'m Utf8Path>);

impl<'m> Frozen<'m> {
    fn new(path: &'m Utf8Path) -> Result<Self> {
        Child::new("fsfreeze")
            .args(["--freeze", path.as_str()])
            .run()?;
        tracing::debug!("frozen");
        Ok(Self(Some(path)))
    }

    fn end(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), thaw)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = thaw(path)
        {
            tracing::warn!(%error, "still frozen");
        }
    }
}

fn thaw(path: &Utf8Path) -> Result<()> {
    Child::new("fsfreeze")
        .args(["--unfreeze", path.as_str()])
        .run()
        .map(|_| ())
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(error) = Child::new("umount").args(["--", self.path.as_str()]).run()
        {
            tracing::warn!(%error, "still mounted");
        }
    }
}
