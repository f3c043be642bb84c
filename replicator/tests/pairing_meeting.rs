//! Pairing over loopback: the way it goes, and each way that it is refused.

use std::net::SocketAddr;
use std::time::Duration;

use kagami_replicator::core::state::{NodeId, Protocol};
use kagami_replicator::shell::identity::NodeKey;
use kagami_replicator::shell::pairing::facts::{Facts, MirrorFacts, Party};
use kagami_replicator::shell::pairing::token::SECRET_LEN;
use kagami_replicator::shell::pairing::{Joining, Offering, PairError, Purpose, Terms, Token};

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn key() -> NodeKey {
    NodeKey::generate().expect("key")
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), test)
            .await
            .expect("in time");
    });
}

fn terms(valid: Duration) -> Terms {
    Terms {
        purpose: Purpose::Mirror,
        name: "pg".to_owned(),
        listen: vec![loopback()],
        advertise: Vec::new(),
        valid,
    }
}

fn offer(key: &NodeKey) -> Offering {
    Offering::open(key, &terms(Duration::from_secs(600))).expect("offering")
}

/// The token as it looks after having been pasted.
fn pasted(offering: &Offering) -> Token {
    offering.token().to_string().parse().expect("token")
}

fn facts(node: u64, name: &str, zeroed: bool) -> Facts {
    Facts {
        party: Party {
            node: NodeId(node),
            name: name.to_owned(),
            addresses: vec![([10, 0, 0, node as u8], 7789).into()],
            threads: 1,
        },
        mirror: MirrorFacts {
            mirror: 77,
            name: "pg".to_owned(),
            size: 20 << 30,
            logical_block: 512,
            protocol: Protocol::C,
            zeroed,
            thread: 0,
        },
        settings: vec![("solo".to_owned(), "arbiter".to_owned())],
    }
}

#[test]
fn both_learn_the_others_key_and_facts() {
    run(async {
        let (alpha, beta) = (key(), key());
        let mut offering = offer(&alpha);
        let token = pasted(&offering);
        let (of_alpha, of_beta) = (facts(1, "alpha", true), facts(2, "beta", false));
        let told = of_alpha.encode();
        let here = async {
            let met = offering.meet(&told).await.expect("met");
            let heard = Facts::decode(&met.facts).expect("facts");
            let known = met.fingerprint;
            met.confirm().await.expect("confirmed");
            (known, heard)
        };
        let there = async {
            let joining = Joining::connect(&beta, &token).await.expect("joined");
            let heard = Facts::decode(&joining.facts).expect("facts");
            let known = joining.fingerprint();
            joining.accept(&of_beta.encode()).await.expect("agreed");
            (known, heard)
        };
        let (here, there) = tokio::join!(here, there);
        assert_eq!(here, (beta.fingerprint(), of_beta));
        assert_eq!(there, (alpha.fingerprint(), of_alpha));
    });
}

#[test]
fn a_token_works_once() {
    run(async {
        let (alpha, beta, gamma) = (key(), key(), key());
        let mut offering = offer(&alpha);
        let token = pasted(&offering);
        let here = async {
            let met = offering.meet(b"alpha").await.expect("met");
            // While alpha decides, and after: the second use is told so.
            let second = Joining::connect(&gamma, &token)
                .await
                .expect_err("second use");
            assert!(matches!(second, PairError::Used), "{second:?}");
            met.confirm().await.expect("confirmed");
            let third = Joining::connect(&beta, &token)
                .await
                .expect_err("third use");
            assert!(matches!(third, PairError::Used), "{third:?}");
        };
        let there = async {
            let joining = Joining::connect(&beta, &token).await.expect("joined");
            joining.accept(b"beta").await.expect("agreed");
        };
        tokio::join!(here, there);
        drop(offering);
        let late = Joining::connect(&gamma, &token)
            .await
            .expect_err("nobody waits");
        assert!(late.to_string().contains("works once"), "{late}");
    });
}

#[test]
fn a_wrong_secret_is_refused_and_too_many_besiege() {
    run(async {
        let (alpha, beta) = (key(), key());
        let mut offering = offer(&alpha);
        let mut guess = pasted(&offering);
        guess.secret = [0; SECRET_LEN];
        let mut refusals = Vec::new();
        for _ in 0..7 {
            refusals.push(Joining::connect(&beta, &guess).await.expect_err("a guess"));
        }
        assert!(matches!(refusals[0], PairError::WrongToken), "{refusals:?}");
        assert!(
            matches!(refusals[6], PairError::TooManyTries),
            "{refusals:?}"
        );
        // Nobody was met meanwhile.
        let met = tokio::time::timeout(Duration::from_millis(50), offering.meet(b"")).await;
        assert!(met.is_err());
    });
}

#[test]
fn one_wrong_try_does_not_spoil_the_token() {
    run(async {
        let (alpha, beta) = (key(), key());
        let mut offering = offer(&alpha);
        let token = pasted(&offering);
        let mut guess = token.clone();
        guess.secret[0] ^= 1;
        assert!(matches!(
            Joining::connect(&beta, &guess).await,
            Err(PairError::WrongToken)
        ));
        // Dropped without a yes: the joiner knows that nothing was agreed.
        let (facts, joining) = tokio::join!(
            async { offering.meet(b"alpha").await.expect("met").facts },
            async {
                Joining::connect(&beta, &token)
                    .await
                    .expect("joined")
                    .accept(b"beta")
                    .await
            },
        );
        assert_eq!(facts, b"beta");
        assert!(matches!(joining, Err(PairError::Broken(_))));
    });
}

#[test]
fn only_the_key_in_the_token_is_talked_to() {
    run(async {
        let (alpha, beta, impostor) = (key(), key(), key());
        let offering = offer(&alpha);
        let elsewhere = offer(&impostor);
        let mut token = pasted(&offering);
        token.addresses = pasted(&elsewhere).addresses;
        let error = Joining::connect(&beta, &token)
            .await
            .expect_err("an impostor");
        assert!(error.to_string().contains("not pinned"), "{error}");
    });
}

#[test]
fn an_expired_token_is_refused_by_the_clock_of_its_maker() {
    run(async {
        let (alpha, beta) = (key(), key());
        let mut offering = Offering::open(&alpha, &terms(Duration::ZERO)).expect("offering");
        let token = pasted(&offering);
        let error = Joining::connect(&beta, &token).await.expect_err("expired");
        assert!(matches!(error, PairError::Expired), "{error:?}");
        let nobody = offering.meet(b"").await.expect_err("nobody");
        assert!(matches!(nobody, PairError::NobodyCame(_)), "{nobody:?}");
        // The joiner's clock has no say: a token that looks old to it works while it is waited for.
        let mut offering = offer(&alpha);
        let mut old = pasted(&offering);
        old.expires = 1;
        let (met, joining) = tokio::join!(offering.meet(b"alpha"), async {
            Joining::connect(&beta, &old)
                .await
                .expect("joined")
                .refuse("no disk is large enough")
                .await;
        });
        let () = joining;
        let declined = met.expect_err("declined");
        assert_eq!(
            declined.to_string(),
            "the other side refused: no disk is large enough"
        );
    });
}

#[test]
fn the_offering_side_can_say_no() {
    run(async {
        let (alpha, beta) = (key(), key());
        let mut offering = offer(&alpha);
        let token = pasted(&offering);
        let ((), joined) = tokio::join!(
            async {
                offering
                    .meet(b"alpha")
                    .await
                    .expect("met")
                    .refuse("both nodes are named alpha")
                    .await
            },
            async {
                Joining::connect(&beta, &token)
                    .await
                    .expect("joined")
                    .accept(b"beta")
                    .await
            },
        );
        let error = joined.expect_err("refused");
        assert_eq!(
            error.to_string(),
            "the other side refused: both nodes are named alpha"
        );
    });
}

#[test]
fn the_token_names_addresses_that_reach() {
    run(async {
        let alpha = key();
        let mut terms = terms(Duration::from_secs(60));
        terms.listen = vec![([0, 0, 0, 0], 0).into()];
        assert!(matches!(
            Offering::open(&alpha, &terms),
            Err(PairError::NoAddress)
        ));
        terms.advertise = vec![([127, 0, 0, 1], 0).into(), ([10, 1, 1, 1], 17_789).into()];
        let offering = Offering::open(&alpha, &terms).expect("offering");
        let addresses = &offering.token().addresses;
        assert_eq!(addresses.len(), 2);
        assert_ne!(addresses[0].port(), 0);
        assert_eq!(addresses[1], ([10, 1, 1, 1], 17_789).into());
    });
}
