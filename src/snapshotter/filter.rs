//! containerd's filter grammar: parsed once, matched against records.
//!
//! ```text
//! filter   := [ selector { "," selector } ]          all must match; the empty filter matches all
//! selector := path [ operator value ]                without operator: is the field present?
//! path     := field { "." field }
//! field    := quoted | [A-Za-z0-9_]+
//! operator := "==" | "!=" | "~="
//! value    := quoted | any text up to "," or a blank
//! quoted   := a Go string literal; after "~=" also /…/ and |…|
//! ```
//!
//! The meaning follows containerd where it surprises: an absent field reads as the empty text for `!=`
//! and `~=`, and `parent` is a field of every snapshot, empty without one. Blanks between tokens are
//! skipped everywhere.

use regex::Regex;

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Kind, Snapshot};

#[cfg(test)]
mod tests;

/// Longest filter that is read, in bytes: a name and a label value with room for quotes.
const FILTER_LEN_MAX: usize = 16 * 1024;
/// Bound of a compiled regular expression, in bytes; the `regex` crate refuses larger ones.
const REGEX_SIZE_MAX: usize = 1 << 20;

/// One filter: selectors that must all match.
#[derive(Debug, Clone)]
pub struct Filter {
    selectors: Vec<Selector>,
}

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filter {
    /// Errors with `InvalidArgument`, naming the place in the text.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self { selectors: Vec::new() });
        }
        if text.len() > FILTER_LEN_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("filter of {} bytes is longer than {FILTER_LEN_MAX}", text.len()),
            ));
        }
        let mut parser = Parser { text, at: 0 };
        let mut selectors = vec![parser.selector()?];
        loop {
            parser.skip_blanks();
            match parser.peek() {
                None => return Ok(Self { selectors }),
                Some(',') => {
                    parser.bump();
                    selectors.push(parser.selector()?);
                }
                Some(_) => return Err(parser.error(parser.at, "expected a comma or the end")),
            }
        }
    }

    /// True if every selector matches.
    #[must_use]
    pub fn matches(&self, snapshot: &Snapshot) -> bool {
        self.selectors.iter().all(|selector| {
            let field = field_of(snapshot, &selector.path);
            match &selector.test {
                Test::Present => field.is_some(),
                Test::Equal(value) => field == Some(value),
                Test::NotEqual(value) => field.unwrap_or("") != value,
                Test::Matches(regex) => regex.is_match(field.unwrap_or("")),
            }
        })
    }

    /// The name that every match must have, if the filter says so: a look-up instead of a walk.
    pub(crate) fn exact_name(&self) -> Option<&str> {
        self.selectors.iter().find_map(|selector| match &selector.test {
            Test::Equal(value) if selector.path.len() == 1 && selector.path[0] == "name" => Some(value.as_str()),
            Test::Equal(_) | Test::Present | Test::NotEqual(_) | Test::Matches(_) => None,
        })
    }
}

fn field_of<'a>(snapshot: &'a Snapshot, path: &[String]) -> Option<&'a str> {
    match path {
        [one] if one == "name" => Some(snapshot.name.as_str()),
        [one] if one == "parent" => Some(snapshot.parent.as_ref().map_or("", |parent| parent.as_str())),
        [one] if one == "kind" => Some(match snapshot.kind {
            Kind::Active => "active",
            Kind::View => "view",
            Kind::Committed => "committed",
        }),
        [first, rest @ ..] if first == "labels" && !rest.is_empty() => {
            snapshot.labels.get(&rest.join(".")).map(String::as_str)
        }
        _ => None,
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.bump();
        }
    }

    /// Takes characters while `wanted` says so and returns them.
    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.bump();
        }
        &self.text[start..self.at]
    }

    fn error(&self, at: usize, what: &str) -> Error {
        let (before, after) = self.text.split_at(at);
        Error::new(
            ErrorKind::InvalidArgument,
            format!("filter {:?}: {what} at byte {at}, between {before:?} and {after:?}", self.text),
        )
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.bump();
            path.push(self.field()?);
        }
        self.skip_blanks();
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }

        let start = self.at;
        let operator = self.take_while(|c| matches!(c, '=' | '!' | '~')).to_owned();
        let alternative_quotes = match operator.as_str() {
            "==" | "!=" => false,
            "~=" => true,
            _ => return Err(self.error(start, "expected an operator (==, != or ~=)")),
        };
        self.skip_blanks();
        let value_at = self.at;
        let value = self.value(alternative_quotes)?;
        let test = match operator.as_str() {
            "==" => Test::Equal(value),
            "!=" => Test::NotEqual(value),
            _ => {
                let regex = regex::RegexBuilder::new(&value).size_limit(REGEX_SIZE_MAX).build();
                Test::Matches(regex.map_err(|e| self.error(value_at, &format!("bad regular expression ({e})")))?)
            }
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String> {
        self.skip_blanks();
        let start = self.at;
        match self.peek() {
            Some('"') => self.quoted(),
            Some(c) if c.is_ascii_alphanumeric() || c == '_' => {
                Ok(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_').to_owned())
            }
            _ => Err(self.error(start, "expected a field name or a quoted text")),
        }
    }

    fn value(&mut self, alternative_quotes: bool) -> Result<String> {
        let start = self.at;
        match self.peek() {
            Some('"') => self.quoted(),
            Some('/' | '|') if alternative_quotes => self.quoted(),
            Some('/' | '|') => Err(self.error(start, "only ~= takes a value in this quote; use double quotes")),
            None | Some(',' | '.') => Err(self.error(start, "expected a value or a quoted text")),
            Some(_) => {
                let value = self.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control()).to_owned();
                if value.is_empty() {
                    return Err(self.error(start, "expected a value or a quoted text"));
                }
                Ok(value)
            }
        }
    }

    /// A Go string literal; the character at hand is its quote.
    fn quoted(&mut self) -> Result<String> {
        let start = self.at;
        let quote = self.bump();
        // Bytes, because \x and octal escapes name bytes, several of which may make one character.
        let mut bytes = Vec::new();
        loop {
            match self.bump() {
                None | Some('\n') => return Err(self.error(start, "quoted text is not closed")),
                end if end == quote => break,
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(c) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.error(start, "quoted text is not UTF-8"))
    }

    /// What follows a backslash.
    fn escape(&mut self, quote: Option<char>, bytes: &mut Vec<u8>) -> Result<()> {
        let start = self.at - 1;
        let escaped = self.bump();
        match escaped {
            Some('a') => bytes.push(0x07),
            Some('b') => bytes.push(0x08),
            Some('f') => bytes.push(0x0c),
            Some('n') => bytes.push(b'\n'),
            Some('r') => bytes.push(b'\r'),
            Some('t') => bytes.push(b'\t'),
            Some('v') => bytes.push(0x0b),
            Some('\\') => bytes.push(b'\\'),
            Some('x') => bytes.push(self.byte(start, 2, 16)?),
            Some('0'..='7') => {
                self.at -= 1;
                bytes.push(self.byte(start, 3, 8)?);
            }
            Some(kind @ ('u' | 'U')) => {
                let code = self.number(start, if kind == 'u' { 4 } else { 8 }, 16)?;
                let c = char::from_u32(code).ok_or_else(|| self.error(start, "escape names no character"))?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            Some(c) if escaped == quote => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => return Err(self.error(start, "unknown escape")),
        }
        Ok(())
    }

    fn byte(&mut self, start: usize, digits: u32, radix: u32) -> Result<u8> {
        let number = self.number(start, digits, radix)?;
        u8::try_from(number).map_err(|_| self.error(start, "escape is above one byte"))
    }

    fn number(&mut self, start: usize, digits: u32, radix: u32) -> Result<u32> {
        let mut number: u32 = 0;
        for _ in 0..digits {
            let digit = self.peek().and_then(|c| c.to_digit(radix));
            let digit = digit.ok_or_else(|| self.error(start, "escape has too few digits"))?;
            self.bump();
            // Eight hexadecimal digits are the most: they fit.
            number = number.wrapping_mul(radix) + digit;
        }
        Ok(number)
    }
}
