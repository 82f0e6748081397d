//! `strftime` over a pinned clock, in UTC and English, for the templates that print today's date.

/// Longest format that a template may ask for; a date takes ten or twenty bytes.
const FORMAT_BYTES_MAX: usize = 256;

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats a time as Python's `strftime` would.
///
/// # Units
/// `seconds` since the Unix epoch, UTC.
///
/// # Errors
/// Names a directive that is not known, or a time outside the years 0 to 9999.
pub(super) fn strftime(format: &str, seconds: i64) -> Result<String, String> {
    if format.len() > FORMAT_BYTES_MAX {
        return Err("strftime_now: the format is too long".to_owned());
    }
    let date = Date::from_unix(seconds)
        .ok_or_else(|| format!("strftime_now: {seconds} is outside the calendar"))?;
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(next) = rest.next() {
        if next != '%' {
            out.push(next);
            continue;
        }
        match rest.next() {
            // glibc's "no padding" flag, which templates use for days and hours.
            Some('-') => {
                let padded = directive(&date, rest.next())?;
                let bare = padded.trim_start_matches('0');
                out.push_str(if bare.is_empty() { "0" } else { bare });
            }
            directive_char => out.push_str(&directive(&date, directive_char)?),
        }
    }
    Ok(out)
}

fn directive(date: &Date, directive: Option<char>) -> Result<String, String> {
    let hour12 = match date.hour % 12 {
        0 => 12,
        hour => hour,
    };
    Ok(match directive {
        Some('Y') => format!("{:04}", date.year),
        Some('y') => format!("{:02}", date.year % 100),
        Some('m') => format!("{:02}", date.month),
        Some('d') => format!("{:02}", date.day),
        Some('e') => format!("{:2}", date.day),
        Some('j') => format!("{:03}", date.day_of_year),
        Some('H') => format!("{:02}", date.hour),
        Some('I') => format!("{hour12:02}"),
        Some('M') => format!("{:02}", date.minute),
        Some('S') => format!("{:02}", date.second),
        Some('p') => if date.hour < 12 { "AM" } else { "PM" }.to_owned(),
        Some('B') => date.month_name().to_owned(),
        Some('b' | 'h') => date.month_name().chars().take(3).collect(),
        Some('A') => date.day_name().to_owned(),
        Some('a') => date.day_name().chars().take(3).collect(),
        Some('F') => format!("{:04}-{:02}-{:02}", date.year, date.month, date.day),
        Some('T') => format!("{:02}:{:02}:{:02}", date.hour, date.minute, date.second),
        Some('Z') => "UTC".to_owned(),
        Some('z') => "+0000".to_owned(),
        Some('%') => "%".to_owned(),
        Some(other) => return Err(format!("strftime_now: %{other} is not known")),
        None => return Err("strftime_now: the format ends in %".to_owned()),
    })
}

struct Date {
    year: i64,
    month: usize,
    day: i64,
    day_of_year: i64,
    /// 0 is Monday.
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Date {
    /// Howard Hinnant's `civil_from_days`, counting years from March so that leap days come last.
    fn from_unix(seconds: i64) -> Option<Self> {
        let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Years 0 to 9999, within which nothing below can overflow.
        if !(-719_528..=2_932_896).contains(&days) {
            return None;
        }
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year =
            day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_march_year + 2) / 153;
        let day = day_of_march_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let february_end = 59 + i64::from(leap);
        let day_of_year = match month <= 2 {
            true => day_of_march_year - 306 + 1,
            false => day_of_march_year + february_end + 1,
        };
        Some(Self {
            year,
            month: usize::try_from(month).ok()?,
            day,
            day_of_year,
            // Day 0 was a Thursday.
            weekday: usize::try_from((days + 3).rem_euclid(7)).ok()?,
            hour: second_of_day / 3_600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        })
    }

    fn month_name(&self) -> &'static str {
        MONTHS.get(self.month.wrapping_sub(1)).copied().unwrap_or_default()
    }

    fn day_name(&self) -> &'static str {
        DAYS.get(self.weekday).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_known_instants() {
        let all = "%Y-%m-%d %H:%M:%S %A %a %B %b %j %y %I %p %-d %% %F %T";
        let cases = [
            (
                0,
                "1970-01-01 00:00:00 Thursday Thu January Jan 001 70 12 AM 1 % 1970-01-01 00:00:00",
            ),
            (
                951_782_400,
                "2000-02-29 00:00:00 Tuesday Tue February Feb 060 00 12 AM 29 % 2000-02-29 00:00:00",
            ),
            (
                1_795_444_245,
                "2026-11-23 14:30:45 Monday Mon November Nov 327 26 02 PM 23 % 2026-11-23 14:30:45",
            ),
            (
                -1,
                "1969-12-31 23:59:59 Wednesday Wed December Dec 365 69 11 PM 31 % 1969-12-31 23:59:59",
            ),
            (
                1_735_603_200,
                "2024-12-31 00:00:00 Tuesday Tue December Dec 366 24 12 AM 31 % 2024-12-31 00:00:00",
            ),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime(all, seconds).unwrap(), expected);
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("%", 0).is_err());
        assert!(strftime("%Y", i64::MAX).is_err());
        assert!(strftime("%Y", i64::MIN).is_err());
    }
}
