//! Scripts: what they see, who runs them, what happens to those that take too long or are left over.

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{TestNode, runs, until, why};
use kagami_failover::core::OpResult;
use kagami_failover::process::log;
use tokio::sync::Semaphore;

fn exec(more: &str) -> TestNode {
    TestNode::new(&format!(
        "[group.g.resource.x]\ntype = \"exec\"\nstart = \"@/start\"\n{more}"
    ))
}

#[tokio::test]
async fn a_script_sees_its_variables_and_nothing_of_the_manager() {
    let node = exec("environment = { EXTRA = \"more of it\" }\ndirectory = \"/usr\"\n");
    node.script(
        "start",
        "env | sort >@/seen; pwd >@/where"
            .replace('@', &node.folder.path().display().to_string())
            .as_str(),
    );
    assert_eq!(node.start("x").await, OpResult::Done);
    let seen = node.read("seen");
    let value = |name: &str| {
        let start = format!("{name}=");
        seen.lines()
            .find_map(|line| line.strip_prefix(start.as_str()))
    };
    assert_eq!(value("CLP_EVENT"), Some("START"));
    assert_eq!(value("ARMS_SERVER"), Some("HOME"));
    assert_eq!(value("CLP_RESOURCENAME"), Some("x"));
    assert_eq!(value("EXTRA"), Some("more of it"));
    assert_eq!(value("CARGO"), None, "the manager's own are not seen");
    let links = node.place.links.display().to_string();
    assert!(
        value("PATH").unwrap().starts_with(&format!("{links}:")),
        "{seen}"
    );
    for line in seen.lines() {
        let name = line.split('=').next().unwrap();
        let known = ["CLP_", "ARMS_", "KAGAMI_"]
            .iter()
            .any(|p| name.starts_with(p))
            || ["PATH", "PWD", "EXTRA", "SHLVL", "_", "OLDPWD"].contains(&name);
        assert!(known, "{line}");
    }
    assert_eq!(node.read("where"), "/usr\n");
}

#[tokio::test]
async fn a_failure_says_what_the_script_said_last() {
    let node = exec("");
    node.script(
        "start",
        "echo one; echo 'no licence for this machine' >&2; exit 3",
    );
    let why = why(node.start("x").await);
    assert!(
        why.contains("status 3") && why.contains("no licence"),
        "{why}"
    );
    assert!(
        node.log("x").contains("one\nno licence"),
        "{}",
        node.log("x")
    );
    std::fs::remove_file(node.path("start")).unwrap();
    let why = common::why(node.start("x").await);
    assert!(why.contains("is not there"), "{why}");
}

#[tokio::test]
async fn a_script_that_hangs_is_ended_with_all_that_it_started() {
    let node = exec("start-timeout = \"300ms\"\n");
    let at = node.folder.path().display().to_string();
    // Neither hears TERM, and one of them has left the process group.
    node.script(
        "start",
        &format!("trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ >{at}/left; exec sleep 600' & echo $$ >{at}/own; wait"),
    );
    assert_eq!(node.start("x").await, OpResult::TimedOut);
    assert!(!runs(&node.read("own")), "the script still runs");
    if node.place.control_groups.is_some() {
        assert!(!runs(&node.read("left")), "what it started still runs");
    }
}

#[tokio::test]
async fn the_process_of_an_asynchronous_script_is_the_service() {
    let mut node = exec("mode = \"async\"\n");
    let at = node.folder.path().display().to_string();
    node.script("start", &format!("echo $$ >>{at}/pid; exec sleep 600"));
    assert!(why(node.probe("x").await).contains("no process"));
    assert_eq!(node.start("x").await, OpResult::Done);
    until("it runs", || !node.read("pid").is_empty()).await;
    assert_eq!(node.probe("x").await, OpResult::Done);
    if let Some(group) = node.place.group_control_group("g") {
        // What the guard freezes is where it is.
        let place = std::fs::read_to_string(format!("/proc/{}/cgroup", node.read("pid").trim()));
        let place = place.unwrap();
        let own = place
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .unwrap();
        let group = group.display().to_string();
        let below = own.split("/r@x/").next().unwrap();
        assert!(
            group.ends_with(below) && own.ends_with("/r@x/start"),
            "{own}, {group}"
        );
    }
    // The manager dies and comes back: it is the same process.
    node.restart();
    assert_eq!(node.probe("x").await, OpResult::Done);
    assert_eq!(node.start("x").await, OpResult::Done);
    assert_eq!(node.read("pid").lines().count(), 1, "begun once");
    assert_eq!(node.stop("x").await, OpResult::Done);
    assert!(!runs(&node.read("pid")));
    assert!(why(node.probe("x").await).contains("has ended"));
    assert_eq!(
        node.stop("x").await,
        OpResult::Done,
        "what is stopped stays so"
    );
}

#[tokio::test]
async fn the_end_of_an_asynchronous_service_is_seen() {
    let mut node = exec("mode = \"async\"\n");
    let at = node.folder.path().display().to_string();
    node.script(
        "start",
        &format!("echo $$ >{at}/pid; while [ ! -e {at}/end ]; do sleep 0.02; done; exit 5"),
    );
    assert_eq!(node.start("x").await, OpResult::Done);
    until("it runs", || node.read("pid").ends_with('\n')).await;
    assert_eq!(node.probe("x").await, OpResult::Done);
    std::fs::write(node.path("end"), "").unwrap();
    until("it ends", || !runs(&node.read("pid"))).await;
    assert!(why(node.probe("x").await).contains("has ended"));
    // One that can't even begin is a failure at once.
    node.change(|place| place.at_once = Duration::from_secs(60));
    node.script("start", "exit 9");
    assert!(why(node.start("x").await).contains("status 9"));
}

#[tokio::test]
async fn logs_stay_short_whoever_writes_them() {
    let node = exec("mode = \"async\"\n");
    // Of what a script has begun to be watched, of a resource that nobody looks at, and of the guard.
    let logs = [
        node.place.log("g@x"),
        node.place.log("g@other"),
        node.place.state.join(log::OF_GUARD),
    ];
    let ticks = Arc::new(Semaphore::new(0));
    let tick = {
        let ticks = Arc::clone(&ticks);
        move || {
            let ticks = Arc::clone(&ticks);
            async move { ticks.acquire().await.unwrap().forget() }
        }
    };
    let kept = tokio::spawn(log::keep_short(Arc::clone(&node.place), tick));
    let length = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    for _ in 0..2 {
        for path in &logs {
            std::fs::write(path, vec![b'x'; log::BOUND as usize + 1]).unwrap();
        }
        ticks.add_permits(1);
        until("they are cut", || logs.iter().all(|path| length(path) == 0)).await;
    }
    kept.abort();
}

#[tokio::test]
async fn what_start_left_running_ends_where_there_is_no_stop_script() {
    let node = exec("");
    let at = node.folder.path().display().to_string();
    node.script("start", &format!("sleep 600 & echo $! >{at}/daemon"));
    assert_eq!(node.start("x").await, OpResult::Done);
    assert!(runs(&node.read("daemon")));
    assert_eq!(node.probe("x").await, OpResult::Done);
    assert_eq!(node.stop("x").await, OpResult::Done);
    assert!(!runs(&node.read("daemon")));
}

#[tokio::test]
async fn a_start_script_of_an_earlier_manager_is_ended_before_it_is_begun_again() {
    let mut node = exec("");
    let at = node.folder.path().display().to_string();
    node.script(
        "start",
        &format!("echo $$ >>{at}/pids; [ -e {at}/go ] || exec sleep 600"),
    );
    {
        let begun = node.start("x");
        tokio::pin!(begun);
        // The manager dies in the middle of it.
        tokio::select! {
            result = &mut begun => panic!("it does not end: {result:?}"),
            () = until("it runs", || !node.read("pids").is_empty()) => {}
        }
    }
    let first = node.read("pids");
    assert!(runs(&first), "a script outlives its manager");
    node.restart();
    std::fs::write(node.path("go"), "").unwrap();
    assert_eq!(node.start("x").await, OpResult::Done);
    assert!(!runs(&first));
    assert_eq!(node.read("pids").lines().count(), 2);
}

#[tokio::test]
async fn the_scripts_around_a_resource_run_in_order_and_stop_it_when_they_fail() {
    let around = ["before-start", "after-start", "before-stop", "after-stop"];
    let keys = around.map(|key| format!("{key} = \"@/{key}\"\n")).concat();
    let node = exec(&format!("stop = \"@/stop\"\n{keys}"));
    let at = node.folder.path().display().to_string();
    for name in ["start", "stop"].iter().chain(&around) {
        node.script(name, &format!("echo {name} $CLP_RESOURCENAME >>{at}/order"));
    }
    assert_eq!(node.start("x").await, OpResult::Done);
    assert_eq!(node.stop("x").await, OpResult::Done);
    let order = "before-start x\nstart x\nafter-start x\nbefore-stop x\nstop x\nafter-stop x\n";
    assert_eq!(node.read("order"), order);
    node.script("before-start", "echo no >&2; exit 1");
    let why = why(node.start("x").await);
    assert!(
        why.starts_with("before-start: ") && why.contains(": no"),
        "{why}"
    );
    assert_eq!(node.read("order"), order, "nothing else ran");
}

#[tokio::test]
async fn a_script_runs_as_its_user() {
    let me = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    let me = String::from_utf8(me.stdout).unwrap().trim().to_owned();
    let user = if me == "root" {
        "nobody".to_owned()
    } else {
        me
    };
    let node = exec(&format!("user = \"{user}\"\n"));
    node.script("start", "id -un; echo home=$HOME user=$USER");
    // Its way there is open to that user.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(node.folder.path(), open).unwrap();
    assert_eq!(node.start("x").await, OpResult::Done, "{}", node.log("x"));
    let log = node.log("x");
    assert!(log.contains(&format!("\n{user}\nhome=/")), "{log}");
    assert!(log.contains(&format!("user={user}")), "{log}");
    let node = exec("user = \"nobody-of-that-name\"\n");
    node.script("start", "exit 0");
    let why = why(node.start("x").await);
    assert!(why.contains("no user nobody-of-that-name"), "{why}");
}

#[tokio::test]
async fn what_the_kernel_is_to_spare_is_not_what_scripts_begin() {
    let mut node = TestNode::new("[group.g.resource.x]\ntype = \"exec\"\nstart = \"@/start\"\n");
    let at = node.folder.path().display().to_string();
    let score = "/proc/self/oom_score_adj";
    // As low as this process may go, which is 0 for most; then it is raised, which anybody may.
    let shell = node.script(
        "sh",
        &format!(
            "echo 0 2>/dev/null >{score}; cat {score} >{at}/lowest\necho 1000 >{score}\nexec /bin/sh \"$@\""
        ),
    );
    node.script("start", &format!("cat {score} >{at}/seen"));
    node.change(|place| place.shell = shell);
    assert_eq!(node.start("x").await, OpResult::Done);
    assert_eq!(node.read("seen"), node.read("lowest"));
    assert!(!node.read("seen").is_empty());
    assert!(
        !node.log("x").contains("oom_score_adj"),
        "{}",
        node.log("x")
    );
}

#[tokio::test]
async fn a_log_that_can_not_be_cut_or_opened_keeps_nothing_from_being_stopped() {
    let node = TestNode::new(
        "[group.g.resource.x]\ntype = \"exec\"\nstart = \"/bin/true\"\nstop = \"@/stop\"\n",
    );
    let at = node.folder.path().display().to_string();
    node.script(
        "stop",
        &format!("echo stopped; echo stopped >>{at}/stopped"),
    );
    let log = node.place.log("g@x");
    let old = log.with_extension("log.1");
    std::fs::create_dir(&old).unwrap();
    std::fs::write(&log, vec![b'a'; 2 << 20]).unwrap();
    assert_eq!(node.stop("x").await, OpResult::Done);
    assert!(node.log("x").ends_with("stopped\n"), "it grows");
    // It is no file that could be opened.
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    assert_eq!(node.stop("x").await, OpResult::Done);
    assert_eq!(node.read("stopped").lines().count(), 2);
    node.script("stop", "echo it does not work; exit 3");
    let said = why(node.stop("x").await);
    assert!(said.ends_with("status 3"), "{said}");
}
