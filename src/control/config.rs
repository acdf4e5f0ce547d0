//! The configuration file: `{"subsystems": [{"subsystem": …, "config": [{"method": …, "params": …}]}]}`, the form
//! SPDK saves and loads. Each entry is a call, carried out in order.

use rpc::Dispatcher;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One call.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The method.
    pub method: String,
    /// Its parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Value>,
}

/// The calls of one subsystem.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Subsystem {
    /// Its name.
    pub subsystem: String,
    /// Its calls; SPDK writes `null` for a subsystem that has none.
    #[serde(default)]
    pub config: Option<Vec<Entry>>,
}

/// A whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// In the order they are carried out.
    pub subsystems: Vec<Subsystem>,
}

/// The subsystems of this node in the order of initialisation, with what each needs.
pub const SUBSYSTEMS: [(&str, &[&str]); 3] = [("bdev", &[]), ("scsi", &["bdev"]), ("iscsi", &["scsi"])];

/// Subsystems that other servers of this interface save and this one has nothing to say to; they must be empty.
const FOREIGN: [&str; 16] = [
    "accel",
    "fsdev",
    "interface",
    "iobuf",
    "keyring",
    "nbd",
    "net_framework",
    "nvmf",
    "scheduler",
    "sock",
    "ublk",
    "vfio_user",
    "vhost",
    "vhost_blk",
    "vhost_scsi",
    "vmd",
];

impl ConfigFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// Line, column and what is wrong.
    pub fn parse(text: &str) -> Result<ConfigFile, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

/// Carries out `file`, subsystem after subsystem, stopping at the first error.
///
/// # Errors
/// Subsystem, index, method, and what is wrong.
pub async fn load(dispatcher: &Dispatcher, file: &ConfigFile) -> Result<(), String> {
    for part in &file.subsystems {
        let name = part.subsystem.as_str();
        if !SUBSYSTEMS.iter().any(|(known, _)| *known == name) && !FOREIGN.contains(&name) {
            let known: Vec<&str> = SUBSYSTEMS.iter().map(|(known, _)| *known).collect();
            return Err(format!(
                "subsystem \"{name}\" is not known. Remedy: use one of: {}",
                known.join(", ")
            ));
        }
        for (index, entry) in part.config.iter().flatten().enumerate() {
            let place = format!("subsystem \"{name}\", config[{index}], method \"{}\"", entry.method);
            let params = entry.params.as_ref().map(Value::to_string);
            dispatcher
                .call(&entry.method, params.as_deref())
                .await
                .map_err(|error| format!("{place}: {}", error.message))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_the_file() {
        let file = ConfigFile::parse(
            r#"{"subsystems":[{"subsystem":"bdev","config":null},{"subsystem":"iscsi","config":[{"method":"a"}]}]}"#,
        );
        assert_eq!(file.unwrap().subsystems.len(), 2);
        assert!(ConfigFile::parse("{").unwrap_err().contains("line 1"));
        assert!(ConfigFile::parse(r#"{"subsystem":[]}"#).unwrap_err().contains("subsystem"));
    }
}
