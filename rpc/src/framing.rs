//! Where one JSON text ends and the next begins, found byte by byte as they arrive: linear however the bytes are
//! split, and bounded before anything is parsed.

/// Bounds of one request text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramingLimits {
    /// Bytes of one text.
    pub bytes_max: usize,
    /// Nested arrays and objects.
    pub depth_max: u32,
    /// Values in one text (more precisely: brackets opened, colons and commas).
    pub values_max: u32,
}

impl Default for FramingLimits {
    fn default() -> FramingLimits {
        FramingLimits { bytes_max: 1024 * 1024, depth_max: 64, values_max: 65_536 }
    }
}

/// Why the bytes cannot be cut into texts any more. The stream is lost from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// A text must begin with `{` or `[`.
    #[error("expected a request object or a batch array, found byte 0x{0:02x}")]
    Garbage(u8),
    /// A bracket closes what it did not open.
    #[error("brackets do not match")]
    Mismatch,
    /// More than [`FramingLimits::bytes_max`].
    #[error("the request is longer than {0} bytes")]
    TooLarge(usize),
    /// More than [`FramingLimits::depth_max`].
    #[error("the request nests deeper than {0} levels")]
    TooDeep(u32),
    /// More than [`FramingLimits::values_max`].
    #[error("the request has more than {0} values")]
    TooMany(u32),
}

/// Cuts a stream of bytes into JSON texts.
#[derive(Debug)]
pub struct Framer {
    limits: FramingLimits,
    buffer: Vec<u8>,
    /// Bytes of `buffer` already looked at.
    scanned: usize,
    /// Open brackets of the text under way: true for `{`.
    open: Vec<bool>,
    in_string: bool,
    escaped: bool,
    values: u32,
}

impl Framer {
    /// An empty framer.
    #[must_use]
    pub fn new(limits: FramingLimits) -> Framer {
        Framer {
            limits,
            buffer: Vec::new(),
            scanned: 0,
            open: Vec::new(),
            in_string: false,
            escaped: false,
            values: 0,
        }
    }

    /// Takes bytes as they came. Call [`Framer::next_text`] until it gives `None` before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// True when a text has begun and not ended.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.open.is_empty()
    }

    /// The next whole text, `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FramingError`]; nothing more comes after one.
    pub fn next_text(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if self.open.is_empty() {
                // Between texts: white space is skipped. SPDK's clients may also end a text with NUL.
                if matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0) {
                    self.scanned += 1;
                    continue;
                }
                self.buffer.drain(..self.scanned);
                self.scanned = 0;
                if !matches!(byte, b'{' | b'[') {
                    return Err(FramingError::Garbage(byte));
                }
                self.values = 0;
            }
            self.scanned += 1;
            if self.scanned > self.limits.bytes_max {
                return Err(FramingError::TooLarge(self.limits.bytes_max));
            }
            if self.take(byte)? {
                let rest = self.buffer.split_off(self.scanned);
                let text = std::mem::replace(&mut self.buffer, rest);
                self.scanned = 0;
                return Ok(Some(text));
            }
        }
        if self.open.is_empty() {
            self.buffer.clear();
            self.scanned = 0;
        }
        Ok(None)
    }

    /// Looks at one byte of a text; true when it was the last one.
    fn take(&mut self, byte: u8) -> Result<bool, FramingError> {
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
            }
            return Ok(false);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                self.count()?;
                if self.open.len() >= self.limits.depth_max as usize {
                    return Err(FramingError::TooDeep(self.limits.depth_max));
                }
                self.open.push(byte == b'{');
            }
            b'}' | b']' => {
                if self.open.pop() != Some(byte == b'}') {
                    return Err(FramingError::Mismatch);
                }
                return Ok(self.open.is_empty());
            }
            b',' | b':' => self.count()?,
            _ => {}
        }
        Ok(false)
    }

    fn count(&mut self) -> Result<(), FramingError> {
        self.values += 1;
        if self.values > self.limits.values_max {
            Err(FramingError::TooMany(self.limits.values_max))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(framer: &mut Framer) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(text) = framer.next_text().unwrap() {
            texts.push(String::from_utf8(text).unwrap());
        }
        texts
    }

    #[test]
    fn texts_back_to_back_and_split_anywhere() {
        let stream = br#"{"a":"}\"{"}[{"b":[]},{}]  {"c":1}"#;
        for cut in 0..stream.len() {
            let mut framer = Framer::new(FramingLimits::default());
            framer.push(&stream[..cut]);
            let mut texts = all(&mut framer);
            framer.push(&stream[cut..]);
            texts.extend(all(&mut framer));
            assert_eq!(texts, [r#"{"a":"}\"{"}"#, r#"[{"b":[]},{}]"#, r#"{"c":1}"#], "cut at {cut}");
            assert!(!framer.is_partial());
        }
    }

    #[test]
    fn garbage_and_mismatch_are_refused() {
        for (bytes, error) in [
            (&b"hello"[..], FramingError::Garbage(b'h')),
            (b"}", FramingError::Garbage(b'}')),
            (b"{]", FramingError::Mismatch),
            (b"[1}", FramingError::Mismatch),
        ] {
            let mut framer = Framer::new(FramingLimits::default());
            framer.push(bytes);
            assert_eq!(framer.next_text(), Err(error));
        }
    }

    #[test]
    fn limits_hold_before_the_text_ends() {
        let limits = FramingLimits { bytes_max: 100, depth_max: 4, values_max: 10 };
        let mut framer = Framer::new(limits);
        framer.push(format!("{{\"a\":\"{}", "x".repeat(100)).as_bytes());
        assert_eq!(framer.next_text(), Err(FramingError::TooLarge(100)));
        let mut framer = Framer::new(limits);
        framer.push(b"[[[[[");
        assert_eq!(framer.next_text(), Err(FramingError::TooDeep(4)));
        let mut framer = Framer::new(limits);
        framer.push(b"[1,2,3,4,5,6,7,8,9,10,11");
        assert_eq!(framer.next_text(), Err(FramingError::TooMany(10)));
        let mut framer = Framer::new(limits);
        framer.push(format!("[\"{}\"]", "x".repeat(96)).as_bytes());
        assert!(framer.next_text().unwrap().is_some(), "exactly the bound is allowed");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_texts(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let run = |pieces: &[&[u8]]| {
                let mut framer = Framer::new(FramingLimits::default());
                let mut texts = Vec::new();
                for piece in pieces {
                    framer.push(piece);
                    loop {
                        match framer.next_text() {
                            Ok(Some(text)) => texts.push(Ok(text)),
                            Ok(None) => break,
                            Err(error) => { texts.push(Err(error)); return texts; }
                        }
                    }
                }
                texts
            };
            let cut = cut.min(bytes.len());
            prop_assert_eq!(run(&[&bytes]), run(&[&bytes[..cut], &bytes[cut..]]));
        }
    }
}
