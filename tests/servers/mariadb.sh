# shellcheck shell=bash
# Sourced by tests/run: MariaDB, from Debian's packages. The core ones have no service that would start by itself.

mariadb_packages() {
  command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null ||
    echo mariadb-server-core mariadb-client-core
}
mariadb_prepare() { :; }
mariadb_url() { echo "mysql://root@127.0.0.1:$1/mysql"; }

mariadb_create() {
  local dir=$1 port=$2 user
  user=$(id -un)
  # A MariaDB that starts removes the temporary tables that it finds in its tmpdir, those of others too.
  mkdir -p "$dir/tmp"
  (cd "$dir" && mariadb-install-db --no-defaults --user="$user" --datadir="$dir/data" --tmpdir="$dir/tmp" \
    --auth-root-authentication-method=normal --skip-test-db) \
    >"$dir/init.log" 2>&1 || { cat "$dir/init.log" >&2; die "mariadb-install-db failed"; }
  # Debian's configuration, which --no-defaults leaves out, says utf8mb4 too.
  settings "$dir" 'ready for connections' KILL \
    "$(command -v mariadbd)" --no-defaults --user="$user" --datadir="$dir/data" --tmpdir="$dir/tmp" \
    --socket= --pid-file="$dir/data/server.pid" --port="$port" --bind-address=127.0.0.1 --character-set-server=utf8mb4 \
    --max-connections=500 --innodb-buffer-pool-size=64M
}
