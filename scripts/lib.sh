# shellcheck shell=bash
# To be sourced by the scripts beside it: moves to the project's root, sets PATH, and gives the words to report with.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
. scripts/env

say() { printf '%s\n' "$*" >&2; }
die() {
  say "$0: $*"
  exit 1
}

# step TEXT COMMAND... runs a command that takes a while: says so, shows its output only when it fails.
step() {
  local text=$1 log start=$SECONDS status=0
  shift
  log=$(mktemp)
  printf '  %s ... ' "$text" >&2
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if ((status == 0)); then
    say "$((SECONDS - start)) s"
  else
    say "failed after $((SECONDS - start)) s:"
    tail -n 60 "$log" >&2
  fi
  rm -f "$log"
  return "$status"
}

# stale OUTPUT INPUT... is true when the output is missing or older than any file or folder among the inputs.
stale() {
  local output=$1 input
  shift
  [[ -e $output ]] || return 0
  for input; do
    [[ -e $input ]] && [[ -n $(find "$input" -newer "$output" -print -quit) ]] && return 0
  done
  return 1
}

has() { command -v "$1" >/dev/null; }

# The hours that a package registry may keep a command waiting are no reason to wait them.
bounded() { timeout --kill-after=10 "${TAPVHD_INSTALL_TIMEOUT:-1200}" "$@"; }

as_root() {
  if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}
