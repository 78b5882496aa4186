-- task-retry's table for PostgreSQL 12 and later. Can be run again.

begin;

create table if not exists t_sys_mq_resend_log (
  id bigint primary key with (fillfactor = 45),
  project_name varchar(100) not null default '',
  source integer not null,
  msg_key varchar(191) not null default '',
  status smallint not null default 0,
  send_count integer not null default 0,
  topic varchar(255) not null default '',
  context text null,
  next_send_time timestamptz(3) null,
  create_time timestamptz(3) not null default now(),
  update_time timestamptz(3) not null default now(),
  fence bigint not null default 0,
  locked_by varchar(64) null,
  crash_count integer not null default 0,
  unique_key varchar(191) null,
  task_name varchar(191) null,
  max_retry integer null,
  expire_time timestamptz(3) null,
  last_error text null,
  trace_context varchar(128) null
);

comment on table t_sys_mq_resend_log is 'tasks and their retries (created by task-retry-migrations)';

create index if not exists idx_task_retry_claim on t_sys_mq_resend_log (project_name, source, next_send_time) where status in (0, 1, 5);
create unique index if not exists uk_task_retry_unique_key on t_sys_mq_resend_log (project_name, source, unique_key) where unique_key is not null;
create index if not exists idx_task_retry_msg_key on t_sys_mq_resend_log (msg_key) where msg_key <> '';

create table if not exists t_task_retry_result (
  task_id bigint primary key,
  fence bigint not null,
  result text not null
);

comment on table t_task_retry_result is 'results of tasks (created by task-retry-migrations)';

create table if not exists t_task_retry_attempt (
  task_id bigint not null,
  fence bigint not null,
  attempt integer not null,
  start_time timestamptz(3) not null,
  duration_ms bigint not null,
  worker varchar(64) not null,
  error text not null,
  primary key (task_id, fence)
);

comment on table t_task_retry_attempt is 'failed attempts of tasks (created by task-retry-migrations)';

create table if not exists t_task_retry_pause (
  project_name varchar(100) not null,
  source integer not null,
  create_time timestamptz(3) not null default now(),
  primary key (project_name, source)
);

comment on table t_task_retry_pause is 'paused sources (created by task-retry-migrations)';

create table if not exists t_sys_mq_resend_log_migrations (
  version varchar not null primary key,
  applied_at bigint not null
);

insert into t_sys_mq_resend_log_migrations (version, applied_at)
values
  ('m20261125_000001_create_task_log', extract(epoch from now())::bigint),
  ('m20261125_000002_add_retry_columns', extract(epoch from now())::bigint),
  ('m20261125_000003_create_results_attempts_pauses', extract(epoch from now())::bigint)
on conflict do nothing;

commit;
