//! From the `params` member to a typed value, with errors that name method, parameter and remedy.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::RpcError;

/// The parameters of a method that takes none.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

/// Reads `text` (the `params` member; absent and `null` are an empty object) as the parameters of `method`, whose
/// JSON schema is `schema`.
///
/// # Errors
/// −32602 with a message that names the method, the parameter and the remedy.
pub fn parse_parameters<P: DeserializeOwned>(
    method: &str,
    schema: &Value,
    text: Option<&str>,
) -> Result<P, RpcError> {
    let value: Value = match text {
        None => Value::Object(Map::new()),
        Some(text) => serde_json::from_str(text)
            .map_err(|error| RpcError::parse(format!("params of {method}: {error}")))?,
    };
    let object = match value {
        Value::Object(object) => object,
        Value::Null => Map::new(),
        _ => {
            return Err(RpcError::invalid_params(format!(
                "{method}: \"params\" must be an object with named parameters. Remedy: send {}",
                example(schema)
            )));
        }
    };
    serde_json::from_value(Value::Object(object.clone()))
        .map_err(|error| RpcError::invalid_params(explain::<P>(method, schema, &object, &error.to_string())))
}

fn properties(schema: &Value) -> Vec<(&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).map(|map| map.iter().collect()).unwrap_or_default()
}

fn known_names(schema: &Value) -> String {
    let names: Vec<&str> = properties(schema).iter().map(|(name, _)| name.as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn required(schema: &Value) -> Vec<&str> {
    schema
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

fn example(schema: &Value) -> String {
    let members: Vec<String> = required(schema).iter().map(|name| format!("\"{name}\": …")).collect();
    format!("{{{}}}", members.join(", "))
}

/// What the schema says about a parameter: `(integer) Blocks of the disk.`
fn describe(schema: &Value, name: &str) -> String {
    let Some((_, property)) = properties(schema).into_iter().find(|(known, _)| *known == name) else {
        return String::new();
    };
    let kind = match property.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .filter(|kind| *kind != "null")
            .collect::<Vec<_>>()
            .join(" or "),
        _ => "value".to_owned(),
    };
    let description = property.get("description").and_then(Value::as_str).unwrap_or("").replace('\n', " ");
    format!("({kind}) {description}").trim().to_owned()
}

/// Finds the parameter behind a deserialisation error. The deserialiser meets members in order and stops at the first
/// bad one, so the culprit is the member without which the error is another one.
fn explain<P: DeserializeOwned>(
    method: &str,
    schema: &Value,
    object: &Map<String, Value>,
    error: &str,
) -> String {
    for name in object.keys() {
        if !properties(schema).iter().any(|(known, _)| *known == name) && !is_alias::<P>(object, name) {
            return format!(
                "{method}: parameter \"{name}\" is not known. Remedy: leave it out, or use one of: {}",
                known_names(schema)
            );
        }
    }
    for name in required(schema) {
        if !object.contains_key(name) && error.starts_with(&format!("missing field `{name}`")) {
            return format!(
                "{method}: parameter \"{name}\" is missing. Remedy: add \"{name}\" {}",
                describe(schema, name)
            );
        }
    }
    for name in object.keys() {
        let mut without = object.clone();
        without.remove(name);
        let other = serde_json::from_value::<P>(Value::Object(without)).err().map(|error| error.to_string());
        if other.as_deref() != Some(error) {
            return format!(
                "{method}: parameter \"{name}\": {error}. Remedy: give {}",
                describe(schema, name)
            );
        }
    }
    format!("{method}: parameters: {error}. Remedy: see the method's schema in rpc.discover")
}

/// True when `name` is an alias the schema does not list: alone it is refused for another reason than being unknown.
fn is_alias<P: DeserializeOwned>(object: &Map<String, Value>, name: &str) -> bool {
    let mut alone = Map::new();
    alone.insert(name.to_owned(), object.get(name).cloned().unwrap_or(Value::Null));
    match serde_json::from_value::<P>(Value::Object(alone)) {
        Ok(_) => true,
        Err(error) => !error.to_string().starts_with("unknown field"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::schema_of;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Disk {
        /// Blocks of the disk.
        num_blocks: u64,
        /// Bytes of a block.
        block_size: u32,
        /// Its name.
        name: Option<String>,
    }

    fn message(text: &str) -> String {
        let error = parse_parameters::<Disk>("disk_create", &schema_of::<Disk>(), Some(text)).unwrap_err();
        assert_eq!(error.code, RpcError::INVALID_PARAMS);
        error.message
    }

    #[test]
    fn errors_name_method_parameter_and_remedy() {
        assert_eq!(
            message(r#"{"num_blocks": 1}"#),
            "disk_create: parameter \"block_size\" is missing. Remedy: add \"block_size\" (integer) Bytes of a block."
        );
        let text = message(r#"{"num_blocks": "x", "block_size": 512}"#);
        assert!(
            text.starts_with(
                "disk_create: parameter \"num_blocks\": invalid type: string \"x\", expected u64"
            ),
            "{text}"
        );
        assert!(text.ends_with("Remedy: give (integer) Blocks of the disk."), "{text}");
        assert_eq!(
            message(r#"{"num_blocks": 1, "block_size": 512, "size": 3}"#),
            "disk_create: parameter \"size\" is not known. Remedy: leave it out, or use one of: block_size, name, num_blocks"
        );
        assert!(message("[1, 2]").contains("must be an object with named parameters"));
        let text = message(r#"{"block_size": 512, "name": 3}"#);
        assert!(text.contains("\"name\": invalid type"), "{text}");
    }

    #[test]
    fn absent_and_null_are_an_empty_object() {
        let schema = schema_of::<NoParameters>();
        parse_parameters::<NoParameters>("x", &schema, None).unwrap();
        parse_parameters::<NoParameters>("x", &schema, Some("null")).unwrap();
        parse_parameters::<NoParameters>("x", &schema, Some("{}")).unwrap();
        let error = parse_parameters::<NoParameters>("x", &schema, Some(r#"{"a":1}"#)).unwrap_err();
        assert_eq!(
            error.message,
            "x: parameter \"a\" is not known. Remedy: leave it out, or use one of: none"
        );
    }
}
