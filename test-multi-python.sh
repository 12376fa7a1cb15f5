#!/usr/bin/env bash
# Runs the tests on several Pythons, each in a virtual environment of its own.
#
#   ./test-multi-python.sh                           every Python from 3.11 to 3.14 that is found
#   ./test-multi-python.sh 3.12 /opt/python/bin/python3.14
#   ./test-multi-python.sh 3.13 -- -n 2 -k rm        what follows -- goes to pytest (default: -n auto)
#
# Each run leaves a log, test_results_3_13.log. The environments are kept in build/pythons, so that a second run is
# quick; `make clean` removes them. Exits 1 when a run fails, when a Python that was named is not there, or when none
# was found. Written for bash 3.2, which is macOS's.
set -u
cd "$(dirname "$0")" || exit 1

readonly SUPPORTED="3.11 3.12 3.13 3.14"
readonly RELEASE='import sys; print("%d.%d" % sys.version_info[:2])'

# Prints the Python of a release: from the search path, from pyenv, or nothing. A shim of pyenv may lead nowhere.
find_python() {
  local candidate
  for candidate in "python$1" "$HOME/.pyenv/versions/$1".*/bin/python python3; do
    if [ "$("$candidate" -c "$RELEASE" 2>/dev/null)" = "$1" ]; then
      command -v "$candidate"
      return
    fi
  done
}

# Makes the environment of a release ready: $1 is its folder, $2 the Python.
install() {
  [ -x "$1/bin/python" ] || "$2" -m venv --clear "$1" || return
  "$1/bin/python" -m pip install --quiet --editable '.[test]'
}

# Installs and tests; prints one line of the summary: $1 is the Python, the rest are pytest's arguments.
run_on() {
  local python=$1 release place log begun result counts
  shift
  release=$("$python" -c "$RELEASE") || return 1
  place=build/pythons/$release
  log=test_results_${release//./_}.log
  begun=$SECONDS
  result=passed
  echo "Python $release ($python): see $log" >&2
  { "$python" --version && install "$place" "$python" && "$place/bin/python" -m pytest "$@"; } >"$log" 2>&1 ||
    result=FAILED
  counts=$(grep -E '^(=+ )?[0-9]+ [a-z]+(, | in ).*[0-9]s' "$log" | tail -n 1 | sed 's/^=* *//; s/ in [0-9.]*s.*//')
  printf '%-8s %-7s %5ds  %-50s  %s\n' "$release" "$result" $((SECONDS - begun)) "${counts:-no tests were run}" "$log"
  [ "$result" = passed ]
}

wanted=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  wanted+=("$1")
  shift
done
[ "${1:-}" = -- ] && shift
[ $# -gt 0 ] || set -- -n auto

pythons=()
missing=0
for name in ${wanted[@]+"${wanted[@]}"}; do
  case $name in
    [0-9].[0-9]*) python=$(find_python "$name") ;;
    *) python=$(command -v "$name") ;;
  esac
  if [ -z "$python" ]; then
    echo "$0: no Python $name was found" >&2
    missing=1
  else
    pythons+=("$python")
  fi
done
if [ ${#wanted[@]} -eq 0 ]; then
  for name in $SUPPORTED; do
    python=$(find_python "$name")
    [ -z "$python" ] || pythons+=("$python")
  done
  [ ${#pythons[@]} -gt 0 ] || echo "$0: none of Python $SUPPORTED was found" >&2
fi

failed=$missing
[ ${#pythons[@]} -gt 0 ] || failed=1
summary=
for python in ${pythons[@]+"${pythons[@]}"}; do
  line=$(run_on "$python" "$@") || failed=1
  summary+="$line"$'\n'
done
[ -z "$summary" ] || printf '\n%-8s %-7s %6s  %-50s  %s\n%s' Python Result Time Tests Log "$summary"
exit "$failed"
