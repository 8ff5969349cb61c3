//! `$NAME` and `${NAME}` substitution with the rules images rely on, and escaping by where a value
//! lands.
//!
//! `$$` is a dollar sign; a name is `[_A-Za-z][_A-Za-z0-9]*`; any other `$` is an error.

use std::collections::BTreeSet;

use crate::error::{Error, Kind, Result};
use crate::fail;

/// The kind of file a template makes: how values are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// JSON: inside a string a value is escaped, outside it is pasted as it is (lists of
    /// capabilities); the caller parses the result again.
    Json,
    /// A unit file.
    Unit,
    /// A tmpfiles.d file.
    Tmpfiles,
    /// Anything else: pasted as it is.
    Plain,
}

/// A value to put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Text of unknown origin, escaped for where it lands.
    Text(&'a str),
    /// Text this program made for this place, already right.
    Raw(&'a str),
}

/// Replace every variable of `text`, a template called `file`.
///
/// # Errors
/// [`Kind::Invalid`] for a stray `$`, an unknown name, or a value that cannot stand where it is
/// used (a line break in a unit file).
pub fn substitute<'v>(
    file: &str,
    text: &str,
    place: Place,
    lookup: impl Fn(&str) -> Option<Value<'v>>,
) -> Result<String> {
    let mut out = String::with_capacity(text.len() + 256);
    let mut state = State::new(place);
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => {
                state.pass(text);
                out.push_str(text);
            }
            Piece::Dollar => {
                state.pass("$");
                out.push('$');
            }
            Piece::Stray(offset) => {
                let before = &text[..offset];
                let line = before.matches('\n').count() + 1;
                let column = offset - before.rfind('\n').map_or(0, |at| at + 1) + 1;
                fail!(
                    Kind::Invalid,
                    "Invalid placeholder in string: line {line}, col {column}"
                );
            }
            Piece::Name(name) => match lookup(name) {
                None => fail!(
                    Kind::Invalid,
                    "The template file '{file}' still contains an unreplaced value for: ''{name}''"
                ),
                Some(Value::Raw(value)) => {
                    state.pass(value);
                    out.push_str(value);
                }
                Some(Value::Text(value)) => {
                    let escaped = state.escape(value).map_err(|why| {
                        Error::new(
                            Kind::Invalid,
                            format!("the value of {name} {why}, which cannot stand in '{file}'"),
                        )
                    })?;
                    if place == Place::Json && !state.quoted() {
                        state.pass(&escaped);
                    }
                    out.push_str(&escaped);
                }
            },
        }
    }
    Ok(out)
}

/// The names of the variables a template uses.
pub fn variables(text: &str) -> BTreeSet<String> {
    pieces(text)
        .filter_map(|piece| match piece {
            Piece::Name(name) => Some(name.to_owned()),
            _ => None,
        })
        .collect()
}

enum Piece<'t> {
    Text(&'t str),
    Dollar,
    Name(&'t str),
    Stray(usize),
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = &text[at..];
        if rest.is_empty() {
            return None;
        }
        let Some(dollar) = rest.find('$') else {
            at = text.len();
            return Some(Piece::Text(rest));
        };
        if dollar > 0 {
            at += dollar;
            return Some(Piece::Text(&rest[..dollar]));
        }
        let after = &rest[1..];
        if after.starts_with('$') {
            at += 2;
            return Some(Piece::Dollar);
        }
        if let Some(braced) = after.strip_prefix('{') {
            let name = identifier(braced);
            if !name.is_empty() && braced[name.len()..].starts_with('}') {
                at += name.len() + 3;
                return Some(Piece::Name(name));
            }
        } else {
            let name = identifier(after);
            if !name.is_empty() {
                at += name.len() + 1;
                return Some(Piece::Name(name));
            }
        }
        let stray = at;
        at += 1;
        Some(Piece::Stray(stray))
    })
}

fn identifier(text: &str) -> &str {
    let end = text
        .bytes()
        .enumerate()
        .find(|(index, c)| {
            !(c.is_ascii_alphabetic() || *c == b'_' || (*index > 0 && c.is_ascii_digit()))
        })
        .map_or(text.len(), |(index, _)| index);
    &text[..end]
}

/// Where in the output we stand: in which quotes, on which kind of line.
struct State {
    place: Place,
    quote: Option<char>,
    escaped: bool,
    line: String,
}

impl State {
    fn new(place: Place) -> Self {
        Self {
            place,
            quote: None,
            escaped: false,
            line: String::new(),
        }
    }

    fn quoted(&self) -> bool {
        self.quote.is_some()
    }

    fn pass(&mut self, text: &str) {
        for c in text.chars() {
            if c == '\n' && self.place != Place::Json {
                // A line that ends in a backslash goes on, with its key and quotes.
                if !self.escaped {
                    self.quote = None;
                    self.line.clear();
                }
                self.escaped = false;
                continue;
            }
            if self.escaped {
                self.escaped = false;
            } else if c == '\\' && (self.place != Place::Json || self.quoted()) {
                self.escaped = true;
            } else if Some(c) == self.quote {
                self.quote = None;
            } else if self.quote.is_none() && (c == '"' || (c == '\'' && self.place != Place::Json))
            {
                self.quote = Some(c);
            }
            if self.place == Place::Unit {
                self.line.push(c);
            }
        }
    }

    fn escape(&self, value: &str) -> Result<String, &'static str> {
        match self.place {
            Place::Json if self.quoted() => {
                let quoted = serde_json::Value::from(value).to_string();
                Ok(quoted[1..quoted.len() - 1].to_owned())
            }
            Place::Json | Place::Plain => Ok(value.to_owned()),
            Place::Unit => {
                let key = self.line.split('=').next().unwrap_or("").trim();
                let exec = key.starts_with("Exec");
                let words = exec
                    || matches!(
                        key,
                        "Environment" | "EnvironmentFile" | "PassEnvironment" | "BindPaths"
                    );
                self.escape_line(value, words, exec)
            }
            Place::Tmpfiles => self.escape_line(value, true, false),
        }
    }

    /// `words`: the line is split into words with quotes and C escapes, as systemd.syntax(7) says;
    /// `dollar`: and `$` is special.
    fn escape_line(&self, value: &str, words: bool, dollar: bool) -> Result<String, &'static str> {
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err("has a line break or control character");
        }
        if !words && value.ends_with('\\') {
            return Err("ends with a backslash");
        }
        let mut out = String::with_capacity(value.len());
        for c in value.chars() {
            match c {
                '%' => out.push_str("%%"),
                '$' if dollar => out.push_str("$$"),
                '\\' if words => out.push_str("\\\\"),
                '"' | '\'' if words && (self.quote.is_none() || self.quote == Some(c)) => {
                    out.push('\\');
                    out.push(c);
                }
                ' ' if words && self.quote.is_none() => out.push_str("\\x20"),
                '\t' if words && self.quote.is_none() => out.push_str("\\t"),
                c => out.push(c),
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, place: Place, value: &str) -> Result<String> {
        substitute("f", text, place, |name| match name {
            "X" => Some(Value::Text(value)),
            "R" => Some(Value::Raw(value)),
            _ => None,
        })
    }

    #[test]
    fn names_braces_and_dollars() {
        for (text, result) in [
            ("$X", "v"),
            ("${X}y", "vy"),
            ("$$X", "$X"),
            ("a$X-b", "av-b"),
            ("é$X", "év"),
            ("", ""),
        ] {
            assert_eq!(run(text, Place::Plain, "v").unwrap(), result, "{text}");
        }
    }

    #[test]
    fn stray_dollars_and_unknown_names_are_errors_with_the_old_words() {
        for (text, message) in [
            ("a\n  $ b", "Invalid placeholder in string: line 2, col 3"),
            ("${X", "Invalid placeholder in string: line 1, col 1"),
            ("$1", "Invalid placeholder in string: line 1, col 1"),
            (
                "$NO",
                "The template file 'f' still contains an unreplaced value for: ''NO''",
            ),
        ] {
            let error = run(text, Place::Plain, "v").unwrap_err();
            assert_eq!(error.to_string(), message, "{text}");
        }
    }

    #[test]
    fn json_values_are_escaped_inside_strings_only() {
        let evil = "a\"],\n\"x\\";
        let text = run(r#"{"a": "pre $X post"}"#, Place::Json, evil).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["a"], format!("pre {evil} post"));
        let list = run("[$X]", Place::Json, "\"CAP_A\",\n\"CAP_B\"\n").unwrap();
        assert_eq!(
            serde_json::from_str::<Vec<String>>(&list).unwrap(),
            ["CAP_A", "CAP_B"]
        );
        // An escaped quote before the variable does not end the string; a raw value that leaves
        // quotes balanced does not confuse what follows.
        let text = run(r#"["\"$X", $R, "$X"]"#, Place::Json, "\"q\"").unwrap();
        let list: Vec<String> = serde_json::from_str(&text).unwrap();
        assert_eq!(list, ["\"\"q\"", "q", "\"q\""]);
    }

    #[test]
    fn unit_values_cannot_add_directives_words_or_specifiers() {
        for (text, value, result) in [
            ("Description=$X", "50% \"a b\"", "Description=50%% \"a b\""),
            ("ExecStart=/x $X", "a b'$c", "ExecStart=/x a\\x20b\\'$$c"),
            ("ExecStart=/x \"$X\"", "a \"b", "ExecStart=/x \"a \\\"b\""),
            ("ExecStart=/x '$X'", "a\"b'", "ExecStart=/x 'a\"b\\''"),
            ("Environment=A=$X", "a b", "Environment=A=a\\x20b"),
            ("ExecStart=/x \\\n  $X", "a b", "ExecStart=/x \\\n  a\\x20b"),
        ] {
            assert_eq!(run(text, Place::Unit, value).unwrap(), result, "{text}");
        }
        for value in ["a\nExecStartPre=/evil", "a\rb", "a\\"] {
            assert!(
                run("Description=$X", Place::Unit, value).is_err(),
                "{value:?}"
            );
        }
        assert_eq!(
            run("d $X 0700", Place::Tmpfiles, "/a b%u").unwrap(),
            "d /a\\x20b%%u 0700"
        );
        assert_eq!(
            run("ExecStart=$R", Place::Unit, "a 'b'").unwrap(),
            "ExecStart=a 'b'"
        );
    }

    #[test]
    fn variables_are_listed_without_dollars() {
        let names = variables("$A ${B} $$C $ $A");
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["A", "B"]);
    }
}
