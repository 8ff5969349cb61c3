//! Finding the user an image names, in the image's own passwd and group files.

use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::safefs::Files;

const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Whom the container's first process runs as, in the shape of `process.user` in config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
    /// Home directory, for `HOME`.
    #[serde(skip)]
    pub home: String,
}

/// Look up `user[:group]`, names or numbers; empty means root.
///
/// # Errors
/// [`Kind::NotFound`] if a name is in neither file.
pub fn find_user(files: &dyn Files, wanted: &str) -> Result<User> {
    let text = |path| -> Result<String> {
        let bytes = files.read(path, MAX_BYTES)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let passwd = text("/etc/passwd")?;
    let group = text("/etc/group")?;
    look_up(&passwd, &group, wanted)
}

fn look_up(passwd: &str, group: &str, wanted: &str) -> Result<User> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse::<u32>().ok()?;
        let gid = fields.next()?.parse::<u32>().ok()?;
        let home = fields.nth(1).unwrap_or("/");
        (name == user || Some(uid) == number).then(|| (name.to_owned(), uid, gid, home.to_owned()))
    });
    let (name, uid, gid, home) = match (entry, number) {
        (Some(entry), _) => entry,
        (None, Some(uid)) => (String::new(), uid, 0, "/".to_owned()),
        (None, None) => {
            return Err(Error::new(
                Kind::NotFound,
                format!("the image has no user \"{user}\""),
            ));
        }
    };
    let groups = || {
        group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse::<u32>().ok()?;
            Some((name, gid, fields.next().unwrap_or("")))
        })
    };
    // A group that was asked for stands alone, as docker has it.
    if let Some(wanted) = wanted_group.filter(|group| !group.is_empty()) {
        let gid = match wanted.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => groups()
                .find(|(name, _, _)| *name == wanted)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| {
                    Error::new(
                        Kind::NotFound,
                        format!("the image has no group \"{wanted}\""),
                    )
                })?,
        };
        return Ok(User {
            uid,
            gid,
            additional_gids: Vec::new(),
            home,
        });
    }
    let mut additional: Vec<u32> = groups()
        .filter(|(_, other, members)| {
            *other != gid && !name.is_empty() && members.split(',').any(|member| member == name)
        })
        .map(|(_, gid, _)| gid)
        .collect();
    additional.dedup();
    Ok(User {
        uid,
        gid,
        additional_gids: additional,
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/srv:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:web,other\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        for (wanted, uid, gid, more, home) in [
            ("", 0, 0, vec![], "/root"),
            ("web", 33, 34, vec![50], "/srv"),
            ("33", 33, 34, vec![50], "/srv"),
            ("web:logs", 33, 50, vec![], "/srv"),
            ("web:7", 33, 7, vec![], "/srv"),
            ("1234", 1234, 0, vec![], "/"),
            ("1234:logs", 1234, 50, vec![], "/"),
        ] {
            let user = look_up(PASSWD, GROUP, wanted).unwrap();
            assert_eq!((user.uid, user.gid), (uid, gid), "{wanted}");
            assert_eq!(user.additional_gids, more, "{wanted}");
            assert_eq!(user.home, home, "{wanted}");
        }
        assert!(look_up(PASSWD, GROUP, "nobody").is_err());
        assert!(look_up(PASSWD, GROUP, "web:nogroup").is_err());
    }
}
