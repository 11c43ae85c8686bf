//! Real nodes as real processes: started from the built binary on ports of their own, asked over their
//! edges, killed and started again on the same data.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use reqwest::{Client, Response, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::process::{self, Process, outside_brokers};
pub(crate) use crate::process::{PATIENCE, eventually};

/// The login of the demo user that the embedded defaults make.
pub(crate) const USER: &str = "testuser@test.com";
/// Its password.
pub(crate) const DEMO_PASSWORD: &str = "password123";
/// The password of a user of the same name that a test has made.
pub(crate) const PASSWORD: &str = "violet anchor 17";

/// How a node is started.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    environment: Vec<(String, String)>,
    data_dir: PathBuf,
}

/// A data directory with the settings of the node that lives on it; removed at the end.
#[derive(Debug)]
pub(crate) struct Site {
    directory: tempfile::TempDir,
    options: Options,
}

impl Site {
    /// The embedded defaults, on ports of their own: the demo with its broker, whatever `HYGEIA_TEST_KAFKA`
    /// says. For tests that are about either of them.
    pub(crate) fn demo() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let data_dir = directory.path().join("data");
        let options = Options { environment: Vec::new(), data_dir };
        Site { directory, options }
            .with("HYGEIA__HTTP__LISTEN", "127.0.0.1:0")
            .with("HYGEIA__GRPC__LISTEN", "127.0.0.1:0")
            // Tests share the machine: hashing must not starve behind the others.
            .with("HYGEIA__AUTH__HASHING_NICENESS", "0")
    }

    /// The defaults, but for the brokers of `HYGEIA_TEST_KAFKA` if it is set: then with topics and a group that
    /// stay this site's over restarts, and without the demo's secret and user.
    pub(crate) fn bare() -> Self {
        let site = Self::demo();
        let Some(brokers) = outside_brokers() else { return site };
        let name = format!("hygeia-test-{}", uuid::Uuid::now_v7());
        site.with("HYGEIA__KAFKA__BROKERS", &brokers)
            .with("HYGEIA__KAFKA__TOPIC", &name)
            .with("HYGEIA__KAFKA__DEAD_LETTER_TOPIC", &format!("{name}.dlq"))
            .with("HYGEIA__KAFKA__GROUP", &name)
    }

    /// As `bare`, and one can log in: as the demo's user, or as one made for it.
    pub(crate) fn fresh() -> Self {
        let site = Self::bare();
        if outside_brokers().is_some() { site.set_up().with_user() } else { site }
    }

    /// As `bare` but for the database at `url`, with a user to log in as.
    pub(crate) fn on_postgres(url: &str) -> Self {
        let site = Self::bare().with("HYGEIA__STORE__URL", url).set_up();
        site.run(&["migrate"], "");
        site.with_user()
    }

    /// With the secret that any node but the demo needs.
    #[must_use]
    pub(crate) fn set_up(self) -> Self {
        self.with("HYGEIA__AUDIT__SECRET", "a secret of the tests, at least 32 bytes long")
    }

    /// With a user to log in as.
    #[must_use]
    pub(crate) fn with_user(self) -> Self {
        let site = self;
        site.run(&["user", "add", USER, "--role", "ADMIN"], PASSWORD);
        site
    }

    /// The password of the user that one can log in as: at `demo`, or at `fresh` and `on_postgres`.
    pub(crate) fn password(&self) -> &'static str {
        let is_set = |key: &str| self.options.environment.iter().any(|(known, _)| known == key);
        let demo = !is_set("HYGEIA__STORE__URL") && !is_set("HYGEIA__KAFKA__BROKERS");
        if demo { DEMO_PASSWORD } else { PASSWORD }
    }

    /// One more setting.
    #[must_use]
    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        self.options.environment.push((key.into(), value.into()));
        self
    }

    /// A place for files of the test.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The binary with this site's settings.
    pub(crate) fn command(&self) -> Command {
        let mut command = process::command(self.directory.path());
        command.env("HYGEIA__DATA_DIR", &self.options.data_dir);
        for (key, value) in &self.options.environment {
            command.env(key, value);
        }
        command
    }

    /// Runs a subcommand to its end, with `input` on its standard input.
    ///
    /// # Panics
    /// It failed.
    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> String {
        let mut command = self.command();
        command.args(arguments);
        process::run_to_end(command, self.directory.path(), input)
    }

    /// Starts the node without waiting for anything.
    pub(crate) fn spawn(&self) -> Process {
        Process::start(self.command(), &self.options.data_dir, &self.directory.path().join("log"))
    }

    /// Starts the node and waits until it is ready.
    pub(crate) async fn start(&self) -> Node {
        let process = self.spawn();
        Node::ready(process).await
    }
}

/// A cluster that somebody else runs, by the variables that say where its edges are and who may log in.
struct Outside {
    http: String,
    grpc: String,
    user: String,
    password: String,
}

impl Outside {
    /// None, if there is no `HYGEIA_TEST_FRONT`.
    fn named() -> Option<Self> {
        let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let needed =
            |name: &str| given(name).unwrap_or_else(|| panic!("{name} belongs to HYGEIA_TEST_FRONT"));
        let http = given("HYGEIA_TEST_FRONT")?;
        let (grpc, user) = (needed("HYGEIA_TEST_BILLING"), needed("HYGEIA_TEST_USER"));
        Some(Outside { http, grpc, user, password: needed("HYGEIA_TEST_PASSWORD") })
    }
}

/// A node that serves: one of the test's own, or the front of a cluster outside.
pub(crate) struct Node {
    process: Option<Process>,
    user: (String, String),
    http: String,
    grpc: String,
    cluster: String,
    client: Client,
}

impl Node {
    /// Waits until `process` has written its addresses.
    pub(crate) async fn listening(mut process: Process) -> Self {
        let addresses = eventually("the node writes its addresses", || {
            let ended = process.try_wait();
            assert!(ended.is_none(), "the node ended with {ended:?}:\n{}", process.log());
            let addresses = process.addresses();
            async move { addresses }
        })
        .await;
        // A node without billing has no address of gRPC.
        let address = |key: &str| addresses[key].as_str().unwrap_or_default().to_owned();
        let client = Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client");
        let (http, grpc) = (format!("http://{}", address("http")), format!("http://{}", address("grpc")));
        let cluster = address("cluster");
        let user = (USER.to_owned(), PASSWORD.to_owned());
        Node { process: Some(process), user, http, grpc, cluster, client }
    }

    fn outside(outside: Outside) -> Self {
        let Outside { http, grpc, user, password } = outside;
        let client = Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client");
        Node { process: None, user: (user, password), http, grpc, cluster: String::new(), client }
    }

    fn process(&self) -> &Process {
        self.process
            .as_ref()
            .expect("a process of the test's own: leave this test out against a cluster outside")
    }

    /// How much of the processor it has used, in hundredths of a second.
    pub(crate) fn cpu_hundredths(&self) -> u64 {
        self.process().cpu_hundredths().expect("it runs")
    }

    fn process_mut(&mut self) -> &mut Process {
        self.process
            .as_mut()
            .expect("a process of the test's own: leave this test out against a cluster outside")
    }

    /// Waits until `process` is ready to serve.
    pub(crate) async fn ready(process: Process) -> Self {
        let node = Self::listening(process).await;
        eventually("the node is ready", || async {
            (node.readiness().await == Some(StatusCode::OK)).then_some(())
        })
        .await;
        node
    }

    /// A node with its site: `Site::demo`.
    pub(crate) async fn demo() -> (Site, Node) {
        let site = Site::demo();
        let node = site.start().await;
        (site, node)
    }

    /// A node with its site, `Site::fresh`; or the front of the cluster that `HYGEIA_TEST_FRONT` names.
    pub(crate) async fn fresh() -> (Site, Node) {
        if let Some(outside) = Outside::named() {
            return (Site::demo(), Node::outside(outside));
        }
        let site = Site::fresh();
        let node = site.start().await;
        (site, node)
    }

    /// What `/health/ready` answers, if anything.
    pub(crate) async fn readiness(&self) -> Option<StatusCode> {
        let answer = self.client.get(format!("{}/health/ready", self.http)).send().await;
        answer.ok().map(|response| response.status())
    }

    /// `http://host:port`
    pub(crate) fn http_url(&self) -> &str {
        &self.http
    }

    /// `http://host:port`
    pub(crate) fn grpc_url(&self) -> &str {
        &self.grpc
    }

    /// Where it accepts other nodes: `host:port`.
    pub(crate) fn cluster_address(&self) -> &str {
        &self.cluster
    }

    /// An HTTP client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Everything it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.process().log()
    }

    /// A token of the test's user.
    pub(crate) async fn login(&self) -> String {
        for password in [self.user.1.as_str(), DEMO_PASSWORD] {
            let body = json!({"email": self.user.0, "password": password});
            // A machine that is too busy answers too late; that is no answer.
            let response = eventually("login is answered", || async {
                let response = self.client.post(format!("{}/auth/login", self.http)).json(&body).send().await;
                let response = response.expect("login is answered");
                (!response.status().is_server_error()).then_some(response)
            })
            .await;
            // The demo has made its user itself.
            if response.status() == StatusCode::UNAUTHORIZED && password != DEMO_PASSWORD {
                continue;
            }
            assert_eq!(response.status(), StatusCode::OK);
            let body: Value = response.json().await.expect("JSON");
            return body["token"].as_str().expect("a token").to_owned();
        }
        unreachable!("the last answer is a token")
    }

    /// `GET path` with `token`.
    pub(crate) async fn get(&self, token: &str, path: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.http)).bearer_auth(token);
        request.send().await.expect("an answer")
    }

    /// `GET path` as JSON, which must be a success.
    pub(crate) async fn get_json(&self, token: &str, path: &str) -> Value {
        let response = self.get(token, path).await;
        assert_eq!(response.status(), StatusCode::OK, "GET {path}");
        response.json().await.expect("JSON")
    }

    /// Registers a patient.
    pub(crate) async fn post_patient(&self, token: &str, patient: &Value) -> reqwest::Result<Response> {
        self.client.post(format!("{}/api/patients", self.http)).bearer_auth(token).json(patient).send().await
    }

    /// `kill -9`, and waits for the end.
    pub(crate) async fn kill(mut self) {
        self.process_mut().signal(Signal::KILL);
        self.process_mut().ended().await;
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        self.process().signal(Signal::TERM);
    }

    /// Any signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// SIGSTOP: connections stay open, nothing answers.
    pub(crate) fn pause(&self) {
        self.process().signal(Signal::STOP);
    }

    /// Undoes `pause`.
    pub(crate) fn resume(&self) {
        self.process().signal(Signal::CONT);
    }

    /// Waits for the end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        self.process_mut().ended().await
    }

    /// Waits until analytics has counted everything that was decided.
    pub(crate) async fn counted(&self, token: &str) -> Value {
        eventually("analytics has counted everything", || async {
            let response = self.get(token, "/api/analytics/summary").await;
            let summary: Value = response.json().await.ok()?;
            (summary["lag"] == json!(0)).then_some(summary)
        })
        .await
    }
}

/// A patient that passes all rules, unlike any with another `n`.
pub(crate) fn patient(n: impl std::fmt::Display) -> Value {
    json!({
        "name": format!("Patient {n}"),
        "email": format!("patient-{n}@example.com"),
        "address": format!("{n} High Street"),
        "dateOfBirth": "1980-05-17",
        "registeredDate": "2024-01-10",
    })
}
