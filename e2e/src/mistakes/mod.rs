//! Mistakes that users make, and where each is told: `e2e/tests/mistakes.rs` makes them on a cluster, and
//! `docs/mistakes.md` is generated from the same table.
//!
//! In steps and words, `{ns}` is the namespace in which the mistake is made, and `{other}` another one. Of the two one
//! is in the mesh.

mod annotations;
mod changes;
mod gateway;
mod manifest;
mod namespaces;
mod order;
mod page;
mod policies;
mod references;
mod values;
mod workloads;

pub use page::page;

use crate::namespace::Mesh;

/// Mistakes that are made in the same two namespaces, one after the other.
#[derive(Debug)]
pub struct Group {
    /// Its name, part of the names of the namespaces.
    pub name: &'static str,
    /// Its heading in the page.
    pub title: &'static str,
    /// Whether `{ns}` is in the mesh; `{other}` is if `{ns}` is not.
    pub mesh: Mesh,
    /// What is in the two namespaces before.
    pub scene: Scene,
    /// The mistakes.
    pub mistakes: Vec<Mistake>,
}

/// What is in two namespaces before mistakes are made there.
#[derive(Debug, Default)]
pub struct Scene {
    /// Manifests for `{ns}`.
    pub own: String,
    /// Manifests for `{other}`.
    pub other: String,
    /// Deployments of `own` and of `other`, whose pods must be ready.
    pub deployments: (Vec<&'static str>, Vec<&'static str>),
}

/// A mistake, where it is told, and what follows when it is mended.
#[derive(Debug)]
pub struct Mistake {
    /// What was done wrong, as the page says it.
    pub name: String,
    /// Whether it is made in `{other}`, which then is `{ns}` in its steps and words.
    pub elsewhere: bool,
    /// What is there before, and is right.
    pub given: Option<Step>,
    /// What the author does.
    pub made: Step,
    /// Where it is told: in all of these places.
    pub told: Vec<Told>,
    /// Steps after which the object is ready, or gives another reason.
    pub mended: Vec<Step>,
}

/// What an author does.
#[derive(Clone, Debug)]
pub enum Step {
    /// `kubectl apply` of this manifest.
    Apply(String),
    /// The same in the other namespace.
    ApplyElsewhere(String),
    /// kubectl with these arguments, with one space between them.
    Run(&'static str),
}

/// A place in which a mistake is told, and what stands there.
#[derive(Debug)]
pub struct Told {
    /// The place.
    pub place: Place,
    /// Parts of the text, in their order: what is wrong and where, and the remedy.
    pub says: Vec<String>,
}

/// Where an author looks.
#[derive(Debug)]
pub enum Place {
    /// What kubectl prints, while it does what it was told.
    Warning,
    /// What kubectl prints, and nothing is applied.
    Refusal,
    /// `kubectl get`: the columns READY and REASON, and MESSAGE with `-o wide`.
    Columns {
        /// `kind/name`.
        object: &'static str,
        /// READY.
        ready: &'static str,
        /// REASON.
        reason: &'static str,
    },
    /// A condition in `status.parents` of a route of the Gateway API.
    Parent {
        /// `kind/name`.
        object: &'static str,
        /// The condition's type.
        condition: &'static str,
        /// Its status.
        status: &'static str,
        /// Its reason.
        reason: &'static str,
    },
    /// An Event that `kubectl describe` shows.
    Event {
        /// `kind/name`.
        object: &'static str,
        /// Its reason.
        reason: &'static str,
    },
}

/// All groups, in the order of the page.
pub fn groups() -> Vec<Group> {
    vec![
        namespaces::group(),
        workloads::group(),
        annotations::group(),
        values::group(),
        references::group(),
        gateway::group(),
        policies::group(),
        order::group(),
        changes::group(),
    ]
}

/// The group with this name.
pub fn group(name: &str) -> Option<Group> {
    groups().into_iter().find(|group| group.name == name)
}

// === impl Mistake ===

impl Mistake {
    fn new(name: impl Into<String>, made: Step) -> Self {
        let (name, told, mended) = (name.into(), Vec::new(), Vec::new());
        Self { name, elsewhere: false, given: None, made, told, mended }
    }

    fn elsewhere(mut self) -> Self {
        self.elsewhere = true;
        self
    }

    fn given(mut self, manifest: impl Into<String>) -> Self {
        self.given = Some(Step::Apply(manifest.into()));
        self
    }

    fn given_run(mut self, arguments: &'static str) -> Self {
        self.given = Some(Step::Run(arguments));
        self
    }

    fn warned(self, says: &[&str]) -> Self {
        self.told(Place::Warning, says)
    }

    fn refused(self, says: &[&str]) -> Self {
        self.told(Place::Refusal, says)
    }

    /// READY is False.
    fn not_ready(self, object: &'static str, reason: &'static str, says: &[&str]) -> Self {
        self.told(Place::Columns { object, ready: "False", reason }, says)
    }

    /// READY is True, and the other columns say what is missing.
    fn limited(self, object: &'static str, reason: &'static str, says: &[&str]) -> Self {
        self.told(Place::Columns { object, ready: "True", reason }, says)
    }

    /// In `status.parents`, Accepted is False.
    fn refused_by_parent(self, object: &'static str, reason: &'static str, says: &[&str]) -> Self {
        self.told(Place::Parent { object, condition: "Accepted", status: "False", reason }, says)
    }

    /// In `status.parents`, Accepted is True, and its message says what has no effect.
    fn noted_by_parent(self, object: &'static str, reason: &'static str, says: &[&str]) -> Self {
        self.told(Place::Parent { object, condition: "Accepted", status: "True", reason }, says)
    }

    /// In `status.parents`, PartiallyInvalid is True.
    fn in_part(self, object: &'static str, reason: &'static str, says: &[&str]) -> Self {
        self.told(Place::Parent { object, condition: "PartiallyInvalid", status: "True", reason }, says)
    }

    /// In `status.parents`, ResolvedRefs is False.
    fn unresolved(self, object: &'static str, reason: &'static str, says: &[&str]) -> Self {
        self.told(Place::Parent { object, condition: "ResolvedRefs", status: "False", reason }, says)
    }

    fn event(self, object: &'static str, reason: &'static str, says: &[&str]) -> Self {
        self.told(Place::Event { object, reason }, says)
    }

    fn mended(mut self, step: Step) -> Self {
        self.mended.push(step);
        self
    }

    fn told(mut self, place: Place, says: &[&str]) -> Self {
        self.told.push(Told { place, says: says.iter().map(|&part| part.to_owned()).collect() });
        self
    }

    /// Whether only kubectl tells it: then nothing needs to be stored.
    pub fn is_told_by_kubectl(&self) -> bool {
        self.told.iter().all(|told| matches!(told.place, Place::Warning | Place::Refusal))
    }
}
