//! Connecting as the plain role of DESIGN section 10.

use crate::support::database::TestDatabase;

/// Goal: the server the tests stand on is reached as tenantd will reach it. Method: ask the server itself.
#[tokio::test]
async fn the_plain_role_connects_over_verified_tls() {
    let database = TestDatabase::new().await;
    let select = "select current_user::text, ssl, rolsuper, rolcreatedb, rolcreaterole
                  from pg_stat_ssl, pg_roles where pid = pg_backend_pid() and rolname = current_user";
    let row = database.tenantd().await.query_one(select, &[]).await.expect("ask the server");
    assert_eq!(row.get::<_, String>(0), "tenantd");
    assert!(row.get::<_, bool>(1), "the connection is encrypted");
    assert!(!row.get::<_, bool>(2), "the role is no superuser");
    assert!(row.get::<_, bool>(3), "the role may create databases");
    assert!(!row.get::<_, bool>(4), "the role may not create roles");
    database.finish().await;
}
