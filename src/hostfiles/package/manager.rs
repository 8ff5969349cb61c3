//! The host's package manager. Its own programs do what is done to the host; what they say is passed on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::super::payload::Payload;
use super::super::wanted::{HostFile, Kind as FileKind, Wanted};
use super::{Comparator, Format, Relation, deb};
use crate::command::{Child, Finished, find_program};
use crate::error::{Context as _, Error, Kind, Result};
use crate::fail;

/// How long another user of dpkg's database is waited for.
const PATIENCE: Duration = Duration::from_mins(10);
const POLL: Duration = Duration::from_millis(200);
/// Silence before a wait is mentioned.
const PATIENT_SILENCE: Duration = Duration::from_secs(1);

/// What frontends of dpkg take before they call it. Source: dpkg(1), `DPKG_FRONTEND_LOCKED`.
const DPKG_LOCK: &str = "/var/lib/dpkg/lock-frontend";

/// How much of what a failed program printed is passed on.
const LINES: usize = 12;

/// What dpkg answers while somebody else is at work.
const LOCKED: &str = "locked by another process";

/// The package manager for packages of one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manager {
    format: Format,
}

/// An rpm that somebody else made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Its name.
    pub name: String,
    /// `VERSION-RELEASE`
    pub version: String,
    /// What is in it.
    pub wanted: Wanted,
    /// What it runs on the host, if anything.
    pub scripts: Vec<String>,
    /// What it needs, but for features of rpm.
    pub requires: Vec<Relation>,
}

impl Manager {
    /// That for `format`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not installed.
    pub fn new(format: Format) -> Result<Self> {
        let program = match format {
            Format::Rpm => "rpm",
            Format::Deb => "dpkg",
        };
        if find_program(program).is_none() {
            fail!(
                Kind::NotFound,
                "the package manager {program} is not installed: --system-package=no installs plain files"
            );
        }
        Ok(Self { format })
    }

    /// The format of the host's own packages; nothing where there is no package manager that could
    /// change the host.
    pub fn of_host() -> Option<Format> {
        // Its packages come with the whole system.
        if Path::new("/run/ostree-booted").exists() {
            return None;
        }
        let has = |program, database: &[&str]| {
            find_program(program).is_some()
                && database.iter().any(|path| {
                    std::fs::metadata(path).is_ok_and(|found| found.is_dir() || found.len() > 0)
                })
        };
        if has("dpkg", &["/var/lib/dpkg/status"]) {
            return Some(Format::Deb);
        }
        let rpm = [
            "/usr/lib/sysimage/rpm",
            "/var/lib/rpm/rpmdb.sqlite",
            "/var/lib/rpm/Packages",
            "/var/lib/rpm/Packages.db",
        ];
        has("rpm", &rpm).then_some(Format::Rpm)
    }

    /// The format it is for.
    pub fn format(self) -> Format {
        self.format
    }

    /// See whether the package `name` in `file` could be installed, and change nothing. `all`: what it needs
    /// has to be there, too.
    ///
    /// # Errors
    /// What the package manager says.
    pub fn check(self, name: &str, file: &Utf8Path, all: bool) -> Result<()> {
        let child = match self.format {
            Format::Rpm => rpm()
                .args(["-U", "--test", "--oldpackage", "--replacepkgs"])
                .args((!all).then_some("--nodeps")),
            Format::Deb => dpkg()
                .arg("--dry-run")
                .args((!all).then_some("--force-depends"))
                .arg("-i"),
        };
        self.run(child.arg(file), || {
            format!("the package {name} cannot be installed")
        })
    }

    /// Keep other package managers from beginning anything while the returned lock lives, and wait for those
    /// that have: so the wait is over before a service is stopped. rpm has no such lock for those who call
    /// it.
    ///
    /// # Errors
    /// [`Kind::Failed`] if it takes too long.
    pub fn lock(self) -> Result<Option<FrontendLock>> {
        if self.format != Format::Deb {
            return Ok(None);
        }
        let failed = || format!("cannot lock {DPKG_LOCK}");
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(DPKG_LOCK)
            .context(failed)?;
        let mut patience = Patience::new();
        loop {
            // The kind of lock that dpkg and apt take.
            match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(FrontendLock { _file: file })),
                Err(Errno::AGAIN | Errno::ACCESS) if patience.has_more() => patience.wait(),
                Err(Errno::AGAIN | Errno::ACCESS) => fail!(
                    Kind::Failed,
                    "the package manager is in use, and was for {} minutes",
                    PATIENCE.as_secs() / 60
                ),
                Err(error) => return Err(error).context(failed),
            }
        }
    }

    /// What of `wants` is not on the host.
    pub fn missing(self, wants: &[Relation]) -> Result<Vec<Relation>> {
        let mut missing = Vec::new();
        for want in wants {
            let there = match self.format {
                Format::Rpm => rpm()
                    .args(["-q", "--whatprovides", "--quiet"])
                    .arg(want.to_string())
                    .output()?
                    .status
                    .success(),
                Format::Deb => return self.missing_debs(wants),
            };
            if !there {
                missing.push(want.clone());
            }
        }
        Ok(missing)
    }

    fn missing_debs(self, wants: &[Relation]) -> Result<Vec<Relation>> {
        debug_assert_eq!(self.format, Format::Deb);
        let listed = dpkg_query()
            .arg("-W")
            .arg("-f=${db:Status-Status}\t${Package}\t${Version}\t${Provides}\n")
            .run()?;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let mut versions: BTreeMap<&str, Vec<Option<&str>>> = BTreeMap::new();
        for line in listed.lines() {
            let mut fields = line.split('\t');
            let (Some("installed"), Some(name), Some(version), provides) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            versions.entry(name).or_default().push(Some(version));
            for provided in provides.unwrap_or_default().split(',') {
                let mut words = provided.split_whitespace();
                if let Some(name) = words.next() {
                    let version = words.nth(1).map(|word| word.trim_end_matches(')'));
                    versions.entry(name).or_default().push(version);
                }
            }
        }
        let is_there = |want: &Relation| -> Result<bool> {
            let found = versions
                .get(want.name.as_str())
                .map_or(&[][..], Vec::as_slice);
            let Some((comparator, wanted)) = &want.version else {
                return Ok(!found.is_empty());
            };
            for version in found.iter().flatten() {
                let sign = match comparator {
                    Comparator::Less => "lt",
                    Comparator::LessOrEqual => "le",
                    Comparator::Equal => "eq",
                    Comparator::GreaterOrEqual => "ge",
                    Comparator::Greater => "gt",
                };
                let compared = dpkg().args(["--compare-versions", version, sign, wanted]);
                if compared.output()?.status.success() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let mut missing = Vec::new();
        for want in wants {
            if !is_there(want)? {
                missing.push(want.clone());
            }
        }
        Ok(missing)
    }

    /// Have the host's resolver install `wants` from its repositories.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no resolver; what it says.
    pub fn fetch(self, wants: &[Relation]) -> Result<()> {
        let list: Vec<String> = match self.format {
            Format::Rpm => wants.iter().map(ToString::to_string).collect(),
            Format::Deb => wants.iter().map(deb::relation).collect(),
        };
        let programs: &[&str] = match self.format {
            Format::Rpm => &["dnf", "yum"],
            Format::Deb => &["apt-get"],
        };
        let Some(program) = programs
            .iter()
            .find(|program| find_program(program).is_some())
        else {
            fail!(
                Kind::NotFound,
                "the package needs {}, and there is no {} to install it",
                list.join(", "),
                programs[0]
            );
        };
        let child = surviving(program).env("DEBIAN_FRONTEND", "noninteractive");
        let child = match self.format {
            Format::Rpm => child.args(["install", "-y"]).args(&list),
            Format::Deb => child
                .args(["satisfy", "-y", "-q", "--no-install-recommends"])
                .arg(list.join(", ")),
        };
        self.run(child, || {
            format!(
                "the needed packages cannot be installed: {}",
                list.join(", ")
            )
        })
    }

    /// Install the package `name` in `file`, whatever version of it is there.
    ///
    /// # Errors
    /// What the package manager says.
    /// `lock`: ours, if we hold it.
    pub fn install(self, name: &str, file: &Utf8Path, lock: Option<&FrontendLock>) -> Result<()> {
        let child = match self.format {
            Format::Rpm => rpm().args(["-U", "--oldpackage", "--replacepkgs"]),
            Format::Deb => dpkg_under(lock).args(["--force-confold", "--force-confmiss", "-i"]),
        };
        self.run(child.arg(file), || {
            format!("the package {name} cannot be installed")
        })?;
        if self.format == Format::Rpm {
            drop_duplicates(name, file)?;
        }
        Ok(())
    }

    /// Wait until nobody is at work any more, and remove what a killed rpm left of the package in
    /// `file`: it begins every file as `NAME;ID`, and cannot begin it again in the same second.
    pub fn settle(self, file: &Utf8Path) -> Result<()> {
        if self.format != Format::Rpm {
            return Ok(());
        }
        let wanted = look_into_rpm(file)?.wanted;
        if leftovers(&wanted).is_empty() {
            return Ok(());
        }
        // A test takes the lock, too; what it says is said again by what comes after.
        rpm()
            .args(["-U", "--test", "--nodeps", "--oldpackage", "--replacepkgs"])
            .arg(file)
            .output()?;
        for path in leftovers(&wanted) {
            crate::safefs::remove_if_exists(path.as_std_path())?;
        }
        Ok(())
    }

    /// Remove the package `name`, its configuration included; one that is not there is no error.
    /// `lock`: ours, if we hold it.
    pub fn remove(self, name: &str, lock: Option<&FrontendLock>) -> Result<()> {
        let child = match self.format {
            Format::Rpm => {
                if installed_rpms(name)?.is_empty() {
                    return Ok(());
                }
                rpm().args(["-e", "--allmatches"])
            }
            Format::Deb => {
                if matches!(dpkg_state(name)?.as_deref(), None | Some("not-installed")) {
                    return Ok(());
                }
                dpkg_under(lock).args(["--force-remove-reinstreq", "-P"])
            }
        };
        self.run(child.arg(name), || {
            format!("the package {name} cannot be removed")
        })
    }

    /// The version of a package that is installed, or half installed.
    pub fn installed(self, name: &str) -> Result<Option<String>> {
        match self.format {
            Format::Rpm => Ok(installed_rpms(name)?.into_iter().next()),
            Format::Deb => {
                if matches!(dpkg_state(name)?.as_deref(), None | Some("not-installed")) {
                    return Ok(None);
                }
                let said = dpkg_query().args(["-W", "-f=${Version}", name]).run()?;
                Ok(Some(String::from_utf8_lossy(&said).into_owned()))
            }
        }
    }

    /// The files of an installed package, and of them those that are not as they were installed.
    pub fn files(self, name: &str) -> Result<Vec<(Utf8PathBuf, bool)>> {
        let (list, verify) = match self.format {
            Format::Rpm => (rpm().args(["-ql", name]), rpm().args(["-V", name])),
            Format::Deb => (
                dpkg_query().args(["-L", name]),
                dpkg().args(["--verify", name]),
            ),
        };
        let listed = list.run()?;
        // It fails where anything differs.
        let verified = verify.output()?.stdout;
        let modified: BTreeSet<String> = String::from_utf8_lossy(&verified)
            .lines()
            .filter_map(|line| line.find(" /").map(|at| line[at + 1..].to_owned()))
            .collect();
        Ok(String::from_utf8_lossy(&listed)
            .lines()
            .filter(|line| line.starts_with('/'))
            .map(|line| (line.into(), modified.contains(line)))
            .collect())
    }

    /// The package that has `path`.
    pub fn owner(self, path: &Utf8Path) -> Result<Option<String>> {
        let finished = match self.format {
            Format::Rpm => rpm()
                .args(["-qf", "--qf", "%{NAME}\n"])
                .arg(path)
                .output()?,
            Format::Deb => dpkg_query().arg("-S").arg(path).output()?,
        };
        if !finished.status.success() {
            return Ok(None);
        }
        let said = String::from_utf8_lossy(&finished.stdout).into_owned();
        let said = said.lines().find(|line| !line.starts_with("diversion"));
        Ok(said.map(|line| match self.format {
            Format::Rpm => line.to_owned(),
            Format::Deb => line.split(": ").next().unwrap_or(line).to_owned(),
        }))
    }

    fn run(self, child: Child, failed: impl Fn() -> String) -> Result<()> {
        let finished = match self.format {
            Format::Rpm => child.output()?,
            Format::Deb => patiently(child)?,
        };
        if finished.status.success() {
            return Ok(());
        }
        // Which of the two says why differs from one program to the next.
        let stdout = String::from_utf8_lossy(&finished.stdout).into_owned();
        let lines: Vec<&str> = stdout.trim().lines().collect();
        let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
        fail!(
            Kind::Failed,
            "{}\n{}",
            failed(),
            [last.as_str(), finished.stderr.as_str()].join("\n").trim()
        )
    }
}

/// Files that rpm began and did not finish.
fn leftovers(wanted: &Wanted) -> Vec<Utf8PathBuf> {
    let mut names: BTreeMap<&Utf8Path, BTreeSet<&str>> = BTreeMap::new();
    for file in &wanted.files {
        if let (Some(parent), Some(name)) = (file.target.parent(), file.target.file_name()) {
            names.entry(parent).or_default().insert(name);
        }
    }
    let mut out = Vec::new();
    for (directory, names) in names {
        let entries = directory.read_dir_utf8().into_iter().flatten().flatten();
        out.extend(entries.map(|entry| entry.path().to_owned()).filter(|path| {
            let parts = path.file_name().and_then(|name| name.rsplit_once(';'));
            parts.is_some_and(|(name, id)| {
                names.contains(name) && id.len() == 8 && id.bytes().all(|c| c.is_ascii_hexdigit())
            })
        }));
    }
    out
}

/// A package manager that was begun is not ended with us: half of its work would be worse than all.
fn surviving(program: &str) -> Child {
    Child::surviving(program).env("LC_ALL", "C.UTF-8")
}

fn rpm() -> Child {
    surviving("rpm")
}

fn dpkg() -> Child {
    surviving("dpkg").env("DEBIAN_FRONTEND", "noninteractive")
}

fn dpkg_under(lock: Option<&FrontendLock>) -> Child {
    match lock {
        Some(_) => dpkg().env("DPKG_FRONTEND_LOCKED", "true"),
        None => dpkg(),
    }
}

fn dpkg_query() -> Child {
    surviving("dpkg-query")
}

/// Nobody else begins to change packages while this lives.
#[derive(Debug)]
pub struct FrontendLock {
    _file: File,
}

/// A wait for somebody else, which is said when it takes long.
struct Patience {
    begun: Instant,
    said: bool,
}

impl Patience {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            said: false,
        }
    }

    fn has_more(&self) -> bool {
        self.begun.elapsed() < PATIENCE
    }

    fn wait(&mut self) {
        if !self.said && self.begun.elapsed() > PATIENT_SILENCE {
            tracing::warn!("waiting for the package manager, which somebody else uses");
            self.said = true;
        }
        std::thread::sleep(POLL);
    }
}

/// dpkg does not wait for whoever is at work.
fn patiently(mut child: Child) -> Result<Finished> {
    let mut patience = Patience::new();
    loop {
        let finished = child.try_output()?;
        let locked = !finished.status.success() && finished.stderr.contains(LOCKED);
        if !locked || !patience.has_more() {
            return Ok(finished);
        }
        patience.wait();
    }
}

/// `VERSION-RELEASE` of every rpm of that name.
fn installed_rpms(name: &str) -> Result<Vec<String>> {
    let finished = rpm()
        .args(["-q", "--qf", "%{VERSION}-%{RELEASE}\n"])
        .arg(name)
        .output()?;
    if !finished.status.success() {
        return Ok(Vec::new());
    }
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    Ok(said.lines().map(str::to_owned).collect())
}

/// An rpm that was killed between the new package and the old one leaves both on record.
fn drop_duplicates(name: &str, file: &Utf8Path) -> Result<()> {
    let versions = installed_rpms(name)?;
    if versions.len() < 2 {
        return Ok(());
    }
    let wanted = rpm()
        .args(["-qp", "--qf", "%{VERSION}-%{RELEASE}"])
        .arg(file)
        .run()?;
    for version in versions
        .iter()
        .filter(|version| version.as_bytes() != wanted)
    {
        rpm()
            .args(["-e", "--justdb", "--nodeps", "--noscripts", "--notriggers"])
            .arg(format!("{name}-{version}"))
            .run()?;
    }
    Ok(())
}

/// `installed`, `half-installed`, …; nothing: dpkg does not know it.
fn dpkg_state(name: &str) -> Result<Option<String>> {
    let finished = dpkg_query()
        .args(["-W", "-f=${db:Status-Status}", name])
        .output()?;
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    Ok(finished.status.success().then_some(said))
}

/// Look into an rpm.
///
/// # Errors
/// [`Kind::Invalid`] if it is none.
pub fn look_into_rpm(file: &Utf8Path) -> Result<Contents> {
    let failed =
        |error: rpm::Error| Error::new(Kind::Invalid, format!("{file} is no rpm: {error}"));
    let package = rpm::PackageMetadata::open(file.as_std_path()).map_err(failed)?;
    let version = package.get_version().map_err(failed)?;
    let release = package.get_release().map_err(failed)?;
    let mut wanted = Wanted::default();
    for entry in package.get_file_entries().map_err(failed)? {
        let target = Utf8PathBuf::try_from(entry.path()).map_err(|_| {
            Error::new(
                Kind::Invalid,
                format!("{file} has a path that is not UTF-8"),
            )
        })?;
        let mode = u32::from(entry.mode().permissions());
        let (kind, checksum) = match entry.mode().file_type() {
            rpm::FileType::Dir => {
                wanted.parents.insert(target, (mode, 0, 0));
                continue;
            }
            rpm::FileType::Regular => (
                FileKind::File,
                entry
                    .digest()
                    .map(|digest| digest.as_hex().to_owned())
                    .unwrap_or_default(),
            ),
            rpm::FileType::SymbolicLink => {
                let to = entry.linkto().unwrap_or_default();
                (FileKind::Link(to.to_owned()), format!("link:{to}"))
            }
            _ => fail!(
                Kind::Invalid,
                "{file} wants to write {target}, which is a device or a socket"
            ),
        };
        wanted.files.push(HostFile {
            target,
            checksum,
            payload: Payload {
                source: String::new(),
                kind,
                mode,
                uid: 0,
                gid: 0,
                xattrs: Vec::new(),
                may_link: false,
            },
        });
    }
    let scripts = [
        ("%pre", package.get_pre_install_script()),
        ("%post", package.get_post_install_script()),
        ("%preun", package.get_pre_uninstall_script()),
        ("%postun", package.get_post_uninstall_script()),
        ("%pretrans", package.get_pre_trans_script()),
        ("%posttrans", package.get_post_trans_script()),
        ("%preuntrans", package.get_pre_untrans_script()),
        ("%postuntrans", package.get_post_untrans_script()),
        ("%verify", package.get_verify_script()),
    ];
    let has_triggers = [
        package.get_triggers(),
        package.get_file_triggers(),
        package.get_trans_file_triggers(),
    ]
    .into_iter()
    .any(|triggers| triggers.map_or(true, |list| !list.is_empty()));
    Ok(Contents {
        name: package.get_name().map_err(failed)?.to_owned(),
        version: format!("{version}-{release}"),
        wanted,
        scripts: scripts
            .into_iter()
            .filter(|(_, found)| found.is_ok())
            .map(|(name, _)| name)
            .chain(has_triggers.then_some("triggers"))
            .map(str::to_owned)
            .collect(),
        requires: package
            .get_requires()
            .map_err(failed)?
            .iter()
            .filter(|one| !one.name.starts_with("rpmlib("))
            .map(relation)
            .collect(),
    })
}

fn relation(found: &rpm::Dependency) -> Relation {
    use rpm::DependencyFlags as Flags;
    let signs = [
        (Flags::LESS | Flags::EQUAL, Comparator::LessOrEqual),
        (Flags::GREATER | Flags::EQUAL, Comparator::GreaterOrEqual),
        (Flags::LESS, Comparator::Less),
        (Flags::GREATER, Comparator::Greater),
        (Flags::EQUAL, Comparator::Equal),
    ];
    let comparator = signs
        .into_iter()
        .find(|(flags, _)| found.flags.contains(*flags))
        .map(|(_, comparator)| comparator);
    Relation {
        name: found.name.clone(),
        version: comparator
            .filter(|_| !found.version.is_empty())
            .map(|comparator| (comparator, found.version.clone())),
    }
}
