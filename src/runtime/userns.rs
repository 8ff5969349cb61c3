//! User namespaces: which ids an ordinary user's container has, and what its configuration must say
//! to run in one.
//!
//! Inside, 0 is the user; 1 and following are the ranges that `/etc/subuid` and `/etc/subgid` give
//! the user, one after the other. Source: subuid(5), OCI runtime specification `config-linux.md`.

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::command::{Child, find_program};
use crate::error::{Context as _, Kind, Result};
use crate::{fail, safefs};

/// Whether the kernel lets ordinary users have user namespaces, as far as it says. Source: namespaces(7); the
/// second one is Debian's own.
pub fn are_allowed() -> bool {
    let is_zero = |path: &str| {
        let text = std::fs::read_to_string(path);
        text.is_ok_and(|text| text.trim() == "0")
    };
    !is_zero("/proc/sys/user/max_user_namespaces")
        && !is_zero("/proc/sys/kernel/unprivileged_userns_clone")
}

/// One block of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// The first one inside.
    #[serde(rename = "containerID")]
    pub inside: u32,
    /// The first one on the host.
    #[serde(rename = "hostID")]
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// The ids of a user's containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Users.
    pub users: Vec<Range>,
    /// Groups.
    pub groups: Vec<Range>,
}

/// `INSIDE:OUTSIDE:SIZE` of each range, users before groups.
impl std::fmt::Display for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (kind, ranges) in [("u", &self.users), ("g", &self.groups)] {
            for range in ranges {
                write!(
                    f,
                    "{kind}{}:{}:{} ",
                    range.inside, range.outside, range.size
                )?;
            }
        }
        Ok(())
    }
}

impl Mapping {
    /// The mapping of the user who runs us. Without a range, or without the set-uid helpers that
    /// write one, there is one id.
    pub fn of_user() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        // Where there are no namespaces, ranges of ids are of no use.
        let helpers = are_allowed()
            && find_program("newuidmap").is_some()
            && find_program("newgidmap").is_some();
        let name = Child::new("id")
            .args(["-un"])
            .run()
            .map(|out| String::from_utf8_lossy(&out).trim().to_owned())
            .unwrap_or_default();
        let ranges = |file: &str, own: u32| {
            let text = if helpers {
                std::fs::read_to_string(file).unwrap_or_default()
            } else {
                String::new()
            };
            ranges(&text, &name, uid, own)
        };
        Self {
            users: ranges("/etc/subuid", uid),
            groups: ranges("/etc/subgid", gid),
        }
    }

    /// True if there are ids beyond 0.
    pub fn has_range(&self) -> bool {
        self.users.len() > 1 && self.groups.len() > 1
    }

    /// True if this user exists inside.
    pub fn has_user(&self, uid: u32) -> bool {
        holds(&self.users, uid)
    }

    /// True if this group exists inside.
    pub fn has_group(&self, gid: u32) -> bool {
        holds(&self.groups, gid)
    }

    /// Fit a configuration to a user namespace with this mapping, sharing the host's network.
    /// Mappings that an image brings itself stay. Returns what a person should know.
    pub fn fit(&self, config: &mut Value) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let Some(object) = config.as_object_mut() else {
            fail!(
                Kind::Invalid,
                "Invalid configuration file.  It is not a JSON object"
            );
        };
        let linux = object.entry("linux").or_insert_with(|| json!({}));
        if !linux.is_object() {
            *linux = json!({});
        }
        let mut namespaces: Vec<Value> = linux["namespaces"]
            .as_array()
            .cloned()
            .unwrap_or_default()
            .into_iter()
            .filter(|namespace| namespace["type"] != "network")
            .collect();
        if !namespaces
            .iter()
            .any(|namespace| namespace["type"] == "user")
        {
            namespaces.push(json!({"type": "user"}));
        }
        linux["namespaces"] = namespaces.into();
        for (key, ranges) in [("uidMappings", &self.users), ("gidMappings", &self.groups)] {
            if linux[key].as_array().is_none_or(Vec::is_empty) {
                linux[key] = json!(ranges);
            }
        }
        if let Some(linux) = linux.as_object_mut() {
            // Devices and limits are not an ordinary user's to give.
            linux.remove("resources");
        }
        self.fit_mounts(object.entry("mounts").or_insert_with(|| json!([])));
        let user = &mut object.entry("process").or_insert_with(|| json!({}))["user"];
        let id = |value: &Value| u32::try_from(value.as_u64().unwrap_or(0)).unwrap_or(u32::MAX);
        let (uid, gid) = (id(&user["uid"]), id(&user["gid"]));
        if !self.has_user(uid) || !self.has_group(gid) {
            if self.has_range() {
                fail!(
                    Kind::Invalid,
                    "the container's user {uid}:{gid} is outside of your ranges in /etc/subuid and /etc/subgid"
                );
            }
            notes.push(format!(
                "you have no range in /etc/subuid and /etc/subgid: the container's user {uid}:{gid} becomes yours"
            ));
            *user = json!({"uid": 0, "gid": 0});
        }
        if let Some(groups) = user["additionalGids"].as_array_mut() {
            groups.retain(|group| self.has_group(id(group)));
        }
        Ok(notes)
    }

    fn fit_mounts(&self, mounts: &mut Value) {
        let mut out: Vec<Value> = Vec::new();
        for mut mount in mounts.as_array().cloned().unwrap_or_default() {
            let destination = mount["destination"].as_str().unwrap_or_default().to_owned();
            let at = Utf8Path::new(&destination);
            // Without a network namespace of its own it may not mount one.
            if at.starts_with("/sys") {
                continue;
            }
            let mut options: Vec<String> = mount["options"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|option| option.as_str().map(str::to_owned))
                .collect();
            let mut add = |option: &str| {
                if !options.iter().any(|have| have == option) {
                    options.push(option.to_owned());
                }
            };
            if !at.starts_with("/dev") {
                add("nodev");
            }
            if mount["type"] == "overlay" {
                add("userxattr");
            } else if !at.starts_with("/dev") {
                add("nosuid");
            }
            options.retain(|option| match option.strip_prefix("gid=") {
                Some(gid) => gid.parse().is_ok_and(|gid| self.has_group(gid)),
                None => true,
            });
            mount["options"] = json!(options);
            out.push(mount);
        }
        out.push(json!({
            "destination": "/sys", "type": "none", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]
        }));
        *mounts = out.into();
    }
}

impl Mapping {
    /// The words before a command that is to change files of all mapped ids.
    pub fn as_root(&self) -> &'static [&'static str] {
        if self.has_range() {
            &["unshare", "--user", "--map-root-user", "--map-auto", "--"]
        } else {
            &["env", "--"]
        }
    }

    /// Run a program as root of a user namespace with this whole mapping.
    ///
    /// # Errors
    /// [`Kind::Failed`] with what the program said, or newuidmap or newgidmap.
    pub fn run_as_root(&self, program: &str, args: &[&str], input: &[u8]) -> Result<()> {
        if !are_allowed() {
            // Then all there is belongs to the user.
            return Child::new(program)
                .args(args)
                .input(input)
                .run()
                .map(|_| ());
        }
        Self::as_child(program, args, input).run_between(|pid| self.write_to(pid))
    }

    /// The same, hearing the lines that the program prints; it is asked to end once `is_asked` says so.
    pub fn run_as_root_heard(
        &self,
        program: &str,
        args: &[&str],
        input: &[u8],
        heard: impl FnMut(&str),
        is_asked: impl Fn() -> bool,
    ) -> Result<()> {
        Self::as_child(program, args, input).run_heard(|pid| self.write_to(pid), heard, is_asked)
    }

    /// It waits until it is mapped: the helpers want its number. That it ends when we are killed is forgotten by the
    /// kernel where a process gets a new user namespace, and is said once more.
    fn as_child(program: &str, args: &[&str], input: &[u8]) -> Child {
        let script = "echo; read -r _ && exec setpriv --pdeathsig TERM -- \"$@\"";
        Child::new("unshare")
            .args(["--user", "--", "/bin/sh", "-c", script, "sh", program])
            .args(args)
            .input(&[b"\n", input].concat())
    }

    /// Give a process that is in a new user namespace of ours these ids.
    ///
    /// # Errors
    /// [`Kind::Failed`] with what newuidmap or newgidmap said.
    pub fn write_to(&self, pid: u32) -> Result<()> {
        if !self.has_range() {
            // One id of one's own needs no helper; groups must be given up for it.
            let write = |file: &str, text: String| {
                let path = format!("/proc/{pid}/{file}");
                std::fs::write(&path, text).context(|| format!("cannot write {path}"))
            };
            write("setgroups", "deny".into())?;
            let one = |range: &Range| format!("0 {} 1", range.outside);
            let [users, groups] = [&self.users, &self.groups].map(|list| list.first().map(one));
            write("uid_map", users.unwrap_or_default())?;
            return write("gid_map", groups.unwrap_or_default());
        }
        for (helper, ranges) in [("newuidmap", &self.users), ("newgidmap", &self.groups)] {
            let mut child = Child::new(helper).arg(pid.to_string());
            for range in ranges {
                let numbers = [range.inside, range.outside, range.size];
                child = child.args(numbers.map(|number| number.to_string()));
            }
            child.run()?;
        }
        Ok(())
    }

    /// Remove a directory in which a container's users own files; one that is not there is fine.
    pub fn remove_tree(&self, path: &Utf8Path) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        let words = ["-rf", "--one-file-system", "--", path.as_str()];
        if self.has_range() {
            return self.run_as_root("rm", &words, &[]);
        }
        Child::new("rm").args(words).run().map(|_| ())
    }
}

/// Remove a directory with all below it, also what is the caller's by way of a user namespace; one that is not there is
/// fine.
pub fn remove_tree(path: &Utf8Path) -> Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    match safefs::remove_tree(path.as_std_path()) {
        Err(_) if !is_root => Mapping::of_user().remove_tree(path),
        removed => removed,
    }
}

fn holds(ranges: &[Range], id: u32) -> bool {
    ranges
        .iter()
        .any(|range| id >= range.inside && id - range.inside < range.size)
}

/// The mapping by a file of `NAME-OR-NUMBER:FIRST:COUNT` lines.
fn ranges(text: &str, name: &str, uid: u32, own: u32) -> Vec<Range> {
    let mut out = vec![Range {
        inside: 0,
        outside: own,
        size: 1,
    }];
    let mut next = 1_u32;
    for line in text.lines() {
        let mut words = line.trim().split(':');
        let (Some(who), Some(first), Some(count)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let mine = (!name.is_empty() && who == name) || who.parse() == Ok(uid);
        if let (true, Ok(outside), Ok(size)) = (mine, first.parse(), count.parse::<u32>())
            && size > 0
            && let Some(after) = next.checked_add(size)
        {
            out.push(Range {
                inside: next,
                outside,
                size,
            });
            next = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(text: &str) -> Mapping {
        Mapping {
            users: ranges(text, "me", 1000, 1000),
            groups: ranges(text, "me", 1000, 1005),
        }
    }

    #[test]
    fn several_ranges_follow_one_another_and_numbers_count_as_names() {
        let text = "other:1:2\nme:100000:65536\n1000:300000:10\nbroken\nme:x:1\n";
        let mapping = mapping(text);
        let triples = |ranges: &[Range]| -> Vec<(u32, u32, u32)> {
            ranges
                .iter()
                .map(|r| (r.inside, r.outside, r.size))
                .collect()
        };
        assert_eq!(
            triples(&mapping.users),
            [(0, 1000, 1), (1, 100_000, 65536), (65537, 300_000, 10)]
        );
        assert_eq!(triples(&mapping.groups)[0], (0, 1005, 1));
        assert!(mapping.has_user(65546) && !mapping.has_user(65547));
    }

    #[test]
    fn a_configuration_is_fitted_and_names_that_only_begin_alike_are_left_alone() {
        let mut config = json!({
            "process": {"user": {"uid": 33, "gid": 33, "additionalGids": [4, 4_000_000]}},
            "mounts": [
                {"destination": "/sys/fs/cgroup", "type": "cgroup"},
                {"destination": "/system", "type": "bind", "options": ["rbind", "nodev"]},
                {"destination": "/dev/pts", "type": "devpts", "options": ["gid=5"]},
            ],
            "linux": {"namespaces": [{"type": "network"}, {"type": "pid"}],
                      "resources": {"devices": []}}
        });
        let notes = mapping("me:100000:65536").fit(&mut config).unwrap();
        assert!(notes.is_empty());
        assert_eq!(
            config["linux"]["namespaces"],
            json!([{"type": "pid"}, {"type": "user"}])
        );
        assert_eq!(
            config["linux"]["uidMappings"][1],
            json!({"containerID": 1, "hostID": 100_000, "size": 65536})
        );
        assert!(config["linux"].get("resources").is_none());
        let destinations: Vec<&str> = config["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| mount["destination"].as_str().unwrap())
            .collect();
        assert_eq!(destinations, ["/system", "/dev/pts", "/sys"]);
        assert_eq!(
            config["mounts"][0]["options"],
            json!(["rbind", "nodev", "nosuid"])
        );
        assert_eq!(config["mounts"][1]["options"], json!(["gid=5"]));
        assert_eq!(config["process"]["user"]["additionalGids"], json!([4]));
        // An empty object is no reason to give up.
        assert!(mapping("").fit(&mut json!({})).is_ok());
        // Without a range everybody is the user, and that is said.
        let mut single = json!({"process": {"user": {"uid": 33, "gid": 33}},
            "mounts": [{"destination": "/dev/pts", "options": ["gid=5", "newinstance"]}]});
        let notes = mapping("").fit(&mut single).unwrap();
        assert!(notes[0].contains("no range"));
        assert_eq!(single["process"]["user"]["uid"], 0);
        assert_eq!(single["mounts"][0]["options"], json!(["newinstance"]));
    }
}
