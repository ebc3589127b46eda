//! How Go writes JSON, as `serde` helpers.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::Value;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::datetime};

use super::RegionId;

/// `null` is the default.
pub fn null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// What does not read as `T` is the default: for facts that inform and decide nothing.
pub fn lenient<'de, D: Deserializer<'de>, T: de::DeserializeOwned + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// A list, or `null`, of which the elements that do not read as `T` are left out.
pub fn lenient_list<'de, D: Deserializer<'de>, T: de::DeserializeOwned>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let values = Option::<Vec<Value>>::deserialize(deserializer)?.unwrap_or_default();
    let mut list: Vec<T> = values
        .into_iter()
        .filter_map(|value| serde_json::from_value(value).ok())
        .collect();
    // Ten thousand nodes have one or two endpoints each, for which room for four is made.
    list.shrink_to_fit();
    Ok(list)
}

/// A map with numbers for keys, or `null`, of which entries that do not read (Headscale sends null regions) are left out.
pub fn lenient_map<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: FromStr + Ord,
    V: de::DeserializeOwned,
{
    lenient_map_or_absent(deserializer).map(Option::unwrap_or_default)
}

/// [`lenient_map`] that keeps apart "empty" and "absent".
pub fn lenient_map_or_absent<'de, D, K, V>(
    deserializer: D,
) -> Result<Option<BTreeMap<K, V>>, D::Error>
where
    D: Deserializer<'de>,
    K: FromStr + Ord,
    V: de::DeserializeOwned,
{
    let values = Option::<BTreeMap<String, Lenient<V>>>::deserialize(deserializer)?;
    let read = |(key, Lenient(value)): (String, Lenient<V>)| Some((key.parse().ok()?, value?));
    Ok(values.map(|values| values.into_iter().filter_map(read).collect()))
}

/// A value, if it reads: at once, for what is no more than a value of some sort takes many times as much.
struct Lenient<V>(Option<V>);

impl<'de, V: de::DeserializeOwned> Deserialize<'de> for Lenient<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(Self(serde_json::from_value(value).ok()))
    }
}

/// A map whose values may be `null`, which is their default.
pub fn null_values<'de, D, V>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de> + Default,
{
    let values =
        Option::<BTreeMap<String, Option<V>>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(values
        .into_iter()
        .map(|(key, value)| (key, value.unwrap_or_default()))
        .collect())
}

/// 0 is none, as is what cannot be a region.
pub fn region<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RegionId>, D::Error> {
    let number = Option::<i64>::deserialize(deserializer)?.unwrap_or_default();
    Ok(u16::try_from(number)
        .ok()
        .filter(|number| *number != 0)
        .map(RegionId))
}

/// Keys whose zero means "none", absent when none.
pub mod key {
    use super::*;

    pub fn deserialize<'de, D, K>(deserializer: D) -> Result<Option<K>, D::Error>
    where
        D: Deserializer<'de>,
        K: FromStr<Err: Display> + Default + PartialEq,
    {
        let Some(text) =
            Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty())
        else {
            return Ok(None);
        };
        let key: K = text.parse().map_err(de::Error::custom)?;
        Ok(Some(key).filter(|key| *key != K::default()))
    }

    /// For fields without `omitempty`: none is written as the zero key.
    pub fn serialize<S: Serializer, K: Serialize + Default + Copy>(
        key: &Option<K>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        key.unwrap_or_default().serialize(serializer)
    }
}

/// RFC 3339; the zero time is none, and none is written as the zero time.
pub mod timestamp {
    use super::*;

    const ZERO: &str = "0001-01-01T00:00:00Z";

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<OffsetDateTime>, D::Error> {
        match Option::<String>::deserialize(deserializer)? {
            None => Ok(None),
            Some(text) if text == ZERO || text.is_empty() => Ok(None),
            Some(text) => {
                let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)?;
                // The last hours of the year 9999 may lie beyond it by universal time, where nobody can write them down.
                let Some(universal) = time.checked_to_offset(UtcOffset::UTC) else {
                    return Err(de::Error::custom("a time after the year 9999"));
                };
                // The zero time can be written in many ways: with an offset, a fraction, another separator.
                Ok(Some(time).filter(|_| universal != datetime!(0001-01-01 0:00 UTC)))
            }
        }
    }

    pub fn serialize<S: Serializer>(
        time: &Option<OffsetDateTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            None => serializer.serialize_str(ZERO),
            Some(time) => {
                serializer.serialize_str(&time.format(&Rfc3339).map_err(ser::Error::custom)?)
            }
        }
    }
}

pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct At(#[serde(with = "timestamp")] Option<OffsetDateTime>);

    #[test]
    fn times_that_universal_time_cannot_say_are_refused() {
        let text = "9999-12-31T23:59:59-23:59";
        assert!(OffsetDateTime::parse(text, &Rfc3339).is_ok());
        assert!(serde_json::from_str::<At>(&format!("{text:?}")).is_err());
        let At(time) = serde_json::from_str(r#""9999-12-31T23:59:59Z""#).unwrap();
        assert_eq!(time.unwrap().year(), 9999);
    }

    #[test]
    fn the_zero_time_is_none_however_it_is_written() {
        for zero in [
            "",
            "0001-01-01T00:00:00Z",
            "0001-01-01t00:00:00.000z",
            "0001-01-01T00:00:00+00:00",
            "0001-01-01T01:00:00+01:00",
        ] {
            let At(time) = serde_json::from_str(&format!("{zero:?}")).unwrap();
            assert_eq!(time, None, "{zero}");
        }
    }
}
