//! SPIFFE ids of workloads. Source: the SPIFFE ID specification; the path is that of Kubernetes service accounts, as in
//! Istio. An id is compared octet by octet, so there is exactly one spelling of each: what is not canonical is refused.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Maximum length of a trust domain in bytes. Source: the SPIFFE ID specification.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// Maximum length of a namespace's name. Source: Kubernetes, DNS label.
const NAMESPACE_BYTES_MAX: usize = 63;
/// Maximum length of a service account's name. Source: Kubernetes, DNS subdomain.
const SERVICE_ACCOUNT_BYTES_MAX: usize = 253;

/// The name of a realm of identities, such as `cluster.local`. Its roots sign for it, and for no other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

/// A service account of Kubernetes, cheap to clone: an identity within a trust domain that is not named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    namespace: Arc<str>,
    name: Arc<str>,
}

/// The identity of a workload, cheap to clone: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    account: Account,
}

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The trust domain is invalid.
    #[error(
        "trust domain {0:?} is invalid; use lower case letters, digits, '-' and '_' in parts separated by single dots, \
         at most {TRUST_DOMAIN_BYTES_MAX} characters, as in cluster.local"
    )]
    TrustDomain(String),
    /// The namespace is not a name of Kubernetes.
    #[error("{0:?} is not the name of a namespace")]
    Namespace(String),
    /// The service account is not a name of Kubernetes.
    #[error("{0:?} is not the name of a service account")]
    ServiceAccount(String),
    /// It is no URI of a service account.
    #[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form(String),
}

// === impl TrustDomain ===

impl TrustDomain {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let is_part =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| is_alphanumeric(byte) || b"-_".contains(&byte));
        if text.len() <= TRUST_DOMAIN_BYTES_MAX && text.split('.').all(is_part) {
            Ok(Self(text.into()))
        } else {
            Err(Error::TrustDomain(text))
        }
    }
}

impl FromStr for TrustDomain {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.to_owned().try_into()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.as_str().to_owned()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Account ===

impl Account {
    /// The account of a namespace and a name.
    pub fn new(namespace: &str, name: &str) -> Result<Self, Error> {
        if namespace.len() > NAMESPACE_BYTES_MAX || !is_label(namespace) {
            return Err(Error::Namespace(namespace.to_owned()));
        }
        if name.len() > SERVICE_ACCOUNT_BYTES_MAX || !name.split('.').all(is_label) {
            return Err(Error::ServiceAccount(name.to_owned()));
        }
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its identity in a trust domain.
    pub fn in_domain(&self, trust_domain: &TrustDomain) -> SpiffeId {
        SpiffeId { trust_domain: trust_domain.clone(), account: self.clone() }
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    /// The id of a service account.
    pub fn new(trust_domain: TrustDomain, namespace: &str, service_account: &str) -> Result<Self, Error> {
        Ok(Self { trust_domain, account: Account::new(namespace, service_account)? })
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its service account.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Namespace of the service account.
    pub fn namespace(&self) -> &str {
        &self.account.namespace
    }

    /// Name of the service account.
    pub fn service_account(&self) -> &str {
        &self.account.name
    }
}

impl FromStr for SpiffeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let form = || Error::Form(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(form)?;
        let mut parts = rest.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(domain.parse()?, namespace, account)
            }
            _ => Err(form()),
        }
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, account: Account { namespace, name } } = self;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{name}")
    }
}

/// A DNS label of Kubernetes (RFC 1123), but for its length.
fn is_label(text: &str) -> bool {
    text.bytes().all(|byte| is_alphanumeric(byte) || byte == b'-')
        && text.bytes().next().is_some_and(is_alphanumeric)
        && text.bytes().last().is_some_and(is_alphanumeric)
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// ID-03: one spelling for each identity.
    #[test]
    fn id_03_ids_that_are_not_canonical_are_refused() {
        let long_namespace = format!("spiffe://td/ns/{}/sa/b", "a".repeat(64));
        let long_account = format!("spiffe://td/ns/a/sa/{}", "b".repeat(254));
        let long_domain = format!("spiffe://{}/ns/a/sa/b", "t".repeat(256));
        for text in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td//ns/a/sa/b",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/./sa/b",
            "spiffe://td/ns/a/sa/..",
            "spiffe://td/ns/a/sa/b..c",
            "spiffe://td/ns/a/sa/.b",
            "spiffe://td/ns/a/sa/b\0evil",
            "spiffe://td\0evil/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b\n",
            " spiffe://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b ",
            "spiffe://td/ns/*/sa/b",
            "spiffe://td/ns/a/sa/*",
            "spiffe://*/ns/a/sa/b",
            "spiffe://td/ns/a/sa/%62",
            "spiffe://td/ns/a%2Fsa%2Fb/sa/b",
            "spiffe://td%2E/ns/a/sa/b",
            "spiffe://td/ns/A/sa/b",
            "spiffe://td/ns/a/sa/B",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td/NS/a/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "spiffe:/td/ns/a/sa/b",
            "spiffe:td/ns/a/sa/b",
            "http://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x=1",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://td:443/ns/a/sa/b",
            "spiffe://td./ns/a/sa/b",
            "spiffe://.td/ns/a/sa/b",
            "spiffe://t..d/ns/a/sa/b",
            "spiffe://[::1]/ns/a/sa/b",
            "spiffe://td/ns/a.b/sa/c",
            "spiffe://td/ns/-a/sa/b",
            "spiffe://td/ns/a-/sa/b",
            "spiffe://td/ns/a_b/sa/b",
            "spiffe://td/ns/ä/sa/b",
            "spiffe://td/sa/b/ns/a",
            &long_namespace,
            &long_account,
            &long_domain,
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ids_of_service_accounts_are_read() {
        for (text, parts) in [
            ("spiffe://cluster.local/ns/shop/sa/web", ("cluster.local", "shop", "web")),
            ("spiffe://prod_1.example-2.org/ns/a-1/sa/build.robot-2", ("prod_1.example-2.org", "a-1", "build.robot-2")),
            ("spiffe://td/ns/ns/sa/sa", ("td", "ns", "sa")),
            ("spiffe://1/ns/0/sa/0", ("1", "0", "0")),
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!((id.trust_domain().as_str(), id.namespace(), id.service_account()), parts);
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn invalid_trust_domain_is_told_with_its_remedy() {
        for text in ["Cluster.Local", "cluster/local", "", "a b"] {
            let error = text.parse::<TrustDomain>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("cluster.local"), "{error}");
        }
    }

    proptest! {
        /// Whatever is accepted has one spelling only, and names valid parts.
        #[test]
        fn accepted_ids_are_written_as_they_were_read(text in "(spiffe://)?[a-zA-Z0-9._%@:-]{0,9}(/?(ns|sa|[a-z0-9.%-]{0,5})){0,5}[/?#\0*]?") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
                let again = SpiffeId::new(id.trust_domain().clone(), id.namespace(), id.service_account());
                prop_assert_eq!(again, Ok(id));
            }
        }

        /// Different accounts have different ids: names cannot be joined to the id of another.
        #[test]
        fn ids_of_different_accounts_differ(a in "[a-z0-9./-]{1,6}", b in "[a-z0-9./-]{1,6}", c in "[a-z0-9./-]{1,6}", d in "[a-z0-9./-]{1,6}") {
            let domain: TrustDomain = "td".parse().unwrap();
            if let (Ok(one), Ok(other)) = (SpiffeId::new(domain.clone(), &a, &b), SpiffeId::new(domain, &c, &d)) {
                prop_assert_eq!(one.to_string() == other.to_string(), (a, b) == (c, d));
            }
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".*") {
            drop(text.parse::<SpiffeId>());
            drop(text.parse::<TrustDomain>());
        }
    }
}
