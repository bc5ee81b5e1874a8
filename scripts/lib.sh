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

# bounded PROGRAM... ends what a package registry keeps waiting for too long.
bounded() { timeout --kill-after=10 "${TAPVHD_INSTALL_TIMEOUT:-1200}" "$@"; }

# debian PACKAGE... installs packages, with sudo's help where that is needed; upgrades none.
debian() {
  local get=(env DEBIAN_FRONTEND=noninteractive apt-get) ask=()
  has apt-get || die "please install what these Debian packages bring: $*"
  if ((EUID != 0)); then
    # A question for the password is only for someone who can answer it.
    [[ -t 0 ]] || ask=(--non-interactive)
    { has sudo && sudo "${ask[@]}" true; } || die "as root, please: apt-get install --no-upgrade $*"
    get=(sudo "${get[@]}")
  fi
  step "Debian's package lists" bounded "${get[@]}" update
  step "Debian's $*" bounded "${get[@]}" install -y --no-install-recommends --no-upgrade "$@"
}
