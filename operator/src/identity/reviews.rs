//! Asks the API server whose a token is. An answer is used again for a few seconds, only if it is a success; an error
//! never leads to a certificate.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::TokenReview;
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use weft_identity::TrustDomain;

use super::caller::{Caller, caller, review};
use super::refusal::Refusal;
use crate::apply::call;

/// How long an answer is used: for a proxy that tries again after a refusal.
const KEEP: Duration = Duration::from_secs(10);
/// Maximum number of answers that are kept.
const KEPT_MAX: usize = 4096;

/// Reviews of tokens.
pub struct Reviews {
    api: Api<TokenReview>,
    domain: TrustDomain,
    /// By the SHA-256 of the token, so that no token is kept.
    kept: Mutex<HashMap<[u8; 32], (Caller, Instant)>>,
}

// === impl Reviews ===

impl Reviews {
    /// With nothing kept.
    pub fn new(client: Client, domain: TrustDomain) -> Self {
        Self { api: Api::all(client), domain, kept: Mutex::default() }
    }

    /// Who has this token.
    pub async fn caller(&self, token: &str) -> Result<Caller, Refusal> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let start = Instant::now();
        if let Some(known) = self.known(&hash, start) {
            return Ok(known);
        }
        let answer = call(self.api.create(&PostParams::default(), &review(token))).await;
        let answer = answer.map_err(|error| Refusal::Review(error.to_string()))?;
        let caller = caller(answer.status, &self.domain)?;
        self.keep(hash, caller.clone(), start);
        Ok(caller)
    }

    fn known(&self, hash: &[u8; 32], now: Instant) -> Option<Caller> {
        let kept = self.kept.lock().expect("no panic while it is held");
        kept.get(hash).filter(|(_, since)| now.duration_since(*since) < KEEP).map(|(caller, _)| caller.clone())
    }

    /// `since` is when the API server was asked, so that its answer is not older than it seems.
    fn keep(&self, hash: [u8; 32], caller: Caller, since: Instant) {
        let mut kept = self.kept.lock().expect("no panic while it is held");
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, (_, at)| since.saturating_duration_since(*at) < KEEP);
        }
        if kept.len() < KEPT_MAX {
            kept.insert(hash, (caller, since));
        }
    }
}
