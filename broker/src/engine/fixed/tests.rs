use super::*;
use crate::store::SqliteStore;
use crate::testing::TempDir;
use crate::unseal::KeyFile;
use mayfly_wire::engine::Span;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a target holds, and whether it answers.
#[derive(Default)]
struct Target {
    passwords: Mutex<BTreeMap<String, Vec<u8>>>,
    behaviour: Mutex<Behaviour>,
    /// How often it was asked for anything.
    asked: AtomicUsize,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Behaviour {
    #[default]
    Works,
    /// Does nothing, and says so.
    Refuses,
    /// Does it, and its answer is lost.
    LosesAnswers,
    /// Takes a second to say that it does not.
    Hangs,
    NeverAnswers,
    /// Does it, a little later.
    IsSlow,
}

const HANGS: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

impl Target {
    fn be(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    fn lets_in(&self, holder: &Holder) -> bool {
        let passwords = self.passwords.lock().unwrap();
        passwords.get(&holder.user).map(Vec::as_slice) == Some(holder.password.expose())
    }
}

impl SetPassword for Target {
    fn set_password<'a>(
        &'a self,
        _: &'a ConnectionName,
        user: &'a str,
        password: &'a Secret,
    ) -> Answer<'a, ()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let behaviour = *self.behaviour.lock().unwrap();
            if behaviour == Behaviour::NeverAnswers {
                return std::future::pending().await;
            }
            if behaviour == Behaviour::Hangs {
                tokio::time::sleep(HANGS).await;
                return Err(EngineError::Unavailable("no answer".to_owned()));
            }
            if behaviour == Behaviour::IsSlow {
                tokio::time::sleep(HANGS / 4).await;
            }
            if behaviour != Behaviour::Refuses {
                let mut passwords = self.passwords.lock().unwrap();
                passwords.insert(user.to_owned(), password.expose().to_vec());
            }
            if matches!(behaviour, Behaviour::Works | Behaviour::IsSlow) {
                return Ok(());
            }
            Err(EngineError::Unavailable("no answer".to_owned()))
        })
    }
}

struct Place {
    store: Arc<SqliteStore>,
    target: Target,
    settings: SqlSettings,
    _dir: TempDir,
}

impl Place {
    fn new(users: &[&str]) -> Self {
        let dir = TempDir::new();
        let key = KeyFile::new(dir.path().join("root.key"));
        let store = SqliteStore::open(&dir.path().join("state"), &key).unwrap();
        Self {
            store: Arc::new(store),
            target: Target::default(),
            settings: settings(users),
            _dir: dir,
        }
    }

    /// As after a restart: nothing is remembered but what the store has.
    fn users(&self) -> FixedUsers {
        FixedUsers::new(self.store.clone(), self.store.keys(), "static/test")
    }

    async fn current(&self) -> Result<Holder, EngineError> {
        let users = self.users();
        users
            .current(&name(), &self.settings, &self.target, 1)
            .await
    }

    async fn rotate(&self, now: u64) -> Result<(), EngineError> {
        let users = self.users();
        users
            .rotate(&name(), &self.settings, &self.target, now)
            .await
    }

    async fn due(&self) -> Option<u64> {
        let due = self.users();
        due.rotates_at(&name(), &self.settings).await.unwrap()
    }
}

fn name() -> CredentialName {
    "reports".parse().unwrap()
}

fn settings(users: &[&str]) -> SqlSettings {
    SqlSettings {
        connection: "shop".parse().unwrap(),
        create: Vec::new(),
        renew: Vec::new(),
        revoke: Vec::new(),
        heir: None,
        fixed: users.iter().map(|user| (*user).to_owned()).collect(),
        rotate_every: Some(Span(60)),
        password: None,
    }
}

#[tokio::test]
async fn one_user_gets_a_new_password_each_time() {
    let place = Place::new(&["reports"]);
    assert_eq!(place.due().await, None);
    let first = place.current().await.unwrap();
    assert!(place.target.lets_in(&first) && first.version == 1);
    let same = place.current().await.unwrap();
    assert_eq!(same.password.expose(), first.password.expose());
    assert_eq!(place.due().await, Some(60_001));
    place.rotate(5_000).await.unwrap();
    let second = place.current().await.unwrap();
    assert!(place.target.lets_in(&second) && !place.target.lets_in(&first));
    assert_eq!(second.version, 2);
    assert_eq!(place.due().await, Some(65_000));
}

#[tokio::test]
async fn of_two_users_the_one_before_stays_good_until_the_next_rotation() {
    let place = Place::new(&["reports_a", "reports_b"]);
    let mut before = place.current().await.unwrap();
    assert_eq!(before.user, "reports_a");
    for (version, user) in [(2, "reports_b"), (3, "reports_a"), (4, "reports_b")] {
        place.rotate(2).await.unwrap();
        let now = place.current().await.unwrap();
        assert_eq!((now.version, now.user.as_str()), (version, user));
        assert!(place.target.lets_in(&now) && place.target.lets_in(&before));
        before = now;
    }
}

#[tokio::test]
async fn whatever_is_interrupted_the_store_ends_up_with_the_good_password() {
    for behaviour in [Behaviour::Refuses, Behaviour::LosesAnswers] {
        for users in [&["reports"][..], &["reports_a", "reports_b"]] {
            let place = Place::new(users);
            // Taken over for the first time.
            place.target.be(behaviour);
            assert!(place.current().await.is_err());
            assert!(place.current().await.is_err());
            place.target.be(Behaviour::Works);
            let first = place.current().await.unwrap();
            assert!(place.target.lets_in(&first));
            // Rotated.
            place.target.be(behaviour);
            assert!(place.rotate(9).await.is_err());
            let meanwhile = place.current().await.unwrap();
            assert_eq!(meanwhile.version, first.version);
            if users.len() == 2 {
                assert!(place.target.lets_in(&meanwhile));
            }
            assert_eq!(place.due().await, Some(1), "what was begun is due");
            let begun = place.target.passwords.lock().unwrap().clone();
            place.target.be(Behaviour::Works);
            place.rotate(10).await.unwrap();
            let second = place.current().await.unwrap();
            assert!(place.target.lets_in(&second) && second.version == 2);
            if behaviour == Behaviour::LosesAnswers {
                // The very password that may have been set already.
                assert_eq!(*place.target.passwords.lock().unwrap(), begun);
            }
        }
    }
}

#[tokio::test]
async fn other_users_in_the_settings_are_taken_over() {
    let mut place = Place::new(&["reports"]);
    let first = place.current().await.unwrap();
    place.settings = settings(&["audits", "audits_b"]);
    let second = place.current().await.unwrap();
    assert_eq!(
        (second.user.as_str(), second.version),
        ("audits", first.version + 1)
    );
    assert!(place.target.lets_in(&second));
    // Nothing of it is in the store in the clear.
    let entry = place.store.meta("static/test/reports".to_owned());
    let entry = entry.await.unwrap().unwrap();
    assert!(!entry.windows(6).any(|window| window == b"audits"));
}

#[tokio::test]
async fn a_target_that_hangs_delays_nobody_who_is_a_holder() {
    let mut place = Place::new(&["reports"]);
    place.target.be(Behaviour::Hangs);
    // Who waits for the first one to take them over fails with it.
    let users = place.users();
    let name = name();
    let current = || users.current(&name, &place.settings, &place.target, 1);
    let (a, b, c) = tokio::join!(current(), current(), current());
    assert!([a, b, c].iter().all(Result::is_err));
    let asked = place.target.asked.load(Ordering::SeqCst);
    assert_eq!(asked, 1, "one after the other");
    assert!(users.known(&name, &place.settings).await.is_err());
    place.target.be(Behaviour::Works);
    let first = current().await.unwrap();

    // A rotation is under way, and then waits to be tried again.
    place.target.be(Behaviour::NeverAnswers);
    let given = async {
        while place.due().await != Some(1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        current().await.unwrap()
    };
    let given = tokio::select! {
        _ = users.rotate(&name, &place.settings, &place.target, 2) => panic!("it hangs"),
        given = tokio::time::timeout(PATIENCE, given) => given.unwrap(),
    };
    assert_eq!(given.version, first.version);
    let known = users.known(&name, &place.settings).await.unwrap();
    assert_eq!(known.password.expose(), first.password.expose());
    let given = tokio::time::timeout(PATIENCE, current()).await.unwrap();
    assert_eq!(given.unwrap().version, first.version);

    // Others in the settings: they are due, not asked for.
    place.settings = settings(&["audits"]);
    let users = place.users();
    assert!(users.known(&name, &place.settings).await.is_err());
    assert!(place.due().await.is_some());
    place.target.be(Behaviour::Works);
    place.rotate(3).await.unwrap();
    let audits = users.known(&name, &place.settings).await.unwrap();
    assert!(audits.user == "audits" && place.target.lets_in(&audits));
}

/// As when an operator rotates, and the broker looks for what is due.
#[tokio::test]
async fn who_comes_while_it_is_rotated_does_not_rotate_once_more() {
    let place = Place::new(&["a", "b"]);
    let first = place.current().await.unwrap();
    place.target.be(Behaviour::IsSlow);
    let (users, name, soon) = (place.users(), name(), HANGS / 10);
    let rotate = || users.rotate(&name, &place.settings, &place.target, 2);
    let (one, due, other) = tokio::join!(
        rotate(),
        async {
            tokio::time::sleep(soon).await;
            users.rotates_at(&name, &place.settings).await
        },
        async {
            tokio::time::sleep(soon).await;
            rotate().await
        }
    );
    one.unwrap();
    other.unwrap();
    assert_eq!(due.unwrap(), Some(60_002), "it is over");
    let now = place.current().await.unwrap();
    assert_eq!(now.version, first.version + 1);
    assert!(place.target.lets_in(&now));
    rotate().await.unwrap();
    assert_eq!(place.current().await.unwrap().version, first.version + 2);
}
