//! Reads knobs that are a number or a table: `kl = 0.04` beside `kl = { beta = 0.04, estimator = "k2" }`.
//! Keeps the error messages of the table, which an untagged enum would swallow. Cost: none.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A table that a single number can stand for.
pub trait FromNumber {
    /// The table in which only the main number is set.
    fn from_number(number: f64) -> Self;
}

/// For `#[serde(deserialize_with = "number_or_table")]`.
pub fn number_or_table<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + FromNumber,
{
    struct Knob<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de> + FromNumber> Visitor<'de> for Knob<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number or a table")
        }

        fn visit_f64<E>(self, number: f64) -> Result<T, E> {
            Ok(T::from_number(number))
        }

        fn visit_i64<E>(self, number: i64) -> Result<T, E> {
            Ok(T::from_number(number as f64))
        }

        fn visit_u64<E>(self, number: u64) -> Result<T, E> {
            Ok(T::from_number(number as f64))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_any(Knob(PhantomData))
}
