//! `log_*`.

use std::collections::BTreeMap;
use std::sync::Arc;

use rpc::{NoParameters, Registry, When};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Result, invalid};
use crate::control::Control;
use crate::control::log::{FLAGS, LEVELS, level_number};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Level {
    /// ERROR, WARNING, NOTICE, INFO or DEBUG.
    level: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Flag {
    /// A part of the daemon, or "all".
    flag: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Timestamps {
    /// Whether lines begin with the time.
    enabled: bool,
}

fn number(method: &str, parameters: &Level) -> Result<u8> {
    level_number(&parameters.level).ok_or_else(|| {
        invalid(
            method,
            "level",
            format!("{:?} is not a level. Remedy: use one of {}", parameters.level, LEVELS.join(", ")),
        )
    })
}

fn switch(control: &Control, method: &str, flag: &str, on: bool) -> Result<bool> {
    if control.log.set_flag(flag, on) {
        Ok(true)
    } else {
        Err(invalid(
            method,
            "flag",
            format!("{flag:?} is not a flag. Remedy: use \"all\" or one of {}", FLAGS.join(", ")),
        ))
    }
}

pub(super) fn register(registry: &mut Registry<Control>) {
    registry.register(
        "log_get_level",
        When::Always,
        "The level of the log.",
        |control: Arc<Control>, _: NoParameters| async move { Ok(control.log.level()) },
    );
    registry.register("log_set_level", When::Always, "Sets the level of the log. Standard error is the only log, so the higher of this and the print level counts.", |control: Arc<Control>, p: Level| async move {
        control.log.set_level(number("log_set_level", &p)?);
        Ok(true)
    });
    registry.register(
        "log_get_print_level",
        When::Always,
        "The level of what goes to standard error.",
        |control: Arc<Control>, _: NoParameters| async move { Ok(control.log.print_level()) },
    );
    registry.register(
        "log_set_print_level",
        When::Always,
        "Sets the level of what goes to standard error.",
        |control: Arc<Control>, p: Level| async move {
            control.log.set_print_level(number("log_set_print_level", &p)?);
            Ok(true)
        },
    );
    registry.register(
        "log_get_flags",
        When::Always,
        "The parts that can be made to log everything, and whether they do.",
        |control: Arc<Control>, _: NoParameters| async move {
            Ok(control
                .log
                .flags()
                .map(|(name, on)| (name.to_owned(), on))
                .collect::<BTreeMap<String, bool>>())
        },
    );
    registry.register(
        "log_set_flag",
        When::Always,
        "Makes one part log everything.",
        |control: Arc<Control>, p: Flag| async move { switch(&control, "log_set_flag", &p.flag, true) },
    );
    registry.register(
        "log_clear_flag",
        When::Always,
        "Ends log_set_flag.",
        |control: Arc<Control>, p: Flag| async move { switch(&control, "log_clear_flag", &p.flag, false) },
    );
    registry.register(
        "log_enable_timestamps",
        When::Always,
        "Whether log lines begin with the time.",
        |control: Arc<Control>, p: Timestamps| async move {
            control.log.set_timestamps(p.enabled);
            Ok(true)
        },
    );
}
