#!/usr/bin/env bash
# Debian packages that pip cannot bring, by group; installs only what is missing, as root or with sudo.
#   browser   the browser that the report's tests look through
#   services  PostgreSQL and the S3 server (Ceph's gateway) of `make stack`
# Usage: bash infra/install_services.sh GROUP...
set -euo pipefail

missing=()
need() {  # need FILE PACKAGE: an installed package has that file
  [ -e "$1" ] || missing+=("$2")
}

for group in "$@"; do
  case "$group" in
    browser)
      need /usr/bin/chromium chromium
      ;;
    services)
      compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
      need /usr/bin/ceph-mon ceph-mon
      need /usr/bin/ceph-osd ceph-osd
      need /usr/bin/radosgw radosgw
      ;;
    *)
      echo "install_services: '$group' is not a group: browser, services" >&2
      exit 2
      ;;
  esac
done

if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
  "${as_root[@]}" apt-get update -qq
  install() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; }
  if [[ " ${missing[*]} " == *" postgresql "* ]]; then
    # The package would make a server of its own and start it; only the programs are wanted.
    install postgresql-common
    "${as_root[@]}" sed -ri 's/^#?create_main_cluster .*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
  fi
  install "${missing[@]}"
fi
