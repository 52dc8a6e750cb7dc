//! The Mesh: whether it is in use, and whether proxies trust its roots. The time is a parameter.

use std::collections::{BTreeMap, BTreeSet};

use weft_crds::mesh::{MeshSpec, NAME};
use weft_crds::status::Reason;
use weft_identity::{Fingerprint, Root, TrustBundle, TrustDomain, UnixTime, rfc3339};

use super::compiled::Outcome;
use super::diagnostic::Diagnostic;
use crate::world::{Kind, Mesh, ObjectId, World};

/// Where to read on.
const CHANGE: &str = "docs/identity.md, \"Change the trust domain\"";

/// The outcome of each object of the kind. What of an object cannot be used changes nothing, and the rest of it is in use.
pub fn compile(world: &World, now: UnixTime) -> BTreeMap<ObjectId, Outcome> {
    let outcome = |mesh: &Mesh| {
        let diagnostics = if mesh.meta.key.name == NAME {
            match &mesh.spec {
                Ok(spec) => check(spec, world.trust(), now),
                Err(error) => {
                    vec![Diagnostic::refused(Reason::Invalid, format!("the object cannot be parsed: {error}"))]
                }
            }
        } else {
            let message = format!("there is one Mesh, named {NAME}: set metadata.name: {NAME}");
            vec![Diagnostic::refused(Reason::UnsupportedValue, message)]
        };
        (ObjectId { kind: Kind::Mesh, key: mesh.meta.key.clone() }, Outcome { diagnostics, ..Outcome::default() })
    };
    world.meshes().map(outcome).collect()
}

/// How many roots of the Mesh proxies do not trust yet.
pub fn missing_roots(world: &World) -> usize {
    let trust = world.trust();
    let trusted: BTreeSet<Fingerprint> =
        trust.and_then(|trust| Some(trust.fingerprints(trust.only_domain()?))).into_iter().flatten().collect();
    let spec = world.meshes().find(|mesh| mesh.meta.key.name == NAME).and_then(|mesh| mesh.spec.as_ref().ok());
    let roots = spec.into_iter().flat_map(MeshSpec::roots).filter_map(|text| Root::read(text).ok()).flatten();
    roots.filter(|root| !trusted.contains(&root.fingerprint())).count()
}

fn check(spec: &MeshSpec, trust: Option<&TrustBundle>, now: UnixTime) -> Vec<Diagnostic> {
    let domain = spec.trust_domain.as_deref().and_then(|wanted| check_domain(wanted, trust));
    let roots = spec.roots().iter().enumerate().flat_map(|(index, text)| check_root(index, text, now));
    domain.into_iter().chain(roots).collect()
}

fn check_domain(wanted: &str, trust: Option<&TrustBundle>) -> Option<Diagnostic> {
    let wanted: TrustDomain = match wanted.parse() {
        Ok(domain) => domain,
        Err(error) => return Some(Diagnostic::refused(Reason::UnsupportedValue, format!("spec.trustDomain: {error}"))),
    };
    let in_force = trust?.only_domain()?;
    let message = format!(
        "spec.trustDomain: {wanted} is not in force, but {in_force}, which was decided when Weft was installed: pods of one \
         do not trust those of another. Set {in_force}, or start over as in {CHANGE}. The rest of the object is in use"
    );
    (wanted != *in_force).then(|| Diagnostic::refused(Reason::UnsupportedValue, message))
}

fn check_root(index: usize, text: &str, now: UnixTime) -> Vec<Diagnostic> {
    let field = format!("spec.trust.roots[{index}]");
    let roots = match Root::read(text) {
        Ok(roots) => roots,
        Err(error) => {
            let message = format!(
                "{field}: {error}: write the certificate of an authority in PEM. Until then, the roots that proxies trust \
                 stay as they are"
            );
            return vec![Diagnostic::partial(message)];
        }
    };
    let expired = roots.iter().filter(|root| root.not_after() < now).map(|root| {
        let until = rfc3339(root.not_after());
        Diagnostic::partial(format!("{field}: the certificate expired at {until}: remove it, or renew it"))
    });
    expired.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use weft_identity::authority::Authority;
    use weft_identity::pem;

    use super::*;
    use crate::compile::Severity;

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn root(seconds: u64) -> Authority {
        Authority::root(&"cluster.local".parse().unwrap(), at(seconds)).unwrap()
    }

    fn text(root: &Authority) -> String {
        pem::certificates([&root.certificate])
    }

    #[test]
    fn what_cannot_be_used_is_told_with_the_field_and_the_remedy() {
        let ours = root(NOW);
        let trust = TrustBundle::new("cluster.local".parse().unwrap(), [ours.certificate.clone()]).unwrap();
        let expired = text(&root(NOW - 12 * 366 * 86_400));
        for (desc, spec, trust, expected) in [
            ("nothing", json!({}), Some(&trust), None),
            ("the domain in force", json!({"trustDomain": "cluster.local"}), Some(&trust), None),
            ("before there is one", json!({"trustDomain": "corp"}), None, None),
            (
                "another domain",
                json!({"trustDomain": "corp"}),
                Some(&trust),
                Some((Severity::Refused, "spec.trustDomain: corp is not in force, but cluster.local")),
            ),
            (
                "upper case, past the schema",
                json!({"trustDomain": "Corp"}),
                Some(&trust),
                Some((Severity::Refused, "spec.trustDomain: trust domain \"Corp\" is invalid; use lower case")),
            ),
            ("roots", json!({"trust": {"roots": [text(&ours)]}}), Some(&trust), None),
            (
                "no PEM",
                json!({"trust": {"roots": [text(&ours), "x"]}}),
                Some(&trust),
                Some((Severity::Partial, "spec.trust.roots[1]: it is no certificate in PEM: write the certificate")),
            ),
            (
                "expired",
                json!({"trust": {"roots": [expired]}}),
                Some(&trust),
                Some((Severity::Partial, "spec.trust.roots[0]: the certificate expired at 20")),
            ),
        ] {
            let spec: MeshSpec = serde_json::from_value::<MeshSpec>(spec as Value).unwrap();
            let found = check(&spec, trust, at(NOW));
            let found: Vec<_> = found.iter().map(|found| (found.severity, found.message.as_str())).collect();
            match (expected, &found[..]) {
                (None, []) => {}
                (Some((severity, start)), [(found, message)]) => {
                    assert_eq!(*found, severity, "{desc}");
                    assert!(message.starts_with(start), "{desc}: {message}");
                }
                _ => panic!("{desc}: {found:?}"),
            }
        }
    }
}
