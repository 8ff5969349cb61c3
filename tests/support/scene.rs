//! A host with the container `web`, and what each verb wants to find.

use serde_json::json;

use super::images::{Image, Layer, plain};
use super::whole::{C, HOST_FILE};
use super::{Host, Registry, Said as _, free_port};

/// A host with the container `web`, and images for it.
pub struct Scene {
    registry: Registry,
    pub host: Host,
    pub port: u16,
    version: u32,
    name: String,
    /// Whether its host file comes in a package.
    is_packaged: bool,
}

impl Scene {
    pub fn new(host: Host) -> Self {
        let registry = Registry::start();
        let name = registry.name("web");
        Self {
            registry,
            host,
            port: free_port(),
            version: 0,
            name,
            is_packaged: false,
        }
    }

    /// Switch the host off, and have another one that boots from what it left.
    #[must_use]
    pub fn rebooted(self, boot: impl FnOnce() -> Host) -> Self {
        let Self { host, .. } = self;
        drop(host);
        Self {
            host: boot(),
            ..self
        }
    }

    /// A new version in the registry, with a file for the host.
    pub fn push(&mut self, is_good: bool) {
        self.version += 1;
        let text = format!("version-{}", self.version);
        let image: Image = plain(self.port, &text).layer(Layer::new().file(
            &format!("exports/hostfs{HOST_FILE}"),
            0o644,
            &text,
        ));
        let image = if is_good {
            image
        } else {
            image.set("Cmd", json!(["sleep 0.2; exit 1"]))
        };
        image.push(&self.registry, "web");
    }

    pub fn is_installed(&self) -> bool {
        self.host.run(&format!("readlink {C}/web")).code() == 0
    }

    fn install_words(&self) -> String {
        let mode = if self.is_packaged { "yes" } else { "no" };
        format!("install --system-package {mode} --name web {}", self.name)
    }

    pub fn install(&mut self) {
        if !self.is_installed() {
            self.push(true);
            let name = &self.name;
            // What is stored under this name may be the bad version.
            self.host.atomic_ok(&format!("pull {name}"));
            self.host.atomic_ok(&self.install_words());
        }
        self.host.ok("systemctl start web");
    }

    /// Have everything be as `verb` finds it, and its words; `VERB-package` is of a container whose host file is in a
    /// package.
    pub fn prepare(&mut self, verb: &str) -> String {
        let name = self.name.clone();
        let (verb, is_packaged) = match verb.strip_suffix("-package") {
            Some(verb) => (verb, true),
            None => (verb, false),
        };
        if is_packaged != self.is_packaged && self.is_installed() {
            self.host.atomic_ok("uninstall web");
        }
        self.is_packaged = is_packaged;
        match verb {
            "pull" => {
                self.push(true);
                format!("pull {name}")
            }
            "install" => {
                if self.is_installed() {
                    self.host.atomic_ok("uninstall web");
                }
                self.push(true);
                self.host.atomic_ok(&format!("pull {name}"));
                self.install_words()
            }
            "update" | "return" => {
                self.install();
                self.push(verb == "update");
                "update web".into()
            }
            "rollback" => {
                self.install();
                let has_other = self.host.exists(&format!("{C}/web.0"))
                    && self.host.exists(&format!("{C}/web.1"));
                if !has_other {
                    self.push(true);
                    self.host.atomic_ok("update web");
                }
                "rollback web".into()
            }
            "repair" => {
                self.install();
                "repair web".into()
            }
            "uninstall" => {
                self.install();
                "uninstall web".into()
            }
            "prune" => {
                // What is left of others is not this one's to remove.
                self.host.atomic_ok("images prune");
                self.push(true);
                self.host.atomic_ok(&format!("pull {name}"));
                self.host.atomic_ok(&format!("-y images delete -f {name}"));
                "images prune".into()
            }
            _ => unreachable!(),
        }
    }
}
