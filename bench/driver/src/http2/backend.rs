//! An HTTP/2 server with one fixed response, and one for gRPC.

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use super::{CONNECTION_WINDOW, GRPC_MESSAGE, STREAM_WINDOW, STREAMS, runtime};
use crate::{Server, socket};

/// Serves forever.
pub(crate) fn run(server: &Server) -> anyhow::Result<()> {
    let listener = socket::listen(server.port)?;
    let body = Bytes::from(vec![b'x'; server.bytes]);
    LocalSet::new().block_on(&runtime()?, async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let body = body.clone();
            // An error ends only this connection.
            spawn_local(async move { drop(serve(stream, body).await) });
        }
    })
}

async fn serve(stream: TcpStream, body: Bytes) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        if is_grpc(&request) {
            spawn_local(async move { drop(answer_call(request, respond).await) });
        } else {
            answer(respond, body.clone())?;
        }
    }
    Ok(())
}

fn is_grpc(request: &Request<RecvStream>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn answer(mut respond: SendResponse<Bytes>, body: Bytes) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(header::SERVER, HeaderValue::from_static("mb"));
    respond.send_response(response, false)?.send_data(body, true)
}

async fn answer_call(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let mut response = Response::new(());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(Bytes::from_static(&GRPC_MESSAGE), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}
