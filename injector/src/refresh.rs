//! A pod that has its proxy and is reviewed again. The API server does so where another webhook changed the pod after us
//! (`reinvocationPolicy: IfNeeded`); a container added then has probes, hooks and port names that the proxy must hear of, and so has
//! a label. So the order of webhooks does not matter, and a pod to which nothing was added stays as it is.

use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_config::bootstrap::{ENV_HOOKS, ENV_POD_LABELS, ENV_PORT_NAMES, ENV_PROBES, Hooks, Probes};
use weft_crds::names::PROXY_CONTAINER;

use crate::decide::Refusal;
use crate::mutate::{json_text, literal, port_names, redirect};
use crate::probe;

/// The pod with what was added to it handed to its proxy; nothing where the proxy knows all of it, or is none of ours.
pub fn refresh(raw: &Value, pod: &Pod, hook_secret: &str) -> Result<Option<Value>, Refusal> {
    let rewritten = probe::rewrite(pod, hook_secret)?;
    let mut refreshed = raw.clone();
    for place in &rewritten.places {
        redirect(&mut refreshed, place);
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
        (ENV_PROBES, json_text(&Probes(probes))),
        (ENV_HOOKS, json_text(&Hooks(hooks))),
        (ENV_PORT_NAMES, json_text(&port_names(pod))),
        (ENV_POD_LABELS, json_text(&pod.metadata.labels.clone().unwrap_or_default())),
    ] {
        set(environment, name, literal(&text));
    }
    Ok((refreshed != *raw).then_some(refreshed))
}

/// The proxy's environment, wherever the proxy is.
fn environment(pod: &mut Value) -> Option<&mut Vec<Value>> {
    let lists = pod.get_mut("spec")?.as_object_mut()?.iter_mut();
    let containers = lists.filter(|(list, _)| matches!(list.as_str(), "containers" | "initContainers"));
    let mut containers = containers.filter_map(|(_, list)| list.as_array_mut()).flatten();
    containers.find(|container| container["name"] == PROXY_CONTAINER)?.get_mut("env")?.as_array_mut()
}

fn read<T: DeserializeOwned>(environment: &[Value], name: &str) -> Option<T> {
    let value = environment.iter().find(|variable| variable["name"] == name)?.get("value")?.as_str()?;
    serde_json::from_str(&plain(value)).ok()
}

fn set(environment: &mut [Value], name: &str, value: String) {
    if let Some(variable) = environment.iter_mut().find(|variable| variable["name"] == name) {
        variable["value"] = value.into();
    }
}

/// What [`literal`] was made of.
fn plain(literal: &str) -> String {
    literal.replace("$$", "$")
}
