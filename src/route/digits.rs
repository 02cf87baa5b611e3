//! Numbers as text of a fixed width, where a format string would cost more than the event's own bytes.

/// Fills `out` with the low digits of a number to the base of 16.
pub fn set_hex(value: u64, out: &mut [u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut rest = value;
    for digit in out.iter_mut().rev() {
        *digit = HEX[usize::try_from(rest & 15).expect("four bits")];
        rest >>= 4;
    }
}

/// Fills `out` with a number and leading zeros.
pub fn set_digits(value: u64, out: &mut [u8]) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(value).as_bytes();
    let zeros = out.len() - text.len();
    out[..zeros].fill(b'0');
    out[zeros..].copy_from_slice(text);
}

/// Appends a number to the base of 16, without leading zeros.
pub fn push_hex(value: u64, out: &mut Vec<u8>) {
    let digits = (u64::BITS - value.leading_zeros()).div_ceil(4).max(1);
    let at = out.len();
    out.resize(at + digits as usize, b'0');
    set_hex(value, &mut out[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_format_strings_write_them() {
        for value in [0, 1, 9, 10, 15, 16, 255, 256, 987_654_321, u64::MAX >> 1, u64::MAX] {
            let (mut hex, mut wide, mut digits) = (Vec::new(), [0; 16], [0; 20]);
            push_hex(value, &mut hex);
            set_hex(value, &mut wide);
            set_digits(value, &mut digits);
            assert_eq!(hex, format!("{value:x}").as_bytes());
            assert_eq!(wide, format!("{value:016x}").as_bytes());
            assert_eq!(digits, format!("{value:020}").as_bytes());
        }
    }
}
