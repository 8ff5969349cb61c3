//! A wire to a registry that can break, or make somebody wait.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct State {
    /// A connection breaks after so many bytes to the registry, so many times.
    cut: Option<(usize, usize)>,
    /// Whoever sends this waits.
    held: Option<String>,
    is_waiting: bool,
    /// First lines of requests.
    lines: Vec<String>,
    is_over: bool,
}

#[derive(Clone, Default)]
struct Shared(Arc<(Mutex<State>, Condvar)>);

pub struct Wire {
    port: u16,
    shared: Shared,
}

impl Wire {
    /// To the registry at `HOST:PORT`.
    pub fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Shared::default();
        let (target, accepting) = (target.to_owned(), shared.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.0.0.lock().unwrap().is_over {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&target)) else {
                    continue;
                };
                let (back, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || pass(back, to));
                let shared = accepting.clone();
                std::thread::spawn(move || shared.pass(client, server));
            }
        });
        Self { port, shared }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Break connections after so many bytes, so many times.
    pub fn cut(&self, bytes: usize, times: usize) {
        self.shared.0.0.lock().unwrap().cut = Some((bytes, times));
    }

    /// Times that are left.
    pub fn cuts_left(&self) -> usize {
        self.shared.0.0.lock().unwrap().cut.map_or(0, |cut| cut.1)
    }

    /// Have whoever sends `text` wait.
    pub fn hold(&self, text: &str) {
        self.shared.0.0.lock().unwrap().held = Some(text.to_owned());
    }

    /// Wait until somebody waits.
    pub fn await_held(&self) {
        let (lock, changed) = &*self.shared.0;
        let state = lock.lock().unwrap();
        drop(
            changed
                .wait_while(state, |state| !state.is_waiting)
                .unwrap(),
        );
    }

    /// Nobody waits any more.
    pub fn release(&self) {
        let (lock, changed) = &*self.shared.0;
        lock.lock().unwrap().held = None;
        changed.notify_all();
    }

    /// What was asked since the last call: `METHOD PATH`.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.0.0.lock().unwrap().lines)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.0.0.lock().unwrap().is_over = true;
        self.release();
        // The thread that accepts looks at it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let (lock, changed) = &*self.0;
        let mut buffer = vec![0; 64 * 1024];
        let mut passed = 0;
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&buffer[..n.min(2000)]).into_owned();
            let mut state = lock.lock().unwrap();
            let first = text.lines().next().unwrap_or_default();
            if let Some(asked) = first.strip_suffix(" HTTP/1.1") {
                state.lines.push(asked.to_owned());
            }
            if state.held.as_ref().is_some_and(|held| text.contains(held)) {
                state.is_waiting = true;
                changed.notify_all();
                state = changed
                    .wait_while(state, |state| state.held.is_some())
                    .unwrap();
            }
            passed += n;
            if let Some((bytes, times)) = &mut state.cut
                && *times > 0
                && passed > *bytes
            {
                *times -= 1;
                break;
            }
            drop(state);
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}
