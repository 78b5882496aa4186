# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # `cache` is for the servers' scripts; `work` and `ports` are tests/run's
# Sourced by tests/run: what the servers' scripts share.
#
# A server NAME is a file NAME.sh beside this one, sourced too, with
#   NAME_packages          prints the Debian packages that must still be installed
#   NAME_prepare           gets what apt-get cannot install (optional work; may be empty)
#   NAME_create DIR PORT   makes the data in DIR and calls `settings`
#   NAME_url PORT          prints the URL that the tests get as TASK_RETRY_TEST_NAME
# Each database keeps TASK_RETRY_TEST_BUFFERS MB (64) of pages in memory.

cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/task-retry
# Servers live in sbin, which the PATH of ordinary users may lack.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf 'tests/run: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
is_root() { [[ $(id -u) == 0 ]]; }

# settings DIR READY SIGNAL COMMAND…: how `control` starts and stops the server in DIR. It is ready when its log has a
# line that matches READY, and ends quickly and cleanly on SIGNAL.
settings() {
  local dir=$1 ready=$2 stop_signal=$3 verb
  local -a command=("${@:4}")
  printf '%s\n' "$port" >"$dir/port"
  printf '%s\n' "$url" >"$dir/url"
  declare -p command ready stop_signal >"$dir/settings"
  for verb in start stop; do
    printf '#!/usr/bin/env bash\nexec bash %q %s %q\n' "$work/control" "$verb" "$dir" >"$dir/$verb"
    chmod +x "$dir/$verb"
  done
}

# data_folder DIR: makes the folder DIR/data, on another disk where DATABASE_FOLDER names a folder of it.
data_folder() {
  local data=$1/data
  if [[ -n ${DATABASE_FOLDER-} ]]; then
    data=$DATABASE_FOLDER/data
    rm -rf "$data" # of an attempt before
    ln -s "$data" "$1/data"
  fi
  mkdir -m 700 "$data"
}

# free_port TAKEN…: prints a port that nothing listens on, below the range that the system hands out by itself.
free_port() {
  local port
  while :; do
    port=$((21000 + RANDOM % 8000))
    [[ " $* " == *" $port "* ]] && continue
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  printf '%s\n' "$port"
}

# install_packages PACKAGE…: by apt-get, or a word on how to get them.
install_packages() {
  (($# > 0)) || return 0
  local hint="or run tests/run --sqlite, which needs no server"
  command -v apt-get >/dev/null || die "not installed: $*, and there is no apt-get here; install it yourself, $hint"
  is_root || die "not installed: $*; only root can: sudo apt-get install $*; $hint"
  local started=$SECONDS log=$work/apt.log
  say "installing $* …"
  # --no-remove: a database that somebody uses here must not make room for ours.
  if ! { apt-get -q update &&
    DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends --no-remove \
      -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install "$@"; } </dev/null >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "apt-get could not install $*; install it yourself, $hint"
  fi
  say "installed $* in $((SECONDS - started)) s"
}

# fetched NAME TITLE PACKAGE MB HINT: gets what Debian has only in unstable: PACKAGE and all that it needs, MB large, is
# unpacked into the folder NAME/root of the cache, not installed. NAME_command ROOT sets `program`, the command with which
# the program of the PATH runs, or that in ROOT by the loader and with the libraries that it was built for, and fails if
# there is neither; HINT says what to do where nothing can be fetched.
fetched() {
  local name=$1 title=$2
  local -a program
  "${name}_command" "$cache/$name/root" && return
  mkdir -p "$cache/$name"
  (
    exec 8>"$cache/$name/lock"
    if ! flock -n 8; then
      say "another run is fetching $title; waiting for it …"
      flock 8
    fi
    "${name}_command" "$cache/$name/root" || fetch "$@"
  ) || die "no $title: see above"
}

# Unpacks it beside its place and moves it there when it has run, so that what was interrupted is never taken for whole.
fetch() {
  local name=$1 title=$2 package=$3 size=$4 hint=$5
  local root=$cache/$name/root new=$cache/$name/new started=$SECONDS mirror keyring deb attempt
  local -a apt
  mirror=$(debian_mirror)
  [[ -n $mirror ]] || { say "apt-get knows no Debian mirror to take $title from: $hint"; return 1; }
  keyring=$(printf '%s\n' /usr/share/keyrings/debian-archive-keyring.{gpg,pgp} | xargs -r ls 2>/dev/null | head -n 1)
  say "fetching $title, about $size MB, once, into $cache/$name …"
  rm -rf "$new" "$root"
  mkdir -p "$new"/{root,lists/partial,archives/partial}
  : >"$new/status"
  echo "deb ${keyring:+[signed-by=$keyring] }$mirror unstable main" >"$new/sources.list"
  apt=(apt-get -q -y -o Dir::Etc::SourceList="$new/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State::Lists="$new/lists" -o Dir::State::Status="$new/status" -o Dir::Cache="$new"
    -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o APT::Install-Recommends=0
    -o Acquire::Languages=none -o Acquire::Retries=3
    -o Acquire::Check-Valid-Until=false) # mirrors that lag do; the signatures are still checked
  for attempt in 1 2 3; do # the archive may change between the two commands
    "${apt[@]}" update && "${apt[@]}" --download-only install "$package" && break
    ((attempt < 3)) && sleep 5
  done </dev/null >"$new/log" 2>&1 || { tail -n 20 "$new/log" >&2; say "fetching $title failed"; return 1; }
  for deb in "$new"/archives/*.deb; do dpkg -x "$deb" "$new/root" || return 1; done
  if ! { "${name}_command" "$new/root" && "${program[@]}" --version; } >>"$new/log" 2>&1; then
    tail -n 20 "$new/log" >&2
    say "the $title that was fetched does not run"
    return 1
  fi
  mv "$new/root" "$root" || return 1
  rm -rf "$new"
  say "fetched $title in $((SECONDS - started)) s"
}

debian_mirror() {
  local attempt
  for attempt in 1 2; do
    # shellcheck disable=SC2016 # apt-get's own variable
    apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' 'Created-By: Packages' 2>/dev/null |
      grep -m 1 . && return
    # A new machine has no lists yet.
    ((attempt == 1)) && is_root && apt-get -q update </dev/null >/dev/null 2>&1 || return 0
  done
}

# loader_of ROOT: prints the loader of the system that is unpacked there; its libraries are beside it.
loader_of() { printf '%s\n' "$1"/usr/lib/*-linux-gnu*/ld-linux*.so.* | head -n 1; }

# start_server NAME: creates and starts one server; run in a job of its own, beside the others.
start_server() {
  local name=$1 dir=$work/servers/$1 port=$2 url attempt started=$SECONDS
  export LC_ALL=C # their messages are read
  "${name}_prepare"
  for attempt in 1 2 3; do
    url=$("${name}_url" "$port")
    mkdir -p "$dir"
    "${name}_create" "$dir" "$port"
    if START_LIMIT=0 "$dir/start"; then
      say "$name runs on port $port ($((SECONDS - started)) s)"
      return
    fi
    grep -qiE 'address already in use|port.*(is|already) in use' "$dir/log" || break
    say "port $port was taken meanwhile; $name tries another (attempt $attempt)"
    rm -rf "$dir"
    port=$(free_port "${ports[@]}")
  done
  die "$name did not start"
}
