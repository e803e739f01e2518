//! Deserializes TOML with errors that name the line, the key and what is expected, and never the value found: the value may
//! be a PIN or a token.
//!
//! The errors of `toml` are text with the value in it. Here the file is parsed to a tree with positions, and serde reads the
//! tree with an error type that does not take the value.

use std::{fmt, vec};

use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, MapAccess, Unexpected, Visitor,
        value::{MapAccessDeserializer, SeqDeserializer, StrDeserializer},
    },
    forward_to_deserialize_any,
};
use thiserror::Error;
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

/// A TOML text that does not fit the expected type.
#[derive(Debug, Error)]
#[error("line {line}: {problem}")]
pub struct TomlError {
    /// The line, from 1.
    pub line: usize,
    problem: Failure,
}

/// Deserializes a TOML text.
///
/// # Errors
/// The text is not TOML, or does not fit `T`. The error holds no value of the text.
pub fn parse_toml<T: DeserializeOwned>(text: &str) -> Result<T, TomlError> {
    let read = DeTable::parse(text)
        .map_err(|error| Failure { at: error.span().map(|span| span.start), ..Problem::Syntax.into() })
        .and_then(|root| {
            let span = root.span();
            T::deserialize(Node(Spanned::new(span, DeValue::Table(root.into_inner()))))
        });
    read.map_err(|problem| {
        let before = text.get(..problem.at.unwrap_or(0)).unwrap_or_default();
        TomlError { line: before.matches('\n').count() + 1, problem }
    })
}

#[derive(Debug)]
struct Failure {
    /// The byte in the text.
    at: Option<usize>,
    /// The keys from the root.
    path: Vec<String>,
    problem: Problem,
}

#[derive(Debug, Error)]
enum Problem {
    #[error("not valid TOML: check quotes, brackets and that each key stands once")]
    Syntax,
    #[error("unknown field `{field}`, expected one of: {}", expected.join(", "))]
    UnknownField { field: String, expected: &'static [&'static str] },
    #[error("missing field `{0}`")]
    MissingField(&'static str),
    #[error("expected one of: {}", .0.join(", "))]
    Variant(&'static [&'static str]),
    #[error("expected {0}")]
    Value(String),
    #[error("the value does not have the format of this key")]
    Format,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { at: None, path: Vec::new(), problem }
    }
}

impl Failure {
    /// The innermost position is the most exact, so a position that is set stays.
    fn at(mut self, start: usize) -> Self {
        self.at.get_or_insert(start);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path[..] {
            [] => write!(f, "{}", self.problem),
            _ => write!(f, "{}: {}", self.path.join("."), self.problem),
        }
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    /// The message may repeat the value, so it is dropped.
    fn custom<M: fmt::Display>(_message: M) -> Self {
        Problem::Format.into()
    }

    fn invalid_type(_found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Problem::Value(expected.to_string()).into()
    }

    fn invalid_value(_found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Problem::Value(expected.to_string()).into()
    }

    fn invalid_length(_found: usize, expected: &dyn Expected) -> Self {
        Problem::Value(expected.to_string()).into()
    }

    fn unknown_variant(_found: &str, expected: &'static [&'static str]) -> Self {
        Problem::Variant(expected).into()
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Problem::UnknownField { field: field.to_owned(), expected }.into()
    }

    fn missing_field(field: &'static str) -> Self {
        Problem::MissingField(field).into()
    }
}

struct Node<'i>(Spanned<DeValue<'i>>);

impl<'de> IntoDeserializer<'de, Failure> for Node<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let start = self.0.span().start;
        let read = match self.0.into_inner() {
            DeValue::String(text) => visitor.visit_str(&text),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => visitor.visit_i64(number),
                Err(_) => Err(Problem::Value("an integer of 64 bits".to_owned()).into()),
            },
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => visitor.visit_f64(number),
                Err(_) => Err(Problem::Format.into()),
            },
            DeValue::Boolean(boolean) => visitor.visit_bool(boolean),
            DeValue::Datetime(_) => Err(de::Error::invalid_type(Unexpected::Other("a date"), &visitor)),
            DeValue::Array(array) => visitor.visit_seq(SeqDeserializer::new(array.into_iter().map(Node))),
            DeValue::Table(table) => visitor.visit_map(Fields::new(table)),
        };
        read.map_err(|failure: Failure| failure.at(start))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let start = self.0.span().start;
        let read = match self.0.into_inner() {
            DeValue::String(name) => visitor.visit_enum(StrDeserializer::new(&name)),
            DeValue::Table(table) if table.len() == 1 => {
                visitor.visit_enum(MapAccessDeserializer::new(Fields::new(table)))
            }
            DeValue::Table(_) => Err(Problem::Value("a table with exactly one key".to_owned()).into()),
            _ => Err(de::Error::invalid_type(Unexpected::Enum, &visitor)),
        };
        read.map_err(|failure: Failure| failure.at(start))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

struct Fields<'i> {
    rest: vec::IntoIter<(Spanned<DeString<'i>>, Spanned<DeValue<'i>>)>,
    value: Option<(String, Node<'i>)>,
}

impl<'i> Fields<'i> {
    fn new(table: DeTable<'i>) -> Self {
        Self { rest: table.into_iter().collect::<Vec<_>>().into_iter(), value: None }
    }
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        let (start, key) = (key.span().start, key.into_inner().into_owned());
        let read = seed.deserialize(StrDeserializer::new(&key)).map_err(|failure: Failure| failure.at(start));
        self.value = Some((key, Node(value)));
        read.map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let (key, value) = self.value.take().ok_or(Problem::Format)?;
        seed.deserialize(value).map_err(|mut failure| {
            failure.path.insert(0, key);
            failure
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        #[serde(default)]
        numbers: Vec<u16>,
        address: Option<std::net::IpAddr>,
        source: Option<crate::SecretSource>,
        mode: Option<Mode>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Mode {
        One,
        Two,
    }

    fn refused(text: &str) -> String {
        parse_toml::<Sample>(text).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn values_of_each_kind_are_read() {
        let text = "name = \"a\"\nnumbers = [1, 0x1F]\nmode = \"two\"\naddress = \"::1\"\n[source]\nenv = \"PIN\"";
        let sample: Sample = parse_toml(text).unwrap();
        assert_eq!((sample.name.as_str(), &sample.numbers[..], sample.mode), ("a", &[1, 31][..], Some(Mode::Two)));
        assert_eq!(sample.address, Some(std::net::Ipv6Addr::LOCALHOST.into()));
        assert!(matches!(sample.source, Some(crate::SecretSource::Env(name)) if name == "PIN"));
    }

    #[test]
    fn errors_name_line_key_and_expectation() {
        for (text, expected) in [
            ("name = 2468", "line 1: name: expected a string"),
            ("name = \"a\"\nnumbers = [1,\n 70000]", "line 3: numbers: expected u16"),
            ("name = \"a\"\nmode = \"2468\"", "line 2: mode: expected one of: one, two"),
            (
                "name = \"a\"\nsource = { env = \"a\", file = \"2468\" }",
                "line 2: source: expected a table with exactly one key",
            ),
            ("name = \"a\"\nsource = { pin = \"2468\" }", "line 2: source: expected one of: file, env, descriptor"),
            ("name = \"a\"\naddress = \"2468\"", "line 2: address: the value does not have the format of this key"),
            ("numbers = []", "line 1: missing field `name`"),
            (
                "name = \"a\"\n\nother = 2468",
                "line 3: unknown field `other`, expected one of: name, numbers, address, source, mode",
            ),
        ] {
            assert_eq!(refused(text), expected);
        }
    }

    #[test]
    fn a_syntax_error_names_its_line_only() {
        for text in ["name = \"a\"\nmode = 24\"68", "name = \"a\"\nname = \"2468\"", "name = \"a\"\n2468"] {
            let message = refused(text);
            assert!(message.starts_with("line 2: not valid TOML") && !message.contains("68"), "{message}");
        }
    }
}
