//! Points in time as dates.

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;

/// The last second of the last year that X.509 can name, 9999.
const SECONDS_MAX: i64 = 253_402_300_799;

/// The date; later ones than X.509 can name become the last of these.
pub(crate) fn date(at: UnixTime) -> OffsetDateTime {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(SECONDS_MAX).min(SECONDS_MAX);
    OffsetDateTime::from_unix_timestamp(seconds).expect("the crate has all years up to 9999")
}

/// As in RFC 3339, in UTC and to the second: `2027-01-15T08:00:00Z`.
pub fn rfc3339(at: UnixTime) -> String {
    let date = date(at);
    let (year, month, day) = date.to_calendar_date();
    let (hour, minute, second) = date.to_hms();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_written_as_in_rfc_3339() {
        for (seconds, expected) in
            [(0, "1970-01-01T00:00:00Z"), (1_800_000_000, "2027-01-15T08:00:00Z"), (u64::MAX, "9999-12-31T23:59:59Z")]
        {
            assert_eq!(rfc3339(UnixTime::since_unix_epoch(Duration::from_secs(seconds))), expected);
        }
    }
}
