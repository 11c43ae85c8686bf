//! A crash leaves no copy of the node's memory behind, unless it is wanted.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use rustix::process::Signal;

use crate::harness::{Site, eventually};
use crate::process::Process;

/// How a node of `site` ends that crashes where the system would write a core of any size.
async fn crashed(site: &Site) -> ExitStatus {
    let node = site.command();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited && exec \"$0\""]).arg(node.get_program()).env_clear();
    command.envs(node.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.current_dir(site.path());
    let mut process = Process::start(command, &site.path().join("data"), &site.path().join("log"));
    eventually("it listens", || async { process.addresses().map(drop) }).await;
    process.signal(Signal::ABORT);
    let status = process.ended().await;
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{}", process.log());
    status
}

#[tokio::test]
async fn a_crash_leaves_no_memory_behind_unless_the_setting_says_so() {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("readable");
    let wanted = crashed(&Site::demo().with("HYGEIA__NODE__CORE_DUMPS", "true")).await;
    // Elsewhere another program takes the core, or leaves it.
    let here = !pattern.starts_with(['|', '/']);
    assert!(wanted.core_dumped() || !here, "nothing is tested by a system that writes no cores: {pattern}");
    let site = Site::demo();
    assert!(!crashed(&site).await.core_dumped());
    let left = std::fs::read_dir(site.path()).expect("readable").filter_map(Result::ok);
    let names: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with("core")), "{names:?}");
}
