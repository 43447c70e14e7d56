//! The `Date` of responses that have none (RFC 9110, 6.6.1).

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

/// Length of a date in the preferred format (RFC 9110, 5.6.7).
const LENGTH: usize = 29;

/// The current date as text, made anew when the thread's coarse clock has moved and not at every response.
pub struct Date {
    /// Tick of the thread's timers.
    made: Cell<u64>,
    text: Cell<[u8; LENGTH]>,
}

impl Default for Date {
    fn default() -> Self {
        Self { made: Cell::new(u64::MAX), text: Cell::new([b' '; LENGTH]) }
    }
}

impl Date {
    /// The date at this tick of the thread's timers.
    pub fn at(&self, tick: u64) -> [u8; LENGTH] {
        if self.made.replace(tick) != tick {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.text.set(format(now.as_secs()));
        }
        self.text.get()
    }
}

/// Seconds since 1970 in the preferred format, as in `Sun, 06 Nov 1994 08:49:37 GMT`. Years above 9999 are cut.
fn format(seconds: u64) -> [u8; LENGTH] {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let weekday = name(b"ThuFriSatSunMonTueWed", days % 7);
    let (year, month, day) = date_of(days);
    let mut text = *b"Ddd, dd Mmm yyyy hh:mm:ss GMT";
    let two = |number: u64| {
        let digit = |number: u64| b'0' + u8::try_from(number % 10).unwrap_or_default();
        [digit(number / 10), digit(number)]
    };
    let mut put = |at: usize, part: &[u8]| {
        if let Some(place) = text.get_mut(at..at + part.len()) {
            place.copy_from_slice(part);
        }
    };
    put(0, &weekday);
    put(5, &two(day));
    put(8, &name(b"JanFebMarAprMayJunJulAugSepOctNovDec", month));
    put(12, &two(year / 100));
    put(14, &two(year));
    put(17, &two(of_day / 3600));
    put(20, &two(of_day / 60 % 60));
    put(23, &two(of_day % 60));
    text
}

fn name(names: &[u8], number: u64) -> [u8; 3] {
    let at = usize::try_from(number).unwrap_or_default() * 3;
    names.get(at..at + 3).and_then(|name| name.try_into().ok()).unwrap_or_default()
}

/// Year, month from 0 and day from 1 of a day since 1970. Years are counted from March, so that the leap day is a
/// year's last: then months have 153 days in every five.
fn date_of(days: u64) -> (u64, u64, u64) {
    // Day 0 is the first of March of the year 0; 400 years have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let of_month = day - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12;
    (era * 400 + year + u64::from(month < 2), month, of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_as_the_standard_writes_them() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (1_709_251_200, "Fri, 01 Mar 2024 00:00:00 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(String::from_utf8_lossy(&format(seconds)), expected);
        }
    }

    #[test]
    fn a_date_is_made_once_a_tick() {
        let date = Date::default();
        assert!(date.at(0).ends_with(b" GMT"));
        date.text.set([b'x'; LENGTH]);
        assert_eq!(date.at(0), [b'x'; LENGTH]);
        assert_ne!(date.at(1), [b'x'; LENGTH]);
    }
}
