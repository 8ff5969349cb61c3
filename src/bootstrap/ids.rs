//! Other owners than in the image: ranges of ids, all at once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::fail;
use crate::runtime::userns::{self, Mapping};

/// Ids from a first one on become others: `START:TARGET:COUNT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    users: Vec<Range>,
    groups: Vec<Range>,
    /// Whether there are no others than these.
    is_all: bool,
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
        Ok(Self {
            users,
            groups,
            is_all: false,
        })
    }

    /// The same as root of a user namespace has to say it. Without ranges the ids are those inside: 0 is the caller,
    /// the others are the caller's subordinate ones. With ranges they become what they would for root, so that all they
    /// become must be the caller's.
    ///
    /// # Errors
    /// [`Kind::Permission`] if it is not.
    pub fn inside(&self, mapping: &Mapping) -> Result<Self> {
        let whole = |ranges: &[userns::Range]| {
            let one = |range: &userns::Range| Range {
                start: range.inside,
                target: range.inside,
                count: range.size,
            };
            ranges.iter().map(one).collect()
        };
        let each = |what: &str, own: &[Range], ranges: &[userns::Range]| match own {
            [] => Ok(whole(ranges)),
            own => {
                let all: Result<Vec<Vec<Range>>> = own
                    .iter()
                    .map(|range| inside(what, *range, ranges))
                    .collect();
                all.map(|all| all.concat())
            }
        };
        Ok(Self {
            users: each("user", &self.users, &mapping.users)?,
            groups: each("group", &self.groups, &mapping.groups)?,
            is_all: true,
        })
    }

    /// True if everybody stays who they are.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// What a user becomes.
    ///
    /// # Errors
    /// [`Kind::Permission`] for one that the caller may not give files to.
    pub fn user(&self, id: u32) -> Result<u32> {
        self.map("user", &self.users, id)
    }

    /// What a group becomes.
    ///
    /// # Errors
    /// [`Kind::Permission`] for one that the caller may not give files to.
    pub fn group(&self, id: u32) -> Result<u32> {
        self.map("group", &self.groups, id)
    }

    fn map(&self, what: &str, ranges: &[Range], id: u32) -> Result<u32> {
        let mut found = ranges
            .iter()
            .filter(|range| id >= range.start && id - range.start < range.count);
        match found.next() {
            Some(range) => Ok(range.target + (id - range.start)),
            None if self.is_all => fail!(
                Kind::Permission,
                "the image has files of {what} {id}, which becomes nobody of yours: ranges of ids or /etc/sub{}id give it one, \"--owners recorded\" notes it",
                &what[..1]
            ),
            None => Ok(id),
        }
    }
}

/// The parts of a range whose targets are inside of a user namespace, named as there.
fn inside(what: &str, range: Range, mapping: &[userns::Range]) -> Result<Vec<Range>> {
    let (mut parts, mut done) = (Vec::new(), 0);
    while done < range.count {
        let target = range.target + done;
        let mut around = mapping
            .iter()
            .filter(|own| target >= own.outside && target - own.outside < own.size);
        let Some(own) = around.next() else {
            fail!(
                Kind::Permission,
                "{what} {target}, which the range {range} names, is neither you nor in your range of /etc/sub{}id",
                &what[..1]
            );
        };
        let from = target - own.outside;
        let count = (own.size - from).min(range.count - done);
        parts.push(Range {
            start: range.start + done,
            target: own.inside + from,
            count,
        });
        done += count;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_mapped_at_once() {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let ids = Ids::new(ranges(&["0:1000:1", "1000:2000:1"]), ranges(&["0:5:10"])).unwrap();
        assert_eq!(
            [0, 1000, 7].map(|id| ids.user(id).unwrap()),
            [1000, 2000, 7]
        );
        assert_eq!([0, 9, 10].map(|id| ids.group(id).unwrap()), [5, 14, 10]);
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

    #[test]
    fn inside_of_a_namespace_only_ids_of_the_caller_are_given() {
        let range = |inside, outside, size| userns::Range {
            inside,
            outside,
            size,
        };
        let own = vec![
            range(0, 1000, 1),
            range(1, 100_000, 10),
            range(11, 300_000, 5),
        ];
        let mapping = Mapping {
            users: own.clone(),
            groups: own,
        };
        let plain = Ids::default().inside(&mapping).unwrap();
        assert_eq!([0, 1, 15].map(|id| plain.user(id).unwrap()), [0, 1, 15]);
        assert!(plain.user(16).is_err() && plain.group(99).is_err());
        let ids = |texts: &[&str]| {
            let ranges: Vec<Range> = texts.iter().map(|text| text.parse().unwrap()).collect();
            Ids::new(ranges, Vec::new()).unwrap().inside(&mapping)
        };
        let mapped = ids(&["0:100005:5", "33:1000:1", "40:300002:3"]).unwrap();
        let found = [0, 4, 33, 42].map(|id| mapped.user(id).unwrap());
        assert_eq!(found, [6, 10, 0, 15]);
        // What has no range is nobody's, and what is somebody else's cannot be given.
        assert!(mapped.user(5).is_err());
        for bad in ["0:0:1", "0:100005:6", "0:999:2"] {
            assert!(ids(&[bad]).is_err(), "{bad}");
        }
    }
}
