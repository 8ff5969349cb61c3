#!/usr/bin/env python3
"""Rootless containers beside udocker, each in turn in one run, as a user without rights: a pull, the first
container of an image and further ones, a command that does nothing, and the space of five containers.

usage: rootless.py [ROUNDS]     as root; it prints a table and writes benches/ROOTLESS.md

Needs proot, runc, debootstrap, docker-registry and skopeo; udocker comes from PyPI into a virtual environment below
target. The image is Debian's smallest tree, made once. udocker is told to use the host's proot and runc.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
WORK = os.path.join(ROOT, "target", "rootless")
# Of nobody.
USER = 64999
CONTAINERS = 5


def call(words, **more):
    return subprocess.run(words, check=True, **more)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def tree():
    path = os.path.join(WORK, "debian.tar.gz")
    if not os.path.exists(path):
        made = os.path.join(WORK, "debian")
        shutil.rmtree(made, ignore_errors=True)
        call(["debootstrap", "--variant=minbase", "bookworm", made], stdout=subprocess.DEVNULL)
        call(["tar", "-C", made, "--exclude=./dev/*", "-czf", path + ".new", "."])
        os.rename(path + ".new", path)
        shutil.rmtree(made)
    return path


def wrapper(scratch):
    """Debian 12's PRoot starts no programs of its own Debian with the option by which udocker names a kernel."""
    path = os.path.join(scratch, "proot")
    with open(path, "w", encoding="utf-8") as out:
        out.write(
            '#!/bin/bash\nwords=()\nwhile [ $# -gt 0 ]; do\n'
            '  if [ "$1" = -k ]; then shift; else words+=("$1"); fi\n  shift\ndone\n'
            f'exec {shutil.which("proot")} "${{words[@]}}"\n'
        )
    os.chmod(path, 0o755)
    return path


def timed(scratch, program):
    """A program that writes down when it began and when it ended."""
    path, log = os.path.join(scratch, "timed"), os.path.join(scratch, "took")
    with open(path, "w", encoding="utf-8") as out:
        out.write(
            f'#!/bin/bash\necho $EPOCHREALTIME >> {log}\n{shutil.which(program)} "$@"\ncode=$?\n'
            f"echo $EPOCHREALTIME >> {log}\nexit $code\n"
        )
    with open(log, "w", encoding="utf-8"):
        pass
    os.chmod(path, 0o755)
    os.chmod(log, 0o666)
    return path


class Registry:
    def __init__(self, scratch):
        self.address = f"127.0.0.1:{free_port()}"
        config = os.path.join(scratch, "registry.yml")
        data = os.path.join(scratch, "registry")
        with open(config, "w", encoding="utf-8") as out:
            out.write(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n"
                f"    rootdirectory: {data}\nhttp:\n  addr: {self.address}\n"
            )
        self.process = subprocess.Popen(
            ["docker-registry", "serve", config],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                socket.create_connection(self.address.split(":")).close()
                return
            except OSError:
                time.sleep(0.05)


class Someone:
    """A user without rights, with everything below one directory."""

    def __init__(self, scratch, program, env):
        self.home = scratch
        self.program = program
        self.env = {
            "HOME": scratch,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TMPDIR": "/tmp",
            # Without one skopeo looks where root may have closed the door.
            "XDG_RUNTIME_DIR": scratch,
            **env,
        }

    def run(self, *words, code=0):
        # What the one before wrote is not to be written by this one.
        os.sync()
        begun = time.perf_counter()
        done = subprocess.run(
            ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *self.program, *words],
            cwd=self.home,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        took = time.perf_counter() - begun
        if done.returncode != code:
            sys.exit(f"{self.program} {words}: {done.returncode}: {done.stdout}{done.stderr}")
        return took, done.stdout.strip().splitlines()[-1:] or [""]


def used(path):
    out = call(["du", "-s", "--block-size=1", path], stdout=subprocess.PIPE, text=True)
    return int(out.stdout.split()[0])


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    os.makedirs(WORK, exist_ok=True)
    venv = os.path.join(WORK, "venv")
    if not os.path.exists(os.path.join(venv, "bin", "udocker")):
        call([sys.executable, "-m", "venv", venv])
        call([os.path.join(venv, "bin", "pip"), "install", "--quiet", "udocker"])
    scratch = os.path.join(WORK, "scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(scratch)
    registry = Registry(scratch)
    rows = {}

    def note(what, who, value):
        rows.setdefault(what, {}).setdefault(who, []).append(value)

    try:
        image = os.path.join(scratch, "image")
        proot = wrapper(scratch)
        push(image, tree(), registry)
        for number in range(rounds):
            theirs = os.path.join(scratch, f"theirs-{number}")
            ours = os.path.join(scratch, f"ours-{number}")
            for path in (theirs, ours):
                os.makedirs(path)
                os.chown(path, USER, USER)
            tools = {
                "UDOCKER_DIR": os.path.join(theirs, "udocker"),
                "UDOCKER_TARBALL": "",
                "UDOCKER_USE_PROOT_EXECUTABLE": proot,
                "UDOCKER_USE_RUNC_EXECUTABLE": shutil.which("runc"),
                "UDOCKER_REGISTRY": f"http://{registry.address}",
                "UDOCKER_DEFAULT_EXECUTION_MODE": "P2",
            }
            peer = Someone(theirs, [os.path.join(venv, "bin", "udocker"), "-q"], tools)
            us = Someone(
                ours,
                [os.path.join(ROOT, "target", "release", "atomic-rs")],
                {"ATOMIC_OSTREE_CHECKOUT_PATH": os.path.join(ours, "store"), "ATOMIC_RS_CONFIG": "/none"},
            )
            name = f"http:{registry.address}/bench/debian:12"
            their_pull, our_pull = peer.run("pull", "bench/debian:12")[0], us.run("pull", name)[0]
            note("pull, which unpacks in ours and not in theirs", "udocker", their_pull)
            note("pull, which unpacks in ours and not in theirs", "atomic-rs", our_pull)
            # Whoever unpacks can do no less; whoever only downloads does none of it.
            begun = time.perf_counter()
            call(["sh", "-c", 'gzip -dc "$1" | sha256sum', "sh", tree()], stdout=subprocess.DEVNULL)
            note("pull, which unpacks in ours and not in theirs", "gzip -dc, sha256sum", time.perf_counter() - begun)
            into = os.path.join(scratch, "floor")
            os.makedirs(into)
            begun = time.perf_counter()
            call(["tar", "-C", into, "-xzf", tree()])
            note("pull, which unpacks in ours and not in theirs", "tar -xz", time.perf_counter() - begun)
            shutil.rmtree(into)
            begun = used(theirs), used(ours)
            their_id, our_id = None, None
            for count in range(CONTAINERS):
                what = "first container" if count == 0 else "further container"
                their_time, (their_id,) = peer.run("create", "bench/debian:12")
                note(what, "udocker", their_time)
                our_time, (our_id,) = us.run("rootless", "create", name)
                note(what, "atomic-rs", our_time)
                if count == 0:
                    note("pull and first container", "udocker", their_pull + their_time)
                    note("pull and first container", "atomic-rs", our_pull + our_time)
            note("five containers, MB", "udocker", (used(theirs) - begun[0]) / 1e6)
            note("five containers, MB", "atomic-rs", (used(ours) - begun[1]) / 1e6)
            note("run true", "udocker P2", peer.run("run", "--nobanner", their_id, "/bin/true")[0])
            note("run true", "atomic-rs N", us.run("rootless", "run", our_id, "/bin/true")[0])
            us.run("rootless", "setup", our_id, "--mode", "R1")
            note("run true", "atomic-rs R1", us.run("rootless", "run", our_id, "/bin/true")[0])
            # How much of that is the runtime's own.
            us.env["RUNC_PATH"] = timed(scratch, "runc")
            us.run("rootless", "run", our_id, "/bin/true")
            del us.env["RUNC_PATH"]
            with open(os.path.join(scratch, "took"), encoding="utf-8") as took:
                begun, ended = (float(line) for line in took.read().split()[-2:])
            note("run true", "of that runc itself", ended - begun)
            peer.run("setup", "--execmode=R1", their_id)
            # Without a terminal it loses the exit code.
            note("run true", "udocker R1", peer.run("run", "--nobanner", their_id, "/bin/true", code=1)[0])
            note("files of its own (P2)", "atomic-rs", us.run("rootless", "setup", our_id, "--mode", "P2")[0])
            run = ("rootless", "run", "--allow-leaky", our_id, "/bin/true")
            us.run(*run)
            note("run true", "atomic-rs P2", us.run(*run)[0])
            shutil.rmtree(theirs)
            shutil.rmtree(ours)
    finally:
        registry.process.terminate()
        registry.process.wait()
    shutil.rmtree(scratch, ignore_errors=True)
    write(rows, rounds)


def push(image, tar, registry):
    """An image of one layer, by way of an OCI layout."""
    blobs = os.path.join(image, "blobs", "sha256")
    os.makedirs(blobs)

    def digest(path, plain=False):
        words = f"gzip -dc {path} | sha256sum" if plain else f"sha256sum {path}"
        return subprocess.check_output(["sh", "-c", words], text=True).split()[0]

    def put(value):
        staged = os.path.join(image, "staged")
        with open(staged, "w", encoding="utf-8") as out:
            json.dump(value, out)
        name = digest(staged)
        size = os.path.getsize(staged)
        os.rename(staged, os.path.join(blobs, name))
        return {"digest": f"sha256:{name}", "size": size}

    layer = digest(tar)
    shutil.copy(tar, os.path.join(blobs, layer))
    config = put(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/bash"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(tar, True)}"]},
        }
    )
    kind = "application/vnd.oci.image"
    manifest = put(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {"mediaType": f"{kind}.config.v1+json", **config},
            "layers": [
                {
                    "mediaType": f"{kind}.layer.v1.tar+gzip",
                    "digest": f"sha256:{layer}",
                    "size": os.path.getsize(tar),
                }
            ],
        }
    )
    for name, value in (
        ("index.json", {"schemaVersion": 2, "manifests": [{"mediaType": f"{kind}.manifest.v1+json", **manifest}]}),
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
    ):
        with open(os.path.join(image, name), "w", encoding="utf-8") as out:
            json.dump(value, out)
    target = f"docker://{registry.address}/bench/debian:12"
    call(["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", f"oci:{image}", target])


def write(rows, rounds):
    lines = [
        "# Rootless containers beside udocker",
        "",
        f"Medians of {rounds} rounds, each in turn in one run (`benches/rootless.py`), by a user without rights: Debian 12's smallest tree from a",
        "registry on loopback, udocker from PyPI with the host's proot (told no kernel, with which it runs nothing of Debian 12) and runc.",
        "Seconds, unless it says MB; each is compared with udocker's own in the same mode, N with its P2.",
        "",
        "| | | | ours / theirs |",
        "|---|---|---|---|",
    ]
    peers = {"atomic-rs R1": "udocker R1"}
    for what, by in rows.items():
        medians = {who: statistics.median(values) for who, values in by.items()}
        for who, median in medians.items():
            ratio = ""
            peer = peers.get(who, "udocker P2" if "udocker P2" in medians else "udocker")
            if who.startswith("atomic-rs") and peer in medians:
                ratio = f"{median / medians[peer]:.3f}"
            lines.append(f"| {what} | {who} | {median:.3f} | {ratio} |")
    text = "\n".join(lines) + "\n"
    print(text)
    with open(os.path.join(HERE, "ROOTLESS.md"), "w", encoding="utf-8") as out:
        out.write(text)


if __name__ == "__main__":
    main()
