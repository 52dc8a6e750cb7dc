//! The reference of labels and annotations, generated from the table in `src/annotation.rs`.

#![expect(clippy::unwrap_used, reason = "a test that fails")]

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use weft_crds::names::{INJECT_LABEL, PROXY_VERSION_LABEL, STATUS_ANNOTATION};
use weft_injector::annotation::ANNOTATIONS;
use weft_injector::namespace::Namespace;
use weft_injector::settings::{Installation, Resources, ServerVersion, Settings};

const INTRODUCTION: &str = "\
# Labels and annotations

Labels decide which pods get a proxy, annotations configure it. [docs/injection.md](../injection.md) describes what
happens to pods that get none, and who is told about a mistake.

";

const ANNOTATIONS_INTRODUCTION: &str = "
An annotation on a pod applies to that pod, one on a namespace to the pods there that do not have it themselves. It is
read when the pod is created. A pod with an invalid value is refused; an unknown annotation with this prefix has no
effect, and the author of the pod is warned.

";

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    page += "| label | on | value | meaning |\n|---|---|---|---|\n";
    for (key, object, value, meaning) in [
        (INJECT_LABEL, "namespace", "`enabled`", "its new pods get a proxy"),
        (
            INJECT_LABEL,
            "namespace",
            "`disabled`, or no label",
            "its pods get none, unless they have the label themselves",
        ),
        (INJECT_LABEL, "pod", "`true`", "the pod gets a proxy, in a namespace without the label too"),
        (INJECT_LABEL, "pod", "`false`", "the pod gets none"),
        (INJECT_LABEL, "pod", "no label", "as its namespace"),
        (PROXY_VERSION_LABEL, "pod", "a version", "set by the injector: the version of the pod's proxy"),
    ] {
        page += &format!("| `{key}` | {object} | {value} | {meaning} |\n");
    }
    page += ANNOTATIONS_INTRODUCTION;
    page += "| annotation | configures | value | default | example |\n|---|---|---|---|---|\n";
    for annotation in ANNOTATIONS {
        let (name, example) = (annotation.name(), annotation.example);
        let (configures, values, default) = (annotation.configures, annotation.values, annotation.default);
        page += &format!("| `{name}` | {configures} | {values} | {default} | `\"{example}\"` |\n");
    }
    page += &format!(
        "\nThe injector writes the annotation `{STATUS_ANNOTATION}`: what it has added to the pod, as JSON.\n"
    );
    page
}

#[test]
fn reference_page_is_generated_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/annotations.md");
    let page = page();
    if std::env::var_os("WEFT_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/reference/annotations.md is not what the table says; WEFT_BLESS=1 writes it");
}

/// The codes are the string literals of the functions `code`.
#[test]
fn injection_page_has_every_reason() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/injection.md")).unwrap();
    let sources = [include_str!("../src/decide.rs"), include_str!("../src/refusal.rs")];
    let codes: Vec<&str> = sources
        .iter()
        .flat_map(|source| source.split("fn code(").nth(1).unwrap().split("\n    }\n").next().unwrap().lines())
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert!(codes.len() >= 18, "{codes:?}");
    for code in codes {
        assert!(page.contains(&format!("| `{code}` |")), "docs/injection.md has no row for the reason {code}");
    }
}

fn resolve(key: &str, value: &str) -> Result<Settings, String> {
    let installation = Installation {
        proxy_image: "proxy".to_owned(),
        init_image: "init".to_owned(),
        image_pull_policy: "Never".to_owned(),
        proxy_version: "1".to_owned(),
        resources: Resources::default(),
        server: ServerVersion::parse("1", "33").unwrap(),
        excluded_namespaces: Vec::new(),
        hook_secret: String::new(),
        identity: None,
    };
    let mut pod = Pod::default();
    pod.metadata.annotations = Some([(key.to_owned(), value.to_owned())].into());
    match Settings::resolve(&Namespace::default(), &pod, &installation) {
        Ok((settings, warnings)) if warnings.is_empty() => Ok(settings),
        Ok((_, warnings)) => Err(warnings.join(", ")),
        Err(errors) => Err(errors.to_string()),
    }
}

#[test]
fn each_annotation_takes_its_example_and_refuses_other_values_with_the_text_of_the_table() {
    let plain = resolve("other", "").unwrap();
    for annotation in ANNOTATIONS {
        let name = annotation.name();
        let settings = resolve(&name, annotation.example).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_ne!(settings, plain, "{name}: {} changes nothing", annotation.example);
        let error = resolve(&name, "\u{fffd}").unwrap_err();
        assert!(error.contains(&name) && error.ends_with(annotation.values), "{name}: {error}");
        assert!(!annotation.default.is_empty() && !annotation.configures.is_empty(), "{name}");
    }
}
