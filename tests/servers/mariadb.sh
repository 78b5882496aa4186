# shellcheck shell=bash disable=SC2154 # `cache` is from lib.sh
# Sourced by tests/run: MariaDB, from Debian's packages. The core ones have no service that would start by itself.

mariadb_packages() {
  command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null ||
    echo mariadb-server-core mariadb-client-core
}
mariadb_prepare() { :; }
mariadb_url() { echo "mysql://root@127.0.0.1:$1/mysql"; }

mariadb_create() {
  local dir=$1 port=$2 user
  local -a with=()
  user=$(id -un)
  mariadb_install
  mariadb_settings
}

galera_packages() {
  mariadb_packages
  [[ -e /usr/lib/galera/libgalera_smm.so ]] || echo galera-4
  command -v rsync >/dev/null || echo rsync
}

# The scripts that transfer a state to a node come with the service, which would start by itself: only they are unpacked.
galera_prepare() {
  local new=$cache/galera.new
  if command -v wsrep_sst_rsync >/dev/null || [[ -x $cache/galera/wsrep_sst_rsync ]]; then return; fi
  rm -rf "$new"
  mkdir -p "$new"
  say "fetching the scripts of Galera, about 10 MB, once, into $cache/galera …"
  if ! (cd "$new" && { apt-get -q download mariadb-server || { apt-get -q update && apt-get -q download mariadb-server; }; } &&
    dpkg -x mariadb-server_*.deb root) </dev/null >"$new/log" 2>&1; then
    tail -n 20 "$new/log" >&2
    die "Debian's package mariadb-server cannot be fetched: install it, or leave --cluster out"
  fi
  mkdir "$new/scripts"
  mv "$new"/root/usr/bin/wsrep_sst_* "$new/scripts"
  rm -rf "$cache/galera"
  mv "$new/scripts" "$cache/galera"
  rm -rf "$new"
}
galera_url() { mariadb_url "$1"; }

# galera_create DIR PORT GROUP ALL [new]: a node whose address within its cluster is GROUP, of a cluster of the nodes ALL
# (with commas); `new` starts a cluster, at the first start only.
galera_create() {
  local dir=$1 port=$2 group=$3 all=$4 new=${5:+--wsrep-new-cluster} user
  # The rsync that transfers a state would give up root's rights, and then reach nothing.
  if is_root; then user=nobody; else user=$(id -un); fi
  mariadb_install
  local -a with=()
  if ! command -v wsrep_sst_rsync >/dev/null; then
    # Where that user may read them.
    cp -r "$cache/galera" "$dir/bin"
    chmod -R a+rX "$dir/bin"
    with=(env "PATH=$dir/bin:$PATH")
  fi
  # shellcheck disable=SC2086 # nothing, if it is empty
  mariadb_settings --binlog-format=ROW --default-storage-engine=InnoDB --innodb-autoinc-lock-mode=2 $new \
    --wsrep-on=ON --wsrep-provider=/usr/lib/galera/libgalera_smm.so --wsrep-cluster-name=task-retry \
    --wsrep-cluster-address="gcomm://$all" --wsrep-node-name="$port" --wsrep-node-address="$group" \
    --wsrep-sst-method=rsync --wsrep-sst-receive-address="127.0.0.1:$(free_port "$port")" \
    --wsrep-provider-options="base_host=127.0.0.1;base_port=${group#*:};gmcast.listen_addr=tcp://$group;\
ist.recv_addr=127.0.0.1:$(free_port "$port")"
}

mariadb_install() {
  # A MariaDB that starts removes the temporary tables that it finds in its tmpdir, those of others too.
  mkdir -p "$dir/tmp"
  data_folder "$dir"
  if is_root; then chown "$user" "$dir/tmp" "$dir/data"; fi
  (cd "$dir" && mariadb-install-db --no-defaults --user="$user" --datadir="$dir/data" --tmpdir="$dir/tmp" \
    --auth-root-authentication-method=normal --skip-test-db) \
    >"$dir/init.log" 2>&1 || { cat "$dir/init.log" >&2; die "mariadb-install-db failed"; }
}

mariadb_settings() {
  # Debian's configuration, which --no-defaults leaves out, says utf8mb4 too.
  settings "$dir" 'ready for connections' KILL \
    "${with[@]}" "$(command -v mariadbd)" --no-defaults --user="$user" --datadir="$dir/data" --tmpdir="$dir/tmp" \
    --socket= --pid-file="$dir/data/server.pid" --port="$port" --bind-address=127.0.0.1 --character-set-server=utf8mb4 \
    --max-connections=500 --innodb-buffer-pool-size="${TASK_RETRY_TEST_BUFFERS:-64}M" "$@"
}
