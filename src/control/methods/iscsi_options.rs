//! `iscsi_set_options`, `iscsi_get_options`, `iscsi_set_discovery_auth`.

use std::sync::Arc;

use fabrics::iscsi::AuthPolicy;
use rpc::{NoParameters, Registry, When};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::framework::done;
use super::{Result, invalid, iscsi_groups, iscsi_targets, not_built};
use crate::control::config::Entry;
use crate::control::node::Node;
use crate::control::{Control, names};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetOptions {
    /// A file of secrets: not built.
    auth_file: Option<String>,
    /// What a target name that is not a whole iSCSI name is put after.
    node_base: Option<String>,
    /// Seconds an initiator has to answer a NOP-In.
    nop_timeout: Option<u32>,
    /// Seconds of silence before a NOP-In; 0 never asks.
    nop_in_interval: Option<u32>,
    /// Discovery sessions: CHAP is not offered.
    disable_chap: Option<bool>,
    /// Discovery sessions: login without CHAP is refused.
    require_chap: Option<bool>,
    /// Discovery sessions: the initiator must ask for our proof.
    mutual_chap: Option<bool>,
    /// Discovery sessions: auth group.
    chap_group: Option<u32>,
    /// Sessions on the node. Memory is set aside at start, so it cannot be more than it is.
    max_sessions: Option<u32>,
    /// Commands a session may have outstanding.
    max_queue_depth: Option<u32>,
    /// MaxConnections: sessions have one connection, so 1 and more are accepted and 1 is used.
    max_connections_per_session: Option<u32>,
    /// DefaultTime2Wait, in seconds.
    default_time2wait: Option<u16>,
    /// DefaultTime2Retain, in seconds.
    default_time2retain: Option<u16>,
    /// FirstBurstLength, in bytes.
    first_burst_length: Option<u32>,
    /// ImmediateData.
    immediate_data: Option<bool>,
    /// ErrorRecoveryLevel: only 0 is built.
    error_recovery_level: Option<u32>,
    /// Two sessions of one identity: only false is built, the newer takes the place of the older (RFC 7143 §6.3.5).
    allow_duplicated_isid: Option<bool>,
    /// Accepted, has no effect: reads run in bursts from a pool of their core.
    #[allow(dead_code)]
    max_large_datain_per_connection: Option<u32>,
    /// MaxOutstandingR2T.
    max_r2t_per_connection: Option<u16>,
    /// Accepted, has no effect: pools are sized at start.
    #[allow(dead_code)]
    pdu_pool_size: Option<u32>,
    /// Accepted, has no effect: pools are sized at start.
    #[allow(dead_code)]
    immediate_data_pool_size: Option<u32>,
    /// Accepted, has no effect: pools are sized at start.
    #[allow(dead_code)]
    data_out_pool_size: Option<u32>,
    /// Seconds a login may take in all.
    login_timeout: Option<u32>,
    /// MaxRecvDataSegmentLength, in bytes.
    max_recv_data_segment_length: Option<u32>,
    /// MaxBurstLength, in bytes.
    max_burst_length: Option<u32>,
    /// InitialR2T.
    initial_r2t: Option<bool>,
}

/// Authentication of something, as SPDK writes it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DiscoveryAuth {
    /// CHAP is not offered.
    #[serde(default)]
    disable_chap: bool,
    /// Login without CHAP is refused.
    #[serde(default)]
    require_chap: bool,
    /// The initiator must ask for our proof.
    #[serde(default)]
    mutual_chap: bool,
    /// Auth group; 0 looks in every group.
    #[serde(default)]
    chap_group: u32,
}

/// Refuses policies that contradict themselves.
pub(super) fn check_policy(method: &str, policy: AuthPolicy) -> Result<AuthPolicy> {
    if policy.disable_chap && policy.require_chap {
        return Err(invalid(
            method,
            "disable_chap",
            "excludes require_chap. Remedy: leave one of the two out",
        ));
    }
    if policy.disable_chap && policy.mutual_chap {
        return Err(invalid(
            method,
            "mutual_chap",
            "needs CHAP, which disable_chap forbids. Remedy: leave one of the two out",
        ));
    }
    if policy.mutual_chap && !policy.require_chap {
        return Err(invalid(method, "mutual_chap", "needs require_chap. Remedy: set require_chap too"));
    }
    Ok(policy)
}

pub(super) fn register(registry: &mut Registry<Control>) {
    registry.register(
        "iscsi_set_options",
        When::Always,
        "Sets options of the iSCSI port. They count for logins from now on.",
        |control: Arc<Control>, p: SetOptions| async move { done(control.set_options(p).await) },
    );
    registry.register(
        "iscsi_get_options",
        When::Runtime,
        "The options of the iSCSI port.",
        |control: Arc<Control>, _: NoParameters| async move { Ok(options(&control.state())) },
    );
    registry.register(
        "iscsi_set_discovery_auth",
        When::Runtime,
        "Sets the authentication of discovery sessions.",
        |control: Arc<Control>, p: DiscoveryAuth| async move {
            let policy = AuthPolicy {
                disable_chap: p.disable_chap,
                require_chap: p.require_chap,
                mutual_chap: p.mutual_chap,
                chap_group: p.chap_group,
            };
            let policy = check_policy("iscsi_set_discovery_auth", policy)?;
            done(
                control
                    .change(|node| {
                        node.discovery_auth = policy;
                        Ok(())
                    })
                    .await,
            )
        },
    );
}

/// `value` when it is in `range`.
fn within<T: PartialOrd + std::fmt::Display>(
    parameter: &str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(invalid(
        "iscsi_set_options",
        parameter,
        format!("{value} is out of range. Remedy: use {} to {}", range.start(), range.end()),
    ))
}

impl Control {
    async fn set_options(&self, p: SetOptions) -> Result<()> {
        let method = "iscsi_set_options";
        if p.auth_file.as_deref().is_some_and(|path| !path.is_empty()) {
            return Err(not_built(method, "auth_file", "use iscsi_create_auth_group"));
        }
        if p.allow_duplicated_isid == Some(true) {
            return Err(not_built(
                method,
                "allow_duplicated_isid",
                "leave it out: a new session takes the place of the old one",
            ));
        }
        if p.error_recovery_level.is_some_and(|level| level != 0) {
            return Err(not_built(method, "error_recovery_level", "use 0"));
        }
        if p.max_connections_per_session == Some(0) {
            return Err(invalid(
                method,
                "max_connections_per_session",
                "0 connections make no session. Remedy: use 1",
            ));
        }
        let limits = self.limits.clone();
        let sessions_max = limits.sessions_max.saturating_mul(u32::from(self.link.cores()));
        self.change(move |node| {
            let options = &mut node.options;
            if let Some(base) = p.node_base {
                node.node_options.node_base = names::iscsi_name(base.trim_end_matches(':'))
                    .map_err(|text| invalid(method, "node_base", format!("{text}. Remedy: correct it")))?;
            }
            if let Some(value) = p.max_sessions {
                node.node_options.max_sessions = within("max_sessions", value, 1..=sessions_max)?;
            }
            if let Some(value) = p.max_queue_depth {
                options.queue_depth_max = within("max_queue_depth", value, 1..=limits.tasks_per_nexus_max)?;
            }
            if let Some(value) = p.nop_timeout {
                options.nop_timeout_s = within("nop_timeout", value, 1..=3600)?;
            }
            if let Some(value) = p.nop_in_interval {
                options.nop_in_interval_s = within("nop_in_interval", value, 0..=3600)?;
            }
            if let Some(value) = p.login_timeout {
                options.login_timeout_s = within("login_timeout", value, 1..=600)?;
            }
            if let Some(value) = p.default_time2wait {
                options.default_time_to_wait = within("default_time2wait", value, 0..=3600)?;
            }
            if let Some(value) = p.default_time2retain {
                options.default_time_to_retain = within("default_time2retain", value, 0..=3600)?;
            }
            // RFC 7143 §13.12 to §13.14: 512 to 2^24 - 1.
            let bytes = 512..=(1u32 << 24) - 1;
            if let Some(value) = p.max_burst_length {
                options.max_burst_length = within("max_burst_length", value, bytes.clone())?;
            }
            if let Some(value) = p.first_burst_length {
                options.first_burst_length = within("first_burst_length", value, bytes)?;
            }
            if options.first_burst_length > options.max_burst_length {
                return Err(invalid(
                    method,
                    "first_burst_length",
                    format!("is more than max_burst_length, {}. Remedy: use less", options.max_burst_length),
                ));
            }
            if let Some(value) = p.max_recv_data_segment_length {
                options.max_recv_data_segment_length =
                    within("max_recv_data_segment_length", value, 512..=limits.burst_length_bytes)?;
            }
            if let Some(value) = p.max_r2t_per_connection {
                options.max_outstanding_r2t = within("max_r2t_per_connection", value, 1..=64)?;
            }
            options.immediate_data = p.immediate_data.unwrap_or(options.immediate_data);
            options.initial_r2t = p.initial_r2t.unwrap_or(options.initial_r2t);
            let old = node.discovery_auth;
            node.discovery_auth = check_policy(
                method,
                AuthPolicy {
                    disable_chap: p.disable_chap.unwrap_or(old.disable_chap),
                    require_chap: p.require_chap.unwrap_or(old.require_chap),
                    mutual_chap: p.mutual_chap.unwrap_or(old.mutual_chap),
                    chap_group: p.chap_group.unwrap_or(old.chap_group),
                },
            )?;
            Ok(())
        })
        .await
    }
}

fn options(node: &Node) -> Value {
    let (options, auth) = (&node.options, node.discovery_auth);
    json!({
        "auth_file": "",
        "node_base": node.node_options.node_base,
        "max_sessions": node.node_options.max_sessions,
        "max_connections_per_session": 1,
        "max_queue_depth": options.queue_depth_max,
        "default_time2wait": options.default_time_to_wait,
        "default_time2retain": options.default_time_to_retain,
        "first_burst_length": options.first_burst_length,
        "max_burst_length": options.max_burst_length,
        "max_recv_data_segment_length": options.max_recv_data_segment_length,
        "immediate_data": options.immediate_data,
        "initial_r2t": options.initial_r2t,
        "allow_duplicated_isid": false,
        "error_recovery_level": 0,
        "nop_timeout": options.nop_timeout_s,
        "nop_in_interval": options.nop_in_interval_s,
        "login_timeout": options.login_timeout_s,
        "disable_chap": auth.disable_chap,
        "require_chap": auth.require_chap,
        "mutual_chap": auth.mutual_chap,
        "chap_group": auth.chap_group,
        "max_r2t_per_connection": options.max_outstanding_r2t,
    })
}

/// The calls that make the iSCSI subsystem what it is.
pub(in crate::control) fn saved(node: &Node, include_secrets: bool) -> Vec<Entry> {
    let mut options = options(node);
    if let Some(map) = options.as_object_mut() {
        map.remove("auth_file");
        // Follows from the number of cores, which another start may have fewer of.
        map.remove("max_sessions");
    }
    let mut calls = vec![("iscsi_set_options", options)];
    calls.extend(iscsi_groups::saved(node, include_secrets));
    calls.extend(iscsi_targets::saved(node));
    calls
        .into_iter()
        .map(|(method, params)| Entry { method: method.to_owned(), params: Some(params) })
        .collect()
}
