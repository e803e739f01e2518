//! `pinseal edge` as a process, and its HTTP client.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::engine_process::{METRICS, metrics};

/// The client that the tests use.
pub const TOKEN: &str = "story-token-0123456789abcdef";
/// A client of another tenant.
pub const OTHER_TOKEN: &str = "other-token-0123456789abcdef";

/// The password of the client that uses HTTP Basic; it contains a colon.
pub const PASSWORD: &str = "pass:word-0123456789";

/// The configuration of one client with the tests' token, which stands in a file of the directory.
pub fn one_client(directory: &Path) -> String {
    let token = directory.join("token");
    write_secret(&token, TOKEN);
    format!("[[clients]]\nname = \"story\"\ntenant = \"bank\"\nbearer = {{ file = {token:?} }}\n")
}

/// The configuration of a client with its own token and the zone keys of the TOML array `zones`.
pub fn zone_client(directory: &Path, name: &str, tenant: &str, zones: &str) -> String {
    let token = directory.join(format!("{name}-token"));
    write_secret(&token, &token_of(name));
    format!("[[clients]]\nname = {name:?}\ntenant = {tenant:?}\nbearer = {{ file = {token:?} }}\nzones = {zones}\n")
}

/// The token of a client of [`zone_client`].
pub fn token_of(name: &str) -> String {
    format!("{name}-0123456789abcdef")
}

/// A running edge; killed when dropped.
pub struct EdgeProcess {
    child: Child,
    pub url: String,
    log: PathBuf,
}

impl EdgeProcess {
    /// Starts an edge in front of an engine, with these extra lines of configuration.
    pub fn start(directory: &Path, engine: &str, extra: &str) -> Self {
        Self::start_logging(directory, engine, extra, Some("trace"))
    }

    /// Starts an edge with the default log filter.
    pub fn start_with_default_log(directory: &Path, engine: &str) -> Self {
        Self::start_logging(directory, engine, "", None)
    }

    /// Starts an edge that serves metrics, with the default log filter.
    pub fn start_with_metrics(directory: &Path, engine: &str) -> Self {
        Self::start_logging(directory, engine, METRICS, None)
    }

    /// Starts an edge without a log, with these extra lines of configuration.
    pub fn start_quiet_with(directory: &Path, engine: &str, extra: &str) -> Self {
        Self::start_logging(directory, engine, extra, Some("warn"))
    }

    /// Starts a service without a log: writing events would take most of its time.
    pub fn start_quiet(directory: &Path, engine: &str) -> Self {
        Self::start_logging(directory, engine, "", Some("warn"))
    }

    /// Starts an edge with these soft and hard limits of open files.
    pub fn start_with_open_files(directory: &Path, engine: &str, soft: u32, hard: u32) -> Self {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\""));
        command.arg(crate::pinseal_path());
        Self::start_with(command, &["edge"], directory, engine, "", Some("warn"))
    }

    /// Starts the program `pinseal-edge`.
    pub fn start_alone(binary: &Path, directory: &Path, engine: &str) -> Self {
        Self::start_with(Command::new(binary), &[], directory, engine, "", Some("trace"))
    }

    fn start_logging(directory: &Path, engine: &str, extra: &str, events: Option<&str>) -> Self {
        Self::start_with(Command::new(crate::pinseal_path()), &["edge"], directory, engine, extra, events)
    }

    fn start_with(
        mut command: Command,
        subcommand: &[&str],
        directory: &Path,
        engine: &str,
        extra: &str,
        events: Option<&str>,
    ) -> Self {
        let client = one_client(directory);
        write_secret(&directory.join("other-token"), OTHER_TOKEN);
        let config = directory.join("edge.toml");
        // A disk that is busy with other work may keep a change waiting for longer than the 10 s of the default.
        let long_requests = match extra.contains("request_timeout_milliseconds") {
            true => "",
            false => "request_timeout_milliseconds = 60000",
        };
        let text = format!(
            "listen = \"127.0.0.1:0\"\n{long_requests}\n{extra}\n[engine]\n{engine}\n{client}\
             [[clients]]\nname = \"other\"\ntenant = \"other\"\nbearer = {{ file = {:?} }}\n\
             [[clients]]\nname = \"backoffice\"\ntenant = \"bank\"\ntzpk_kcv = true\nbasic = {{ user = \"backoffice\", password = {{ env = \"BACKOFFICE\" }} }}\n",
            directory.join("other-token"),
        );
        std::fs::write(&config, text).unwrap();
        let log = directory.join("edge.log");
        match events {
            Some(events) => command.env("RUST_LOG", events),
            None => command.env_remove("RUST_LOG"),
        };
        let mut child = command
            .args(["--log-format", "json"])
            .args(subcommand)
            .arg("--config")
            .arg(&config)
            .env("BACKOFFICE", PASSWORD)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let first = BufReader::new(child.stdout.as_mut().unwrap()).lines().next();
        let Some(Ok(line)) = first else {
            panic!("the edge did not start: {}", std::fs::read_to_string(&log).unwrap());
        };
        let url = format!("http://{}", line.rsplit(' ').next().unwrap());
        Self { child, url, log }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Its metrics, if it was started with them.
    pub fn metrics(&self) -> String {
        metrics(&self.log())
    }

    /// The status of a GET without credentials.
    pub fn status_of(&self, path: &str) -> u16 {
        agent().get(format!("{}{path}", self.url)).call().unwrap().status().as_u16()
    }

    /// The Cache-Control of a GET without credentials.
    pub fn cache_control_of(&self, path: &str) -> Option<String> {
        let answer = agent().get(format!("{}{path}", self.url)).call().unwrap();
        answer.headers().get("cache-control").map(|value| value.to_str().unwrap().to_owned())
    }

    /// A POST with the tests' token.
    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.post_as(&format!("Bearer {TOKEN}"), path, body)
    }

    /// A POST with this Authorization; without the header where it is empty.
    pub fn post_as(&self, authorization: &str, path: &str, body: &str) -> Answer {
        let mut request = agent().post(format!("{}{path}", self.url)).content_type("application/json");
        if !authorization.is_empty() {
            request = request.header("authorization", authorization);
        }
        Answer::read(path, request.send(body).unwrap())
    }

    /// A GET with this Authorization.
    pub fn get_as(&self, authorization: &str, path: &str) -> Answer {
        let request = agent().get(format!("{}{path}", self.url)).header("authorization", authorization);
        Answer::read(path, request.call().unwrap())
    }
}

impl Answer {
    fn read(path: &str, mut answer: ureq::http::Response<ureq::Body>) -> Self {
        let text = answer.body_mut().read_to_string().unwrap();
        let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"));
        let retry_after = answer.headers().contains_key("retry-after");
        let kept_by_no_cache = answer.headers().get("cache-control").is_some_and(|value| value == "no-store");
        assert!(kept_by_no_cache, "{path}: a cache may keep {text}");
        Answer { status: answer.status().as_u16(), body, text, retry_after }
    }
}

/// A connection to an edge on which the test writes every byte.
impl EdgeProcess {
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.url.trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// The answer to a POST by HTTP/1.1 with the tests' token, these headers and this part of a body. Nothing follows:
    /// the client closes the connection if `hangs_up` is set, and waits otherwise.
    pub fn post_raw(&self, path: &str, headers: &str, body: &str, hangs_up: bool) -> Answer {
        let mut stream = self.connect();
        let head = format!("POST {path} HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {TOKEN}\r\nconnection: close");
        stream.write_all(format!("{head}\r\n{headers}\r\n\r\n{body}").as_bytes()).unwrap();
        if hangs_up {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(text).unwrap_or_else(|_| panic!("not JSON: {text}"));
        Answer { status, body, text: text.to_owned(), retry_after: head.contains("retry-after") }
    }
}

impl Drop for EdgeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer of the edge.
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub text: String,
    pub retry_after: bool,
}

impl Answer {
    /// A member of the body.
    pub fn member(&self, name: &str) -> &str {
        self.body[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.text))
    }

    /// Checks the seven members of an error, and returns status and errorCode.
    pub fn fault(&self) -> (u16, &str) {
        let mut members: Vec<_> = self.body.as_object().unwrap().keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, ["code", "errorCode", "errorReason", "errorType", "id", "message", "timestamp"]);
        assert!(self.body.as_object().unwrap().values().all(Value::is_string), "{}", self.text);
        assert_eq!(self.member("code"), self.status.to_string());
        assert!(uuid::Uuid::try_parse(self.member("id")).is_ok());
        assert!(self.member("timestamp").parse::<jiff::Timestamp>().is_ok());
        (self.status, self.member("errorCode"))
    }

    /// The bytes of the answer, without the members that differ in each answer.
    pub fn without_id_and_time(&self) -> String {
        self.text.replace(self.member("id"), "ID").replace(self.member("timestamp"), "TIME")
    }
}

impl EdgeProcess {
    /// Runs curl against a path, with these arguments: the status, the version of HTTP and the answer. `None` if curl got no
    /// answer.
    pub fn curl(&self, path: &str, arguments: &[&str]) -> Option<(String, Answer)> {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "60", "-w", "\n%{http_version} %{http_code}"])
            .args(arguments)
            .arg(format!("{}{path}", self.url))
            .output()
            .expect("curl is missing: install it");
        let printed = String::from_utf8(output.stdout).unwrap();
        let (text, status) = printed.rsplit_once('\n')?;
        let (version, status) = status.split_once(' ')?;
        if !output.status.success() {
            eprintln!("curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let body = serde_json::from_str(text).unwrap_or_else(|_| panic!("not JSON: {status} {text:?}"));
        let answer = Answer { status: status.parse().unwrap(), body, text: text.to_owned(), retry_after: false };
        Some((version.to_owned(), answer))
    }

    /// The answer to these bytes on a new connection, and its status line and headers.
    pub fn raw(&self, request: &[u8]) -> (String, Answer) {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(text).unwrap_or_else(|_| panic!("not JSON: {head} {text:?}"));
        (head.to_owned(), Answer { status, body, text: text.to_owned(), retry_after: false })
    }
}

impl EdgeProcess {
    /// The status line and headers of the answer to these bytes on a new connection, which the request closes.
    pub fn raw_head(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// An HTTP agent that returns every status.
fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().into()
}

fn write_secret(path: &Path, secret: &str) {
    let mut file = std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(secret.as_bytes()).unwrap();
}
