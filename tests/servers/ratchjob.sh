# shellcheck shell=bash disable=SC2154 # `cache` is from lib.sh
# Sourced by tests/run: ratchjob, an xxl-job admin that we did not write. It listens on all interfaces, so it is no server
# like the others: a test starts it in a network namespace of its own.

ratchjob_version=0.3.1
ratchjob_program=$cache/ratchjob/$ratchjob_version/bin/ratchjob

# ratchjob_possible: whether a network namespace can be made here.
ratchjob_possible() {
  local -a unshare=(unshare --net)
  is_root || unshare=(unshare --user --map-root-user --net)
  command -v ip >/dev/null && "${unshare[@]}" ip link set lo up 2>/dev/null
}

ratchjob_packages() {
  [[ -x $ratchjob_program ]] && return
  command -v c++ >/dev/null || echo g++
}

ratchjob_prepare() {
  [[ -x $ratchjob_program ]] && return
  mkdir -p "$cache/ratchjob"
  (
    exec 8>"$cache/ratchjob/lock"
    if ! flock -n 8; then
      say "another run is building ratchjob; waiting for it …"
      flock 8
    fi
    [[ -x $ratchjob_program ]] || ratchjob_build
  ) || die "no ratchjob: see above, or run tests/run --quick, which leaves it out"
}

# Builds it beside its place, so that what was interrupted is never taken for whole.
ratchjob_build() {
  local new=$cache/ratchjob/new started=$SECONDS
  say "building ratchjob $ratchjob_version, once, into $cache/ratchjob: this takes some minutes …"
  rm -rf "$new"
  mkdir -p "$new"
  if ! CARGO_TARGET_DIR=$new/target CARGO_INCREMENTAL=0 nice cargo install ratchjob \
    --version "$ratchjob_version" --locked --root "$new/root" </dev/null >"$cache/ratchjob/log" 2>&1; then
    tail -n 20 "$cache/ratchjob/log" >&2
    say "building ratchjob failed"
    return 1
  fi
  mkdir -p "${ratchjob_program%/*}"
  mv "$new/root/bin/ratchjob" "$ratchjob_program" || return 1
  rm -rf "$new"
  say "built ratchjob in $((SECONDS - started)) s"
}
