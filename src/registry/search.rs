//! What a registry knows: names, and tags.

use serde_json::Value;
use ureq::Agent;
use ureq::http::{Method, StatusCode};

use super::auth::{Scope, encoded};
use super::tls::Trust;
use super::{Ask, Registry, agent, json};
use crate::error::{Context as _, Kind, Result};
use crate::fail;

/// Where docker's registry is searched.
const HUB_SEARCH: &str = "https://hub.docker.com/v2/search/repositories/";
/// Names of one answer, and answers that are looked at.
const PAGE: &str = "1000";
const MAX_PAGES: usize = 100;

/// A repository that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// What it says it is.
    pub description: String,
    /// Whether docker cares for it.
    pub is_official: bool,
    /// How many people like it.
    pub stars: u64,
}

/// Search docker's registry.
pub fn search(expression: &str, proxy: Option<&str>) -> Result<Vec<Found>> {
    let agent: Agent = agent(Trust::default(), proxy)?;
    let fields = encoded(&[("query", expression), ("page_size", "100")]);
    let url = format!("{HUB_SEARCH}?{fields}");
    let said = agent.get(&url).call();
    let said = said.kind(Kind::Transport, || format!("cannot search {url}"))?;
    if said.status() != StatusCode::OK {
        fail!(Kind::Transport, "cannot search {url}: {}", said.status());
    }
    let said = json(said, &url)?;
    let rows = said["results"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(rows
        .map(|row| Found {
            name: text(&row["repo_name"]),
            description: text(&row["short_description"]),
            is_official: row["is_official"].as_bool().unwrap_or_default(),
            stars: row["star_count"].as_u64().unwrap_or_default(),
        })
        .collect())
}

impl Registry {
    /// All repositories that a registry lists.
    pub fn repositories(&self) -> Result<Vec<String>> {
        let url = format!("{}/v2/_catalog?n={PAGE}", self.base());
        self.pages(url, &Scope::catalog(), "repositories")
    }

    /// The tags of this repository.
    pub fn tags(&self) -> Result<Vec<String>> {
        let url = self.url(&format!("tags/list?n={PAGE}"));
        self.pages(url, &Scope::pull(self.repository()), "tags")
    }

    /// A list that comes in several answers, each of which names the next one.
    fn pages(&self, first: String, scope: &Scope, field: &str) -> Result<Vec<String>> {
        let mut out = Vec::new();
        let mut next = Some(first);
        for _ in 0..MAX_PAGES {
            let Some(url) = next else {
                break;
            };
            let said = self.send(&Ask::new(Method::GET, url.clone(), scope.clone()))?;
            let said = self.accept(said, &[StatusCode::OK], &format!("the {field}"))?;
            let link = said.headers().get("link");
            let link = link.and_then(|link| link.to_str().ok()).and_then(next_of);
            next = link.map(|link| {
                if link.starts_with('/') {
                    format!("{}{link}", self.base())
                } else {
                    link
                }
            });
            let said = json(said, &url)?;
            let names = said[field].as_array().into_iter().flatten();
            out.extend(names.filter_map(Value::as_str).map(str::to_owned));
        }
        Ok(out)
    }
}

/// `</v2/_catalog?last=x&n=1000>; rel="next"`
fn next_of(link: &str) -> Option<String> {
    let (url, rest) = link.strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| url.to_owned())
}
