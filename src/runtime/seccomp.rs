//! The distribution's default seccomp profile, turned from containers/common's form into the
//! runtime specification's: conditions on architecture, capabilities and kernel are decided here.

use serde_json::{Value, json};

const PROFILES: [&str; 2] = [
    "/etc/containers/seccomp.json",
    "/usr/share/containers/seccomp.json",
];

/// The `linux.seccomp` section for a container with these capabilities, or nothing where the
/// distribution installs no profile.
pub fn default_profile(capabilities: &[&str]) -> Option<Value> {
    let text = PROFILES.iter().find_map(|path| std::fs::read(path).ok())?;
    let profile: Value = match serde_json::from_slice(&text) {
        Ok(profile) => profile,
        Err(error) => {
            tracing::warn!(%error, "the default seccomp profile is not valid and is not used");
            return None;
        }
    };
    Some(convert(&profile, capabilities, std::env::consts::ARCH))
}

fn convert(profile: &Value, capabilities: &[&str], arch: &str) -> Value {
    let (architecture, short) = match arch {
        "x86_64" => ("SCMP_ARCH_X86_64", "amd64"),
        "aarch64" => ("SCMP_ARCH_AARCH64", "arm64"),
        "arm" => ("SCMP_ARCH_ARM", "arm"),
        "x86" => ("SCMP_ARCH_X86", "x86"),
        "powerpc64" => ("SCMP_ARCH_PPC64LE", "ppc64le"),
        "s390x" => ("SCMP_ARCH_S390X", "s390x"),
        "riscv64" => ("SCMP_ARCH_RISCV64", "riscv64"),
        other => (other, other),
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut architectures = vec![json!(architecture)];
    for entry in list(&profile["archMap"]) {
        if entry["architecture"] == architecture {
            architectures.extend(list(&entry["subArchitectures"]));
        }
    }
    let any_of = |wanted: &Value, have: &dyn Fn(&str) -> bool| {
        list(wanted)
            .iter()
            .any(|item| item.as_str().is_some_and(have))
    };
    let has_arch = |name: &str| name == short || name == architecture;
    let has_cap = |name: &str| capabilities.contains(&name);
    let mut syscalls = Vec::new();
    for rule in list(&profile["syscalls"]) {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        let wanted = |condition: &Value, have: &dyn Fn(&str) -> bool| {
            list(condition).is_empty() || any_of(condition, have)
        };
        let applies = wanted(&includes["arches"], &has_arch)
            && list(&includes["caps"])
                .iter()
                .all(|cap| cap.as_str().is_some_and(has_cap))
            && !any_of(&excludes["arches"], &has_arch)
            && !any_of(&excludes["caps"], &has_cap);
        if !applies {
            continue;
        }
        let mut out = json!({"names": rule["names"], "action": rule["action"]});
        if out["names"].is_null() {
            out["names"] = json!([rule["name"]]);
        }
        if !list(&rule["args"]).is_empty() {
            out["args"] = rule["args"].clone();
        }
        if rule["errnoRet"].is_u64() {
            out["errnoRet"] = rule["errnoRet"].clone();
        }
        syscalls.push(out);
    }
    let mut out = json!({
        "defaultAction": profile["defaultAction"],
        "architectures": architectures,
        "syscalls": syscalls,
    });
    if profile["defaultErrnoRet"].is_u64() {
        out["defaultErrnoRet"] = profile["defaultErrnoRet"].clone();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_decided() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {}},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["umount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["arm_sync"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm"]}},
            ]
        });
        let names = |caps: &[&str]| -> Vec<String> {
            convert(&profile, caps, "x86_64")["syscalls"]
                .as_array()
                .unwrap()
                .iter()
                .map(|rule| rule["names"][0].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&[]), ["read", "umount"]);
        assert_eq!(names(&["CAP_SYS_ADMIN"]), ["read", "mount"]);
        let out = convert(&profile, &[], "x86_64");
        assert_eq!(
            out["architectures"],
            json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
        );
        assert_eq!(out["defaultErrnoRet"], 38);
    }
}
