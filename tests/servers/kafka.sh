# shellcheck shell=bash disable=SC2154 # `cache` is from lib.sh, `ports` of tests/run
# Sourced by tests/run: Kafka, one node, which Maven fetches once into a cache folder; Java and Maven from Debian.

kafka_version=4.4.0
kafka_home=$cache/kafka/$kafka_version

kafka_packages() {
  command -v java >/dev/null || echo default-jre-headless
  [[ -d $kafka_home/lib ]] || command -v mvn >/dev/null || echo maven
}
kafka_url() { echo "kafka://tester:secret@127.0.0.1:$1"; }

kafka_prepare() {
  [[ -d $kafka_home/lib ]] && return
  mkdir -p "$cache/kafka"
  (
    exec 8>"$cache/kafka/lock"
    flock -n 8 || { say "another run is fetching Kafka; waiting for it …"; flock 8; }
    [[ -d $kafka_home/lib ]] || kafka_fetch
  ) || die "no Kafka: see above"
}

# Fetches it beside its place and moves it there when it is whole.
kafka_fetch() {
  local new=$cache/kafka/new started=$SECONDS
  say "fetching Kafka $kafka_version, about 45 MB, once, into $kafka_home …"
  rm -rf "$new"
  mkdir -p "$new"
  cat >"$new/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>test</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$kafka_version</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
POM
  # Its repository is thrown away too: the user's own stays as it is.
  if ! mvn -B -q -f "$new/pom.xml" -Dmaven.repo.local="$new/repository" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$new/lib" </dev/null >"$new/log" 2>&1; then
    tail -n 20 "$new/log" >&2
    say "fetching Kafka failed"
    return 1
  fi
  rm -rf "$new/repository" "$kafka_home"
  mv "$new" "$kafka_home" || return 1
  say "fetched Kafka in $((SECONDS - started)) s"
}

kafka_create() {
  local dir=$1 port=$2 controller jaas
  local -a java
  controller=$(free_port "$port" "${ports[@]}")
  jaas='org.apache.kafka.common.security.plain.PlainLoginModule required username="tester" password="secret"'
  mkdir -p "$dir/tmp"
  cat >"$dir/server.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
controller.listener.names=CONTROLLER
listeners=CLIENT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=CLIENT://127.0.0.1:$port
listener.security.protocol.map=CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.client.plain.sasl.jaas.config=$jaas user_tester="secret";
log.dirs=$dir/data
num.partitions=4
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=16777216
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
CONF
  java=("$(command -v java)" -XX:+UseSerialGC -XX:-UsePerfData "-Djava.io.tmpdir=$dir/tmp"
    -Djava.net.preferIPv4Stack=true -Dorg.slf4j.simpleLogger.defaultLogLevel=warn
    -Dorg.slf4j.simpleLogger.log.kafka.server=info)
  "${java[@]}" -Xmx128m -cp "$kafka_home/lib/*" kafka.tools.StorageTool format -t AAAAAAAAAAAAAAAAAAAAAQ \
    -c "$dir/server.properties" >"$dir/init.log" 2>&1 || { tail -n 15 "$dir/init.log" >&2; die "formatting Kafka's storage failed"; }
  settings "$dir" 'Kafka Server started' KILL \
    "${java[@]}" -Xms64m -Xmx384m -cp "$kafka_home/lib/*" kafka.Kafka "$dir/server.properties"
}
