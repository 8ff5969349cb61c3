//! Arguments that several verbs share, and what they do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Call;
use crate::container::effects::Effects;
use crate::container::{Change, Outcome};
use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::image::{Platform, Reference, Transport};
use crate::pull::{Pulled, Remote};
use crate::store::Store;
use crate::store::images::StoredImage;
use crate::template::variables::parse_setting;
use crate::transaction::{Host, Plan, Step};
use crate::transport::{Access, Credentials};

/// Exit code of a dry run that found something to do.
pub const WOULD_CHANGE: u8 = 3;

/// How to reach a registry.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Registry options")]
pub struct SourceArgs {
    /// User name and password for the registry
    #[arg(long, visible_alias = "src-creds", value_name = "USER[:PASSWORD]")]
    creds: Option<Credentials>,
    /// The same from the first line of a file, which nobody sees in a list of processes
    #[arg(long, value_name = "FILE", conflicts_with = "creds", value_parser = |path: &str| Credentials::from_file(path.as_ref()))]
    creds_file: Option<Credentials>,
    /// Credentials file (see containers-auth.json(5))
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Whether to verify the registry's certificate; false also allows plain HTTP
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    tls_verify: Option<bool>,
    /// The platform to take of an image that is made for several, as in linux/arm64; kept for updates
    /// [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Accepted for scripts written for the original; only "ostree" exists
    #[arg(long, value_name = "STORAGE", hide = true)]
    storage: Option<String>,
}

impl SourceArgs {
    /// For a command line that has other options for the same.
    pub fn of(creds: Option<Credentials>, is_insecure: bool) -> Self {
        Self {
            creds,
            tls_verify: is_insecure.then_some(false),
            ..Self::default()
        }
    }

    /// True if the person names a storage, as the original wants it for images.
    pub fn names_storage(&self) -> bool {
        self.storage.is_some()
    }

    /// How to reach the source.
    pub fn access(&self) -> Access {
        Access {
            credentials: self.creds.clone().or_else(|| self.creds_file.clone()),
            authfile: self.authfile.clone(),
            tls_verify: self.tls_verify,
            platform: self.platform.clone(),
        }
    }

    /// The same for `target`, whose form may say that it speaks plain HTTP.
    pub fn access_to(&self, target: &Reference) -> Access {
        let mut access = self.access();
        if matches!(target.transport, Transport::Registry { insecure: true }) {
            access.tls_verify = Some(false);
        }
        access
    }

    /// Read what a person typed as an image. What `--tls-verify=false` says becomes part of the
    /// reference, so that a later update goes the same way.
    pub fn reference(&self, text: &str) -> Result<Reference> {
        if let Some(storage) = &self.storage
            && storage != "ostree"
        {
            fail!(
                Kind::Usage,
                "The storage backend '{storage}' is not available.  Try with an alternate storage with --storage if available."
            );
        }
        let mut reference: Reference = text.parse()?;
        if let Transport::Registry { insecure } = &mut reference.transport
            && self.tls_verify == Some(false)
        {
            *insecure = true;
        }
        Ok(reference)
    }

    /// Pull with progress on stderr. `platform`: what was asked for before, if anything.
    pub fn pull(
        &self,
        call: &mut Call<'_>,
        store: &Store,
        reference: &Reference,
        platform: Option<&str>,
    ) -> Result<Pulled> {
        Self::note_unqualified(call, reference);
        let access = self.access().or_platform(platform)?;
        let remote = Remote::open(call.config, reference, &access)?;
        Self::fetch(call, store, remote)
    }

    /// The same where store and source are opened now, at once: each is mostly waiting.
    pub fn open_and_pull(&self, call: &mut Call<'_>, reference: &Reference) -> Result<Pulled> {
        Self::note_unqualified(call, reference);
        let (config, access) = (call.config, self.access());
        let (store, remote) = std::thread::scope(|scope| {
            let store = scope.spawn(|| Store::open(config));
            // skopeo ends with the thread that started it, which so must be this one.
            let remote = Remote::open(config, reference, &access);
            let died = |_| {
                Err(Error::new(
                    Kind::Failed,
                    "a thread that opens the store died",
                ))
            };
            (store.join().unwrap_or_else(died), remote)
        });
        Self::fetch(call, &store?, remote?)
    }

    fn note_unqualified(call: &mut Call<'_>, reference: &Reference) {
        if reference.is_unqualified() {
            let name = reference
                .name
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            call.out
                .note(format!("The image `{name}` is not fully qualified."));
        }
    }

    fn fetch(call: &mut Call<'_>, store: &Store, remote: Remote) -> Result<Pulled> {
        let is_asked_for = remote.platform().is_some();
        let pulled = remote.fetch(call.config, store, &mut call.meter())?;
        if let Some(foreign) = pulled.foreign.as_ref().filter(|_| !is_asked_for) {
            call.out.note(format!(
                "{} is made for {foreign}, and this machine is {}",
                pulled.image.name,
                Platform::host()
            ));
        }
        if pulled.skipped > 0 {
            call.out.note(format!(
                "{} entries of the image (device nodes, fifos, names that are not UTF-8) are not in deployments",
                pulled.skipped
            ));
        }
        Ok(pulled)
    }

    /// What a pull would fetch, or nothing if the store has this very image.
    pub fn preview(
        &self,
        call: &Call<'_>,
        store: &Store,
        reference: &Reference,
        platform: Option<&str>,
    ) -> Result<Outcome> {
        let access = self.access().or_platform(platform)?;
        let remote = Remote::open(call.config, reference, &access)?;
        if remote.is_stored(store)? {
            return Ok(Outcome::Nothing(format!(
                "{} {} is in the store",
                remote.name(),
                remote.digest()
            )));
        }
        let preview = crate::container::preview_fetch(store, &remote)?;
        Ok(Outcome::Preview(Box::new(preview)))
    }

    /// Make sure that an image is in the store, and return it.
    pub fn ensure(
        &self,
        call: &mut Call<'_>,
        store: &Store,
        reference: &Reference,
    ) -> Result<StoredImage> {
        if let Some(name) = &reference.name
            && let Some(image) = store.image(&name.to_string())?
            && image
                .manifest
                .as_ref()
                .is_none_or(|manifest| store.layer_commits(manifest).is_ok())
            && self.fits(store, &image)?
        {
            return Ok(image);
        }
        Ok(self.pull(call, store, reference, None)?.image)
    }

    /// True unless another platform than the image's is asked for.
    fn fits(&self, store: &Store, image: &StoredImage) -> Result<bool> {
        let Some(wanted) = &self.platform else {
            return Ok(true);
        };
        let found = store.image_config(image)?.platform();
        Ok(found.is_some_and(|found| found.matches(wanted)))
    }
}

/// Template variables.
#[derive(Debug, Clone, Default, Args)]
pub struct SetArgs {
    /// Set a variable of the image's templates; kept across updates
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
}

impl SetArgs {
    /// The variables.
    pub fn values(&self) -> Result<BTreeMap<String, String>> {
        self.set.iter().map(|text| parse_setting(text)).collect()
    }
}

/// How a new version proves itself; kept from now on.
#[derive(Debug, Clone, Default, Args)]
pub struct WatchArgs {
    /// How long a new version must start and stay healthy to count; 0 for as long as its start takes
    /// [default: 15, or what the configuration says]
    #[arg(long, value_name = "SECONDS")]
    pub watch: Option<u32>,
    /// A shell command, run inside the container, that tells whether it works, in place of the
    /// image's health check; "none" for no check
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
}

/// How a list is shown.
#[allow(clippy::struct_excessive_bools)] // one flag each
#[derive(Debug, Clone, Default, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Without the heading
    #[arg(short, long)]
    pub noheading: bool,
    /// Do not cut long values
    #[arg(long)]
    pub no_trunc: bool,
    /// Names or ids only
    #[arg(short, long)]
    pub quiet: bool,
}

/// Show a change instead of making it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Plan options")]
pub struct ChangeArgs {
    /// Print what would be done and do nothing; exit 3 if there is something to do
    #[arg(long)]
    dry_run: bool,
    /// The same, but exit 0
    #[arg(long, conflicts_with = "dry_run")]
    display: bool,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

impl ChangeArgs {
    /// True if nothing may be changed.
    pub fn is_dry(&self) -> bool {
        self.dry_run || self.display
    }

    /// True if JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Show a computed change, or apply it.
    pub fn show_or_apply(
        &self,
        call: &mut Call<'_>,
        host: &Host<'_>,
        change: &Change,
    ) -> Result<ExitCode> {
        for note in &change.notes {
            call.out.note(note);
        }
        if self.is_dry() {
            change.let_go();
            return self.show(call, Some(&change.plan), &change.effects);
        }
        if !self.json {
            for step in &change.plan.stage {
                if let Step::Deploy {
                    slot,
                    commit: Some(_),
                    ..
                } = step
                {
                    let paths = crate::deployment::Paths::new(call.config, &change.plan.name);
                    call.out
                        .line(format!("Extracting to {}", paths.slot(*slot)))?;
                }
            }
        }
        if let Some(Step::Watch { unit, seconds, .. }) = change
            .plan
            .prove
            .iter()
            .find(|step| matches!(step, Step::Watch { .. }))
        {
            call.out.note(format!(
                "{unit} is watched for {seconds} s; what was before returns if it fails"
            ));
        }
        let report = change.apply(host)?;
        let outage_ms = report.outage.map(|outage| outage.as_millis());
        if self.json {
            let mut shown = as_json(Some(&change.plan), &change.effects);
            shown["result"] = json!({"outage_ms": outage_ms});
            call.out.json(&shown)?;
        } else {
            for step in &change.plan.prove {
                call.out.line(step.to_string())?;
            }
            if let Some(outage) = report.outage {
                call.out
                    .line(format!("outage: {:.2} seconds", outage.as_secs_f64()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Show what a computed outcome is, or apply it.
    pub fn finish(
        &self,
        call: &mut Call<'_>,
        host: &Host<'_>,
        outcome: &Outcome,
    ) -> Result<ExitCode> {
        match outcome {
            Outcome::Nothing(why) => self.nothing(call, why),
            Outcome::Skipped(why) => Err(Error::new(Kind::Failed, why.as_str())),
            Outcome::Preview(preview) => self.show(call, preview.plan.as_ref(), &preview.effects),
            Outcome::Change(change) => self.show_or_apply(call, host, change),
        }
    }

    /// For verbs whose plan is a few sentences: if nothing may be changed, show them and return the exit
    /// code; no sentences mean that there is nothing to do.
    pub fn told(
        &self,
        call: &mut Call<'_>,
        verb: &str,
        steps: &[String],
    ) -> Result<Option<ExitCode>> {
        if !self.is_dry() {
            return Ok(None);
        }
        if steps.is_empty() {
            return self.nothing(call, "nothing to do").map(Some);
        }
        if self.json {
            call.out
                .json(&json!({"version": 1, "changes": true, "verb": verb, "actions": steps}))?;
        } else {
            for step in steps {
                call.out.line(step)?;
            }
        }
        Ok(Some(self.exit_code()))
    }

    /// After it was done: as JSON, if that is wanted.
    pub fn done(&self, call: &mut Call<'_>, verb: &str, steps: &[String]) -> Result<ExitCode> {
        if self.json {
            call.out
                .json(&json!({"version": 1, "verb": verb, "done": true, "actions": steps}))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Say that there is nothing to do.
    pub fn nothing(&self, call: &mut Call<'_>, why: &str) -> Result<ExitCode> {
        if self.json {
            call.out
                .json(&json!({"version": 1, "changes": false, "reason": why}))?;
        } else {
            call.out.line(why)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn show(
        &self,
        call: &mut Call<'_>,
        plan: Option<&Plan>,
        effects: &Effects,
    ) -> Result<ExitCode> {
        if self.json {
            call.out.json(&as_json(plan, effects))?;
        } else {
            for line in effects.lines() {
                call.out.line(line)?;
            }
            for step in plan.into_iter().flat_map(Plan::steps) {
                call.out.line(step.to_string())?;
            }
        }
        Ok(self.exit_code())
    }

    /// The exit code of a dry run that found something to do.
    pub fn exit_code(&self) -> ExitCode {
        if self.dry_run {
            ExitCode::from(WOULD_CHANGE)
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// A plan without its texts: they hold `--set` values.
fn as_json(plan: Option<&Plan>, effects: &Effects) -> serde_json::Value {
    let texts = |steps: &[Step]| steps.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut shown = json!({"version": 1, "changes": true});
    if let Some(plan) = plan {
        shown["verb"] = json!(plan.verb);
        shown["name"] = json!(plan.name);
        shown["from"] = json!(plan.from);
        shown["to"] = json!(plan.to);
        shown["was_active"] = json!(plan.was_active);
        shown["was_enabled"] = json!(plan.was_enabled);
        shown["steps"] = json!({
            "stage": texts(&plan.stage),
            "stop": texts(&plan.stop),
            "switch": texts(&plan.switch),
            "prove": texts(&plan.prove),
            "close": texts(&plan.close),
        });
    }
    shown["effects"] = json!(effects);
    shown
}
