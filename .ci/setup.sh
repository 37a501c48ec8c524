#!/bin/sh
# Makes the environment: sh .ci/setup.sh VENV. Every way in which this can fail gets one sentence.
set -u
venv=$1
needed_gb=9

stop() { printf '\nbeit_lab: %s\n' "$1" >&2; exit 1; }

# An environment of the reader's own is used as it is; we only say what is missing in it.
if [ "$venv" != .venv ]; then
  [ -x "$venv/bin/python" ] || stop "VENV=$venv has no bin/python: create that environment first, or leave VENV out and let make create .venv."
  "$venv/bin/python" .ci/missing.py || stop "VENV=$venv lacks the packages above: run '$venv/bin/python -m pip install -e .[test]' and try again."
  exit 0
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
  for name in python3.11 python3.12 python3.13 python3.10 python3; do
    if command -v "$name" >/dev/null 2>&1 && "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then python=$name; break; fi
  done
fi
if [ -z "$python" ]; then
  found=$(python3 --version 2>/dev/null || echo "no Python at all")
  stop "needs Python 3.10 to 3.13 and found $found: install one, or name it with 'make demo PYTHON=/path/to/python3.11'."
fi
command -v "$python" >/dev/null 2>&1 || stop "PYTHON=$python cannot be run: name a Python 3.10 to 3.13."
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || stop "PYTHON=$python is $("$python" --version 2>&1), but 3.10 to 3.13 is needed."
"$python" -c 'import venv, ensurepip' 2>/dev/null || stop "this Python has no venv module: install it (on Debian or Ubuntu: apt install python3-venv) and try again."

if [ ! -x .venv/bin/python ]; then
  free_gb=$(df -Pk . | awk 'NR==2 {print int($4/1048576)}')
  [ "$free_gb" -ge "$needed_gb" ] || stop "the environment needs about $needed_gb GB and only $free_gb GB are free here: make room, or use an environment you have with VENV=path."
  echo "Creating .venv: torch, fastai, JupyterLab and friends take about 7 GB on Linux and four minutes on a good line."
  "$python" -m venv .venv || stop "could not create .venv here: is this folder writable?"
fi

# What was tested is pinned for Python 3.11; other versions take the ranges of settings.ini.
pins=
if .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then pins="-c constraints.txt"; fi
log=.venv/install.log
echo "Installing (details in $log) ..."
if ! .venv/bin/python -m pip install --disable-pip-version-check -q $pins -e '.[test]' >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  if grep -qiE 'connection|resolve|network|timed out|No matching distribution' "$log"; then stop "the packages could not be fetched: check the network (or the proxy) and run the same command again; it continues where it stopped."; fi
  stop "the installation failed; the last lines are above, the whole log is $log."
fi
peers=$(sed -n 's/^peer_requirements *= *//p' settings.ini)
.venv/bin/python -m pip install --disable-pip-version-check -q --no-deps $peers >>"$log" 2>&1 || echo "beit_lab: $peers could not be fetched; tests that compare with it will be skipped."
