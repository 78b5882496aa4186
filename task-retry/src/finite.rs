//! JSON has no NaN and no infinity: serde_json writes `null` for them, which comes back as an error, or
//! as `None` without one. This looks for them before.

use std::fmt::{self, Display};

use serde::ser::{self, Serialize};

/// Whether a value holds no number that JSON cannot hold.
pub(crate) fn is_finite(value: &impl Serialize) -> bool {
    !matches!(value.serialize(Look), Err(Found(true)))
}

/// What was found: such a number, or an error of the value's own, which encoding will tell better.
#[derive(Debug)]
struct Found(bool);

impl Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number that JSON cannot hold")
    }
}

impl std::error::Error for Found {}

impl ser::Error for Found {
    fn custom<T: Display>(_message: T) -> Self {
        Self(false)
    }
}

/// Writes nothing.
#[derive(Clone, Copy)]
struct Look;

type Outcome = Result<(), Found>;

macro_rules! fine {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, _value: $type) -> Outcome {
            Ok(())
        })*
    };
}

impl ser::Serializer for Look {
    type Ok = ();
    type Error = Found;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    fine!(
        serialize_bool: bool, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32,
        serialize_u64: u64, serialize_u128: u128, serialize_unit_struct: &'static str
    );

    fn serialize_f32(self, value: f32) -> Outcome {
        if value.is_finite() { Ok(()) } else { Err(Found(true)) }
    }

    fn serialize_f64(self, value: f64) -> Outcome {
        if value.is_finite() { Ok(()) } else { Err(Found(true)) }
    }

    fn serialize_none(self) -> Outcome {
        Ok(())
    }

    fn serialize_unit(self) -> Outcome {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Outcome {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Outcome {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Outcome {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Outcome {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Found> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Found> {
        Ok(self)
    }
}

macro_rules! compound {
    ($($name:ident $method:ident ($($key:ident)?)),*) => {
        $(impl ser::$name for Look {
            type Ok = ();
            type Error = Found;

            fn $method<T: Serialize + ?Sized>(
                &mut self,
                $($key: &'static str,)?
                value: &T,
            ) -> Outcome {
                value.serialize(*self)
            }

            fn end(self) -> Outcome {
                Ok(())
            }
        })*
    };
}

compound!(
    SerializeSeq serialize_element (),
    SerializeTuple serialize_element (),
    SerializeTupleStruct serialize_field (),
    SerializeTupleVariant serialize_field (),
    SerializeStruct serialize_field (_key),
    SerializeStructVariant serialize_field (_key)
);

impl ser::SerializeMap for Look {
    type Ok = ();
    type Error = Found;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Outcome {
        key.serialize(*self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Outcome {
        value.serialize(*self)
    }

    fn end(self) -> Outcome {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::is_finite;

    #[derive(serde::Serialize)]
    enum Shape {
        Unit,
        New(f32),
        Tuple(u8, Option<f64>),
        Struct { more: Vec<Shape> },
    }

    #[test]
    fn it_looks_everywhere() {
        let deep = |number| Shape::Struct {
            more: vec![Shape::Unit, Shape::New(1.0), Shape::Tuple(1, Some(number))],
        };
        assert!(is_finite(&deep(1.5)));
        assert!(!is_finite(&deep(f64::NAN)));
        assert!(!is_finite(&Shape::New(f32::INFINITY)));
        assert!(!is_finite(&BTreeMap::from([("a", (1, [f64::NEG_INFINITY]))])));
        assert!(is_finite(&(None::<f64>, "text", 'c', u128::MAX, ())));
    }
}
