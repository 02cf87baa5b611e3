//! Numbers as text of a fixed width, where a format string would cost more than the event's own bytes.

/// Fills `out` with the low digits of a number to the base of 16.
pub fn set_hex(value: u64, out: &mut [u8]) {
    set_hex_of(b"0123456789abcdef", value, out);
}

fn set_hex_of(digits: &[u8; 16], value: u64, out: &mut [u8]) {
    let mut rest = value;
    for digit in out.iter_mut().rev() {
        *digit = digits[usize::try_from(rest & 15).expect("four bits")];
        rest >>= 4;
    }
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
    push_hex_of(b"0123456789abcdef", value, out);
}

/// The same with large letters, as PostgreSQL writes positions in its WAL.
pub fn push_hex_upper(value: u64, out: &mut Vec<u8>) {
    push_hex_of(b"0123456789ABCDEF", value, out);
}

fn push_hex_of(digits: &[u8; 16], value: u64, out: &mut Vec<u8>) {
    let count = (u64::BITS - value.leading_zeros()).div_ceil(4).max(1);
    let at = out.len();
    out.resize(at + count as usize, b'0');
    set_hex_of(digits, value, &mut out[at..]);
}

/// The number that `text` is to the base of 16; it has one to sixteen digits and nothing else.
pub fn parse_hex(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    let mut number = 0;
    for &byte in text {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return None,
        };
        number = number << 4 | u64::from(digit);
    }
    Some(number)
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
