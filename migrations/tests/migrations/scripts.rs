//! The scripts for database administrators make what the migrations make.

use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};
use task_retry_migrations::{State, down, status, up};

use crate::contract::insert;
use crate::database::TestDatabase;
use crate::{schema, takeover};

pub(crate) async fn the_script_makes_what_the_migrations_make(database: TestDatabase) {
    up(&database.db).await.unwrap();
    let expected = schema::everything(&database).await;
    down(&database.db, None).await.unwrap();

    let script = script(&database);
    for _ in 0..2 {
        database.execute(script).await;
        assert_eq!(schema::everything(&database).await, expected);
    }
    insert(&database, 1).await;
    down(&database.db, None).await.unwrap();
    assert!(schema::everything(&database).await.is_empty());
}

/// `up` on a database that is up to date sends nothing but queries.
pub(crate) async fn a_program_without_ddl_rights_starts_on_the_script(database: TestDatabase) {
    database.execute(script(&database)).await;
    let read_only = match database.db.get_database_backend() {
        DbBackend::MySql => "set session transaction read only",
        DbBackend::Postgres => "set default_transaction_read_only = on",
        _ => "pragma query_only = on",
    };
    let db = database.another_session(read_only).await;
    assert!(db.execute_unprepared("create table x (id int)").await.is_err());
    up(&db).await.unwrap();
    assert!(status(&db).await.unwrap().iter().all(|it| it.state == State::Applied));
}

/// The wrong script on a starter's table: it does nothing, and the migrations still do their work.
pub(crate) async fn the_script_does_not_mistake_the_starters_table_for_ours(
    database: TestDatabase,
) {
    database.execute(takeover::STARTER).await;
    database.execute(script(&database)).await;
    assert!(status(&database.db).await.unwrap().iter().all(|it| it.state == State::Pending));
    up(&database.db).await.unwrap();
    down(&database.db, None).await.unwrap();
    assert!(!schema::of_the_task_table(&database).await.is_empty());
}

fn script(database: &TestDatabase) -> &'static str {
    match database.db.get_database_backend() {
        DbBackend::MySql => include_str!("../../sql/mysql.sql"),
        DbBackend::Postgres => include_str!("../../sql/postgres.sql"),
        _ => include_str!("../../sql/sqlite.sql"),
    }
}
