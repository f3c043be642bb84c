//! Orders that find everything as it was wanted, names that nobody has, and what status knows before it is needed.

mod support;

use kagami_replicator::core::state::Time;
use kagami_replicator::core::status::ArbiterFault;
use support::Node;

#[test]
fn an_arbiter_that_does_not_answer_is_in_the_document() {
    let node = Node::with_daemon();
    let told = || {
        let ended = node.run(&["status", "--json"]);
        let said = serde_json::from_str::<serde_json::Value>(&ended.out).unwrap();
        said["mirrors"][0]["arbiter_fault"].clone()
    };
    assert!(told().is_null());
    node.engine.set(|status| {
        status.arbiter_fault = Some(ArbiterFault {
            since: Time(0),
            why: "no answer in time".to_owned(),
            refused: false,
        });
    });
    let fault = told();
    assert_eq!(
        (&fault["why"], &fault["refused"]),
        (&"no answer in time".into(), &false.into())
    );
    assert!(fault["since_ms"].as_u64().unwrap() > 0, "{fault}");
}
