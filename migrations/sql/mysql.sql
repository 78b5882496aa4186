-- task-retry's table for MySQL 8.0 and later and MariaDB 10.6 and later.
-- Can be run again. For a table of the Java starter use mysql-from-starter.sql instead.

create table if not exists t_sys_mq_resend_log (
  id bigint unsigned not null comment 'primary key, ordered by time',
  project_name varchar(100) not null default '' comment 'project; with the source it names the kind of task',
  source int not null comment 'source of the task',
  msg_key varchar(191) not null default '' comment 'key of the task',
  status tinyint not null default 0 comment 'state: 0 executing, 1 retrying, 2 failed, 3 succeeded, 4 cancelled, 5 waiting',
  send_count int not null default 0 comment 'retries: attempts that failed',
  topic varchar(255) not null default '' comment 'topic of the message',
  context longtext null comment 'body of the message or arguments of the task',
  next_send_time datetime(3) null comment 'when it is due, or the end of its lease',
  create_time datetime(3) not null default current_timestamp(3) comment 'when it was created',
  update_time datetime(3) not null default current_timestamp(3) on update current_timestamp(3) comment 'when it was last changed',
  fence bigint not null default 0 comment 'goes up at every claim; a write of an older claim is void',
  locked_by varchar(64) null comment 'the process that holds it until next_send_time',
  crash_count int not null default 0 comment 'attempts whose process died',
  unique_key varchar(191) character set utf8mb4 collate utf8mb4_bin null comment 'at most one task of a project and source has it',
  task_name varchar(191) null comment 'name of the function',
  max_retry int null comment 'retries of this task, if not the default',
  expire_time datetime(3) null comment 'no attempt starts after this',
  last_error text null comment 'why the last attempt failed',
  trace_context varchar(128) null comment 'W3C traceparent of the caller',
  primary key (id),
  key idx_task_retry_claim (project_name, source, next_send_time),
  unique key uk_task_retry_unique_key (project_name, source, unique_key),
  key idx_task_retry_msg_key (msg_key)
) engine = InnoDB default charset = utf8mb4 collate = utf8mb4_bin row_format = dynamic
  comment = 'tasks and their retries (created by task-retry-migrations)';

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

-- The migrations are done, unless another table of that name was in the way.
create table if not exists t_sys_mq_resend_log_migrations (
  version varchar(255) not null primary key,
  applied_at bigint not null
);

insert ignore into t_sys_mq_resend_log_migrations (version, applied_at)
select done.version, unix_timestamp()
from (
  select 'm20261125_000001_create_task_log' as version
  union all select 'm20261125_000002_add_retry_columns'
  union all select 'm20261125_000003_create_results_attempts_pauses'
) as done
where exists (
  select 1 from information_schema.columns
  where table_schema = database() and table_name = 't_sys_mq_resend_log' and column_name = 'trace_context'
);
