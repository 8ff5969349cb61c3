//! Commands on registries.

use super::grammar::{Opt, Takes, Words};
use super::{Call, Code, failed};
use crate::cli::ask::{ask, ask_unseen};
use crate::error::Result;
use crate::image::Name;
use crate::registry::{self, Access, Credentials, Found, Registry, credentials};

pub const SEARCH: [Opt; 6] = [
    (&["-a"], Takes::Nothing),
    (&["--no-trunc"], Takes::Nothing),
    (&["--list-tags"], Takes::Nothing),
    (&["--httpproxy"], Takes::Value),
    (&["--registry"], Takes::Value),
    (&["--index"], Takes::Value),
];
pub const LOGIN: [Opt; 4] = [
    (&["--username"], Takes::Value),
    (&["--password"], Takes::Value),
    (&["--password-stdin"], Takes::Nothing),
    (&["--registry"], Takes::Value),
];
pub const LOGOUT: [Opt; 2] = [(&["-a"], Takes::Nothing), (&["--registry"], Takes::Value)];

/// The registry that is meant: its URL.
fn named(call: &Call, words: &Words) -> Option<String> {
    let named = words.value("--registry").or_else(|| words.value("--index"));
    let named = named.or_else(|| call.registry(words));
    named.filter(|named| !named.is_empty()).map(str::to_owned)
}

/// The registry that is meant: its host, and whether it is spoken to without TLS.
fn host(call: &Call, words: &Words) -> (String, bool) {
    let named = named(call, words).unwrap_or_else(|| "docker.io".into());
    let insecure = call.insecure || named.starts_with("http://");
    let host = named
        .split_once("://")
        .map_or(named.as_str(), |(_, host)| host);
    (host.split('/').next().unwrap_or(host).to_owned(), insecure)
}

pub fn search(call: &mut Call, words: &Words) -> Code {
    let Some(expression) = words.one() else {
        return failed("must specify a search expression");
    };
    if words.has("--list-tags") {
        let (host, insecure) = host(call, words);
        let is_elsewhere = named(call, words).is_some();
        let name = if is_elsewhere {
            format!("{host}/{expression}")
        } else {
            expression.to_owned()
        };
        let name: Name = name.parse()?;
        for tag in Registry::open(&name, &access(insecure))?.tags()? {
            call.result(tag)?;
        }
        return Ok(0);
    }
    call.info(format!(
        "{:<55.80} {:>8.8} {:<70.70} {:>5.5}",
        "NAME", "OFFICIAL", "DESCRIPTION", "STARS"
    ))?;
    match found(call, words, expression) {
        Ok(rows) => {
            for row in rows {
                call.result(row.trim_end())?;
            }
        }
        // Not every registry can be searched.
        Err(error) => tracing::warn!(%error, "nothing is found"),
    }
    Ok(0)
}

/// Plain HTTP where the person says so; else what is configured.
fn access(insecure: bool) -> Access {
    Access {
        tls_verify: insecure.then_some(false),
        ..Access::default()
    }
}

/// By Docker Hub's search, or the list of all that a registry has.
fn found(call: &Call, words: &Words, expression: &str) -> Result<Vec<String>> {
    let proxy = call.proxy(words);
    let all = if named(call, words).is_some() {
        let (host, insecure) = host(call, words);
        let registry = Registry::of_host(&host, &access(insecure), proxy)?;
        let names = registry.repositories()?.into_iter();
        let names = names.filter(|name| name.contains(expression));
        names
            .map(|name| Found {
                name,
                description: String::new(),
                is_official: false,
                stars: 0,
            })
            .collect()
    } else {
        registry::search(expression, proxy)?
    };
    let row = |found: Found| {
        let official = if found.is_official { "[OK]" } else { "----" };
        let description = found.description.lines().next().unwrap_or_default();
        let (name, stars) = (found.name, found.stars);
        format!("{name:<55.80} {official:>8.8} {description:<70.70} {stars:>5.5}")
    };
    Ok(all.into_iter().map(row).collect())
}

pub fn login(call: &mut Call, words: &Words) -> Code {
    let user = match words.value("--username") {
        Some(user) => user.to_owned(),
        None => ask("username: ")?,
    };
    let password = match words.value("--password") {
        Some(password) => password.to_owned(),
        None if words.has("--password-stdin") => ask("")?,
        None => ask_unseen("password: ")?,
    };
    if user.is_empty() || password.is_empty() {
        return failed("invalid credentials");
    }
    if password.chars().any(char::is_alphabetic) && password == password.to_uppercase() {
        call.info("Warning: password in uppercase Caps Lock ?")?;
    }
    let (host, insecure) = host(call, words);
    let credentials = Credentials::new(user, password);
    if let Err(error) = registry::login(&host, &credentials, &access(insecure)) {
        say!("Error: {error}");
        return failed("invalid credentials");
    }
    Ok(0)
}

pub fn logout(call: &mut Call, words: &Words) -> Code {
    let (host, _) = host(call, words);
    let host = (!words.has("-a")).then_some(host.as_str());
    if credentials::forget(&Access::default(), host).is_err() {
        return failed("deleting credentials");
    }
    Ok(0)
}
