//! The cluster of docker-compose.yml: started, looked at, broken and healed by commands to Docker.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::api::{Api, Front};
use crate::docker::{Compose, address, docker, is_healthy};
use crate::machinery::answers::form;
use crate::process::within;

/// How long the whole cluster may take to start, and a container to come back.
const START_PATIENCE: Duration = Duration::from_secs(180);

/// How often a container is tried to be frozen.
const PAUSE_TRIES_MAX: u32 = 5;

/// How long a request may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);

/// The services that are nodes, in the order in which they are restarted in turn.
pub(crate) const NODES: [&str; 9] = [
    "patient-1",
    "patient-2",
    "billing",
    "billing-2",
    "bridge",
    "analytics",
    "analytics-2",
    "front",
    "front-2",
];
/// The service of nodes that join.
pub(crate) const JOINING: &str = "patient";
/// Who the first ADMIN is.
pub(crate) const ADMIN: &str = "admin@example.com";
/// The caller of the load.
const CLINICIAN: &str = "clinician@example.com";

/// A cluster that runs. Removed with its volumes at the end.
pub(crate) struct Cluster {
    pub(crate) compose: Compose,
    pub(crate) http: String,
    pub(crate) grpc: String,
    pub(crate) password: String,
    /// The database's URL, from this machine.
    pub(crate) database: String,
    /// The broker's address, from this machine.
    pub(crate) broker: String,
}

impl Cluster {
    /// `up`, and every node is healthy.
    pub(crate) async fn start(compose: Compose) -> Result<Self, String> {
        let begun = Instant::now();
        let cluster = Self::prepare(compose)?;
        cluster.compose.run(&["up", "-d", "--no-build"]).await?;
        let cluster = cluster.ready().await?;
        println!("  every node is healthy {:.1} s after `up`", begun.elapsed().as_secs_f64());
        Ok(cluster)
    }

    /// Names and addresses of a cluster that is not there yet.
    pub(crate) fn prepare(mut compose: Compose) -> Result<Self, String> {
        let (http, grpc) = (free_port()?, free_port()?);
        // Away from the ranges that Docker takes by itself.
        let third = fastrand::u8(1..=250);
        let broker = format!("10.213.{third}.250");
        compose.set("HYGEIA_TEST_SUBNET", format!("10.213.{third}.0/24"));
        compose.set("HYGEIA_TEST_KAFKA_ADDRESS", &broker);
        compose.set("KAFKA_ADVERTISED_HOST", &broker);
        compose.set("HYGEIA_HTTP_PORT", format!("127.0.0.1:{http}"));
        compose.set("HYGEIA_GRPC_PORT", format!("127.0.0.1:{grpc}"));
        compose.set("HYGEIA_ADMIN_EMAIL", ADMIN);
        let (http, grpc) = (format!("http://127.0.0.1:{http}"), format!("http://127.0.0.1:{grpc}"));
        let broker = format!("{broker}:9092");
        Ok(Cluster { compose, http, grpc, broker, password: String::new(), database: String::new() })
    }

    /// Reads the secrets of a cluster that was told `up`, and awaits that each node is healthy.
    pub(crate) async fn ready(mut self) -> Result<Self, String> {
        self.password = secret(&self.compose, "admin.password").await?;
        let database_password = secret(&self.compose, "database.password").await?;
        let postgres =
            address(&self.compose.container("postgres").await?, &self.compose.network("data")).await?;
        self.database = format!("postgres://hygeia:{database_password}@{postgres}:5432/hygeia");
        self.all_healthy().await?;
        self.reachable().await?;
        Ok(self)
    }

    /// Awaits that the balancer has found a front.
    async fn reachable(&self) -> Result<(), String> {
        let client = client()?;
        let url = format!("{}/health/ready", self.http);
        let answers = || async {
            let answer = client.get(&url).send().await.ok()?;
            answer.status().is_success().then_some(())
        };
        within(START_PATIENCE, answers).await.ok_or_else(|| format!("{url} does not answer with 200"))
    }

    /// Logs in at the front.
    pub(crate) async fn api(&self) -> Result<Api, String> {
        let front = vec![Front { node: 0, url: self.http.clone() }];
        let accounts = vec![(0, self.grpc.clone())];
        let admin = (ADMIN, &*self.password);
        // Made through the interface, unless it is there already.
        let worker = json!({"email": CLINICIAN, "password": self.password, "role": "CLINICIAN"});
        Api::login(front.clone(), accounts.clone(), admin, admin).await?.post(0, "/api/users", &worker).await;
        Api::login(front, accounts, (CLINICIAN, &*self.password), admin).await
    }

    /// Awaits that every node is.
    pub(crate) async fn all_healthy(&self) -> Result<(), String> {
        for service in NODES.into_iter().chain([JOINING]) {
            self.healthy(service).await?;
        }
        Ok(())
    }

    /// Awaits that all containers of a service are.
    pub(crate) async fn healthy(&self, service: &str) -> Result<(), String> {
        for container in self.compose.containers(service).await? {
            let well = || async { is_healthy(&container).await.then_some(()) };
            if within(START_PATIENCE, well).await.is_none() {
                let log = docker(&["logs", "--tail", "20", &container]).await.unwrap_or_default();
                return Err(format!("{service} is not healthy within {START_PATIENCE:?}:\n{log}"));
            }
        }
        Ok(())
    }

    /// SIGKILL from outside, as the kernel does it when memory runs out: the restart policy has to heal it. Without
    /// the right to do that, by Docker, whose policy then leaves it to us to start it.
    pub(crate) async fn kill(&self, service: &str) -> Result<(), String> {
        let container = self.compose.container(service).await?;
        let process = docker(&["inspect", "-f", "{{.State.Pid}}", &container]).await?;
        let process = process.trim().parse().ok().and_then(Pid::from_raw).ok_or("no process")?;
        if kill_process(process, Signal::KILL).is_err() {
            docker(&["kill", &container]).await?;
            docker(&["start", &container]).await?;
        }
        Ok(())
    }

    /// Freezes a container for a while.
    pub(crate) async fn pause(&self, service: &str, lasts: Duration) -> Result<(), String> {
        let container = self.compose.container(service).await?;
        // The engine gives up freezing a container whose processes are all at work at that moment.
        let mut tries = 1;
        while let Err(error) = docker(&["pause", &container]).await {
            if tries == PAUSE_TRIES_MAX || !error.contains("unable to freeze") {
                return Err(error);
            }
            tries += 1;
        }
        tokio::time::sleep(lasts).await;
        docker(&["unpause", &container]).await.map(drop)
    }

    /// Takes a container out of a network for a while.
    pub(crate) async fn disconnect(
        &self,
        service: &str,
        network: &str,
        lasts: Duration,
    ) -> Result<(), String> {
        let container = self.compose.container(service).await?;
        let network = self.compose.network(network);
        docker(&["network", "disconnect", &network, &container]).await?;
        tokio::time::sleep(lasts).await;
        let alias = format!("{service}.nodes");
        docker(&["network", "connect", "--alias", &alias, "--alias", service, &network, &container])
            .await
            .map(drop)
    }

    /// SIGTERM and a new start of every node in turn; each must be healthy before the next.
    pub(crate) async fn restart_in_turn(&self) -> Result<(), String> {
        for service in NODES.into_iter().chain([JOINING]) {
            for container in self.compose.containers(service).await? {
                docker(&["restart", "--time", "20", &container]).await?;
                // The others of its service go on until it is back.
                self.healthy(service).await?;
            }
        }
        Ok(())
    }

    /// How many shards of patients each node holds, as the front says.
    pub(crate) async fn holders(&self) -> Result<BTreeMap<String, usize>, String> {
        let status = self.api().await?.json(0, "/cluster").await.ok_or("GET /cluster is not answered")?;
        let mut held = BTreeMap::new();
        for lease in status["leases"].as_array().ok_or("no leases")? {
            let owner = lease["owner"].as_str().and_then(|owner| owner.split('#').next());
            if let Some(owner) = owner.filter(|_| lease["kind"] == "patient") {
                *held.entry(owner.to_owned()).or_default() += 1;
            }
        }
        Ok(held)
    }

    /// What the nodes have logged since then (as `docker logs --since` takes it), each line after its service.
    pub(crate) async fn logs(&self, since: &str) -> Result<String, String> {
        let mut all = String::new();
        for service in NODES.into_iter().chain([JOINING]) {
            for container in self.compose.containers(service).await? {
                let logged = docker(&["logs", "--since", since, &container]).await?;
                all.extend(logged.lines().map(|line| format!("{service} | {line}\n")));
            }
        }
        Ok(all)
    }

    /// A token of the first ADMIN.
    pub(crate) async fn token(&self) -> Result<String, String> {
        let body = json!({"email": ADMIN, "password": self.password});
        let login = client()?.post(format!("{}/auth/login", self.http)).json(&body);
        let login: serde_json::Value = said(said(login.send().await)?.json().await)?;
        login["token"].as_str().map(str::to_owned).ok_or_else(|| format!("no token: {login}"))
    }

    /// The status of an answer to a caller with that token who reads a patient.
    pub(crate) async fn read_with(&self, token: &str, patient: uuid::Uuid) -> Result<u16, String> {
        let request = client()?.get(format!("{}/api/patients/{patient}", self.http)).bearer_auth(token);
        said(request.send().await).map(|answer| answer.status().as_u16())
    }

    /// Registers a patient within a trace of one's own; who it is.
    pub(crate) async fn register_within(&self, trace: &str) -> Result<String, String> {
        let request = client()?.post(format!("{}/api/patients", self.http)).bearer_auth(self.token().await?);
        let request = request.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
        let answer = said(request.json(&form("traced@example.com", 1)).send().await)?;
        let answer: serde_json::Value = said(answer.json().await)?;
        answer["id"].as_str().map(str::to_owned).ok_or_else(|| format!("not registered: {answer}"))
    }

    /// Stops everything and removes it.
    pub(crate) async fn remove(&self) -> Result<(), String> {
        self.compose.run(&["down", "-v", "--remove-orphans", "-t", "20"]).await.map(drop)
    }
}

fn said<T>(answer: reqwest::Result<T>) -> Result<T, String> {
    answer.map_err(|error| error.to_string())
}

fn client() -> Result<reqwest::Client, String> {
    reqwest::Client::builder().timeout(ASK_TIMEOUT).no_proxy().build().map_err(|e| e.to_string())
}

async fn secret(compose: &Compose, name: &str) -> Result<String, String> {
    let arguments = ["run", "--rm", "-T", "provision", "provision", "--out", "/provision", "--show", name];
    let said = compose.run(&arguments).await?;
    said.lines().last().map(str::to_owned).ok_or_else(|| format!("{name} is not shown"))
}

fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|e| e.to_string())
}
