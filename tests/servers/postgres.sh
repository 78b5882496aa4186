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
  bin=$(postgres_bin)
  mkdir "$dir/data"
  # It refuses to run as root. setpriv, unlike runuser, leaves no process in between, so the number is the server's.
  if is_root; then
    id postgres >/dev/null 2>&1 || die "PostgreSQL does not run as root, and there is no user postgres to run it as"
    as=(setpriv --reuid=postgres --regid=postgres --init-groups --)
    chown postgres: "$dir/data"
    "${as[@]}" test -w "$dir/data" || die "the user postgres cannot reach $dir: set TMPDIR to a folder that it can enter"
  fi
  (cd "$dir" && "${as[@]}" "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C --no-sync) \
    >"$dir/init.log" 2>&1 || { tail -n 15 "$dir/init.log" >&2; die "initdb failed"; }
  settings "$dir" 'database system is ready to accept connections' QUIT \
    "${as[@]}" "$bin/postgres" -D "$dir/data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c max_connections=500 -c shared_buffers=64MB -c logging_collector=off -c log_destination=stderr
}
