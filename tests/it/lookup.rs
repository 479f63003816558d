//! Finding tenants by what people type: whole keys, names, beginnings, patterns, filters, and what is told when nobody is meant.

use tenantd::error::Kind;
use tenantd::registry::Registry;
use tenantd::registry::lookup::Filter;
use tenantd::tenant::{State, Work};

use crate::fleet::{Fleet, execute};
use crate::support::audit::Finding;
use crate::support::database::TestDatabase;

/// Keys with every sign that means something to a shell, to SQL or to LIKE.
const STRANGE: [&str; 8] =
    ["o'brien", "100%", "under_score", "back\\slash", "sta*r", "ques?tion", "Zürich 🐘", "a\"quote\""];

async fn scene(rows: &str) -> (TestDatabase, Fleet) {
    let database = TestDatabase::new().await.allow(Finding::ReadyWithoutDatabase);
    let fleet = Fleet::install(&database, &[]).await;
    execute(&database, rows).await;
    (database, fleet)
}

async fn leave((database, fleet): (TestDatabase, Fleet)) {
    fleet.close().await;
    database.finish().await;
}

/// What `words` mean, or the error and its advice.
async fn meant(registry: &Registry, words: &[&str]) -> Result<Vec<String>, String> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    registry.resolve(&words).await.map_err(|error| {
        assert_eq!(error.kind(), Kind::Usage, "{}", error.chain());
        error.with_advice()
    })
}

async fn keys(registry: &Registry, filter: &Filter) -> Vec<String> {
    registry.keys(filter, "", 1000).await.expect("look")
}

fn pattern(pattern: &str) -> Filter {
    Filter { pattern: Some(pattern.to_owned()), ..Filter::default() }
}

/// Goal: no sign in a key means anything but itself. Method: keys made of such signs, each found whole, by its beginning and by a pattern, and
/// none found by one that would fit if its signs meant something.
#[tokio::test]
async fn strange_keys_mean_themselves() {
    let quoted: Vec<String> = STRANGE.iter().map(|key| format!("($tenantd${key}$tenantd$)")).collect();
    let scene = scene(&format!("insert into tenantd.tenant (key) values {}", quoted.join(", "))).await;
    let registry = scene.1.registry();
    for key in STRANGE {
        assert_eq!(meant(registry, &[key]).await, Ok(vec![key.to_owned()]));
        let beginning: String = key.chars().take(key.chars().count() - 1).collect();
        if beginning.chars().count() >= 4 {
            assert_eq!(meant(registry, &[&beginning]).await, Ok(vec![key.to_owned()]), "{beginning}");
        }
    }
    for (word, advice) in
        [("unde%", true), ("under-score", true), ("st*r", true), ("____", false), ("%%%%", false), ("****", false)]
    {
        let error = meant(registry, &[word]).await.expect_err(word);
        assert!(error.starts_with(&format!("there is no tenant {word:?}\nhint: ")), "{error}");
        assert_eq!(error.contains("the nearest: "), advice, "{error}");
    }
    for (with, found) in [
        ("*%", "100%"),
        ("*\\slash", "back\\slash"),
        ("under_*", "under_score"),
        ("Z?rich ?", "Zürich 🐘"),
        ("*'*", "o'brien"),
    ] {
        assert_eq!(keys(registry, &pattern(with)).await, [found], "{with}");
    }
    assert_eq!(keys(registry, &pattern("*")).await.len(), STRANGE.len());
    leave(scene).await;
}

/// Goal: a beginning stands for the one tenant that begins so, a whole key for its tenant whatever else is called so, a whole name for itself
/// whatever else begins with it, and nothing for several. Method: keys and names that begin alike.
#[tokio::test]
async fn a_beginning_means_one_tenant_or_none() {
    let scene = scene(
        "insert into tenantd.tenant (key, name, state) values
         ('alpha-1', 't_one', 'ready'), ('alpha-12', 't_two', 'ready'), ('alpha-13', null, 'requested'),
         ('beta-1', 'alpha-2', 'ready'), ('gamma-1', 't_gamma', 'deleted'), ('abc', null, 'requested'), ('t_one', null, 'requested')",
    )
    .await;
    let registry = scene.1.registry();
    let one = async |word: &str| meant(registry, &[word]).await.map(|mut keys| keys.remove(0));
    for (word, key) in [
        ("alpha-1", "alpha-1"),
        ("alpha-12", "alpha-12"),
        ("beta", "beta-1"),
        ("alpha-2", "beta-1"),
        ("t_tw", "alpha-12"),
        ("t_gamma", "gamma-1"),
        ("abc", "abc"),
    ] {
        assert_eq!(one(word).await, Ok(key.to_owned()), "{word}");
    }
    assert_eq!(
        one("alph").await,
        Err("\"alph\" means several tenants: alpha-1, alpha-12, alpha-13 and more\nhint: write the whole key"
            .to_owned())
    );
    assert_eq!(
        one("t_one").await,
        Ok("t_one".to_owned()),
        "one's key, which is another's name: a whole key means its tenant"
    );
    assert_eq!(
        one("ab").await,
        Err("there is no tenant \"ab\"\nhint: the nearest: abc".to_owned()),
        "too short to begin with"
    );
    assert_eq!(
        one("alpha-14").await,
        Err("there is no tenant \"alpha-14\"\nhint: the nearest: alpha-1, alpha-12, alpha-13".to_owned())
    );
    let short = "a beginning means a tenant from 4 letters on; `tenantd list` shows all of them";
    assert_eq!(one("zz").await, Err(format!("there is no tenant \"zz\"\nhint: {short}")));
    assert_eq!(
        one("xyzzy").await,
        Err("there is no tenant \"xyzzy\"\nhint: `tenantd list` shows all of them".to_owned())
    );
    let several = meant(registry, &["beta-1", "alpha-2", "abc"]).await;
    assert_eq!(several, Ok(vec!["beta-1".to_owned(), "abc".to_owned()]), "each once");
    leave(scene).await;
}

/// Goal: a signup of a moment ago is found, and looking alone takes it in nowhere. Method: one that only the trigger has seen.
#[tokio::test]
async fn a_signup_that_nobody_took_in_is_found() {
    let scene = scene("select").await;
    let key = scene.0.sign_up("new@example.org").await;
    let registry = scene.1.registry();
    let waiting = async || {
        let client = scene.0.superuser().await;
        client.query_one("select count(*) from tenantd.signup", &[]).await.expect("count").get::<_, i64>(0)
    };
    assert_eq!(registry.find(&key[..8]).await.expect("found"), key);
    assert_eq!(registry.tenant(&key).await.expect("read").expect("it is there").work, "due");
    assert_eq!(waiting().await, 1, "found, and not taken in");
    assert_eq!(meant(registry, &[&key[..8]]).await, Ok(vec![key.clone()]));
    assert_eq!(waiting().await, 0);
    leave(scene).await;
}

/// Goal: filters choose by every property alone and together, page by page without a gap. Method: 500 rows of every kind, each filter beside the
/// same condition in SQL.
#[tokio::test]
async fn filters_choose_among_five_hundred() {
    let scene = scene(
        "insert into tenantd.tenant (key, name, state, work, version, migration_set)
         select md5(n::text)::uuid::text, case when n % 7 > 0 then 'tenant_' || n end,
                (array['requested', 'ready', 'ready', 'deleting', 'deleted'])[n % 5 + 1],
                (array['idle', 'due', 'failing', 'parked', 'held'])[n % 11 % 5 + 1],
                nullif(n % 4, 0), nullif('set' || n % 3, 'set0') from generate_series(1, 500) n",
    )
    .await;
    let registry = scene.1.registry();
    let all = Filter::default;
    let some: Vec<String> = keys(registry, &all()).await.into_iter().step_by(40).collect();
    let listed = some.iter().map(|key| format!("'{key}'")).collect::<Vec<_>>().join(", ");
    let filters = [
        (all(), "state <> 'deleted'".to_owned()),
        (Filter { states: vec![State::Deleted], ..all() }, "state = 'deleted'".to_owned()),
        (Filter { states: vec![State::Ready, State::Deleting], ..all() }, "state in ('ready', 'deleting')".to_owned()),
        (
            Filter { works: vec![Work::Failing, Work::Parked], ..all() },
            "state <> 'deleted' and work in ('failing', 'parked')".to_owned(),
        ),
        (Filter { version: Some(2), ..all() }, "state <> 'deleted' and version = 2".to_owned()),
        (
            Filter { not_at: Some("set2".to_owned()), ..all() },
            "state <> 'deleted' and migration_set is distinct from 'set2'".to_owned(),
        ),
        (pattern("tenant_?2*"), r"state <> 'deleted' and name ~ '^tenant_.2'".to_owned()),
        (pattern("*a?"), "state <> 'deleted' and (key ~ 'a.$' or name ~ 'a.$')".to_owned()),
        (Filter { keys: some.clone(), ..all() }, format!("key in ({listed})")),
        (
            Filter { keys: some, states: vec![State::Ready], works: vec![Work::Due, Work::Idle], ..all() },
            format!("key in ({listed}) and state = 'ready' and work in ('due', 'idle')"),
        ),
    ];
    let client = scene.0.superuser().await;
    for (filter, condition) in filters {
        let select = format!("select key from tenantd.tenant where {condition} order by key");
        let expected: Vec<String> =
            client.query(&select, &[]).await.expect(&condition).iter().map(|row| row.get(0)).collect();
        assert!(!expected.is_empty(), "{condition} chooses nobody");
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = registry.keys(&filter, &after, 7).await.expect("a page");
            let Some(last) = page.last() else { break };
            after.clone_from(last);
            found.extend(page);
        }
        assert_eq!(found, expected, "{condition}");
        assert_eq!(
            registry.count(&filter).await.expect("count"),
            i64::try_from(expected.len()).expect("few"),
            "{condition}"
        );
    }
    drop(client);
    leave(scene).await;
}
