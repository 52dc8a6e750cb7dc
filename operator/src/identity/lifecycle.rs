//! When the leader makes a root or an issuer. It never overwrites a Secret that it did not make, nor one that cannot be
//! used: that may be an edit in progress, and the last good issuer is in use meanwhile.

use std::time::Duration;

use weft_identity::issue::Issuer;
use weft_identity::{CertificateDer, Fingerprint, TrustBundle, TrustDomain, UnixTime};

/// What there is.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The trust domain.
    pub domain: &'a TrustDomain,
    /// Whether the Secret of the issuer exists, usable or not.
    pub has_issuer: bool,
    /// The issuer in use.
    pub current: Option<&'a Issuer>,
    /// Whether the Secret of the issuer is the one in use.
    pub is_current: bool,
    /// The certificate in the Secret of the generated root.
    pub root: Option<&'a CertificateDer<'static>>,
    /// The roots that proxies trust.
    pub published: Option<&'a TrustBundle>,
}

/// What the leader does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// It makes a root, and then an issuer below it.
    MakeRoot,
    /// It makes an issuer below the root that exists.
    MakeIssuer,
}

/// Decides.
pub fn decide(found: &Found<'_>, now: UnixTime) -> Action {
    let Found { domain, has_issuer, current, is_current, root, published } = found;
    let is_below = |issuer: &Issuer, root: &CertificateDer<'_>| issuer.root() == root;
    match (has_issuer, root) {
        // The first installation: nobody trusts anything yet.
        (false, None) if current.is_none() && published.is_none() => Action::MakeRoot,
        (false, Some(root)) => {
            let fingerprint = Fingerprint::of(root);
            let is_trusted = published.is_none_or(|bundle| bundle.fingerprints(domain).any(|it| it == fingerprint));
            // A user who deletes the own issuer is about to create it again.
            let is_ours = current.is_none_or(|current| is_below(current, root));
            if is_trusted && is_ours { Action::MakeIssuer } else { Action::Keep }
        }
        (true, Some(root)) if *is_current => match current {
            Some(current) if is_below(current, root) && is_renewal_due(current, now) => Action::MakeIssuer,
            _ => Action::Keep,
        },
        _ => Action::Keep,
    }
}

/// When half of the issuer's life is over.
pub fn renewal(issuer: &Issuer) -> UnixTime {
    let (start, end) = (issuer.not_before().as_secs(), issuer.not_after().as_secs());
    UnixTime::since_unix_epoch(Duration::from_secs(start + end.saturating_sub(start) / 2))
}

fn is_renewal_due(issuer: &Issuer, now: UnixTime) -> bool {
    now >= renewal(issuer)
}

#[cfg(test)]
mod tests {
    use weft_identity::authority::Authority;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn domain() -> TrustDomain {
        "cluster.local".parse().unwrap()
    }

    fn bundle(root: &Authority) -> TrustBundle {
        TrustBundle::new(domain(), [root.certificate.clone()]).unwrap()
    }

    fn issuer(root: &Authority) -> Issuer {
        let own = root.intermediate(&domain(), at(NOW)).unwrap();
        Issuer::new(&[own.certificate], &own.key, domain(), &bundle(root), at(NOW)).unwrap()
    }

    #[test]
    fn roots_and_issuers_are_made_only_where_nobody_else_may() {
        let domain = domain();
        let [ours, users] = [(); 2].map(|()| Authority::root(&domain, at(NOW)).unwrap());
        let (our_issuer, users_issuer) = (issuer(&ours), issuer(&users));
        let (our_bundle, users_bundle) = (bundle(&ours), bundle(&users));
        let (first, half) = (NOW + 86_400, NOW + 183 * 86_400);
        let none =
            Found { domain: &domain, has_issuer: false, current: None, is_current: false, root: None, published: None };
        let our_root = Some(&ours.certificate);
        let in_use = |issuer| Found { has_issuer: true, is_current: true, current: Some(issuer), ..none };
        let refused = |issuer| Found { is_current: false, ..in_use(issuer) };
        for (desc, found, seconds, expected) in [
            ("first installation", none, first, Action::MakeRoot),
            ("only the root was written", Found { root: our_root, ..none }, first, Action::MakeIssuer),
            (
                "issuer deleted, operator restarted",
                Found { root: our_root, published: Some(&our_bundle), ..none },
                first,
                Action::MakeIssuer,
            ),
            (
                "issuer deleted while it runs",
                Found { root: our_root, published: Some(&our_bundle), current: Some(&our_issuer), ..none },
                first,
                Action::MakeIssuer,
            ),
            ("user's issuer deleted", Found { current: Some(&users_issuer), ..none }, first, Action::Keep),
            (
                "user's issuer deleted, operator restarted",
                Found { published: Some(&users_bundle), ..none },
                first,
                Action::Keep,
            ),
            (
                "user's issuer deleted, our old root is there",
                Found { root: our_root, current: Some(&users_issuer), published: Some(&our_bundle), ..none },
                first,
                Action::Keep,
            ),
            (
                "our old root is not trusted any more",
                Found { root: our_root, published: Some(&users_bundle), ..none },
                first,
                Action::Keep,
            ),
            ("both Secrets deleted while it runs", Found { current: Some(&our_issuer), ..none }, first, Action::Keep),
            ("in use", Found { root: our_root, ..in_use(&our_issuer) }, first, Action::Keep),
            ("half of its life", Found { root: our_root, ..in_use(&our_issuer) }, half, Action::MakeIssuer),
            ("half of its life without the root", in_use(&our_issuer), half, Action::Keep),
            ("half of the life of a user's", Found { root: our_root, ..in_use(&users_issuer) }, half, Action::Keep),
            ("an edit that cannot be used", Found { root: our_root, ..refused(&our_issuer) }, half, Action::Keep),
            ("not usable at start", Found { has_issuer: true, root: our_root, ..none }, first, Action::Keep),
        ] {
            assert_eq!(decide(&found, at(seconds)), expected, "{desc}");
        }
    }

    #[test]
    fn renewal_is_at_half_of_life() {
        let root = Authority::root(&domain(), at(NOW)).unwrap();
        let issuer = issuer(&root);
        let middle = u64::midpoint(issuer.not_before().as_secs(), issuer.not_after().as_secs());
        assert_eq!(renewal(&issuer), at(middle));
        assert_eq!(middle, NOW + (365 * 86_400 - 3600) / 2);
    }
}
