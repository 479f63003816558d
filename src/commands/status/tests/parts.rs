//! What is shown only where there is something to show.

use super::*;

#[test]
fn who_is_held_with_a_database_is_told_from_who_waits_for_one() {
    let (config, set) = (config(), set());
    let mut status = well(&config, &set);
    status.fleet.counts.extend([count("ready", "held", 1), count("requested", "held", 2)]);
    let notes: Vec<String> = status.good_to_know().into_iter().map(|note| note.text).collect();
    assert_eq!(
        notes,
        ["2 users are held without a database, from before tenantd.", "1 tenant is held: sweeps leave it alone."]
    );
    assert!(status.is_well());
}

#[test]
fn the_main_schema_is_shown_where_there_is_one() {
    let (config, set) = (config(), set());
    let mut status = well(&config, &set);
    assert!(!text::whole(&status).contains("Main schema") && json::object(&status)["main_schema"] == Value::Null);
    status.main_schema = Some(Ok(Reached { version: 2, pending: vec![(3, "plans".to_owned())] }));
    let shown = text::whole(&status);
    assert!(shown.contains("\nMain schema  at 2, still lacking 3 plans\n") && status.is_well(), "{shown}");
    assert!(shown.contains("- The application's own schema lacks 1 migration.\n"), "{shown}");
    assert_eq!(json::object(&status)["main_schema"]["pending"], json!([{ "version": 3, "name": "plans" }]));
    status.main_schema = Some(Ok(Reached { version: 3, pending: vec![] }));
    assert!(text::whole(&status).contains("\nMain schema  at 3, the newest\n"));
    status.main_schema = Some(Err(Error::new(Kind::Drift, "0001_a.sql was changed.").hint("put it back")));
    assert_eq!(words(&status), ["main_schema"]);
    assert!(
        text::whole(&status)
            .contains("1. The application's own schema cannot be migrated: 0001_a.sql was changed.\n   put it back\n")
    );
    assert_eq!(json::object(&status)["main_schema"]["error"]["kind"], "drift");
}

#[test]
fn an_empty_fleet_is_well() {
    let (config, set) = (config(), set());
    let mut status = well(&config, &set);
    status.fleet = Fleet { at: at(), ..Fleet::default() };
    let shown = text::whole(&status);
    assert!(shown.contains("\nNo tenants yet.\n\nWaiting      no tenant\n"), "{shown}");
    assert!(shown.ends_with(
        "\nGood to know:\n- No daemon is connected, and nobody waits.\n  A signup would wait for the next start or sweep.\n\nAll is well.\n"
    ));
}

#[test]
fn a_refused_set_names_each_file() {
    let (config, set) = (config(), set());
    let mut status = well(&config, &set);
    status.relations.refused = vec!["2.sql is older than 3.".to_owned(), "4.sql is older than 5.".to_owned()];
    status.fleet.versions[0].sets.push("other".to_owned());
    let shown = text::whole(&status);
    assert!(shown.contains("contradicts our files"), "{shown}");
    assert!(
        shown.contains("touched with it:\n   - 2.sql is older than 3.\n   - 4.sql is older than 5.\n   Do what"),
        "{shown}"
    );
    assert_eq!(json::object(&status)["migrations"]["relation"], "refused");
}

#[test]
fn what_people_took_out_is_told() {
    let (config, set) = (config(), set());
    let mut status = well(&config, &set);
    status.fleet.counts.extend([count("ready", "held", 2), count("deleting", "held", 3)]);
    status.fleet.again = 1;
    let shown = text::whole(&status);
    for part in [
        "- 2 tenants are held: sweeps leave them alone.\n",
        "- 3 tenants are dropped, and in the time of grace.\n",
        "- 1 key signed up again while the tenant was being deleted.\n",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    assert!(status.is_well() && !shown.contains("from before tenantd"), "{shown}");
}
