//! Tests of deadlines, limits and shutdown.

use tonic_types::StatusExt;

use super::*;

#[tokio::test]
async fn every_call_is_answered_in_time_and_says_what_is_known() {
    let running = start(Settings { timeout_ms: 300, ..settings() }).await;
    let mut client = running.client().await;
    let in_auth = with(asking(NAME), "authorization", "Bearer hang");
    for (request, name, at_most_ms) in [
        (asking("hang"), "OUTCOME_UNKNOWN", 300),
        (with(asking("hang"), "grpc-timeout", "1H"), "OUTCOME_UNKNOWN", 300),
        (in_auth, "DEADLINE_EXCEEDED", 300),
    ] {
        let began = SystemClock.mono();
        let status = client.create_billing_account(request).await.expect_err("too late");
        let took = SystemClock.mono().since(began);
        assert_eq!((status.code(), error_code(&status)), (Code::DeadlineExceeded, name));
        // The slack allows for a busy machine: other tests run at the same time.
        assert!(took < Duration::from_millis(at_most_ms + 10_000), "{name} after {took:?}");
        assert!(took >= Duration::from_millis(at_most_ms * 8 / 10), "{name} after {took:?}");
    }
}

/// The client library also enforces the deadline, so either side may have been first.
#[tokio::test]
async fn a_caller_may_ask_for_less_time() {
    let running = start(Settings { timeout_ms: 3_600_000, ..settings() }).await;
    let before = SystemClock.mono();
    let shorter = with(asking("hang"), "grpc-timeout", "200m");
    let status = running.client().await.create_billing_account(shorter).await.expect_err("too late");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    assert!(running.fake.asked.lock().unwrap()[0].deadline.since(before) < Duration::from_secs(60));
}

#[tokio::test]
async fn calls_beyond_the_limits_are_refused_at_once_and_probes_are_not() {
    let per_connection = Settings { concurrency_per_connection_max: 2, ..settings() };
    let per_server = Settings { in_flight_max: 2, ..settings() };
    for settings in [per_connection, per_server] {
        let running = start(settings).await;
        let channel = running.channel().await;
        let client = BillingServiceClient::new(channel.clone());
        let calls: Vec<_> = (0..2)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { client.create_billing_account(asking("wait")).await })
            })
            .collect();
        until("two calls run", async || running.fake.waiting.load(Ordering::SeqCst) == 2).await;
        let status = client.clone().create_billing_account(asking(NAME)).await.expect_err("full");
        assert_eq!((status.code(), error_code(&status)), (Code::ResourceExhausted, "OVERLOADED"));
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.expect("probes are let in");
        running.fake.gate.add_permits(2);
        for call in calls {
            call.await.unwrap().expect("the calls in time are served");
        }
        client.clone().create_billing_account(asking(NAME)).await.expect("room again");
    }
}

#[tokio::test]
async fn watchers_beyond_the_limit_are_refused_and_questions_are_not() {
    let running = start(settings()).await;
    let mut health = HealthClient::new(running.channel().await);
    let mut watching = Vec::new();
    for _ in 0..call::PROBE_STREAMS_MAX {
        let mut stream = health.watch(HealthCheckRequest::default()).await.expect("room").into_inner();
        stream.message().await.expect("open").expect("how it is now");
        watching.push(stream);
    }
    let status = health.watch(HealthCheckRequest::default()).await.expect_err("full");
    assert_eq!((status.code(), error_code(&status)), (Code::ResourceExhausted, "OVERLOADED"));
    health.check(HealthCheckRequest::default()).await.expect("questions are let in");
    running.client().await.create_billing_account(asking(NAME)).await.expect("calls have room of their own");
    drop(watching);
    until("there is room again", async || health.watch(HealthCheckRequest::default()).await.is_ok()).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_silent_ones_too() {
    let running = start(Settings { connections_max: 1, opening_timeout_ms: 200, ..settings() }).await;
    let mut silent = TcpStream::connect(running.address).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut refused = TcpStream::connect(running.address).await.unwrap();
    let mut byte = [0];
    let closed = |read: io::Result<usize>| matches!(read, Ok(0) | Err(_));
    assert!(closed(timeout(PATIENCE, refused.read(&mut byte)).await.expect("closed at once")));
    until("the silent one is closed", async || {
        let mut buffer = [0; 64];
        timeout(Duration::from_millis(10), silent.read(&mut buffer)).await.is_ok_and(closed)
    })
    .await;
    until("its place is free", async || {
        let Ok(channel) =
            Endpoint::from_shared(format!("http://{}", running.address)).unwrap().connect().await
        else {
            return false;
        };
        let mut client = BillingServiceClient::new(channel);
        client.create_billing_account(asking(NAME)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_drain_lets_calls_end_and_takes_no_new_ones() {
    let mut running = start(settings()).await;
    let mut client = running.client().await;
    let call = tokio::spawn(async move { client.create_billing_account(asking("wait")).await });
    until("the call runs", async || running.fake.waiting.load(Ordering::SeqCst) == 1).await;
    running.stop();
    until("the port is closed", async || TcpStream::connect(running.address).await.is_err()).await;
    assert!(!running.served.is_finished());
    running.fake.gate.add_permits(1);
    call.await.unwrap().expect("a call in flight is answered");
    timeout(PATIENCE, running.served).await.expect("drained").unwrap().expect("no failure");
}

#[tokio::test]
async fn what_does_not_end_is_cut_off_at_the_end_of_the_drain() {
    let mut running = start(Settings { drain_timeout_ms: 100, timeout_ms: 60_000, ..settings() }).await;
    let mut client = running.client().await;
    let mut watch = HealthClient::new(running.channel().await)
        .watch(HealthCheckRequest::default())
        .await
        .expect("watches")
        .into_inner();
    let call = tokio::spawn(async move { client.create_billing_account(asking("hang")).await });
    until("the call runs", async || !running.fake.asked.lock().unwrap().is_empty()).await;
    running.stop();
    timeout(PATIENCE, running.served).await.expect("bounded").unwrap().expect("no failure");
    call.await.unwrap().expect_err("cut off");
    let mut last = None;
    while let Ok(Some(update)) = watch.message().await {
        last = Some(update.status());
    }
    assert_eq!(last, Some(ServingStatus::NotServing), "watchers were told");
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_a_clear_error() {
    let running = start(settings()).await;
    let state = GrpcState {
        audit: crate::actors::audit::AuditHandle::off(),
        billing: Arc::clone(&running.fake) as _,
        auth: Arc::clone(&running.fake) as _,
        clock: Arc::new(SystemClock),
        health: Health::default(),
    };
    let taken = Settings { listen: running.address, ..Settings::default() };
    let error = Server::bind(taken, state.clone()).await.err().expect("the port is in use");
    let message = error.to_string();
    assert!(message.contains(&running.address.to_string()) && message.contains("in use"), "{message}");

    let open = Settings { listen: ([0, 0, 0, 0], 0).into(), require_token: false, ..Settings::default() };
    assert_eq!(open.problems()[0].0, "require_token");
    assert!(matches!(Server::bind(open, state).await.err(), Some(Error::TokenNeeded(_))));
    assert!(Settings::default().problems().is_empty());
}

#[tokio::test]
async fn a_subject_may_call_so_often() {
    let limited = Settings { rate_limit_per_s: 1, rate_limit_burst: 2, ..settings() };
    let running = start(limited).await;
    let mut client = running.client().await;
    for _ in 0..2 {
        client.create_billing_account(asking(NAME)).await.expect("within the burst");
    }
    let refused = client.create_billing_account(asking(NAME)).await.expect_err("beyond it");
    assert_eq!((refused.code(), error_code(&refused)), (Code::ResourceExhausted, "RATE_LIMITED"));
    let details = refused.get_error_details();
    assert_eq!(details.error_info().map(|info| &*info.reason), Some("RATE_LIMITED"));
    assert_eq!(details.retry_info().and_then(|retry| retry.retry_delay), Some(Duration::from_secs(1)));
    assert_eq!(running.fake.asked.lock().unwrap().len(), 2, "what is refused is not worked on");
}
