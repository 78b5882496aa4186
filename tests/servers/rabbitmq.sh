# shellcheck shell=bash disable=SC2154 # `ports` is of tests/run
# Sourced by tests/run: RabbitMQ, from Debian's package, as a node of its own that shares nothing with one that is
# installed: name, data, configuration, cookie, and epmd, which would otherwise listen on every address and stay.

rabbitmq_home() {
  local home
  home=$(printf '%s\n' /usr/lib/rabbitmq/lib/rabbitmq_server-* | sort -V | tail -n 1)
  [[ -x $home/sbin/rabbitmq-server ]] && printf '%s\n' "$home"
}

rabbitmq_packages() { rabbitmq_home >/dev/null || echo rabbitmq-server; }
rabbitmq_prepare() { :; }
rabbitmq_url() { echo "amqp://tester:secret@127.0.0.1:$1/%2f"; }

rabbitmq_create() {
  local dir=$1 port=$2 dist epmd
  dist=$(free_port "$port" "${ports[@]}")
  epmd=$(free_port "$port" "$dist" "${ports[@]}")
  echo '[].' >"$dir/enabled_plugins"
  : >"$dir/env.conf"
  cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$port
default_user = tester
default_pass = secret
log.console = true
log.file = false
max_message_size = 2000000
disk_free_limit.absolute = 10MB
CONF
  # epmd dies with the server, however that dies. RUNNING_UNDER_SYSTEMD makes the server's script `exec` the server.
  # The last argument says nothing to Erlang: it tells \`control\` whose process this is.
  cat >"$dir/run" <<RUN
#!/usr/bin/env bash
set -euo pipefail
cd "$dir"
export HOME=$dir ERL_EPMD_PORT=$epmd ERL_EPMD_ADDRESS=127.0.0.1 RUNNING_UNDER_SYSTEMD=true
export RABBITMQ_NODENAME=task-retry-$port@localhost RABBITMQ_DIST_PORT=$dist RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
export RABBITMQ_MNESIA_BASE=$dir/data RABBITMQ_LOG_BASE=$dir/logs RABBITMQ_CONF_ENV_FILE=$dir/env.conf
export RABBITMQ_CONFIG_FILE=$dir/rabbitmq RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 -kernel inet_dist_use_interface {127,0,0,1} -task_retry $dir/data"
unset RABBITMQ_NODE_PORT NOTIFY_SOCKET
setpriv --pdeathsig KILL epmd -port $epmd -address 127.0.0.1 &
exec "$(rabbitmq_home)/sbin/rabbitmq-server"
RUN
  settings "$dir" 'Server startup complete' TERM bash "$dir/run"
}
