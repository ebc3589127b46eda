//! How much of a message is kept in maps.

use serde_json::Value;

use crate::control::CapMap;

/// Entries of this map, and of the maps in their values.
pub fn entries(capabilities: &CapMap) -> usize {
    let inside = capabilities.values().flatten().map(members).sum::<usize>();
    capabilities.len() + inside
}

/// Not deep: the reader has seen to that.
fn members(value: &Value) -> usize {
    match value {
        Value::Object(object) => object.len() + object.values().map(members).sum::<usize>(),
        Value::Array(list) => list.iter().map(members).sum(),
        _ => 0,
    }
}
