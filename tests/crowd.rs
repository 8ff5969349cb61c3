//! Many at once, on one store: nothing is lost, lists can be read, and nobody fails but where another one was quicker.

mod support;

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::images::{Image, Layer};
use support::whole::C;
use support::{Host, Random, Registry, Said as _, free_port, is_torture, wait_for_answer};

const PEOPLE: usize = 16;
const SHORT: Duration = Duration::from_secs(30);
/// The same in `make torture`.
const LONG: Duration = Duration::from_mins(6);
const IMAGES: usize = 6;

/// What may be said, and by whom, where another one was quicker or there is nothing to do.
const REFUSALS: [(&str, &str); 7] = [
    ("-y images delete", "Unable to find"),
    ("-y images delete", "there are no images"),
    ("images verify", "Cannot find image"),
    ("images verify", "there are no images"),
    ("images verify", "not as in the registry"),
    ("rollback", "Cannot find a previous deployment"),
    ("rollback", "changed meanwhile"),
];

/// A layer of many files, some of which others have, too.
fn layer(number: usize) -> Layer {
    (0..120).fold(Layer::new(), |layer, file| {
        let shared = if file % 3 == 0 { 0 } else { number };
        let text = format!("{shared}-{file}").repeat(file * 20);
        layer.file(&format!("srv/{number}/{file}"), 0o644, text)
    })
}

/// Images that have two of three layers in common with the next one.
fn push(registry: &Registry, number: usize, version: usize) {
    let image = (number..number + 3)
        .fold(Image::new().layer(Layer::new().busybox()), |image, one| {
            image.layer(layer(one % IMAGES))
        });
    image
        .layer(Layer::new().file("version", 0o644, format!("{number} {version}")))
        .set(
            "Cmd",
            json!(["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]),
        )
        .push(registry, &format!("image{number}"));
}

/// One of the crowd, with a container of his own.
struct Person<'c> {
    number: usize,
    host: &'c Host,
    registry: &'c Registry,
    random: Random,
    /// What was done how often, and of that: what was refused.
    done: &'c Mutex<BTreeMap<String, (u32, u32)>>,
}

impl Person<'_> {
    fn act(&mut self) {
        let image = self.random.below(IMAGES);
        let name = self.registry.name(&format!("image{image}"));
        let own = format!("own{}", self.number);
        let has_own = self.host.exists(&format!("{C}/{own}"));
        let words = match self.random.below(12) {
            0..3 => format!("pull {name}"),
            3 => "images list --json".into(),
            4 => "containers list --json".into(),
            5 => "images prune".into(),
            6 => format!("-y images delete -f {name}"),
            7 => format!("images verify {name}"),
            _ if !has_own => format!("install --system-package no --name {own} {name}"),
            8 => format!("verify {own}"),
            9 => format!("rollback {own}"),
            10 => format!("uninstall {own}"),
            _ => format!("update --rebase {name} {own}"),
        };
        let said = self.host.atomic(&words);
        self.judge(&words, &said);
    }

    fn judge(&self, words: &str, said: &Output) {
        assert!(!said.err().contains("panicked"), "{words}: {}", said.err());
        let is_refused = said.code() != 0;
        if is_refused {
            let is_known = REFUSALS
                .iter()
                .any(|(verb, text)| words.starts_with(verb) && said.err().contains(text));
            assert!(
                is_known && said.code() == 1,
                "{words}: {}: {}{}",
                said.code(),
                said.out(),
                said.err()
            );
        } else if words.ends_with("--json") {
            let listed: Result<Value, _> = serde_json::from_str(&said.out());
            assert!(
                listed.is_ok_and(|listed| listed.is_array()),
                "{words}: {}",
                said.out()
            );
        }
        let verb: Vec<&str> = words.trim_start_matches("-y ").split(' ').take(2).collect();
        let verb = if words.contains("images ") || words.contains("containers ") {
            verb.join(" ")
        } else {
            verb[0].to_owned()
        };
        let mut done = self.done.lock().unwrap();
        let counts = done.entry(verb).or_default();
        counts.0 += 1;
        counts.1 += u32::from(is_refused);
    }
}

#[test]
fn sixteen_at_once_lose_nothing_and_are_refused_only_what_cannot_be() {
    let registry = Registry::start();
    let host = Host::boot();
    let mut random = Random::new();
    for number in 0..IMAGES {
        push(&registry, number, 0);
    }
    let end = Instant::now() + if is_torture() { LONG } else { SHORT };
    let done = Mutex::default();
    std::thread::scope(|scope| {
        for number in 0..PEOPLE {
            let mut person = Person {
                number,
                host: &host,
                registry: &registry,
                random: random.branch(),
                done: &done,
            };
            scope.spawn(move || {
                while Instant::now() < end {
                    person.act();
                }
            });
        }
        // And new versions come meanwhile.
        let mut version = 0;
        while Instant::now() < end {
            version += 1;
            push(&registry, random.below(IMAGES), version);
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    println!("verb                done    refused");
    for (verb, (all, refused)) in done.into_inner().unwrap() {
        println!("{verb:18} {all:5} {refused:10}");
        assert!(all > refused, "{verb}: nobody could");
    }
    // All that is there is whole.
    let repo = format!("{C}/.storage/ostree");
    host.ok(&format!("ostree fsck --quiet --repo={repo}"));
    let left = host.sh(&format!("find {C} -maxdepth 1 -name '.*' -not -name .storage -not -name '.lock*' -not -name .journal -not -name .ledger; find {C}/.journal -type f"));
    assert_eq!(left.out(), "");
    for number in 0..PEOPLE {
        let own = format!("own{number}");
        if !host.exists(&format!("{C}/{own}")) {
            continue;
        }
        host.atomic_ok(&format!("verify {own}"));
        host.ok(&format!("systemctl start {own}"));
        host.atomic_ok(&format!("uninstall {own}"));
    }
    host.atomic_ok("-y images delete --all");
    host.atomic_ok("images prune");
    host.ok(&format!("ostree fsck --quiet --repo={repo}"));
    let left = host.sh(&format!("ls -A {repo}/tmp | grep -v '^cache$'; find {repo}/objects -name '*.commit'; find {repo}/refs/heads -type f"));
    assert_eq!(left.out(), "");
}

#[test]
fn the_second_of_two_updates_waits_says_so_and_sees_what_the_first_did() {
    let registry = Registry::start();
    let host = Host::watching(3);
    let port = free_port();
    let first = host.begin_update(&registry, port);
    let second = host.atomic("update web");
    let first = first.wait_with_output().unwrap();
    assert_eq!(
        (first.code(), second.code()),
        (0, 0),
        "{}{}",
        first.err(),
        second.err()
    );
    assert!(
        second
            .err()
            .contains("waiting for another command that holds"),
        "{}",
        second.err()
    );
    assert!(
        second.out().contains("Latest version already installed"),
        "{}{}",
        second.out(),
        second.err()
    );
    assert!(host.ok(&format!("readlink {C}/web")).ends_with("web.1\n"));
    wait_for_answer(port, "two");
}
