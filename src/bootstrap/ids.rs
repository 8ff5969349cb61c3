//! Other owners than in the image: ranges of ids, all at once.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};
use crate::fail;

/// Ids from a first one on become others: `START:TARGET:COUNT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first one in the image.
    pub start: u32,
    /// The first one on the disk.
    pub target: u32,
    /// How many.
    pub count: u32,
}

impl FromStr for Range {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let text = format!("\"{text}\" is not a range of ids: START:TARGET:COUNT");
            Error::new(Kind::Usage, text)
        };
        let numbers: Vec<u32> = text
            .split(':')
            .map(|word| word.parse().map_err(|_| bad()))
            .collect::<Result<_>>()?;
        let [start, target, count] = numbers[..] else {
            return Err(bad());
        };
        // The last id means nobody in particular to the kernel.
        let fits = |first: u32| first.checked_add(count).is_some();
        if count == 0 || !fits(start) || !fits(target) {
            return Err(bad());
        }
        Ok(Self {
            start,
            target,
            count,
        })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.start, self.target, self.count)
    }
}

/// What users and groups become.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    users: Vec<Range>,
    groups: Vec<Range>,
}

impl Ids {
    /// # Errors
    /// [`Kind::Usage`] if an id would become two, or two ids one.
    pub fn new(users: Vec<Range>, groups: Vec<Range>) -> Result<Self> {
        for ranges in [&users, &groups] {
            for (index, one) in ranges.iter().enumerate() {
                for other in &ranges[index + 1..] {
                    let meet = |a: u32, b: u32| a < b + other.count && b < a + one.count;
                    if meet(one.start, other.start) || meet(one.target, other.target) {
                        fail!(Kind::Usage, "the ranges {one} and {other} overlap");
                    }
                }
            }
        }
        Ok(Self { users, groups })
    }

    /// True if everybody stays who they are.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// What a user becomes.
    pub fn user(&self, id: u32) -> u32 {
        map(&self.users, id)
    }

    /// What a group becomes.
    pub fn group(&self, id: u32) -> u32 {
        map(&self.groups, id)
    }
}

fn map(ranges: &[Range], id: u32) -> u32 {
    let mut found = ranges
        .iter()
        .filter(|range| id >= range.start && id - range.start < range.count);
    found
        .next()
        .map_or(id, |range| range.target + (id - range.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_mapped_at_once() {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let ids = Ids::new(ranges(&["0:1000:1", "1000:2000:1"]), ranges(&["0:5:10"])).unwrap();
        assert_eq!([0, 1000, 7].map(|id| ids.user(id)), [1000, 2000, 7]);
        assert_eq!([0, 9, 10].map(|id| ids.group(id)), [5, 14, 10]);
        for bad in [&["0:0:10", "5:100:1"][..], &["0:100:10", "20:105:1"]] {
            assert!(Ids::new(ranges(bad), Vec::new()).is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "1:2",
            "1:2:3:4",
            "-1:0:1",
            "0:0:0",
            "4294967295:0:1",
            "a:b:c",
        ] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }
}
