use std::fmt;

/// The highest CPU number a mask may name.
const CPU_MAX: usize = 1023;

/// A set of operating-system CPU numbers, sorted, not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreMask {
    cpus: Vec<usize>,
}

/// What is wrong with a mask, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreMaskError {
    /// The whole text.
    pub text: String,
    /// Byte offset in `text` at which parsing stopped.
    pub position: usize,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for CoreMaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "core mask {:?}, at position {}: {}", self.text, self.position + 1, self.reason)
    }
}

impl std::error::Error for CoreMaskError {}

impl CoreMask {
    /// Parses what SPDK's `-m` takes: a hexadecimal mask (`0x3`, `F0`), or a list of CPUs and ranges (`[0,2-3]`,
    /// `0,1`, `2-5`). A text without `[`, `,` and `-` is a mask, so `10` is CPU 4, as in SPDK.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn parse(text: &str) -> Result<CoreMask, CoreMaskError> {
        let trimmed = text.trim();
        let start = text.len() - text.trim_start().len();
        let parsed = if let Some(inner) = trimmed.strip_prefix('[') {
            match inner.strip_suffix(']') {
                Some(list) => parse_list(list, start + 1),
                None => Err((start + trimmed.len(), "the closing ] is missing".to_owned())),
            }
        } else if trimmed.contains([',', '-']) {
            parse_list(trimmed, start)
        } else {
            parse_hex(trimmed, start)
        };
        let mut cpus =
            parsed.map_err(|(position, reason)| CoreMaskError { text: text.to_owned(), position, reason })?;
        cpus.sort_unstable();
        cpus.dedup();
        Ok(CoreMask { cpus })
    }

    /// The CPUs, ascending.
    #[must_use]
    pub fn cpus(&self) -> &[usize] {
        &self.cpus
    }
}

impl fmt::Display for CoreMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "[";
        let mut rest = self.cpus.as_slice();
        while let Some(&first) = rest.first() {
            let run = rest.iter().enumerate().take_while(|&(i, &cpu)| cpu == first + i).count();
            write!(f, "{separator}{first}")?;
            if run > 1 {
                write!(f, "-{}", first + run - 1)?;
            }
            separator = ",";
            rest = rest.get(run..).unwrap_or(&[]);
        }
        f.write_str("]")
    }
}

type Parsed = Result<Vec<usize>, (usize, String)>;

fn parse_hex(text: &str, start: usize) -> Parsed {
    let (digits, offset) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, start + 2),
        None => (text, start),
    };
    if digits.is_empty() {
        return Err((offset, "a hexadecimal mask or a list such as [0,2-3] is expected".to_owned()));
    }
    let mut cpus = Vec::new();
    for (index, character) in digits.char_indices() {
        let Some(value) = character.to_digit(16) else {
            return Err((offset + index, format!("{character:?} is not a hexadecimal digit")));
        };
        let nibbles_after = digits.len() - index - 1;
        for bit in (0..4).filter(|bit| value & (1 << bit) != 0) {
            let cpu = nibbles_after.saturating_mul(4) + bit;
            if cpu > CPU_MAX {
                return Err((offset + index, format!("CPU {cpu} is beyond the highest, {CPU_MAX}")));
            }
            cpus.push(cpu);
        }
    }
    if cpus.is_empty() {
        return Err((offset, "the mask names no CPU".to_owned()));
    }
    Ok(cpus)
}

fn parse_list(text: &str, start: usize) -> Parsed {
    let mut cpus = Vec::new();
    let mut position = start;
    for item in text.split(',') {
        match item.split_once('-') {
            None => cpus.push(parse_cpu(item, position)?),
            Some((low, high)) => {
                let first = parse_cpu(low, position)?;
                let last = parse_cpu(high, position + low.len() + 1)?;
                if first > last {
                    return Err((position, format!("the range {first}-{last} runs backwards")));
                }
                cpus.extend(first..=last);
            }
        }
        position += item.len() + 1;
    }
    Ok(cpus)
}

fn parse_cpu(text: &str, position: usize) -> Result<usize, (usize, String)> {
    let digits = text.trim();
    if digits.is_empty() {
        return Err((position, "a CPU number is missing".to_owned()));
    }
    if let Some((index, character)) =
        text.char_indices().find(|(_, c)| !c.is_ascii_digit() && !c.is_whitespace())
    {
        return Err((position + index, format!("{character:?} is not part of a CPU number")));
    }
    match digits.parse::<usize>() {
        Ok(cpu) if cpu <= CPU_MAX => Ok(cpu),
        Ok(_) => Err((position, format!("CPU {digits} is beyond the highest, {CPU_MAX}"))),
        Err(_) => Err((position, format!("{digits:?} is not a CPU number"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> Vec<usize> {
        CoreMask::parse(text).unwrap().cpus
    }

    #[test]
    fn masks_and_lists_name_the_same_cpus() {
        assert_eq!(cpus("0x3"), [0, 1]);
        assert_eq!(cpus(" 0X10 "), [4]);
        assert_eq!(cpus("F0"), [4, 5, 6, 7]);
        assert_eq!(cpus("10"), [4]);
        assert_eq!(cpus("[0,2-3]"), [0, 2, 3]);
        assert_eq!(cpus("0,1"), [0, 1]);
        assert_eq!(cpus("[ 3 , 0-1 , 1 ]"), [0, 1, 3]);
        assert_eq!(cpus("[7]"), [7]);
        assert_eq!(cpus("0x1000000000000000000000000"), [96]);
    }

    #[test]
    fn it_shows_as_a_list_that_parses_again() {
        let mask = CoreMask::parse("0x2D").unwrap();
        assert_eq!(mask.to_string(), "[0,2-3,5]");
        assert_eq!(CoreMask::parse(&mask.to_string()).unwrap(), mask);
    }

    #[test]
    fn errors_say_what_and_where() {
        let wrong = |text: &str| CoreMask::parse(text).unwrap_err();
        assert_eq!(wrong("0x3g").position, 3);
        assert_eq!(wrong("[0,2-x]").position, 5);
        assert_eq!(wrong("[0,1").position, 4);
        assert_eq!(wrong("[3-1]").position, 1);
        assert_eq!(wrong("0,,1").position, 2);
        assert_eq!(wrong("[5000]").reason, "CPU 5000 is beyond the highest, 1023");
        assert!(wrong("0x0").reason.contains("no CPU"));
        assert!(wrong("").reason.contains("expected"));
        assert!(wrong("[]").reason.contains("missing"));
        assert!(wrong("[99999999999999999999999]").reason.contains("not a CPU number"));
        assert!(wrong(&format!("1{}", "0".repeat(300))).reason.contains("beyond"));
        assert_eq!(
            wrong("[0,2-x]").to_string(),
            "core mask \"[0,2-x]\", at position 6: 'x' is not part of a CPU number"
        );
    }
}
