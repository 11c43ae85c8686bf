//! Requests that anyone may make, and what they cost the program: nobody without a token may starve those with one.

use futures::future::join_all;
use reqwest::StatusCode;

use crate::harness::{Node, Site};

/// Requests that are made of each kind.
const REQUESTS: u64 = 50;
/// What a request may take of the processor, in a program that is not optimised. Compressing the largest of the answers
/// took 2 s, and the smallest 60 ms.
const CPU_MS_MAX: u64 = 20;

/// Asks once, and gives how long the answer was.
async fn ask(node: &Node, path: &str, coding: &str) -> usize {
    let request = node.client().get(format!("{}{path}", node.http_url())).header("accept-encoding", coding);
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    let named = answer.headers().get("content-encoding").map(|value| value.as_bytes().to_vec());
    assert_eq!(named.as_deref(), Some(coding.as_bytes()), "{path}");
    answer.bytes().await.expect("a body").len()
}

#[tokio::test]
async fn what_is_the_same_for_everybody_is_compressed_once() {
    let node = Site::demo().start().await;
    for path in
        ["/swagger-ui/swagger-ui-bundle.js", "/swagger-ui/swagger-ui.css", "/openapi.json", "/api-docs/auth"]
    {
        for coding in ["br", "gzip"] {
            // The description of the interface is made for the first who asks.
            let bytes = ask(&node, path, coding).await;
            let before = node.cpu_hundredths();
            for _ in 0..REQUESTS / 10 {
                let answers = join_all((0..10).map(|_| ask(&node, path, coding))).await;
                assert!(answers.iter().all(|length| *length == bytes), "{path}");
            }
            let ms = (node.cpu_hundredths() - before) * 10;
            assert!(ms < REQUESTS * CPU_MS_MAX, "{path} {coding}: {ms} ms for {REQUESTS} requests");
        }
    }
}
