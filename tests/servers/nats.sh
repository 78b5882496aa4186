# shellcheck shell=bash
# Sourced by tests/run: NATS with JetStream, from Debian's package.

nats_packages() { command -v nats-server >/dev/null || echo nats-server; }
nats_prepare() { :; }
nats_url() { echo "nats://tester:secret@127.0.0.1:$1"; }

nats_create() {
  local dir=$1 port=$2
  cat >"$dir/nats.conf" <<CONF
listen: 127.0.0.1:$port
jetstream { store_dir: "$dir/data", max_memory_store: 256MB, max_file_store: 1GB }
authorization { user: tester, password: secret }
CONF
  settings "$dir" 'Server is ready' TERM "$(command -v nats-server)" -c "$dir/nats.conf"
}
