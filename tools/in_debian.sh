#!/usr/bin/env bash
# Runs a command in a separate Debian, which sees this tree at the same path; needs root and debootstrap.
#
#   tools/in_debian.sh trixie /var/tmp/trixie ./test-multi-python.sh     # Python 3.13
#   tools/in_debian.sh sid /var/tmp/sid ./test-multi-python.sh           # Python 3.14
#
# The folder is made on first use, with copies of the certificates and pip's settings. Only the command sees the mounts in
# it, and they disappear when it ends.
set -euo pipefail

[ $# -ge 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
suite=$1 root=$2
shift 2
tree=$(cd "$(dirname "$0")/.." && pwd)

if [ ! -e "$root/.ready" ]; then
  packages=python3,python3-venv,ca-certificates,git,g++,make,procps,curl,jq,zsh,fish
  debootstrap --variant=minbase --include="$packages" "$suite" "$root"
  cp -L /etc/resolv.conf "$root/etc/resolv.conf"
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  for settings in /etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf"; do
    if [ -e "$settings" ]; then
      mkdir -p "$root$(dirname "$settings")"
      cp "$settings" "$root$settings"
    fi
  done
  touch "$root/.ready"
fi

mkdir -p "$root$tree"
export root tree
exec unshare --mount --fork bash -euc '
  mount --rbind /dev "$root/dev"
  mount --bind "$tree" "$root$tree"
  mount -t proc proc "$root/proc"
  exec chroot "$root" bash -c "cd \"\$0\" && exec \"\$@\"" "$tree" "$@"
' in_debian "$@"
