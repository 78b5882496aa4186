# shellcheck shell=bash disable=SC2154 # `cache` is from lib.sh
# Sourced by tests/run: a real MySQL. Where none is installed, Debian unstable's is unpacked into a cache folder, not
# installed, and run by the loader and with the libraries that it was built for.

mysql_root=$cache/mysql/root

# mysql_command: sets `mysqld`, the command with the options that say where its files are; fails if there is none.
mysql_command() {
  local found loader lib
  if found=$(command -v mysqld) && [[ $("$found" --version 2>/dev/null) != *MariaDB* ]]; then
    mysqld=("$found" --no-defaults)
    return
  fi
  [[ -x $1/usr/sbin/mysqld ]] || return 1
  loader=$(printf '%s\n' "$1"/usr/lib/*-linux-gnu*/ld-linux*.so.* | head -n 1)
  lib=$(dirname "$loader")
  mysqld=("$loader" --library-path "$lib:$lib/mysql/private" "$1/usr/sbin/mysqld" --no-defaults
    --basedir="$1/usr" --lc-messages-dir="$1/usr/share/mysql" --character-sets-dir="$1/usr/share/mysql/charsets"
    --plugin-dir="$1/usr/lib/mysql/plugin")
}

mysql_packages() { :; }
mysql_url() { echo "mysql://root@127.0.0.1:$1/mysql"; }

mysql_prepare() {
  mysql_command "$mysql_root" && return
  mkdir -p "$cache/mysql"
  (
    exec 8>"$cache/mysql/lock"
    if ! flock -n 8; then
      say "another run is fetching MySQL; waiting for it …"
      flock 8
    fi
    mysql_command "$mysql_root" || mysql_fetch
  ) || die "no MySQL: see above"
}

# Unpacks it beside its place and moves it there when it has run, so that what was interrupted is never taken for whole.
mysql_fetch() {
  local new=$cache/mysql/new started=$SECONDS mirror keyring deb attempt
  local -a apt
  mirror=$(mysql_mirror)
  [[ -n $mirror ]] || {
    say "apt-get knows no Debian mirror to take MySQL from: install MySQL's own mysqld (not MariaDB's) onto the PATH"
    return 1
  }
  keyring=$(printf '%s\n' /usr/share/keyrings/debian-archive-keyring.{gpg,pgp} | xargs -r ls 2>/dev/null | head -n 1)
  say "fetching MySQL, about 60 MB, once, into $cache/mysql …"
  rm -rf "$new" "$mysql_root"
  mkdir -p "$new"/{root,lists/partial,archives/partial}
  : >"$new/status"
  echo "deb ${keyring:+[signed-by=$keyring] }$mirror unstable main" >"$new/sources.list"
  apt=(apt-get -q -y -o Dir::Etc::SourceList="$new/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State::Lists="$new/lists" -o Dir::State::Status="$new/status" -o Dir::Cache="$new"
    -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o APT::Install-Recommends=0
    -o Acquire::Languages=none -o Acquire::Retries=3
    -o Acquire::Check-Valid-Until=false) # mirrors that lag do; the signatures are still checked
  for attempt in 1 2 3; do # the archive may change between the two commands
    "${apt[@]}" update && "${apt[@]}" --download-only install mysql-server-core && break
    ((attempt < 3)) && sleep 5
  done </dev/null >"$new/log" 2>&1 || { tail -n 20 "$new/log" >&2; say "fetching MySQL failed"; return 1; }
  for deb in "$new"/archives/*.deb; do dpkg -x "$deb" "$new/root" || return 1; done
  if ! { mysql_command "$new/root" && "${mysqld[@]}" --version; } >>"$new/log" 2>&1; then
    tail -n 20 "$new/log" >&2
    say "the MySQL that was fetched does not run"
    return 1
  fi
  mv "$new/root" "$mysql_root" || return 1
  rm -rf "$new"
  say "fetched MySQL in $((SECONDS - started)) s"
}

mysql_mirror() {
  local attempt
  for attempt in 1 2; do
    # shellcheck disable=SC2016 # apt-get's own variable
    apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' 'Created-By: Packages' 2>/dev/null |
      grep -m 1 . && return
    # A new machine has no lists yet.
    ((attempt == 1)) && is_root && apt-get -q update </dev/null >/dev/null 2>&1 || return 0
  done
}

mysql_create() {
  local dir=$1 port=$2
  local -a mysqld
  mysql_command "$mysql_root"
  mkdir -p "$dir/tmp"
  mysqld+=(--datadir="$dir/data" --tmpdir="$dir/tmp" --performance-schema=OFF --innodb-buffer-pool-size=64M)
  if is_root; then mysqld+=(--user=root); fi
  "${mysqld[@]}" --initialize-insecure >"$dir/init.log" 2>&1 ||
    { tail -n 15 "$dir/init.log" >&2; die "mysqld --initialize failed (if the cached copy is broken: rm -r $mysql_root)"; }
  settings "$dir" 'ready for connections' KILL \
    "${mysqld[@]}" --socket= --pid-file="$dir/data/server.pid" --port="$port" --bind-address=127.0.0.1 \
    --mysqlx=OFF --max-connections=500 --disable-log-bin --secure-file-priv=
}
