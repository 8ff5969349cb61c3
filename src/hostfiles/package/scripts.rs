//! What a package does beside bringing files: the conventions of each format.
//!
//! Sources: Fedora packaging guidelines, "Scriptlets" (systemd); systemd.preset(5); Debian policy 6 and
//! 9.3.3, deb-systemd-helper(1p).

use camino::Utf8Path;

use super::{Body, Entry, Format, Package};

/// How many paths one command line gets.
const PATHS_PER_LINE: usize = 50;

/// The scripts of a package; an empty one is left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scripts {
    /// After the files are in place.
    pub after_install: String,
    /// Before they go.
    pub before_removal: String,
    /// When they are gone.
    pub after_removal: String,
}

impl Scripts {
    /// Those of `package`.
    pub(super) fn new(package: &Package, format: Format) -> Self {
        let mut out = match format {
            Format::Rpm => rpm(package),
            Format::Deb => deb(package),
        };
        let fixed = fix(&package.entries, format);
        out.after_install.insert_str(0, &fixed);
        out
    }
}

fn rpm(package: &Package) -> Scripts {
    let mut out = Scripts::default();
    if let Some(file) = &package.tmpfiles {
        out.after_install += &format!("systemd-tmpfiles --create {file} >/dev/null 2>&1 || :\n");
    }
    let reload = "systemctl daemon-reload >/dev/null 2>&1 || :\n";
    if let Some(directory) = &package.container {
        out.after_removal += &format!("if [ \"$1\" -eq 0 ]; then\n    {}\nfi\n", clear(directory));
    }
    if let Some(unit) = &package.service {
        // The preset file of the package says that it is enabled, and an administrator's may say other.
        out.after_install += &format!(
            "if [ \"$1\" -eq 1 ]; then\n    systemctl --no-reload preset {unit} >/dev/null 2>&1 || :\nfi\n{reload}"
        );
        out.before_removal += &format!(
            "if [ \"$1\" -eq 0 ]; then\n    systemctl --no-reload disable --now {unit} >/dev/null 2>&1 || :\nfi\n"
        );
        out.after_removal += &format!(
            "{reload}if [ \"$1\" -ge 1 ]; then\n    systemctl try-restart {unit} >/dev/null 2>&1 || :\nfi\n"
        );
    } else if has_units(&package.entries) {
        out.after_install += reload;
        out.after_removal += reload;
    }
    out
}

fn deb(package: &Package) -> Scripts {
    let mut out = Scripts::default();
    let reload = "if [ -d /run/systemd/system ]; then\n    systemctl --system daemon-reload >/dev/null || true\nfi\n";
    let mut configure = String::new();
    if let Some(file) = &package.tmpfiles {
        configure += &format!("    systemd-tmpfiles --create {file} >/dev/null || true\n");
    }
    if let Some(unit) = &package.service {
        configure += &format!(
            "    deb-systemd-helper unmask {unit} >/dev/null || true\n    \
             if deb-systemd-helper --quiet was-enabled {unit}; then\n        \
             deb-systemd-helper enable {unit} >/dev/null || true\n    \
             else\n        \
             deb-systemd-helper update-state {unit} >/dev/null || true\n    \
             fi\n    \
             if [ -d /run/systemd/system ]; then\n        \
             systemctl --system daemon-reload >/dev/null || true\n        \
             if [ -n \"$2\" ]; then\n            \
             deb-systemd-invoke restart {unit} >/dev/null || true\n        \
             else\n            \
             deb-systemd-invoke start {unit} >/dev/null || true\n        \
             fi\n    \
             fi\n"
        );
        out.before_removal += &format!(
            "if [ -d /run/systemd/system ] && [ \"$1\" = remove ]; then\n    deb-systemd-invoke stop {unit} >/dev/null || true\nfi\n"
        );
        out.after_removal += &format!(
            "{reload}if [ \"$1\" = purge ] && command -v deb-systemd-helper >/dev/null; then\n    deb-systemd-helper purge {unit} >/dev/null || true\n    deb-systemd-helper unmask {unit} >/dev/null || true\nfi\n"
        );
    } else if has_units(&package.entries) {
        configure += &reload.replace('\n', "\n    ");
        configure.truncate(configure.trim_end().len());
        configure.insert_str(0, "    ");
        configure.push('\n');
        out.after_removal += reload;
    }
    if let Some(directory) = &package.container {
        out.after_removal += &format!(
            "if [ \"$1\" = remove ]; then\n    {}\nfi\n",
            clear(directory)
        );
    }
    if !configure.is_empty() {
        out.after_install += &format!("if [ \"$1\" = configure ]; then\n{configure}fi\n");
    }
    out
}

/// Remove what a runtime made in the container's directory, and nothing that is mounted there.
fn clear(directory: &Utf8Path) -> String {
    format!("rm -rf --one-file-system {directory} || :")
}

/// True if systemd has to read its units again.
fn has_units(entries: &[Entry]) -> bool {
    let places = ["/etc", "/usr/lib", "/usr/local/lib", "/lib"];
    entries.iter().any(|entry| {
        places.iter().any(|place| {
            let below = |kind: &str| entry.path.starts_with(format!("{place}/systemd/{kind}"));
            below("system") || below("user")
        })
    })
}

/// Owners and capabilities, where the format has no place for them.
fn fix(entries: &[Entry], format: Format) -> String {
    let mut out = String::new();
    if format == Format::Rpm {
        let mut owners: Vec<(u32, u32)> =
            entries.iter().map(|entry| (entry.uid, entry.gid)).collect();
        owners.sort_unstable();
        owners.dedup();
        for owner in owners.into_iter().filter(|owner| *owner != (0, 0)) {
            let of_owner: Vec<&Entry> = entries
                .iter()
                .filter(|entry| (entry.uid, entry.gid) == owner)
                .collect();
            let special =
                |entry: &&Entry| entry.mode & 0o6000 != 0 && !matches!(entry.body, Body::Link(_));
            let (special, plain): (Vec<&Entry>, Vec<&Entry>) =
                of_owner.into_iter().partition(special);
            let chown = format!("chown -h {}:{}", owner.0, owner.1);
            each(&mut out, &chown, &plain);
            for entry in special {
                let path = quoted(entry);
                out += &format!("{chown} {path} && chmod {:o} {path} || :\n", entry.mode);
            }
        }
    }
    for entry in entries {
        // An rpm gives them to root's files only: they must not be had before their owner is right.
        let lost = format == Format::Deb || (entry.uid, entry.gid) != (0, 0);
        if let Some(text) = entry.capabilities.as_ref().filter(|_| lost) {
            each(&mut out, &format!("setcap '{text}'"), &[entry]);
        }
    }
    out
}

fn each(out: &mut String, command: &str, entries: &[&Entry]) {
    for some in entries.chunks(PATHS_PER_LINE) {
        out.push_str(command);
        for entry in some {
            out.push(' ');
            out.push_str(&quoted(entry));
        }
        out.push_str(" || :\n");
    }
}

/// A path as a word of the shell.
fn quoted(entry: &Entry) -> String {
    format!("'{}'", entry.path.as_str().replace('\'', "'\\''"))
}
