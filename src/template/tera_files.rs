//! Our own templates and those of the administrator, in Tera. Never an image's: its loops could
//! not be stopped.

use camino::Utf8Path;
use serde::Serialize;
use tera::{Context, Kwargs, State, Tera, Value};

use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// The templates an administrator may replace, by a file of the same name in
/// `/etc/atomic-rs/templates`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// The unit of a container whose image brings none.
    Service,
    /// The `config.json` of a container whose image brings none.
    Config,
    /// The tmpfiles.d file of a container whose image brings none.
    Tmpfiles,
}

impl Template {
    fn file(self) -> &'static str {
        match self {
            Self::Service => "service.tera",
            Self::Config => "config.json.tera",
            Self::Tmpfiles => "tmpfiles.tera",
        }
    }

    fn built_in(self) -> &'static str {
        match self {
            Self::Service => include_str!("../../templates/service.tera"),
            Self::Config => include_str!("../../templates/config.json.tera"),
            Self::Tmpfiles => include_str!("../../templates/tmpfiles.tera"),
        }
    }
}

/// Render a template with `values`; the administrator's version in `directory` wins.
pub fn render(template: Template, directory: &Utf8Path, values: &impl Serialize) -> Result<String> {
    let path = directory.join(template.file());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            template.built_in().to_owned()
        }
        Err(error) => fail!(Kind::Failed, "cannot read the template {path}: {error}"),
    };
    let failed = || format!("cannot render the template {}", template.file());
    let mut tera = Tera::new();
    tera.autoescape_on(Vec::<&str>::new());
    tera.register_filter("json", json);
    tera.register_filter("unit", unit);
    tera.add_raw_template(template.file(), &text)
        .kind(Kind::Invalid, failed)?;
    let context = Context::from_serialize(values).kind(Kind::Invalid, failed)?;
    tera.render(template.file(), &context)
        .map_err(|error| {
            // Tera's own text is "cannot render"; the cause says which variable.
            let mut cause: &dyn std::error::Error = &error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            cause.to_string()
        })
        .kind(Kind::Invalid, failed)
}

/// `{{ value | json }}`: the value as JSON.
#[allow(clippy::needless_pass_by_value)] // the shape of a filter
fn json(value: Value, _: Kwargs, _: &State) -> String {
    serde_json::to_string(&value).unwrap_or_else(|_| "null".into())
}

/// `{{ text | unit }}`: text for a plain line of a unit file.
#[allow(clippy::needless_pass_by_value)] // the shape of a filter
fn unit(text: String, _: Kwargs, _: &State) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .replace('%', "%%")
        .trim_end_matches('\\')
        .to_owned()
}
