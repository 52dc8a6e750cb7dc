//! Who asks: the verdict on a TokenReview. Nothing that the request itself says is used.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use weft_config::bootstrap::IDENTITY_AUDIENCE;
use weft_identity::{SpiffeId, TrustDomain};

use super::refusal::Refusal;

/// Prefix of the user names of service accounts; namespace and name follow. Source: Kubernetes.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Fields that the API server adds for a token that is bound to a pod that exists. Source: Kubernetes.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// A pod that has proven its service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its identity.
    pub id: SpiffeId,
    /// Its name, for the log.
    pub pod: String,
}

/// The question to the API server.
pub fn review(token: &str) -> TokenReview {
    let audiences = Some(vec![IDENTITY_AUDIENCE.to_owned()]);
    TokenReview { spec: TokenReviewSpec { audiences, token: Some(token.to_owned()) }, ..TokenReview::default() }
}

/// The verdict on its answer.
pub fn caller(status: Option<TokenReviewStatus>, domain: &TrustDomain) -> Result<Caller, Refusal> {
    let TokenReviewStatus { audiences, authenticated, error, user } =
        status.ok_or_else(|| Refusal::Review("its answer has no status".to_owned()))?;
    // Of another audience, expired, or of a pod, an account or a Secret that was deleted.
    if authenticated != Some(true) {
        return Err(Refusal::Token(error.unwrap_or_else(|| "it is unknown".to_owned())));
    }
    // An API server that does not know audiences accepts any, and names none.
    if !audiences.iter().flatten().any(|audience| audience == IDENTITY_AUDIENCE) {
        return Err(Refusal::Audience(IDENTITY_AUDIENCE));
    }
    let user = user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let not_an_account = || Refusal::NotAnAccount(name.clone());
    let account = name.strip_prefix(ACCOUNT_PREFIX).ok_or_else(not_an_account)?;
    let (namespace, account) = account.split_once(':').ok_or_else(not_an_account)?;
    let id = SpiffeId::new(domain.clone(), namespace, account).map_err(|_| not_an_account())?;
    let extra = user.extra.unwrap_or_default();
    let single = |key| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value),
        _ => Err(Refusal::NotAPod),
    };
    let (pod, _) = (single(POD_NAME)?, single(POD_UID)?);
    Ok(Caller { id, pod: pod.clone() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The answer to a token that is bound to a pod, changed.
    fn verdict(change: impl Fn(&mut Value)) -> Result<String, &'static str> {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["weft-identity"],
            "user": {
                "username": "system:serviceaccount:shop:web",
                "uid": "9c1f",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/credential-id": ["JTI=1"],
                    "authentication.kubernetes.io/node-name": ["node-1"],
                    "authentication.kubernetes.io/node-uid": ["77aa"],
                    "authentication.kubernetes.io/pod-name": ["web-7d9"],
                    "authentication.kubernetes.io/pod-uid": ["5e2b"],
                },
            },
        });
        change(&mut status);
        let status = serde_json::from_value(status).unwrap();
        let caller = caller(Some(status), &"cluster.local".parse().unwrap());
        caller.map(|caller| format!("{} {}", caller.id, caller.pod)).map_err(|refusal| refusal.reason())
    }

    #[test]
    fn identity_is_that_of_the_service_account_of_the_token() {
        assert_eq!(verdict(|_| {}), Ok("spiffe://cluster.local/ns/shop/sa/web web-7d9".to_owned()));
    }

    /// ID-08: audience, binding, node, expired, deleted pod, names with more parts.
    #[test]
    fn id_08_only_tokens_of_this_audience_that_are_bound_to_a_pod_are_accepted() {
        let remove = |key: &'static str| {
            move |status: &mut Value| {
                status["user"]["extra"].as_object_mut().unwrap().remove(key);
            }
        };
        let name = |name: &'static str| move |status: &mut Value| status["user"]["username"] = json!(name);
        for (desc, found, expected) in [
            ("not authenticated", verdict(|status| status["authenticated"] = json!(false)), "token"),
            ("no verdict", verdict(|status| status["authenticated"] = Value::Null), "token"),
            ("an error", verdict(|status| *status = json!({"error": "token has expired"})), "token"),
            ("no audience", verdict(|status| status["audiences"] = Value::Null), "audience"),
            ("another audience", verdict(|status| status["audiences"] = json!(["api", "weft"])), "audience"),
            ("no user", verdict(|status| status["user"] = Value::Null), "not-an-account"),
            ("a node", verdict(name("system:node:node-1")), "not-an-account"),
            ("a person", verdict(name("admin")), "not-an-account"),
            ("a name with more parts", verdict(name("system:serviceaccount:shop:web:x")), "not-an-account"),
            ("no account", verdict(name("system:serviceaccount:shop")), "not-an-account"),
            ("an empty account", verdict(name("system:serviceaccount:shop:")), "not-an-account"),
            ("a name with a slash", verdict(name("system:serviceaccount:shop:web/sa/x")), "not-an-account"),
            ("not bound", verdict(|status| status["user"]["extra"] = Value::Null), "not-a-pod"),
            ("bound to a node", verdict(remove(POD_NAME)), "not-a-pod"),
            ("without the pod's UID", verdict(remove(POD_UID)), "not-a-pod"),
            ("two pods", verdict(|status| status["user"]["extra"][POD_UID] = json!(["a", "b"])), "not-a-pod"),
            ("an empty UID", verdict(|status| status["user"]["extra"][POD_UID] = json!([""])), "not-a-pod"),
        ] {
            assert_eq!(found, Err(expected), "{desc}");
        }
        assert_eq!(caller(None, &"cluster.local".parse().unwrap()).map_err(|refusal| refusal.reason()), Err("review"));
    }

    /// ID-08: an API server that is asked without an audience accepts tokens for itself.
    #[test]
    fn id_08_question_names_the_audience() {
        assert_eq!(review("t").spec.audiences, Some(vec!["weft-identity".to_owned()]));
    }
}
