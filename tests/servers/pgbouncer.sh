# shellcheck shell=bash disable=SC2154 # `cache` is from lib.sh
# Sourced by tests/run: PgBouncer in transaction mode, in front of the run's PostgreSQL. Prepared statements need 1.21;
# where there is no such one, Debian unstable's is unpacked into a cache folder.

pgbouncer_root=$cache/pgbouncer/root

# pgbouncer_command ROOT: see `fetched`.
pgbouncer_command() {
  local found loader lib version
  if found=$(command -v pgbouncer) && version=$("$found" --version 2>/dev/null | sed -n 's/^PgBouncer //p') &&
    [[ $(printf '%s\n' 1.21 "$version" | sort -V | head -n 1) == 1.21 ]]; then
    program=("$found")
    return
  fi
  [[ -x $1/usr/sbin/pgbouncer ]] || return 1
  loader=$(loader_of "$1")
  lib=$(dirname "$loader")
  program=("$loader" --library-path "$lib:$lib/systemd" "$1/usr/sbin/pgbouncer")
}

pgbouncer_packages() { :; }
pgbouncer_url() { echo "postgres://postgres@127.0.0.1:$1/postgres"; }

pgbouncer_prepare() {
  fetched pgbouncer PgBouncer pgbouncer 40 "install pgbouncer 1.21 or newer onto the PATH"
}

pgbouncer_create() {
  local dir=$1 port=$2 user=''
  local -a program
  pgbouncer_command "$pgbouncer_root"
  # It refuses to run as root, but not to be started so.
  if is_root; then user=nobody; fi
  # Other roles, which tests make, it asks the server for.
  echo '"postgres" ""' >"$dir/users"
  chmod 644 "$dir/users"
  cat >"$dir/pgbouncer.ini" <<INI
[databases]
* = host=127.0.0.1 port=$(<"$work/servers/postgres/port")

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
${user:+user = $user}
auth_type = trust
auth_file = $dir/users
auth_user = postgres
pool_mode = transaction
ignore_startup_parameters = extra_float_digits
max_prepared_statements = 200
default_pool_size = 20
max_client_conn = 4000
server_idle_timeout = 10
INI
  chmod 644 "$dir/pgbouncer.ini"
  settings "$dir" 'process up: PgBouncer' QUIT "${program[@]}" "$dir/pgbouncer.ini"
}
