//! The charts, with the real Helm and the cluster's real admission.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use weft_e2e::Cluster;
use weft_e2e::cluster::checkout;
use weft_e2e::docs::manifests;
use weft_e2e::install::{self, SYSTEM, helm_offline, helm_refused};
use weft_e2e::kubectl::Kubectl;
use weft_e2e::metrics::Metrics;
use weft_e2e::namespace::{Mesh, Namespace, READY, in_mesh};

/// Port of the certificate authority.
const IDENTITY_PORT: u16 = 15012;

const CHARTS: [&str; 2] = ["charts/weft-crds", "charts/weft"];

/// The objects that a chart renders, parsed by kubectl, which fails on invalid manifests.
fn rendered(chart: &str, settings: &[&str]) -> Result<Vec<Value>> {
    let yaml = helm_offline(&[&["template", "weft", chart, "--namespace", SYSTEM], settings].concat())?;
    let kubectl = Kubectl::new(Cluster::get()?);
    let output =
        kubectl.run_with(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"], &yaml, READY)?;
    let printed = output.stdout_of_success("kubectl create --dry-run=client")?;
    // kubectl prints one object after another, or a List.
    let mut objects = Vec::new();
    for object in serde_json::Deserializer::from_str(&printed).into_iter::<Value>() {
        let object = object?;
        match object["items"].as_array() {
            Some(items) if object["kind"] == "List" => objects.extend(items.clone()),
            _ => objects.push(object),
        }
    }
    ensure!(!objects.is_empty(), "{chart} renders nothing");
    Ok(objects)
}

fn name(object: &Value) -> String {
    format!("{}/{}", object["kind"].as_str().unwrap_or("?"), object["metadata"]["name"].as_str().unwrap_or("?"))
}

#[test]
fn charts_pass_lint() -> Result<()> {
    for chart in CHARTS {
        let stdout = helm_offline(&["lint", "--strict", chart])?;
        ensure!(stdout.contains("0 chart(s) failed"), "{chart}: {stdout}");
    }
    Ok(())
}

#[test]
fn rendering_is_deterministic() -> Result<()> {
    for settings in [&[][..], &["--values", "charts/weft/values-ha.yaml"]] {
        for chart in CHARTS {
            if chart != "charts/weft" && !settings.is_empty() {
                continue;
            }
            let arguments = [&["template", "weft", chart, "--namespace", SYSTEM], settings].concat();
            ensure!(
                helm_offline(&arguments)? == helm_offline(&arguments)?,
                "{chart} {settings:?} renders differently each time"
            );
        }
    }
    Ok(())
}

#[test]
fn unknown_values_are_refused() -> Result<()> {
    for chart in CHARTS {
        let stderr = helm_refused(&["template", "weft", chart, "--set", "nosuch.value=1"])?;
        ensure!(stderr.contains("nosuch"), "{chart}: the refusal should name the value: {stderr}");
    }
    for (setting, key) in [
        ("operator.nosuch=1", "nosuch"),
        ("webhook.failurePolicy=Maybe", "failurePolicy"),
        ("image.pullpolicy=Always", "pullpolicy"),
    ] {
        let stderr = helm_refused(&["template", "weft", "charts/weft", "--set", setting])?;
        ensure!(stderr.contains(key), "{setting}: the refusal should name the value: {stderr}");
    }
    Ok(())
}

#[test]
fn bad_values_are_refused() -> Result<()> {
    for (setting, key) in [
        ("proxy.resources.limits.cpu=lots", "cpu"),
        ("proxy.resources.limits.cpu=0", "cpu"),
        ("proxy.resources.requests.cpu=1Gi", "cpu"),
        ("proxy.resources.requests.memory=32", "memory"),
        ("proxy.resources.requests.memory=100m", "memory"),
        ("proxy.resources.requests.memory=64MB", "memory"),
        ("proxy.resources.requests.memory=null", "memory"),
        ("operator.resources.limits.memory=1M", "memory"),
        ("operator.resources.limits.memory=", "memory"),
        ("operator.resources.requests.gpu=1", "gpu"),
        ("operator.replicas=0", "replicas"),
        ("operator.replicas=two", "replicas"),
        ("injector.logLevel=debgu", "logLevel"),
        ("injector.logLevel=weft_injector=loud", "logLevel"),
        ("webhook.timeoutSeconds=60", "timeoutSeconds"),
        ("webhook.excludedNamespaces={Shop}", "excludedNamespaces"),
        ("image.tag=a:b", "tag"),
        ("image.registry=/x", "registry"),
        ("image.digest.proxy=sha256:12", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("imagePullSecrets[0].name=A B", "imagePullSecrets"),
        ("commonLabels.a=b c", "commonLabels"),
        ("podAnnotations.a=1", "podAnnotations"),
        ("nodeSelector.a=b c", "nodeSelector"),
        ("priorityClassName=High Priority", "priorityClassName"),
        ("tolerations[0].operator=Is", "tolerations"),
        ("podMonitor.interval=30", "podMonitor"),
        ("identity.enabled=perhaps", "enabled"),
        ("identity.certificateSeconds=59", "certificateSeconds"),
        ("identity.certificateSeconds=2592001", "certificateSeconds"),
        ("identity.certificateSeconds=24h", "certificateSeconds"),
        ("identity.trustDomain=x", "trustDomain"),
        ("identity.issuerVolume.driver=a/b", "driver"),
        ("networkPolicy.enabled=maybe", "networkPolicy"),
    ] {
        let stderr = helm_refused(&["template", "weft", "charts/weft", "--set", setting])?;
        ensure!(stderr.contains("schema") && stderr.contains(key), "{setting}: it should name the value: {stderr}");
    }
    for setting in [
        "proxy.resources.limits.cpu=2",
        "proxy.resources.limits.cpu=0.05",
        "proxy.resources.limits.cpu=1500m",
        "proxy.resources.limits.memory=0.5Gi",
        "proxy.resources.limits.memory=65536Ki",
        "operator.resources.limits.memory=1.5G",
        "operator.logLevel=info\\,weft_operator=debug",
        "operator.logLevel=info\\,weft_operator::reconcile[flush{ns=\"shop\"}]=trace",
        "image.registry=registry.example:5000/mesh",
        "podLabels.example\\.com/team=mesh",
    ] {
        helm_offline(&["template", "weft", "charts/weft", "--set", setting])?;
    }
    Ok(())
}

#[test]
fn proxy_must_not_request_more_than_its_limit() -> Result<()> {
    let with = |resource: &str, request: &str, limit: &str| {
        format!("proxy.resources.requests.{resource}={request},proxy.resources.limits.{resource}={limit}")
    };
    for (resource, request, limit) in
        [("cpu", "200m", "0.1"), ("cpu", "2", "1500m"), ("memory", "64Mi", "67M"), ("memory", "1.5Gi", "1024Mi")]
    {
        let settings = with(resource, request, limit);
        let stderr = helm_refused(&["template", "weft", "charts/weft", "--set", &settings])?;
        let expected = format!(
            "proxy.resources.requests.{resource} ({request}) is above proxy.resources.limits.{resource} ({limit})"
        );
        ensure!(stderr.contains(&expected), "{settings}: {stderr}");
    }
    for (resource, request, limit) in [
        ("cpu", "100m", "0.1"),
        ("cpu", "2", "2"),
        ("memory", "64Mi", "68M"),
        ("memory", "65536Ki", "64Mi"),
        ("cpu", "2", ""),
    ] {
        helm_offline(&["template", "weft", "charts/weft", "--set", &with(resource, request, limit)])?;
    }
    Ok(())
}

/// A schema that accepts any string or object says nothing about a wrong value.
#[test]
fn every_value_has_a_type_and_every_string_a_pattern() -> Result<()> {
    fn check(schema: &Value, at: &str, loose: &mut Vec<String>) {
        for (name, part) in schema.as_object().into_iter().flatten() {
            let at = format!("{at}/{name}");
            match name.as_str() {
                "properties" | "definitions" => {
                    for (name, part) in part.as_object().into_iter().flatten() {
                        check(part, &format!("{at}/{name}"), loose);
                    }
                }
                "items" | "additionalProperties" if part.is_object() => check(part, &at, loose),
                _ => {}
            }
        }
        let has = |key: &str| !schema[key].is_null();
        let known = match schema["type"].as_str() {
            Some("object") => has("additionalProperties"),
            Some("array") => has("items"),
            Some("string") => has("pattern"),
            _ => has("$ref") || has("enum") || has("type"),
        };
        if !known {
            loose.push(at.to_owned());
        }
    }
    for chart in CHARTS {
        let path = checkout().join(chart).join("values.schema.json");
        let schema: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let mut loose = Vec::new();
        check(&schema, "", &mut loose);
        // Helm adds the key global; annotations may have any text.
        loose.retain(|at| at != "/properties/global" && at != "/definitions/annotations/additionalProperties");
        ensure!(loose.is_empty(), "{chart}: {loose:?}");
    }
    Ok(())
}

/// The keys of the certificate authority are read by name, and tokens are only reviewed.
#[test]
fn certificate_authority_has_its_own_permissions_and_no_more() -> Result<()> {
    let objects = rendered("charts/weft", &["--set", "networkPolicy.enabled=true"])?;
    let mut of_secrets = Vec::new();
    let mut of_reviews = Vec::new();
    for object in &objects {
        for rule in object["rules"].as_array().into_iter().flatten() {
            let words = |field: &str| -> Vec<&str> {
                rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
            };
            let permission = || (name(object), words("resourceNames").join(" "), words("verbs").join(" "));
            if words("resources").contains(&"secrets") {
                of_secrets.push(permission());
            }
            if words("resources").contains(&"tokenreviews") {
                of_reviews.push(permission());
            }
        }
    }
    let permission = |role: &str, names: &str, verbs: &str| (role.to_owned(), names.to_owned(), verbs.to_owned());
    of_secrets.sort();
    let expected = [
        permission("Role/weft-injector", "weft-injector-tls", "get list watch"),
        permission("Role/weft-operator", "", "create"),
        permission(
            "Role/weft-operator",
            "weft-injector-tls weft-issuer weft-root weft-webhook-ca",
            "get list watch update",
        ),
    ];
    ensure!(of_secrets == expected, "{of_secrets:?}");
    ensure!(of_reviews == [permission("ClusterRole/weft-operator", "", "create")], "{of_reviews:?}");

    let find = |kind: &str, of: &str| objects.iter().find(|object| name(object) == format!("{kind}/{of}"));
    let service = find("Service", "weft-identity").context("a Service")?;
    let deployment = find("Deployment", "weft-operator").context("a Deployment")?;
    let policy = find("NetworkPolicy", "weft-operator").context("a NetworkPolicy")?;
    ensure!(service["spec"]["ports"][0]["port"] == IDENTITY_PORT, "{service}");
    let ports = &deployment["spec"]["template"]["spec"]["containers"][0]["ports"];
    let of_authority = |ports: &Value| {
        ports.as_array().into_iter().flatten().any(|port| {
            port["containerPort"] == IDENTITY_PORT && port["name"] == service["spec"]["ports"][0]["targetPort"]
        })
    };
    ensure!(of_authority(ports), "{ports}");
    let labels = deployment["spec"]["template"]["metadata"]["labels"].as_object().context("labels")?;
    let selector = service["spec"]["selector"].as_object().context("a selector")?;
    ensure!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)), "{selector:?} {labels:?}");
    ensure!(policy["spec"]["ingress"].to_string().contains("\"identity\""), "{policy}");
    Ok(())
}

/// The issuer may be in a volume of a CSI driver, which the operator mounts and reads.
#[test]
fn operator_mounts_the_volume_of_the_issuer() -> Result<()> {
    let settings = ["identity.issuerVolume.driver=csi.example.com", "identity.issuerVolume.attributes.class=weft"];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]).collect::<Vec<_>>();
    let objects = rendered("charts/weft", &settings)?;
    let deployment =
        objects.iter().find(|object| name(object) == "Deployment/weft-operator").context("a Deployment")?;
    let pod = &deployment["spec"]["template"]["spec"];
    let csi = json!({"driver": "csi.example.com", "readOnly": true, "volumeAttributes": {"class": "weft"}});
    ensure!(pod["volumes"] == json!([{"name": "issuer", "csi": csi}]), "{}", pod["volumes"]);
    let container = &pod["containers"][0];
    let path = "/var/run/weft/issuer";
    let mounts = json!([{"name": "issuer", "mountPath": path, "readOnly": true}]);
    ensure!(container["volumeMounts"] == mounts, "{container}");
    let variable = json!({"name": "WEFT_ISSUER_DIR", "value": path});
    ensure!(container["env"].as_array().is_some_and(|env| env.contains(&variable)), "{container}");
    Ok(())
}

#[test]
fn injector_gives_identities_unless_told_not_to_and_reads_the_roots_by_name() -> Result<()> {
    for (settings, expected) in [(&[][..], "true"), (&["--set", "identity.enabled=false"], "false")] {
        let objects = rendered("charts/weft", settings)?;
        let deployment = objects.iter().find(|object| name(object) == "Deployment/weft-injector");
        let containers = &deployment.context("a Deployment")?["spec"]["template"]["spec"]["containers"];
        let mut variables = containers[0]["env"].as_array().into_iter().flatten();
        let variable = variables.find(|variable| variable["name"] == "WEFT_IDENTITY_ENABLED").context("a variable")?;
        ensure!(variable["value"] == expected, "{variable}");
        let mut roles = objects.iter().filter(|object| name(object) == "Role/weft-injector");
        let role = roles.find(|role| role["metadata"]["namespace"] == "weft-config").context("a Role")?;
        let rules = json!([
            { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["trust"], "verbs": ["get", "list", "watch"] }
        ]);
        ensure!(role["rules"] == rules, "{role}");
    }
    Ok(())
}

/// The Gateway API may be installed at any time, so the rights are there without it.
#[test]
fn operator_may_read_routes_of_the_gateway_api_and_write_their_status() -> Result<()> {
    let objects = rendered("charts/weft", &[])?;
    let is_role = |object: &&Value| object["kind"] == "ClusterRole" && object["metadata"]["name"] == "weft-operator";
    let rules = objects.iter().find(is_role).map(|role| &role["rules"]).context("the chart has no such role")?;
    let has = |list: &Value, word: &str| list.as_array().is_some_and(|words| words.iter().any(|other| other == word));
    let may = |verb: &str, group: &str, resource: &str, name: &str| {
        rules.as_array().into_iter().flatten().any(|rule| {
            let of_name = rule["resourceNames"].is_null() || has(&rule["resourceNames"], name);
            has(&rule["apiGroups"], group) && has(&rule["resources"], resource) && has(&rule["verbs"], verb) && of_name
        })
    };
    let group = "gateway.networking.k8s.io";
    for plural in ["grpcroutes", "httproutes", "tcproutes", "tlsroutes", "referencegrants"] {
        for verb in ["get", "list", "watch"] {
            ensure!(may(verb, group, plural, "any"), "{verb} {plural}");
        }
        let definition = format!("{plural}.{group}");
        ensure!(may("get", "apiextensions.k8s.io", "customresourcedefinitions", &definition), "{definition}");
        let status = format!("{plural}/status");
        ensure!(may("patch", group, &status, "any") == (plural != "referencegrants"), "{status}");
    }
    ensure!(!may("get", "apiextensions.k8s.io", "customresourcedefinitions", "any"), "no other definition");
    Ok(())
}

/// Webhooks that warn must not get in the way: they are ignored when they do not answer, and soon.
#[test]
fn webhooks_that_warn_cannot_refuse_or_delay() -> Result<()> {
    let objects = rendered("charts/weft", &["--set", "webhook.failurePolicy=Fail"])?;
    let configurations = objects.iter().filter(|object| object["kind"] == "ValidatingWebhookConfiguration");
    let mut resources = Vec::new();
    for configuration in configurations {
        ensure!(configuration["metadata"]["name"] == "weft-injector", "the operator writes its caBundle by this name");
        for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
            ensure!(webhook["failurePolicy"] == "Ignore" && webhook["sideEffects"] == "None", "{webhook}");
            ensure!(webhook["matchPolicy"] == "Equivalent", "{webhook}");
            ensure!(webhook["timeoutSeconds"].as_u64().is_some_and(|seconds| seconds <= 2), "{webhook}");
            ensure!(webhook["clientConfig"]["service"]["path"] == "/warn", "{webhook}");
            let rules = webhook["rules"].as_array().into_iter().flatten();
            let of_webhook: Vec<&str> =
                rules.filter_map(|rule| rule["resources"].as_array()).flatten().filter_map(Value::as_str).collect();
            let selector = webhook["namespaceSelector"].to_string();
            let excludes = ["kube-system", SYSTEM].iter().all(|namespace| selector.contains(namespace));
            ensure!(excludes || of_webhook == ["namespaces"], "{of_webhook:?} of the control plane: {selector}");
            resources.extend(of_webhook.into_iter().map(str::to_owned));
        }
    }
    resources.sort();
    resources.dedup();
    let workloads = [
        "cronjobs",
        "daemonsets",
        "deployments",
        "jobs",
        "namespaces",
        "pods",
        "replicasets",
        "replicationcontrollers",
        "services",
        "statefulsets",
    ];
    ensure!(resources == workloads, "{resources:?}");
    Ok(())
}

#[test]
fn pods_meet_pod_security_restricted() -> Result<()> {
    let ns = Namespace::create("charts-restricted", Mesh::Outside)?;
    ns.run(&["label", "namespace", &ns.name, "pod-security.kubernetes.io/enforce=restricted"])?;
    // A pod that violates the level is refused, which shows that admission enforces it.
    let violating =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: violating}\nspec: {containers: [{name: a, image: a}]}\n";
    let stderr = ns.apply_refused(violating)?;
    ensure!(stderr.contains("violates PodSecurity"), "{stderr}");
    let mut pods = 0;
    for object in rendered("charts/weft", &[])? {
        if object["kind"] != "Deployment" {
            continue;
        }
        let mut spec = object["spec"]["template"]["spec"].clone();
        spec["serviceAccountName"] = "default".into();
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": object["metadata"]["name"]}, "spec": spec});
        let output = ns.run_with(&["create", "--dry-run=server", "-f", "-"], &pod.to_string(), READY)?;
        output.stdout_of_success("kubectl create --dry-run=server").with_context(|| name(&object))?;
        pods += 1;
    }
    ensure!(pods == 2, "operator and injector are Deployments; {pods} were found");
    Ok(())
}

#[test]
fn installed_control_plane_is_ready() -> Result<()> {
    install::ensure()?;
    let system = Kubectl::within(Cluster::get()?, SYSTEM);
    for workload in ["weft-operator", "weft-injector"] {
        system.rolled_out(&format!("deployment/{workload}"), READY)?;
        let found = system.get("deployment", workload)?;
        ensure!(found["status"]["readyReplicas"].as_u64() >= Some(1), "{workload}: {}", found["status"]);
    }
    for kind in ["meshes", "meshroutes", "meshclusters", "meshpolicies"] {
        let crd = format!("crd/{kind}.weft.dev");
        Kubectl::new(Cluster::get()?).wait(&crd, "condition=Established", READY)?;
    }
    Ok(())
}

#[test]
fn control_plane_has_build_and_process_metrics() -> Result<()> {
    let system = Kubectl::within(Cluster::get()?, SYSTEM);
    let mut components = BTreeSet::new();
    for pod in system.list("pods", "app.kubernetes.io/part-of=weft")? {
        let metrics =
            Metrics::parse(&system.pod_get(pod["metadata"]["name"].as_str().context("a name")?, 15020, "metrics")?);
        for sample in metrics.with_prefix("weft_build_info") {
            components.insert(sample.labels["component"].clone());
        }
        for metric in ["process_cpu_seconds_total", "process_start_time_seconds", "process_max_fds"] {
            ensure!(metrics.sum(metric, &[]) > 0.0, "{metric}: {:?}", metrics.with_prefix("process"));
        }
    }
    let expected = ["injector", "operator"].map(str::to_owned).into();
    ensure!(components == expected, "{components:?}");
    Ok(())
}

#[test]
fn readme_examples_apply() -> Result<()> {
    in_mesh("charts-readme", |ns| {
        let readme = fs::read_to_string(checkout().join("README.md")).context("reading README.md")?;
        let manifests = manifests(&readme);
        for kind in ["MeshRoute", "MeshCluster", "MeshPolicy"] {
            let shown = manifests.iter().any(|manifest| manifest.contains(&format!("kind: {kind}")));
            ensure!(shown, "README.md has no example of a {kind}");
        }
        for manifest in &manifests {
            let here = manifest.replace("namespace: shop", &format!("namespace: {}", ns.name));
            let output = ns.run_with(&["apply", "--dry-run=server", "-f", "-"], &here, READY)?;
            if let Err(error) = output.stdout_of_success("kubectl apply --dry-run=server") {
                bail!("an example of README.md is refused: {error:#}\n{manifest}");
            }
        }
        Ok(())
    })
}

#[test]
fn every_crd_field_has_a_description() -> Result<()> {
    install::ensure()?;
    let kubectl = Kubectl::new(Cluster::get()?);
    for kind in ["mesh", "meshroute", "meshcluster", "meshpolicy"] {
        let fields = kubectl.run(&["explain", kind, "--recursive"])?;
        ensure!(!fields.contains("<no description>"), "{kind} has a field without a description: {fields}");
        let spec = kubectl.run(&["explain", &format!("{kind}.spec")])?;
        ensure!(!spec.contains("<no description>"), "{kind}.spec has a field without a description: {spec}");
    }
    let short = kubectl.run(&["api-resources", "--categories=weft", "-o", "name"])?;
    ensure!(short.lines().count() == 4, "kubectl get weft shows four kinds: {short}");
    Ok(())
}
