//! What authors of workloads and namespaces are warned about: pods that will have no proxy or be refused, and labels
//! and annotations without effect. Pods of a workload are created by its controller, which shows nobody the warnings
//! about them. The pod template is therefore reviewed here, by the same [`inject`] as the pods.
//!
//! Only what the object has now is judged, so that a warning goes away when its cause does.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_crds::names::{CONFIG_PREFIX, INJECT_ENABLED, INJECT_LABEL};

use crate::annotations::truncate;
use crate::decide::{self, Skip};
use crate::lookalike::{self, Holder, Pairs};
use crate::namespace::{INJECT_DISABLED, Namespace};
use crate::refusal::Refusal;
use crate::settings::{Installation, Settings};
use crate::workload::Workload;
use crate::{Outcome, inject};

/// The workloads that `kubectl rollout restart` can restart.
const RESTARTABLE: &str = "deployment,statefulset,daemonset";

/// Warnings about a workload's pods.
pub fn workload(namespace: &Namespace, workload: &Workload, installation: &Installation) -> Vec<String> {
    let metadata = workload.pod_metadata();
    let (labels, annotations) = (metadata.labels.unwrap_or_default(), metadata.annotations.unwrap_or_default());
    let mut warnings = match inject(namespace, &workload.pod, installation) {
        // A pod is reviewed after it was injected or refused, if the API server could call the injector for that.
        Outcome::Injected { .. } | Outcome::Refused(_) if workload.is_pod() => {
            vec!["no proxy was added: the injector did not answer in time; create the pod again".to_owned()]
        }
        Outcome::Injected { warnings, .. } => warnings,
        // That passes, and is not the author's fault.
        Outcome::Refused(Refusal::NoRoots) => Vec::new(),
        Outcome::Refused(refusal) => {
            refusal.messages().into_iter().map(|message| format!("its pods will be refused: {message}")).collect()
        }
        Outcome::Skipped { why: Some(why), .. } => {
            vec![format!("no proxy {} added: {why}", if workload.is_pod() { "was" } else { "will be" })]
        }
        Outcome::Skipped { reason: Skip::NamespaceNotEnabled, why: None } => {
            not_enabled(namespace, &labels, &annotations)
        }
        Outcome::Skipped { .. } | Outcome::Refreshed { .. } => Vec::new(),
    };
    warnings.extend(lookalike::warnings(Holder::Pod, &labels, &annotations));
    if workload.is_pod() {
        return warnings;
    }
    // Labels that are on workload and pods alike have their effect, or their warning, on the pods.
    let own = |own: &Option<Pairs>, of_pods: &Pairs| {
        let own = own.iter().flatten().filter(|(key, _)| !of_pods.contains_key(*key));
        own.map(|(key, value)| (key.clone(), value.clone())).collect::<Pairs>()
    };
    let own_labels = own(&workload.metadata.labels, &labels);
    let own_annotations = own(&workload.metadata.annotations, &annotations);
    warnings.extend(lookalike::warnings(Holder::Workload(&workload.kind), &own_labels, &own_annotations));
    let name = truncate(workload.name());
    warnings.into_iter().map(|warning| format!("{} {name}: {warning}", workload.kind)).collect()
}

/// Warnings about a Service: labels and annotations that belong on the pods.
pub fn service(metadata: &ObjectMeta) -> Vec<String> {
    let none = Pairs::new();
    let [labels, annotations] = [&metadata.labels, &metadata.annotations].map(|pairs| pairs.as_ref().unwrap_or(&none));
    let warnings = lookalike::warnings(Holder::Workload("Service"), labels, annotations);
    let name = truncate(metadata.name.as_deref().unwrap_or_default());
    warnings.into_iter().map(|warning| format!("Service {name}: {warning}")).collect()
}

/// Warnings about a pod that runs already, whose proxy was configured when it was created.
pub fn running_pod(old: &Workload, new: &Workload) -> Vec<String> {
    let [old, new] = [old, new].map(|pod| (pod.metadata.labels.as_ref(), pod.metadata.annotations.as_ref()));
    let is_read = |key: &str| key == INJECT_LABEL || key.starts_with(CONFIG_PREFIX);
    let changed = |form: &str, [old, new]: [Option<&Pairs>; 2]| {
        let value = |pairs: Option<&Pairs>, key: &str| pairs.and_then(|pairs| pairs.get(key)).cloned();
        let keys: BTreeSet<&String> = old.into_iter().chain(new).flat_map(BTreeMap::keys).collect();
        let changed = keys.into_iter().filter(|key| is_read(key) && value(old, key) != value(new, key));
        let warning = |key: &String| {
            format!(
                "{form} {} of a pod that runs has no effect: it is read when a pod is created; set it in the pod template",
                truncate(key)
            )
        };
        changed.map(warning).collect::<Vec<_>>()
    };
    [changed("label", [old.0, new.0]), changed("annotation", [old.1, new.1])].concat()
}

/// Signs that a proxy was expected in a namespace without the label.
fn not_enabled(namespace: &Namespace, labels: &Pairs, annotations: &Pairs) -> Vec<String> {
    let Namespace { name, labels: of_namespace, annotations: on_namespace } = namespace;
    let remedy = format!("namespace {name} is not labelled {INJECT_LABEL}={INJECT_ENABLED}");
    let configured = annotations.keys().find(|key| key.starts_with(CONFIG_PREFIX));
    let configured = configured.map(|key| format!("annotation {} on the pod has no effect: {remedy}", truncate(key)));
    let misspelled = if of_namespace.contains_key(INJECT_LABEL) {
        Vec::new()
    } else {
        lookalike::warnings(Holder::Namespace, of_namespace, on_namespace)
    };
    let other_mesh = lookalike::other_mesh_warning(Holder::Pod, labels, annotations);
    configured.into_iter().chain(misspelled).chain(other_mesh).collect()
}

/// Warnings about a namespace. `old` is what it was before the change, `None` for a new one.
pub fn namespace(old: Option<&Namespace>, new: &Namespace, installation: &Installation) -> Vec<String> {
    let mut warnings: Vec<String> = inject_label_warning(new, installation).into_iter().collect();
    let is_in_mesh = |namespace: &Namespace| namespace.is_enabled() && !is_excluded(namespace, installation);
    let restart = format!("kubectl -n {} rollout restart {RESTARTABLE}", new.name);
    match (old.map(is_in_mesh), is_in_mesh(new)) {
        (Some(false), true) => {
            warnings.push(format!("pods that run already have no proxy until they are restarted: {restart}"));
        }
        (Some(true), false) => {
            warnings.push(format!("new pods get no proxy; those that run keep it until they are restarted: {restart}"));
        }
        _ => {}
    }
    if is_in_mesh(new)
        && let Err(refusal) = decide::check_injectable(new, &Pod::default())
    {
        warnings.push(format!("its pods will be refused: {refusal}"));
    }
    // No limit for annotations that are limited by a value of the pod.
    let spec = PodSpec { termination_grace_period_seconds: Some(i64::MAX), ..PodSpec::default() };
    let pod = Pod { spec: Some(spec), ..Pod::default() };
    match Settings::resolve(new, &pod, installation) {
        Ok((_, of_annotations)) => warnings.extend(of_annotations),
        Err(errors) => warnings.extend(errors.0.iter().map(|error| format!("its pods will be refused: {error}"))),
    }
    warnings.extend(lookalike::warnings(Holder::Namespace, &new.labels, &new.annotations));
    if !new.labels.contains_key(INJECT_LABEL) {
        warnings.extend(lookalike::other_mesh_warning(Holder::Namespace, &new.labels, &new.annotations));
    }
    warnings.into_iter().map(|warning| format!("Namespace {}: {warning}", new.name)).collect()
}

/// Why the inject label gives the namespace's pods no proxy.
fn inject_label_warning(namespace: &Namespace, installation: &Installation) -> Option<String> {
    let value = namespace.labels.get(INJECT_LABEL)?;
    if value == INJECT_DISABLED {
        return None;
    }
    if value != INJECT_ENABLED {
        return Some(format!(
            "label {INJECT_LABEL} is {value:?}, which is unknown: its pods get no proxy; use {INJECT_ENABLED:?} or \
             {INJECT_DISABLED:?}"
        ));
    }
    if namespace.is_system() {
        return Some(format!(
            "label {INJECT_LABEL} has no effect: {}; use a namespace of your own",
            Skip::SystemNamespace.sentence()
        ));
    }
    is_excluded(namespace, installation).then(|| {
        format!("label {INJECT_LABEL} has no effect: the namespace is in the chart's webhook.excludedNamespaces")
    })
}

fn is_excluded(namespace: &Namespace, installation: &Installation) -> bool {
    namespace.is_system() || installation.excluded_namespaces.contains(&namespace.name)
}
