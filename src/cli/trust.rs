use std::path::PathBuf;
use std::process::ExitCode;

use camino::Utf8Path;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::Call;
use super::args::ChangeArgs;
use crate::error::{Kind, Result};
use crate::fail;
use crate::transport::trust::{self, Policy};

/// Whom to trust for which images: the host's signature policy
#[derive(Debug, clap::Args)]
pub struct Trust {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Show(Show),
    Add(Add),
    Delete(Delete),
    Default(Default),
    Reset(Reset),
}

/// Show the policy
#[derive(Debug, clap::Args)]
struct Show {
    /// The whole file as it is
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print JSON
    #[arg(short, long)]
    json: bool,
}

/// Ask something of the images of a registry, a repository or one image
#[derive(Debug, clap::Args)]
struct Add {
    /// REGISTRY[/REPOSITORY[:TAG]]
    #[arg(value_name = "SCOPE")]
    scope: String,
    /// What is asked
    #[arg(short = 't', long = "type", value_enum, default_value_t = Kinds::SignedBy)]
    kind: Kinds,
    /// A file with public keys; may be repeated
    #[arg(
        short = 'k',
        long,
        visible_alias = "pubkeysfile",
        short_alias = 'f',
        value_name = "FILE"
    )]
    pubkeys: Vec<PathBuf>,
    /// Where the signatures are: https://… or file:///…
    #[arg(short, long, value_name = "URL")]
    sigstore: Option<String>,
    /// The kind of keys
    #[arg(long, default_value = "GPGKeys", value_parser = ["GPGKeys"], hide = true)]
    keytype: String,
    /// Which images: those of registries, of an atomic registry, or of local directories
    #[arg(long, value_enum, default_value_t = SigstoreType::Web)]
    sigstoretype: SigstoreType,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Ask nothing special of a scope any more
#[derive(Debug, clap::Args)]
struct Delete {
    /// REGISTRY[/REPOSITORY[:TAG]]
    #[arg(value_name = "SCOPE")]
    scope: String,
    /// Which images
    #[arg(long, value_enum, default_value_t = SigstoreType::Web)]
    sigstoretype: SigstoreType,
    /// Leave where the signatures are on record
    #[arg(long)]
    save_sigstore: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// What is asked of images without a rule of their own
#[derive(Debug, clap::Args)]
struct Default {
    /// Accept or reject them
    #[arg(value_enum)]
    what: DefaultKind,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Forget the whole policy: every image is accepted
#[derive(Debug, clap::Args)]
struct Reset {
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DefaultKind {
    Accept,
    Reject,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kinds {
    #[value(name = "signedBy")]
    SignedBy,
    #[value(name = "insecureAcceptAnything", alias = "accept")]
    AcceptAnything,
    #[value(name = "reject")]
    Reject,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SigstoreType {
    Web,
    Local,
    Atomic,
}

impl SigstoreType {
    fn transport(self) -> &'static str {
        match self {
            Self::Web => "docker",
            Self::Local => "dir",
            Self::Atomic => "atomic",
        }
    }
}

/// Sign images in a registry with a GPG key; signatures go where registries.d says
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// Images in registries
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Fingerprint, name or address of the key [default: default_signer in the configuration]
    #[arg(long = "sign-by", value_name = "KEY")]
    key: Option<String>,
    /// Put signatures into this directory instead
    #[arg(short, long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Where the keys are [default: ~/.gnupg]
    #[arg(short, long, value_name = "DIR")]
    gnupghome: Option<PathBuf>,
    #[command(flatten)]
    source: super::args::SourceArgs,
}

impl Trust {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let mut policy = match &self.verb {
            // Most needed where the file cannot be read any more.
            Verb::Reset(_) => Policy::empty(call.config),
            _ => Policy::load(call.config)?,
        };
        let done = match self.verb {
            Verb::Show(show) => return show.run(call, &policy),
            Verb::Add(add) => {
                let kind = add.kind.to_possible_value();
                let step = format!(
                    "{}: {} {}",
                    add.scope,
                    kind.as_ref()
                        .map_or("", clap::builder::PossibleValue::get_name),
                    add.pubkeys
                        .iter()
                        .map(|key| key.display().to_string())
                        .collect::<Vec<_>>()
                        .join(" ")
                );
                let steps = [step.trim_end().to_owned()];
                let trust = match add.kind {
                    Kinds::SignedBy => trust::Trust::SignedBy(add.pubkeys),
                    Kinds::AcceptAnything => trust::Trust::AcceptAnything,
                    Kinds::Reject => trust::Trust::Reject,
                };
                policy.add(add.sigstoretype.transport(), &add.scope, &trust)?;
                if let Some(code) = add.change.told(call, "trust add", &steps)? {
                    return Ok(code);
                }
                if let Some(url) = &add.sigstore {
                    trust::set_sigstore(call.config, &add.scope, url)?;
                }
                (add.change, "trust add", steps)
            }
            Verb::Delete(delete) => {
                policy.delete(delete.sigstoretype.transport(), &delete.scope)?;
                let steps = [format!("forget {}", delete.scope)];
                if let Some(code) = delete.change.told(call, "trust delete", &steps)? {
                    return Ok(code);
                }
                if !delete.save_sigstore {
                    trust::delete_sigstore(call.config, &delete.scope)?;
                }
                (delete.change, "trust delete", steps)
            }
            Verb::Default(default) => {
                let (word, trust) = match default.what {
                    DefaultKind::Accept => ("accept", trust::Trust::AcceptAnything),
                    DefaultKind::Reject => ("reject", trust::Trust::Reject),
                };
                let steps = [format!("{word} images without a rule of their own")];
                if let Some(code) = default.change.told(call, "trust default", &steps)? {
                    return Ok(code);
                }
                policy.set_default(&trust)?;
                (default.change, "trust default", steps)
            }
            Verb::Reset(reset) => {
                let steps = ["accept every image".to_owned()];
                if let Some(code) = reset.change.told(call, "trust reset", &steps)? {
                    return Ok(code);
                }
                if !call.assumeyes {
                    call.out.line("Every image will be accepted.")?;
                    call.out.confirm("the policy stays as it is")?;
                }
                policy.reset();
                (reset.change, "trust reset", steps)
            }
        };
        policy.save()?;
        let (change, verb, steps) = done;
        change.done(call, verb, &steps)
    }
}

const COLUMNS: [(&str, usize); 4] = [("SCOPE", 30), ("TYPE", 22), ("KEYS", 20), ("SIGSTORE", 20)];

impl Show {
    fn run(&self, call: &mut Call<'_>, policy: &Policy) -> Result<ExitCode> {
        if self.raw {
            call.out.json(policy.raw())?;
            return Ok(ExitCode::SUCCESS);
        }
        let rules = policy.rules();
        let sigstores = trust::sigstores(call.config)?;
        if self.json {
            let rules: Vec<_> = rules
                .iter()
                .map(|rule| {
                    json!({"transport": rule.transport, "scope": rule.scope, "type": rule.kind,
                           "keys": rule.keys, "sigstore": sigstores.get(&rule.scope)})
                })
                .collect();
            call.out.json(&json!({"version": 1, "rules": rules}))?;
            return Ok(ExitCode::SUCCESS);
        }
        let cells: Vec<Vec<String>> = rules
            .iter()
            .map(|rule| {
                let scope = match rule.transport.as_str() {
                    "" => "* (default)".to_owned(),
                    "docker" => rule.scope.clone(),
                    other => format!("{} ({other})", rule.scope),
                };
                vec![
                    scope,
                    rule.kind.clone(),
                    rule.keys.join(","),
                    sigstores.get(&rule.scope).cloned().unwrap_or_default(),
                ]
            })
            .collect();
        call.out.table(&COLUMNS, &cells, true, true, 0)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Sign {
    pub fn run(self, call: &mut Call<'_>) -> Result<ExitCode> {
        let Some(key) = self.key.as_ref().or(call.config.default_signer.as_ref()) else {
            fail!(
                Kind::Usage,
                "no key is named: use --sign-by, or default_signer in the configuration"
            );
        };
        let configured = call.config.gnupg_home.as_deref().map(Utf8Path::as_std_path);
        for image in &self.images {
            let reference = self.source.reference(image)?;
            if reference.is_unqualified() {
                fail!(Kind::Usage, "\"{image}\" does not say which registry");
            }
            let digest = crate::transport::sign(
                call.config,
                &reference,
                &self.source.access_to(&reference),
                key,
                self.gnupghome.as_deref().or(configured),
                self.directory.as_deref(),
            )?;
            call.out.line(format!("{image} {digest}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
