# shellcheck shell=bash disable=SC2154 # `cache` is from lib.sh
# Sourced by tests/run: RocketMQ, Apache's own, by Maven. A folder has the broker, the one beside it (`…-namesrv`) the
# name server, each to be killed and started by itself.
#
# For the servers of one test: ROCKETMQ_BROKER, more lines for the broker's properties; ROCKETMQ_STORE, the folder of its
# store; ROCKETMQ_TLS=1, they speak TLS too, with the certificate `cert.pem`.

rocketmq_version=5.5.0
rocketmq_home=$cache/rocketmq/$rocketmq_version

rocketmq_packages() {
  if [[ -f $rocketmq_home/whole ]]; then
    command -v java >/dev/null || echo default-jre-headless
  else
    command -v javac >/dev/null || echo default-jdk-headless
    command -v mvn >/dev/null || echo maven
  fi
}
rocketmq_url() { echo "127.0.0.1:$1"; }

rocketmq_prepare() {
  [[ -f $rocketmq_home/whole ]] && return
  mkdir -p "$cache/rocketmq"
  (
    exec 8>"$cache/rocketmq/lock"
    flock 8
    [[ -f $rocketmq_home/whole ]] || rocketmq_fetch
  ) || die "no RocketMQ: see above"
}

rocketmq_fetch() {
  local new=$cache/rocketmq/new started=$SECONDS part
  say "fetching RocketMQ $rocketmq_version, about 100 MB, once, into $rocketmq_home …"
  rm -rf "$new" "$rocketmq_home"
  mkdir -p "$new"/{lib,noha/META-INF/service}
  {
    echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
    echo '<groupId>t</groupId><artifactId>t</artifactId><version>1</version><packaging>pom</packaging><dependencies>'
    for part in namesrv broker; do
      echo "<dependency><groupId>org.apache.rocketmq</groupId><artifactId>rocketmq-$part</artifactId>" \
        "<version>$rocketmq_version</version></dependency>"
    done
    echo '</dependencies></project>'
  } >"$new/pom.xml"
  mvn -B -q -f "$new/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$new/lib" \
    </dev/null >"$new/log" 2>&1 || { tail -n 20 "$new/log" >&2; say "Maven could not fetch RocketMQ"; return 1; }
  # The port for replicas binds every address: keep it shut.
  cat >"$new/NoHa.java" <<'JAVA'
public class NoHa extends org.apache.rocketmq.store.ha.DefaultHAService {
  @Override public void start() { groupTransferService.start(); haConnectionStateNotificationService.start(); }
}
JAVA
  # Sends messages of keys and prints their queues: topic, name server, keys.
  cat >"$new/ByHash.java" <<'JAVA'
import org.apache.rocketmq.client.producer.*;
import org.apache.rocketmq.client.producer.selector.SelectMessageQueueByHash;
import org.apache.rocketmq.common.message.Message;
public class ByHash {
  public static void main(String[] a) throws Exception {
    DefaultMQProducer producer = new DefaultMQProducer("by-hash");
    producer.setNamesrvAddr(a[1]);
    producer.start();
    for (int i = 2; i < a.length; i++) {
      Message message = new Message(a[0], "", a[i], a[i].getBytes("UTF-8"));
      SendResult sent = producer.send(message, new SelectMessageQueueByHash(), a[i]);
      System.out.println("queue " + sent.getMessageQueue().getQueueId() + " " + sent.getSendStatus());
    }
    producer.shutdown();
    System.exit(0);
  }
}
JAVA
  javac -encoding UTF-8 -cp "$new/lib/*" -d "$new/noha" "$new"/{NoHa,ByHash}.java >>"$new/log" 2>&1 ||
    { tail -n 20 "$new/log" >&2; return 1; }
  echo NoHa >"$new/noha/META-INF/service/org.apache.rocketmq.store.ha.HAService"
  mv "$new" "$rocketmq_home" && touch "$rocketmq_home/whole"
  say "fetched RocketMQ in $((SECONDS - started)) s"
}

# The broker takes three ports.
rocketmq_broker_port() {
  local port near
  while :; do
    port=$(free_port "$@")
    for near in $((port - 2)) $((port + 1)); do
      [[ " $* " == *" $near "* ]] && continue 2
      (exec 3<>"/dev/tcp/127.0.0.1/$near") 2>/dev/null && continue 2
    done
    break
  done
  printf '%s\n' "$port"
}

# rocketmq_tls DIR: sets `tls`, the options for that.
rocketmq_tls() {
  tls=(-Dtls.server.mode=disabled)
  [[ -n ${ROCKETMQ_TLS-} ]] || return 0
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -keyout "$1/key.pem" -out "$1/cert.pem" -subj /CN=127.0.0.1 \
    -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE 2>/dev/null ||
    die "openssl cannot make a certificate for RocketMQ"
  printf '%s\n' tls.test.mode.enable=false "tls.server.certPath=$1/cert.pem" "tls.server.keyPath=$1/key.pem" \
    >"$1/tls.properties"
  tls=(-Dtls.server.mode=permissive "-Dtls.config.file=$1/tls.properties")
}

# rocketmq_java HOME: sets `java`, the command without the class. It writes below HOME, also its logs.
rocketmq_java() {
  mkdir -p "$1"/{tmp,home}
  java=("$(command -v java)" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xms64m -Xmx400m -XX:MaxDirectMemorySize=256m
    -XX:-UsePerfData -Djava.net.preferIPv4Stack=true -Djava.io.tmpdir="$1/tmp" -Duser.home="$1/home"
    -Drocketmq.home.dir="$1" "${tls[@]}" -cp "$rocketmq_home/noha:$rocketmq_home/lib/*")
}

rocketmq_create() {
  local dir=$1 namesrv=$1-namesrv broker store=${ROCKETMQ_STORE:-}
  local -a java tls
  port=$2
  if [[ -x $namesrv/stop ]]; then "$namesrv/stop"; fi # of an attempt before
  rm -rf "$namesrv"
  rocketmq_tls "$dir"
  rocketmq_java "$namesrv"
  printf '%s\n' "listenPort=$port" bindAddress=127.0.0.1 "kvConfigPath=$namesrv/kv.json" >"$namesrv/properties"
  settings "$namesrv" 'boot success' KILL \
    "${java[@]}" org.apache.rocketmq.namesrv.NamesrvStartup -c "$namesrv/properties"
  START_LIMIT=0 "$namesrv/start" || die "RocketMQ's name server does not start"
  # On a disk that is 90 % full it takes no messages, however much room there is; memory outlives a kill -9, too.
  if [[ -z $store && -d /dev/shm && -w /dev/shm ]]; then
    store=$(mktemp -d /dev/shm/task-retry-XXXXXX)
    ln -sfn "$store" "$dir/memory" # removed by `control stop`
  fi
  store=${store:-$dir/store}
  broker=$(rocketmq_broker_port "$port" "${ports[@]:-}")
  rocketmq_java "$dir"
  printf '%s\n' brokerClusterName=c1 brokerName=b1 brokerId=0 "namesrvAddr=127.0.0.1:$port" \
    brokerIP1=127.0.0.1 brokerIP2=127.0.0.1 bindAddress=127.0.0.1 "listenPort=$broker" \
    brokerRole=ASYNC_MASTER flushDiskType=SYNC_FLUSH \
    autoCreateTopicEnable=true autoCreateSubscriptionGroup=true defaultTopicQueueNums=4 \
    "storePathRootDir=$store" "storePathCommitLog=$store/commitlog" \
    mappedFileSizeCommitLog=16777216 mappedFileSizeConsumeQueue=600000 maxHashSlotNum=10000 maxIndexNum=40000 \
    timerWheelEnable=false diskMaxUsedSpaceRatio=95 "authConfigPath=$dir/auth" \
    "${ROCKETMQ_BROKER:-}" >"$dir/properties"
  settings "$dir" 'boot success' KILL \
    "${java[@]}" org.apache.rocketmq.broker.BrokerStartup -c "$dir/properties"
  printf '%s\n' "$broker" >"$dir/port"
  # A producer in Java, for tests.
  printf '#!/usr/bin/env bash\nexec %s ByHash "$@"\n' "$(printf '%q ' "${java[@]}" -Dfile.encoding=UTF-8)" >"$dir/by-hash"
  chmod +x "$dir/by-hash"
}
