-- task-retry's table for SQLite 3.35 and later. Can be run again.

begin immediate;

create table if not exists t_sys_mq_resend_log (
  -- tasks and their retries (created by task-retry-migrations)
  id integer not null primary key,
  project_name varchar(100) not null default '',
  source integer not null,
  msg_key varchar(191) not null default '',
  status integer not null default 0,
  send_count integer not null default 0,
  topic varchar(255) not null default '',
  context text null,
  next_send_time datetime_text null,
  create_time datetime_text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  update_time datetime_text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  fence bigint not null default 0,
  locked_by varchar(64) null,
  crash_count integer not null default 0,
  unique_key varchar(191) null,
  task_name varchar(191) null,
  max_retry integer null,
  expire_time datetime_text null,
  last_error text null,
  trace_context varchar(128) null
);

create index if not exists idx_task_retry_claim on t_sys_mq_resend_log (project_name, source, next_send_time) where status in (0, 1, 5);
create unique index if not exists uk_task_retry_unique_key on t_sys_mq_resend_log (project_name, source, unique_key) where unique_key is not null;
create index if not exists idx_task_retry_msg_key on t_sys_mq_resend_log (msg_key) where msg_key <> '';

create table if not exists t_task_retry_result (
  -- results of tasks (created by task-retry-migrations)
  task_id integer not null primary key,
  fence bigint not null,
  result text not null
);

create table if not exists t_task_retry_attempt (
  -- failed attempts of tasks (created by task-retry-migrations)
  task_id bigint not null,
  fence bigint not null,
  attempt integer not null,
  start_time datetime_text not null,
  duration_ms bigint not null,
  worker varchar(64) not null,
  error text not null,
  primary key (task_id, fence)
) without rowid;

create table if not exists t_task_retry_pause (
  -- paused sources (created by task-retry-migrations)
  project_name varchar(100) not null,
  source integer not null,
  create_time datetime_text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  primary key (project_name, source)
) without rowid;

create table if not exists t_sys_mq_resend_log_migrations (
  version varchar not null primary key,
  applied_at integer not null
);

insert or ignore into t_sys_mq_resend_log_migrations (version, applied_at)
values
  ('m20261125_000001_create_task_log', strftime('%s', 'now')),
  ('m20261125_000002_add_retry_columns', strftime('%s', 'now')),
  ('m20261125_000003_create_results_attempts_pauses', strftime('%s', 'now'));

commit;
