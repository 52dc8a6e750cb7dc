//! Asks the proxies of pods who calls them in plaintext, about once a minute. The answers feed conditions and nothing else.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use weft_config::PlaintextCallers;
use weft_config::bootstrap::CALLERS_PATH;

use crate::world::{Answer, Key};

/// Time between the rounds.
const INTERVAL: Duration = Duration::from_secs(60);
/// Time before the first round, in which the pods of a new policy become known.
const FIRST: Duration = Duration::from_secs(5);
/// Pods that are asked at a time, and how long one may take. A NetworkPolicy may let no pod answer: with 10,000 of them, a
/// round takes less than three minutes.
const ASKED_MAX: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest answer: 256 callers have less.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A pod to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Namespace and name.
    pub pod: Key,
    /// UID.
    pub uid: String,
    /// Where its proxy has its metrics.
    pub address: SocketAddr,
}

/// Asks the pods in `targets` in rounds, and sends the answers of each. Runs until `stop`, or until nobody receives.
pub async fn run(targets: watch::Receiver<Vec<Target>>, answers: mpsc::Sender<Vec<Answer>>, stop: CancellationToken) {
    stop.run_until_cancelled(rounds(targets, answers, FIRST, INTERVAL)).await;
}

async fn rounds(
    mut targets: watch::Receiver<Vec<Target>>,
    answers: mpsc::Sender<Vec<Answer>>,
    first: Duration,
    interval: Duration,
) {
    loop {
        if targets.wait_for(|targets| !targets.is_empty()).await.is_err() {
            return;
        }
        tokio::time::sleep(with_jitter(first)).await;
        loop {
            let round = targets.borrow_and_update().clone();
            let is_over = round.is_empty();
            if answers.send(ask_all(round).await).await.is_err() {
                return;
            }
            if is_over {
                break;
            }
            tokio::time::sleep(with_jitter(interval)).await;
        }
    }
}

/// The answers of these pods.
async fn ask_all(targets: Vec<Target>) -> Vec<Answer> {
    let asking = targets.into_iter().map(|Target { pod, uid, address }| async move {
        let callers = match tokio::time::timeout(TIMEOUT, ask(address)).await {
            Ok(Ok(callers)) => Some(callers),
            Ok(Err(error)) => {
                tracing::debug!(%pod, %address, error = format!("{error:#}"), "cannot ask for plaintext callers");
                None
            }
            Err(_) => {
                tracing::debug!(%pod, %address, "no answer about plaintext callers within {TIMEOUT:?}");
                None
            }
        };
        Answer { pod, uid, callers }
    });
    futures_util::stream::iter(asking).buffer_unordered(ASKED_MAX).collect().await
}

/// The callers of the pod at an address.
async fn ask(address: SocketAddr) -> anyhow::Result<PlaintextCallers> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(CALLERS_PATH).header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    let asking = async {
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status() == StatusCode::OK, "the answer has the status {}", response.status());
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    };
    tokio::select! {
        answer = asking => answer,
        // Polled beside the request, so that nothing is left of it.
        Err(error) = connection => Err(error.into()),
    }
}

/// The time, up to a tenth longer or shorter: operators of several clusters do not ask at the same moments.
fn with_jitter(time: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 2_001;
    time.mul_f64(0.9 + random as f64 / 10_000.0)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A pod whose proxy answers so.
    async fn pod(name: &str, page: Router) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, page).await });
        Target { pod: Key::new("shop", name), uid: name.into(), address }
    }

    fn page(body: impl Into<String>) -> Router {
        let body = body.into();
        Router::new().route(CALLERS_PATH, get(async move || body))
    }

    const ONE: &str =
        r#"{"callers":[{"address":"198.18.0.9","port":80,"connections":3,"open":0,"secondsAgo":5}],"truncated":false}"#;

    #[tokio::test]
    async fn each_pod_is_asked_and_none_delays_the_others() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = |name: &str, listener: &TcpListener| Target {
            pod: Key::new("shop", name),
            uid: name.into(),
            address: listener.local_addr().unwrap(),
        };
        let mut targets = vec![
            pod("a", page(ONE)).await,
            pod("older", Router::new()).await,
            pod("garbage", page("callers")).await,
            pod("large", page(format!("{ONE}{}", " ".repeat(ANSWER_BYTES_MAX)))).await,
            at("closed", &closed),
        ];
        drop(closed);
        targets.extend((0..ASKED_MAX * 2).map(|number| at(&format!("silent-{number}"), &silent)));
        targets.push(pod("z", page(ONE)).await);
        let begun = std::time::Instant::now();
        let answers = ask_all(targets.clone()).await;
        assert!(begun.elapsed() < TIMEOUT * 4, "{:?}", begun.elapsed());
        let mut answered: Vec<&str> =
            answers.iter().filter(|answer| answer.callers.is_some()).map(|answer| answer.uid.as_str()).collect();
        answered.sort_unstable();
        assert_eq!((answers.len(), answered), (targets.len(), vec!["a", "z"]));
    }

    #[tokio::test]
    async fn answer_that_never_ends_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let chunk = format!("400\r\n{}\r\n", " ".repeat(0x400));
            while stream.write_all(chunk.as_bytes()).await.is_ok() {}
        });
        let answers = ask_all(vec![Target { pod: Key::new("shop", "a"), uid: "a".into(), address }]).await;
        assert!(answers[0].callers.is_none());
        tokio::time::timeout(Duration::from_secs(5), server).await.expect("the connection was closed").unwrap();
    }

    #[tokio::test]
    async fn rounds_go_on_while_there_are_pods_to_ask() {
        let one = pod("a", page(ONE)).await;
        let (targets, watched) = watch::channel(Vec::new());
        let (sender, mut answers) = mpsc::channel(1);
        let soon = Duration::from_millis(20);
        let asking = tokio::spawn(rounds(watched, sender, soon, soon));
        tokio::time::sleep(soon * 5).await;
        assert!(answers.try_recv().is_err(), "there is nobody to ask");
        targets.send_replace(vec![one]);
        for _ in 0..3 {
            assert_eq!(answers.recv().await.unwrap().len(), 1);
        }
        targets.send_replace(Vec::new());
        while !answers.recv().await.unwrap().is_empty() {}
        tokio::time::sleep(soon * 5).await;
        assert!(answers.try_recv().is_err(), "what was known is forgotten once");
        drop(targets);
        asking.await.unwrap();
    }
}
