# shellcheck shell=bash
# Where the scripts keep what they build and fetch: outside the clone, so that a fresh clone finds it again. Sourced.

PREHEAT_CACHE=${PREHEAT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/preheat}
export PREHEAT_CACHE
# Debian keeps mkfs and losetup in sbin, which is not on everybody's PATH; tools that setup built come last, so that
# those already installed win.
export PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin:$PREHEAT_CACHE/tools/bin
# The Python that runs the rigs, with the peers that they need.
# shellcheck disable=SC2034  # read by those who source this
PREHEAT_PYTHON=$PREHEAT_CACHE/venv/bin/python3
