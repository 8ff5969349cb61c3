//! Disk images: a file system in a sparse file, the layers laid into it, and an image cut after each.

use std::fs::File;
use std::str::FromStr;
use std::thread::JoinHandle;

use camino::{Utf8Path, Utf8PathBuf};

use super::extents::{self, Inodes, Unchanged};
use super::lay::Lay;
use super::mounted::Mounted;
use super::script::{self, Script};
use super::{Form, Layers, Progress, Request, password, qcow2, set_password, superblock};
use crate::command::Child;
use crate::config::Config;
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;

/// A disk that is no image.
const RAW: &str = "disk.raw";
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
    let raw = directory.join(RAW);
    let failed = || format!("cannot create {raw}");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&raw)
        .context(failed)?;
    file.set_len(disk.size).context(failed)?;
    let is_root = rustix::process::geteuid().is_root();
    make_file_system(&raw, disk.file_system, is_root)?;
    let said = || "cannot change the superblock".into();
    if is_root {
        superblock::set_journal_in(&file, false).context(said)?;
    }
    let mut cuts = Cuts {
        raw: file.try_clone().context(failed)?,
        disk: qcow2::Disk::new(file, disk.size, disk.is_compressed, |disk| {
            superblock::set_journal(disk, true);
        }),
        directory,
        destination: camino::absolute_utf8(&request.destination)
            .context(|| request.destination.to_string())?,
        names: Vec::new(),
        writers: Vec::new(),
    };
    let way = Way {
        config,
        layers,
        request,
        images: chain,
    };
    let filled = if is_root {
        way.mounted(&raw, directory, &mut cuts, progress)
    } else {
        way.scripted(&raw, directory, &mut cuts, progress)
    };
    let left_out = filled.map_err(|error| {
        if !error.to_string().contains("No space left") {
            return error;
        }
        let size = disk.size;
        error.within(format_args!(
            "a disk of {size} bytes is too small, --size makes a larger one"
        ))
    })?;
    if chain.is_none() {
        superblock::set_journal_in(&cuts.raw, true).context(said)?;
        return Ok((vec![RAW.into()], left_out));
    }
    std::fs::remove_file(&raw).context(|| format!("cannot remove {raw}"))?;
    Ok((std::mem::take(&mut cuts.names), left_out))
}

/// How the file system is filled, and images are cut.
struct Way<'w> {
    config: &'w Config,
    layers: &'w Layers<'w>,
    request: &'w Request,
    /// Whether there is one of all, and how others would be named.
    images: Option<(bool, Backing)>,
}

impl Way<'_> {
    fn steps(&self) -> usize {
        let steps = self.layers.count() + usize::from(self.request.root_password.is_some());
        // Of nothing, too, there is an image.
        steps.max(1)
    }

    /// How the image that is cut after a step names the one below it, if one is cut.
    fn cut_after(&self, number: usize) -> Option<Backing> {
        let (is_one, backing) = self.images?;
        (!is_one || number + 1 == self.steps()).then_some(backing)
    }

    /// By the kernel, which is much quicker about it.
    fn mounted(
        &self,
        raw: &Utf8Path,
        directory: &Utf8Path,
        cuts: &mut Cuts<'_>,
        progress: &mut dyn Progress,
    ) -> Result<u64> {
        let mounted = Mounted::new(raw, directory)?;
        let sealed = cuts.raw.try_clone().context(|| raw.to_string())?;
        let mut left_out = 0;
        let mut inodes = Inodes::default();
        let mut cut = |number| -> Result<()> {
            let Some(backing) = self.cut_after(number) else {
                return Ok(());
            };
            let unchanged = extents::look(&cuts.raw, &mut inodes);
            let unchanged = unchanged.context(|| format!("cannot read {raw}"))?;
            cuts.cut(backing, unchanged.as_ref())
        };
        let last = self.steps().saturating_sub(1);
        for number in 0..self.steps() {
            if number < self.layers.count() {
                let is_new = number == 0;
                let mut lay = Lay::into(
                    mounted.path().as_std_path(),
                    &self.request.ids,
                    true,
                    is_new,
                    &self.config.interrupt,
                )?;
                mounted.while_written(|| self.layers.lay(number, &mut lay, progress))?;
                left_out += lay.finish()?;
            } else {
                set_password(self.request, mounted.path())?;
            }
            if number == last || self.cut_after(number).is_none() {
                continue;
            }
            mounted.sync()?;
            if superblock::seal(&sealed).context(|| format!("cannot write {raw}"))? {
                cut(number)?;
            } else {
                mounted.be_still()?;
                cut(number)?;
                mounted.go_on()?;
            }
        }
        mounted.be_still()?;
        // Nobody needs it mounted to cut the last one.
        std::thread::scope(|scope| {
            let ended = scope.spawn(|| mounted.end());
            let cut = cut(last);
            let died = |_| Error::new(Kind::Failed, "the thread that unmounts died");
            ended.join().map_err(died).flatten().and(cut)
        })?;
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
            if let Some(backing) = self.cut_after(number) {
                cuts.cut(backing, None)?;
            }
        }
        if let Some(password) = &self.request.root_password {
            lay.target().set_password(&password::hash(password)?)?;
            if let Some(backing) = self.cut_after(self.layers.count()) {
                cuts.cut(backing, None)?;
            }
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
    raw: File,
    disk: qcow2::Disk,
    directory: &'d Utf8Path,
    destination: Utf8PathBuf,
    names: Vec<Utf8PathBuf>,
    /// What writes finished images to the disk meanwhile; that they are there is made sure of at the end.
    writers: Vec<JoinHandle<()>>,
}

impl Drop for Cuts<'_> {
    fn drop(&mut self) {
        for writer in self.writers.drain(..) {
            // It has nothing to say.
            let _ = writer.join();
        }
    }
}

impl Cuts<'_> {
    fn cut(&mut self, backing: Backing, unchanged: Option<&Unchanged>) -> Result<()> {
        let name = Utf8PathBuf::from(format!("layer-{}.qcow2", self.names.len()));
        let path = self.directory.join(&name);
        let out = File::create_new(&path).context(|| format!("cannot create {path}"))?;
        let below = self.names.last().map(|below| match backing {
            Backing::Absolute => self.destination.join(below),
            Backing::Relative => below.clone(),
        });
        self.disk
            .cut(&out, below.as_ref().map(|path| path.as_str()), unchanged)?;
        self.writers.push(std::thread::spawn(move || {
            let _ = out.sync_data();
        }));
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
