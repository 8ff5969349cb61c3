//! What stands before a registry and answers some questions as a broken or hostile one would.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As the registry does.
    Honest,
    /// With this status.
    Status(u16),
    /// Not at all: the connection is closed.
    Reset,
    /// Half of the body, and then the end.
    Half,
    /// The body with one byte changed.
    Flipped,
    /// The body with no end.
    Endless,
    /// Nothing, and the connection stays.
    Silent,
    /// A byte at a time.
    Trickle,
    /// Ask elsewhere, which is here.
    Redirect,
    /// No manifest.
    Html,
}

#[derive(Clone)]
struct Shared {
    target: String,
    own: String,
    rule: Arc<Mutex<(String, Way)>>,
    is_over: Arc<AtomicBool>,
}

pub struct Wicked {
    shared: Shared,
}

impl Wicked {
    /// Before the registry at `HOST:PORT`; honest so far.
    pub fn before(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Shared {
            target: target.to_owned(),
            own: listener.local_addr().unwrap().to_string(),
            rule: Arc::new(Mutex::new((String::new(), Way::Honest))),
            is_over: Arc::default(),
        };
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = accepting.clone();
                // A client that does not listen any more is what many of these are about.
                std::thread::spawn(move || shared.serve(client).ok());
            }
        });
        Self { shared }
    }

    /// Answer questions with `part` in their path so.
    pub fn answer(&self, part: &str, way: Way) {
        *self.shared.rule.lock().unwrap() = (part.to_owned(), way);
    }

    /// The name of an image here, with the prefix for plain HTTP.
    pub fn name(&self, image: &str) -> String {
        format!("http:{}/{image}", self.shared.own)
    }
}

impl Drop for Wicked {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.shared.own);
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if client.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
            // Whoever tries TLS first hears at once that there is none.
            if head[0] == 0x16 {
                return write!(client, "HTTP/1.0 400 Bad Request\r\n\r\n");
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (part, way) = self.rule.lock().unwrap().clone();
        let way = if path.contains(&part) {
            way
        } else {
            Way::Honest
        };
        match way {
            Way::Status(status) => {
                let code = match status {
                    401 => "UNAUTHORIZED",
                    403 => "DENIED",
                    404 if path.contains("/manifests/") => "MANIFEST_UNKNOWN",
                    404 => "BLOB_UNKNOWN",
                    429 => "TOOMANYREQUESTS",
                    _ => "UNKNOWN",
                };
                let body = serde_json::json!({"errors": [{"code": code, "message": "wicked"}]});
                let body = body.to_string();
                return write!(
                    client,
                    "HTTP/1.1 {status} Wicked\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
            Way::Reset => return Ok(()),
            Way::Html => {
                return write!(
                    client,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>"
                );
            }
            Way::Redirect => {
                return write!(
                    client,
                    "HTTP/1.1 307 Elsewhere\r\nLocation: http://{}{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                    self.own
                );
            }
            Way::Silent => {
                self.wait();
                return Ok(());
            }
            _ => {}
        }
        let mut server = TcpStream::connect(&self.target)?;
        let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
        lines.retain(|line| !line.to_ascii_lowercase().starts_with("connection:"));
        lines.push("Connection: close\r\n\r\n");
        server.write_all(lines.join("\r\n").as_bytes())?;
        if way == Way::Honest {
            std::io::copy(&mut server, &mut client)?;
            return Ok(());
        }
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        let at = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let (head, body) = answer.split_at(at.map_or(answer.len(), |at| at + 4));
        let mut body = body.to_vec();
        match way {
            Way::Half => {
                body.truncate(body.len() / 2);
                client.write_all(head)?;
                client.write_all(&body)
            }
            Way::Flipped => {
                let middle = body.len() / 2;
                if let Some(byte) = body.get_mut(middle) {
                    *byte ^= 1;
                }
                client.write_all(head)?;
                client.write_all(&body)
            }
            Way::Trickle => {
                client.write_all(head)?;
                for byte in body {
                    if self.is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    client.write_all(&[byte])?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            }
            _ => {
                let head = String::from_utf8_lossy(head).into_owned();
                let head: Vec<&str> = head
                    .split_inclusive("\r\n")
                    .filter(|line| !line.to_ascii_lowercase().starts_with("content-length"))
                    .collect();
                client.write_all(head.concat().as_bytes())?;
                client.write_all(&body)?;
                while !self.is_over.load(Ordering::SeqCst) {
                    client.write_all(&[0; 8192])?;
                }
                Ok(())
            }
        }
    }

    fn wait(&self) {
        while !self.is_over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
