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
  mariadb_install
  mariadb_settings
}

galera_packages() {
  mariadb_packages
  [[ -e /usr/lib/galera/libgalera_smm.so ]] || echo galera-4
  command -v rsync >/dev/null || echo rsync
}
galera_prepare() { :; }
galera_url() { mariadb_url "$1"; }

# galera_create DIR PORT GROUP ALL [new]: a node whose address within its cluster is GROUP, of a cluster of the nodes ALL
# (with commas); `new` starts a cluster, at the first start only.
galera_create() {
  local dir=$1 port=$2 group=$3 all=$4 new=${5:+--wsrep-new-cluster} user
  # The rsync that transfers a state would give up root's rights, and then reach nothing.
  if is_root; then user=nobody; else user=$(id -un); fi
  mariadb_install
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
    "$(command -v mariadbd)" --no-defaults --user="$user" --datadir="$dir/data" --tmpdir="$dir/tmp" \
    --socket= --pid-file="$dir/data/server.pid" --port="$port" --bind-address=127.0.0.1 --character-set-server=utf8mb4 \
    --max-connections=500 --innodb-buffer-pool-size=64M "$@"
}
