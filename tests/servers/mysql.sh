# shellcheck shell=bash disable=SC2154 # `cache` is from lib.sh
# Sourced by tests/run: a real MySQL. Where none is installed, Debian unstable's is unpacked into a cache folder, not
# installed, and run by the loader and with the libraries that it was built for.

mysql_root=$cache/mysql/root

# mysql_command ROOT: with the options that say where its files are; see `fetched`.
mysql_command() {
  local found loader lib
  if found=$(command -v mysqld) && [[ $("$found" --version 2>/dev/null) != *MariaDB* ]]; then
    program=("$found" --no-defaults)
    return
  fi
  [[ -x $1/usr/sbin/mysqld ]] || return 1
  loader=$(loader_of "$1")
  lib=$(dirname "$loader")
  program=("$loader" --library-path "$lib:$lib/mysql/private" "$1/usr/sbin/mysqld" --no-defaults
    --basedir="$1/usr" --lc-messages-dir="$1/usr/share/mysql" --character-sets-dir="$1/usr/share/mysql/charsets"
    --plugin-dir="$1/usr/lib/mysql/plugin")
}

mysql_packages() { :; }
mysql_url() { echo "mysql://root@127.0.0.1:$1/mysql"; }

mysql_prepare() {
  fetched mysql MySQL mysql-server-core 60 "install MySQL's own mysqld (not MariaDB's) onto the PATH"
}

mysql_create() {
  local dir=$1 port=$2
  local -a program
  mysql_command "$mysql_root"
  mkdir -p "$dir/tmp"
  program+=(--datadir="$dir/data" --tmpdir="$dir/tmp" --performance-schema=OFF --innodb-buffer-pool-size="${TASK_RETRY_TEST_BUFFERS:-64}M")
  if is_root; then program+=(--user=root); fi
  "${program[@]}" --initialize-insecure >"$dir/init.log" 2>&1 ||
    { tail -n 15 "$dir/init.log" >&2; die "mysqld --initialize failed (if the cached copy is broken: rm -r $mysql_root)"; }
  settings "$dir" 'ready for connections' KILL \
    "${program[@]}" --socket= --pid-file="$dir/data/server.pid" --port="$port" --bind-address=127.0.0.1 \
    --mysqlx=OFF --max-connections=500 --disable-log-bin --secure-file-priv=
}
