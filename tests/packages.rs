//! Host files in packages, and whole containers as packages, with the real rpm, dnf and dpkg.

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::json;
use support::images::{self, Image, Layer};
use support::{Host, Registry, Said as _, Scratch, free_port, must, wait_for_answer};

/// What these packages need and Debian has, though not on record with rpm.
const BASE: &str = "Name: base\nVersion: 1\nRelease: 1\nSummary: what the host has\nLicense: MIT\nBuildArch: noarch\n\
    Provides: /bin/sh runc = 1.1.5 systemd\n%description\nWhat the host has.\n%files\n";

/// A host whose packages are rpms. `prepare`: more of that, on its root directory.
fn rpm_host(prepare: impl FnOnce(&Path)) -> Host {
    let base = rpm(BASE);
    Host::boot_with(|root| {
        std::fs::create_dir_all(root.join("etc/rpm")).unwrap();
        std::fs::write(root.join("etc/rpm/macros"), "%_dbpath /var/lib/rpm\n").unwrap();
        std::fs::write(
            root.join("etc/atomic-rs.toml"),
            "watch = 1\npackage_format = \"rpm\"\n",
        )
        .unwrap();
        install_in(root, &base.join("it.rpm"));
        prepare(root);
    })
}

/// `rpm -i --root`
fn install_in(root: &Path, file: &Path) {
    must(
        Command::new("rpm")
            .args(["-i", "--dbpath", "/var/lib/rpm", "--root"])
            .arg(root)
            .arg(file),
    );
}

/// Build `it.rpm` by a spec.
fn rpm(spec: &str) -> Scratch {
    let scratch = Scratch::new("rpm");
    std::fs::write(scratch.join("it.spec"), spec).unwrap();
    must(
        Command::new("rpmbuild")
            .args(["-bb", "--quiet", "--define"])
            .arg(format!("_topdir {}", scratch.path().display()))
            .args(["--define", "_rpmfilename it.rpm"])
            .arg(scratch.join("it.spec")),
    );
    std::fs::rename(scratch.join("RPMS/it.rpm"), scratch.join("it.rpm")).unwrap();
    scratch
}

/// A service with everything that a package may have trouble with.
fn service(port: u16) -> Image {
    images::plain(port, "packaged")
        .set(
            "Labels",
            json!({"atomic.summary": "says packaged", "atomic.license": "MIT", "atomic.url": "https://example.com",
                   "atomic.provides": "greeting = 2"}),
        )
        .layer(
            Layer::new()
                .owned_dir("srv/own", 0o750, 1234)
                .owned_file("srv/own/it's mine", 0o4755, 1234, "set-uid")
                .xattr(
                    "security.capability",
                    &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                )
                .file("bin/capable", 0o755, "binds")
                .file("srv/first", 0o644, "twice")
                .hardlink("srv/second", "srv/first")
                .fifo("srv/fifo")
                .file("exports/hostfs/usr/local/bin/greet", 0o755, "#!/bin/sh\necho greetings\n")
                .file("exports/hostfs/etc/greet.conf", 0o644, "how=kindly\n")
                .dir("exports/hostfs/var/lib/greet", 0o700)
                .dir("exports/hostfs/usr/share/web", 0o700)
                .file("exports/hostfs/usr/share/web/file", 0o644, "x")
                // Not called like the container: it may be somebody else's.
                .owned_dir("exports/hostfs/usr/share/theirs", 0o700, 1234)
                .file("exports/hostfs/usr/share/theirs/file", 0o644, "x")
                .file("exports/hostfs/etc/profile.d/greet.sh", 0o644, "")
                .symlink("exports/hostfs/usr/local/bin/hello", "greet"),
        )
}

const CONTAINER: &str = "/usr/lib/containers/atomic/web";

/// Build the package of a service in both formats' common way, twice; its file.
fn build(host: &Host, registry: &Registry, format: &str) -> std::path::PathBuf {
    let words = format!(
        "atomic-rs install --system-package=build --package-format={format} --name web --set SECRET=s3cret {}",
        registry.name("web")
    );
    let file = format!("atomic-container-web.{format}");
    host.atomic_ok(&format!("pull {}", registry.name("web")));
    let dry = words.replace("--name", "--dry-run --name");
    let dry = host.sh(&format!("mkdir /root/a /root/b; cd /root/a && {dry}"));
    assert_eq!(dry.code(), 3, "{}", dry.err());
    assert!(!host.exists(&format!("/root/a/{file}")));
    let said = host.sh(&format!("cd /root/a && {words}"));
    assert_eq!(
        said.out(),
        format!("Generated {format} /root/a/{file}\n"),
        "{}",
        said.err()
    );
    assert_eq!(
        host.sh(&format!("sleep 1; cd /root/b && {words}")).code(),
        0
    );
    let same = host.run(&format!("cmp /root/a/{file} /root/b/{file}"));
    assert!(same.status.success(), "not reproducible: {}", host.sh(&format!(
        "for i in a b; do cd /root/$i; dpkg-deb -R {file} x; tar xf {file}; rpm2cpio {file} | cpio -id --quiet; done; cd /root; diff -r a b")).out());
    // Nothing was installed, and nothing is left.
    assert_eq!(host.atomic_ok("containers list --all --noheading"), "");
    assert_eq!(host.sh("ls -A /var/lib/containers/atomic/.run").out(), "");
    host.path(&format!("/root/a/{file}"))
}

/// What the package brought, with owners, modes and capabilities.
fn check_files(host: &Host) {
    let stat = host.sh(&format!(
        "cd {CONTAINER} && stat -c '%n %a %u:%g %h' . rootfs/srv/own rootfs/srv/own/* rootfs/srv/first config.json; getcap rootfs/bin/capable"
    ));
    let stat = stat.out();
    for line in [
        ". 700 0:0",
        "rootfs/srv/own 750 1234:1234",
        "rootfs/srv/own/it's mine 4755 1234:1234",
        "config.json 600 0:0",
        "cap_net_bind_service",
    ] {
        assert!(stat.contains(line), "{line}: {stat}");
    }
    assert_eq!(host.ok("hello"), "greetings\n");
    assert_eq!(
        host.ok("stat -c %a /var/lib/greet /usr/share/web"),
        "700\n700\n"
    );
    assert!(!host.exists(&format!("{CONTAINER}/rootfs/srv/fifo")));
}

/// Its service has stopped, and nothing that the package brought is left.
fn check_gone(host: &Host) {
    assert_eq!(
        host.run("systemctl is-active web.service").out(),
        "inactive\n"
    );
    for path in [
        CONTAINER,
        "/usr/local/bin/greet",
        "/etc/greet.conf",
        "/usr/share/web",
        "/usr/lib/systemd/system/web.service",
    ] {
        assert!(
            !host.exists(path),
            "{path}: {}",
            host.sh(&format!("find {path}")).out()
        );
    }
}

#[test]
fn a_built_rpm_runs_its_container_where_this_program_is_not() {
    let registry = Registry::start();
    let maker = rpm_host(|_| {});
    let port = free_port();
    let id = service(port).push(&registry, "web").id().to_owned();
    let file = build(&maker, &registry, "rpm");
    let ask = |words: &str| maker.ok(&format!("rpm {words} /root/a/atomic-container-web.rpm"));
    let about = ask("-qip");
    for line in [
        "Name        : atomic-container-web",
        "Version     : 1",
        "Architecture: x86_64",
        "License     : MIT",
        "Summary     : says packaged",
        "URL         : https://example.com",
        id.as_str(),
    ] {
        assert!(about.contains(line), "{line}: {about}");
    }
    let files = ask("-qlp");
    for path in [
        "/usr/lib/containers/atomic/web/rootfs/bin/busybox",
        "/usr/lib/containers/atomic/web/config.json",
        "/usr/lib/systemd/system/web.service",
        "/usr/lib/tmpfiles.d/web.conf",
        "/usr/local/bin/greet",
        "/etc/greet.conf",
    ] {
        assert!(files.lines().any(|line| line == path), "{path}: {files}");
    }
    // Directories that others have files in are not the package's.
    for path in ["/etc/profile.d", "/usr/share/theirs"] {
        assert!(!files.lines().any(|line| line == path), "{path}: {files}");
    }
    assert_eq!(ask("-qcp"), "/etc/greet.conf\n/etc/profile.d/greet.sh\n");
    let scripts = ask("-qp --scripts");
    assert!(
        scripts.contains("systemctl --no-reload preset web.service")
            && scripts.contains("systemctl daemon-reload")
            && scripts.contains("systemd-tmpfiles --create web.conf"),
        "{scripts}"
    );
    assert!(!scripts.contains(" '/usr/share/theirs'"), "{scripts}");
    let digests = ask("-Kv");
    assert!(
        digests.contains("SHA256 digest: OK") && !digests.contains("BAD"),
        "{digests}"
    );
    let needs = ask("-qp --requires");
    assert!(needs.lines().any(|line| line.trim() == "runc"), "{needs}");
    assert!(ask("-qp --provides").contains("greeting = 2"));

    let host = rpm_host(|root| {
        std::fs::remove_file(root.join("usr/local/bin/atomic-rs")).unwrap();
        install_in(root, &file);
    });
    assert_eq!(host.ok("systemctl is-enabled web.service"), "enabled\n");
    check_files(&host);
    host.ok("systemctl start web.service");
    wait_for_answer(port, "packaged");
    assert!(host.ok("runc list").contains("web"));
    let unit = host.ok("systemctl cat web.service");
    assert!(!unit.contains("bin/atomic-rs"), "{unit}");
    assert_eq!(host.sh("rpm -V atomic-container-web 2>/dev/null").out(), "");
    host.ok("rpm -e atomic-container-web");
    check_gone(&host);
}

#[test]
fn a_built_deb_runs_its_container_where_this_program_is_not() {
    let registry = Registry::start();
    let maker = Host::boot();
    let port = free_port();
    let id = service(port).push(&registry, "web").id().to_owned();
    let file = build(&maker, &registry, "deb");
    let about = maker.ok("dpkg -I /root/a/atomic-container-web.deb");
    for line in [
        "Package: atomic-container-web",
        "Version: 1-",
        "Architecture: amd64",
        "Depends: runc",
        "Homepage: https://example.com",
        "Description: says packaged",
        id.as_str(),
        "conffiles",
        "postinst",
    ] {
        assert!(about.contains(line), "{line}: {about}");
    }
    let lint =
        maker.run("lintian --allow-root --no-tag-display-limit /root/a/atomic-container-web.deb");
    // The first two are for want of an address (DEBEMAIL gives one); the others are the image's own doing.
    let explained = [
        "bogus-mail-host",
        "root-in-contact",
        "dir-in-usr-local",
        "file-in-usr-local",
        "statically-linked-binary",
        "wrong-file-owner-uid-or-gid",
    ];
    assert!(
        lint.out().contains("atomic-container-web"),
        "{}",
        lint.err()
    );
    let lint = lint.out();
    for error in lint.lines().filter(|line| line.starts_with("E:")) {
        assert!(explained.iter().any(|tag| error.contains(tag)), "{error}");
    }

    let host = Host::boot_with(|root| {
        std::fs::remove_file(root.join("usr/local/bin/atomic-rs")).unwrap();
        std::fs::copy(&file, root.join("root/it.deb")).unwrap();
        // Where this machine is itself a container, it may say that no service is started.
        let _ = std::fs::remove_file(root.join("usr/sbin/policy-rc.d"));
    });
    host.ok("dpkg -i /root/it.deb");
    // As is the custom there, it runs at once.
    wait_for_answer(port, "packaged");
    assert_eq!(host.ok("systemctl is-enabled web.service"), "enabled\n");
    check_files(&host);
    assert!(host.ok("runc list").contains("web"));
    assert_eq!(host.run("dpkg -V atomic-container-web").out(), "");
    host.ok("dpkg -P atomic-container-web");
    check_gone(&host);
}

/// How a built package gets onto a host.
struct Put {
    format: &'static str,
    install: &'static str,
    upgrade: &'static str,
    downgrade: &'static str,
    remove: &'static str,
}

fn shell(host: &Host, line: &str) {
    let said = host.sh(line);
    assert_eq!(said.code(), 0, "{line}: {}{}", said.out(), said.err());
}

/// A built package gives way to that of a later image and comes back, on `host`, which has not this program.
fn upgrades(maker: &Host, host: &Host, put: &Put) {
    let registry = Registry::start();
    let port = free_port();
    for number in [1, 2] {
        let layer = Layer::new()
            .file("exports/hostfs/etc/greet.conf", 0o644, format!("{number}"))
            .file(
                "exports/hostfs/usr/local/share/web/both",
                0o644,
                format!("{number}"),
            )
            .file(
                &format!("exports/hostfs/usr/local/share/web/{number}"),
                0o644,
                "x",
            )
            .file(&format!("srv/{number}"), 0o644, "x");
        images::plain(port, &format!("version {number}"))
            .layer(layer)
            .push(&registry, "web");
        let name = registry.name("web");
        maker.atomic_ok(&format!("pull {name}"));
        shell(
            maker,
            &format!(
                "cd /root && SOURCE_DATE_EPOCH={number}000000000 atomic-rs install --system-package=build \
             --package-format={0} --name web {name} && mv atomic-container-web.{0} {number}.{0}",
                put.format
            ),
        );
        let file = format!("root/{number}.{}", put.format);
        std::fs::copy(maker.path(&file), host.path(&file)).unwrap();
    }
    let at = |number: u32, conf: &str| {
        wait_for_answer(port, &format!("version {number}"));
        assert_eq!(host.read("/etc/greet.conf"), conf);
        assert_eq!(host.read("/usr/local/share/web/both"), number.to_string());
        for number_of in [1, 2] {
            for path in ["/usr/local/share/web", &format!("{CONTAINER}/rootfs/srv")] {
                let path = format!("{path}/{number_of}");
                assert_eq!(
                    host.exists(&path),
                    number_of == number,
                    "{path} in {number}"
                );
            }
        }
    };
    shell(host, put.install);
    host.ok("systemctl start web");
    at(1, "1");
    // What the service wrote and what the administrator did are not the package's to undo.
    host.sh(&format!("echo -n mine > /etc/greet.conf; echo 1 > {CONTAINER}/rootfs/srv/written; systemctl disable web"));
    shell(host, put.upgrade);
    at(2, "mine");
    assert!(host.exists(&format!("{CONTAINER}/rootfs/srv/written")));
    assert_eq!(host.run("systemctl is-enabled web").out(), "disabled\n");
    shell(host, put.downgrade);
    at(1, "mine");
    shell(host, put.remove);
    assert_eq!(host.run("systemctl is-active web").out(), "inactive\n");
    for path in [CONTAINER, "/usr/local/share/web", "/etc/greet.conf"] {
        assert!(!host.exists(path), "{path}");
    }
}

#[test]
fn a_built_rpm_is_upgraded_and_goes_back() {
    let host = rpm_host(|root| std::fs::remove_file(root.join("usr/local/bin/atomic-rs")).unwrap());
    upgrades(
        &rpm_host(|_| {}),
        &host,
        &Put {
            format: "rpm",
            install: "rpm -i /root/1.rpm",
            upgrade: "rpm -U /root/2.rpm",
            downgrade: "rpm -U --oldpackage /root/1.rpm",
            remove: "rpm -e atomic-container-web; rm /etc/greet.conf.rpmsave; true",
        },
    );
}

#[test]
fn a_built_deb_is_upgraded_and_goes_back() {
    let host = Host::boot_with(|root| {
        std::fs::remove_file(root.join("usr/local/bin/atomic-rs")).unwrap();
        let _ = std::fs::remove_file(root.join("usr/sbin/policy-rc.d"));
    });
    upgrades(
        &Host::boot(),
        &host,
        &Put {
            format: "deb",
            install: "dpkg -i /root/1.deb",
            upgrade: "dpkg -i --force-confold /root/2.deb",
            downgrade: "dpkg -i --force-confold /root/1.deb",
            remove: "dpkg -P atomic-container-web",
        },
    );
}

/// Version `number` of an image that brings files and no service.
fn files(number: u32) -> Image {
    let layer = Layer::new()
        .file(
            "exports/manifest.json",
            0o644,
            json!({"version": "1.0", "noContainerService": true, "defaultValues": {"WHO": "world"},
                   "renameFiles": {"/usr/local/share/app/name": "/usr/local/share/app/of-$NAME"},
                   "installedFilesTemplate": ["/usr/local/share/app/hello"]})
            .to_string(),
        )
        .file(
            "exports/hostfs/usr/local/share/app/version",
            0o644,
            format!("{number}\n"),
        )
        .file(
            &format!("exports/hostfs/usr/local/share/app/only-{number}"),
            0o644,
            "x",
        )
        .file(
            "exports/hostfs/usr/local/share/app/hello",
            0o644,
            format!("hello $WHO {number}\n"),
        )
        .file(
            "exports/hostfs/usr/local/share/app/name",
            0o600,
            "renamed\n",
        )
        .file(
            "exports/hostfs/etc/app.conf",
            0o640,
            format!("version={number}\n"),
        )
        .file(&format!("exports/hostfs/etc/app-{number}.conf"), 0o640, "x")
        .symlink("exports/hostfs/usr/local/bin/app", "../share/app/version")
        .owned_file(
            "exports/hostfs/usr/local/share/app/own",
            0o4711,
            1234,
            "own",
        )
        .xattr(
            "security.capability",
            &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )
        .file("exports/hostfs/usr/local/share/app/capable", 0o755, "y")
        .dir("exports/hostfs/var/lib/app-state", 0o700);
    Image::new()
        .layer(Layer::new().busybox())
        .layer(layer)
        .set("Cmd", json!(["true"]))
}

/// How a host's package manager is asked.
struct Asked {
    /// The version of the container's package; fails where there is none.
    version: &'static str,
    /// Whose a file is.
    owner: &'static str,
    /// See that all is as it was installed.
    verify: &'static str,
}

const RPM: Asked = Asked {
    version: "rpm -q --qf %{VERSION}-%{RELEASE} atomic-container-app",
    owner: "rpm -qf --qf %{NAME}",
    verify: "rpm -V atomic-container-app",
};

const DPKG: Asked = Asked {
    version: "dpkg-query -W -f=${Version} atomic-container-app",
    owner: "dpkg-query -S",
    verify: "dpkg -V atomic-container-app",
};

const APP: &str = "/usr/local/share/app";

/// From install to uninstall, on a host whose packages are of one format.
fn goes_through(host: &Host, registry: &Registry, asked: &Asked) {
    let reference = registry.name("app");
    let places = [
        APP,
        "/usr/local/bin",
        "/etc/app.conf",
        "/etc/app-1.conf",
        "/etc/app-2.conf",
        "/var/lib/app-state",
    ];
    let names = |host: &Host| host.sh(&format!("find {} | sort", places.join(" "))).out();
    let before = names(host);
    let first = files(1).push(registry, "app").id().to_owned();
    host.atomic_ok(&format!("pull {reference}"));
    let state = host.listing(&places);
    let words = format!("install --name app --set WHO=you {reference}");
    let plan = host.atomic(&words.replace("install ", "install --dry-run "));
    assert_eq!(plan.code(), 3, "{}", plan.err());
    assert!(
        plan.out().contains("package: atomic-container-app 1-1.")
            && plan.out().contains("/etc/app.conf"),
        "{}",
        plan.out()
    );
    host.assert_unchanged(&places, &state);
    host.atomic_ok(&words);
    let version = host.ok(asked.version);
    assert_eq!(version, format!("1-1.{first}"));
    let inspected = host.atomic_ok("inspect app");
    assert!(inspected.contains(&version), "{inspected}");
    assert_eq!(host.read(&format!("{APP}/hello")), "hello you 1\n");
    assert_eq!(host.read(&format!("{APP}/of-app")), "renamed\n");
    assert_eq!(host.ok("cat /usr/local/bin/app").trim(), "1");
    let stat = host.ok(&format!(
        "stat -c %a:%u:%g {APP}/own {APP}/of-app /etc/app.conf /var/lib/app-state"
    ));
    assert_eq!(stat, "4711:1234:1234\n600:0:0\n640:0:0\n700:0:0\n");
    assert!(
        host.ok(&format!("getcap {APP}/capable"))
            .contains("cap_net_bind_service")
    );
    assert!(
        host.ok(&format!("{} {APP}/of-app", asked.owner))
            .contains("atomic-container-app")
    );
    assert_eq!(
        host.atomic_ok(&format!("which-container {APP}/of-app")),
        "app\n"
    );
    assert_eq!(host.atomic_ok("verify app"), "");
    assert_eq!(host.sh(asked.verify).out(), "");

    host.sh(&format!("rm {APP}/version"));
    assert_eq!(host.atomic("verify app").code(), 1);
    host.atomic_ok("repair app");
    assert_eq!(host.read(&format!("{APP}/version")), "1\n");

    host.sh(&format!(
        "echo mine > {APP}/hello; echo mine > /etc/app.conf"
    ));
    let second = files(2).push(registry, "app").id().to_owned();
    let update = host.atomic("update app");
    assert_eq!(update.code(), 0, "{}", update.err());
    for path in [format!("{APP}/hello"), "/etc/app.conf".to_owned()] {
        assert!(
            update.err().contains(&format!("{path} was modified")),
            "{path}: {}",
            update.err()
        );
        assert_eq!(host.read(&path), "mine\n");
    }
    assert_eq!(host.ok(asked.version), format!("1-2.{second}"));
    assert_eq!(host.read(&format!("{APP}/version")), "2\n");
    for (path, there) in [("only-1", false), ("only-2", true)] {
        assert_eq!(host.exists(&format!("{APP}/{path}")), there, "{path}");
    }
    assert!(!host.exists("/etc/app-1.conf") && host.exists("/etc/app-2.conf"));
    let litter = host
        .sh("ls -A /etc /usr/local/share/app | grep -E 'rpm(new|save|orig)|dpkg-|atomic-rs-'")
        .out();
    assert_eq!(litter, "");

    host.atomic_ok("rollback app");
    assert_eq!(host.ok(asked.version), format!("1-1.{first}"));
    assert_eq!(host.read(&format!("{APP}/version")), "1\n");
    assert_eq!(host.read(&format!("{APP}/hello")), "mine\n");
    assert!(host.exists("/etc/app-1.conf") && !host.exists("/etc/app-2.conf"));
    let history = host.atomic_ok("history app");
    assert!(history.contains("1-2."), "{history}");

    let uninstall = host.atomic("uninstall app");
    assert_eq!(uninstall.code(), 0, "{}", uninstall.err());
    assert!(
        uninstall
            .err()
            .contains(&format!("Will not delete {APP}/hello")),
        "{}",
        uninstall.err()
    );
    assert!(!host.run(asked.version).status.success());
    assert_eq!(host.read(&format!("{APP}/hello")), "mine\n");
    assert_eq!(host.read("/etc/app.conf"), "mine\n");
    host.sh(&format!("rm -r {APP} /etc/app.conf"));
    assert_eq!(names(host), before);
}

#[test]
fn host_files_go_through_rpm() {
    let registry = Registry::start();
    goes_through(&rpm_host(|_| {}), &registry, &RPM);
}

#[test]
fn host_files_go_through_dpkg() {
    let registry = Registry::start();
    goes_through(&Host::boot(), &registry, &DPKG);
}

/// An image that brings one file, which nobody else has.
fn quiet(labels: serde_json::Value) -> Image {
    let manifest = json!({"version": "1.0", "noContainerService": true}).to_string();
    Image::new()
        .layer(Layer::new().busybox())
        .layer(
            Layer::new()
                .file("exports/manifest.json", 0o644, manifest)
                .file("exports/hostfs/usr/local/share/quiet/file", 0o644, "quiet"),
        )
        .set("Cmd", json!(["true"]))
        .set("Labels", labels)
}

/// An rpm of a file or of nothing.
fn rival(name: &str, more: &str, file: &str) -> Scratch {
    rpm(&format!(
        "Name: {name}\nVersion: 1.5\nRelease: 1\nSummary: x\nLicense: MIT\nBuildArch: noarch\n{more}%description\nx\n\
         %install\nmkdir -p %{{buildroot}}/etc\necho {name} > %{{buildroot}}{file}\n%files\n{file}\n"
    ))
}

/// The same as a deb, built in the root of a host to be: `/root/NAME.deb`.
fn rival_deb(root: &Path, name: &str, file: &str) {
    let tree = root.join("root").join(name);
    std::fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    std::fs::write(tree.join(file.trim_start_matches('/')), name).unwrap();
    let control = format!(
        "Package: {name}\nVersion: 1.5\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n"
    );
    std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
    must(
        Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group"])
            .arg(&tree)
            .arg(root.join(format!("root/{name}.deb"))),
    );
}

#[test]
fn what_the_package_manager_refuses_leaves_nothing() {
    let registry = Registry::start();
    files(1).push(&registry, "file");
    quiet(json!({"atomic.conflicts": "rival < 2"})).push(&registry, "conflict");
    quiet(json!({"atomic.requires": "nowhere-to-be-found >= 3"})).push(&registry, "missing");
    quiet(json!({"atomic.requires": "what is this"})).push(&registry, "odd");
    quiet(json!({})).push(&registry, "name");
    let rpms = rpm_host(|root| {
        install_in(root, &rival("rival", "", "/etc/app.conf").join("it.rpm"));
        install_in(
            root,
            &rival("atomic-container-name", "", "/etc/name.conf").join("it.rpm"),
        );
    });
    let debs = Host::boot_with(|root| {
        rival_deb(root, "rival", "/etc/app.conf");
        rival_deb(root, "atomic-container-name", "/etc/name.conf");
    });
    debs.ok("dpkg -i /root/rival.deb /root/atomic-container-name.deb");
    for (host, format) in [(&rpms, "rpm"), (&debs, "deb")] {
        let places = ["/usr/local", "/etc/app.conf", "/etc/systemd/system"];
        let before = host.listing(&places);
        for (image, said) in [
            ("file", "/etc/app.conf, which belongs to the package rival"),
            ("conflict", "rival"),
            ("missing", "nowhere-to-be-found"),
            ("odd", "what is this"),
            ("name", "installed on this host already"),
        ] {
            let refused = host.atomic(&format!("install --name {image} {}", registry.name(image)));
            assert!(
                refused.code() == 1 && refused.err().contains(said),
                "{format} {image}: {}",
                refused.err()
            );
            println!("{format} {image}: {}", refused.err());
            assert_eq!(host.atomic_ok("containers list --all --noheading"), "");
        }
        let left = host.sh("find /var/lib/containers/atomic /var/tmp /tmp -name '*.rpm' -o -name '*.deb' -o -name '.*next*' -o -name '*.json'");
        assert_eq!(left.out(), "", "{format}");
        host.assert_unchanged(&places, &before);
    }
}

#[test]
fn what_a_package_needs_is_fetched_by_the_hosts_resolver() {
    let registry = Registry::start();
    quiet(json!({"atomic.requires": "helper >= 1.2"})).push(&registry, "needy");
    let rpms = rpm_host(|root| {
        let repository = root.join("srv/repository");
        std::fs::create_dir_all(&repository).unwrap();
        let helper = rival("helper", "", "/etc/helper.conf");
        std::fs::copy(helper.join("it.rpm"), repository.join("helper.rpm")).unwrap();
        must(Command::new("createrepo_c").arg("--quiet").arg(&repository));
        std::fs::create_dir_all(root.join("etc/yum.repos.d")).unwrap();
        std::fs::write(
            root.join("etc/yum.repos.d/local.repo"),
            "[local]\nname=local\nbaseurl=file:///srv/repository\ngpgcheck=0\n",
        )
        .unwrap();
    });
    let debs = Host::boot_with(|root| {
        rival_deb(root, "helper", "/etc/helper.conf");
        let repository = root.join("srv/repository");
        std::fs::create_dir_all(&repository).unwrap();
        std::fs::rename(root.join("root/helper.deb"), repository.join("helper.deb")).unwrap();
        let lists = root.join("etc/apt/sources.list.d");
        std::fs::remove_dir_all(&lists).unwrap();
        std::fs::create_dir_all(&lists).unwrap();
        let _ = std::fs::remove_file(root.join("etc/apt/sources.list"));
        std::fs::write(
            lists.join("local.list"),
            "deb [trusted=yes] file:/srv/repository ./\n",
        )
        .unwrap();
    });
    let index =
        debs.sh("cd /srv/repository && dpkg-scanpackages -m . > Packages && apt-get update -qq");
    assert!(index.status.success(), "{}", index.err());
    for (host, there) in [(&rpms, "rpm -q helper"), (&debs, "dpkg-query -W helper")] {
        let reference = registry.name("needy");
        host.atomic_ok(&format!("pull {reference}"));
        let plan = host.atomic(&format!("install --dry-run --name needy {reference}"));
        assert!(
            plan.out()
                .contains("packages fetched for it: helper >= 1.2"),
            "{}{}",
            plan.out(),
            plan.err()
        );
        assert!(!host.run(there).status.success());
        host.atomic_ok(&format!("install --name needy {reference}"));
        host.ok(there);
        assert_eq!(host.read("/usr/local/share/quiet/file"), "quiet");
        // What is there is not fetched again.
        host.sh("rm -rf /etc/yum.repos.d /etc/apt/sources.list.d");
        quiet(json!({"atomic.requires": "helper >= 1.2"}))
            .layer(Layer::new().file("exports/hostfs/usr/local/share/quiet/more", 0o644, "more"))
            .push(&registry, "needy");
        let plan = host.atomic(&format!("pull {reference}"));
        assert_eq!(plan.code(), 0, "{}", plan.err());
        let plan = host.atomic("update needy --no-pull --dry-run");
        assert!(
            plan.code() == 3 && !plan.out().contains("fetched"),
            "{}{}",
            plan.out(),
            plan.err()
        );
        host.atomic_ok("update needy --no-pull");
        quiet(json!({"atomic.requires": "helper >= 1.2"})).push(&registry, "needy");
        // What was fetched for it is the host's from now on.
        host.atomic_ok("uninstall needy");
        host.ok(there);
        assert!(!host.exists("/usr/local/share/quiet"));
    }
}

/// Files on each side of [`survives_kills`].
const MANY: usize = 400;

/// Kill changes of a container, the package manager with them or not; whatever is recovered is wholly old or
/// wholly new, in the files and in the package manager's books.
fn survives_kills(host: &Host, registry: &Registry, asked: &Asked, programs: &str) {
    let reference = registry.name("many");
    let push = |version: usize| {
        let manifest = json!({"version": "1.0", "noContainerService": true}).to_string();
        let mut layer = Layer::new().file("exports/manifest.json", 0o644, manifest);
        for number in 0..MANY {
            let content = format!("v{version}");
            layer = layer
                .file(
                    &format!("exports/hostfs/srv/many/{content}/{number}"),
                    0o644,
                    &content,
                )
                .file(
                    &format!("exports/hostfs/srv/same/{number}"),
                    0o644,
                    &content,
                );
        }
        Image::new()
            .layer(Layer::new().busybox())
            .layer(layer.file("exports/hostfs/etc/many.conf", 0o644, format!("v{version}")))
            .set("Cmd", json!(["true"]))
            .push(registry, "many")
            .id()
            .to_owned()
    };
    // What a package manager has begun and not finished.
    let unpacking = || {
        ["/srv/same", "/srv/many"].iter().any(|dir| {
            std::fs::read_dir(host.path(dir)).is_ok_and(|entries| {
                entries.flatten().any(|entry| {
                    let name = entry.file_name();
                    let name = name.to_string_lossy();
                    name.contains(';') || name.ends_with(".dpkg-new")
                })
            })
        })
    };
    let mut hits = 0;
    let mut kill = |words: &str, when: u64, everybody: bool| {
        let mut child = host
            .command("atomic-rs")
            .args(words.split(' '))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut hit = false;
        if when == 0 {
            while !hit && child.try_wait().unwrap().is_none() {
                hit = unpacking();
            }
        } else {
            std::thread::sleep(std::time::Duration::from_millis(when));
        }
        let has_ended = child.try_wait().unwrap().is_some();
        let victims = if everybody {
            format!("atomic-rs|{programs}")
        } else {
            "atomic-rs".to_owned()
        };
        host.sh(&format!("pkill -KILL -x '{victims}'"));
        let _ = child.wait();
        hits += usize::from(hit && everybody);
        let recovered = host.atomic("recover");
        assert_eq!(recovered.code(), 0, "{}", recovered.err());
        let litter = host
            .sh("find /srv /etc /var/tmp -name '.atomic-rs*' -o -name '*;????????' -o -name '*.dpkg-*' -o -name 'atomic-rs-spool-*' | grep -v spool-$$")
            .out();
        // A killed command's own files go with the next one that makes any.
        let litter: Vec<&str> = litter
            .lines()
            .filter(|line| !line.contains("spool"))
            .collect();
        assert!(litter.is_empty(), "after a kill of {words}: {litter:?}");
        has_ended
    };
    let version = asked.version.replace("-app", "-many");
    let gone = |what: &str| {
        let left = host
            .sh("find /srv/many /srv/same /etc/many.conf 2>/dev/null")
            .out();
        assert_eq!(left, "", "{what}");
        assert!(!host.run(&version).status.success(), "{what}");
        assert_eq!(
            host.atomic_ok("containers list --all --noheading"),
            "",
            "{what}"
        );
    };
    let mut ids = vec![push(0)];
    let install = format!("install --name many {reference}");
    host.atomic_ok(&format!("pull {reference}"));
    for everybody in [true, false] {
        // Where the machine is busy it may be over before anybody saw it unpack.
        while kill(&install, 0, everybody) {
            host.atomic_ok("uninstall many");
        }
        gone("a first installation");
    }
    host.atomic_ok(&install);
    let mut new = 0;
    let whole = |ids: &[String], what: &str| -> usize {
        let found = host
            .sh("cat /srv/same/* /etc/many.conf | grep -o 'v[0-9]*' | sort -u; ls /srv/many")
            .out();
        let words: Vec<&str> = found.split_whitespace().collect();
        assert!(
            words.len() == 2 && words[0] == words[1],
            "{what}: {words:?}"
        );
        let number: usize = words[0][1..].parse().unwrap();
        let on_record = host.ok(&version);
        assert!(on_record.ends_with(&ids[number]), "{what}: {on_record}");
        let count = host
            .sh("ls /srv/same | wc -l; ls /srv/many/* | wc -l")
            .out();
        assert_eq!(count, format!("{MANY}\n{MANY}\n"), "{what}");
        assert_eq!(host.atomic_ok("verify many"), "", "{what}");
        assert_eq!(
            host.sh(&asked.verify.replace("-app", "-many")).out(),
            "",
            "{what}"
        );
        number
    };
    for round in 1..=9_usize {
        ids.push(push(round));
        let when = [0, 0, 250, 450, 700, 0, 0, 900, 1200][round - 1];
        kill("update many", when, round % 3 != 0);
        new += usize::from(whole(&ids, &format!("update {round}")) == round);
    }
    kill("rollback many", 0, true);
    whole(&ids, "rollback");
    for when in [150, 300] {
        kill("uninstall many", when, true);
        if host.atomic_ok("containers list --all --quiet").is_empty() {
            gone("an uninstallation");
            host.atomic_ok(&install);
        } else {
            whole(&ids, "an uninstallation");
        }
    }
    println!("{hits} kills of a package manager at work; {new} of 9 killed updates went forward");
    assert!(hits >= 4, "{hits}");
    host.atomic_ok("uninstall many");
    gone("the end");
    let left = host.sh("ls -d /var/tmp/atomic-rs-* 2>/dev/null").out();
    assert!(left.lines().count() <= 1, "{left}");
}

#[test]
fn kills_of_rpm_leave_the_host_wholly_old_or_wholly_new() {
    let registry = Registry::start();
    survives_kills(&rpm_host(|_| {}), &registry, &RPM, "rpm");
}

#[test]
fn kills_of_dpkg_leave_the_host_wholly_old_or_wholly_new() {
    let registry = Registry::start();
    survives_kills(&Host::boot(), &registry, &DPKG, "dpkg|dpkg-deb|tar");
}

#[test]
fn host_files_move_between_plain_files_and_packages() {
    let registry = Registry::start();
    let host = rpm_host(|_| {});
    let places = [
        APP,
        "/usr/local/bin",
        "/etc/app.conf",
        "/etc/app-1.conf",
        "/var/lib/app-state",
    ];
    let contents = |host: &Host| {
        host.sh(&format!(
            "find {} -printf '%p %y %m %U:%G %l\\n' | sort; cat {APP}/hello /etc/app.conf; getcap {APP}/capable",
            places.join(" ")
        ))
        .out()
    };
    files(1).push(&registry, "app");
    host.atomic_ok(&format!(
        "install --system-package=no --name app {}",
        registry.name("app")
    ));
    assert!(!host.run(RPM.version).status.success());
    let plain = contents(&host);
    host.atomic_ok("update app --system-package=yes");
    assert!(host.ok(RPM.version).starts_with("1-1."));
    assert_eq!(contents(&host), plain);
    assert_eq!(host.sh(RPM.verify).out(), "");
    host.atomic_ok("rollback app");
    assert!(!host.run(RPM.version).status.success());
    assert_eq!(contents(&host), plain);
    assert_eq!(host.atomic_ok("verify app"), "");
    host.atomic_ok("rollback app");
    assert!(host.ok(RPM.version).starts_with("1-1."));
    host.sh("echo mine > /etc/app.conf");
    let update = host.atomic("update app --system-package=no");
    assert_eq!(update.code(), 0, "{}", update.err());
    assert!(!host.run(RPM.version).status.success());
    assert_eq!(contents(&host), plain.replace("version=1", "mine"));
    host.atomic_ok("uninstall app");
    host.ok("rm /etc/app.conf");
    assert_eq!(
        host.sh(&format!("ls -A {APP} /var/lib/app-state")).out(),
        ""
    );
}

#[test]
fn a_failed_update_returns_to_the_package() {
    let registry = Registry::start();
    let host = rpm_host(|_| {});
    let port = free_port();
    let image = |text: &str| {
        let layer = Layer::new().file("exports/hostfs/usr/local/share/app/text", 0o644, text);
        images::plain(port, text).layer(layer)
    };
    image("old").push(&registry, "app");
    host.atomic_ok(&format!(
        "install --system-package=yes --name app {}",
        registry.name("app")
    ));
    host.ok("systemctl start app");
    let package = host.ok(RPM.version);
    for wish in ["no", "yes"] {
        image("new")
            .set("Cmd", json!(["exit 1"]))
            .set("Env", json!([format!("WISH={wish}")]))
            .push(&registry, "app");
        let update = host.atomic(&format!("update app --system-package={wish}"));
        assert_eq!(update.code(), 1, "{}", update.err());
        wait_for_answer(port, "old");
        assert_eq!(host.ok(RPM.version), package, "{}", update.err());
        assert_eq!(host.sh(RPM.verify).out(), "");
        assert_eq!(host.read(&format!("{APP}/text")), "old");
        assert_eq!(host.atomic_ok("verify app"), "");
    }
    host.atomic_ok("uninstall app");
    assert!(!host.exists(APP) && !host.run(RPM.version).status.success());
}

/// Whoever may write to a directory makes a container's file mean another one.
fn is_not_led_astray(host: &Host, asked: &Asked) {
    let registry = Registry::start();
    let image = |text: &str| {
        let layer = Layer::new().file("exports/hostfs/srv/open/hosts", 0o644, text);
        quiet(json!({})).layer(layer)
    };
    image("x").push(&registry, "app");
    host.atomic_ok(&format!(
        "install --system-package=yes --name app {}",
        registry.name("app")
    ));
    host.sh("mv /srv/open /srv/moved; ln -s /etc /srv/open; echo -n x > /etc/hosts");
    image("evil").push(&registry, "app");
    let update = host.atomic("update app");
    assert!(
        update.code() == 1 && update.err().contains("/srv/open"),
        "{}",
        update.err()
    );
    assert_eq!(host.read("/etc/hosts"), "x");
    host.atomic_ok("uninstall app");
    assert_eq!(host.sh("cat /etc/hosts").out(), "x");
    assert!(!host.run(asked.version).status.success());
}

#[test]
fn a_directory_that_has_become_a_link_leads_no_package_manager_astray() {
    is_not_led_astray(&rpm_host(|_| {}), &RPM);
    is_not_led_astray(&Host::boot(), &DPKG);
}

#[test]
fn an_images_own_rpm_is_used_if_it_does_what_an_image_may_do() {
    let registry = Registry::start();
    let host = rpm_host(|_| {});
    let own = |name: &str, rpm: &Scratch| {
        let content = std::fs::read(rpm.join("it.rpm")).unwrap();
        quiet(json!({}))
            .layer(Layer::new().file("exports/container.rpm", 0o644, content))
            .push(&registry, name);
    };
    own("good", &rival("vendor-tool", "", "/etc/vendor.conf"));
    own("closed", &rival("vendor-closed", "", "/etc/sudoers"));
    let scripted = rpm(
        "Name: vendor-script\nVersion: 1\nRelease: 1\nSummary: x\nLicense: MIT\nBuildArch: noarch\n%description\nx\n\
         %post\ntouch /srv/was-run\n%files\n",
    );
    own("script", &scripted);
    host.atomic_ok(&format!("install --name app {}", registry.name("good")));
    assert_eq!(host.ok("rpm -q --qf %{VERSION} vendor-tool"), "1.5");
    assert_eq!(host.read("/etc/vendor.conf"), "vendor-tool\n");
    // Its files, not those of exports/hostfs.
    assert!(!host.exists("/usr/local/share/quiet/file"));
    assert_eq!(host.atomic_ok("which-container /etc/vendor.conf"), "app\n");
    own(
        "good",
        &rival("vendor-tool", "Epoch: 2\n", "/etc/vendor-two.conf"),
    );
    host.atomic_ok("update app");
    assert!(!host.exists("/etc/vendor.conf") && host.exists("/etc/vendor-two.conf"));
    host.atomic_ok("rollback app");
    assert!(host.exists("/etc/vendor.conf") && !host.exists("/etc/vendor-two.conf"));
    host.atomic_ok("uninstall app");
    assert!(!host.run("rpm -q vendor-tool").status.success());
    assert!(!host.exists("/etc/vendor.conf"));

    let refused = host.atomic(&format!("install --name app {}", registry.name("closed")));
    assert!(
        refused.code() == 1 && refused.err().contains("/etc/sudoers"),
        "{}",
        refused.err()
    );
    let refused = host.atomic(&format!("install --name app {}", registry.name("script")));
    assert!(
        refused.code() == 1
            && refused.err().contains("postinstall")
            && refused.err().contains("--allow-package-scripts"),
        "{}",
        refused.err()
    );
    assert!(!host.exists("/srv/was-run"));
    host.atomic_ok(&format!(
        "install --allow-package-scripts --name app {}",
        registry.name("script")
    ));
    assert!(host.exists("/srv/was-run"));
    host.atomic_ok("uninstall app");

    // What an image's package must not do, said or not.
    let hostile = |name: &str, more: &str, rest: &str| {
        rpm(&format!(
            "Name: {name}\nVersion: 1\nRelease: 1\nSummary: x\nLicense: MIT\nBuildArch: noarch\n{more}%description\nx\n{rest}"
        ))
    };
    host.ok("mkdir -m 0700 /srv/closed");
    for (number, (package, said)) in [
        (hostile("no-body", "", "%post -p \"/usr/bin/touch /srv/was-run-2\"\n%files\n"), "scripts"),
        (hostile("obsoletes", "Obsoletes: base\n", "%files\n"), "replaces the package base"),
        (
            hostile("opens", "", "%install\nmkdir -p %{buildroot}/srv/closed\n%files\n%dir %attr(0777,root,root) /srv/closed\n"),
            "/srv/closed",
        ),
        (
            hostile("below", "", "%install\nmkdir -p %{buildroot}/root/.ssh\n%files\n%dir %attr(0777,root,root) /root/.ssh\n"),
            "/root/.ssh",
        ),
        (hostile("needs", "Requires: nowhere(x) >= 2\n", "%files\n"), "nowhere"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("hostile{number}");
        own(&name, &package);
        let refused = host.atomic(&format!("install --name app {}", registry.name(&name)));
        assert!(refused.code() == 1 && refused.err().contains(said), "{said}: {}", refused.err());
    }
    assert!(!host.exists("/srv/was-run-2"));
    assert_eq!(host.ok("stat -c %a /srv/closed"), "700\n");
    host.ok("rpm -q base");
    for (number, label) in [
        "--eval=%(touch /srv/was-run-3)",
        "https://evil.example/x.rpm",
        "-c",
        "user(x)",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("label{number}");
        for field in ["requires", "provides", "conflicts"] {
            quiet(json!({format!("atomic.{field}"): label})).push(&registry, &name);
            let refused = host.atomic(&format!("install --name app {}", registry.name(&name)));
            assert!(refused.code() == 1, "{label}: {}", refused.err());
        }
    }
    assert!(!host.exists("/srv/was-run-3"));

    // Building makes no other.
    let built = host.sh(&format!(
        "cd /root && atomic-rs install --system-package=build --name app {}",
        registry.name("good")
    ));
    assert!(
        built
            .out()
            .contains("Generated rpm /root/atomic-container-app.rpm"),
        "{}",
        built.err()
    );
    assert_eq!(
        host.ok("rpm -qp --qf %{NAME} /root/atomic-container-app.rpm"),
        "vendor-tool"
    );
}

#[test]
fn a_container_that_the_original_installed_as_rpm_is_taken_over() {
    let registry = Registry::start();
    let host = rpm_host(|_| {});
    let first = files(1).push(&registry, "app").id().to_owned();
    host.atomic_ok(&format!("install --name app {}", registry.name("app")));
    // The original knew the file of its package, and nothing of what is in it.
    let info = "/var/lib/containers/atomic/app.0/info";
    let mut known: serde_json::Value = serde_json::from_str(&host.read(info)).unwrap();
    for ours in [
        "package",
        "package-mode",
        "options",
        "user-values",
        "platform",
    ] {
        known.as_object_mut().unwrap().remove(ours);
    }
    known["installed-files"] = json!([]);
    known["installed-files-checksum"] = json!({});
    std::fs::write(host.path(info), known.to_string()).unwrap();
    host.sh(&format!("echo mine > {APP}/hello"));
    let second = files(2).push(&registry, "app").id().to_owned();
    let diff =
        host.atomic_ok(&format!("pull {}", registry.name("app"))) + &host.atomic_ok("diff app");
    assert!(
        diff.contains(&format!("host: added {APP}/only-2"))
            && diff.contains(&format!("host: removed {APP}/only-1"))
            && diff.contains("package: atomic-container-app 1-1."),
        "{diff}"
    );
    let update = host.atomic("update app");
    assert_eq!(update.code(), 0, "{}", update.err());
    assert!(
        update.err().contains(&format!("{APP}/hello was modified")),
        "{}",
        update.err()
    );
    assert_eq!(host.ok(RPM.version), format!("1-1.{second}"));
    assert_eq!(host.read(&format!("{APP}/version")), "2\n");
    assert_eq!(host.read(&format!("{APP}/hello")), "mine\n");
    assert!(!host.exists(&format!("{APP}/only-1")));
    host.atomic_ok("rollback app");
    assert_eq!(host.ok(RPM.version), format!("1-1.{first}"));
    assert_eq!(host.read(&format!("{APP}/version")), "1\n");
    host.atomic_ok("uninstall app");
    assert!(!host.run(RPM.version).status.success());
    assert_eq!(host.sh(&format!("ls {APP}")).out(), "hello\n");
}

#[test]
fn an_rpm_is_signed_with_a_key_of_gpgs() {
    let registry = Registry::start();
    let host = rpm_host(|_| {});
    quiet(json!({})).push(&registry, "app");
    host.sh("gpg --batch --quiet --passphrase '' --quick-generate-key packer@example.com rsa2048 sign never");
    host.sh("gpg --armor --export packer@example.com > /root/key.asc; rpm --import /root/key.asc");
    let reference = registry.name("app");
    let built = host.sh(&format!(
        "cd /root && atomic-rs install --system-package=build --sign-by=packer@example.com --name app {reference}"
    ));
    assert!(built.status.success(), "{}", built.err());
    let checked = host.ok("rpm -Kv /root/atomic-container-app.rpm");
    assert!(
        checked.contains("Signature") && !checked.contains("NOKEY") && !checked.contains("BAD"),
        "{checked}"
    );
    // What is installed here may have to be signed as well.
    host.sh("echo '%_pkgverify_level signature' >> /etc/rpm/macros");
    let refused = host.atomic(&format!("install --name app {reference}"));
    assert!(
        refused.code() == 1 && refused.err().contains("signature"),
        "{}",
        refused.err()
    );
    host.sh("echo 'package_signer = \"packer@example.com\"' >> /etc/atomic-rs.toml");
    host.atomic_ok(&format!("install --name app {reference}"));
    let unknown = host.sh(&format!(
        "cd /root && atomic-rs install --system-package=build --sign-by=nobody@example.com --name app {reference}"
    ));
    assert!(
        unknown.code() == 1 && unknown.err().contains("nobody@example.com"),
        "{}",
        unknown.err()
    );
}

#[test]
fn a_container_of_a_package_is_used_like_others_and_left_to_its_package() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    service(port).push(&registry, "web");
    build(&host, &registry, "deb");
    host.ok("dpkg -i /root/a/atomic-container-web.deb");
    let listed = host.atomic_ok("containers list --all --noheading");
    assert!(listed.contains("web"), "{listed}");
    host.atomic_ok("run web");
    wait_for_answer(port, "packaged");
    assert_eq!(host.atomic_ok("exec web echo inside"), "inside\n");
    assert!(host.atomic_ok("status web").contains("state: running"));
    let inspected: serde_json::Value =
        serde_json::from_str(&host.atomic_ok("inspect web")).unwrap();
    assert_eq!(inspected["deployments"][0]["path"], CONTAINER);
    assert_eq!(inspected["deployments"][0]["slot"], json!(null));
    host.atomic_ok("stop web");
    assert_eq!(host.atomic_ok("exec web echo stopped"), "stopped\n");
    for verb in ["update", "rollback", "repair", "uninstall"] {
        let refused = host.atomic(&format!("{verb} web"));
        assert!(
            refused.code() == 1 && refused.err().contains("belongs to a package"),
            "{verb}: {}",
            refused.err()
        );
    }
    let again = host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    assert!(again.contains("web already present"), "{again}");
    host.ok("dpkg -P atomic-container-web");
    assert_eq!(host.atomic_ok("containers list --all --noheading"), "");
}

#[test]
fn other_package_managers_are_waited_for_while_the_service_still_runs() {
    let registry = Registry::start();
    let host = Host::boot();
    let port = free_port();
    let push = |version: &str| {
        images::plain(port, version)
            .layer(Layer::new().file("exports/hostfs/etc/web.conf", 0o644, version))
            .push(&registry, "web");
    };
    push("first");
    host.atomic_ok(&format!("install --name web {}", registry.name("web")));
    host.ok("systemctl start web");
    wait_for_answer(port, "first");
    push("second");
    // As apt does, for three seconds.
    let holder = "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(3)";
    let mut apt = host
        .command("/usr/bin/python3")
        .args(["-c", holder])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(apt.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    let update = host
        .command("atomic-rs")
        .args(["update", "web"])
        .output()
        .unwrap();
    apt.wait().unwrap();
    assert_eq!(update.code(), 0, "{}", update.err());
    assert!(
        update.err().contains("waiting for the package manager"),
        "{}",
        update.err()
    );
    wait_for_answer(port, "second");
    assert_eq!(host.read("/etc/web.conf"), "second");
    let history: serde_json::Value =
        serde_json::from_str(&host.atomic_ok("history web --json")).unwrap();
    let outage = history["deployments"][1]["outage_ms"].as_u64().unwrap();
    assert!(outage < 2500, "{outage} ms");
    println!("outage with a deb: {outage} ms");
    // The lock is free again.
    host.ok("dpkg --configure -a");
}
