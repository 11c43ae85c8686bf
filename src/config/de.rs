//! Deserializes the tree into the settings structs.
//!
//! The deserializer is our own for three reasons: text of the environment takes the type of its field, an
//! unknown key is refused with the place where it was written, and every error names key, value and source.
//! It requires of a settings struct: named fields, no `flatten`, enums without data.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::problem::Problem;
use super::tree::{Node, Value};

/// Facts collected while reading.
#[derive(Default)]
pub(super) struct Notes {
    /// The sections that were read, each with its allowed keys.
    pub(super) sections: RefCell<BTreeMap<String, &'static [&'static str]>>,
    /// The replacement for a number that does not fit its type; if `None`, such a number is an error.
    pub(super) instead: Option<Instead>,
    /// The problems of replaced numbers.
    pub(super) unfit: RefCell<Vec<Problem>>,
}

/// The replacement for a number that does not fit its type: the smallest or the largest value of the type.
#[derive(Clone, Copy)]
pub(super) enum Instead {
    Least,
    Most,
}

/// Deserializes one node.
#[derive(Clone, Copy)]
pub(super) struct De<'a> {
    pub(super) node: &'a Node,
    pub(super) key: &'a str,
    pub(super) notes: &'a Notes,
}

macro_rules! whole_numbers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            let expected = || format!("expected a whole number from {} to {}", <$type>::MIN, <$type>::MAX);
            let number = self.whole_number().and_then(|n| <$type>::try_from(n).ok());
            visitor.$visit(match (number, self.notes.instead) {
                (Some(number), _) => number,
                (None, None) => return Err(self.wrong(expected())),
                (None, Some(instead)) => {
                    self.notes.unfit.borrow_mut().push(self.wrong(expected()));
                    match instead {
                        Instead::Least => <$type>::MIN,
                        Instead::Most => <$type>::MAX,
                    }
                }
            })
        }
    )*};
}

impl De<'_> {
    fn wrong(&self, reason: impl Into<String>) -> Problem {
        Problem::of(self.key, self.node, reason)
    }

    fn whole_number(&self) -> Option<i128> {
        match &self.node.value {
            Value::Untyped(text) => text.replace('_', "").parse().ok(),
            Value::Integer(n) => Some(i128::from(*n)),
            _ => None,
        }
    }

    fn text(&self) -> Result<&str, Problem> {
        match &self.node.value {
            Value::Untyped(text) | Value::Text(text) => Ok(text),
            other => Err(self.wrong(format!("expected text in quotes, not {}", other.kind()))),
        }
    }

    fn table(&self) -> Result<&BTreeMap<String, Node>, Problem> {
        match &self.node.value {
            Value::Table(table) => Ok(table),
            other => Err(self.wrong(format!("expected a section with keys, not {}", other.kind()))),
        }
    }

    fn child_key(&self, name: &str) -> String {
        if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) }
    }
}

impl<'de> Deserializer<'de> for De<'_> {
    type Error = Problem;

    whole_numbers!(
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    );

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Untyped(text) | Value::Text(text) => visitor.visit_str(text),
            Value::Integer(n) => visitor.visit_i64(*n),
            Value::Float(n) => visitor.visit_f64(*n),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Table(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let value = match &self.node.value {
            Value::Untyped(text) => text.parse().ok(),
            Value::Bool(b) => Some(*b),
            _ => None,
        };
        visitor.visit_bool(value.ok_or_else(|| self.wrong("expected true or false"))?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let value: Option<f64> = match &self.node.value {
            Value::Untyped(text) => text.parse().ok(),
            Value::Float(n) => Some(*n),
            Value::Integer(n) => Some(*n as f64),
            _ => None,
        };
        let finite = value.filter(|n| n.is_finite());
        visitor.visit_f64(finite.ok_or_else(|| self.wrong("expected a number"))?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let split = |text: &str| -> Vec<Node> {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            items
                .map(|i| Node { value: Value::Untyped(i.to_owned()), source: self.node.source.clone() })
                .collect()
        };
        let items = match &self.node.value {
            Value::Untyped(text) => split(text),
            Value::List(items) => items.clone(),
            other => return Err(self.wrong(format!("expected a list, not {}", other.kind()))),
        };
        visitor.visit_seq(Items { items: items.into_iter().enumerate(), of: self })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_map(Keys { rest: self.table()?.iter(), value: None, of: self })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let table = self.table()?;
        self.notes.sections.borrow_mut().insert(self.key.to_owned(), fields);
        for (name, node) in table {
            if !fields.contains(&name.as_str()) {
                // The value is not shown, because the key may be that of a secret, misspelt.
                return Err(Problem {
                    key: self.child_key(name),
                    value: None,
                    source: Some(node.source.clone()),
                    reason: format!("unknown key; allowed here: {}", fields.join(", ")),
                });
            }
        }
        visitor.visit_map(Keys { rest: table.iter(), value: None, of: self })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match self.text() {
            Ok(text) if variants.contains(&text) => visitor.visit_enum(text.into_deserializer()),
            _ => Err(self.wrong(format!("allowed: {}", variants.join(", ")))),
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_str(visitor)
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}

struct Keys<'a> {
    rest: std::collections::btree_map::Iter<'a, String, Node>,
    value: Option<(&'a str, &'a Node)>,
    of: De<'a>,
}

impl<'de> MapAccess<'de> for Keys<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        let Some((name, node)) = self.rest.next() else { return Ok(None) };
        self.value = Some((name, node));
        seed.deserialize(name.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Problem> {
        let Some((name, node)) = self.value.take() else {
            return Err(serde::de::Error::custom("a value was asked for before its key"));
        };
        let key = self.of.child_key(name);
        let value = De { node, key: &key, notes: self.of.notes };
        seed.deserialize(value).map_err(|problem| problem.at(&key, node))
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::vec::IntoIter<Node>>,
    of: De<'a>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        // A section in a list has keys of its own, so its name includes the index. A plain value is
        // identified by its text.
        let numbered = matches!(node.value, Value::Table(_)).then(|| format!("{}[{index}]", self.of.key));
        let key = numbered.as_deref().unwrap_or(self.of.key);
        let item = De { node: &node, key, notes: self.of.notes };
        seed.deserialize(item).map(Some).map_err(|problem| problem.at(key, &node))
    }
}
