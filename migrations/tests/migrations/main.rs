//! One contract for the migrations, on every database.
//!
//! Servers come from `TASK_RETRY_TEST_POSTGRES`, `TASK_RETRY_TEST_MARIADB` and
//! `TASK_RETRY_TEST_MYSQL` (URLs of an account that may create databases). One that is not named is
//! skipped, unless `TASK_RETRY_TEST_REQUIRE_ALL=1`.

mod command_line;
mod contract;
mod database;
mod schema;
mod scripts;
mod takeover;

/// The contract on each server, and what else is listed for it; each test in a database of its own.
macro_rules! contract_on {
    (@tests $server:ident $($module:ident :: $test:ident),* $(,)?) => {
        mod $server {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                crate::database::on(crate::database::$server, crate::$module::$test).await;
            })*
        }
    };
    (@ $server:ident [$($more:tt)*]) => {
        contract_on! { @tests $server
            contract::up_down_up_leaves_no_trace,
            contract::up_twice_changes_nothing,
            contract::a_half_done_migration_is_finished,
            contract::down_goes_step_by_step,
            contract::many_processes_start_at_once,
            contract::one_pool_starts_many_times_at_once,
            contract::status_tells_and_changes_nothing,
            contract::a_newer_release_may_have_gone_further,
            contract::a_lost_table_is_reported,
            contract::a_lost_table_beside_it_is_reported,
            contract::another_table_of_a_name_of_ours_is_kept,
            contract::a_table_of_another_shape_is_reported,
            contract::a_table_that_we_did_not_make_is_kept,
            contract::fresh_is_refused,
            contract::the_starters_insert_gets_defaults,
            contract::a_unique_key_is_compared_byte_by_byte,
            contract::the_table_has_the_columns_and_indexes_of_the_design,
            scripts::the_script_makes_what_the_migrations_make,
            scripts::a_program_without_ddl_rights_starts_on_the_script,
            $($more)*
        }
    };
    ($($server:ident $more:tt)*) => {
        $(contract_on!(@ $server $more);)*
    };
}

contract_on! {
    sqlite_memory []
    sqlite_file []
    postgres []
    mariadb [
        takeover::the_starters_rows_stay_as_they_are,
        takeover::many_processes_take_over_at_once,
        takeover::the_script_does_what_the_migrations_do,
        scripts::the_script_does_not_mistake_the_starters_table_for_ours,
    ]
    mysql [
        takeover::the_starters_rows_stay_as_they_are,
        takeover::many_processes_take_over_at_once,
        takeover::the_script_does_what_the_migrations_do,
        scripts::the_script_does_not_mistake_the_starters_table_for_ours,
    ]
}
