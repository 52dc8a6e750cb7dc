//! Updates a pod that has its proxy already and is reviewed again. The API server calls again where another webhook
//! changed the pod after this one (`reinvocationPolicy: IfNeeded`). Probes, hooks, port names and labels that were
//! added are passed to the proxy, so that the order of webhooks does not matter. A pod without additions stays
//! unchanged.

use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_config::bootstrap::{ENV_HOOKS, ENV_POD_LABELS, ENV_PORT_NAMES, ENV_PROBES, Hooks, Probes};
use weft_crds::names::PROXY_CONTAINER;

use crate::mutate::{escape_dollars, port_names, redirect, to_json};
use crate::probe;
use crate::refusal::Refusal;

/// Returns the updated pod; `None` where there is nothing to update, or the proxy's environment cannot be read.
pub fn refresh(raw: &Value, pod: &Pod, hook_secret: &str) -> Result<Option<Value>, Refusal> {
    let rewritten = probe::rewrite(pod, hook_secret)?;
    let mut refreshed = raw.clone();
    for location in &rewritten.locations {
        redirect(&mut refreshed, location);
    }
    let Some(environment) = environment(&mut refreshed) else { return Ok(None) };
    let (Some(Probes(mut probes)), Some(Hooks(mut hooks))) =
        (read(environment, ENV_PROBES), read(environment, ENV_HOOKS))
    else {
        return Ok(None);
    };
    probes.extend(rewritten.probes.0);
    hooks.extend(rewritten.hooks.0);
    for (name, text) in [
        (ENV_PROBES, to_json(&Probes(probes))),
        (ENV_HOOKS, to_json(&Hooks(hooks))),
        (ENV_PORT_NAMES, to_json(&port_names(pod))),
        (ENV_POD_LABELS, to_json(&pod.metadata.labels.clone().unwrap_or_default())),
    ] {
        set(environment, name, escape_dollars(&text));
    }
    Ok((refreshed != *raw).then_some(refreshed))
}

/// The environment of the proxy's container, in `containers` or `initContainers`.
fn environment(pod: &mut Value) -> Option<&mut Vec<Value>> {
    let lists = pod.get_mut("spec")?.as_object_mut()?.iter_mut();
    let containers = lists.filter(|(list, _)| matches!(list.as_str(), "containers" | "initContainers"));
    let mut containers = containers.filter_map(|(_, list)| list.as_array_mut()).flatten();
    containers.find(|container| container["name"] == PROXY_CONTAINER)?.get_mut("env")?.as_array_mut()
}

fn read<T: DeserializeOwned>(environment: &[Value], name: &str) -> Option<T> {
    let value = environment.iter().find(|variable| variable["name"] == name)?.get("value")?.as_str()?;
    serde_json::from_str(&unescape_dollars(value)).ok()
}

fn set(environment: &mut [Value], name: &str, value: String) {
    if let Some(variable) = environment.iter_mut().find(|variable| variable["name"] == name) {
        variable["value"] = value.into();
    }
}

/// The inverse of [`escape_dollars`].
fn unescape_dollars(escaped: &str) -> String {
    escaped.replace("$$", "$")
}
