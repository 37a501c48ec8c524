#!/bin/sh
# Finds a Chromium for the tests in the browser, or installs Debian's where this user may. Without one those tests are skipped.
set -u
for name in "${CHROMIUM:-chromium}" chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
say() { echo "beit_lab: $1"; exit 0; }
command -v apt-get >/dev/null 2>&1 || say "no Chromium and no apt-get here: the tests in the browser are skipped; install Chromium, or name one with CHROMIUM=path."
if [ "$(id -u)" = 0 ]; then as=; elif sudo -n true 2>/dev/null; then as="sudo -n"; else
  say "no Chromium here and no right to install it: the tests in the browser are skipped (on Debian: apt install chromium)."
fi
log=${TMPDIR:-/tmp}/beit_lab_chromium.$$.log
echo "Installing Chromium for the tests in the browser ..."
if $as apt-get update >"$log" 2>&1 && $as env DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y --no-install-recommends chromium fonts-dejavu-core >>"$log" 2>&1; then
  rm -f "$log"; exit 0
fi
tail -n 3 "$log"; rm -f "$log"
say "Chromium could not be installed (the last lines are above): the tests in the browser are skipped."
