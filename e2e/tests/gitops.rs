//! Argo CD installs Weft and a shop from a Git repository, and keeps them in sync. e2e/gitops.sh (`make gitops`) starts
//! the cluster of this test and passes it; no other test runs on that cluster.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_e2e::cluster::{self, Cluster, checkout};
use weft_e2e::docs;
use weft_e2e::gitops::{Argo, Flux, Repository, Results};
use weft_e2e::install;
use weft_e2e::kubectl::Kubectl;
use weft_e2e::traffic::Client;
use weft_e2e::wait::eventually;
use weft_e2e::workload;

/// Pages whose examples must not go out of sync.
const PAGES: [&str; 3] = ["docs/routing.md", "docs/resilience.md", "docs/policy.md"];
/// The Applications that e2e/gitops/root.yaml brings, and itself.
const MESH: [&str; 5] = ["mesh", "weft-crds", "weft", "shop", "shop-ssa"];
/// The shops: the same folder, applied by the client and by the server.
const SHOPS: [&str; 2] = ["shop", "shop-ssa"];
/// Every example of [`PAGES`], applied by the client and by the server.
const EXAMPLES: [&str; 2] = ["examples", "examples-ssa"];
/// Routes of the shop: the object, its file, a backend in it, a backend that does not exist, and what Weft says of it.
const ROUTES: [(&str, &str, &str, &str, &str); 2] = [
    (
        "MeshRoute/reviews",
        "shop/reviews.yaml",
        "{name: reviews, port: 9080, subset: v1}",
        "{name: reveiws, port: 9080}",
        "reveiws does not exist",
    ),
    (
        "HTTPRoute/ratings",
        "shop/ratings.yaml",
        "  - backendRefs: [{name: ratings, port: 9080}]",
        "  - backendRefs: [{name: ratigns, port: 9080}]",
        "ratigns does not exist",
    ),
];
/// Interval of comparisons without caches.
const COMPARE: Duration = Duration::from_secs(10);
/// Comparisons, however short the watch: each of its disturbances is followed by some.
const ROUNDS_MIN: u32 = 9;
const MINUTE: Duration = Duration::from_secs(60);
/// Time limit of steps that have no stricter one.
const SOON: Duration = Duration::from_secs(180);

#[test]
fn argo_cd_keeps_weft_and_its_objects_in_sync() -> Result<()> {
    let cluster = Cluster::get()?;
    let mut results = Results::default();
    let mut world = results.step("Argo CD and a Git server are ready", SOON, || World::start(cluster))?;
    world.install(&mut results)?;
    world.break_and_fix(&mut results)?;
    world.heal(&mut results)?;
    world.change_how_charts_are_applied(&mut results)?;
    world.flux(&mut results)?;
    world.watch(&mut results)?;
    world.prune(&mut results)?;
    results.save()
}

#[test]
fn health_check_tells_each_state() -> Result<()> {
    let folder = "crds/argo-cd/resource_customizations/weft.dev/_";
    let tests = read(&format!("{folder}/health_test.yaml"))?;
    // Argo CD's own form: lists of status, message and path.
    let values = |key: &str| {
        let lines = tests.lines().map(str::trim).map(|line| line.trim_start_matches("- "));
        lines.filter_map(|line| line.strip_prefix(key)).map(|value| value.trim().trim_matches('"').to_owned()).collect()
    };
    let (states, messages, files): (Vec<String>, Vec<String>, Vec<String>) =
        (values("status:"), values("message:"), values("inputPath:"));
    ensure!(states.len() == messages.len() && states.len() == files.len() && states.len() > 5, "{tests}");
    for ((state, message), file) in states.iter().zip(&messages).zip(&files) {
        let found = Argo::assess(&format!("{folder}/{file}"))?;
        ensure!((&found.status, &found.message) == (state, message), "{file}: {found:?}, not {state}: {message:?}");
    }
    Ok(())
}

struct World {
    cluster: &'static Cluster,
    argo: Argo,
    git: Repository,
    /// The newest commit.
    commit: String,
}

impl World {
    fn start(cluster: &'static Cluster) -> Result<Self> {
        // HTTPRoutes are part of the shop.
        let crds = cluster::build("conformance.crds")?.display().to_string();
        Kubectl::new(cluster).run(&["apply", "--server-side", "--filename", &crds])?;
        let git = Repository::create(cluster)?;
        let argo = Argo::install(cluster)?;
        git.copy("e2e/gitops/repository", "")?;
        git.copy("charts", "charts")?;
        git.write("values.yaml", &fs::read_to_string(install::values()?)?)?;
        let servers = workload::server("reviews", &["v1", "v2"]) + &workload::server("ratings", &["v1"]);
        let workloads = servers + &workload::client();
        git.write("shop/workload.yaml", &workloads)?;
        git.write("examples/examples.yaml", &examples()?)?;
        let commit = git.push("the charts of Weft, and a shop")?;
        Ok(Self { cluster, argo, git, commit })
    }

    /// One Application brings the others, in waves.
    fn install(&self, results: &mut Results) -> Result<()> {
        results.step("Weft and a shop, from one Application: all Synced and Healthy", MINUTE, || {
            self.argo.apply(&read("e2e/gitops/root.yaml")?)?;
            eventually("the Applications to exist", SOON, || {
                let names = self.argo.names()?;
                ensure!(MESH.iter().all(|name| names.iter().any(|found| found == name)), "{names:?}");
                Ok(())
            })?;
            self.argo.await_health(&MESH, &self.commit, "Healthy", SOON)
        })?;
        results.step("the routes from Git decide on requests", SOON, || {
            self.answers("http://reviews:9080/", ("x-version", "v1"))?;
            self.answers("http://ratings:9080/beta", ("x-route", "beta"))
        })?;
        results.step("every example of the pages: Synced, by both ways of applying", MINUTE, || {
            self.argo.apply(&read("e2e/gitops/examples.yaml")?)?;
            eventually("the examples to be applied", SOON, || self.synced(&EXAMPLES))
        })
    }

    /// Routes to Services that do not exist.
    fn break_and_fix(&mut self, results: &mut Results) -> Result<()> {
        self.make_mistakes()?;
        results.step("a MeshRoute and an HTTPRoute with a mistake: Degraded, with Weft's message", MINUTE, || {
            self.argo.await_health(&SHOPS, &self.commit, "Degraded", SOON)?;
            SHOPS.iter().try_for_each(|shop| {
                eventually("the messages", SOON, || {
                    let health = self.argo.health(shop)?;
                    for (object, _, _, _, told) in ROUTES {
                        let found = health.get(object).with_context(|| format!("{health:?}"))?;
                        ensure!(found.status == "Degraded" && found.message.contains(told), "{shop}: {found:?}");
                    }
                    let degraded = health.values().filter(|health| health.status == "Degraded").count();
                    ensure!(degraded == ROUTES.len(), "{shop}: {health:?}");
                    Ok(())
                })
            })
        })?;
        self.correct_mistakes()?;
        results.step("the mistakes are corrected: Healthy again", MINUTE, || {
            self.argo.await_health(&MESH, &self.commit, "Healthy", SOON)
        })
    }

    fn make_mistakes(&mut self) -> Result<()> {
        ROUTES.iter().try_for_each(|(_, file, good, bad, _)| self.git.edit(file, good, bad))?;
        self.commit = self.git.push("mistakes")?;
        Ok(())
    }

    fn correct_mistakes(&mut self) -> Result<()> {
        ROUTES.iter().try_for_each(|(_, file, good, bad, _)| self.git.edit(file, bad, good))?;
        self.commit = self.git.push("the mistakes are corrected")?;
        Ok(())
    }

    /// Edits and deletions by hand.
    fn heal(&self, results: &mut Results) -> Result<()> {
        for shop in SHOPS {
            let kubectl = Kubectl::within(self.cluster, shop);
            results.step(&format!("a route edited by hand is repaired ({shop})"), MINUTE, || {
                let patch = r#"[{"op": "replace", "path": "/spec/http/1/backendRefs/0/subset", "value": "v2"}]"#;
                kubectl.run(&["patch", "meshroute", "reviews", "--type=json", "--patch", patch])?;
                eventually("the subset of Git", SOON, || {
                    let route = kubectl.get("meshroute", "reviews")?;
                    let subset = route.pointer("/spec/http/1/backendRefs/0/subset");
                    ensure!(subset.is_some_and(|subset| subset == "v1"), "{route}");
                    Ok(())
                })
            })?;
            results.step(&format!("a policy deleted by hand is there again ({shop})"), MINUTE, || {
                kubectl.delete("meshpolicy", "read-only")?;
                eventually("the policy", SOON, || kubectl.condition("meshpolicy", "read-only", "Ready"))
            })?;
        }
        self.argo.await_health(&MESH, &self.commit, "Healthy", SOON)
    }

    /// The charts were applied by the client: let the server apply them from here on.
    fn change_how_charts_are_applied(&mut self, results: &mut Results) -> Result<()> {
        for chart in ["weft-crds", "weft"] {
            let file = format!("apps/{chart}.yaml");
            self.git.edit(&file, "CreateNamespace=true", "CreateNamespace=true, ServerSideApply=true")?;
            let wave = "annotations: {";
            self.git.edit(&file, wave, &format!("{wave}argocd.argoproj.io/compare-options: ServerSideDiff=true, "))?;
        }
        self.commit = self.git.push("charts: server-side apply")?;
        results.step("the charts change to server-side apply: Synced and Healthy", MINUTE, || {
            self.argo.await_health(&MESH, &self.commit, "Healthy", SOON)?;
            self.synced(&MESH)
        })
    }

    /// Nothing goes out of sync by itself, by a new certificate of the webhooks, or by changes of statuses.
    fn watch(&self, results: &mut Results) -> Result<()> {
        let seconds =
            std::env::var("WEFT_WATCH_SECONDS").context("WEFT_WATCH_SECONDS is not set: run e2e/gitops.sh")?;
        let watched = Duration::from_secs(seconds.parse().context("WEFT_WATCH_SECONDS")?);
        let applications = [&MESH[..], &EXAMPLES].concat();
        self.argo.await_health(&MESH, &self.commit, "Healthy", SOON)?;
        let (before, bundle) = (self.synced_at(&applications)?, self.ca_bundle()?);
        let what = format!("nothing goes out of sync, compared each {} s", COMPARE.as_secs());
        results.step(&what, watched + SOON, || {
            let began = Instant::now();
            let mut rounds = 0;
            while began.elapsed() < watched || rounds < ROUNDS_MIN {
                match rounds {
                    // The operator issues a new CA, and writes it into the webhooks' caBundle.
                    2 => self.system().delete("secret", "weft-webhook-ca")?,
                    4 => self.delete_pods(install::SYSTEM, "app.kubernetes.io/name=weft-operator")?,
                    // Statuses change while a Service has no ready pod.
                    6 => SHOPS.iter().try_for_each(|shop| self.delete_pods(shop, "app=reviews"))?,
                    _ => {}
                }
                let next = Instant::now() + COMPARE;
                self.synced(&applications)?;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                rounds += 1;
            }
            let after = self.synced_at(&applications)?;
            ensure!(before == after, "something was applied again: {before:?} before, {after:?} after");
            ensure!(self.ca_bundle()? != bundle, "the operator did not write a new caBundle");
            Ok(())
        })?;
        self.argo.await_health(&MESH, &self.commit, "Healthy", SOON)
    }

    /// Another shop, which Flux applies.
    fn flux(&mut self, results: &mut Results) -> Result<()> {
        let shop = Kubectl::within(self.cluster, "shop-flux");
        let versions = || {
            let columns = "custom-columns=KIND:.kind,NAME:.metadata.name,VERSION:.metadata.resourceVersion";
            shop.run(&[
                "get",
                "meshroutes,meshclusters,meshpolicies,httproutes,deployments,services",
                "--output",
                columns,
            ])
        };
        let flux = results.step("Flux: kustomize-controller is ready", SOON, || Flux::install(self.cluster))?;
        results.step("Flux: a shop is applied, and Current by kstatus", MINUTE, || {
            flux.apply_shop()?;
            flux.offer(&self.git.snapshot(&self.commit)?)?;
            flux.await_ready(&self.commit, "True", SOON).map(drop)
        })?;
        let before = versions()?;
        results.step("Flux: applied again three times, nothing changes", MINUTE, || {
            for _ in 0..3 {
                flux.reconcile(SOON)?;
            }
            let after = versions()?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            Ok(())
        })?;
        self.make_mistakes()?;
        results.step("Flux: a route with a mistake fails the Kustomization", MINUTE, || {
            flux.offer(&self.git.snapshot(&self.commit)?)?;
            let ready = flux.await_ready(&self.commit, "False", SOON)?;
            ensure!(ready.message.contains("MeshRoute/shop-flux/reviews status: 'Failed'"), "{ready:?}");
            Ok(())
        })?;
        self.correct_mistakes()?;
        results.step("Flux: the mistake is corrected", MINUTE, || {
            flux.offer(&self.git.snapshot(&self.commit)?)?;
            flux.await_ready(&self.commit, "True", SOON).map(drop)
        })?;
        results.step("Flux: everything that it applied is pruned", MINUTE, || {
            flux.delete()?;
            self.empty("shop-flux", "deployments,pods,services,meshroutes,meshclusters,meshpolicies,httproutes")
        })
    }

    /// What is removed from Git is removed from the cluster, and in the end all of it.
    fn prune(&mut self, results: &mut Results) -> Result<()> {
        for object in ["read-only", "reviews", "subsets", "ratings"] {
            self.git.remove(&format!("shop/{object}.yaml"))?;
        }
        self.commit = self.git.push("no mesh objects")?;
        results.step("mesh objects removed from Git are gone from the cluster", MINUTE, || {
            self.argo.await_health(&MESH, &self.commit, "Healthy", SOON)?;
            SHOPS.iter().try_for_each(|shop| self.empty(shop, "meshroutes,meshclusters,meshpolicies,httproutes"))
        })?;
        self.git.remove("apps/shop-ssa.yaml")?;
        self.commit = self.git.push("one shop less")?;
        results.step("an Application removed from Git: its pods and objects are gone", MINUTE, || {
            self.argo.await_health(&["mesh"], &self.commit, "Healthy", SOON)?;
            self.empty("shop-ssa", "deployments,pods,services,meshroutes,meshclusters,meshpolicies,httproutes")?;
            eventually("nothing of it in the proxies' configuration", SOON, || {
                let document = Kubectl::within(self.cluster, "weft-config").get("configmap", "x.shop-ssa")?;
                ensure!(document["data"]["body"] == "{}", "{document}");
                Ok(())
            })
        })?;
        results.step("everything is deleted: of Weft only the CRDs are left, as the chart says", 2 * MINUTE, || {
            for name in ["examples", "examples-ssa", "mesh"] {
                self.argo.delete(name, SOON)?;
            }
            self.nothing_left()
        })
    }

    /// Compares the Applications with Git, without caches; fails if one is out of sync.
    fn synced(&self, names: &[&str]) -> Result<()> {
        for (name, found) in self.argo.compare(names, SOON)? {
            ensure!(found.sync == "Synced", "{name}: {found:?}\n{}", self.argo.differences(&name));
        }
        Ok(())
    }

    fn synced_at(&self, names: &[&str]) -> Result<BTreeMap<String, String>> {
        names.iter().map(|name| Ok(((*name).to_owned(), self.argo.application(name)?.synced_at))).collect()
    }

    fn ca_bundle(&self) -> Result<String> {
        let path = "jsonpath={.webhooks[*].clientConfig.caBundle}";
        self.system().run(&["get", "mutatingwebhookconfiguration", "weft-injector", "--output", path])
    }

    /// Waits until a request of each shop's client gets a response with the header.
    fn answers(&self, url: &str, (header, value): (&str, &str)) -> Result<()> {
        for shop in SHOPS {
            let client = Client::of(&Kubectl::within(self.cluster, shop), "client");
            eventually(&format!("{header}: {value} from {url}"), SOON, || {
                let answer = client.get(url).send()?;
                ensure!(answer.header(header) == Some(value), "{answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    fn empty(&self, namespace: &str, kinds: &str) -> Result<()> {
        let kubectl = Kubectl::within(self.cluster, namespace);
        eventually(&format!("no {kinds} in {namespace}"), SOON, || {
            let found = kubectl.run(&["get", kinds, "--output", "name"])?;
            ensure!(found.is_empty(), "{found}");
            Ok(())
        })
    }

    fn nothing_left(&self) -> Result<()> {
        let kubectl = Kubectl::new(self.cluster);
        eventually("nothing of Weft", SOON, || {
            let kinds = "namespaces,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,\
                         validatingwebhookconfigurations";
            let found = kubectl.run(&["get", kinds, "--output", "name"])?;
            let found: Vec<_> = found.lines().filter(|object| object.contains("weft")).collect();
            ensure!(found == ["namespace/weft-system"], "{found:?}");
            let objects = kubectl.run(&[
                "get",
                "meshroutes,meshclusters,meshpolicies,httproutes",
                "--all-namespaces",
                "-o",
                "name",
            ])?;
            ensure!(objects.is_empty(), "{objects}");
            Ok(())
        })
    }

    fn system(&self) -> Kubectl {
        Kubectl::within(self.cluster, install::SYSTEM)
    }

    fn delete_pods(&self, namespace: &str, selector: &str) -> Result<()> {
        let kubectl = Kubectl::within(self.cluster, namespace);
        kubectl.run(&["delete", "pods", "--selector", selector, "--wait=false"]).map(drop)
    }
}

/// The examples of [`PAGES`], each under a name of its own.
fn examples() -> Result<String> {
    let mut yaml = String::new();
    let mut count = 0;
    for page in PAGES {
        for manifest in docs::manifests(&read(page)?).iter().flat_map(|manifest| manifest.split("---\n")) {
            let Some((before, after)) = manifest.split_once(", namespace: shop}\nspec:") else { continue };
            count += 1;
            yaml += &format!("---\n{before}-{count}}}\nspec:{after}\n");
        }
    }
    ensure!(count > 20, "only {count} examples were found:\n{yaml}");
    Ok(yaml)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(checkout().join(path)).with_context(|| path.to_owned())
}
