//! Maintenance windows: when unattended updates may happen.

use std::str::FromStr;

use crate::error::{Error, Kind, Result};
use crate::fail;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Times of the week in local time: `[DAYS] HH:MM-HH:MM`, several separated by `;`. DAYS are names
/// and ranges as in systemd.time(7): `Mon..Fri`, `Sat,Sun`. A span over midnight belongs to the day
/// it begins on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    text: String,
    spans: Vec<Span>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    days: [bool; 7],
    from: u32,
    to: u32,
}

impl Window {
    /// True if this minute of this day (0 is Monday) is in it.
    pub fn contains(&self, day: usize, minute: u32) -> bool {
        let yesterday = (day + 6) % 7;
        self.spans.iter().any(|span| {
            if span.from < span.to {
                span.days[day] && (span.from..span.to).contains(&minute)
            } else {
                (span.days[day] && minute >= span.from)
                    || (span.days[yesterday] && minute < span.to)
            }
        })
    }

    /// True if it is open now.
    pub fn is_open(&self) -> bool {
        let now = jiff::Zoned::now();
        let day = usize::try_from(now.weekday().to_monday_zero_offset()).unwrap_or(0);
        let minute =
            u32::try_from(now.hour()).unwrap_or(0) * 60 + u32::try_from(now.minute()).unwrap_or(0);
        self.contains(day, minute)
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Window {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let spans = text
            .split(';')
            .map(|part| span(part.trim()))
            .collect::<Option<Vec<_>>>();
        match spans {
            Some(spans) => Ok(Self {
                text: text.to_owned(),
                spans,
            }),
            None => fail!(
                Kind::Invalid,
                "\"{text}\" is not a maintenance window: expected [DAYS] HH:MM-HH:MM, as in \"Sat,Sun 02:00-05:00\""
            ),
        }
    }
}

fn span(text: &str) -> Option<Span> {
    let mut words = text.split_whitespace().rev();
    let (from, to) = words.next()?.split_once('-')?;
    let days = match words.next() {
        None => [true; 7],
        Some(list) => days(list)?,
    };
    let (from, to) = (minute(from)?, minute(to)?);
    (words.next().is_none() && from != to).then_some(Span { days, from, to })
}

fn minute(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str, limit| {
        let plain = text.len() == 2 && text.bytes().all(|c| c.is_ascii_digit());
        text.parse::<u32>().ok().filter(|n| plain && *n < limit)
    };
    // A window may end with the day.
    if text == "24:00" {
        return Some(24 * 60);
    }
    Some(number(hour, 24)? * 60 + number(minute, 60)?)
}

fn days(text: &str) -> Option<[bool; 7]> {
    let day = |name: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(name));
    let mut out = [false; 7];
    for part in text.split(',') {
        match part.split_once("..") {
            None => out[day(part)?] = true,
            Some((from, to)) => {
                let (mut at, to) = (day(from)?, day(to)?);
                out[at] = true;
                while at != to {
                    at = (at + 1) % 7;
                    out[at] = true;
                }
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read_and_know_their_times() {
        let window: Window = "Sat,Sun 02:00-05:00; Mon..Wed 23:30-00:30".parse().unwrap();
        let at = |hour: u32, minute: u32| hour * 60 + minute;
        assert!(window.contains(5, at(2, 0)) && window.contains(6, at(4, 59)));
        assert!(!window.contains(5, at(5, 0)) && !window.contains(4, at(3, 0)));
        assert!(window.contains(2, at(23, 45)));
        assert!(
            window.contains(3, at(0, 15)),
            "a span goes on after midnight"
        );
        assert!(
            !window.contains(0, at(0, 15)),
            "and belongs to the day it began"
        );
        let always: Window = "00:00-24:00".parse().unwrap();
        assert!(always.contains(0, 0) && always.contains(6, at(23, 59)));
        for bad in [
            "",
            "02:00",
            "2:00-3:00",
            "Someday 02:00-03:00",
            "25:00-26:00",
            "a Mon 01:00-02:00",
        ] {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
    }
}
