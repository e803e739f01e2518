//! Lists the keys that a configuration type reads, from its `Deserialize` implementation.

use std::fmt;

use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

/// A key that a configuration type accepts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KnownKey {
    /// The key with its sections, for example `token.module`. An element of an array of tables has no index: `peers.rights`.
    pub path: String,
    /// The type skips the value (`IgnoredAny`), because another program reads it.
    pub is_ignored: bool,
}

/// The keys of a type, sorted: sections and every key inside them. The variants of an enum are values, not keys.
///
/// ```
/// use serde::{Deserialize, de::IgnoredAny};
///
/// #[derive(Deserialize)]
/// struct File {
///     token: Option<Token>,
///     listen: Option<IgnoredAny>,
/// }
///
/// #[derive(Deserialize)]
/// struct Token {
///     label: String,
/// }
///
/// let paths: Vec<_> = config::known_keys::<File>().into_iter().map(|key| key.path).collect();
/// assert_eq!(paths, ["listen", "token", "token.label"]);
/// ```
pub fn known_keys<T: DeserializeOwned>() -> Vec<KnownKey> {
    let mut keys = Vec::new();
    let mut sections = vec![Vec::new()];
    while let Some(section) = sections.pop() {
        let Some(Found::Fields(fields)) = find::<T>(&section) else { continue };
        for field in fields {
            let path = [&section[..], &[*field]].concat();
            let is_ignored = matches!(find::<T>(&path), Some(Found::Ignored));
            keys.push(KnownKey { path: path.join("."), is_ignored });
            sections.push(path);
        }
    }
    keys.sort();
    keys
}

/// The type of the value at a path.
enum Found {
    /// A struct with these fields.
    Fields(&'static [&'static str]),
    /// A value that the type skips.
    Ignored,
    /// Any other value.
    Value,
}

/// Deserializes `T` from a document that holds the keys of `path` alone. The value at the end of the path is an error that
/// carries what the type expects there.
fn find<T: DeserializeOwned>(path: &[&'static str]) -> Option<Found> {
    T::deserialize(Probe { path }).err().and_then(|stop| stop.0)
}

struct Stop(Option<Found>);

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stop")
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the end of the path")
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<M: fmt::Display>(_message: M) -> Self {
        Self(None)
    }
}

/// A document in which each key has one value: a table with the next key of the path, or the end of the path.
struct Probe<'path> {
    path: &'path [&'static str],
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Stop;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Stop> {
        Err(Stop(Some(Found::Value)))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Stop> {
        Err(Stop(Some(Found::Ignored)))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_seq(Element(self))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        match self.path.split_first() {
            Some((key, rest)) => visitor.visit_map(Field { key, value: Probe { path: rest } }),
            None => Err(Stop(Some(Found::Fields(fields)))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct map enum identifier
    }
}

struct Field<'path> {
    key: &'static str,
    value: Probe<'path>,
}

impl<'de> MapAccess<'de> for Field<'_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        let key: StrDeserializer<'_, Stop> = self.key.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Stop> {
        seed.deserialize(Probe { path: self.value.path })
    }
}

struct Element<'path>(Probe<'path>);

impl<'de> SeqAccess<'de> for Element<'_> {
    type Error = Stop;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Stop> {
        seed.deserialize(Probe { path: self.0.path }).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde::{Deserialize, de::IgnoredAny};

    use super::*;

    #[derive(Deserialize)]
    #[serde(default, deny_unknown_fields)]
    #[allow(dead_code, reason = "only the names of the fields matter")]
    struct File {
        listen: SocketAddr,
        secret: Option<crate::SecretSource>,
        other: Option<IgnoredAny>,
        peers: Vec<Peer>,
    }

    impl Default for File {
        fn default() -> Self {
            Self { listen: ([127, 0, 0, 1], 0).into(), secret: None, other: None, peers: Vec::new() }
        }
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only the names of the fields matter")]
    struct Peer {
        #[serde(rename = "certificate_name")]
        name: String,
        rights: Vec<u8>,
    }

    #[test]
    fn keys_of_nested_sections_are_listed_with_ignored_ones() {
        let keys = known_keys::<File>();
        let listed: Vec<_> = keys.iter().map(|key| (key.path.as_str(), key.is_ignored)).collect();
        let read = ["listen", "other", "peers", "peers.certificate_name", "peers.rights", "secret"];
        assert_eq!(listed, read.map(|path| (path, path == "other")));
    }
}
