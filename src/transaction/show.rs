//! Steps in words.

use std::fmt;

use super::step::{Step, TMPFILES_SETUP};
use crate::deployment::Slot;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot_name = |slot: &Option<Slot>| {
            slot.map_or_else(|| "nothing".to_owned(), |slot| format!("deployment {slot}"))
        };
        match self {
            Self::Deploy { slot, remote, .. } => match remote {
                Some(remote) => write!(f, "prepare deployment {slot} on {remote}"),
                None => write!(f, "prepare deployment {slot}"),
            },
            Self::MakeOwners { .. } => write!(f, "write who owns what in the image"),
            Self::SweepOwners => write!(f, "drop owner layers that nothing needs"),
            Self::EnableTmpfiles => write!(f, "systemctl --user enable {TMPFILES_SETUP}"),
            Self::SetRef { name, to, .. } => match to {
                Some(_) => write!(f, "pin the image by the ref {name}"),
                None => write!(f, "remove the ref {name}"),
            },
            Self::StageFile { target, .. } | Self::StageHostFile { target, .. } => {
                write!(f, "prepare {target}")
            }
            Self::ChangeDirectory {
                path,
                to: (mode, uid, gid),
                ..
            } => write!(
                f,
                "give {path} the mode {mode:04o} and the owner {uid}:{gid}"
            ),
            Self::MakeDirectory { path, .. } => write!(f, "create the directory {path}"),
            Self::FetchPackages { wants, .. } => {
                let list: Vec<String> = wants.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "install the packages that are needed: {}",
                    list.join(", ")
                )
            }
            Self::StagePackage { shipment, .. } => {
                write!(
                    f,
                    "prepare the package {} {}",
                    shipment.name, shipment.version
                )
            }
            Self::LockPackages { .. } => write!(f, "wait for other changes of packages"),
            Self::CheckPackage { shipment } => {
                write!(
                    f,
                    "check that the package {} can be installed",
                    shipment.name
                )
            }
            Self::ChangePackage { from, to, .. } => match (from, to) {
                (_, Some(to)) => write!(f, "install the package {} {}", to.name, to.version),
                (Some(from), None) => write!(f, "remove the package {}", from.name),
                (None, None) => write!(f, "change no package"),
            },
            Self::StopUnit { unit } => write!(f, "stop {unit}"),
            Self::RemoveVolatile { lines } => {
                write!(f, "empty")?;
                for line in lines.lines() {
                    write!(f, " {}", line.split_whitespace().nth(1).unwrap_or_default())?;
                }
                Ok(())
            }
            Self::Disable { unit } => write!(f, "disable {unit}"),
            Self::PlaceDeployment { slot } => write!(f, "put deployment {slot} in place"),
            Self::RemoveDeployment { slot } => write!(f, "remove deployment {slot}"),
            Self::PlaceFile { target, replaces } => {
                write!(
                    f,
                    "{} {target}",
                    if *replaces { "replace" } else { "create" }
                )
            }
            Self::RemoveFile { target } => write!(f, "remove {target}"),
            Self::Switch { from, to } => {
                write!(f, "switch from {} to {}", slot_name(from), slot_name(to))
            }
            Self::Reload => write!(f, "systemctl daemon-reload"),
            Self::Enable { unit } => write!(f, "systemctl enable {unit}"),
            Self::Reenable { unit } => write!(f, "systemctl reenable {unit}"),
            Self::CreateTmpfiles { file } => write!(f, "systemd-tmpfiles --create {file}"),
            Self::StartUnit { unit, .. } => write!(f, "start {unit}"),
            Self::Watch {
                unit,
                seconds,
                health,
                ..
            } => {
                write!(f, "watch {unit} for {seconds} s")?;
                if let Some(health) = health {
                    write!(f, " with the health command \"{}\"", health.args.join(" "))?;
                }
                Ok(())
            }
            Self::DropDeployment { slot } => write!(f, "drop the replaced deployment {slot}"),
            Self::DropFile { target } => write!(f, "drop the replaced {target}"),
            Self::RemoveTree { path } => write!(f, "delete {path}"),
            Self::RemoveEmptyDir { path } => write!(f, "remove {path} if empty"),
        }
    }
}
