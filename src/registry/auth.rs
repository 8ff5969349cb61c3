//! What a registry wants to see before it answers.
//!
//! Sources: RFC 9110 §11.6.1; docker's "Token Authentication Specification" and "`OAuth2` Token Authentication".

use ureq::http::{HeaderMap, Method, StatusCode};

use super::credentials::Login;
use super::{Ask, Content, Registry, json};
use crate::error::{Kind, Result};
use crate::fail;

/// What is to be done: `repository:NAME:pull,push`, one each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Scope(Vec<String>);

impl Scope {
    pub(super) fn pull(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull")])
    }

    pub(super) fn push(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull,push")])
    }

    pub(super) fn catalog() -> Self {
        Self(vec!["registry:catalog:*".into()])
    }

    pub(super) fn and(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// A token, and where to get it.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Registry {
    /// Get ready to show what is wanted for `scope`; false if we have nothing to show.
    pub(super) fn answer(&self, scope: &Scope, headers: &HeaderMap) -> Result<bool> {
        let Some(challenge) = Challenge::of(headers) else {
            return Ok(false);
        };
        *self.challenge.borrow_mut() = Some(challenge.clone());
        let authorization = match (&challenge, &self.login) {
            (Challenge::Basic, Some(Login::Basic(credentials))) => {
                format!("Basic {}", credentials.encoded())
            }
            (Challenge::Basic, _) => return Ok(false),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope: named,
                },
                _,
            ) => {
                let mut scopes = scope.0.clone();
                if let Some(named) = named {
                    for one in named.split(' ') {
                        let is_asked = scopes.iter().any(|scope| covers(scope, one));
                        if !is_asked {
                            scopes.push(one.to_owned());
                        }
                    }
                }
                let token = self.token(realm, service.as_deref(), &scopes)?;
                format!("Bearer {token}")
            }
        };
        self.answers
            .borrow_mut()
            .insert(scope.clone(), authorization);
        Ok(true)
    }

    /// The same before it is wanted, as soon as it is known what will be.
    pub(super) fn prepare(&self, scope: &Scope) -> Result<()> {
        let known = self.challenge.borrow().clone();
        let is_shown = self.answers.borrow().contains_key(scope);
        if let (Some(challenge), false) = (known, is_shown) {
            let mut headers = HeaderMap::new();
            if let Ok(text) = challenge.to_header().parse() {
                headers.insert("www-authenticate", text);
            }
            self.answer(scope, &headers)?;
        }
        Ok(())
    }

    fn token(&self, realm: &str, service: Option<&str>, scopes: &[String]) -> Result<String> {
        let is_safe = realm.starts_with("https://");
        let is_as_safe = self.place.insecure && realm.starts_with("http://");
        if !is_safe && !is_as_safe {
            fail!(
                Kind::Transport,
                "the registry {} wants the credentials to be sent to {realm}, without TLS",
                self.place.address
            );
        }
        let mut fields: Vec<(&str, &str)> = Vec::new();
        fields.extend(service.map(|service| ("service", service)));
        let joined = scopes.join(" ");
        let form;
        let ask = if let Some(Login::Identity(token)) = &self.login {
            if !joined.is_empty() {
                fields.push(("scope", &joined));
            }
            fields.push(("grant_type", "refresh_token"));
            fields.push(("client_id", "atomic-rs"));
            fields.push(("refresh_token", &token.0));
            form = encoded(&fields);
            let ask = Ask::new(Method::POST, realm.to_owned(), Scope::default());
            ask.header("Content-Type", "application/x-www-form-urlencoded")
                .content(Content::Bytes(form.as_bytes()))
        } else {
            fields.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
            let sign = if realm.contains('?') { '&' } else { '?' };
            let url = format!("{realm}{sign}{}", encoded(&fields));
            let ask = Ask::new(Method::GET, url, Scope::default());
            match &self.login {
                Some(Login::Basic(credentials)) => {
                    ask.header("Authorization", format!("Basic {}", credentials.encoded()))
                }
                _ => ask,
            }
        };
        let said = self.send_once(&ask).map_err(|error| self.explain(&error))?;
        let said = self.accept(said, &[StatusCode::OK], "the token")?;
        let said = json(said, "the registry's token")?;
        let token = said["token"]
            .as_str()
            .or_else(|| said["access_token"].as_str());
        match token {
            Some(token) => Ok(token.to_owned()),
            None => fail!(Kind::Transport, "the registry gives no token"),
        }
    }
}

/// Whether who may do `asked` may do `wanted`: `repository:a:pull,push` and `repository:a:pull`.
fn covers(asked: &str, wanted: &str) -> bool {
    let split = |scope: &str| -> Option<(String, Vec<String>)> {
        let (what, actions) = scope.rsplit_once(':')?;
        Some((
            what.to_owned(),
            actions.split(',').map(str::to_owned).collect(),
        ))
    };
    match (split(asked), split(wanted)) {
        (Some((what, may)), Some((other, wants))) => {
            what == other && wants.iter().all(|want| may.contains(want))
        }
        _ => false,
    }
}

/// Fields of a form, or of a URL after its question mark.
pub(super) fn encoded(fields: &[(&str, &str)]) -> String {
    let escape = |text: &str| -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let bytes = text.bytes().map(|byte| match byte {
            byte if plain(byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        });
        bytes.collect()
    };
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{}={}", escape(name), escape(value)))
        .collect();
    fields.join("&")
}

impl Challenge {
    /// Of several, a token.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let all = headers.get_all("www-authenticate").iter();
        let all: Vec<Self> = all
            .filter_map(|value| value.to_str().ok())
            .filter_map(Self::parse)
            .collect();
        let is_bearer = |challenge: &&Self| matches!(challenge, Self::Bearer { .. });
        all.iter().find(is_bearer).or(all.first()).cloned()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value).filter(|scope| !scope.is_empty()),
                _ => {}
            }
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }

    /// What is asked for anew has its own scope.
    fn to_header(&self) -> String {
        match self {
            Self::Basic => "Basic".into(),
            Self::Bearer { realm, service, .. } => {
                let service = service.as_deref().unwrap_or_default();
                format!("Bearer realm=\"{realm}\",service=\"{service}\"")
            }
        }
    }
}

/// `name="value", name=value`
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some((name, after)) = rest.split_once('=') {
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut end = quoted.len();
            let mut escaped = false;
            for (at, c) in quoted.char_indices() {
                match c {
                    _ if escaped => {
                        value.push(c);
                        escaped = false;
                    }
                    '\\' => escaped = true,
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    _ => value.push(c),
                }
            }
            rest = &quoted[end..];
        } else {
            let (plain, after) = after.split_once(',').unwrap_or((after, ""));
            plain.trim().clone_into(&mut value);
            rest = after;
        }
        out.push((name.trim().to_owned(), value));
        rest = rest.trim_start_matches([',', ' ']);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.example/token",service="reg\"x",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(text),
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("reg\"x".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        assert_eq!(Challenge::parse("basic realm=x"), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        assert_eq!(
            parameters(r#"realm=a, service="b, c""#),
            [
                ("realm".to_owned(), "a".to_owned()),
                ("service".to_owned(), "b, c".to_owned())
            ]
        );
    }

    #[test]
    fn a_wider_scope_covers_a_narrower_one() {
        assert!(covers("repository:a:pull,push", "repository:a:pull"));
        assert!(!covers("repository:a:pull", "repository:a:pull,push"));
        assert!(!covers("repository:a:pull", "repository:b:pull"));
    }

    #[test]
    fn fields_are_escaped() {
        let fields = [("scope", "repository:a/b:pull,push"), ("x", "ä&=")];
        assert_eq!(
            encoded(&fields),
            "scope=repository%3Aa%2Fb%3Apull%2Cpush&x=%C3%A4%26%3D"
        );
    }
}
