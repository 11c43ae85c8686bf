//! Clients that are generated of the description, in three languages: each is built anew, and talks to a node.
//! `tests/setup.sh clients` installs the generators.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::process::Command;

use crate::harness::{Node, Site, USER};

/// How long a generator, a compiler or a client may take. A machine that has much else to do needs several times as long
/// as an idle one.
const PATIENCE: Duration = Duration::from_secs(300);

/// A node to talk to, and a place to build a client in.
struct Workshop {
    site: Site,
    node: Node,
    began: Instant,
}

impl Workshop {
    async fn open() -> Self {
        let began = Instant::now();
        // Each client makes users; the cheapest hash that is allowed is as good here.
        let site = Site::demo().with("HYGEIA__AUTH__BCRYPT_COST", "4");
        let node = site.start().await;
        std::fs::write(site.path().join("openapi.json"), site.run(&["openapi"], "")).expect("written");
        Workshop { site, node, began }
    }

    /// Runs a program here, and gives what it wrote.
    async fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> String {
        let program = program.as_ref();
        let running = Command::new(program)
            .current_dir(self.site.path())
            .args(arguments)
            .env("HYGEIA_URL", self.node.http_url())
            .env("HYGEIA_USER", USER)
            .env("HYGEIA_PASSWORD", self.site.password())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let what = format!("{} {}", program.display(), arguments.join(" "));
        let over = tokio::time::timeout(PATIENCE, running).await;
        let output = over.unwrap_or_else(|_| panic!("longer than {PATIENCE:?}: {what}"));
        let output = output.unwrap_or_else(|error| panic!("{what}: {error}; `make setup` installs it"));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{what}: {}\n{out}{err}", output.status);
        out.into_owned()
    }

    fn done(&self, said: &str, expected: &str) {
        assert!(said.contains(expected), "{said}");
        println!("{} after {:?}", said.trim(), self.began.elapsed());
    }
}

/// Where `tests/setup.sh` puts the generator of a language: beside what cargo builds.
fn tools(language: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    built.parent().expect("the target directory").join(format!("clients-{language}"))
}

/// A file of the tests.
fn source(name: &str) -> String {
    format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A description that names a field otherwise than the program, or calls one optional that it needs, makes clients that
/// always fail.
#[tokio::test]
async fn every_form_is_described_as_the_program_reads_it() {
    let Workshop { site, node, .. } = Workshop::open().await;
    let token = node.login().await;
    let described: Value = serde_json::from_str(&site.run(&["openapi"], "")).expect("JSON");
    let mut forms = 0;
    for (path, methods) in described["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let Some(content) = operation["requestBody"]["content"].as_object() else { continue };
            let (media_type, content) = content.iter().next().expect("a media type");
            let schema = content["schema"]["$ref"].as_str().expect("a schema of its own");
            let schema = described.pointer(schema.trim_start_matches('#')).expect("it is there");
            let fields = schema["properties"].as_object().expect("fields");
            let concrete = path
                .replace("{id}", "123e4567-e89b-12d3-a456-426614174000")
                .replace("{email}", "nobody@example.com");
            let send = async |body: Value| {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
                let request = node.client().request(method, format!("{}{concrete}", node.http_url()));
                let request =
                    request.bearer_auth(&token).header("content-type", media_type).body(body.to_string());
                let answer: Value = request.send().await.expect("an answer").json().await.expect("JSON");
                answer["errors"].as_object().cloned().unwrap_or_default()
            };
            // Without any field, those that are needed are missed.
            let required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let missed: Vec<String> = send(json!({})).await.into_iter().map(|(name, _)| name).collect();
            assert_eq!(sorted(&missed), sorted(&required), "{method} {path}");
            // With all, of a wrong type, each is known, and no other.
            let wrong: Map<String, Value> = fields.keys().map(|name| (name.clone(), json!([1]))).collect();
            for (name, error) in send(wrong.into()).await {
                assert!(
                    fields.contains_key(&name) && error != "Unknown field",
                    "{method} {path}: {name} {error}"
                );
            }
            let made_up = send(json!({"madeUp": 1})).await;
            assert!(made_up.contains_key("madeUp") || path == "/api/users/{email}", "{method} {path}");
            forms += 1;
        }
    }
    assert_eq!(forms, 8);
}

fn sorted(names: &[impl AsRef<str>]) -> Vec<&str> {
    let mut names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_client_in_python_calls_every_operation() {
    let (workshop, tools) = (Workshop::open().await, tools("python"));
    let generator = tools.join("bin/openapi-python-client");
    let config = source("python.yaml");
    let generate = ["generate", "--path", "openapi.json", "--output-path", "hygeia_client", "--meta", "none"];
    workshop.run(generator, &[&generate[..], &["--fail-on-warning", "--config", &config]].concat()).await;
    let drive = std::fs::read_to_string(source("drive.py")).expect("the test's own");
    // Beside the client, so that it finds it.
    std::fs::write(workshop.site.path().join("drive.py"), drive).expect("written");
    let said = workshop.run(tools.join("bin/python"), &["drive.py"]).await;
    workshop.done(&said, "33 operations of hygeia_client called");
}

#[tokio::test]
async fn a_client_in_typescript_compiles_logs_in_registers_and_reads() {
    let (workshop, tools) = (Workshop::open().await, tools("typescript"));
    let here = workshop.site.path();
    let modules = tools.join("node_modules");
    std::os::unix::fs::symlink(&modules, here.join("node_modules")).expect("linked");
    for file in ["package.json", "tsconfig.json", "drive.ts"] {
        std::fs::copy(source(&format!("typescript/{file}")), here.join(file)).expect("copied");
    }
    let generator = "node_modules/openapi-typescript/bin/cli.js";
    workshop.run("node", &[generator, "openapi.json", "-o", "schema.d.ts"]).await;
    workshop.run("node", &["node_modules/typescript/bin/tsc"]).await;
    let said = workshop.run("node", &["drive.js"]).await;
    workshop.done(&said, "a client in TypeScript has logged in");
}

#[tokio::test]
async fn a_browser_opens_the_pages_authorizes_and_reads_a_patient() {
    let workshop = Workshop::open().await;
    let said = workshop.run("node", &[&source("browser.mjs")]).await;
    workshop.done(&said, "a browser has opened the page");
}

#[tokio::test]
async fn a_client_in_java_compiles_logs_in_registers_and_reads() {
    let (workshop, tools) = (Workshop::open().await, tools("java"));
    let jars = std::fs::read_dir(tools.join("jars")).expect("fetched: `make setup` does so");
    let jars: Vec<String> =
        jars.map(|jar| jar.expect("listed").path().to_string_lossy().into_owned()).collect();
    let is_generator = |jar: &&String| jar.contains("openapi-generator-cli");
    let generator = jars.iter().find(is_generator).expect("the generator");
    // Short runs: what the second compiler of the virtual machine gains it does not give back.
    let quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];
    let generate = ["-jar", generator, "generate", "-i", "openapi.json", "-g", "java", "--library", "native"];
    let parts = "models,apis,supportingFiles,modelTests=false,apiTests=false,modelDocs=false,apiDocs=false";
    let into = ["-o", "generated", "--global-property", parts];
    workshop.run("java", &[&quick[..], &generate, &into].concat()).await;
    let needed: Vec<&str> = jars.iter().filter(|jar| !is_generator(jar)).map(String::as_str).collect();
    let path = format!("classes:{}", needed.join(":"));
    let mut sources = vec![source("java/Drive.java")];
    java_files(&workshop.site.path().join("generated/src/main/java"), &mut sources);
    let compile = ["-J-XX:TieredStopAtLevel=1", "-nowarn", "-proc:none", "-d", "classes", "-cp", &path];
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    workshop.run("javac", &[&compile[..], &sources].concat()).await;
    let said = workshop.run("java", &[&quick[..], &["-cp", &path, "Drive"]].concat()).await;
    workshop.done(&said, "a client in Java has logged in");
}

/// All sources in `directory`, and below.
fn java_files(directory: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).expect("generated") {
        let path = entry.expect("listed").path();
        if path.is_dir() {
            java_files(&path, found);
        } else {
            found.push(path.to_string_lossy().into_owned());
        }
    }
}
