//! Small texts of people's making: durations, prefixes, tags, times.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// `90m`, `24h`, `30d`, `1h30m`; units s, m, h, d, w.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration; write 90m, 24h or 30d");
    let mut rest = text.trim();
    let mut seconds = 0u64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let mut after = rest[digits..].chars();
        let unit = match after.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 7 * 86_400,
            _ => return Err(wrong()),
        };
        seconds = number
            .checked_mul(unit)
            .and_then(|n| seconds.checked_add(n))
            .ok_or_else(wrong)?;
        rest = after.as_str();
    }
    // A century is longer than anything meant, and keeps times within what RFC 3339 can say.
    const LONGEST: u64 = 100 * 365 * 86_400;
    if seconds == 0 || seconds > LONGEST {
        return Err(format!(
            "`{text}` is out of range: more than nothing, at most 100 years"
        ));
    }
    Ok(Duration::from_secs(seconds))
}

/// The number of a user, node or key: digits only, so that a name such as `+5` is none.
pub fn parse_id(text: &str) -> Option<i64> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// A prefix without host bits; an address stands for itself alone.
pub fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let prefix = match text.parse::<IpNet>() {
        Ok(prefix) => prefix,
        Err(_) => IpNet::from(
            text.parse::<IpAddr>()
                .map_err(|_| format!("`{text}` is no prefix; write 10.0.0.0/24"))?,
        ),
    };
    if prefix.trunc() != prefix {
        return Err(format!(
            "`{text}` has bits set beyond its length; did you mean {}?",
            prefix.trunc()
        ));
    }
    Ok(prefix)
}

/// `tag:name`; the `tag:` may be left out.
pub fn parse_tag(text: &str) -> Result<String, String> {
    let name = text.trim();
    let name = name.strip_prefix("tag:").unwrap_or(name);
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    if !first || name.len() > 63 || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err(format!(
            "`{text}` is no tag; write tag:name, with letters, digits and hyphens, beginning with a letter"
        ));
    }
    Ok(format!("tag:{name}"))
}

/// Whether a character does something to a terminal instead of being shown: controls, and what hides text or turns its direction.
pub fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// A character to show, or what stands in for one that would steer the terminal.
pub fn harmless(c: char) -> char {
    if is_steering(c) { '\u{fffd}' } else { c }
}

/// A text of many lines to show, with nothing in it that would steer the terminal.
pub fn harmless_lines(text: &str) -> String {
    let keep = |c| {
        if matches!(c, '\n' | '\t') {
            c
        } else {
            harmless(c)
        }
    };
    text.chars().map(keep).collect()
}

/// How many columns a terminal gives a character: none to accents on the one before, two to East Asian ones and pictures.
/// The ranges are the large ones of UAX 11; a rare character that is missed shifts what follows it by one column.
pub fn columns(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}'
        | '\u{483}'..='\u{489}'
        | '\u{591}'..='\u{5bd}'
        | '\u{610}'..='\u{61a}'
        | '\u{64b}'..='\u{65f}'
        | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{fe20}'..='\u{fe2f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{303e}'
        | '\u{3041}'..='\u{a4cf}'
        | '\u{a960}'..='\u{a97f}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1f64f}'
        | '\u{1f680}'..='\u{1f6ff}'
        | '\u{1f900}'..='\u{1f9ff}'
        | '\u{1fa70}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

/// `2027-01-31T18:00:00Z` as RFC 3339 has it, in universal time and to the microsecond, which is what the database keeps.
pub fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    let time = OffsetDateTime::parse(text.trim(), &Rfc3339).ok();
    // The last hours of the year 9999 may lie beyond it there.
    let time = time.and_then(|time| time.checked_to_offset(UtcOffset::UTC));
    time.and_then(|time| time.replace_microsecond(time.microsecond()).ok())
        .ok_or_else(|| format!("`{text}` is no time; write 2027-01-31T18:00:00Z"))
}

pub fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339)
        .unwrap_or_else(|_| time.unix_timestamp().to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,60}") {
            let _ = (parse_duration(&text), parse_prefix(&text), parse_tag(&text));
            let _ = parse_time(&text);
            let _ = crate::model::AuthKeyText::parse(&text);
            let _ = crate::config::Url::parse(&text);
        }
    }

    #[test]
    fn what_turns_or_hides_text_is_not_shown_and_other_letters_are() {
        let shown: String = "a\u{202e}b\u{200b}\u{feff}\t\u{9b}é日\u{301}"
            .chars()
            .map(harmless)
            .collect();
        assert_eq!(
            shown,
            "a\u{fffd}b\u{fffd}\u{fffd}\u{fffd}\u{fffd}é日\u{301}"
        );
        assert_eq!(shown.chars().map(columns).sum::<usize>(), 10);
    }

    #[test]
    fn lines_and_tabs_are_shown_as_they_are() {
        let text = "a\tb\n\u{1b}[2Jc\r\n";
        assert_eq!(harmless_lines(text), "a\tb\n\u{fffd}[2Jc\u{fffd}\n");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse_duration("24h").unwrap(), Duration::from_secs(86_400));
        assert_eq!(parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(
            parse_duration("90d").unwrap(),
            Duration::from_secs(90 * 86_400)
        );
        for wrong in [
            "",
            "h",
            "12",
            "0s",
            "1x",
            "-1h",
            "99999999999999999999h",
            "1000000w",
            "1h 30m",
            "٣h",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_read_as_universal_time() {
        let read = |text| parse_time(text).map(rfc3339);
        assert_eq!(
            read("2027-01-31T18:00:00+02:00").unwrap(),
            "2027-01-31T16:00:00Z"
        );
        assert_eq!(
            read("2027-01-31T18:00:00.1234567Z").unwrap(),
            "2027-01-31T18:00:00.123456Z"
        );
        for wrong in [
            "",
            "tomorrow",
            "2027-01-31",
            "2027-01-31 18:00",
            "9999-12-31T23:59:59-01:00",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn prefixes_with_host_bits_are_refused_with_a_suggestion() {
        assert_eq!(parse_prefix("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert!(
            parse_prefix("10.0.0.1/24")
                .unwrap_err()
                .contains("10.0.0.0/24")
        );
    }

    #[test]
    fn tags_get_their_prefix() {
        assert_eq!(parse_tag("web").unwrap(), "tag:web");
        assert_eq!(parse_tag("tag:web").unwrap(), "tag:web");
        for wrong in ["", "tag:", "tag:1a", "tag:a b", "tag:tag:a"] {
            assert!(parse_tag(wrong).is_err(), "{wrong}");
        }
    }
}
