//! Amounts as a person says them: durations and bytes.
//!
//! In: seconds or bytes. Out: text such as `12 hours` or `1.5 GB`.

/// `12 hours`, `3 days`: what a person says.
pub fn duration(seconds: f64) -> String {
    let (number, unit) = match seconds {
        s if s < 120.0 => (s, "second"),
        s if s < 7_200.0 => (s / 60.0, "minute"),
        s if s < 172_800.0 => (s / 3600.0, "hour"),
        s if s < 365.0 * 86_400.0 => (s / 86_400.0, "day"),
        _ => return "more than a year".to_owned(),
    };
    let number = number.round();
    format!("{number} {unit}{}", if number == 1.0 { "" } else { "s" })
}

/// `1.5 GB`.
pub fn bytes(count: f64) -> String {
    let mut count = count;
    for unit in ["bytes", "kB", "MB", "GB"] {
        if count < 1024.0 {
            let precision = usize::from(unit != "bytes" && count < 10.0);
            return format!("{count:.precision$} {unit}");
        }
        count /= 1024.0;
    }
    format!("{count:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_the_largest_unit_that_it_fills() {
        assert_eq!((duration(3600.0 * 30.0), bytes(1536.0)), ("30 hours".to_owned(), "1.5 kB".to_owned()));
    }
}
