//! Makes each mistake of the table [`weft_e2e::mistakes`], and measures how long it takes until its author is told.
//!
//! A test makes the mistakes of one group in two namespaces, one after the other, and prints when each was told. It
//! fails with a list of all that were not, or too late.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_e2e::command::Output;
use weft_e2e::gateway_api;
use weft_e2e::install;
use weft_e2e::mistakes::{self, Group, Mistake, Place, Scene, Step, Told};
use weft_e2e::namespace::{Mesh, Namespace, READY};
use weft_e2e::table;
use weft_e2e::wait::eventually;

/// An author is told within this time.
const LIMIT: Duration = Duration::from_secs(2);
/// How often a mistake is made. The other tests load the same machine, where a process may get no CPU for seconds; what
/// is late by itself is late twice.
const TRIES: usize = 2;
/// When a place is given up.
const GIVE_UP: Duration = Duration::from_secs(8);
/// Pause between two looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// The two namespaces in which mistakes are made.
struct Places {
    ns: Namespace,
    other: Namespace,
}

/// The namespace in which a mistake is made, and the other one.
type Namespaces<'a> = [&'a Namespace; 2];

// === impl Places ===

impl Places {
    fn create(Group { name, mesh, scene, .. }: &Group) -> Result<Self> {
        let opposite = if *mesh == Mesh::Inside { Mesh::Outside } else { Mesh::Inside };
        let ns = Namespace::create(&format!("mistakes-{name}"), *mesh)?;
        let other = Namespace::create(&format!("mistakes-{name}-other"), opposite)?;
        let places = Self { ns, other };
        let Scene { own, other, deployments } = scene;
        for (namespace, manifest) in [(&places.ns, own), (&places.other, other)] {
            if !manifest.is_empty() {
                namespace.apply(manifest)?;
            }
        }
        places.ns.wait_ready(&deployments.0)?;
        places.other.wait_ready(&deployments.1)?;
        Ok(places)
    }

    fn of(&self, mistake: &Mistake) -> Namespaces<'_> {
        if mistake.elsewhere { [&self.other, &self.ns] } else { [&self.ns, &self.other] }
    }
}

/// The row of `kubectl get -o wide`, by the names of its columns. Fails if the status is older than the object.
fn columns(namespace: &Namespace, object: &str) -> Result<BTreeMap<String, String>> {
    let row = table::first_row(&namespace.run(&["get", object, "-o", "wide"])?)?;
    ensure!(row.get("GENERATION") == row.get("OBSERVED"), "the status of {object} is older than the object: {row:?}");
    Ok(row)
}

/// A text of the table for these namespaces.
fn fill(text: &str, [ns, other]: Namespaces<'_>) -> String {
    text.replace("{ns}", &ns.name).replace("{other}", &other.name)
}

fn run(step: &Step, namespaces: Namespaces<'_>, dry: bool) -> Result<Output> {
    let [ns, other] = namespaces;
    let (namespace, arguments, manifest) = match step {
        Step::Apply(manifest) => (ns, "apply -f -", manifest.as_str()),
        Step::ApplyElsewhere(manifest) => (other, "apply -f -", manifest.as_str()),
        Step::Run(arguments) => (ns, *arguments, ""),
    };
    let arguments = fill(arguments, namespaces);
    let arguments: Vec<&str> = arguments.split(' ').chain(dry.then_some("--dry-run=server")).collect();
    namespace.run_with(&arguments, &fill(manifest, namespaces), READY)
}

fn run_well(step: &Step, namespaces: Namespaces<'_>) -> Result<Output> {
    let output = run(step, namespaces, false)?;
    ensure!(output.success, "kubectl fails: {}", output.stderr);
    Ok(output)
}

/// Fails unless the text has all parts, in their order.
fn expect(text: &str, told: &Told, namespaces: Namespaces<'_>) -> Result<()> {
    let mut rest = text;
    for part in &told.says {
        let part = fill(part, namespaces);
        let (_, after) = rest.split_once(&part).with_context(|| format!("{part:?} is not in {text:?}"))?;
        rest = after;
    }
    Ok(())
}

/// Looks once.
fn look(told: &Told, output: &Output, namespaces: Namespaces<'_>) -> Result<()> {
    match &told.place {
        Place::Warning => {
            ensure!(output.success, "kubectl fails: {}", output.stderr);
            let ours: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("Warning: weft: ")).collect();
            expect(&ours.join("\n"), told, namespaces)
        }
        Place::Refusal => {
            ensure!(!output.success, "nothing is refused: {}", output.stdout);
            expect(&output.stderr, told, namespaces)
        }
        Place::Columns { object, ready, reason } => {
            let row = columns(namespaces[0], object)?;
            ensure!(row["READY"] == *ready && row["REASON"] == *reason, "not {ready} {reason}: {row:?}");
            expect(&row["MESSAGE"], told, namespaces)
        }
        Place::Parent { object, condition, status, reason } => {
            let found = gateway_api::condition(namespaces[0], object, condition)?;
            ensure!(found.status == *status && found.reason == *reason, "not {status} {reason}: {found:?}");
            expect(&found.message, told, namespaces)
        }
        Place::Event { object, reason } => {
            let events = namespaces[0].events(object)?;
            let line = events.lines().find(|line| line.contains("Warning") && line.contains(reason));
            expect(line.with_context(|| format!("no Event {reason} in {events:?}"))?, told, namespaces)
        }
    }
}

/// Makes the mistake, and returns how long it took until it was told in all places: after kubectl ended, or kubectl
/// itself if only it tells.
fn make(mistake: &Mistake, namespaces: Namespaces<'_>) -> Result<Duration> {
    if let Some(given) = &mistake.given {
        run_well(given, namespaces)?;
    }
    let began = Instant::now();
    let output = run(&mistake.made, namespaces, mistake.is_told_by_kubectl())?;
    let made = output.ended;
    for told in &mistake.told {
        while let Err(error) = look(told, &output, namespaces) {
            let is_final = matches!(told.place, Place::Warning | Place::Refusal);
            if is_final || made.elapsed() > GIVE_UP {
                return Err(error);
            }
            thread::sleep(INTERVAL);
        }
    }
    Ok(if mistake.is_told_by_kubectl() { made - began } else { made.elapsed() })
}

/// As [`make`], again if it was late. What a command changed is mended before, or cannot be made again.
fn make_in_time(mistake: &Mistake, namespaces: Namespaces<'_>) -> Result<Duration> {
    let mut result = make(mistake, namespaces);
    for _ in 1..TRIES {
        if matches!(result, Ok(took) if took <= LIMIT) {
            break;
        }
        match &mistake.made {
            _ if mistake.is_told_by_kubectl() => {}
            Step::Apply(manifest) => {
                let manifest = fill(manifest, namespaces);
                let arguments = ["delete", "-f", "-", "--ignore-not-found"];
                namespaces[0].run_with(&arguments, &manifest, READY)?.stdout_of_success("kubectl delete")?;
            }
            Step::ApplyElsewhere(_) | Step::Run(_) if mistake.mended.is_empty() => break,
            Step::ApplyElsewhere(_) | Step::Run(_) => mend(mistake, namespaces)?,
        }
        result = make(mistake, namespaces);
    }
    let took = result?;
    ensure!(took <= LIMIT, "told after {:.1} s", took.as_secs_f64());
    Ok(took)
}

/// Mends the mistake, if the table says how: then its objects are ready, or say something else.
fn mend(mistake: &Mistake, namespaces: Namespaces<'_>) -> Result<()> {
    if mistake.mended.is_empty() {
        return Ok(());
    }
    for step in &mistake.mended {
        run_well(step, namespaces)?;
    }
    for told in &mistake.told {
        match &told.place {
            Place::Columns { object, reason, .. } => eventually(&format!("{object} to be ready"), READY, || {
                let row = columns(namespaces[0], object)?;
                ensure!(row["READY"] == "True" && row["REASON"] != *reason, "{row:?}");
                Ok(())
            })?,
            Place::Parent { object, condition, .. } => {
                gateway_api::await_condition(namespaces[0], object, condition, "True")?;
            }
            Place::Warning | Place::Refusal | Place::Event { .. } => {}
        }
    }
    Ok(())
}

/// Makes the mistakes of a group, and reports when each was told.
fn check(name: &str) -> Result<String> {
    let group = mistakes::group(name).with_context(|| format!("no group {name}"))?;
    let places = Places::create(&group)?;
    let began = Instant::now();
    let mut rows = vec![["mistake", "seconds"].map(str::to_owned).to_vec()];
    let mut failures = Vec::new();
    for mistake in &group.mistakes {
        let namespaces = places.of(mistake);
        let result = make_in_time(mistake, namespaces);
        let took = result.as_ref().map_or_else(|_| "-".to_owned(), |took| format!("{:.1}", took.as_secs_f64()));
        rows.push(vec![mistake.name.clone(), took]);
        if let Err(error) = result.and_then(|_| mend(mistake, namespaces)) {
            failures.push(format!("{}: {error:#}", mistake.name));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let report = format!("{} mistakes in {seconds:.0} s\n{}", group.mistakes.len(), table::text(&rows));
    ensure!(failures.is_empty(), "{report}{} of them are not told:\n{}", failures.len(), failures.join("\n"));
    Ok(report)
}

#[test]
fn labels_of_namespaces() -> Result<()> {
    println!("{}", check("namespaces")?);
    Ok(())
}

#[test]
fn workloads_without_a_proxy() -> Result<()> {
    println!("{}", check("workloads")?);
    Ok(())
}

#[test]
fn values_of_annotations() -> Result<()> {
    println!("{}", check("annotations")?);
    Ok(())
}

#[test]
fn values_of_objects() -> Result<()> {
    println!("{}", check("values")?);
    Ok(())
}

#[test]
fn references_that_do_not_resolve() -> Result<()> {
    println!("{}", check("references")?);
    Ok(())
}

#[test]
fn routes_of_the_gateway_api() -> Result<()> {
    install::ensure_gateway_api()?;
    println!("{}", check("gateway")?);
    Ok(())
}

#[test]
fn objects_that_pods_do_not_apply() -> Result<()> {
    println!("{}", check("policies")?);
    Ok(())
}

#[test]
fn objects_applied_before_what_they_need() -> Result<()> {
    install::ensure_gateway_api()?;
    println!("{}", check("order")?);
    Ok(())
}

#[test]
fn changes_of_what_other_objects_name() -> Result<()> {
    println!("{}", check("changes")?);
    Ok(())
}
