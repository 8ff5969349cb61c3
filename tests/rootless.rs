//! Containers of people without root: in namespaces and an overlay, by no help of root but ranges.

mod support;

use serde_json::{Value, json};
use support::images::{Image, Layer};
use support::{Host, Registry, Said as _, User};

/// An image with users, odd owners, and a place that everybody may write to.
fn image() -> Image {
    Image::new()
        .layer(
            Layer::new()
                .busybox()
                .dir("tmp", 0o1777)
                .owned_dir("srv/web", 0o750, 1234)
                .owned_file("srv/web/secret", 0o640, 1234, "of web")
                .owned_file("usr/bin/tool", 0o4755, 0, "tool")
                .file("etc/kept", 0o644, "as it came"),
        )
        .set("Cmd", json!(["echo", "hello"]))
        .set("Env", json!(["A=image", "B=image"]))
        .set("WorkingDir", "/work")
}

struct Rootless<'h> {
    user: User<'h>,
    name: String,
}

impl<'h> Rootless<'h> {
    fn new(host: &'h Host, registry: &Registry) -> Self {
        image().push(registry, "app");
        Self {
            user: User::on_disk(host),
            name: registry.name("app"),
        }
    }

    fn ok(&self, words: &str) -> String {
        self.user.ok(&format!("atomic-rs rootless {words}"))
    }

    fn code(&self, words: &str) -> (i32, String) {
        let said = self.user.command(&format!("atomic-rs rootless {words}"));
        (said.code(), said.err())
    }
}

#[test]
fn containers_are_created_run_and_removed_and_nothing_is_copied() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    let name = &rootless.name;
    let before = host.listing(&["/etc", "/usr/local"]);
    rootless.user.ok(&format!("atomic-rs pull {name}"));
    let id = rootless.ok(&format!("create --name one {name}"));
    let id = id.trim();
    assert_eq!(id.len(), 36, "{id}");
    assert_eq!(rootless.ok("run one"), "hello\n");
    assert_eq!(rootless.ok(&format!("run {id} id -u")), "0\n");
    // What is written stays in the container, and nowhere else.
    rootless.ok("run one sh -c 'echo changed > /etc/kept; rm /bin/ls; mkdir /new'");
    assert_eq!(
        rootless.ok("run one sh -c 'cat /etc/kept; test -e /bin/ls || echo gone'"),
        "changed\ngone\n"
    );
    rootless.ok(&format!("create --name two {name}"));
    assert_eq!(rootless.ok("run two cat /etc/kept"), "as it came");
    let copy = rootless.ok("clone one --name three");
    assert_eq!(rootless.ok("run three cat /etc/kept"), "changed\n");
    rootless.ok("run three sh -c 'echo again > /etc/kept'");
    assert_eq!(rootless.ok("run one cat /etc/kept"), "changed\n");
    let rows: Value = serde_json::from_str(&rootless.ok("ps --json")).unwrap();
    let names: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["names"][0].as_str().unwrap())
        .collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["one", "three", "two"]);
    assert_eq!(rows[0]["mode"], "N");
    assert!(rootless.ok("ps").contains("linux/amd64"));
    // Names.
    rootless.ok("name one uno");
    rootless.ok("rename two zwei");
    assert_eq!(rootless.code("run two true").0, 125);
    assert_eq!(rootless.ok("run zwei echo x"), "x\n");
    rootless.ok("rmname uno");
    let taken = rootless.code(&format!("create --name one {name}"));
    assert!(taken.0 == 1 && taken.1.contains("exists"), "{}", taken.1);
    // Protection.
    rootless.ok("protect one");
    let refused = rootless.code("rm one");
    assert!(refused.1.contains("is protected"), "{}", refused.1);
    rootless.ok("unprotect one");
    rootless.ok(&format!("rm one zwei {}", copy.trim()));
    assert_eq!(rootless.ok("ps --noheading"), "");
    let left = host
        .sh("find /var/lib/containers/someone/.rootless -mindepth 2")
        .out();
    assert_eq!(left, "");
    host.assert_unchanged(&["/etc", "/usr/local"], &before);
    // A pull by the way, and a container for one run.
    assert_eq!(
        rootless.ok(&format!("run --rm {name} sh -c 'echo $0'")),
        "sh\n"
    );
    assert_eq!(rootless.ok("ps --quiet"), "");
}

#[test]
fn the_command_is_alone_with_its_image_and_what_was_bound() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    let name = &rootless.name;
    rootless.ok(&format!("create --name c {name}"));
    let run = |words: &str| rootless.ok(&format!("run {words}"));
    // Processes, host name, network, devices.
    let processes = run("c sh -c 'ls -d /proc/[0-9]* | wc -l'");
    assert!(processes.trim().parse::<u32>().unwrap() < 6, "{processes}");
    assert_eq!(run("--hostname box c hostname"), "box\n");
    assert_eq!(
        run(
            "c sh -c 'echo x > /dev/null; head -c 3 /dev/zero | wc -c; echo y > /dev/shm/f; ls /dev/pts'"
        ),
        "3\nptmx\n"
    );
    assert!(run("c cat /etc/resolv.conf") == host.read("/etc/resolv.conf"));
    // This program is the host's as well.
    assert_ne!(rootless.code("run c cat /proc/1/exe").0, 0);
    // The host's own files are nowhere.
    assert_eq!(rootless.code("run c ls /var/lib/containers").0, 1);
    assert_eq!(
        run("c sh -c 'cat /proc/1/mountinfo | grep -c /home || true'"),
        "0\n"
    );
    // Environment and words.
    assert_eq!(
        run("--env A=mine --env X c sh -c 'echo $A $B $X $PWD $HOME'"),
        "mine image /work /root\n"
    );
    rootless.user.ok("echo B=file > ~/env");
    assert_eq!(run("--env-file ~/env c sh -c 'echo $A $B'"), "image file\n");
    assert_eq!(
        rootless
            .user
            .ok("SEEN=yes atomic-rs rootless run --hostenv c sh -c 'echo $SEEN'"),
        "yes\n"
    );
    assert_eq!(run("--entrypoint echo c a b"), "a b\n");
    assert_eq!(run("--workdir /tmp c sh -c pwd"), "/tmp\n");
    // Users, and what is theirs.
    assert_eq!(
        run("--user web c sh -c 'id -u; cat /srv/web/secret'"),
        "1234\nof web"
    );
    assert_eq!(
        run("c stat -c %u:%a /srv/web /usr/bin/tool /tmp"),
        "1234:750\n0:4755\n0:1777\n"
    );
    assert_eq!(
        run("c sh -c 'echo x > /tmp/f; chown web:web /tmp/f; stat -c %u /tmp/f'"),
        "1234\n"
    );
    let odd = rootless.code("run --user nobody-there c true");
    assert!(
        odd.0 == 125 && odd.1.contains("no user \"nobody-there\""),
        "{}",
        odd.1
    );
    // Binds.
    rootless
        .user
        .ok("mkdir ~/shared ~/shut; echo here > ~/shared/f; echo there > ~/shut/f");
    let bind = "--volume /home/someone/shared:/data --volume /home/someone/shut:/shut:ro --volume /home/someone/env:/etc/one";
    assert_eq!(
        run(&format!(
            "{bind} c sh -c 'cat /data/f /shut/f /etc/one; echo new > /data/g; echo no > /shut/g || echo refused'"
        )),
        "here\nthere\nB=file\nrefused\n"
    );
    assert_eq!(
        rootless
            .user
            .ok("cat ~/shared/g; stat -c %U ~/shared/g; ls ~/shut"),
        "new\nsomeone\nf\n"
    );
    // Also what is mounted below a bind is shut, and what others left open is not passed on.
    host.sh("mkdir -p /home/someone/shut/below; mount -t tmpfs -o mode=777 tmpfs /home/someone/shut/below");
    assert_eq!(
        run(
            "--volume /home/someone/shut:/shut:ro c sh -c 'echo no > /shut/below/g || echo refused; echo 1 > /sys/kernel/uevent_helper || echo refused'"
        ),
        "refused\nrefused\n"
    );
    host.sh("umount /home/someone/shut/below");
    assert_eq!(
        rootless.user.ok(
            "exec 7< /home; atomic-rs rootless run c sh -c 'ls /proc/self/fd | grep -c 7 || true'"
        ),
        "0\n"
    );
    assert_eq!(rootless.user.ok("umask 077; atomic-rs rootless run c sh -c 'umask; echo x > /tmp/masked; stat -c %a /tmp/masked'"), "0022\n644\n");
    assert_eq!(run("--workdir /bin c ./echo here"), "here\n");
    // A program that signals its group, or all it may, ends nobody else.
    assert_eq!(
        rootless
            .user
            .ok("atomic-rs rootless run c sh -c 'kill 0; kill -9 -1'; echo $?; echo alive"),
        "143\nalive\n"
    );
    assert_eq!(
        rootless
            .user
            .ok("trap '' TERM; atomic-rs rootless run c sh -c 'kill -TERM $$; echo deaf'"),
        "deaf\n"
    );
    // Logs that are links to what a pipe is.
    assert_eq!(
        rootless
            .user
            .ok("atomic-rs rootless run --user web c sh -c 'echo log > /dev/stdout' | cat"),
        "log\n"
    );
    // No more rights than docker gives.
    assert_eq!(
        run("c sh -c 'grep CapBnd /proc/self/status'"),
        "CapBnd:\t00000000a80425fb\n"
    );
    assert_ne!(rootless.code("run c mount -t tmpfs none /mnt").0, 0);
    assert_eq!(
        run("--user web c sh -c 'grep CapEff /proc/self/status'"),
        "CapEff:\t0000000000000000\n"
    );
}

#[test]
fn the_commands_end_is_ours_whatever_it_is() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    rootless.ok(&format!("create --name c {}", rootless.name));
    for (words, code) in [
        ("run c sh -c 'exit 0'", 0),
        ("run c sh -c 'exit 42'", 42),
        ("run c sh -c 'kill -TERM $$'", 143),
        ("run c no-such-program", 127),
        ("run c /etc/kept", 126),
        ("run --workdir /none c true", 125),
        ("run --volume /none:/x c true", 125),
        ("run none-such true", 125),
        ("run --no-such-option c true", 2),
    ] {
        let (found, said) = rootless.code(words);
        assert_eq!(found, code, "{words}: {said}");
        assert_eq!(
            said.lines().count() > 0,
            code >= 125 && code != 143 || code == 2,
            "{words}: {said}"
        );
    }
    // Pipes and much output, without a terminal.
    assert_eq!(
        rootless
            .user
            .ok("echo from outside | atomic-rs rootless run c cat"),
        "from outside\n"
    );
    assert_eq!(
        rootless
            .user
            .ok("atomic-rs rootless run c sh -c 'yes | head -c 20000000' | wc -c"),
        "20000000\n"
    );
    assert_eq!(
        rootless
            .user
            .command("atomic-rs rootless run c sh -c yes | head -n 1")
            .out(),
        "y\n"
    );
    // Signals reach the command, and nothing is left of it.
    let script = "atomic-rs rootless run c sh -c 'trap \"echo got it; exit 7\" TERM; echo ready; while :; do sleep 0.1; done' > ~/out & \
                  until grep -q ready ~/out 2>/dev/null; do sleep 0.05; done; kill -TERM $!; wait $!; echo $?; cat ~/out";
    assert_eq!(rootless.user.ok(script), "7\nready\ngot it\n");
    let killed = "atomic-rs rootless run c sleep 4711 & until pgrep -xf 'sleep 4711' >/dev/null; do sleep 0.05; done; \
                  kill -KILL $!; wait $! 2>/dev/null; for i in $(seq 100); do pgrep -xf 'sleep 4711' >/dev/null || break; sleep 0.05; done; pgrep -xf 'sleep 4711' || echo gone";
    assert_eq!(rootless.user.ok(killed), "gone\n");
    assert_eq!(rootless.ok("run c echo again"), "again\n");
}

#[test]
fn several_commands_of_one_container_see_the_same_files() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    rootless.ok(&format!("create --name c {}", rootless.name));
    let script = "cd; atomic-rs rootless run c sh -c 'echo ready > /tmp/a; until test -e /tmp/b; do sleep 0.05; done; cat /tmp/b' > out & \
         until atomic-rs rootless run c test -e /tmp/a; do sleep 0.05; done; atomic-rs rootless ps; \
         atomic-rs rootless rm c; atomic-rs rootless run c sh -c 'echo from the other > /tmp/b'; wait; cat out";
    let said = rootless.user.command(script);
    assert!(
        said.out().contains("running") && said.out().ends_with("from the other\n"),
        "{}{}",
        said.out(),
        said.err()
    );
    assert!(said.err().contains("is running"), "{}", said.err());
    // Many at once, which is what clusters do.
    let crowd = "for i in $(seq 12); do atomic-rs rootless run c sh -c \"echo $i >> /tmp/crowd\" & done; wait; atomic-rs rootless run c sh -c 'sort -n /tmp/crowd | tr \"\\n\" \" \"'";
    assert_eq!(rootless.user.ok(crowd), "1 2 3 4 5 6 7 8 9 10 11 12 ");
    rootless.ok("rm c");
}

#[test]
fn a_command_beside_another_is_where_that_is() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    for mode in ["N", "R1"] {
        rootless.ok(&format!(
            "create --mode {mode} --name {mode} {}",
            rootless.name
        ));
        let script = format!(
            "atomic-rs rootless run --hostname box {mode} sh -c 'trap \"exit 43\" TERM; echo ready > /tmp/a; while :; do sleep 0.0471; done' & \
             for i in $(seq 200); do atomic-rs rootless exec {mode} test -e /tmp/a 2>/dev/null && break; sleep 0.05; done; \
             atomic-rs rootless exec --env X=y --user web --workdir /tmp {mode} sh -c 'hostname; id -u; pwd; echo $X $A; ps | grep -c [t]rap'; \
             atomic-rs rootless exec {mode} sh -c 'exit 9'; echo $?; atomic-rs rootless exec {mode} no-such 2>/dev/null; echo $?; \
             kill $!; wait $!; echo $?"
        );
        // What is not there, a runtime says in its own way.
        let missing = if mode == "N" { 127 } else { 255 };
        let expected = format!("box\n1234\n/tmp\ny image\n1\n9\n{missing}\n43\n");
        let said = rootless.user.command(&script);
        assert_eq!(said.out(), expected, "{mode}: {}", said.err());
        let idle = rootless.code(&format!("exec {mode} true"));
        assert!(
            idle.0 == 125 && idle.1.contains("is not running"),
            "{}",
            idle.1
        );
        rootless.ok(&format!("rm {mode}"));
    }
}

#[test]
fn a_runtime_can_start_it() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    rootless.ok(&format!("create --mode R1 --name c {}", rootless.name));
    assert_eq!(rootless.ok("run c"), "hello\n");
    assert_eq!(
        rootless.ok("run c sh -c 'echo x > /etc/kept; grep Seccomp: /proc/self/status'"),
        "Seccomp:\t2\n"
    );
    assert_eq!(
        rootless.ok("run --user web c sh -c 'id -u; cat /srv/web/secret /etc/kept'"),
        "1234\nof webx\n"
    );
    assert_eq!(rootless.code("run c sh -c 'exit 42'").0, 42);
    rootless.user.ok("mkdir ~/shared; echo here > ~/shared/f");
    let bound = rootless.ok("run --volume /home/someone/shared:/data:ro c sh -c 'cat /data/f; echo no > /data/g || echo refused'");
    assert_eq!(bound, "here\nrefused\n");
    assert_eq!(
        rootless.user.ok("echo in | atomic-rs rootless run c cat"),
        "in\n"
    );
    rootless.ok("rm c");
    let left = host
        .sh("find /var/lib/containers/someone/.rootless -mindepth 2")
        .out();
    assert_eq!(left, "");
}

#[test]
fn a_container_is_exported_and_set_up_and_has_of_the_host_what_it_is_given() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    let name = &rootless.name;
    rootless.ok(&format!("create --name c {name}"));
    rootless.ok("run c sh -c 'echo changed > /etc/kept; rm /bin/ls'");
    rootless.user.ok("cd; atomic-rs rootless export c --output c.tar; atomic-rs rootless export c > d.tar; cmp c.tar d.tar");
    let list = rootless.user.ok("tar -tvf ~/c.tar --numeric-owner ./etc/kept ./srv/web/secret ./usr/bin/tool; tar -xOf ~/c.tar ./etc/kept; tar -tf ~/c.tar | grep -c bin/ls || true");
    for text in ["1234/1234", "-rwsr-xr-x 0/0", "changed\n0\n"] {
        assert!(list.contains(text), "{text}: {list}");
    }
    let again = rootless.code("export c --output /home/someone/c.tar");
    assert!(again.0 == 1 && again.1.contains("exists"), "{}", again.1);
    assert_eq!(rootless.ok("setup c"), "mode: N\n");
    rootless.ok("setup c --mode R1");
    assert_eq!(rootless.ok("setup c"), "mode: R1\n");
    assert_eq!(rootless.ok("run c cat /etc/kept"), "changed\n");
    rootless.ok("setup c --mode N");
    assert_eq!(rootless.ok("run c cat /etc/kept"), "changed\n");
    assert_eq!(rootless.code("setup c --mode X9").0, 2);
    rootless.user.ok("echo mine > ~/f");
    assert_eq!(
        rootless.ok("run --bindhome c cat /home/someone/f"),
        "mine\n"
    );
    assert_eq!(
        rootless.ok("run --hostauth c grep -c ^someone: /etc/passwd"),
        "1\n"
    );
    let one = "grep Cpus_allowed_list /proc/self/status";
    assert_eq!(
        rootless.ok(&format!("run --cpuset-cpus 0 c sh -c '{one}'")),
        "Cpus_allowed_list:\t0\n"
    );
    assert_eq!(rootless.code("run --cpuset-cpus x c true").0, 2);
}

#[test]
fn a_command_runs_in_the_background_and_is_stopped() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    for (name, mode, alone) in [
        ("a", "N", ""),
        ("b", "R1", ""),
        ("c", "N", "XDG_RUNTIME_DIR= "),
    ] {
        let command = "sh -c 'trap \"echo ended; exit 0\" TERM; echo $SEEN ready; while :; do sleep 0.1; done'";
        let id = rootless.user.ok(&format!(
            "export SEEN=x; {alone}atomic-rs rootless run --detach --hostenv --mode {mode} --name {name} {} {command}",
            rootless.name
        ));
        assert_eq!(id.trim().len(), 36, "{id}");
        let script = format!(
            "for i in $(seq 100); do atomic-rs rootless logs {name} 2>/dev/null | grep -q ready && break; sleep 0.05; done; \
             atomic-rs rootless ps | grep -c running; atomic-rs rootless stop {name}; atomic-rs rootless logs {name}; atomic-rs rootless ps | grep -c running || true"
        );
        assert_eq!(
            rootless.user.ok(&script),
            "1\nx ready\nended\n0\n",
            "{name}"
        );
        let idle = rootless.code(&format!("stop {name}"));
        assert!(
            idle.0 == 0 && idle.1.contains("is not running"),
            "{}",
            idle.1
        );
        // What does not want to end has to.
        rootless.ok(&format!(
            "run --detach {name} sh -c 'trap : TERM; echo deaf; while :; do sleep 4714; done'"
        ));
        let script = format!(
            "for i in $(seq 100); do atomic-rs rootless logs -n 1 {name} | grep -q deaf && break; sleep 0.05; done; atomic-rs rootless stop --time 1 {name}; pgrep -xf 'sleep 4714' || true"
        );
        assert_eq!(rootless.user.ok(&script), "", "{name}");
        rootless.ok(&format!("rm {name}"));
    }
}

#[test]
fn what_an_image_has_in_the_way_leads_nowhere() {
    let registry = Registry::start();
    let host = Host::boot();
    let user = User::on_disk(&host);
    user.ok("mkdir ~/shared; echo shared > ~/shared/f");
    let base = || Layer::new().busybox();
    let before = host.listing(&["/etc", "/usr/local", "/srv"]);
    let cases = [
        ("dev", base().symlink("dev", "/etc")),
        ("proc", base().symlink("proc", "../../../../../../etc")),
        ("sys", base().symlink("sys", "/srv")),
        (
            "resolv",
            base().symlink("etc/resolv.conf", "../../../../../../../../etc/passwd"),
        ),
        (
            "dangling",
            base().symlink("etc/resolv.conf", "/run/none/resolv.conf"),
        ),
        ("data", base().symlink("data", "/../../../../home/someone")),
        ("data-file", base().file("data", 0o644, "x")),
        ("etc-link", base().symlink("etc", "/proc/1/root/etc")),
        ("passwd", base().symlink("etc/passwd", "/proc/self/environ")),
    ];
    for (name, layer) in cases {
        Image::new()
            .layer(layer)
            .set("Cmd", json!(["true"]))
            .push(&registry, name);
        let reference = registry.name(name);
        for mode in ["N", "P2", "F1"] {
            let said = user.command(&format!(
                "atomic-rs rootless run --mode {mode} --name {name} --volume /home/someone/shared:/data {reference} \
                 sh -c 'echo x > /etc/new; echo x > /data/new; ls /proc/1 >/dev/null; echo ran'"
            ));
            // It runs in its own world, or it is refused with a word.
            let refused = said.code() == 125 && !said.err().is_empty();
            assert!(
                refused || said.out() == "ran\n",
                "{name} {mode}: {}{}",
                said.out(),
                said.err()
            );
            user.ok("rm -f ~/shared/new");
            user.ok(&format!("atomic-rs rootless rm {name}"));
        }
    }
    host.assert_unchanged(&["/etc", "/usr/local", "/srv"], &before);
    assert_eq!(
        host.ok("ls /home/someone /home/someone/shared"),
        "/home/someone:\nshared\n\n/home/someone/shared:\nf\n"
    );
}

#[test]
fn kills_leave_no_half_container_and_no_process() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    rootless
        .user
        .ok(&format!("atomic-rs pull {}", rootless.name));
    rootless.ok(&format!("create --name kept {}", rootless.name));
    rootless.ok("run kept sh -c 'echo kept > /etc/kept'");
    for round in 0..12_u32 {
        let verb = match round % 3 {
            0 => format!("create --name victim {}", rootless.name),
            1 => "clone kept --name victim".into(),
            _ => "run kept sh -c 'sleep 4713'".into(),
        };
        let millis = 5 + round * 7;
        rootless.user.command(&format!(
            "atomic-rs rootless {verb} >/dev/null 2>&1 & sleep 0.{millis:03}; kill -KILL $! 2>/dev/null; wait $! 2>/dev/null"
        ));
        let script = "for i in $(seq 100); do pgrep -f '[c]ontainer-(outer|init)|[s]leep 4713' >/dev/null || break; sleep 0.05; done; pgrep -af '[c]ontainer-(outer|init)|[s]leep 4713' || true";
        assert_eq!(rootless.user.ok(script), "", "{verb}");
        // Whatever is there is whole.
        if rootless.code("inspect victim").0 == 0 {
            assert_eq!(rootless.ok("run victim echo whole"), "whole\n");
            rootless.ok("rm victim");
        }
        assert_eq!(rootless.ok("run kept cat /etc/kept"), "kept\n");
    }
    rootless.ok(&format!("create --name last {}", rootless.name));
    for id in rootless.ok("ps --quiet").lines() {
        rootless.ok(&format!("rm {id}"));
    }
    let left = host
        .sh("find /var/lib/containers/someone/.rootless -mindepth 2")
        .out();
    assert_eq!(left, "");
}

#[test]
fn one_id_is_enough_for_root_alone() {
    let registry = Registry::start();
    let host = Host::boot();
    image().push(&registry, "app");
    let user = User::on_disk(&host).without_ranges();
    let run = |words: &str| user.ok(&format!("atomic-rs rootless {words}"));
    run(&format!("create --name c {}", registry.name("app")));
    assert_eq!(
        run("run c sh -c 'id -u; echo x > /etc/kept; cat /etc/kept'"),
        "0\nx\n"
    );
    let other = user.command("atomic-rs rootless run --user web c id");
    assert!(
        other.code() == 125 && other.err().contains("range"),
        "{}",
        other.err()
    );
    run("rm c");
}

#[test]
fn proot_runs_what_it_confines_and_nothing_else() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    let name = &rootless.name;
    rootless.ok(&format!("create --name c {name}"));
    // What was written in another mode is there, and comes back.
    rootless.ok("run c sh -c 'echo mine > /etc/kept; rm /srv/web/secret; mkdir /tmp/new'");
    let hash = |files: &str| host.hash_of(files);
    for mode in ["P2", "P1"] {
        rootless.ok(&format!("setup c --mode {mode}"));
        assert_eq!(
            rootless.ok("run c sh -c 'cat /etc/kept; id -u; ls /srv/web; pwd'"),
            "mine\n0\n/work\n",
            "{mode}"
        );
    }
    let id = rootless.ok("inspect c | jq -r .id");
    let files = format!(
        "/var/lib/containers/someone/.rootless/containers/{}/ROOT",
        id.trim()
    );
    let before = hash(&files);
    rootless.ok("setup c --mode N");
    assert_eq!(
        rootless.ok("run c sh -c 'cat /etc/kept; id -u'"),
        "mine\n0\n"
    );
    rootless.ok("setup c --mode R1");
    assert_eq!(rootless.ok("run c cat /etc/kept"), "mine\n");
    rootless.ok("setup c --mode P2");
    assert_eq!(rootless.ok("run c cat /etc/kept"), "mine\n");
    assert_eq!(hash(&files), before);
    // Exit codes, users, volumes, standard streams.
    assert_eq!(rootless.code("run c sh -c 'exit 7'").0, 7);
    assert_eq!(rootless.code("run c no-such-program").0, 127);
    assert_eq!(rootless.code("run --workdir /nowhere c true").0, 125);
    assert_eq!(
        rootless.ok("run --user 12:34 c sh -c 'id -u; id -g'"),
        "12\n34\n"
    );
    rootless
        .user
        .ok("mkdir -p $HOME/data && echo content > $HOME/data/file");
    assert_eq!(
        rootless.ok("run --volume $HOME/data:/data c cat /data/file"),
        "content\n"
    );
    let read_only = rootless.code("run --volume $HOME/data:/data:ro c true");
    assert!(
        read_only.0 == 125 && read_only.1.contains("read-only"),
        "{}",
        read_only.1
    );
    assert_eq!(
        rootless.ok("run c head -c 2000000 /dev/zero | wc -c"),
        "2000000\n"
    );
    assert_eq!(
        rootless
            .user
            .ok("echo through | atomic-rs rootless run c cat"),
        "through\n"
    );
    // No word of the image's is an option of PRoot.
    rootless.ok(
        "run c sh -c 'printf \"#!/bin/sh\\necho a program \\$1\\n\" > /bin/-b; chmod 755 /bin/-b'",
    );
    assert_eq!(
        rootless.ok("run c -b /:/host ls /host"),
        "a program /:/host\n"
    );
    // A program that is killed, and one that only started others.
    assert_eq!(rootless.code("run c sh -c 'sleep 0.3; kill -9 $$'").0, 137);
    rootless.ok("run c sh -c 'sleep 1002 & true'");
    assert_eq!(host.sh("pgrep -f 'sleep 1002'").out(), "");
    // Nothing of the environment by which PRoot is told things, nothing of the host's files.
    assert!(
        !rootless
            .ok("run --env PROOT_X=1 --env LD_PRELOAD=/x c env")
            .contains("PROOT_X")
    );
    assert!(!rootless.ok("run c env").contains("PROOT"));
    assert_ne!(rootless.code("run c ls /var/lib/containers").0, 0);
    // What runs in the background is stopped, and so is what it left behind.
    rootless.ok("run --detach c sh -c 'sleep 1000 & exec sleep 1001'");
    rootless
        .user
        .ok("until atomic-rs rootless ps | grep -q running; do sleep 0.1; done");
    assert_eq!(rootless.ok("exec c echo beside"), "beside\n");
    rootless.ok("stop --time 1 c");
    rootless
        .user
        .ok("until ! atomic-rs rootless ps | grep -q running; do sleep 0.1; done");
    assert_eq!(host.sh("pgrep -f 'sleep 100[01]'").out(), "");
    // Where there are no namespaces, these modes are what is left.
    let hidden = host.sh(
        "echo 0 > /run/zero; mount --bind /run/zero /proc/sys/user/max_user_namespaces && \
         mount --bind /bin/false /usr/bin/unshare",
    );
    assert_eq!(hidden.code(), 0, "{}", hidden.err());
    rootless.ok(&format!("create --name bare --mode P2 {name}"));
    assert_eq!(rootless.ok("run bare echo here"), "here\n");
    rootless.ok("clone bare --name other");
    assert_eq!(
        rootless.ok("export other | tar -t ./etc/kept"),
        "./etc/kept\n"
    );
    rootless.ok("rm bare other");
    let refused = rootless.code(&format!("run --name none {name} true"));
    assert!(
        refused.0 == 125 && refused.1.contains("no user namespaces"),
        "{}",
        refused.1
    );
    host.ok("umount /usr/bin/unshare /proc/sys/user/max_user_namespaces");
    // One that does not trace what it runs is found out.
    let fake = "/usr/local/bin/proot-that-is-none";
    host.sh(&format!(
        "printf '#!/bin/sh\\nwhile [ $# -gt 0 ]; do case $1 in -r) root=$2; shift 2;; -w|-b|-i) shift 2;; -*) shift;; \
         *) break;; esac; done\\np=$1; shift; exec $root$p \"$@\"\\n' > {fake}; chmod 755 {fake}"
    ));
    let refused = rootless.user.command(&format!(
        "PROOT_PATH={fake} atomic-rs rootless run c cat /etc/passwd"
    ));
    assert_eq!(refused.code(), 125);
    assert!(
        refused.err().contains("does not confine"),
        "{}",
        refused.err()
    );
    assert_eq!(refused.out(), "");
    // One that lets a system call through is refused where programs use that.
    let libc = Image::new().layer(Layer::new().busybox().file(
        "lib/libc.so.6",
        0o755,
        b"\x7fELF\0statx\0",
    ));
    libc.push(&registry, "libc");
    let leaky = rootless.code(&format!("run --mode P2 {} true", registry.name("libc")));
    assert!(leaky.0 == 125 && leaky.1.contains("statx"), "{}", leaky.1);
    rootless.ok(&format!(
        "run --mode P2 --allow-leaky {} true",
        registry.name("libc")
    ));
}

/// Apptainer is not in Debian 12: what it would be told is what can be seen.
#[test]
fn apptainer_is_told_what_to_run() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    let name = &rootless.name;
    let missing = rootless.code(&format!("run --mode S1 {name} true"));
    assert!(
        missing.0 == 125 && missing.1.contains("neither apptainer"),
        "{}",
        missing.1
    );
    let shim = "/usr/local/bin/apptainer";
    host.sh(&format!(
        "printf '#!/bin/sh\\nprintf \"%%s\\\\n\" \"$@\"; env | grep -a ENV_ | sort; exit 9\\n' > {shim}; chmod 755 {shim}"
    ));
    rootless.ok(&format!("create --name c --mode S1 {name}"));
    rootless.user.ok("mkdir -p $HOME/data");
    let said = rootless.user.command(
        "atomic-rs rootless run --env A=mine --volume $HOME/data:/data:ro --workdir /tmp c sh -c 'a b'",
    );
    assert_eq!(said.code(), 9, "{}", said.err());
    let id = rootless.ok("inspect c | jq -r .id");
    let root = format!(
        "/var/lib/containers/someone/.rootless/containers/{}/ROOT",
        id.trim()
    );
    let lines: Vec<String> = said.out().lines().map(str::to_owned).collect();
    let tail: Vec<&str> = lines
        .iter()
        .map(String::as_str)
        .skip_while(|line| *line != root)
        .take(4)
        .collect();
    assert_eq!(tail, [root.as_str(), "/bin/sh", "-c", "a b"]);
    for words in [
        vec!["exec", "--writable", "--fakeroot", "--pwd", "/tmp"],
        vec!["--bind", "/home/someone/data:/data:ro"],
        vec!["APPTAINERENV_A=mine", "APPTAINERENV_B=image"],
    ] {
        assert!(
            lines.windows(words.len()).any(|window| window == words),
            "{words:?}: {lines:?}"
        );
    }
}

/// Makes what udocker 1.3 would have in `~/.udocker` for one image in two forms, and two containers.
/// Source: its files, written by hand; `$1` is the image.
const OLD: &str = r#"
set -e
old=~/.udocker id=0f3bd0c9-2b2e-3b1c-9d8e-5a4f7c6b1a20
mkdir -p $old/bin $old/lib $old/layers $old/containers/$id/ROOT $old/repos/app/1 $old/repos/plain/2
skopeo copy --quiet --src-tls-verify=false docker://$1 dir:/tmp/as-dir
cp /tmp/as-dir/manifest.json $old/repos/app/1/manifest
touch $old/repos/app/1/v2 $old/repos/app/1/PROTECT
echo app:1 > $old/repos/app/1/TAG
for blob in /tmp/as-dir/????????????????????????????????????????????????????????????????; do
    hex=${blob##*/}
    cp $blob $old/layers/sha256:$hex
    ln -s ../../../layers/sha256:$hex $old/repos/app/1/sha256:$hex
done
# One that was imported, of two layers.
cd $old/repos/plain/2
echo plain:2 > TAG; touch v1
mkdir /tmp/base /tmp/top; echo base > /tmp/base/file; echo top > /tmp/top/file
tar -C /tmp/base -cf $old/layers/aa.layer .; tar -C /tmp/top -czf $old/layers/bb.layer .
for id1 in aa bb; do ln -s ../../../layers/$id1.layer $id1.layer; done
echo '["bb", "cc", "aa"]' > ancestry
echo '{"id": "bb", "config": {"Cmd": ["cat", "/file"]}}' > bb.json
# Containers.
cd $old/containers/$id
tar -C ROOT -xzf "$(ls -S /tmp/as-dir/???????????????????????????????????????????????????????????????? | head -1)"
echo written > ROOT/etc/written; chmod 600 ROOT/etc/written
echo '{"architecture": "amd64", "os": "linux", "config": {"Cmd": ["cat", "/etc/written"]}}' > container.json
echo app:1 > imagerepo.name; echo P1 > execmode; touch PROTECT
ln -s $id ../old; ln -s $id ../older
changed=11f86d1e-8d2b-3a8c-8f5b-0a1b2c3d4e5f
mkdir -p ../$changed/ROOT; cp container.json ../$changed; echo F3 > ../$changed/execmode
echo '{"https://registry.example:5000": {"auth": "dXNlcjpzZWNyZXQ=", "email": ""}}' > $old/keystore
find $old -printf '%P %y %s %T@ %m\n' | sort > /tmp/before
"#;

#[test]
fn what_udocker_has_is_brought_in() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    let user = &rootless.user;
    std::fs::write(host.path("/usr/local/bin/old.sh"), OLD).unwrap();
    let image = rootless.name.trim_start_matches("http:");
    user.ok(&format!("sh /usr/local/bin/old.sh {image}"));
    let said = user.command("atomic-rs rootless migrate");
    assert_eq!(said.code(), 1);
    let (out, err) = (said.out(), said.err());
    for line in [
        "image app:1: brought in",
        "image plain:2: brought in",
        "container 0f3bd0c9-2b2e-3b1c-9d8e-5a4f7c6b1a20 old older: brought in",
        "login registry.example:5000: brought in",
    ] {
        assert!(out.lines().any(|found| found == line), "{line}: {out}{err}");
    }
    assert!(err.contains("its files are changed for mode F3"), "{err}");
    assert!(err.contains("1 could not be brought in"), "{err}");
    // Nothing there is changed.
    user.ok("find ~/.udocker -printf '%P %y %s %T@ %m\\n' | sort | cmp - /tmp/before");
    assert_eq!(rootless.ok("run old"), "written\n");
    assert_eq!(
        rootless.ok("run older busybox stat -c %u:%a /etc/written"),
        "0:600\n"
    );
    let (code, said) = rootless.code("rm old");
    assert!(code != 0 && said.contains("is protected"), "{said}");
    rootless.ok("create --name new app:1");
    assert_eq!(rootless.ok("run new"), "hello\n");
    rootless.ok("create --name plain plain:2");
    assert_eq!(rootless.ok("export plain | tar -xO ./file"), "top\n");
    let login = user.ok("cat ~/.config/containers/auth.json");
    assert!(login.contains("registry.example:5000"), "{login}");
    // Once more, when it is undone there what was in the way.
    user.ok("echo P2 > ~/.udocker/containers/11f86d1e-8d2b-3a8c-8f5b-0a1b2c3d4e5f/execmode");
    let again: Value = serde_json::from_str(&rootless.ok("migrate --json ~/.udocker")).unwrap();
    let outcomes: Vec<&str> = again
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(
        outcomes,
        [
            "here already",
            "here already",
            "here already",
            "brought in",
            "here already"
        ]
    );
    let (code, said) = rootless.code("migrate /etc");
    assert!(
        code == 1 && said.contains("not a directory of udocker's"),
        "{said}"
    );
}

#[test]
fn what_was_asked_for_is_done_or_said_to_be_impossible() {
    let registry = Registry::start();
    let host = Host::boot();
    let rootless = Rootless::new(&host, &registry);
    let name = &rootless.name;
    // Nobody kills what tidies up.
    let said = rootless.user.command(&format!(
        "atomic-rs rootless run --rm --mode P2 {name} true"
    ));
    assert_eq!(
        (said.code(), said.err().contains("WARN")),
        (0, false),
        "{}",
        said.err()
    );
    // What runs in the background can be stopped as soon as its id is there.
    rootless.ok(&format!("create --name one {name}"));
    for _ in 0..3 {
        let said = rootless.user.command(
            "atomic-rs rootless run -d one sh -c 'echo begun; sleep 100' && atomic-rs rootless stop -t 1 one",
        );
        assert!(said.code() == 0 && said.err().is_empty(), "{}", said.err());
    }
    // The log ends with what writes it.
    rootless.ok("run -d one sh -c 'A=inner; sleep 1; echo [$A] ${A}; echo last words'");
    let log = rootless
        .user
        .ok("timeout 30 atomic-rs rootless logs --follow one");
    assert!(log.ends_with("[inner] inner\nlast words\n"), "{log}");
    rootless
        .user
        .ok("timeout 30 atomic-rs rootless logs --follow one");
    // Files that a user of the container has closed.
    rootless.ok("run one sh -c 'mkdir /shut; busybox chown 1000 /shut; busybox chmod 0 /shut'");
    rootless.ok("setup --fixperm one");
    assert_eq!(
        rootless.ok("run one busybox stat -c %u:%a /shut"),
        "0:700\n"
    );
    // At a terminal programs know at which.
    let typed = rootless
        .user
        .ok("script -qec 'atomic-rs rootless run one busybox tty' /dev/null </dev/null");
    assert_eq!(typed.trim(), "/dev/console");
    // What cannot be is refused.
    for (words, why) in [
        ("run --mode P2 one true", "--mode is for new ones"),
        ("run --device /dev/../etc one true", "there is no device"),
        ("run --volume /tmp:/proc one true", "are the kernel's"),
        (
            "run --volume /tmp:/ one true",
            "cannot be the container's root",
        ),
        (
            "run nothing-of-that-name true",
            "there is no container and no stored image",
        ),
    ] {
        let (code, said) = rootless.code(words);
        assert!(code != 0 && said.contains(why), "{words}: {said}");
    }
    // A container that lost its record.
    let id = rootless.ok(&format!("create {name}"));
    let id = id.trim();
    rootless.user.ok(&format!(
        "rm $(dirname $(find ~/.local $HOME /var/lib/containers/someone -name container.json -path '*{id}*' 2>/dev/null | head -1))/container.json"
    ));
    rootless.ok(&format!("rm {id}"));
    let said = rootless.user.command("atomic-rs rootless ps");
    assert!(said.code() == 0 && said.err().is_empty(), "{}", said.err());
    // Nobody hears it.
    let said = rootless
        .user
        .command("atomic-rs rootless rm nothing 2>/dev/full");
    assert_eq!(said.code(), 1);
}
