//! Linux capabilities by name. Source: capabilities(7), `linux/capability.h`.

use crate::error::{Kind, Result};
use crate::fail;

/// All of them, in the kernel's order.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What docker gives a container by default.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The capabilities the running kernel knows.
pub fn all() -> &'static [&'static str] {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
        .unwrap_or(NAMES.len() - 1);
    &NAMES[..(last + 1).min(NAMES.len())]
}

/// The value of `$ALL_PROCESS_CAPABILITIES`: quoted names, to be pasted into a JSON array.
pub fn all_as_json_items() -> String {
    let quoted: Vec<String> = all().iter().map(|name| format!("\"{name}\"")).collect();
    quoted.join(",\n")
}

/// The default set as the kernel has it: a bit for each, by number.
pub fn default_bits() -> u64 {
    let numbers = NAMES.iter().enumerate();
    let held = numbers.filter(|(_, name)| DEFAULT.contains(name));
    held.fold(0, |all, (number, _)| all | 1 << number)
}

/// The default set with `add` and without `drop`; `ALL` stands for every one.
pub fn with_changes(add: &[String], drop: &[String]) -> Result<Vec<&'static str>> {
    let mut set: Vec<&'static str> = DEFAULT.to_vec();
    for name in drop {
        match named(name)? {
            Named::All => set.clear(),
            Named::One(name) => set.retain(|other| *other != name),
        }
    }
    for name in add {
        match named(name)? {
            Named::All => set = all().to_vec(),
            Named::One(name) if set.contains(&name) => {}
            Named::One(name) => set.push(name),
        }
    }
    Ok(set)
}

/// The value of the attribute `security.capability` in the words of `setcap`; nothing if it grants
/// nothing. Source: `struct vfs_cap_data` in `linux/capability.h`.
pub fn of_file(value: &[u8]) -> Option<String> {
    let word = |at: usize| -> Option<u32> {
        let bytes = value.get(at * 4..at * 4 + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let magic = word(0)?;
    // What holds in one user namespace only must not hold on the host.
    if magic >> 24 == 3 && word(5)? != 0 {
        return None;
    }
    let halves = if magic >> 24 == 1 { 1 } else { 2 };
    let (mut permitted, mut inheritable) = (0_u64, 0_u64);
    for half in 0..halves {
        permitted |= u64::from(word(1 + 2 * half)?) << (32 * half);
        inheritable |= u64::from(word(2 + 2 * half)?) << (32 * half);
    }
    let effective = if magic & 1 == 1 { "e" } else { "" };
    let clauses = [
        (permitted & !inheritable, "p"),
        (inheritable & !permitted, "i"),
        (permitted & inheritable, "ip"),
    ];
    let texts: Vec<String> = clauses
        .into_iter()
        .map(|(set, sign)| (set & ((1 << NAMES.len()) - 1), sign))
        .filter(|(set, _)| *set != 0)
        .map(|(set, sign)| {
            let names = NAMES.iter().enumerate();
            let held: Vec<String> = names
                .filter(|(number, _)| set >> number & 1 == 1)
                .map(|(_, name)| name.to_lowercase())
                .collect();
            format!("{}={effective}{sign}", held.join(","))
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join(" "))
}

enum Named {
    All,
    One(&'static str),
}

fn named(text: &str) -> Result<Named> {
    let upper = text.to_uppercase();
    if upper == "ALL" {
        return Ok(Named::All);
    }
    let full = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    match NAMES.iter().find(|name| **name == full) {
        Some(name) => Ok(Named::One(name)),
        None => fail!(Kind::Usage, "there is no capability \"{text}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_added_and_dropped_by_short_or_long_name() {
        let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let set = with_changes(&texts(&["sys_time"]), &texts(&["CAP_CHOWN"])).unwrap();
        assert!(set.contains(&"CAP_SYS_TIME") && !set.contains(&"CAP_CHOWN"));
        let only = with_changes(&texts(&["KILL"]), &texts(&["ALL"])).unwrap();
        assert_eq!(only, ["CAP_KILL"]);
        assert!(with_changes(&texts(&["NOPE"]), &[]).is_err());
    }

    #[test]
    fn capabilities_of_files_are_told_as_setcap_takes_them() {
        let value = |magic: u32, words: [u32; 4]| -> Vec<u8> {
            let all = [magic, words[0], words[1], words[2], words[3]];
            all.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let bind = of_file(&value(0x0200_0001, [1 << 10, 0, 0, 0])).unwrap();
        assert_eq!(bind, "cap_net_bind_service=ep");
        let two = of_file(&value(0x0200_0000, [0b11, 0b10, 1 << 7, 0])).unwrap();
        assert_eq!(two, "cap_chown,cap_bpf=p cap_dac_override=ip");
        assert_eq!(of_file(&value(0x0200_0001, [0; 4])), None);
        assert_eq!(of_file(&[1, 0]), None);
    }

    #[test]
    fn the_list_for_templates_is_json() {
        let list: Vec<String> =
            serde_json::from_str(&format!("[{}]", all_as_json_items())).unwrap();
        assert_eq!(list[0], "CAP_CHOWN");
    }
}
