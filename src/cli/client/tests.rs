//! The client against canned answers on a socket of the test's own.

use std::io::{BufRead, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use super::*;

/// Answers one connection with `response` and hands back what it was asked.
fn canned(response: &'static str) -> (Client, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let asked = read_request(&stream);
        stream.write_all(response.as_bytes()).expect("a client that reads");
        asked
    });
    (Client::new(&Address { host: "0.0.0.0".into(), port }), server)
}

fn read_request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut text = String::new();
    while reader.read_line(&mut text).expect("a head") > 2 {}
    let length = text.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).expect("a body");
    text + &String::from_utf8(body).expect("UTF-8")
}

fn chat(client: &Client, take: usize) -> (Vec<Piece>, Result<(), ClientError>) {
    let mut pieces = Vec::new();
    let options = ChatOptions { temperature: Some(0.0), seed: Some(7), max_tokens: None };
    let ended = client.chat("m", &[Message::user("Hi")], options, |piece| {
        pieces.push(piece);
        pieces.len() < take
    });
    (pieces, ended)
}

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n\
    data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n\
    : ping\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"},\"finish_reason\":null}]}\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"lo\"},\"finish_reason\":\"length\"}]}\n\n\
    data: {\"choices\":[],\"usage\":{}}\n\n\
    data: [DONE]\n\n";

#[test]
fn a_stream_becomes_pieces_and_the_request_says_what_was_asked() {
    let (client, server) = canned(STREAM);
    let (pieces, ended) = chat(&client, 100);
    ended.expect("a whole answer");
    let expected = [Piece::Text("Hel".into()), Piece::Text("lo".into()), Piece::End(FinishReason::Length)];
    assert_eq!(pieces, expected);
    let asked = server.join().expect("the server");
    assert!(asked.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{asked}");
    let body: Value = serde_json::from_str(asked.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
    let expected = json!({
        "model": "m", "messages": [{ "role": "user", "content": "Hi" }], "stream": true, "temperature": 0.0, "seed": 7,
    });
    assert_eq!(body, expected);
}

#[test]
fn whoever_wants_no_more_gets_no_more() {
    let (client, server) = canned(STREAM);
    let (pieces, ended) = chat(&client, 1);
    ended.expect("a wish, not an error");
    assert_eq!(pieces, [Piece::Text("Hel".into())]);
    server.join().expect("the server");
}

#[test]
fn an_answer_that_breaks_off_or_fails_is_an_error() {
    let cases = [
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
            "the answer broke off",
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {\"error\":{\"message\":\"out of luck\"}}\n\n",
            "out of luck",
        ),
        (
            "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 37\r\n\r\n{\"error\":{\"message\":\"queue is full\"}} ",
            "refused (429): queue is full",
        ),
        ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops", "refused (502): oops"),
    ];
    for (response, expected) in cases {
        let (client, server) = canned(response);
        let error = chat(&client, 100).1.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        server.join().expect("the server");
    }
}

#[test]
fn models_are_listed() {
    let (client, server) =
        canned("HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n{\"data\":[{\"id\":\"smollm2:135m\"},{\"id\":\"b\"}]}  ");
    assert_eq!(client.models().expect("a list"), ["smollm2:135m", "b"]);
    server.join().expect("the server");
}

#[test]
fn nobody_there_is_said_with_the_address() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let client = Client::new(&Address { host: "127.0.0.1".into(), port });
    let error = client.models().expect_err("nobody is there");
    assert_eq!(error.to_string(), format!("no answer from http://127.0.0.1:{port}"));
    assert!(matches!(error, ClientError::Unreachable { .. }));
}
