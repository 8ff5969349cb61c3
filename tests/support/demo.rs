//! `make demo`: the main job on a throwaway systemd host, with its real output.

#[path = "mod.rs"]
mod support;

use serde_json::json;
use support::images::{Image, Layer};
use support::{Host, Registry, Said as _, free_port, images, wait_for_answer};

fn main() {
    println!("# a registry on loopback, and a systemd host over this machine's root");
    let registry = Registry::start();
    let host = Host::boot();
    demo(&registry, &host, "web", images::plain);
    demo(&registry, &host, "cache", images::cache);
    exported(&registry, &host);
    println!("\n# that was the main job: pull, install, start, update, rollback, uninstall");
}

/// The whole job for one plain image: no `/exports`, just an entrypoint.
fn demo(registry: &Registry, host: &Host, name: &str, image: fn(u16, &str) -> images::Image) {
    let port = free_port();
    println!("\n# {name}: version 1 is pushed to the registry");
    image(port, "version-1").push(registry, &format!("{name}:stable"));
    let reference = registry.name(&format!("{name}:stable"));
    show(host, &format!("atomic-rs pull {reference}"));
    show(
        host,
        &format!("atomic-rs install --system --name {name} {reference}"),
    );
    show(host, &format!("systemctl start {name}"));
    answer(port, "version-1");
    show(host, "atomic-rs containers list");
    println!("\n# {name}: version 2 is pushed under the same name");
    image(port, "version-2").push(registry, &format!("{name}:stable"));
    show(host, &format!("atomic-rs update {name}"));
    answer(port, "version-2");
    show(host, &format!("atomic-rs rollback {name}"));
    answer(port, "version-1");
    println!("\n# {name}: a version 3 is pushed that dies after half a second");
    Image::new()
        .layer(Layer::new().busybox())
        .set(
            "Entrypoint",
            json!(["/bin/sh", "-c", "echo out of order; sleep 0.5; exit 1"]),
        )
        .push(registry, &format!("{name}:stable"));
    run(host, &format!("atomic-rs update {name}"), 1);
    answer(port, "version-1");
    show(host, &format!("atomic-rs history {name}"));
    show(host, &format!("atomic-rs uninstall {name}"));
}

/// The same for an image that brings its own templates.
fn exported(registry: &Registry, host: &Host) {
    let port = free_port();
    println!("\n# hello: an image with its own templates under /exports");
    images::system().push(registry, "hello");
    let reference = registry.name("hello");
    show(
        host,
        &format!(
            "atomic-rs install --system --name hello --set PORT={port} --set RECEIVER=Demo {reference}"
        ),
    );
    show(host, "systemctl start hello");
    answer(port, "Hi Demo from container hello");
    show(host, "atomic-rs update hello --set RECEIVER=World");
    answer(port, "Hi World from container hello");
    show(host, "atomic-rs rollback hello");
    answer(port, "Hi Demo from container hello");
    show(host, "atomic-rs uninstall hello");
}

fn show(host: &Host, words: &str) {
    run(host, words, 0);
}

fn run(host: &Host, words: &str, code: i32) {
    println!("\n$ {words}");
    // Both streams as a terminal would show them.
    let output = host.sh(&format!("{words} 2>&1"));
    print!("{}", output.out());
    assert_eq!(output.code(), code, "{words}");
}

fn answer(port: u16, wanted: &str) {
    let text = wait_for_answer(port, wanted);
    let body = text.split("\r\n\r\n").last().unwrap_or_default();
    println!("\n$ curl http://127.0.0.1:{port}/\n{}", body.trim_end());
}
