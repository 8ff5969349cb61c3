//! Which processors something runs on.

use std::str::FromStr;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::error::{Context as _, Error, Kind, Result};

/// A list of processors, as cpuset(7) writes it: `0,2-3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl FromStr for Cpus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::new(
                Kind::Usage,
                format!("\"{text}\" is not a list of processors, as in 0,2-3"),
            )
        };
        let number = |word: &str| {
            let number = word.parse::<usize>().map_err(|_| bad())?;
            if number < CpuSet::MAX_CPU {
                Ok(number)
            } else {
                Err(bad())
            }
        };
        let mut out = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(bad());
            }
            out.extend(first..=last);
        }
        Ok(Self(out))
    }
}

impl Cpus {
    /// Let this process, and all that it starts from now on, run on these only.
    ///
    /// # Errors
    /// [`Kind::Failed`] if there is none of them.
    pub fn apply(&self) -> Result<()> {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|number| set.set(*number));
        sched_setaffinity(None, &set).context(|| "cannot run on these processors".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_numbers_and_ranges() {
        assert_eq!("0,2-4".parse::<Cpus>().unwrap().0, [0, 2, 3, 4]);
        for bad in ["", "a", "1-", "3-1", "0,,1", "99999999"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }
}
