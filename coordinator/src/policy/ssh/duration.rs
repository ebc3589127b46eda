//! `checkPeriod`: how long a check lasts, as Go writes durations.

use super::super::error::{At, PolicyError};

/// Nanoseconds of the units, longest first; two spellings of the micro sign.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", HOUR),
];
const SECOND: u128 = 1_000_000_000;
const HOUR: u128 = 3_600 * SECOND;
/// The longest period, as the hosted service has it.
const LONGEST: u128 = 168 * HOUR;

/// Whether a period is `always`, or a duration from none to a week.
///
/// It is not kept: no check is ever passed at our server (`control/ssh.rs`).
pub(super) fn check(period: At<&str>) -> Result<(), PolicyError> {
    let written = period.value.trim();
    if written == "always" {
        return Ok(());
    }
    let why = match nanoseconds(written.strip_prefix(['+', '-']).unwrap_or(written)) {
        None => "is no duration",
        Some(length) if length > 0 && written.starts_with('-') => "is negative",
        Some(length) if length > LONGEST => "is longer than a week",
        Some(_) => return Ok(()),
    };
    let message = format!(
        "checkPeriod {written:?} {why}; write \"always\", or like \"1h30m\", up to \"168h\""
    );
    Err(PolicyError::invalid(period.place, message))
}

/// Numbers with units (`1h30m`, `1.5h`), or a bare `0`. What is too long to count is very long.
fn nanoseconds(text: &str) -> Option<u128> {
    match text {
        "" => return None,
        "0" => return Some(0),
        _ => {}
    }
    let mut rest = text;
    let mut sum = 0_u128;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let length = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(length);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum = sum.saturating_add(scaled(number, *scale)?);
        rest = next;
    }
    Some(sum)
}

/// A decimal number times a unit; digits beyond the nanosecond don't count.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole = match whole {
        "" => 0,
        whole => whole.parse::<u128>().unwrap_or(u128::MAX),
    };
    let (part, _) = fraction.bytes().fold((0, scale), |(sum, unit), digit| {
        (sum + u128::from(digit - b'0') * unit / 10, unit / 10)
    });
    Some(whole.saturating_mul(scale).saturating_add(part))
}

#[cfg(test)]
mod tests {
    use super::super::super::error::Place;
    use super::*;

    fn is_good(value: &str) -> bool {
        let place = Place { line: 1, column: 1 };
        check(At { place, value }).is_ok()
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(nanoseconds("1h30m"), Some(5_400 * SECOND));
        assert_eq!(nanoseconds("1.5h"), Some(5_400 * SECOND));
        assert_eq!(nanoseconds(".5s3us"), Some(SECOND / 2 + 3_000));
        assert_eq!(nanoseconds("1µs"), Some(1_000));
        for bad in [
            "", "1", "h", "1x", "1h 30m", "1.2.3s", ".s", "-1s", "1e3s", "٣s",
        ] {
            assert_eq!(nanoseconds(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_period_lasts_a_week_at_most() {
        for good in [
            "always", "0", "0s", "-0s", "30s", " 1h ", "168h", "167h60m", "+1s",
        ] {
            assert!(is_good(good), "{good:?}");
        }
        let long = format!("{}h", "9".repeat(400));
        for bad in [
            "168h0m1s", "200h", "-1m", "abc", "", "-", "--1m", "-+1m", &long,
        ] {
            assert!(!is_good(bad), "{bad:?}");
        }
    }
}
