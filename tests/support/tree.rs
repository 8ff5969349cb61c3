//! Trees of files, compared.

use std::path::Path;
use std::process::Command;

use super::Said as _;

/// All there is to say of a tree: kinds, modes, owners, sizes, times, targets, links, numbers of devices, attributes and
/// contents; not of the time of the root itself, which no archive has to say.
pub fn listing(tree: &Path) -> String {
    let script = r#"
        cd "$1" || exit 1
        find . -path ./lost+found -prune -o \( -path . -printf '%p %y %m %U:%G\n' \) -o \
            -printf '%p %y %m %U:%G %T@ %l %n ' \( -type d -printf '\n' -o -printf '%s\n' \) | LC_ALL=C sort
        find . \( -type b -o -type c \) -exec stat -c '%n %t:%T' {} + | LC_ALL=C sort
        find . -path ./lost+found -prune -o \( -type f -o -type d \) -print0 | LC_ALL=C sort -z |
            xargs -0 getfattr --absolute-names -d -m - -e hex -- 2>/dev/null
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
    "#;
    let mut command = Command::new("sh");
    let output = command
        .args(["-c", script, "sh"])
        .arg(tree)
        .output()
        .unwrap();
    // Not all names are UTF-8.
    output.out()
}

/// What an escape would change: `victim`, the host's users, and root's home but for what tools of the developer's write
/// to while tests run.
pub fn watched(victim: &Path) -> String {
    let script = r#"
        find "$1" /etc/shadow /etc/passwd /etc/group /root -xdev \
            \( -path /root/.cargo -o -path /root/.rustup -o -path /root/.pyenv -o -path /root/.npm -o -path /root/.cache \
                -o -path /root/.config -o -path /root/.rpmdb \) -prune -o \
            -printf '%p %y %m %U %s %i %n %T@\n' 2>/dev/null | LC_ALL=C sort
    "#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh"])
        .arg(victim)
        .output()
        .unwrap()
        .out()
}

/// The lines that only one of two has.
pub fn difference(one: &str, other: &str) -> String {
    let only = |a: &str, b: &str, sign: char| {
        let lines = a
            .lines()
            .filter(|line| !b.lines().any(|other| other == *line));
        lines
            .map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    only(one, other, '+') + &only(other, one, '-')
}
