//! Debian's docker-registry on a loopback port.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::images::{Written, sha256};
use super::{Scratch, free_port, must};

pub struct Registry {
    child: Child,
    port: u16,
    scratch: Scratch,
}

impl Registry {
    pub fn start() -> Self {
        Self::with("")
    }

    /// A registry that asks for a user name and password.
    pub fn with_password(user: &str, password: &str) -> Self {
        let scratch = Scratch::new("htpasswd");
        let line = must(Command::new("htpasswd").args(["-nbB", user, password]));
        let file = scratch.join("htpasswd");
        std::fs::write(&file, line).unwrap();
        let registry = Self::with(&format!(
            "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            file.display()
        ));
        // Wanted for as long as the registry runs.
        std::mem::forget(scratch);
        registry
    }

    /// A registry with TLS: a certificate that is its own authority, and the file that has it.
    pub fn with_tls() -> (Self, PathBuf) {
        let scratch = Scratch::new("tls");
        let (key, certificate) = (scratch.join("key"), scratch.join("crt"));
        make_certificate(&key, &certificate);
        let section = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        );
        let registry = Self::with(&section);
        std::mem::forget(scratch);
        (registry, certificate)
    }

    /// A registry that wants tokens, which are given to a user with a password.
    pub fn with_tokens(user: &str, password: &str) -> (Self, super::tokens::Tokens) {
        let tokens = super::tokens::Tokens::start(user, password);
        (Self::with(&tokens.section()), tokens)
    }

    fn with(more: &str) -> Self {
        let scratch = Scratch::new("registry");
        let port = free_port();
        let config = scratch.join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{more}",
                scratch.join("data").display()
            ),
        )
        .unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(scratch.join("access.log")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry cannot run: run \"make deps\"");
        std::fs::write(scratch.join("pid"), child.id().to_string()).unwrap();
        let registry = Self {
            child,
            port,
            scratch,
        };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the registry does not start"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The name of an image here, with the prefix for plain HTTP.
    pub fn name(&self, image: &str) -> String {
        format!("http:{}/{image}", self.address())
    }

    /// Put an index of images for several architectures under a tag; its digest.
    pub fn put_index(&self, repository: &str, tag: &str, images: &[(&str, &Written)]) -> String {
        let manifests: Vec<_> = images
            .iter()
            .map(|(architecture, written)| {
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": written.digest, "size": written.size,
                    "platform": {"os": "linux", "architecture": architecture}})
            })
            .collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests,
            "mediaType": "application/vnd.oci.image.index.v1+json"});
        self.put_manifest(repository, tag, &index);
        sha256(index.to_string().as_bytes())
    }

    /// Put a manifest under a tag.
    pub fn put_manifest(&self, repository: &str, tag: &str, manifest: &serde_json::Value) {
        let kind = manifest["mediaType"].as_str().unwrap();
        must(
            Command::new("curl")
                .args(["--fail", "--silent", "--show-error", "-X", "PUT", "-H"])
                .arg(format!("Content-Type: {kind}"))
                .arg("--data-binary")
                .arg(manifest.to_string())
                .arg(format!(
                    "http://{}/v2/{repository}/manifests/{tag}",
                    self.address()
                )),
        );
    }

    /// Forget an image.
    pub fn delete_manifest(&self, repository: &str, digest: &str) {
        must(
            Command::new("curl")
                .args(["--fail", "--silent", "--show-error", "-X", "DELETE"])
                .arg(format!(
                    "http://{}/v2/{repository}/manifests/{digest}",
                    self.address()
                )),
        );
    }

    /// What it was asked, a line each.
    pub fn requests(&self) -> String {
        std::fs::read_to_string(self.scratch.join("access.log")).unwrap()
    }

    /// The file that holds a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.scratch.join(&format!(
            "data/docker/registry/v2/blobs/sha256/{}/{hex}/data",
            &hex[..2]
        ))
    }
}

/// A certificate for the loopback address, signed by itself.
pub fn make_certificate(key: &Path, certificate: &Path) {
    let mut command = Command::new("openssl");
    must(
        command
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args([
                "-subj",
                "/CN=127.0.0.1",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ])
            .arg("-keyout")
            .arg(key)
            .arg("-out")
            .arg(certificate),
    );
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
