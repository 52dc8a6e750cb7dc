//! A pod that has its proxy and is reviewed again. The API server does so where another webhook changed the pod after us
//! (`reinvocationPolicy: IfNeeded`); a container added then has probes and port names that the proxy must hear of, and so has
//! a label. So the order of webhooks does not matter, and a pod to which nothing was added stays as it is.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use weft_config::bootstrap::{ENV_POD_LABELS, ENV_PORT_NAMES, ENV_PROBES, Probes};
use weft_crds::names::PROXY_CONTAINER;

use crate::decide::Refusal;
use crate::mutate::{json_text, literal, port_names, redirect_probe};
use crate::probe;

/// The pod with what was added to it handed to its proxy; nothing where the proxy knows all of it, or is none of ours.
pub fn refresh(raw: &Value, pod: &Pod) -> Result<Option<Value>, Refusal> {
    let rewritten = probe::rewrite(pod)?;
    let mut refreshed = raw.clone();
    for place in &rewritten.places {
        redirect_probe(&mut refreshed, place);
    }
    let Some(environment) = environment(&mut refreshed) else { return Ok(None) };
    let Some(known) = value(environment, ENV_PROBES).and_then(|text| serde_json::from_str::<Probes>(&plain(text)).ok())
    else {
        return Ok(None);
    };
    let mut probes = known;
    probes.0.extend(rewritten.probes.0);
    for (name, text) in [
        (ENV_PROBES, json_text(&probes)),
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

fn value<'a>(environment: &'a [Value], name: &str) -> Option<&'a str> {
    environment.iter().find(|variable| variable["name"] == name)?.get("value")?.as_str()
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
