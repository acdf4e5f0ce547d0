//! The table of methods: name, phase, parameters, result, description, handler. `rpc_get_methods` and `rpc.discover`
//! answer from it, so they cannot disagree with what is there.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jsonrpsee::RpcModule;
use jsonrpsee::types::ErrorObjectOwned;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::dispatch::Dispatcher;
use crate::{RpcError, parse_parameters};

/// Whether the start-up phase is over: some methods may be called only before, others only after it. Clones are
/// the same phase.
#[derive(Debug, Clone, Default)]
pub struct Phase(Arc<AtomicBool>);

impl Phase {
    /// The start-up phase is over.
    pub fn enter_runtime(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// True when the start-up phase is over.
    #[must_use]
    pub fn is_runtime(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// In which phase a method may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Any time.
    Always,
    /// Before the start-up phase is over.
    Startup,
    /// After it.
    Runtime,
}

impl When {
    fn allows(self, phase: &Phase) -> bool {
        match self {
            When::Always => true,
            When::Startup => !phase.is_runtime(),
            When::Runtime => phase.is_runtime(),
        }
    }
}

/// What is told about one method.
#[derive(Debug, Clone)]
pub struct MethodInfo {
    /// Its name.
    pub name: &'static str,
    /// When it may be called.
    pub when: When,
    /// One or two sentences.
    pub description: &'static str,
    /// JSON schema of the `params` object.
    pub parameters: Value,
    /// JSON schema of the result.
    pub result: Value,
}

/// JSON schema of `T` in one piece.
pub(crate) fn schema_of<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft07();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// Collects methods; [`Registry::finish`] makes a [`Dispatcher`] of it. `C` is what every handler gets.
pub struct Registry<C> {
    module: RpcModule<C>,
    methods: Vec<MethodInfo>,
    not_built: BTreeSet<&'static str>,
    phase: Phase,
    version: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListMethods {
    /// Only methods that may be called now.
    #[serde(default)]
    current: bool,
    /// Also names that were replaced by others. There are none.
    #[serde(default)]
    include_aliases: bool,
}

impl<C: Send + Sync + 'static> Registry<C> {
    /// An empty registry. `version` is shown by `rpc.discover`.
    #[must_use]
    pub fn new(state: Arc<C>, phase: Phase, version: &str) -> Registry<C> {
        Registry {
            module: RpcModule::from_arc(state),
            methods: Vec::new(),
            not_built: BTreeSet::new(),
            phase,
            version: version.to_owned(),
        }
    }

    /// Adds a method.
    ///
    /// # Panics
    /// When the name is taken: a programming mistake found at start.
    pub fn register<P, R, F, Fut>(
        &mut self,
        name: &'static str,
        when: When,
        description: &'static str,
        handler: F,
    ) where
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
        F: Fn(Arc<C>, P) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R, RpcError>> + Send + 'static,
    {
        let parameters = schema_of::<P>();
        self.methods.push(MethodInfo {
            name,
            when,
            description,
            parameters: parameters.clone(),
            result: schema_of::<R>(),
        });
        let schema = Arc::new(parameters);
        let phase = self.phase.clone();
        self.module
            .register_async_method(name, move |params, state, _| {
                let (handler, schema, phase) = (handler.clone(), schema.clone(), phase.clone());
                async move {
                    if !when.allows(&phase) {
                        return Err::<Value, ErrorObjectOwned>(wrong_phase(name, when).into());
                    }
                    let parameters: P = parse_parameters(name, &schema, params.as_str())?;
                    let result = handler(state, parameters).await?;
                    serde_json::to_value(result).map_err(|error| {
                        RpcError::internal(format!("{name}: the result cannot be written: {error}")).into()
                    })
                }
            })
            .map(|_| ())
            .unwrap_or_else(|error| panic!("method {name}: {error}"));
    }

    /// Names that other servers of this interface know and this one does not: they are answered with a precise
    /// error. Names that are registered are skipped.
    pub fn declare_not_built(&mut self, names: &[&'static str]) {
        self.not_built.extend(names.iter().copied());
    }

    /// What is registered so far.
    #[must_use]
    pub fn methods(&self) -> &[MethodInfo] {
        &self.methods
    }

    /// Adds `rpc_get_methods` and `rpc.discover`, and closes the table.
    #[must_use]
    pub fn finish(mut self) -> Dispatcher {
        // Both answer from the same table, which must also contain the two of them.
        let table: Arc<std::sync::OnceLock<Vec<MethodInfo>>> = Arc::default();
        let (list, discover, phase, version) =
            (table.clone(), table.clone(), self.phase.clone(), self.version.clone());
        self.register(
            "rpc_get_methods",
            When::Always,
            "Lists the names of the methods.",
            move |_: Arc<C>, parameters: ListMethods| {
                let _ = parameters.include_aliases;
                let names: Vec<&'static str> = list
                    .get()
                    .into_iter()
                    .flatten()
                    .filter(|method| !parameters.current || method.when.allows(&phase))
                    .map(|method| method.name)
                    .collect();
                async move { Ok(names) }
            },
        );
        self.register(
            "rpc.discover",
            When::Always,
            "Describes every method, its parameters and its result, as an OpenRPC document.",
            move |_: Arc<C>, _: crate::NoParameters| {
                let document = openrpc(discover.get().map(Vec::as_slice).unwrap_or_default(), &version);
                async move { Ok(document) }
            },
        );
        let mut methods = self.methods;
        methods.sort_by_key(|method| method.name);
        let _ = table.set(methods.clone());
        Dispatcher::new(self.module.into(), methods, self.not_built)
    }
}

fn wrong_phase(name: &str, when: When) -> RpcError {
    let text = match when {
        When::Startup => format!(
            "{name}: may only be called before framework_start_init. Remedy: start the daemon with --wait-for-rpc and call it before framework_start_init"
        ),
        _ => format!(
            "{name}: may only be called after framework_start_init. Remedy: call framework_start_init first"
        ),
    };
    RpcError::new(RpcError::INVALID_STATE, text)
}

fn openrpc(methods: &[MethodInfo], version: &str) -> Value {
    let methods: Vec<Value> = methods
        .iter()
        .map(|method| {
            let required: Vec<&str> = method
                .parameters
                .get("required")
                .and_then(Value::as_array)
                .map(|names| names.iter().filter_map(Value::as_str).collect())
                .unwrap_or_default();
            let parameters: Vec<Value> = method
                .parameters
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(name, schema)| {
                    json!({
                        "name": name,
                        "description": schema.get("description").cloned().unwrap_or(Value::Null),
                        "required": required.contains(&name.as_str()),
                        "schema": schema,
                    })
                })
                .collect();
            json!({
                "name": method.name,
                "description": method.description,
                "paramStructure": "by-name",
                "params": parameters,
                "result": { "name": "result", "schema": method.result },
            })
        })
        .collect();
    json!({ "openrpc": "1.2.6", "info": { "title": "Pollux", "version": version }, "methods": methods })
}
