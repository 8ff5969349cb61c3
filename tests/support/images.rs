//! Test images, made from busybox-static as OCI layouts.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{Registry, Scratch, must};

const APPLETS: [&str; 30] = [
    "sh", "httpd", "nc", "sleep", "cat", "echo", "id", "touch", "mkdir", "ls", "env", "printf",
    "true", "false", "kill", "rm", "test", "grep", "date", "wget", "tee", "chmod", "ln", "head",
    "tail", "wc", "stat", "mount", "ps", "hostname",
];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One layer: a tar archive in the making.
pub struct Layer {
    builder: tar::Builder<Vec<u8>>,
    compression: Compression,
    /// Bytes in place of an archive, and in place of the compressed ones.
    instead: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    pub fn new() -> Self {
        Self {
            builder: tar::Builder::new(Vec::new()),
            compression: Compression::Gzip,
            instead: None,
        }
    }

    /// These bytes, whatever they are; `packed`: what their compressed form is said to be.
    pub fn of(plain: Vec<u8>, packed: Option<Vec<u8>>) -> Self {
        Self {
            instead: Some((plain, packed)),
            ..Self::new()
        }
    }

    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    fn header(kind: tar::EntryType, mode: u32, owner: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.into());
        header.set_gid(owner.into());
        header.set_mtime(1_600_000_000);
        header.set_size(size);
        header
    }

    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.owned_file(path, mode, 0, content)
    }

    pub fn owned_file(
        mut self,
        path: &str,
        mode: u32,
        owner: u32,
        content: impl AsRef<[u8]>,
    ) -> Self {
        let content = content.as_ref();
        let mut header = Self::header(tar::EntryType::Regular, mode, owner, content.len() as u64);
        self.builder
            .append_data(&mut header, path, content)
            .unwrap();
        self
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.owned_dir(path, mode, 0)
    }

    pub fn owned_dir(mut self, path: &str, mode: u32, owner: u32) -> Self {
        let mut header = Self::header(tar::EntryType::Directory, mode, owner, 0);
        self.builder
            .append_data(&mut header, format!("{path}/"), &[][..])
            .unwrap();
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0, 0);
        self.builder.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn hardlink(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Link, 0o644, 0, 0);
        self.builder.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn whiteout(self, directory: &str, name: &str) -> Self {
        self.file(&format!("{directory}/.wh.{name}"), 0o644, "")
    }

    /// An extended attribute of the entry that follows.
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.builder
            .append_pax_extensions([(key.as_str(), value)])
            .unwrap();
        self
    }

    pub fn fifo(mut self, path: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Fifo, 0o644, 0, 0);
        self.builder
            .append_data(&mut header, path, &[][..])
            .unwrap();
        self
    }

    pub fn device(mut self, path: &str, kind: tar::EntryType, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, 0o620, 0, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.builder
            .append_data(&mut header, path, &[][..])
            .unwrap();
        self
    }

    /// An entry whose header is written as it is, for hostile names.
    pub fn raw(mut self, path: &[u8], kind: tar::EntryType, link: &str) -> Self {
        let mut header = Self::header(kind, 0o644, 0, 0);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.set_link_name_literal(link).unwrap();
        header.set_cksum();
        self.builder.append(&header, &[][..]).unwrap();
        self
    }

    /// Busybox with its applets, the usual directories and users.
    pub fn busybox(self) -> Self {
        let busybox = std::fs::read("/bin/busybox").expect("busybox is missing: run \"make deps\"");
        let mut layer = self
            .dir("bin", 0o755)
            .dir("etc", 0o755)
            .dir("tmp", 0o1777)
            .dir("var", 0o755)
            .dir("root", 0o700)
            .file("bin/busybox", 0o755, busybox)
            .file(
                "etc/passwd",
                0o644,
                "root:x:0:0:root:/root:/bin/sh\nweb:x:1234:1234:web:/srv:/bin/sh\n",
            )
            .file("etc/group", 0o644, "root:x:0:\nweb:x:1234:\n");
        for applet in APPLETS {
            layer = layer.symlink(&format!("bin/{applet}"), "busybox");
        }
        layer
    }

    fn finish(self) -> (Vec<u8>, Vec<u8>, &'static str) {
        let (plain, forged) = match self.instead {
            Some(instead) => instead,
            None => (self.builder.into_inner().unwrap(), None),
        };
        let (packed, media) = match self.compression {
            Compression::None => (plain.clone(), "application/vnd.oci.image.layer.v1.tar"),
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
                encoder.write_all(&plain).unwrap();
                (
                    encoder.finish().unwrap(),
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                )
            }
            Compression::Zstd => (
                zstd::stream::encode_all(&plain[..], 3).unwrap(),
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
        };
        (plain, forged.unwrap_or(packed), media)
    }
}

/// An image in the making.
#[derive(Default)]
pub struct Image {
    architecture: Option<String>,
    layers: Vec<Layer>,
    config: BTreeMap<String, Value>,
    beside: BTreeMap<String, Value>,
}

impl Image {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn architecture(mut self, name: &str) -> Self {
        self.architecture = Some(name.to_owned());
        self
    }

    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// A key of the image config's `config` section.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config.insert(key.to_owned(), value.into());
        self
    }

    /// A key beside that section.
    pub fn beside(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.beside.insert(key.to_owned(), value.into());
        self
    }

    /// Write it as an OCI layout; the manifest digest.
    pub fn write(self, directory: &Path) -> Written {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            let digest = sha256(bytes);
            std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
            digest
        };
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in self.layers {
            let (plain, packed, media) = layer.finish();
            diff_ids.push(sha256(&plain));
            layers.push(json!({"mediaType": media, "digest": put(&packed), "size": packed.len()}));
        }
        let mut config = json!({
            "architecture": self.architecture.as_deref().unwrap_or("amd64"), "os": "linux", "created": "2020-09-13T12:26:40Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": []
        });
        for (key, value) in self.beside {
            config[key] = value;
        }
        let config = config.to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": put(config.as_bytes()), "size": config.len()},
            "layers": layers
        })
        .to_string();
        let digest = put(manifest.as_bytes());
        let index = json!({"schemaVersion": 2, "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json",
             "digest": digest, "size": manifest.len()}]});
        std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
        std::fs::write(
            directory.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        Written {
            digest,
            size: manifest.len(),
            layers: layers
                .iter()
                .map(|layer| layer["digest"].as_str().unwrap().to_owned())
                .collect(),
        }
    }

    /// Push it to a registry.
    pub fn push(self, registry: &Registry, name: &str) -> Written {
        self.push_with(registry, name, &[])
    }

    pub fn push_with(self, registry: &Registry, name: &str, options: &[&str]) -> Written {
        let scratch = Scratch::new("layout");
        let written = self.write(scratch.path());
        must(
            Command::new("skopeo")
                .args([
                    "copy",
                    "--quiet",
                    "--insecure-policy",
                    "--dest-tls-verify=false",
                ])
                .args(options)
                .arg(format!("oci:{}", scratch.path().display()))
                .arg(format!("docker://{}/{name}", registry.address())),
        );
        written
    }

    /// Write it as an archive of `docker save`.
    pub fn docker_archive(self, path: &Path, tag: &str) {
        let scratch = Scratch::new("layout");
        self.write(scratch.path());
        must(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--insecure-policy"])
                .arg(format!("oci:{}", scratch.path().display()))
                .arg(format!("docker-archive:{}:{tag}", path.display())),
        );
    }
}

pub struct Written {
    pub digest: String,
    pub size: usize,
    pub layers: Vec<String>,
}

impl Written {
    pub fn id(&self) -> &str {
        self.digest.trim_start_matches("sha256:")
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    atomic_rs::image::Digest::of(bytes).to_string()
}

/// A shell that serves `text` over HTTP and ends on SIGTERM, saying so.
fn server(port: u16) -> String {
    format!(
        "trap 'echo got TERM; kill $!; exit 0' TERM; echo serving {port}; httpd -f -p {port} -h /srv & wait"
    )
}

/// A plain service image without `/exports`.
pub fn plain(port: u16, text: &str) -> Image {
    Image::new()
        .layer(Layer::new().busybox())
        .layer(
            Layer::new()
                .dir("srv", 0o755)
                .file("srv/index.html", 0o644, text),
        )
        .set("Entrypoint", json!(["/bin/sh", "-c"]))
        .set("Cmd", json!([server(port)]))
        .set("ExposedPorts", json!({format!("{port}/tcp"): {}}))
}

/// A plain service image that runs as another user and serves what it wrote below /var/cache.
pub fn cache(port: u16, text: &str) -> Image {
    let command = format!(
        "mkdir -p /var/cache/web/www && (echo {text}; id -u) > /var/cache/web/www/index.html && cd / && \
         trap 'kill $!; exit 0' TERM; httpd -f -p {port} -h /var/cache/web/www & wait"
    );
    Image::new()
        .layer(
            Layer::new()
                .busybox()
                .dir("var/cache", 0o755)
                .owned_dir("var/cache/web", 0o755, 1234)
                .dir("data", 0o750),
        )
        .set("Entrypoint", json!(["/bin/sh", "-c", command]))
        .set("User", "web")
        .set("Volumes", json!({"/data": {}}))
}

const SYSTEM_CONFIG: &str = r#"{
  "ociVersion": "1.0.0",
  "process": {
    "terminal": false,
    "user": {"uid": 0, "gid": 0},
    "args": ["/usr/bin/run.sh"],
    "env": ["PATH=/usr/bin:/bin", "TERM=xterm", "NAME=$NAME", "PORT=$PORT", "RECEIVER=$RECEIVER", "UUID=$UUID"@MORE@],
    "cwd": "/",
    "capabilities": {"bounding": [${ALL_PROCESS_CAPABILITIES}]},
    "noNewPrivileges": false
  },
  "root": {"path": "rootfs", "readonly": true},
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    {"destination": "/var/run", "type": "bind", "source": "${RUN_DIRECTORY}/${NAME}", "options": ["rw", "bind"]}
  ],
  "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "mount"}]}
}
"#;

const RUN_SH: &str = "#!/bin/sh\ntrap 'kill $!; exit 0' INT TERM\nnc -ll -p ${PORT:-8081} -e /usr/bin/greet.sh &\nwait\n";

/// The original's `atomic-test-system`: a listener configured by template variables.
pub fn system() -> Image {
    exported(
        "printf 'HTTP/1.0 200 OK\\r\\n\\r\\nHi %s from container %s with UUID=%s\\n' \"$RECEIVER\" \"$NAME\" \"$UUID\"",
        r#"{"version": "1.0", "defaultValues": {"PORT": "8081", "RECEIVER": "World"}}"#,
        &SYSTEM_CONFIG.replace("@MORE@", ""),
        "[Unit]\nDescription=Hello World System Container\n\n[Service]\nExecStartPre=$EXEC_STARTPRE\nExecStart=$EXEC_START\nExecStop=$EXEC_STOP\nExecStopPost=$EXEC_STOPPOST\nRestart=on-failure\nWorkingDirectory=$DESTDIR\nPIDFile=$PIDFILE\n\n[Install]\nWantedBy=multi-user.target\n",
    )
    .set("Labels", json!({"Name": "atomic-test-system"}))
}

/// The original's `atomic-test-system-update`: another greeting, a variable without default.
pub fn system_update() -> Image {
    exported(
        "printf 'HTTP/1.0 200 OK\\r\\n\\r\\nHi from %s\\n' \"$VAR_WITH_NO_DEFAULT\"",
        r#"{"version": "1.0", "defaultValues": {"PORT": "8081"}}"#,
        &SYSTEM_CONFIG
            .replace("\"RECEIVER=$RECEIVER\", ", "")
            .replace("@MORE@", ", \"VAR_WITH_NO_DEFAULT=$VAR_WITH_NO_DEFAULT\""),
        "[Unit]\nDescription=Hello World System Container\n\n[Service]\nExecStart=$EXEC_START\nExecStop=$EXEC_STOP\nRestart=on-failure\nWorkingDirectory=$DESTDIR\n\n[Install]\nWantedBy=multi-user.target\n",
    )
    .set(
        "Labels",
        json!({"Name": "atomic-test-system-update", "summary": "update", "atomic.type": "system"}),
    )
}

/// The original's `atomic-test-system-hostfs`: files for the host.
pub fn hostfs() -> Image {
    system().set("Labels", json!({"Name": "hostfs", "atomic.has_install_files": "yes"})).layer(
        Layer::new()
            .file(
                "exports/manifest.json",
                0o644,
                r#"{"version": "1.0", "defaultValues": {"PORT": "8081", "RECEIVER": "World"},
                    "renameFiles": {"/usr/local/lib/placeholder-file": "/usr/local/lib/renamed-$NAME"},
                    "installedFilesTemplate": ["/usr/local/lib/secret-message-template"], "useLinks": false}"#,
            )
            .symlink("exports/hostfs/broken-symlink", "/does/not/exist")
            .dir("exports/hostfs/usr/local/placeholder-lib", 0o755)
            .file("exports/hostfs/usr/local/lib/secret-message", 0o644, "Hello unknown $RECEIVER\n")
            .file("exports/hostfs/usr/local/lib/secret-message-template", 0o644, "hello $RECEIVER\n")
            .file("exports/hostfs/usr/local/lib/placeholder-file", 0o644, "Hello unknown $RECEIVER\n"),
    )
}

/// The original's `atomic-test-runonce`: a command rather than a service.
pub fn runonce() -> Image {
    Image::new()
        .layer(
            Layer::new()
                .busybox()
                .file(
                    "usr/bin/run.sh",
                    0o755,
                    "#!/bin/sh\necho HI $RECEIVER from $NAME\n",
                )
                .file("exports/manifest.json", 0o644, r#"{"defaultValues": {}}"#)
                .file(
                    "exports/config.json.template",
                    0o644,
                    SYSTEM_CONFIG
                        .replace("\"readonly\": true", "\"readonly\": false")
                        .replace("\"PORT=$PORT\", ", "")
                        .replace("@MORE@", ""),
                ),
        )
        .set(
            "Labels",
            json!({"Name": "runonce", "atomic.run": "once", "atomic.type": "system"}),
        )
}

fn exported(greeting: &str, manifest: &str, config: &str, service: &str) -> Image {
    Image::new().layer(Layer::new().busybox()).layer(
        Layer::new()
            .dir("usr", 0o755)
            .dir("usr/bin", 0o755)
            .file("usr/bin/run.sh", 0o755, RUN_SH)
            .file(
                "usr/bin/greet.sh",
                0o755,
                format!("#!/bin/sh\nread line\n{greeting}\n"),
            )
            .dir("exports", 0o755)
            .file("exports/manifest.json", 0o644, manifest)
            .file("exports/config.json.template", 0o644, config)
            .file("exports/service.template", 0o644, service)
            .file(
                "exports/tmpfiles.template",
                0o644,
                "D ${RUN_DIRECTORY}/${NAME} 0700 - - - -\n",
            ),
    )
}

pub fn layout(image: Image) -> (Scratch, PathBuf, Written) {
    let scratch = Scratch::new("layout");
    let path = scratch.join("image");
    let written = image.write(&path);
    (scratch, path, written)
}
