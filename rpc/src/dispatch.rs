//! From the text of a request to the text of its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jsonrpsee::Methods;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{MethodInfo, RpcError};

/// Requests in one batch.
const BATCH_MAX: usize = 256;

/// Every method, ready to be called. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    inner: Arc<Inner>,
}

struct Inner {
    methods: Methods,
    infos: Vec<MethodInfo>,
    not_built: BTreeSet<&'static str>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl Dispatcher {
    pub(crate) fn new(
        methods: Methods,
        infos: Vec<MethodInfo>,
        not_built: BTreeSet<&'static str>,
    ) -> Dispatcher {
        Dispatcher { inner: Arc::new(Inner { methods, infos, not_built }) }
    }

    /// What is told about every method, sorted by name.
    #[must_use]
    pub fn methods(&self) -> &[MethodInfo] {
        &self.inner.infos
    }

    /// Handles one JSON text, a request or a batch. `None` when nothing is to be answered (notifications).
    pub async fn handle(&self, text: &[u8]) -> Option<String> {
        let raw: &RawValue = match serde_json::from_slice(text) {
            Ok(raw) => raw,
            Err(error) => return Some(error_text("null", &RpcError::parse(format!("Parse error: {error}")))),
        };
        if !raw.get().trim_start().starts_with('[') {
            return self.handle_request(raw).await;
        }
        let requests: Vec<&RawValue> = match serde_json::from_str(raw.get()) {
            Ok(requests) => requests,
            Err(error) => return Some(error_text("null", &RpcError::parse(format!("Parse error: {error}")))),
        };
        if requests.is_empty() {
            return Some(error_text(
                "null",
                &RpcError::invalid_request("Invalid request: the batch is empty"),
            ));
        }
        if requests.len() > BATCH_MAX {
            let text = format!("Invalid request: the batch has more than {BATCH_MAX} requests");
            return Some(error_text("null", &RpcError::invalid_request(text)));
        }
        let mut answers = Vec::new();
        for request in requests {
            answers.extend(self.handle_request(request).await);
        }
        if answers.is_empty() { None } else { Some(format!("[{}]", answers.join(","))) }
    }

    async fn handle_request(&self, raw: &RawValue) -> Option<String> {
        let (id, method, params) = match read_request(raw) {
            Ok(request) => request,
            Err((id, error)) => return Some(error_text(&id, &error)),
        };
        let answer = match self.call(&method, params).await {
            Ok(result) => {
                format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}", id.unwrap_or("null"))
            }
            Err(error) => error_text(id.unwrap_or("null"), &error),
        };
        // A request without id is a notification: carried out, never answered (JSON-RPC 2.0 §4.1).
        id.map(|_| answer)
    }

    /// Calls `method` with the text of its `params`; gives the text of the result.
    ///
    /// # Errors
    /// The error object of the call.
    pub async fn call(&self, method: &str, params: Option<&str>) -> Result<String, RpcError> {
        if self.inner.methods.method(method).is_none() {
            return Err(self.not_found(method));
        }
        if method.contains("_get_") || method.starts_with("rpc") {
            tracing::debug!(target: "rpc", method, "call");
        } else {
            // The audit trail: which method, never its parameters, for they may hold secrets.
            tracing::info!(target: "rpc", method, "call");
        }
        let name = serde_json::to_string(method).unwrap_or_default();
        let request = match params {
            Some(params) => format!("{{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":{name},\"params\":{params}}}"),
            None => format!("{{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":{name}}}"),
        };
        let (answer, _) = self
            .inner
            .methods
            .raw_json_request(&request, 1)
            .await
            .map_err(|error| RpcError::invalid_request(format!("Invalid request: {error}")))?;
        let answer: Answer<'_> = serde_json::from_str(answer.get())
            .map_err(|error| RpcError::internal(format!("{method}: the answer cannot be read: {error}")))?;
        if let Some(error) = answer.error {
            #[derive(Deserialize)]
            struct Error {
                code: i32,
                message: String,
            }
            let error: Error = serde_json::from_str(error.get()).map_err(|error| {
                RpcError::internal(format!("{method}: the error cannot be read: {error}"))
            })?;
            return Err(RpcError::new(error.code, error.message));
        }
        Ok(answer.result.map_or("null", RawValue::get).to_owned())
    }

    fn not_found(&self, method: &str) -> RpcError {
        let shown: String = method.chars().take(64).collect();
        let text = if self.inner.not_built.contains(method) {
            format!(
                "Method not found: {shown} is a known SPDK method, but it is not built into this version of Pollux"
            )
        } else {
            format!("Method not found: {shown:?}. Remedy: rpc_get_methods lists the names")
        };
        RpcError::new(RpcError::METHOD_NOT_FOUND, text)
    }
}

/// The text of an error answer; `id` is JSON text.
pub(crate) fn error_text(id: &str, error: &RpcError) -> String {
    let error = serde_json::to_string(error).unwrap_or_else(|_| "null".to_owned());
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}")
}

type RequestParts<'a> = (Option<&'a str>, String, Option<&'a str>);

/// Id, method and params of a request object; an error comes with the id to answer under.
fn read_request(raw: &RawValue) -> Result<RequestParts<'_>, (String, RpcError)> {
    let invalid =
        |id: &str, text: &str| (id.to_owned(), RpcError::invalid_request(format!("Invalid request: {text}")));
    let members: BTreeMap<String, &RawValue> =
        serde_json::from_str(raw.get()).map_err(|_| invalid("null", "a request is an object"))?;
    let id = members.get("id").map(|id| id.get().trim());
    let id_ok = id.is_none_or(|id| {
        id == "null" || id.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit())
    });
    if !id_ok {
        return Err(invalid("null", "\"id\" must be a number, a string or null"));
    }
    let answer_id = id.unwrap_or("null");
    for name in members.keys() {
        if !matches!(name.as_str(), "jsonrpc" | "id" | "method" | "params") {
            let shown: String = name.chars().take(64).collect();
            return Err(invalid(answer_id, &format!("member {shown:?} is not known")));
        }
    }
    if members.get("jsonrpc").is_some_and(|version| version.get().trim() != "\"2.0\"") {
        return Err(invalid(answer_id, "\"jsonrpc\" must be \"2.0\""));
    }
    let method: String = members
        .get("method")
        .and_then(|method| serde_json::from_str(method.get()).ok())
        .ok_or_else(|| invalid(answer_id, "\"method\" must be a string"))?;
    let params = members.get("params").map(|params| params.get());
    if params.is_some_and(|params| !params.trim_start().starts_with(['{', '[', 'n'])) {
        return Err(invalid(answer_id, "\"params\" must be an object"));
    }
    Ok((id, method, params))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoParameters, Phase, Registry, When};

    fn dispatcher(phase: &Phase) -> Dispatcher {
        let mut registry = Registry::new(Arc::new(41u32), phase.clone(), "1");
        registry.register(
            "answer",
            When::Always,
            "Adds one.",
            |state: Arc<u32>, _: NoParameters| async move { Ok(*state + 1) },
        );
        registry.register(
            "late",
            When::Runtime,
            "Runs.",
            |_: Arc<u32>, _: NoParameters| async move { Ok(true) },
        );
        registry.register("fails", When::Always, "Fails.", |_: Arc<u32>, _: NoParameters| async move {
            Err::<bool, RpcError>(RpcError::errno(17, "there already"))
        });
        registry.declare_not_built(&["nbd_get_disks", "answer"]);
        registry.finish()
    }

    #[tokio::test]
    async fn requests_and_their_answers() {
        let phase = Phase::default();
        let rpc = dispatcher(&phase);
        for (request, answer) in [
            (
                r#"{"jsonrpc":"2.0","id":7,"method":"answer"}"#,
                Some(r#"{"jsonrpc":"2.0","id":7,"result":42}"#),
            ),
            (
                r#"{"id":"a b","method":"answer","params":null}"#,
                Some(r#"{"jsonrpc":"2.0","id":"a b","result":42}"#),
            ),
            (r#"{"id":-1,"method":"answer","params":{}}"#, Some(r#"{"jsonrpc":"2.0","id":-1,"result":42}"#)),
            (r#"{"method":"answer"}"#, None),
            (r#"{"method":"nobody"}"#, None),
            (
                r#"{"id":1,"method":"fails"}"#,
                Some(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-17,"message":"there already"}}"#),
            ),
            (
                r#"[{"id":1,"method":"answer"},{"method":"answer"},{"id":2,"method":"answer"}]"#,
                Some(r#"[{"jsonrpc":"2.0","id":1,"result":42},{"jsonrpc":"2.0","id":2,"result":42}]"#),
            ),
            (r#"[{"method":"answer"}]"#, None),
        ] {
            assert_eq!(rpc.handle(request.as_bytes()).await.as_deref(), answer, "{request}");
        }
    }

    #[tokio::test]
    async fn refusals_have_their_codes() {
        let phase = Phase::default();
        let rpc = dispatcher(&phase);
        for (request, code) in [
            (r#"{"id":1,"method"}"#, "-32700"),
            ("{\"id\":1,\"method\":\"\u{0}\"}", "-32700"),
            ("[]", "-32600"),
            ("[1]", "-32600"),
            (r#"{"id":1}"#, "-32600"),
            (r#"{"id":{},"method":"answer"}"#, "-32600"),
            (r#"{"id":1,"method":"answer","extra":1}"#, "-32600"),
            (r#"{"jsonrpc":"1.0","id":1,"method":"answer"}"#, "-32600"),
            (r#"{"id":1,"method":"answer","params":3}"#, "-32600"),
            (r#"{"id":1,"method":"nobody"}"#, "-32601"),
            (r#"{"id":1,"method":"answer","params":{"a":1}}"#, "-32602"),
            (r#"{"id":1,"method":"answer","params":[1]}"#, "-32602"),
            (r#"{"id":1,"method":"late"}"#, "-1"),
        ] {
            let answer = rpc.handle(request.as_bytes()).await.unwrap();
            assert!(answer.contains(&format!("\"code\":{code},")), "{request} gave {answer}");
        }
        let bad = b"{\"id\":1,\"method\":\"\xff\"}";
        assert!(rpc.handle(bad).await.unwrap().contains("-32700"));
        let text = rpc.handle(br#"{"id":1,"method":"nbd_get_disks"}"#).await.unwrap();
        assert!(
            text.contains("nbd_get_disks is a known SPDK method, but it is not built into this version"),
            "{text}"
        );
        phase.enter_runtime();
        assert!(rpc.handle(br#"{"id":1,"method":"late"}"#).await.unwrap().contains("true"));
    }

    #[tokio::test]
    async fn discover_and_the_list_cover_every_method() {
        let rpc = dispatcher(&Phase::default());
        let list: Vec<String> =
            serde_json::from_str(&rpc.call("rpc_get_methods", None).await.unwrap()).unwrap();
        assert_eq!(list, ["answer", "fails", "late", "rpc.discover", "rpc_get_methods"]);
        let current = rpc.call("rpc_get_methods", Some(r#"{"current":true}"#)).await.unwrap();
        assert!(!current.contains("late"));
        let document: serde_json::Value =
            serde_json::from_str(&rpc.call("rpc.discover", None).await.unwrap()).unwrap();
        let names: Vec<&str> = document["methods"]
            .as_array()
            .unwrap()
            .iter()
            .map(|method| method["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, list);
        assert_eq!(document["methods"][4]["params"][0]["name"], "current");
    }
}
