//! Commands on registries.

use serde_json::Value;

use super::grammar::{Opt, Takes, Words};
use super::{Call, Code, failed};
use crate::cli::ask::{ask, ask_unseen};
use crate::command::Child;
use crate::error::{Context as _, Kind, Result};
use crate::transport;

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

const HUB: &str = "https://hub.docker.com";
/// Seconds that a registry has to answer a search.
const TIMEOUT: &str = "30";

/// The registry that is meant: its URL.
fn registry(call: &Call, words: &Words) -> Option<String> {
    let named = words.value("--registry").or_else(|| words.value("--index"));
    let named = named.or_else(|| call.registry(words));
    named.filter(|named| !named.is_empty()).map(str::to_owned)
}

/// The registry that is meant: its host, and whether it is spoken to without TLS.
fn host(call: &Call, words: &Words) -> (String, bool) {
    let named = registry(call, words).unwrap_or_else(|| "docker.io".into());
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
        let is_elsewhere = registry(call, words).is_some();
        let name = if is_elsewhere {
            format!("{host}/{expression}")
        } else {
            expression.to_owned()
        };
        for tag in transport::list_tags(&call.config, &name, insecure)? {
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

/// By Docker Hub's search, or the list of all that a registry has.
fn found(call: &Call, words: &Words, expression: &str) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |name: &str, official: bool, description: &str, stars: u64| {
        let official = if official { "[OK]" } else { "----" };
        let description = description.lines().next().unwrap_or_default();
        format!("{name:<55.80} {official:>8.8} {description:<70.70} {stars:>5.5}")
    };
    if let Some(registry) = registry(call, words) {
        let base = if registry.contains("://") {
            registry
        } else {
            format!("https://{registry}")
        };
        let base = base
            .trim_end_matches('/')
            .trim_end_matches("/v2")
            .to_owned();
        let all = get(call, words, &format!("{base}/v2/_catalog?n=1000"), &[])?;
        let names = all["repositories"]
            .as_array()
            .into_iter()
            .flatten()
            .map(text);
        return Ok(names
            .filter(|name| name.contains(expression))
            .map(|name| row(&name, false, "", 0))
            .collect());
    }
    let url = format!("{HUB}/v2/search/repositories/");
    let all = get(
        call,
        words,
        &url,
        &[("query", expression), ("page_size", "100")],
    )?;
    let rows = all["results"].as_array().into_iter().flatten();
    Ok(rows
        .map(|found| {
            row(
                &text(&found["repo_name"]),
                found["is_official"].as_bool().unwrap_or_default(),
                &text(&found["short_description"]),
                found["star_count"].as_u64().unwrap_or_default(),
            )
        })
        .collect())
}

/// Ask by curl, which knows proxies of every kind.
fn get(call: &Call, words: &Words, url: &str, query: &[(&str, &str)]) -> Result<Value> {
    // First of all options: what a person has configured for curl is not for us.
    let mut child = Child::new("curl").args(["--disable", "--silent", "--show-error", "--fail"]);
    child = child.args([
        "--location",
        "--max-redirs",
        "5",
        "--max-time",
        TIMEOUT,
        "--get",
    ]);
    child = child.args(["--proto", "=http,https", "--proto-redir", "=https"]);
    if let Some(proxy) = call.proxy(words) {
        child = child.args(["--proxy", proxy]);
    }
    for (name, value) in query {
        child = child.arg("--data-urlencode").arg(format!("{name}={value}"));
    }
    let said = child.args(["--", url]).run()?;
    serde_json::from_slice(&said).kind(Kind::Transport, || {
        format!("{url} does not answer with JSON")
    })
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
    if let Err(error) = transport::login(&call.config, &host, &user, &password, insecure) {
        say!("Error: {error}");
        return failed("invalid credentials");
    }
    Ok(0)
}

pub fn logout(call: &mut Call, words: &Words) -> Code {
    let (host, _) = host(call, words);
    let host = (!words.has("-a")).then_some(host.as_str());
    if transport::logout(&call.config, host).is_err() {
        return failed("deleting credentials");
    }
    Ok(0)
}
