//! Reload matrix: three replicas sign with each of 20 issuers in a row within 10 s of its change, however it comes; what
//! cannot be used is refused by all three, and the last good issuer stays.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weft_identity::Fingerprint;
use weft_identity::authority::Authority;

use crate::api::SECRETS;
use crate::fixture::{Fixture, below, domain, files_of, fixture, fixture_at, new_root, secret_of, secret_with, until};

const CHANGES: usize = 20;

/// A directory of this test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Swaps the files of a mounted volume as the kubelet does: a new directory, and one rename of the link `..data`.
fn swap(volume: &Path, number: usize, files: &[(&str, String)]) {
    let version = format!("..version-{number}");
    fs::create_dir(volume.join(&version)).expect("a new directory");
    for (name, text) in files {
        fs::write(volume.join(&version).join(name), text).expect("written");
    }
    let before = fs::read_link(volume.join("..data")).ok();
    symlink(&version, volume.join("..data_tmp")).expect("a link");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("swapped");
    for (name, _) in files.iter().filter(|_| before.is_none()) {
        symlink(Path::new("..data").join(name), volume.join(name)).expect("a link");
    }
    if let Some(before) = before {
        fs::remove_dir_all(volume.join(before)).expect("the old version goes away");
    }
}

/// Waits until every replica signs with a new issuer below the generated root.
async fn signed(fixture: &Fixture, issuer: &Authority) {
    fixture.signed_by(issuer, fixture.root().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_is_edited() {
    let fixture = fixture(3).await;
    let root = fixture.generated_root();
    for _ in 0..CHANGES {
        let issuer = below(&root);
        fixture.api.put(SECRETS, "weft-issuer", Some(secret_of(&issuer, &[&root])));
        signed(&fixture, &issuer).await;
    }
    assert!(fixture.api.events().is_empty(), "{:?}", fixture.api.events());
    fixture.end().await;
}

/// The user's issuer is below a root of the user, so no replica makes one while the Secret is away.
#[tokio::test(flavor = "multi_thread")]
async fn secret_is_deleted_and_created() {
    let fixture = fixture(3).await;
    let (generated, root) = (fixture.generated_root(), new_root());
    let ours = Fingerprint::of(&root.certificate);
    // The generated root and the user's, then the user's issuer, as for any change of the root.
    let first = below(&generated);
    fixture.api.put(SECRETS, "weft-issuer", Some(secret_of(&first, &[&generated, &root])));
    signed(&fixture, &first).await;
    until("both roots are trusted", || {
        fixture.bundle().is_some_and(|bundle| bundle.fingerprints(&domain()).any(|root| root == ours))
    })
    .await;
    let mut issuer = below(&root);
    fixture.api.put(SECRETS, "weft-issuer", Some(secret_of(&issuer, &[&generated, &root])));
    for replica in &fixture.replicas {
        replica.presents(ours).await;
    }
    for _ in 0..CHANGES {
        fixture.api.put(SECRETS, "weft-issuer", None);
        fixture.refused("it is missing", true).await;
        fixture.signed_by(&issuer, ours).await;
        issuer = below(&root);
        fixture.api.put(SECRETS, "weft-issuer", Some(secret_of(&issuer, &[&generated, &root])));
        fixture.signed_by(&issuer, ours).await;
        fixture.refused("it is there", false).await;
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn same_certificates_are_written_in_another_order() {
    let fixture = fixture(3).await;
    let (root, other) = (fixture.generated_root(), new_root());
    let fingerprint = fixture.root().await;
    for number in 0..CHANGES {
        let issuer = below(&root);
        let orders = [[&root, &other], [&other, &root]];
        let chains = [[&issuer.certificate, &root.certificate], [&root.certificate, &issuer.certificate]];
        for order in [number % 2, (number + 1) % 2] {
            let secret = secret_with(files_of(&chains[order], &issuer, &orders[order]));
            fixture.api.put(SECRETS, "weft-issuer", Some(secret));
            fixture.signed_by(&issuer, fingerprint).await;
        }
    }
    assert_eq!(fixture.bundle().map(|bundle| bundle.fingerprints(&domain()).count()), Some(2), "both roots");
    fixture.refused("none was refused", false).await;
    assert!(fixture.api.events().is_empty(), "{:?}", fixture.api.events());
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounted_files_are_swapped_by_symlink() {
    let (volume, root) = (folder("issuer-volume"), new_root());
    let mut issuer = below(&root);
    let files = |issuer: &Authority| files_of(&[&issuer.certificate], issuer, &[&root]);
    swap(&volume, 0, &files(&issuer));
    let fixture = fixture_at(3, Some(&volume)).await;
    signed(&fixture, &issuer).await;
    for number in 1..=CHANGES {
        issuer = below(&root);
        swap(&volume, number, &files(&issuer));
        signed(&fixture, &issuer).await;
    }

    // A pair of two issuers, and an issuer below a root that nobody trusts.
    let stranger = new_root();
    let of_stranger = below(&stranger);
    let mixed = files_of(&[&below(&root).certificate], &below(&root), &[&root]);
    let untrusted = files_of(&[&of_stranger.certificate], &of_stranger, &[&stranger]);
    for (number, files, expected) in
        [(100, &mixed[..], "that of the private key"), (101, &untrusted, "do not trust yet"), (102, &[], "tls.crt")]
    {
        swap(&volume, number, files);
        fixture.refused(expected, true).await;
        for replica in &fixture.replicas {
            let detail = replica.readiness.detail();
            let named = format!("directory {} refused: ", volume.display());
            let is_told = detail.contains(&named) && detail.contains(expected);
            assert!(is_told && replica.readiness.is_ready(), "{detail}");
        }
        signed(&fixture, &issuer).await;
        swap(&volume, number + 10, &files_of(&[&issuer.certificate], &issuer, &[&root]));
        fixture.refused("mended", false).await;
    }
    for name in ["weft-issuer", "weft-root"] {
        assert!(fixture.api.get(SECRETS, name).is_none(), "Secret {name} was made beside the files");
    }
    fixture.end().await;
}

/// As by an agent that writes one file after another in place.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_one_after_another() {
    let (directory, root) = (folder("issuer-files"), new_root());
    let write = |issuer: &Authority| {
        for (name, text) in files_of(&[&issuer.certificate], issuer, &[&root]) {
            fs::write(directory.join(name), text).expect("written");
        }
    };
    write(&below(&root));
    let fixture = fixture_at(3, Some(&directory)).await;
    for _ in 0..3 {
        let issuer = below(&root);
        write(&issuer);
        signed(&fixture, &issuer).await;
    }
    fixture.end().await;
}

/// Writes 20 Secrets that cannot be used, each followed by the good one.
async fn refused(expected: &str, bad: impl Fn(&Authority) -> Value) {
    let fixture = fixture(3).await;
    let root = fixture.generated_root();
    let good = below(&root);
    let secret = secret_of(&good, &[&root]);
    fixture.api.put(SECRETS, "weft-issuer", Some(secret.clone()));
    signed(&fixture, &good).await;
    for _ in 0..CHANGES {
        fixture.api.put(SECRETS, "weft-issuer", Some(bad(&root)));
        fixture.refused(expected, true).await;
        for replica in &fixture.replicas {
            let detail = replica.readiness.detail();
            let is_told = detail.contains("Secret weft-system/weft-issuer refused: ") && detail.contains(expected);
            assert!(is_told && replica.readiness.is_ready(), "{detail}");
        }
        signed(&fixture, &good).await;
        fixture.api.put(SECRETS, "weft-issuer", Some(secret.clone()));
        fixture.refused("mended", false).await;
    }
    until("it is told", || fixture.api.events().iter().any(|event| event.contains(expected))).await;
    until("recovery is told", || fixture.api.events().iter().any(|event| event.starts_with("IssuerAccepted"))).await;
    assert!(fixture.api.events().iter().all(|event| !event.contains("PRIVATE")), "an Event with a key");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_pair_is_refused() {
    refused("none of the certificates is that of the private key", |root| {
        secret_with(files_of(&[&below(root).certificate], &below(root), &[root]))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn issuer_that_does_not_lead_to_its_own_roots_is_refused() {
    refused("does not lead to a root", |root| secret_of(&below(&new_root()), &[root])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn issuer_below_a_root_that_proxies_do_not_trust_is_refused() {
    refused("put that root into ca.crt beside the old one first", |_| {
        let stranger = new_root();
        secret_of(&below(&stranger), &[&stranger])
    })
    .await;
}

/// ID-05: a Secret without roots never makes an authority that trusts nothing or everything.
#[tokio::test(flavor = "multi_thread")]
async fn secret_without_usable_roots_is_refused() {
    for (roots, expected) in [("", "ca.crt is missing"), ("no certificate", "ca.crt")] {
        refused(expected, |root| {
            let [certificate, key, _] = files_of(&[&below(root).certificate], root, &[root]);
            secret_with([certificate, key, ("ca.crt", roots.to_owned())])
        })
        .await;
    }
}
