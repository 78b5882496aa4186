-- Adds to a table of the Java starter (MySQL or MariaDB) what task-retry needs. Its rows, columns
-- and indexes stay as they are, and the starter goes on working.
-- Run it once: MySQL has no `add column if not exists`. A second run stops at the first statement
-- ("Duplicate column name") and changes nothing.
-- Both statements wait for transactions that are open on the table, and what comes after waits too.

alter table t_sys_mq_resend_log
  add column fence bigint not null default 0 comment 'goes up at every claim; a write of an older claim is void',
  add column locked_by varchar(64) null comment 'the process that holds it until next_send_time',
  add column crash_count int not null default 0 comment 'attempts whose process died',
  add column unique_key varchar(191) character set utf8mb4 collate utf8mb4_bin null comment 'at most one task of a project and source has it',
  add column task_name varchar(191) null comment 'name of the function',
  add column max_retry int null comment 'retries of this task, if not the default',
  -- The type of the table's other times: if yours are datetime(3), write that here.
  add column expire_time datetime null comment 'no attempt starts after this',
  add column last_error text null comment 'why the last attempt failed',
  add column trace_context varchar(128) null comment 'W3C traceparent of the caller';

-- An index on msg_key is there already: the starter's idx_msg_key.
alter table t_sys_mq_resend_log
  add index idx_task_retry_claim (project_name, source, next_send_time),
  add unique index uk_task_retry_unique_key (project_name, source, unique_key);

-- What is kept beside the tasks, in tables of its own.
create table if not exists t_task_retry_result (
  task_id bigint unsigned not null comment 'the task',
  fence bigint not null comment 'fence of the task when it succeeded; with another one this is void',
  result longtext not null comment 'what the function returned, as JSON',
  primary key (task_id)
) engine = InnoDB default charset = utf8mb4 collate = utf8mb4_bin row_format = dynamic
  comment = 'results of tasks (created by task-retry-migrations)';

create table if not exists t_task_retry_attempt (
  task_id bigint unsigned not null comment 'the task',
  fence bigint not null comment 'fence of the attempt',
  attempt int not null comment 'number of the attempt, from 1',
  start_time datetime(3) not null comment 'when it started',
  duration_ms bigint not null comment 'how long it ran, in milliseconds',
  worker varchar(64) not null comment 'the process that ran it',
  error text not null comment 'why it failed',
  primary key (task_id, fence)
) engine = InnoDB default charset = utf8mb4 collate = utf8mb4_bin row_format = dynamic
  comment = 'failed attempts of tasks (created by task-retry-migrations)';

create table if not exists t_task_retry_pause (
  project_name varchar(100) not null comment 'project',
  source int not null comment 'source of which nothing is run',
  create_time datetime(3) not null default current_timestamp(3) comment 'since when',
  primary key (project_name, source)
) engine = InnoDB default charset = utf8mb4 collate = utf8mb4_bin row_format = dynamic
  comment = 'paused sources (created by task-retry-migrations)';

create table if not exists t_sys_mq_resend_log_migrations (
  version varchar(255) not null primary key,
  applied_at bigint not null
);

insert ignore into t_sys_mq_resend_log_migrations (version, applied_at)
values
  ('m20261125_000001_create_task_log', unix_timestamp()),
  ('m20261125_000002_add_retry_columns', unix_timestamp()),
  ('m20261125_000003_create_results_attempts_pauses', unix_timestamp());
