//! The host's package manager. Its own programs do what is done to the host; what they say is passed on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};

use super::frontend::{self, FrontendLock, patiently};
use super::{Format, Relation};
use crate::command::{Child, Finished, find_program};
use crate::error::{Kind, Result};
use crate::fail;

/// How much of what a failed program printed is passed on.
const LINES: usize = 12;

/// How many paths one command line gets.
const PATHS_PER_CALL: usize = 500;

/// What rpm says in front of a package that is not there.
const NEEDED: &str = " is needed by ";

/// The package manager for packages of one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manager {
    format: Format,
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

    /// See whether the package `name` in `file` could be installed, and change nothing. Returns what it
    /// needs and is not on the host.
    ///
    /// # Errors
    /// What the package manager says of anything else.
    pub fn check(self, name: &str, file: &Utf8Path) -> Result<Vec<Relation>> {
        let failed = || format!("the package {name} cannot be installed");
        match self.format {
            Format::Rpm => {
                let test = || rpm().args(["-U", "--test", "--oldpackage", "--replacepkgs"]);
                let finished = test().arg(file).output()?;
                if finished.status.success() {
                    return Ok(Vec::new());
                }
                let Some(missing) = needed(&finished.stderr).filter(|list| !list.is_empty()) else {
                    return tell(&finished, failed).map(|()| Vec::new());
                };
                let others = test().arg("--nodeps").arg(file).output()?;
                tell(&others, failed).map(|()| missing)
            }
            Format::Deb => {
                // It looks at conflicts; at what is needed and at others' files it looks when it is too late.
                let test = dpkg()
                    .args(["--dry-run", "--force-depends", "-i"])
                    .arg(file);
                tell(&patiently(test)?, failed)?;
                missing_debs(&depends(file)?)
            }
        }
    }

    /// Have the host's resolver install `wants` from its repositories, and remove nothing for it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no resolver; what it says.
    pub fn fetch(self, wants: &[Relation]) -> Result<()> {
        let list: Vec<String> = match self.format {
            Format::Rpm => wants.iter().map(ToString::to_string).collect(),
            Format::Deb => wants.iter().map(Relation::as_deb).collect(),
        };
        let programs: &[&str] = match self.format {
            Format::Rpm => &["dnf", "yum"],
            Format::Deb => &["apt-get"],
        };
        let found = programs.iter().find(|name| find_program(name).is_some());
        let Some(program) = found else {
            fail!(
                Kind::NotFound,
                "the package needs {}, and there is no {} to install it",
                list.join(", "),
                programs[0]
            );
        };
        let child = surviving(program).env("DEBIAN_FRONTEND", "noninteractive");
        let child = match self.format {
            Format::Rpm => child.args(["install", "-y", "--"]).args(&list),
            Format::Deb => child
                .args([
                    "satisfy",
                    "-y",
                    "-q",
                    "--no-install-recommends",
                    "--no-remove",
                    "--",
                ])
                .arg(list.join(", ")),
        };
        let failed = || {
            format!(
                "the needed packages cannot be installed: {}",
                list.join(", ")
            )
        };
        tell(&patiently(child)?, failed)
    }

    /// Install the package `name` in `file`, whatever version of it is there. `lock`: ours, if we hold it.
    ///
    /// # Errors
    /// What the package manager says.
    pub fn install(self, name: &str, file: &Utf8Path, lock: Option<&FrontendLock>) -> Result<()> {
        let failed = || format!("the package {name} cannot be installed");
        match self.format {
            Format::Rpm => {
                let child = rpm().args(["-U", "--oldpackage", "--replacepkgs"]);
                tell(&child.arg(file).output()?, failed)?;
                drop_duplicates(name, file)
            }
            Format::Deb => {
                let child = dpkg_under(lock).args(["--force-confold", "--force-confmiss", "-i"]);
                tell(&patiently(child.arg(file))?, failed)
            }
        }
    }

    /// Remove the package `name`, its configuration included; one that is not there is no error. `lock`:
    /// ours, if we hold it.
    pub fn remove(self, name: &str, lock: Option<&FrontendLock>) -> Result<()> {
        if self.installed(name)?.is_none() {
            return Ok(());
        }
        let failed = || format!("the package {name} cannot be removed");
        match self.format {
            Format::Rpm => {
                let child = rpm().args(["-e", "--allmatches", "--", name]);
                tell(&child.output()?, failed)
            }
            Format::Deb => {
                let child = dpkg_under(lock).args(["--force-remove-reinstreq", "-P", name]);
                tell(&patiently(child)?, failed)
            }
        }
    }

    /// After somebody was killed: wait for whoever is at work still, and remove what rpm began of the
    /// package in `file` and did not finish. It writes every file as `NAME;ID` first, and cannot do so twice
    /// in one second.
    pub fn settle(self, file: &Utf8Path) -> Result<()> {
        match self.format {
            Format::Deb => frontend::wait_for_dpkg(),
            Format::Rpm => {
                // A test takes the lock, too; what it says is said again by what comes after.
                rpm()
                    .args(["-U", "--test", "--nodeps", "--oldpackage", "--replacepkgs"])
                    .arg(file)
                    .output()?;
                let listed = rpm().args(["-qlp"]).arg(file).output()?;
                for path in leftovers(&String::from_utf8_lossy(&listed.stdout)) {
                    crate::safefs::remove_if_exists(path.as_std_path())?;
                }
                Ok(())
            }
        }
    }

    /// The version of a package that is installed, or half installed.
    pub fn installed(self, name: &str) -> Result<Option<String>> {
        match self.format {
            Format::Rpm => Ok(installed_rpms(name)?.into_iter().next()),
            Format::Deb => {
                let format = "-f=${db:Status-Status} ${Version}";
                let finished = dpkg_query().args(["-W", format, name]).output()?;
                let said = String::from_utf8_lossy(&finished.stdout).into_owned();
                Ok(match said.split_once(' ') {
                    Some((state, version))
                        if finished.status.success() && state != "not-installed" =>
                    {
                        Some(version.to_owned())
                    }
                    _ => None,
                })
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

    /// Which of `paths` belong to packages, and to which.
    pub fn owners(self, paths: &[&Utf8PathBuf]) -> Result<Vec<(Utf8PathBuf, String)>> {
        let mut out = Vec::new();
        match self.format {
            Format::Rpm => {
                for path in paths {
                    let asked = rpm().args(["-qf", "--qf", "%{NAME}\n"]).arg(path);
                    let finished = asked.output()?;
                    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
                    if finished.status.success() {
                        out.extend(said.lines().map(|name| ((*path).clone(), name.to_owned())));
                    }
                }
            }
            Format::Deb => {
                for some in paths.chunks(PATHS_PER_CALL) {
                    // It fails where one of them is nobody's.
                    let said = dpkg_query().args(["-S", "--"]).args(some).output()?.stdout;
                    for line in String::from_utf8_lossy(&said).lines() {
                        if let Some((names, path)) = line.split_once(": ")
                            && !names.starts_with("diversion")
                            && some.iter().any(|asked| *asked == path)
                        {
                            let names = names.split(", ").map(str::to_owned);
                            out.extend(names.map(|name| (path.into(), name)));
                        }
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Pass on what a program said, if it failed.
fn tell(finished: &Finished, failed: impl Fn() -> String) -> Result<()> {
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

/// What an rpm needs and is not there, by what a test said; nothing if it said anything else as well.
fn needed(stderr: &str) -> Option<Vec<Relation>> {
    let lines = stderr.lines().filter_map(|line| line.strip_prefix('\t'));
    lines
        .map(|line| {
            let (want, whom) = line.split_once(NEEDED)?;
            // A package of the host that would lose what it needs cannot be helped by another one.
            (!whom.starts_with("(installed)"))
                .then(|| want.parse().ok())
                .flatten()
        })
        .collect()
}

/// What a deb of ours needs.
fn depends(file: &Utf8Path) -> Result<Vec<Relation>> {
    let said = dpkg_child("dpkg-deb")
        .arg("-f")
        .arg(file)
        .arg("Depends")
        .run()?;
    String::from_utf8_lossy(&said)
        .trim()
        .split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| part.replace(['(', ')'], "").parse())
        .collect()
}

fn missing_debs(wants: &[Relation]) -> Result<Vec<Relation>> {
    if wants.is_empty() {
        return Ok(Vec::new());
    }
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
    let mut missing = Vec::new();
    for want in wants {
        let found = versions.get(want.name.as_str());
        let found = found.map_or(&[][..], Vec::as_slice);
        let mut there = want.version.is_none() && !found.is_empty();
        if let Some((comparator, wanted)) = &want.version {
            for version in found.iter().flatten() {
                let words = ["--compare-versions", version, comparator.word(), wanted];
                there |= dpkg().args(words).output()?.status.success();
            }
        }
        if !there {
            missing.push(want.clone());
        }
    }
    Ok(missing)
}

/// Files that rpm began and did not finish, of those in a list.
fn leftovers(listed: &str) -> Vec<Utf8PathBuf> {
    let mut names: BTreeMap<&Utf8Path, BTreeSet<&str>> = BTreeMap::new();
    for path in listed.lines().map(Utf8Path::new) {
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
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
    dpkg_child("dpkg")
}

fn dpkg_child(program: &str) -> Child {
    surviving(program).env("DEBIAN_FRONTEND", "noninteractive")
}

fn dpkg_under(lock: Option<&FrontendLock>) -> Child {
    match lock {
        Some(_) => dpkg().env("DPKG_FRONTEND_LOCKED", "true"),
        None => dpkg(),
    }
}

fn dpkg_query() -> Child {
    dpkg_child("dpkg-query")
}

/// `VERSION-RELEASE`, with the epoch if there is one, of every rpm of that name.
fn installed_rpms(name: &str) -> Result<Vec<String>> {
    let finished = rpm().args(["-q", "--qf", EVR, name]).output()?;
    if !finished.status.success() {
        return Ok(Vec::new());
    }
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    Ok(said.lines().map(str::to_owned).collect())
}

const EVR: &str = "%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\n";

/// An rpm that was killed between the new package and the old one leaves both on record.
fn drop_duplicates(name: &str, file: &Utf8Path) -> Result<()> {
    let versions = installed_rpms(name)?;
    if versions.len() < 2 {
        return Ok(());
    }
    let wanted = rpm().args(["-qp", "--qf", EVR]).arg(file).run()?;
    let wanted = String::from_utf8_lossy(&wanted).trim().to_owned();
    for version in versions.iter().filter(|version| **version != wanted) {
        rpm()
            .args(["-e", "--justdb", "--nodeps", "--noscripts", "--notriggers"])
            .arg(format!("{name}-{version}"))
            .run()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_rpm_needs_is_read_from_a_test() {
        let said = "error: Failed dependencies:\n\thelper >= 1.2 is needed by app-1-1.x86_64\n\t/bin/sh is needed by app-1-1.x86_64";
        let wants = needed(said).unwrap();
        assert_eq!(wants.len(), 2);
        assert_eq!(wants[0].to_string(), "helper >= 1.2");
        assert_eq!(needed("\tx is needed by (installed) y-1-1.noarch\n"), None);
        assert_eq!(needed("\trival < 2 conflicts with app-1-1\n"), None);
    }
}
