//! Foreign bytes, read front to back.
//!
//! In: a slice. Out: integers, strings and sub-slices borrowed from it, or a [`DecodeError`] that says which message,
//! which field, where. This is the only place of the decoder with offsets: every length is checked against the bytes at
//! hand before it is used, nothing is allocated, nothing panics. It does not know what the fields mean.

use std::{error::Error, fmt};

use super::{lsn::Lsn, name::Name};

/// Bytes the protocol does not allow. It does not know where in the WAL it happened; the caller adds the LSN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// The kind of message, as the manual names it; "pgoutput message" where even that is unknown.
    pub message: &'static str,
    /// The field that was being read.
    pub field: &'static str,
    /// Which column or relation of the message, counted from 1, where the field belongs to one.
    pub item: Option<u32>,
    /// Where the field begins, in bytes from the start of the message.
    pub offset: usize,
    /// What was wrong with it.
    pub fault: Fault,
}

/// What can be wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The message ends before the field does.
    Short {
        /// Bytes the field takes.
        needed: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// A string without the zero byte that ends it.
    Unterminated,
    /// A string that is not UTF-8, although UTF-8 was asked for as client encoding.
    NotUtf8,
    /// A length or count below zero.
    Negative(i32),
    /// A byte the manual does not list here.
    Unknown(u8),
    /// An LSN of zero where there must be one.
    Unset,
    /// Bytes after the last field.
    Left(usize),
    /// A kind of message that this version of the protocol does not have.
    NotInVersion {
        /// The version that was asked for at START_REPLICATION.
        asked: u8,
        /// The first version with this kind of message.
        needed: u8,
    },
}

impl DecodeError {
    /// The same, in the column or relation number `index`, counted from 0.
    #[must_use]
    pub(super) fn of_item(self, index: u32) -> Self {
        DecodeError { item: Some(index.saturating_add(1)), ..self }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.field)?;
        if let Some(item) = self.item {
            write!(f, " of number {item}")?;
        }
        write!(f, " at byte {}: ", self.offset)?;
        match self.fault {
            Fault::Short { needed, left } => write!(f, "takes {needed} bytes, {left} are left"),
            Fault::Unterminated => f.write_str("a string without its final zero byte"),
            Fault::NotUtf8 => f.write_str("not UTF-8"),
            Fault::Negative(number) => write!(f, "{number} is below zero"),
            Fault::Unknown(byte) => write!(f, "unknown value 0x{byte:02x} ('{}')", byte.escape_ascii()),
            Fault::Unset => f.write_str("is zero"),
            Fault::Left(bytes) => write!(f, "{bytes} bytes too many"),
            Fault::NotInVersion { asked, needed } => {
                write!(f, "belongs to protocol version {needed}, version {asked} was asked for")
            }
        }
    }
}

impl Error for DecodeError {}

/// Reads one message. Each verb takes the name of the field it reads, for the error.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    message: &'static str,
    whole: usize,
    rest: &'a [u8],
}

macro_rules! integers {
    ($($name:ident),*) => {$(
        /// The next integer, in network order.
        #[inline]
        pub fn $name(&mut self, field: &'static str) -> Result<$name, DecodeError> {
            Ok($name::from_be_bytes(self.array(field)?))
        }
    )*};
}

impl<'a> Cursor<'a> {
    /// At the first byte of `bytes`, which hold a `message`.
    #[inline]
    pub fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Cursor { message, whole: bytes.len(), rest: bytes }
    }

    /// From here on errors name the message so: its first byte has told what it is.
    #[inline]
    pub fn rename(&mut self, message: &'static str) {
        self.message = message;
    }

    integers!(u8, u16, u32, u64, i16, i32, i64);

    /// The next eight bytes as a position in the WAL.
    #[inline]
    pub fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        Ok(Lsn(self.u64(field)?))
    }

    /// The same, where zero is no position.
    #[inline]
    pub fn lsn_set(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        let before = self.offset();
        match self.lsn(field)? {
            Lsn::ZERO => Err(self.error(field, before, Fault::Unset)),
            lsn => Ok(lsn),
        }
    }

    /// The next byte, made into a value; `None` from `value` means that the manual does not list the byte.
    #[inline]
    pub fn choice<T>(&mut self, field: &'static str, value: impl FnOnce(u8) -> Option<T>) -> Result<T, DecodeError> {
        let before = self.offset();
        let byte = self.u8(field)?;
        value(byte).ok_or_else(|| self.error(field, before, Fault::Unknown(byte)))
    }

    /// The next byte as a flag: 0 or 1.
    #[inline]
    pub fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        self.choice(field, |byte| match byte {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        })
    }

    /// The next four bytes as a length or count, which is never below zero.
    #[inline]
    pub fn count(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let before = self.offset();
        let number = self.i32(field)?;
        usize::try_from(number).map_err(|_| self.error(field, before, Fault::Negative(number)))
    }

    /// The next string, without the zero byte that ends it.
    #[inline]
    pub fn cstr(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let before = self.offset();
        let Some(end) = memchr::memchr(0, self.rest) else {
            return Err(self.error(field, before, Fault::Unterminated));
        };
        let (text, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        str::from_utf8(text).map_err(|_| self.error(field, before, Fault::NotUtf8))
    }

    /// The next string, whose encoding may not be known.
    #[inline]
    pub fn name(&mut self, field: &'static str) -> Result<Name<'a>, DecodeError> {
        let Some(end) = memchr::memchr(0, self.rest) else {
            return Err(self.error(field, self.offset(), Fault::Unterminated));
        };
        let (text, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(Name::new(text))
    }

    /// The next `count` bytes.
    #[inline]
    pub fn bytes(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(count) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(self.short(field, count)),
        }
    }

    /// The bytes that `read` reads.
    #[inline]
    pub fn spanned(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<&'a [u8], DecodeError> {
        let before = self.rest;
        read(self)?;
        Ok(&before[..before.len() - self.rest.len()])
    }

    /// What has not been read yet.
    #[inline]
    pub fn remaining(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes all that has not been read yet.
    #[inline]
    pub fn take_remaining(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// The message has no more fields: bytes that are left over are an error.
    #[inline]
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(self.error("end", self.offset(), Fault::Left(left))),
        }
    }

    /// Bytes read so far.
    #[inline]
    pub fn offset(&self) -> usize {
        self.whole - self.rest.len()
    }

    /// `fault` in the `field` that begins at `offset`.
    #[cold]
    pub fn error(&self, field: &'static str, offset: usize, fault: Fault) -> DecodeError {
        DecodeError { message: self.message, field, item: None, offset, fault }
    }

    #[cold]
    fn short(&self, field: &'static str, needed: usize) -> DecodeError {
        self.error(field, self.offset(), Fault::Short { needed, left: self.rest.len() })
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => Err(self.short(field, N)),
        }
    }
}
