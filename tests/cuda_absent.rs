//! The CUDA build on machines where CUDA cannot be used: it starts, serves from the CPU, and says why.
//! A stand-in for the driver's library, compiled here, plays the machines.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::real_model::default_model_file;

/// Answers as the environment tells it: STAND_IN_START is cuInit's number, STAND_IN_VERSION the driver's version.
const STAND_IN: &str = r#"
use std::ffi::{c_char, c_int, c_uint};

fn number(name: &str) -> c_int {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> c_int {
    number("STAND_IN_START")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    unsafe { *version = number("STAND_IN_VERSION") };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    unsafe { *count = 0 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: c_int, text: *mut *const c_char) -> c_int {
    let name = match code {
        100 => c"CUDA_ERROR_NO_DEVICE",
        999 => c"CUDA_ERROR_UNKNOWN",
        _ => return 1,
    };
    unsafe { *text = name.as_ptr() };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(_code: c_int, text: *mut *const c_char) -> c_int {
    unsafe { *text = c"a stand-in's words".as_ptr() };
    0
}
"#;

/// The names by which the driver's library is searched, each as this file.
fn install(folder: &Path, library: &[u8]) {
    for name in ["libcuda.so", "libcuda.so.1"] {
        fs::write(folder.join(name), library).expect("a file");
    }
}

fn stand_in(folder: &Path) {
    let (source, library) = (folder.join("stand_in.rs"), folder.join("stand_in.so"));
    fs::write(&source, STAND_IN).expect("a file");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(&library).arg(&source);
    assert!(command.status().expect("rustc runs").success());
    install(folder, &fs::read(&library).expect("just compiled"));
}

/// The program, with the libraries of `folder` before the system's.
fn lantern(folder: &Path, start: &str, version: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lantern"));
    command
        .env("LD_LIBRARY_PATH", folder)
        .env("STAND_IN_START", start)
        .env("STAND_IN_VERSION", version)
        .env("LANTERN_OFFLINE", "1")
        .env_remove("CUDA_VISIBLE_DEVICES");
    command
}

/// A server that ends with this value.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(mut command: Command) -> Self {
        let model = default_model_file();
        let mut child =
            command.arg("serve").arg(model).args(["--port", "0"]).stdout(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
        let address = lines.find_map(|line| Some(line.split("http://").nth(1)?.split_whitespace().next()?.to_owned()));
        Self { child, address: address.expect("the start-up text tells the address") }
    }

    fn ask(&self, request: &str) -> Value {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(body).expect("JSON")
    }

    fn health(&self) -> Value {
        self.ask("GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn cuda_doctor_tells_each_fault_of_the_driver() {
    let folder = tempfile::tempdir().expect("a folder");
    stand_in(folder.path());
    let cases = [
        ("999", "13000", "NVIDIA driver does not start: CUDA_ERROR_UNKNOWN (a stand-in's words)"),
        ("12345", "13000", "NVIDIA driver does not start: error 12345"),
        ("100", "13000", "NVIDIA driver offers no GPU: CUDA_ERROR_NO_DEVICE (a stand-in's words)"),
        ("0", "12040", "NVIDIA driver is too old: it speaks CUDA 12.4"),
        ("0", "13000", "NVIDIA driver offers no GPU: it lists none"),
    ];
    for (start, version, expected) in cases {
        let output = lantern(folder.path(), start, version).arg("doctor").output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains(&format!("because the {expected}")), "{expected}: {text}");
        assert!(text.contains(&format!("ok   driver library  {}", folder.path().display())), "{text}");
    }
}

#[test]
fn cuda_that_does_not_start_leaves_the_cpu_which_answers_and_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    stand_in(folder.path());
    let server = Server::start(lantern(folder.path(), "999", "13000"));
    let health = server.health();
    assert!(health["device"].as_str().is_some_and(|device| device.starts_with("CPU")), "{health}");
    let reason = health["device_reason"].as_str().expect("a reason");
    assert_eq!(reason, "the NVIDIA driver does not start: CUDA_ERROR_UNKNOWN (a stand-in's words)");
    let body =
        serde_json::json!({ "model": health["model"], "prompt": "One, two,", "max_tokens": 3, "temperature": 0 });
    let body = body.to_string();
    let head = "POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let answer = server.ask(&format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(answer["usage"]["completion_tokens"], 3, "{answer}");
}

#[test]
fn cuda_without_a_driver_is_the_cpu_and_an_error_where_it_was_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    // Hides the machine's own, if it has one: the first file of that name is the one that counts.
    install(folder.path(), &[b'x'; 4096]);
    let server = Server::start(lantern(folder.path(), "0", "13000"));
    let health = server.health();
    let reason = health["device_reason"].as_str().expect("a reason");
    assert!(reason.contains("driver") && reason.contains("invalid ELF header"), "{reason}");
    let mut asked_for = lantern(folder.path(), "0", "13000");
    let output = asked_for.arg("serve").arg(default_model_file()).args(["--port", "0", "--device", "cuda"]).output();
    let output = output.expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("the device `cuda` was asked for, but"), "{error}");
    assert!(error.contains("invalid ELF header"), "{error}");
}
