//! Who gives the tokens that a registry wants: by docker's token authentication, signed as docker-registry checks it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::registry::make_certificate;
use super::{Scratch, must};

pub struct Tokens {
    port: u16,
    scratch: Arc<Scratch>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tokens {
    pub fn start(user: &str, password: &str) -> Self {
        let scratch = Arc::new(Scratch::new("tokens"));
        make_certificate(&scratch.join("key"), &scratch.join("crt"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let wanted = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, place) = (asked.clone(), scratch.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { continue };
                answer(client, &wanted, place.path(), &seen);
            }
        });
        Self {
            port,
            scratch,
            asked,
        }
    }

    /// Of the registry's configuration.
    pub fn section(&self) -> String {
        format!(
            "auth:\n  token:\n    realm: http://127.0.0.1:{}/token\n    service: test\n    issuer: test\n    rootcertbundle: {}\n",
            self.port,
            self.scratch.join("crt").display()
        )
    }

    /// What tokens were for.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn answer(mut client: TcpStream, wanted: &str, place: &Path, asked: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    let headers: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let is_known = headers.iter().any(|line| {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        name.eq_ignore_ascii_case("authorization") && value == wanted
    });
    let query = first.split([' ', '?']).nth(2).unwrap_or_default();
    let scopes: Vec<String> = query
        .split('&')
        .filter_map(|field| field.strip_prefix("scope="))
        .map(|scope| {
            scope
                .replace("%3A", ":")
                .replace("%2F", "/")
                .replace("%2C", ",")
        })
        .collect();
    asked.lock().unwrap().extend(scopes.clone());
    let (status, body) = if is_known {
        ("200 OK", json!({"token": token(place, &scopes)}))
    } else {
        (
            "401 Unauthorized",
            json!({"errors": [{"code": "DENIED", "message": "who is it?"}]}),
        )
    };
    let body = body.to_string();
    let _ = write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

/// A JSON web token with the certificate of its key.
fn token(place: &Path, scopes: &[String]) -> String {
    let pem = std::fs::read_to_string(place.join("crt")).unwrap();
    let der: String = pem.lines().filter(|line| !line.contains('-')).collect();
    let access: Vec<Value> = scopes
        .iter()
        .map(|scope| {
            let mut parts = scope.split(':');
            let mut next = || parts.next().unwrap_or_default().to_owned();
            let (kind, name, actions) = (next(), next(), next());
            let actions: Vec<&str> = actions.split(',').collect();
            json!({"type": kind, "name": name, "actions": actions})
        })
        .collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap().as_secs();
    let claims = json!({
        "iss": "test", "sub": "me", "aud": "test", "jti": "1", "access": access,
        "iat": now - 10, "nbf": now - 10, "exp": now + 300,
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!(
        "{}.{}",
        part(json!({"typ": "JWT", "alg": "RS256", "x5c": [der]})),
        part(claims)
    );
    let (input, output) = (place.join("text"), place.join("signature"));
    std::fs::write(&input, &text).unwrap();
    sign(&place.join("key"), &input, &output);
    let signature = URL_SAFE_NO_PAD.encode(std::fs::read(output).unwrap());
    format!("{text}.{signature}")
}

fn sign(key: &PathBuf, input: &PathBuf, output: &PathBuf) {
    must(
        Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(key)
            .arg("-out")
            .arg(output)
            .arg(input),
    );
}
