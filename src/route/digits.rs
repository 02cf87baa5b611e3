//! Numbers as text of a fixed width, where a format string would cost more than the event's own bytes.

/// Fills `out` with the low digits of a number to the base of 16.
#[inline]
pub fn set_hex(value: u64, out: &mut [u8]) {
    set_hex_of(SMALL, value, out);
}

/// How far the letters are from where they would follow the digits in ASCII.
const SMALL: u64 = (b'a' - b'0' - 10) as u64;
const LARGE: u64 = (b'A' - b'0' - 10) as u64;

#[inline]
fn set_hex_of(letters: u64, value: u64, out: &mut [u8]) {
    let mut rest = value;
    for part in out.rchunks_mut(8) {
        let digits = eight_hex_digits(letters, rest);
        match <&mut [u8; 8]>::try_from(&mut *part) {
            Ok(part) => *part = digits,
            Err(_) => part.copy_from_slice(&digits[8 - part.len()..]),
        }
        rest >>= 32;
    }
}

/// Of the low half of a number, all at once: a byte of `spread` for each.
#[inline]
fn eight_hex_digits(letters: u64, value: u64) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut spread = value & 0xFFFF_FFFF;
    spread = (spread | spread << 16) & 0x0000_FFFF_0000_FFFF;
    spread = (spread | spread << 8) & 0x00FF_00FF_00FF_00FF;
    spread = (spread | spread << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    let is_letter = (spread + 6 * ONES) >> 4 & ONES;
    (spread + u64::from(b'0') * ONES + is_letter * letters).to_be_bytes()
}

/// Fills `out` with a number and leading zeros; it has room for the number.
pub fn set_digits(value: u64, out: &mut [u8]) {
    let (mut rest, mut at) = (value, out.len());
    loop {
        at -= 1;
        out[at] = b'0' + u8::try_from(rest % 10).expect("one digit");
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out[..at].fill(b'0');
}

/// Adds one to a number that was written with leading zeros; it has room for the sum.
#[inline]
pub fn count_up(digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
}

/// Appends each byte as two digits to the base of 16.
pub fn push_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        let at = out.len();
        out.extend_from_slice(b"00");
        set_hex(byte.into(), &mut out[at..]);
    }
}

/// Appends a number to the base of 16, without leading zeros.
pub fn push_hex(value: u64, out: &mut Vec<u8>) {
    push_hex_of(SMALL, value, out);
}

/// The same with large letters, as PostgreSQL writes positions in its WAL.
pub fn push_hex_upper(value: u64, out: &mut Vec<u8>) {
    push_hex_of(LARGE, value, out);
}

fn push_hex_of(letters: u64, value: u64, out: &mut Vec<u8>) {
    let count = (u64::BITS - value.leading_zeros()).div_ceil(4).max(1);
    let at = out.len();
    out.resize(at + count as usize, b'0');
    set_hex_of(letters, value, &mut out[at..]);
}

/// Of each byte that is a digit to the base of 16 its value, else [`NO_DIGIT`].
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value as usize] as usize] = value;
        values[b"0123456789ABCDEF"[value as usize] as usize] = value;
        value += 1;
    }
    values
};
const NO_DIGIT: u8 = 0xFF;

/// The number that `text` is to the base of 16; it has one to sixteen digits and nothing else.
#[inline]
pub fn parse_hex(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    let (mut number, mut seen) = (0, 0);
    for &byte in text {
        let digit = VALUES[usize::from(byte)];
        seen |= digit;
        number = number << 4 | u64::from(digit & 15);
    }
    (seen != NO_DIGIT).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_format_strings_write_them() {
        for value in [0, 1, 9, 10, 15, 16, 255, 256, 987_654_321, u64::MAX >> 1, u64::MAX] {
            let (mut hex, mut upper, mut wide, mut digits) = (Vec::new(), Vec::new(), [0; 16], [0; 20]);
            push_hex(value, &mut hex);
            push_hex_upper(value, &mut upper);
            set_hex(value, &mut wide);
            set_digits(value, &mut digits);
            assert_eq!(hex, format!("{value:x}").as_bytes());
            assert_eq!(upper, format!("{value:X}").as_bytes());
            assert_eq!(wide, format!("{value:016x}").as_bytes());
            assert_eq!(digits, format!("{value:020}").as_bytes());
            assert_eq!((parse_hex(&hex), parse_hex(&wide)), (Some(value), Some(value)));
            for width in 0..24 {
                let (mut narrow, digits) = (vec![0; width], format!("{value:024x}"));
                set_hex(value, &mut narrow);
                assert_eq!(narrow, &digits.as_bytes()[24 - width..]);
            }
            let mut next = digits;
            count_up(&mut next);
            assert_eq!(next, format!("{:020}", u128::from(value) + 1).as_bytes());
        }
    }

    #[test]
    fn every_byte_is_the_digit_that_it_is() {
        for byte in 0..=u8::MAX {
            let value = char::from(byte).to_digit(16).map(u64::from);
            assert_eq!(
                (parse_hex(&[byte]), parse_hex(&[b'f', byte])),
                (value, value.map(|value| 0xF0 + value)),
                "{byte}"
            );
        }
    }

    #[test]
    fn what_is_no_hexadecimal_number_is_none() {
        assert_eq!(parse_hex(b"00fFaA"), Some(0xFFAA));
        for wrong in [&b""[..], b"+1", b"-1", b"0x1", b"g", b" 1", b"00000000000000001", "\u{661}".as_bytes()] {
            assert_eq!(parse_hex(wrong), None, "{}", wrong.escape_ascii());
        }
    }
}
