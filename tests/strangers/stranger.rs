//! Another user: a copy of this program that runs as nobody and does as it is told.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio_stream::StreamExt;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::support::service::Service;
use crate::support::socket_client::channel;

/// The user that owns nothing.
pub(crate) const NOBODY: u32 = 65534;

/// Tells the copy what to do: `call` or `crowd`.
const TASK: &str = "THINSNAP_TEST_STRANGER";
/// A socket's path.
const SOCKET: &str = "THINSNAP_TEST_STRANGER_SOCKET";
/// Verbs with commas, or a number of connections.
const WORDS: &str = "THINSNAP_TEST_STRANGER_WORDS";

/// What every line for us begins with; the rest is the test framework's.
const MARK: &str = "stranger: ";

/// The program of the other user.
pub(crate) struct Stranger {
    program: PathBuf,
}

/// Connections that another user holds; dropped, they are gone.
pub(crate) struct Crowd {
    /// How many the service kept.
    pub(crate) open: usize,
    process: Child,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Errors if it is dead already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Stranger {
    /// Puts the program where another user reaches it.
    pub(crate) fn new(service: &Service) -> Self {
        let program = service.dir().join("stranger");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { program }
    }

    fn start(&self, task: &str, socket: &Path, words: &str) -> Child {
        let mut command = Command::new(&self.program);
        command.args(["--exact", "stranger::what_a_stranger_does", "--nocapture"]);
        command.env(TASK, task).env(SOCKET, socket).env(WORDS, words).uid(NOBODY).gid(NOBODY);
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Calls each verb with an empty message; returns the codes of the answers.
    pub(crate) fn call(&self, socket: &Path, verbs: &[&str]) -> BTreeMap<String, Code> {
        let output = self.start("call", socket, &verbs.join(",")).wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let said = String::from_utf8(output.stdout).unwrap();
        let lines = said.lines().filter_map(|line| line.split_once(MARK)).map(|(_, line)| line);
        let code = |text: &str| Code::from_i32(text.parse().unwrap());
        lines.map(|line| line.split_once(' ').unwrap()).map(|(verb, number)| (verb.to_owned(), code(number))).collect()
    }

    /// Opens many connections and says nothing on them.
    pub(crate) fn crowd(&self, socket: &Path, count: usize) -> Crowd {
        let mut process = self.start("crowd", socket, &count.to_string());
        let said = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut crowd = Crowd { open: 0, process };
        let line = said.into_iter().find_map(|line| Some(line.split_once(MARK)?.1.to_owned()));
        crowd.open = line.expect("the stranger counts its connections").parse().unwrap();
        crowd
    }
}

/// The copy's part; does nothing in a test run of its own.
#[test]
fn what_a_stranger_does() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (socket, words) = (PathBuf::from(std::env::var(SOCKET).unwrap()), std::env::var(WORDS).unwrap());
    match task.as_str() {
        "call" => call_all(&socket, &words),
        _ => hold_many(&socket, words.parse().unwrap()),
    }
}

fn call_all(socket: &Path, verbs: &str) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        for verb in verbs.split(',') {
            let mut client = tonic::client::Grpc::new(channel(socket));
            client.ready().await.unwrap();
            let path: PathAndQuery = verb.parse().unwrap();
            // An empty message is one of every kind; of the answer only the code counts.
            let answer = client.server_streaming(Request::new(()), path, ProstCodec::<(), ()>::default()).await;
            let code = match answer {
                Err(status) => status.code(),
                Ok(replies) => match replies.into_inner().next().await {
                    Some(Err(status)) => status.code(),
                    Some(Ok(())) | None => Code::Ok,
                },
            };
            println!("{MARK}{verb} {}", code as i32);
        }
    });
}

fn hold_many(socket: &Path, count: usize) {
    let streams: Vec<UnixStream> = (0..count).filter_map(|_| UnixStream::connect(socket).ok()).collect();
    // One that is turned away ends; one that is kept says nothing, or greets and waits.
    let is_open = |mut stream: &UnixStream| {
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut buffer = [0; 256];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    };
    println!("{MARK}{}", streams.iter().filter(|stream| is_open(stream)).count());
    // Until we are killed, or whoever started us is gone.
    let mut nothing = String::new();
    std::io::stdin().read_line(&mut nothing).unwrap();
    drop(streams);
}
