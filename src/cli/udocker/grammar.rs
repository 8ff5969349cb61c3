//! The words of udocker's command line: general options, a command, its options, and what it is about.

/// How an option of a command is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// It stands alone.
    Nothing,
    /// `--option=value`, `--option value`, `-o=value` or `-o value`.
    Value,
}

/// An option: its names, the long one first, and what it takes.
pub type Opt = (&'static [&'static str], Takes);

/// What was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// Options by their first names, in order.
    pub options: Vec<(&'static str, String)>,
    /// The first word that is no option, and all after it.
    pub rest: Vec<String>,
}

impl Words {
    /// Take the options that stand before anything else.
    ///
    /// # Errors
    /// The words that are none of the options.
    pub fn read(known: &[Opt], words: &[String]) -> Result<Self, Vec<String>> {
        let mut out = Self::default();
        let mut unknown = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                out.rest = words.cloned().collect();
                break;
            }
            // A dash alone is stdin or stdout.
            if !word.starts_with('-') || word == "-" {
                out.rest.push(word.clone());
                out.rest.extend(words.by_ref().cloned());
                break;
            }
            let (name, joined) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let found = known.iter().find(|(names, _)| names.contains(&name));
            let first = |names: &'static [&'static str]| names.first().copied().unwrap_or_default();
            match (found, joined) {
                (Some((names, Takes::Nothing)), None) => {
                    out.options.push((first(names), String::new()));
                }
                (Some((names, Takes::Value)), Some(value)) => {
                    out.options.push((first(names), value));
                }
                (Some((names, Takes::Value)), None) => {
                    let mut ahead = words.clone();
                    match ahead.next().filter(|value| !value.starts_with('-')) {
                        Some(value) => {
                            out.options.push((first(names), value.clone()));
                            words = ahead;
                        }
                        None => unknown.push(word.clone()),
                    }
                }
                _ => unknown.push(word.clone()),
            }
        }
        if unknown.is_empty() {
            Ok(out)
        } else {
            Err(unknown)
        }
    }

    /// Whether an option is there.
    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(option, _)| *option == name)
    }

    /// The last value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// All values of an option.
    pub fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &str> {
        let named = self
            .options
            .iter()
            .filter(move |(option, _)| *option == name);
        named.map(|(_, value)| value.as_str())
    }

    /// What the command is about, if it is one thing.
    pub fn one(&self) -> Option<&str> {
        match self.rest.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<Words, Vec<String>> {
        let known: [Opt; 3] = [
            (&["--volume", "-v"], Takes::Value),
            (&["--name"], Takes::Value),
            (&["--rm"], Takes::Nothing),
        ];
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        Words::read(&known, &words)
    }

    #[test]
    fn options_come_before_anything_else() {
        let words = read("--rm -v=/a -v /b:/c --name=x image ls --rm").unwrap();
        assert_eq!(words.rest, ["image", "ls", "--rm"]);
        assert!(words.has("--rm"));
        assert_eq!(
            words.values("--volume").collect::<Vec<_>>(),
            ["/a", "/b:/c"]
        );
        assert_eq!(words.value("--name"), Some("x"));
        assert_eq!(read("--name= x").unwrap().value("--name"), Some(""));
        assert_eq!(read("-").unwrap().rest, ["-"]);
        for (bad, unknown) in [
            ("--no x", "--no"),
            ("--rm=1 x", "--rm=1"),
            ("--name --rm x", "--name"),
        ] {
            assert_eq!(read(bad), Err(vec![unknown.to_owned()]), "{bad}");
        }
    }
}
