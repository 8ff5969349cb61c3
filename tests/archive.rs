//! Images as directories: saved, tracked by git-annex's kind of links, verified, run.

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::docker::Docker;
use support::images::{Image, Layer};
use support::place::Place;
use support::{Host, Registry, Said as _, User, must, program};

fn image(text: &str) -> Image {
    Image::new()
        .layer(Layer::new().busybox())
        .layer(Layer::new().file("etc/said", 0o644, text))
        .set("Cmd", json!(["cat", "/etc/said"]))
        .set("Env", json!(["OF_IMAGE=yes"]))
}

/// Everything there is to see of a directory, times included.
fn listing(directory: &Path) -> String {
    let mut command = Command::new("find");
    must(
        command
            .arg(directory)
            .args(["-printf", "%P %y %s %m %T@ %l\\n"]),
    )
}

#[test]
fn what_is_saved_is_what_the_registry_has_and_saving_twice_changes_nothing() {
    let registry = Registry::start();
    let place = Place::new("archive");
    let first = image("first").push(&registry, "app:1");
    let name = format!("{}/app:1", registry.address());
    let said = place.ok(&format!("save http:{name} ./dir"));
    assert!(said.starts_with("Saved sha256:"), "{said}");
    let dir = place.path("dir");
    // The very bytes, under the very names.
    for layer in &first.layers {
        let digest = layer.trim_start_matches("sha256:");
        let saved = std::fs::read(dir.join("blobs/sha256").join(digest)).unwrap();
        assert_eq!(saved, std::fs::read(registry.blob(layer)).unwrap());
    }
    let notes: Value =
        serde_json::from_slice(&std::fs::read(dir.join("atomic-rs.json")).unwrap()).unwrap();
    let url = notes["urls"][&first.layers[0]][0].as_str().unwrap();
    assert_eq!(
        url,
        format!(
            "http://{}/v2/app/blobs/{}",
            registry.address(),
            first.layers[0]
        )
    );
    let docker: Value =
        serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(docker[0]["RepoTags"], json!([name]));
    // Others read it.
    must(
        Command::new("skopeo")
            .args(["inspect", "--raw"])
            .arg(format!("oci:{}", dir.display())),
    );
    let before = listing(&dir);
    let again: Value =
        serde_json::from_str(&place.ok(&format!("save --json http:{name} ./dir"))).unwrap();
    assert_eq!(
        (again["fetched"].as_u64(), again["changed"].as_u64()),
        (Some(0), Some(0))
    );
    assert_eq!(listing(&dir), before);
    place.ok("verify ./dir");
    // An update fetches what is new, and what is not needed any more goes.
    image("second").push(&registry, "app:1");
    let updated: Value = serde_json::from_str(&place.ok("update --json ./dir")).unwrap();
    assert_eq!(updated["fetched"], 1);
    assert_eq!(
        std::fs::read_dir(dir.join("blobs/sha256")).unwrap().count(),
        4
    );
    place.ok("verify ./dir");
    assert!(
        place
            .ok("info ./dir")
            .contains(&format!("source: http:{name}"))
            || place.ok("info ./dir").contains(&name)
    );
    // As docker has it, unpacked: readable for others, and by us.
    place.ok(&format!("save --docker http:{name} ./as-docker"));
    place.ok("verify ./as-docker");
    assert!(place.ok("info ./as-docker").contains("/app:1"));
    place.sh(
        "tar -C as-docker -cf as-docker.tar . && skopeo inspect --raw docker-archive:as-docker.tar",
    );
    place.refused(
        &format!("save --docker http:{name} ./as-docker"),
        "is not empty",
    );
    // From the store as well, and by another kind of manifest.
    place.sh(&format!(
        "skopeo copy -q --format v2s2 --src-tls-verify=false --dest-tls-verify=false docker://{name} docker://{}/old:1",
        registry.address()
    ));
    place.ok(&format!("save http:{}/old:1 ./old", registry.address()));
    place.ok("verify ./old");
    assert!(place.ok("load ./old").contains("old:1"));
    place.ok(&format!("save {}/old:1 ./again", registry.address()));
    place.ok("verify ./again");
    // What is not ours is left alone.
    place.sh("mkdir other; echo mine > other/file");
    place.refused(&format!("save http:{name} ./other"), "is not empty");
    place.refused(
        &format!("save http:{}/nothing ./x", registry.address()),
        "no such image",
    );
    place.refused("update ./other", "does not say where its image came from");
    place.refused("info ./other", "holds no image");
}

#[test]
fn a_flipped_byte_is_found_and_refused() {
    let registry = Registry::start();
    let place = Place::new("archive");
    let written = image("text").push(&registry, "app:1");
    place.ok(&format!("save http:{}/app:1 ./dir", registry.address()));
    let layer = written.layers[0].trim_start_matches("sha256:");
    let path = place.path("dir/blobs/sha256").join(layer);
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    place.refused("verify ./dir", "is damaged");
    place.refused("load ./dir", "corrupted blob");
    // A missing one is said to be missing, and comes back.
    std::fs::remove_file(&path).unwrap();
    let said = place.run("verify ./dir");
    assert!(
        said.code() == 1 && said.out().contains("it is not there"),
        "{}",
        said.out()
    );
    place.ok("update ./dir");
    place.ok("verify ./dir");
    // The same in the form of docker's archives, which have no digests but those of the config.
    place.sh("skopeo copy -q oci:dir docker-archive:a.tar:app:1; mkdir docker; tar -C docker -xf a.tar; chmod -R u+w docker");
    place.ok("verify ./docker");
    place.sh("f=$(ls -S docker/*.tar | head -1); printf x | dd of=$f bs=1 seek=500000 conv=notrunc status=none");
    place.refused("verify ./docker", "is damaged");
    place.refused("load ./docker", "unpacks to");
    // A data set whose directories are links.
    place.sh("mkdir victim && echo mine > victim/mine && cp -r dir linked && rm -r linked/blobs/sha256 && ln -s $PWD/victim linked/blobs/sha256");
    place.refused("update ./linked", "is not a directory");
    assert_eq!(place.sh("ls victim"), "mine\n");
    // One whose manifest claims a layer that is in the store to be another.
    let evil = image("evil").write(&place.path("evil-layout"));
    place.ok("load ./evil-layout");
    let good: Value =
        serde_json::from_slice(&std::fs::read(place.path("dir/index.json")).unwrap()).unwrap();
    let digest = good["manifests"][0]["digest"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:");
    let manifest = std::fs::read_to_string(place.path("dir/blobs/sha256").join(digest)).unwrap();
    let mut poisoned: Value = serde_json::from_str(&manifest).unwrap();
    let theirs: Value = serde_json::from_slice(
        &std::fs::read(place.path("evil-layout/blobs/sha256").join(evil.id())).unwrap(),
    )
    .unwrap();
    poisoned["layers"] = theirs["layers"].clone();
    let text = poisoned.to_string();
    let sum = support::images::sha256(text.as_bytes());
    place.sh("cp -r dir poison; cp evil-layout/blobs/sha256/* poison/blobs/sha256/");
    std::fs::write(
        place
            .path("poison/blobs/sha256")
            .join(sum.trim_start_matches("sha256:")),
        &text,
    )
    .unwrap();
    std::fs::write(
        place.path("poison/index.json"),
        json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sum, "size": text.len(),
        }]})
        .to_string(),
    )
    .unwrap();
    place.refused("load ./poison", "but the image config says");
    // What is no file, or has no end.
    place.sh("cp -r docker endless; f=$(ls endless/*.tar | head -1); rm -f $f; ln -s /dev/zero $f");
    place.refused("verify ./endless", "is damaged");
    place.sh("rm -r poison endless linked evil-layout");
    // A save that was cut short is gone on with.
    place.sh("mkdir -p cut/blobs/sha256");
    std::fs::copy(
        place.path("dir/atomic-rs.json"),
        place.path("cut/atomic-rs.json"),
    )
    .unwrap();
    place.ok("update ./cut");
    place.ok("verify ./cut");
    // Names that lead out.
    place.sh("mkdir evil; cp docker/*.json evil/; sed -i 's|\"Layers\":\\[\"|&../docker/|' evil/manifest.json");
    place.refused("verify ./evil", "is not a file of the directory");
}

/// Directories in every form, as a person without root has them, and what runs from them.
#[test]
fn commands_run_from_directories_of_every_form() {
    let registry = Registry::start();
    image("of the image").push(&registry, "app:1");
    let host = Host::boot();
    let user = User::on_disk(&host);
    let name = format!("http:{}/app:1", registry.address());
    user.ok("mkdir ~/w && echo here > ~/w/file");
    user.ok(&format!("cd ~/w && atomic-rs archive save {name} oci"));
    let run = |words: &str| user.command(&format!("cd ~/w && atomic-rs archive run {words}"));
    let ok = |words: &str| {
        let said = run(words);
        assert_eq!(said.code(), 0, "{words}: {}", said.err());
        said.out()
    };
    assert_eq!(ok("oci"), "of the image");
    assert_eq!(
        ok("oci sh -c 'pwd; cat file; echo $OF_IMAGE $MINE; id -u; echo new > made'"),
        "/tmp\nhere\nyes\n0\n"
    );
    assert_eq!(
        user.ok("stat -c %U ~/w/made").trim(),
        user.ok("id -un").trim()
    );
    assert_eq!(
        ok("-e MINE=1 -w / -v /etc:/host:ro oci sh -c 'pwd; echo $MINE; test -f /host/passwd'"),
        "/\n1\n"
    );
    assert_eq!(run("oci sh -c 'exit 7'").code(), 7);
    assert_eq!(run("oci no-such-command").code(), 127);
    assert_eq!(run("nothing true").code(), 125);
    assert_eq!(
        user.ok("cd ~/w && echo typed | atomic-rs archive run oci cat"),
        "typed\n"
    );
    // Unpacked once: what was brought in is not read again.
    user.ok("cd ~/w && find oci -type f -size +100k -exec truncate -s 5 {} +");
    for _ in 0..4 {
        assert_eq!(ok("oci"), "of the image");
    }
    user.ok("rm -rf ~/w/oci");
    user.ok(&format!("cd ~/w && atomic-rs archive save {name} oci"));
    // What others write: skopeo and podman, docker of today and of old; files as links of git-annex's.
    user.ok("cd ~/w && skopeo copy -q oci:oci docker-archive:a.tar:app:1 && mkdir skopeo && tar -C skopeo -xf a.tar");
    user.ok(concat!(
        "cd ~/w && mkdir old && tar -C old -xf a.tar && chmod -R u+w old && cd old && ",
        "for f in $(sed 's/.*Layers\":\\[//; s/\\].*//; s/[\",]/ /g' manifest.json); do ",
        "mkdir id-${f%.tar}; mv $f id-${f%.tar}/layer.tar; sed -i \"s|$f|id-${f%.tar}/layer.tar|\" manifest.json; done"
    ));
    user.ok(concat!(
        "cd ~/w && cp -r oci annexed && mkdir -p .git/annex && cd annexed && ",
        "for f in $(find . -type f); do k=$(echo $f | tr -d ./); mv $f ../.git/annex/$k; ",
        "ln -s $(realpath ../.git/annex/$k) $f; done"
    ));
    for form in ["skopeo", "old", "annexed"] {
        // Each is unpacked anew.
        user.ok(
            "atomic-rs images delete --force localhost/archive || true; atomic-rs images prune",
        );
        assert_eq!(ok(form), "of the image", "{form}");
        user.ok(&format!("atomic-rs archive verify ~/w/{form}"));
    }
    assert_eq!(
        ok("--repo-tag docker.io/library/app:1 skopeo").as_str(),
        "of the image"
    );
    let said = run("--repo-tag other:1 skopeo true");
    assert!(
        said.err().contains("No matching images found"),
        "{}",
        said.err()
    );
    // Nothing is left of the containers.
    assert_eq!(user.ok("atomic-rs rootless ps -q"), "");
    // Two images in one.
    user.ok(&format!("cd ~/w && skopeo copy -q --src-tls-verify=false docker://{} oci:two:a && skopeo copy -q oci:oci oci:two:b", &name[5..]));
    let said = run("two true");
    assert!(
        said.err().contains("Multiple images found"),
        "{}",
        said.err()
    );
    assert_eq!(ok("--repo-tag b two"), "of the image");
    // As root.
    let said = host.sh(&format!(
        "mkdir /srv/r && cd /srv/r && echo mine > file && atomic-rs archive save {name} oci"
    ));
    assert_eq!(said.code(), 0, "{}", said.err());
    let said = host
        .sh("cd /srv/r && atomic-rs archive run -e A=1 oci sh -c 'pwd; cat file; echo $A; exit 3'");
    assert_eq!(
        (said.code(), said.out().as_str()),
        (3, "/tmp\nmine\n1\n"),
        "{}",
        said.err()
    );
}

/// podman gets what it does not have, by its id, and keeps its names.
#[test]
fn podman_runs_it_where_that_is_wanted() {
    let place = Place::new("archive");
    let written = image("of the image").write(&place.path("layout"));
    // A store of podman's of its own.
    let storage = place.path("storage.conf");
    std::fs::write(
        &storage,
        format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n",
            place.directory().display()
        ),
    )
    .unwrap();
    let run = |words: &str| {
        Command::new(program())
            .args(["archive", "run", "--engine", "podman"])
            .args(words.split_whitespace())
            .current_dir(place.directory())
            .env("CONTAINERS_STORAGE_CONF", &storage)
            .env("ATOMIC_OSTREE_CHECKOUT_PATH", place.path("store"))
            .output()
            .unwrap()
    };
    let said = run("./layout");
    // Whether podman can start a container is this machine's business; that it has the image is ours.
    let images = must(
        Command::new("podman")
            .args([
                "images",
                "--all",
                "--no-trunc",
                "--format",
                "{{.ID}} {{.Repository}}",
            ])
            .env("CONTAINERS_STORAGE_CONF", &storage),
    );
    assert!(
        images.contains("localhost/archive"),
        "{images}{}",
        said.err()
    );
    if said.code() == 0 {
        assert_eq!(said.out(), "of the image");
    } else {
        assert!(!said.err().contains("has not taken"), "{}", said.err());
    }
    assert!(!place.path("store").exists());
    let path = place
        .path("layout/blobs/sha256")
        .join(written.layers[0].trim_start_matches("sha256:"));
    std::fs::write(path, "damaged").unwrap();
    must(
        Command::new("podman")
            .args(["rmi", "--force", "--all"])
            .env("CONTAINERS_STORAGE_CONF", &storage),
    );
    let said = run("./layout");
    assert!(
        said.code() == 125 && said.err().contains("its digest is"),
        "{}",
        said.err()
    );
}

#[test]
fn what_is_saved_is_annexed_cloned_fetched_and_run_elsewhere() {
    let registry = Registry::start();
    let place = Place::new("archive");
    // Its first layer is large enough for git-annex.
    image("of the data set").push(&registry, "app:1");
    let git = |script: &str| {
        place.sh(&format!(
            "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1; git config --global user.name me
             git config --global user.email me@example.org; {script}"
        ))
    };
    git("git init -q set; cd set; git annex init -q here");
    place.ok(&format!("save http:{}/app:1 set/image", registry.address()));
    let annexed = git("cd set; git annex add -q .; git commit -q -m saved; git annex find");
    assert_eq!(annexed.lines().count(), 1, "{annexed}");
    assert!(annexed.starts_with("image/blobs/sha256/"), "{annexed}");
    // Again, in the data set: nothing changes.
    let again = place.ok(&format!("save http:{}/app:1 set/image", registry.address()));
    assert!(again.contains("is up to date"), "{again}");
    assert_eq!(git("cd set; git status --short"), "");
    // A clone has all but the layer, and says what to do.
    git("git clone -q set clone; cd clone; git annex init -q there");
    let info = place.ok("info clone/image");
    assert!(
        info.contains("app:1") && info.contains("not there"),
        "{info}"
    );
    place.refused("verify clone/image", "damaged");
    let output = place.run("run clone/image true");
    assert_eq!(output.code(), 125, "{}", output.err());
    git("cd clone; git annex get -q image");
    place.ok("verify clone/image");
    assert_eq!(place.ok("run clone/image"), "of the data set");
    // Once with all of it annexed.
    git("git init -q all; cd all; git annex init -q all");
    place.ok(&format!("save http:{}/app:1 all/image", registry.address()));
    git(
        "cd all; rm image/.gitattributes; git annex add -q .; git commit -q -m all; cd ..
         git clone -q all other; cd other; git annex init -q other",
    );
    place.refused("info other/image", "git annex get");
    git("cd other; git annex get -q image");
    assert_eq!(place.ok("run other/image"), "of the data set");
}

#[test]
fn dockers_own_images_are_saved_and_run_with_it_and_without_it() {
    let docker = Docker::start();
    let place = Place::new("archive");
    let archive = place.path("archive.tar");
    image("of docker").docker_archive(&archive, "app:1");
    docker.run(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    // What it saves, unpacked, is what the adapter of DataLad has.
    place.sh(&format!(
        "mkdir saved; DOCKER_HOST={} docker save app:1 | tar -C saved -x",
        docker.host()
    ));
    assert_eq!(place.ok("run --repo-tag app:1 saved"), "of docker");
    let output = place.run("run saved sh -c 'exit'");
    assert_eq!(output.code(), 0, "{}", output.err());
    let run = |words: &str| {
        let mut command = place.command(words);
        let output = command.env("DOCKER_HOST", docker.host()).output().unwrap();
        assert_eq!(output.code(), 0, "{words}: {}", output.err());
        output.out()
    };
    // From the daemon, and again: nothing changes.
    run("save docker:app:1 ours");
    place.ok("verify ours");
    assert!(run("save docker:app:1 ours").contains("is up to date"));
    assert_eq!(place.ok("run ours"), "of docker");
    // By the daemon, which has it already; a newer image of the name stays.
    let id = docker.run(&["images", "--no-trunc", "--quiet", "app:1"]);
    image("newer").docker_archive(&place.path("newer.tar"), "app:1");
    let newer = place.path("newer.tar").display().to_string();
    docker.run(&["load", "--quiet", "--input", &newer]);
    let moved = docker.run(&["images", "--no-trunc", "--quiet", "app:1"]);
    assert_ne!(id, moved);
    assert_eq!(run("run --engine docker saved"), "of docker");
    // And when it has it no more.
    docker.run(&["rmi", "--force", id.trim()]);
    assert_eq!(run("run --engine docker ours"), "of docker");
    assert_eq!(run("run --engine docker saved"), "of docker");
    assert_eq!(
        docker.run(&["images", "--no-trunc", "--quiet", "app:1"]),
        moved
    );
}
