//! A table that the Java starter made and uses.

use task_retry_migrations::{down, up};

use crate::contract::{all_up, assert_is_complete, rows};
use crate::database::TestDatabase;
use crate::schema;

/// Word for word as the starter's manual gives it.
pub(crate) const STARTER: &str = "\
CREATE TABLE `t_sys_mq_resend_log` (
 `id` bigint(20) unsigned NOT NULL COMMENT '主键',
 `project_name` varchar(100) NOT NULL DEFAULT '' COMMENT '项目名，项目名和source唯一确定一个记录',
 `source` int(11) NOT NULL COMMENT '任务来源' ,
 `msg_key` varchar(50) NOT NULL DEFAULT '' COMMENT '任务唯一标识',
 `status` tinyint(4) NOT NULL DEFAULT '0' COMMENT '任务状态 0=执行中 1=重试中 2=任务执行失败 3=任务执行成功',
 `send_count` int(11) NOT NULL DEFAULT '0' COMMENT '重试次数',
 `topic` varchar(255) NOT NULL DEFAULT '' COMMENT '消息topic',
 `context` text COMMENT '消息内容,任务上下文字段',
 `next_send_time` datetime DEFAULT NULL COMMENT '下一次发送时间',
 `create_time` datetime NOT NULL DEFAULT CURRENT_TIMESTAMP COMMENT '创建时间',
 `update_time` datetime NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP COMMENT '最后更新时间',
 PRIMARY KEY (`id`),
 KEY `idx_msg_key` (`msg_key`),
 KEY `idx_create_time` (`create_time`),
 KEY `idx_update_time` (`update_time`),
 KEY `idx_search` (`project_name`,`next_send_time`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 ROW_FORMAT=DYNAMIC COMMENT='任务重试记录表';";

/// Rows in all four states, as a JVM at +08:00 beside a server at UTC leaves them: `create_time`
/// and `next_send_time` are eight hours ahead of `update_time`.
const ROWS: &str = r#"
insert into t_sys_mq_resend_log values
 (2120000000000000001, 'shop', 30, '',     0, 0, '',       '{"orderId":1,"phone":"+86138"}', null,                  '2024-03-01 18:00:00', '2024-03-01 10:00:00'),
 (2120000000000000002, 'shop', 30, 'key2', 1, 2, '',       '{"备注":"第二次 😀"}',            '2024-03-01 18:01:40', '2024-03-01 18:00:01', '2024-03-01 10:00:06'),
 (2120000000000000003, 'Shop', 31, 'key3', 2, 5, '',       null,                            '2024-03-01 21:00:00', '2024-02-29 23:59:59', '2024-03-01 13:00:00'),
 (2120000000000000004, 'shop', 10, 'KEY2', 3, 1, 'orders', 'not json, \\ and '' kept  ',     '2024-03-01 18:00:10', '2024-03-01 18:00:05', '2024-03-01 10:00:10')"#;

pub(crate) async fn the_starters_rows_stay_as_they_are(database: TestDatabase) {
    let before = starters_table(&database).await;

    up(&database.db).await.unwrap();
    assert_eq!(rows(&database).await, before.rows);
    assert_is_complete(&database).await;
    assert_adds_only(&database, &before).await;
    let types = schema::of_the_task_table(&database).await.join("\n");
    assert!(types.contains("| expire_time | datetime | YES |"), "{types}");
    assert!(
        types.contains("| unique_key | varchar(191) | YES | NULL |  | utf8mb4_bin |"),
        "{types}"
    );
    assert!(!types.contains("idx_task_retry_msg_key"), "idx_msg_key serves: {types}");

    up(&database.db).await.unwrap();
    starters_work_goes_on(&database).await;
    let rows = rows(&database).await;
    assert_eq!(rows.len(), 5);

    down(&database.db, None).await.unwrap();
    assert_eq!(self::rows(&database).await, rows);
    assert_eq!(schema::everything(&database).await, before.schema);

    up(&database.db).await.unwrap();
    assert_eq!(self::rows(&database).await, rows);
    assert_adds_only(&database, &before).await;
    down(&database.db, Some(1)).await.unwrap();
    down(&database.db, Some(1)).await.unwrap();
    down(&database.db, Some(1)).await.unwrap();
    assert_eq!(self::rows(&database).await, rows);
}

pub(crate) async fn many_processes_take_over_at_once(database: TestDatabase) {
    let before = starters_table(&database).await;
    let mut processes = Vec::new();
    for _ in 0..8 {
        processes.push(database.another_process().await);
    }
    all_up(processes).await;
    assert_eq!(rows(&database).await, before.rows);
    assert_is_complete(&database).await;
    assert_adds_only(&database, &before).await;
}

pub(crate) async fn the_script_does_what_the_migrations_do(database: TestDatabase) {
    let before = starters_table(&database).await;
    up(&database.db).await.unwrap();
    let expected = schema::everything(&database).await;
    down(&database.db, None).await.unwrap();

    database.execute(include_str!("../../sql/mysql-from-starter.sql")).await;
    assert_eq!(schema::everything(&database).await, expected);
    assert_eq!(rows(&database).await, before.rows);
    up(&database.db).await.unwrap();
    assert_eq!(schema::everything(&database).await, expected);
}

struct Before {
    schema: Vec<String>,
    rows: Vec<String>,
}

async fn starters_table(database: &TestDatabase) -> Before {
    database.execute(STARTER).await;
    database.execute(ROWS).await;
    let (schema, rows) = (schema::everything(database).await, rows(database).await);
    assert_eq!(rows.len(), 4);
    Before { schema, rows }
}

/// Every line of the old schema is in the new one, in the same order.
async fn assert_adds_only(database: &TestDatabase, before: &Before) {
    let mut kept = schema::everything(database).await;
    kept.retain(|line| before.schema.contains(line));
    assert_eq!(kept, before.schema);
}

/// What the starter does with a task: store it, fail once, succeed.
async fn starters_work_goes_on(database: &TestDatabase) {
    database
        .execute(
            "INSERT INTO t_sys_mq_resend_log (id, project_name, source, status, send_count, context, create_time) \
             VALUES (2120000000000000005, 'shop', 30, 0, 0, '{}', '2024-03-02 08:00:00')",
        )
        .await;
    database
        .execute(
            "UPDATE t_sys_mq_resend_log SET status = 1, send_count = 1, next_send_time = '2024-03-02 08:00:05' \
             WHERE id = 2120000000000000005",
        )
        .await;
    let due = "select cast(id as char) from t_sys_mq_resend_log \
               where project_name = 'shop' and send_count <= 4 and status in (0, 1) \
               and next_send_time <= '2024-03-02 08:00:05' order by id limit 50";
    assert_eq!(database.texts(due).await, ["2120000000000000002", "2120000000000000005"]);
    database
        .execute("UPDATE t_sys_mq_resend_log SET status = 3 WHERE id = 2120000000000000005")
        .await;
}
