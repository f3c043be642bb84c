//! Agents, units, and the contracts of other managers: action scripts, services, packages, files.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{TestNode, Want, left_out, runs, until, why};
use kagami_failover::config::Ms;
use kagami_failover::core::OpResult;
use kagami_failover::resource;
use kagami_failover::resource::files::{image, install};

#[tokio::test]
async fn an_ocf_agent_sees_its_parameters_and_its_statuses_are_understood() {
    let mut node = TestNode::new(
        "[group.g.resource.r]\ntype = \"ocf\"\nagent = \"shop:till\"\nparameters = { port = \"81\" }\n",
    );
    let root = node.path("ocf");
    node.change(|place| place.ocf_root = root);
    assert!(why(node.start("r").await).contains("install the package"));
    let at = node.folder.path().display().to_string();
    node.script(
        "ocf/resource.d/shop/till",
        &format!(
            "env | grep ^OCF_ | sort >{at}/seen\ncase $1 in\nstart) touch {at}/up;;\nstop) rm -f {at}/up;;\n\
             monitor) [ -e {at}/up ] || exit 7;;\n*) exit 3;;\nesac"
        ),
    );
    assert!(why(node.probe("r").await).contains("does not run"));
    assert_eq!(node.start("r").await, OpResult::Done);
    let seen = node.read("seen");
    for line in [
        "OCF_RESKEY_port=81",
        "OCF_RESOURCE_INSTANCE=r",
        "OCF_RESOURCE_PROVIDER=shop",
        "OCF_RESOURCE_TYPE=till",
        "OCF_RESKEY_CRM_meta_timeout=1800000",
    ] {
        assert!(seen.contains(line), "{line}: {seen}");
    }
    assert_eq!(node.probe("r").await, OpResult::Done);
    assert_eq!(node.stop("r").await, OpResult::Done);
    assert!(why(node.probe("r").await).contains("does not run"));
    node.script(
        "ocf/resource.d/shop/till",
        "echo 'no such database' >&2; exit 6",
    );
    let why = why(node.start("r").await);
    assert!(
        why.contains("configuration is wrong") && why.contains("no such database"),
        "{why}"
    );
}

#[tokio::test]
async fn an_agent_of_the_distribution_is_started_and_stopped() {
    if !std::path::Path::new("/usr/lib/ocf/resource.d/heartbeat/Dummy").exists() {
        left_out(
            "an_agent_of_the_distribution_is_started_and_stopped",
            Want::Program("agent of resource-agents"),
        );
        return;
    }
    let node = TestNode::new(
        "[group.g.resource.r]\ntype = \"ocf\"\nagent = \"heartbeat:Dummy\"\nparameters = { state = \"@/dummy\" }\n",
    );
    assert!(why(node.probe("r").await).contains("does not run"));
    assert_eq!(node.start("r").await, OpResult::Done);
    assert!(node.path("dummy").exists());
    assert_eq!(node.start("r").await, OpResult::Done);
    assert_eq!(node.probe("r").await, OpResult::Done);
    assert_eq!(node.stop("r").await, OpResult::Done);
    assert!(!node.path("dummy").exists());
    assert_eq!(node.stop("r").await, OpResult::Done);
}

#[tokio::test]
async fn a_unit_is_started_stopped_and_looked_at() {
    let mut node =
        TestNode::new("[group.g.resource.u]\ntype = \"systemd\"\nunit = \"till.service\"\n");
    let at = node.folder.path().display().to_string();
    // As systemctl answers; whether the real one does is tried in the virtual machine.
    node.script(
        "tools/systemctl",
        &format!(
            "echo \"$*\" >>{at}/calls\ncase $1 in\nreset-failed) exit 1;;\n\
             start) [ ! -e {at}/broken ] || {{ echo 'Job failed' >&2; exit 1; }}; echo active >{at}/word;;\n\
             stop) echo inactive >{at}/word;;\nis-active) cat {at}/word; grep -q ^active {at}/word;;\nesac"
        ),
    );
    let path = format!("{}:{}", node.path("tools").display(), node.place.tools);
    node.change(|place| place.tools = path);
    std::fs::write(node.path("word"), "inactive\n").unwrap();
    assert!(why(node.probe("u").await).contains("is inactive"));
    assert_eq!(node.start("u").await, OpResult::Done);
    assert_eq!(node.probe("u").await, OpResult::Done);
    std::fs::write(node.path("word"), "failed\n").unwrap();
    assert!(why(node.probe("u").await).contains("is failed"));
    assert_eq!(node.stop("u").await, OpResult::Done);
    std::fs::write(node.path("broken"), "").unwrap();
    let why = why(node.start("u").await);
    assert!(
        why.contains("Job failed") && why.contains("journalctl -u till.service"),
        "{why}"
    );
    assert!(
        node.read("calls")
            .contains("reset-failed till.service\nstart till.service\n")
    );
}

const ACTION: &str = "echo $1 >>@/verbs; echo $1 $CLP_EVENT $_CRS_NAME >@/seen
case $1 in
start) [ ! -e @/no-start ] || exit 1; touch @/up;;
stop) [ ! -e @/no-stop ] || exit 1; rm -f @/up;;
check) [ -e @/up ];;
clean) rm -f @/up;;
esac";

#[tokio::test]
async fn an_action_script_is_checked_after_each_verb_and_cleaned_when_it_fails() {
    let node = TestNode::new("[group.g.resource.a]\ntype = \"action\"\nscript = \"@/action\"\n");
    let at = node.folder.path().display().to_string();
    node.script("action", &ACTION.replace('@', &at));
    let verbs = || {
        let verbs = node.read("verbs").replace('\n', " ");
        std::fs::write(node.path("verbs"), "").unwrap();
        verbs
    };
    assert_eq!(node.start("a").await, OpResult::Done);
    assert_eq!(verbs(), "start check ");
    let (group, one, place) = (node.group(), node.resource("a"), &node.place);
    let looked = resource::probe(place, group, one, &[], Ms::seconds(60)).await;
    assert_eq!(looked, OpResult::Done);
    assert_eq!(
        node.read("seen"),
        "check START a\n",
        "a check sees what the start saw"
    );
    assert_eq!(node.stop("a").await, OpResult::Done);
    assert_eq!(verbs(), "check stop check ");
    assert!(why(node.probe("a").await).contains("status 1"));
    std::fs::write(node.path("no-start"), "").unwrap();
    assert!(why(node.start("a").await).contains("start: status 1"));
    assert_eq!(verbs(), "check start clean check ");
    std::fs::remove_file(node.path("no-start")).unwrap();
    std::fs::write(node.path("no-stop"), "").unwrap();
    assert_eq!(node.start("a").await, OpResult::Done);
    assert_eq!(
        node.stop("a").await,
        OpResult::Done,
        "clean ends what stop could not"
    );
    assert_eq!(verbs(), "start check stop check clean check ");
}

#[tokio::test]
async fn a_service_is_up_when_its_probe_says_so() {
    let node = TestNode::new(
        "[group.g.resource.s]\ntype = \"service\"\nstart-command = \"@/serve --port '8 1'\"\n\
         stop-command = \"@/halt\"\nprobe-command = \"test -e @/ready\"\ntimeouts = { start = \"20s\" }\n",
    );
    let at = node.folder.path().display().to_string();
    node.script(
        "serve",
        &format!(
            "echo \"$2\" >{at}/port; echo $$ >{at}/pid; sleep 0.5; touch {at}/ready; exec sleep 600"
        ),
    );
    node.script("halt", &format!("rm {at}/ready; echo halted >{at}/halted"));
    assert_eq!(node.start("s").await, OpResult::Done);
    assert_eq!(node.read("port"), "8 1\n");
    assert_eq!(node.probe("s").await, OpResult::Done);
    std::fs::remove_file(node.path("ready")).unwrap();
    assert!(why(node.probe("s").await).contains("status 1"));
    std::fs::write(node.path("ready"), "").unwrap();
    let pid = node.read("pid");
    assert!(runs(&pid));
    let patience = std::time::Instant::now();
    assert_eq!(node.stop("s").await, OpResult::Done);
    assert_eq!(node.read("halted"), "halted\n");
    assert!(!runs(&pid), "what the stop command left is ended");
    assert!(patience.elapsed().as_secs() < 20);
    node.script("serve", "echo 'port is in use' >&2; exit 4");
    assert!(why(node.start("s").await).contains("port is in use"));
}

#[tokio::test]
async fn a_service_without_a_probe_is_its_processes() {
    let node =
        TestNode::new("[group.g.resource.s]\ntype = \"service\"\nstart-command = \"@/serve\"\n");
    let at = node.folder.path().display().to_string();
    node.script("serve", &format!("sleep 600 & echo $! >{at}/pid"));
    assert_eq!(node.start("s").await, OpResult::Done);
    assert_eq!(node.probe("s").await, OpResult::Done);
    let killed = std::process::Command::new("kill")
        .args(["-9", node.read("pid").trim()])
        .status();
    assert!(killed.unwrap().success());
    until("it has ended", || !runs(&node.read("pid"))).await;
    assert!(why(node.probe("s").await).contains("no process of it runs"));
    node.script("serve", "exit 0");
    assert!(why(node.start("s").await).contains("no process of it runs"));
}

/// A control file as people have it, the manager's own code behind it.
const CONTROL: &str = r#"#!/usr/bin/sh
# "(#) A package's control script
PATH=/usr/bin:/bin
VGCHANGE="vgchange -a e"   # not used here
LV[0]=/dev/vg01/lvol1; FS[0]=/shop

# The service name and the commands
SERVICE_NAME[0]="shop_server"
SERVICE_CMD[0]="@/server 'a b'"
SERVICE_RESTART[0]=""
SERVICE_NAME[1]="shop_monitor"
SERVICE_CMD[1]="@/monitor"
SERVICE_RESTART[1]="-r 2"

function customer_defined_run_cmds
{
# ADD customer defined run commands.
echo "run $CLP_EVENT" >>@/order
[ ! -e @/broken ]
test_return 51
}

function customer_defined_halt_cmds
{
# ADD customer defined halt commands.
echo halt >>@/order
: test_return 52
}

# END OF CUSTOMER DEFINED FUNCTIONS
# START OF RUN FUNCTIONS
touch @/not-run
if [[ $1 = start ]]; then exit 99; fi
exit 98
"#;

#[tokio::test]
async fn a_package_starts_its_services_after_its_run_commands() {
    let node =
        TestNode::new("[group.g.resource.p]\ntype = \"package\"\ncontrol-file = \"@/control\"\n");
    let at = node.folder.path().display().to_string();
    node.script("control", &CONTROL.replace('@', &at));
    node.script(
        "server",
        &format!("echo server \"$1\" >>{at}/order; echo $$ >{at}/pid; exec sleep 600"),
    );
    node.script("monitor", &format!("echo monitor >>{at}/monitors; [ $(wc -l <{at}/monitors) -ge 2 ] && exec sleep 600; exit 1"));
    assert_eq!(node.start("p").await, OpResult::Done);
    until("the monitor was begun again", || {
        node.read("monitors").lines().count() == 2
    })
    .await;
    assert_eq!(node.probe("p").await, OpResult::Done);
    until("the server runs", || !node.read("pid").is_empty()).await;
    assert_eq!(node.stop("p").await, OpResult::Done);
    assert!(!runs(&node.read("pid")));
    assert_eq!(node.read("order"), "run START\nserver a b\nhalt\n");
    assert!(
        !node.path("not-run").exists(),
        "the other manager's code is not run"
    );
    assert_eq!(node.stop("p").await, OpResult::Done);
    assert_eq!(node.read("order").matches("halt").count(), 1);
    // A service that ends moves the package.
    std::fs::remove_file(node.path("pid")).unwrap();
    assert_eq!(node.start("p").await, OpResult::Done);
    until("the server runs", || !node.read("pid").is_empty()).await;
    let killed = std::process::Command::new("kill")
        .args(["-9", node.read("pid").trim()])
        .status();
    assert!(killed.unwrap().success());
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match node.probe("p").await {
            OpResult::Failed(why) => break assert!(why.contains("shop_server has ended"), "{why}"),
            other => assert!(std::time::Instant::now() < until, "{other:?}"),
        }
    }
    assert_eq!(node.stop("p").await, OpResult::Done);
    std::fs::write(node.path("broken"), "").unwrap();
    let why = why(node.start("p").await);
    assert!(why.contains("test_return 51"), "{why}");
}

#[tokio::test]
async fn a_package_is_active_once_its_services_can_be_found() {
    let mut node =
        TestNode::new("[group.g.resource.p]\ntype = \"package\"\ncontrol-file = \"@/control\"\n");
    let at = node.folder.path().display().to_string();
    node.script(
        "control",
        "SERVICE_NAME[0]=shop\nSERVICE_CMD[0]=\"sleep 600\"\n",
    );
    // A service's shell comes to its work late.
    let shell = node.script(
        "sh",
        &format!(
            "case $3 in *@service-0) touch {at}/held; until [ -e {at}/go ]; do sleep 0.01; done ;; esac\nexec /bin/sh \"$@\""
        ),
    );
    node.change(|place| place.shell = shell);
    // What is written there is of a service of before.
    let record = node.path("run/processes/g@p@service-0");
    std::fs::write(record, "1 1\n").unwrap();
    let start = node.start("p");
    tokio::pin!(start);
    let held = async { until("it has begun", || node.path("held").exists()).await };
    tokio::select! {
        biased;
        ended = &mut start => panic!("{ended:?}: nobody would find its service"),
        () = held => {}
    }
    // For longer than a service is given to end at once.
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut start).await;
    assert!(early.is_err(), "{early:?}: nobody would find its service");
    std::fs::write(node.path("go"), "").unwrap();
    assert_eq!(start.await, OpResult::Done);
    assert_eq!(node.probe("p").await, OpResult::Done);
    assert_eq!(node.stop("p").await, OpResult::Done);
}

#[tokio::test]
async fn what_can_not_be_read_is_not_taken_for_stopped() {
    let node = TestNode::new(
        "[group.g.resource.p]\ntype = \"package\"\ncontrol-file = \"@/p\"\n\
         [group.g.resource.s]\ntype = \"service\"\nstart-command = \"@/s\"\n\
         [group.g.resource.x]\ntype = \"exec\"\nstart = \"@/x\"\nmode = \"async\"\n",
    );
    for (name, record) in [("p", "services"), ("s", "start"), ("x", "start")] {
        // No more can be read of a folder than of a disk that fails.
        let record = node.path(&format!("run/processes/g@{name}@{record}"));
        std::fs::create_dir(&record).unwrap();
        let why = why(node.stop(name).await);
        assert!(why.contains("directory"), "{name}: {why}");
        std::fs::remove_dir(&record).unwrap();
        assert_eq!(node.stop(name).await, OpResult::Done, "nothing was started");
    }
}

#[tokio::test]
async fn files_go_to_the_other_node_and_are_installed_there_as_a_whole() {
    let node = TestNode::new(
        "[group.g.resource.f]\ntype = \"files\"\nfiles = [{ path = \"@/one\", mode = \"0640\" }, { path = \"@/two\" }]\n",
    );
    std::fs::write(node.path("one"), "first").unwrap();
    *node.channel.cut.lock().unwrap() = true;
    assert_eq!(
        node.start("f").await,
        OpResult::Done,
        "the service starts without the other node"
    );
    *node.channel.cut.lock().unwrap() = false;
    let sent = || node.channel.sent.lock().unwrap().clone();
    until("the other node is back", || !sent().is_empty()).await;
    let first = sent()[0].clone();
    assert_eq!(
        (first.content.as_deref(), first.mode),
        (Some(&b"first"[..]), 0o640)
    );
    std::fs::write(node.path("two"), "second").unwrap();
    until("the other file is sent", || sent().len() > 1).await;
    assert_eq!(sent().len(), 2, "what has arrived is not sent again");
    assert_eq!(node.stop("f").await, OpResult::Done);
    // There: the same paths.
    std::fs::write(node.path("one"), "old").unwrap();
    let put = |image: &_| install(&node.place, "g", "f", image);
    put(&first).unwrap();
    assert_eq!(node.read("one"), "first");
    let mode = std::fs::metadata(node.path("one"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o640);
    let mut damaged = first.clone();
    damaged.content = Some(b"First".to_vec());
    assert!(put(&damaged).unwrap_err().contains("damaged"));
    let mut stranger = first.clone();
    stranger.path = node.path("three");
    assert!(put(&stranger).unwrap_err().contains("no file of g/f"));
    let mut nobody = first.clone();
    nobody.owner = "nobody-of-that-name".to_owned();
    assert!(
        put(&nobody)
            .unwrap_err()
            .contains("there is no nobody-of-that-name")
    );
    assert_eq!(node.read("one"), "first");
    assert!(!node.path("three").exists());
    std::fs::remove_file(node.path("one")).unwrap();
    let file = kagami_failover::config::resource::File {
        path: node.path("one"),
        owner: None,
        group: None,
        mode: None,
    };
    let gone = image(&file).unwrap();
    assert_eq!(gone.content, None);
    put(&first).unwrap();
    put(&gone).unwrap();
    assert!(!node.path("one").exists());
}

#[test]
fn contracts_bring_their_monitors() {
    let node = TestNode::new(
        "[group.g.resource.a]\ntype = \"action\"\nscript = \"@/a\"\ncheck-interval = \"30s\"\n\
         [group.g.resource.s]\ntype = \"service\"\nstart-command = \"@/s\"\nretry-count = 4\nfailovers = 0\n\
         [group.g.resource.p]\ntype = \"package\"\ncontrol-file = \"@/p\"\n\
         [group.g.resource.x]\ntype = \"exec\"\nstart = \"@/x\"\n",
    );
    let seen: Vec<_> = node
        .place
        .cluster
        .monitors
        .iter()
        .map(|m| {
            (
                m.name.as_str(),
                m.interval().0,
                m.reactivations(),
                m.common.failovers,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("g/a", 30_000, 1, 1),
            ("g/s", 60_000, 4, 0),
            ("g/p", 5000, 0, 1)
        ]
    );
}
