# shellcheck shell=bash
# Sourced by tests/run: PostgreSQL, from Debian's package.

postgres_bin() {
  local bin
  bin=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
  [[ -x $bin ]] || bin=$(readlink -f "$(command -v initdb)") || return 1
  [[ -x $bin ]] && dirname "$bin"
}

postgres_packages() { postgres_bin >/dev/null || echo postgresql; }
postgres_prepare() { :; }
postgres_url() { echo "postgres://postgres@127.0.0.1:$1/postgres"; }

postgres_create() {
  local dir=$1 port=$2 bin
  local -a as=()
  postgres_folder
  # shellcheck disable=SC2086 # some options
  (cd "$dir" && "${as[@]}" "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C --no-sync \
    ${POSTGRES_INITDB-}) \
    >"$dir/init.log" 2>&1 || { tail -n 15 "$dir/init.log" >&2; die "initdb failed"; }
  postgres_settings
}

# postgres_standby DIR PORT PRIMARY: a copy of the server that listens on PRIMARY, which follows it.
postgres_standby() {
  local dir=$1 port=$2 primary=$3 bin
  local -a as=()
  postgres_folder
  (cd "$dir" && "${as[@]}" "$bin/pg_basebackup" -h 127.0.0.1 -p "$primary" -U postgres -D "$dir/data" -R -X stream \
    -c fast --no-sync) >"$dir/init.log" 2>&1 || { tail -n 15 "$dir/init.log" >&2; die "pg_basebackup failed"; }
  postgres_settings
}

# Makes the folder for the data of `dir`, and sets `bin` and `as`, what to put before a command.
postgres_folder() {
  bin=$(postgres_bin)
  data_folder "$dir"
  # It refuses to run as root. setpriv, unlike runuser, leaves no process in between, so the number is the server's.
  if is_root; then
    id postgres >/dev/null 2>&1 || die "PostgreSQL does not run as root, and there is no user postgres to run it as"
    as=(setpriv --reuid=postgres --regid=postgres --init-groups --)
    chown postgres: "$dir/data" # also through a link
    "${as[@]}" test -w "$dir/data" || die "the user postgres cannot reach $dir: set TMPDIR to a folder that it can enter"
  fi
}

postgres_settings() {
  settings "$dir" 'database system is ready to accept (read-only )?connections' QUIT \
    "${as[@]}" "$bin/postgres" -D "$dir/data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c max_connections=500 -c shared_buffers="${TASK_RETRY_TEST_BUFFERS:-64}MB" -c logging_collector=off -c log_destination=stderr
}
