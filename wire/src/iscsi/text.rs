//! Text keys (RFC 7143 §6.1): `key=value` pairs, each ended by a null byte, as login and text PDUs carry them.

use std::fmt::Write as _;

/// The longest key name, in bytes.
pub const KEY_MAX: usize = 63;
/// The longest value, in bytes: the length of the longest binary value. Most keys allow 255.
pub const VALUE_MAX: usize = 8192;

/// Why a text data segment cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextError {
    /// The last pair has no null byte.
    Unterminated,
    /// A pair without `=`.
    NoEqualsSign,
    /// The key is empty, longer than [`KEY_MAX`], or has a byte that is not printable ASCII.
    Key,
    /// The value is longer than [`VALUE_MAX`].
    ValueTooLong,
    /// The value is not UTF-8.
    NotUtf8,
}

impl std::fmt::Display for TextError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TextError::Unterminated => "the last text key has no null byte",
            TextError::NoEqualsSign => "a text key without '='",
            TextError::Key => "an invalid text key name",
            TextError::ValueTooLong => "a text value of more than 8192 bytes",
            TextError::NotUtf8 => "a text value that is not UTF-8",
        })
    }
}

impl std::error::Error for TextError {}

/// The pairs of a data segment, in order. Null bytes beyond the one that ends a pair are skipped. After an error
/// there are no more items.
#[derive(Debug, Clone)]
pub struct Pairs<'a> {
    rest: &'a [u8],
}

/// Reads a text data segment (without its padding).
#[must_use]
pub fn pairs(data: &[u8]) -> Pairs<'_> {
    Pairs { rest: data }
}

fn pair(bytes: &[u8]) -> Result<(&str, &str), TextError> {
    let mut halves = bytes.splitn(2, |&byte| byte == b'=');
    let key = halves.next().unwrap_or(&[]);
    let value = halves.next().ok_or(TextError::NoEqualsSign)?;
    if key.is_empty() || key.len() > KEY_MAX || !key.iter().all(u8::is_ascii_graphic) {
        return Err(TextError::Key);
    }
    if value.len() > VALUE_MAX {
        return Err(TextError::ValueTooLong);
    }
    let key = std::str::from_utf8(key).map_err(|_| TextError::Key)?;
    let value = std::str::from_utf8(value).map_err(|_| TextError::NotUtf8)?;
    Ok((key, value))
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<(&'a str, &'a str), TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some((0, rest)) = self.rest.split_first() {
            self.rest = rest;
        }
        if self.rest.is_empty() {
            return None;
        }
        let mut parts = self.rest.splitn(2, |&byte| byte == 0);
        let bytes = parts.next().unwrap_or(&[]);
        let result = match parts.next() {
            None => Err(TextError::Unterminated),
            Some(rest) => {
                self.rest = rest;
                pair(bytes)
            }
        };
        if result.is_err() {
            self.rest = &[];
        }
        Some(result)
    }
}

/// A pair did not fit; nothing of it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextFull;

impl std::fmt::Display for TextFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no room for the text key")
    }
}

impl std::error::Error for TextFull {}

/// Writes pairs into a buffer of fixed size.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl<'a> Writer<'a> {
    /// A writer that starts at the first byte of `buffer` and never goes beyond it.
    pub fn new(buffer: &'a mut [u8]) -> Writer<'a> {
        Writer { buffer, length: 0 }
    }

    /// Bytes written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Nothing is written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What was written.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or(&[])
    }

    /// Writes `key=value` and a null byte. `value` is anything that can be displayed; a null byte in it would end the
    /// pair early, so it counts as not fitting.
    ///
    /// # Errors
    /// [`TextFull`] when it does not fit; nothing is written then.
    pub fn push(&mut self, key: &str, value: impl std::fmt::Display) -> Result<(), TextFull> {
        let before = self.length;
        let written = write!(self, "{key}={value}").is_ok() && self.put(&[0]);
        if written {
            return Ok(());
        }
        self.length = before;
        Err(TextFull)
    }

    fn put(&mut self, bytes: &[u8]) -> bool {
        let Some(end) = self.length.checked_add(bytes.len()) else { return false };
        let Some(room) = self.buffer.get_mut(self.length..end) else { return false };
        room.copy_from_slice(bytes);
        self.length = end;
        true
    }
}

impl std::fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if text.bytes().all(|byte| byte != 0) && self.put(text.as_bytes()) {
            Ok(())
        } else {
            Err(std::fmt::Error)
        }
    }
}

/// Appends `key=value` and a null byte to `out` unless it would then be longer than `limit` bytes.
///
/// # Errors
/// [`TextFull`] when it would; `out` is unchanged then.
pub fn append_pair(out: &mut Vec<u8>, limit: usize, key: &str, value: &str) -> Result<(), TextFull> {
    let length = out.len().saturating_add(key.len()).saturating_add(value.len()).saturating_add(2);
    if length > limit || key.contains('\0') || value.contains('\0') {
        return Err(TextFull);
    }
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(data: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
        pairs(data).collect()
    }

    #[test]
    fn reads_pairs_in_order_and_skips_extra_nulls() {
        let read = all(b"InitiatorName=iqn.a=b\0\0SessionType=Normal\0X=\0\0").unwrap();
        assert_eq!(read, [("InitiatorName", "iqn.a=b"), ("SessionType", "Normal"), ("X", "")]);
        assert_eq!(all(b"").unwrap(), []);
    }

    #[test]
    fn refuses_what_is_not_a_pair() {
        assert_eq!(all(b"A=1\0B=2"), Err(TextError::Unterminated));
        assert_eq!(all(b"A\0"), Err(TextError::NoEqualsSign));
        assert_eq!(all(b"=1\0"), Err(TextError::Key));
        assert_eq!(all(b"A B=1\0"), Err(TextError::Key));
        assert_eq!(all(b"A=\xFF\0"), Err(TextError::NotUtf8));
        let mut long = vec![b'k'; 63];
        long.extend(b"=v\0");
        assert!(all(&long).is_ok());
        long.insert(0, b'k');
        assert_eq!(all(&long), Err(TextError::Key));
        let mut long = b"k=".to_vec();
        long.extend([b'v'; 8192]);
        long.push(0);
        assert!(all(&long).is_ok());
        long.insert(2, b'v');
        assert_eq!(all(&long), Err(TextError::ValueTooLong));
        let mut stopped = pairs(b"A\0B=1\0");
        assert!(stopped.next().unwrap().is_err());
        assert_eq!(stopped.next(), None);
    }

    #[test]
    fn writes_whole_pairs_or_nothing() {
        let mut buffer = [0xAA; 12];
        let mut writer = Writer::new(&mut buffer);
        writer.push("A", 17).unwrap();
        assert_eq!(writer.push("B", "1234567"), Err(TextFull));
        assert_eq!(writer.push("B", "1\x002"), Err(TextFull));
        writer.push("B", "1234").unwrap();
        assert_eq!(writer.push("", ""), Err(TextFull));
        assert_eq!(writer.written(), b"A=17\0B=1234\0");
        let mut out = Vec::new();
        append_pair(&mut out, 5, "A", "17").unwrap();
        assert_eq!(append_pair(&mut out, 7, "B", ""), Err(TextFull));
        assert_eq!(out, b"A=17\0");
    }
}
