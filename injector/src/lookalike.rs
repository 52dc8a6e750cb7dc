//! Labels and annotations that look like those of Weft and have no effect: misspelled ones, a label written as an
//! annotation and the reverse, those of a workload that belong on its pods, those of other meshes. Unknown annotations
//! with the prefix `config.weft.dev/` on a pod or a namespace are found by [`crate::annotations`].

use std::collections::BTreeMap;
use std::fmt;

use weft_crds::names::{CONFIG_PREFIX, GROUP, INJECT_ENABLED, INJECT_LABEL, PROXY_VERSION_LABEL, STATUS_ANNOTATION};
use weft_crds::suggest;

use crate::annotation::{ANNOTATIONS, Annotation};
use crate::annotations::truncate;
use crate::namespace::INJECT_DISABLED;

/// The word that marks a key as meant for Weft.
const WORD: &str = "weft";
/// Minimum [`suggest::similarity`] of a key without [`WORD`] to one of ours: about two letters.
const KEY_SIMILARITY_MIN: f64 = 0.85;
/// Minimum similarity of a name to `inject`.
const INJECT_SIMILARITY_MIN: f64 = 0.6;

/// Labels and annotations by which other meshes decide on injection.
const OTHER_MESHES: [&str; 7] = [
    "istio-injection",
    "istio.io/rev",
    "sidecar.istio.io/inject",
    "linkerd.io/inject",
    "kuma.io/sidecar-injection",
    "consul.hashicorp.com/connect-inject",
    "openservicemesh.io/sidecar-injection",
];
/// Values that take a namespace or pod out of a mesh.
const NEGATIVE: [&str; 6] = ["disabled", "disable", "false", "off", "no", "none"];

/// The object that carries labels and annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder<'a> {
    /// A namespace.
    Namespace,
    /// A pod, or the pod template of a workload.
    Pod,
    /// A workload of this kind, or a Service: its own metadata, not that of its pods.
    Workload(&'a str),
}

/// Labels or annotations of an object.
pub type Pairs = BTreeMap<String, String>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Label,
    Annotation,
}

/// What the author of a key probably meant.
enum Meant {
    Inject,
    Config(&'static Annotation),
    Unknown,
}

/// A warning for each label and annotation that looks like one of Weft's and has no effect.
pub fn warnings(holder: Holder<'_>, labels: &Pairs, annotations: &Pairs) -> Vec<String> {
    let labels = labels.iter().map(|(key, value)| (Form::Label, key.as_str(), value.as_str()));
    let annotations = annotations.iter().map(|(key, value)| (Form::Annotation, key.as_str(), value.as_str()));
    labels.chain(annotations).filter_map(|(form, key, value)| warning(holder, form, key, value)).collect()
}

/// A warning for the first label or annotation by which another mesh would inject.
pub fn other_mesh_warning(holder: Holder<'_>, labels: &Pairs, annotations: &Pairs) -> Option<String> {
    let labels = labels.iter().map(|(key, value)| (Form::Label, key, value));
    let mut pairs = labels.chain(annotations.iter().map(|(key, value)| (Form::Annotation, key, value)));
    let (form, key, value) =
        pairs.find(|(_, key, value)| OTHER_MESHES.contains(&key.as_str()) && !is_negative(value))?;
    let label = inject(holder, value);
    Some(format!("{form} {key} on the {holder} is for another mesh; did you mean the label {label}?"))
}

fn warning(holder: Holder<'_>, form: Form, key: &str, value: &str) -> Option<String> {
    let meant = match key {
        // Written by the injector.
        PROXY_VERSION_LABEL | STATUS_ANNOTATION => return None,
        INJECT_LABEL if form == Form::Label => match holder {
            Holder::Workload(_) => return Some(misplaced(holder, form, key)),
            Holder::Namespace | Holder::Pod => return None,
        },
        _ => meant(key)?,
    };
    let known = match meant {
        Meant::Inject => key == INJECT_LABEL,
        Meant::Config(annotation) => annotation.name() == key,
        Meant::Unknown => false,
    };
    let is_config = form == Form::Annotation && key.starts_with(CONFIG_PREFIX);
    match (holder, meant) {
        (Holder::Namespace | Holder::Pod, _) if is_config => None,
        (Holder::Workload(_), _) if is_config && known => Some(misplaced(holder, form, key)),
        (_, Meant::Inject) if known => {
            let label = inject(holder, value);
            Some(format!("annotation {key} on the {holder} has no effect; make it the label {label}"))
        }
        (_, Meant::Config(_)) if known => {
            Some(format!("label {key} on the {holder} has no effect; make it an annotation"))
        }
        (_, meant) => Some(unknown(holder, form, key, value, &meant)),
    }
}

/// A known key on the workload instead of its pods.
fn misplaced(holder: Holder<'_>, form: Form, key: &str) -> String {
    format!(
        "{form} {key} on the {holder} itself has no effect on its pods; set it in metadata.{form}s of the pod template"
    )
}

fn unknown(holder: Holder<'_>, form: Form, key: &str, value: &str, meant: &Meant) -> String {
    let hint = match meant {
        Meant::Inject => format!("; did you mean the label {}?", inject(holder, value)),
        Meant::Config(annotation) => format!("; did you mean the annotation {}?", annotation.name()),
        Meant::Unknown => String::new(),
    };
    format!("{form} {} on the {holder} is unknown and has no effect{hint}", truncate(key))
}

/// The inject label of the namespace or the pods, with the value that corresponds to a value of another key.
fn inject(holder: Holder<'_>, value: &str) -> String {
    let value = match (holder, is_negative(value)) {
        (Holder::Namespace, false) => INJECT_ENABLED,
        (Holder::Namespace, true) => INJECT_DISABLED,
        (_, false) => "true",
        (_, true) => "false",
    };
    let of_pods = if matches!(holder, Holder::Workload(_)) { " on its pods" } else { "" };
    format!("{INJECT_LABEL}={value}{of_pods}")
}

fn is_negative(value: &str) -> bool {
    NEGATIVE.contains(&value.to_lowercase().as_str())
}

/// What a key means that is not the inject label; `None` if it was not meant for Weft.
fn meant(key: &str) -> Option<Meant> {
    let key = key.to_lowercase();
    let (prefix, name) = key.split_once('/').unwrap_or(("", &key));
    let words = |text: &str| text.split(['.', '-', '_']).any(|word| word == WORD);
    let has_word = words(prefix) || prefix.is_empty() && name.split(['.', '-', '_']).next() == Some(WORD);
    if !has_word {
        let is_near = |known: &str| suggest::similarity(&key, known) >= KEY_SIMILARITY_MIN;
        let annotation = ANNOTATIONS.into_iter().find(|annotation| is_near(&annotation.name()));
        return is_near(INJECT_LABEL).then_some(Meant::Inject).or(annotation.map(Meant::Config));
    }
    // As in weft-inject and inject.weft.dev.
    let name = name.strip_prefix(WORD).map_or(name, |rest| rest.trim_start_matches(['.', '-', '_']));
    let is_inject =
        |text: &str| text.contains("inject") || suggest::similarity(text, "inject") >= INJECT_SIMILARITY_MIN;
    let config = ANNOTATIONS.into_iter().find(|annotation| annotation.key == name);
    Some(match config.or_else(|| Annotation::nearest(name)) {
        _ if is_inject(name) || prefix.strip_suffix(GROUP).is_some_and(is_inject) => Meant::Inject,
        Some(annotation) => Meant::Config(annotation),
        None => Meant::Unknown,
    })
}

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "namespace",
            Self::Pod => "pod",
            Self::Workload(kind) => kind,
        })
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Label => "label",
            Self::Annotation => "annotation",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(holder: Holder<'_>, form: Form, key: &str, value: &str, expected: &str) {
        let pairs = Pairs::from([(key.to_owned(), value.to_owned())]);
        let (labels, annotations) = if form == Form::Label { (pairs, Pairs::new()) } else { (Pairs::new(), pairs) };
        let found = warnings(holder, &labels, &annotations).join("\n");
        assert!(found.contains(expected), "{form} {key}={value} on the {holder}: {found:?}, not {expected:?}");
        assert_eq!(found.is_empty(), expected.is_empty(), "{form} {key}={value} on the {holder}: {found:?}");
    }

    #[test]
    fn labels_near_the_inject_label_suggest_it_with_a_value_of_the_object() {
        let on = "did you mean the label weft.dev/inject=enabled?";
        for key in [
            "weft.dev/injection",
            "weft.dev/injcet",
            "weft.dev/Inject",
            "weft.dev/sidecar-inject",
            "weft/inject",
            "weft.io/inject",
            "weft-injection",
            "weft-inject",
            "inject.weft.dev/enabled",
            "sidecar.weft.dev/inject",
            "wfet.dev/inject",
            "wef.dev/inject",
        ] {
            check(Holder::Namespace, Form::Label, key, "enabled", on);
            check(Holder::Namespace, Form::Annotation, key, "true", on);
            check(Holder::Pod, Form::Label, key, "true", "did you mean the label weft.dev/inject=true?");
            check(Holder::Pod, Form::Label, key, "disabled", "did you mean the label weft.dev/inject=false?");
        }
        check(Holder::Namespace, Form::Label, "weft.dev/injection", "off", "weft.dev/inject=disabled?");
    }

    #[test]
    fn labels_of_others_are_left_alone() {
        for key in [
            "app",
            "app.kubernetes.io/name",
            "kubernetes.io/metadata.name",
            "istio-injection",
            "example.com/weft-team",
            "craft.dev/injector",
            "weftwork.dev/inject-me",
            "weft.dev/inject",
            "weft.dev/proxy-version",
        ] {
            check(Holder::Namespace, Form::Label, key, "enabled", "");
        }
        check(Holder::Pod, Form::Annotation, "weft.dev/status", "{}", "");
    }

    #[test]
    fn keys_in_the_wrong_place_name_the_right_one() {
        let workers = "config.weft.dev/workers";
        let deployment = Holder::Workload("Deployment");
        for (holder, form, key, expected) in [
            (Holder::Namespace, Form::Annotation, INJECT_LABEL, "make it the label weft.dev/inject=enabled"),
            (Holder::Pod, Form::Annotation, INJECT_LABEL, "make it the label weft.dev/inject=true"),
            (Holder::Pod, Form::Label, workers, "make it an annotation"),
            (Holder::Pod, Form::Annotation, workers, ""),
            (
                deployment,
                Form::Label,
                INJECT_LABEL,
                "on the Deployment itself has no effect on its pods; set it in metadata.labels of the pod template",
            ),
            (deployment, Form::Annotation, workers, "set it in metadata.annotations of the pod template"),
            (
                deployment,
                Form::Annotation,
                "config.weft.dev/worker",
                "unknown and has no effect; did you mean the annotation config.weft.dev/workers?",
            ),
            (Holder::Pod, Form::Annotation, "weft.dev/workers", "did you mean the annotation config.weft.dev/workers?"),
            (Holder::Pod, Form::Annotation, "config.weft.io/drain-seconds", "config.weft.dev/drain-seconds?"),
            (Holder::Pod, Form::Label, "weft.dev/team", "is unknown and has no effect"),
        ] {
            check(holder, form, key, "true", expected);
        }
    }

    #[test]
    fn labels_of_other_meshes_suggest_ours_unless_they_opt_out() {
        let found = |key: &str, value: &str| {
            let labels = Pairs::from([(key.to_owned(), value.to_owned())]);
            other_mesh_warning(Holder::Namespace, &labels, &Pairs::new())
        };
        let warning = "label istio-injection on the namespace is for another mesh; did you mean the label \
                       weft.dev/inject=enabled?";
        assert_eq!(found("istio-injection", "enabled").as_deref(), Some(warning));
        assert_eq!(found("istio-injection", "disabled"), None);
        assert_eq!(found("app", "web"), None);
    }
}
