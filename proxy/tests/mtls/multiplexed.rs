//! Requests of HTTP/1.1 that the client's proxy multiplexes, because others are in flight: neither the application nor the
//! client can tell.

use tokio::sync::watch;

use super::*;

/// Requests that wait in the application, so that further ones are multiplexed.
const WAITING: u32 = 10;

/// What an application has received, and what a client.
type Seen = Vec<(String, String)>;

/// Reads a request, whatever ends its body.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut part = [0; 1024];
    loop {
        let lower = text.to_ascii_lowercase();
        let is_whole = lower.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            let is_chunked = head.contains("transfer-encoding: chunked");
            if is_chunked {
                body.contains("0\r\n") && body.ends_with("\r\n\r\n")
            } else {
                body.len() >= length.unwrap_or(0)
            }
        });
        if is_whole {
            return text;
        }
        match stream.read(&mut part).await {
            Ok(read @ 1..) => text += &String::from_utf8_lossy(&part[..read]),
            _ => return text,
        }
    }
}

/// The answer of the application to a request.
fn answer(request: &str) -> &'static str {
    let line = request.lines().next().unwrap_or_default();
    match line.split(' ').nth(1).unwrap_or_default() {
        "/hints" => {
            "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\nHTTP/1.1 200 OK\r\ndate: today\r\ntransfer-encoding: \
             chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n"
        }
        "/upgrade" => "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\nwelcome",
        "/close" => "HTTP/1.1 200 OK\r\ndate: today\r\nconnection: close\r\n\r\nuntil the end",
        "/none" => "HTTP/1.1 304 Not Modified\r\ndate: today\r\netag: \"a\"\r\ncontent-length: 7\r\n\r\n",
        _ if line.starts_with("HEAD") => "HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 1000\r\n\r\n",
        _ => "HTTP/1.1 200 OK\r\ndate: today\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 2\r\n\r\nok",
    }
}

/// Sends a request, and returns everything that comes back.
async fn send(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = tokio::time::timeout(TIMEOUT, stream.read_to_string(&mut answer)).await;
    read.unwrap_or_else(|_| panic!("{request:?} got only {answer:?}")).expect("text");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn multiplexed_requests_of_http_1_look_like_others() {
    let received = Arc::new(Mutex::new(Vec::new()));
    let (release, released) = watch::channel(false);
    let waiting = Arc::new(AtomicU32::new(0));
    let (recorded, waits) = (received.clone(), waiting.clone());
    let (application, _) = raw_application(move |mut stream| {
        let (recorded, waits, mut released) = (recorded.clone(), waits.clone(), released.clone());
        async move {
            loop {
                let request = read_request(&mut stream).await;
                if request.is_empty() {
                    return;
                }
                let answer = answer(&request);
                if request.starts_with("GET /wait ") {
                    waits.fetch_add(1, Ordering::SeqCst);
                    let _ = released.wait_for(|released| *released).await;
                } else {
                    recorded.lock().expect("not poisoned").push(request);
                }
                stream.write_all(answer.as_bytes()).await.expect("sent");
                if !answer.contains("content-length") && !answer.contains("chunked") {
                    return;
                }
            }
        }
    })
    .await;
    let (client, server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    let close = "host: web\r\nconnection: close\r\n";
    let requests = [
        format!("GET /a?b=c HTTP/1.1\r\n{close}Cookie: a=1\r\nX-Two: 1\r\nX-Two: 2\r\nte: trailers\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{close}cookie: a=1\r\ncookie: b=2\r\n\r\n"),
        format!("HEAD / HTTP/1.1\r\n{close}\r\n"),
        format!("OPTIONS * HTTP/1.1\r\n{close}\r\n"),
        format!("POST / HTTP/1.1\r\n{close}content-length: 5\r\n\r\nhello"),
        format!("POST / HTTP/1.1\r\n{close}content-length: 0\r\n\r\n"),
        format!("POST / HTTP/1.1\r\n{close}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n"),
        format!("GET /hints HTTP/1.1\r\n{close}\r\n"),
        format!("GET /close HTTP/1.1\r\n{close}\r\n"),
        format!("GET /none HTTP/1.1\r\n{close}\r\n"),
        "GET /old HTTP/1.0\r\n\r\n".to_owned(),
        "GET /upgrade HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n".to_owned(),
    ];
    let all = async || -> Seen {
        let mut seen = Vec::new();
        for request in &requests {
            let answer = send(client.outbound, request).await;
            seen.push((received.lock().expect("not poisoned").drain(..).collect(), answer));
        }
        seen
    };
    let multiplexed = async || server.sum("weft_http2_streams_open", &["side=\"downstream\""]).await as usize;
    let alone = all().await;
    assert_eq!(multiplexed().await, 0, "one at a time goes as it is");

    let mut requests_that_wait = Vec::new();
    for number in 1..=WAITING {
        let (address, request) = (client.outbound, format!("GET /wait HTTP/1.1\r\n{close}\r\n"));
        requests_that_wait.push(tokio::spawn(async move { send(address, &request).await }));
        wait("it waits in the application", async || waiting.load(Ordering::SeqCst) == number).await;
    }
    wait("requests are multiplexed", async || multiplexed().await > 0).await;
    let among_others = all().await;
    assert_eq!(among_others, alone);
    assert!(multiplexed().await > 0, "those that wait still do");
    release.send(true).expect("they wait");
    for request in requests_that_wait {
        assert!(request.await.expect("no panic").starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn multiplexed_responses_that_are_not_read_block_no_others() {
    const LENGTH: usize = 8 << 20;
    let (application, _) = raw_application(async |mut stream| {
        while read_request(&mut stream).await.starts_with("GET /") {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n");
            let sent = async {
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(&vec![b'x'; LENGTH]).await
            };
            if sent.await.is_err() {
                return;
            }
        }
    })
    .await;
    let (client, server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    let request = "GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    let mut unread = Vec::new();
    for _ in 0..2 * WAITING {
        let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream.readable().await.expect("a response begins");
        unread.push(stream);
    }
    let multiplexed = async || server.sum("weft_http2_streams_open", &["side=\"downstream\""]).await;
    wait("responses are multiplexed", async || multiplexed().await > 4).await;
    let answer = send(client.outbound, request).await;
    assert!(answer.len() > LENGTH, "{} bytes", answer.len());
    for mut stream in unread {
        let mut answer = String::new();
        let read = tokio::time::timeout(TIMEOUT, stream.read_to_string(&mut answer)).await;
        read.expect("in time").expect("text");
        assert!(answer.len() > LENGTH, "{} bytes", answer.len());
    }
}
