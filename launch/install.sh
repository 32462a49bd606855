# Sourced by test.sh and demo.sh: goes to the repository's root and defines `install`.
PYTHONS=(python3 python3.13 python3.12 python3.11) # the first that fits makes the environment

fail() {
  echo "${0##*/}: $*" >&2
  exit 2
}

find_python() { # prints the first of its arguments that dit_jax runs on and that can make a venv
  local check='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
  local candidate
  for candidate in "$@"; do
    if "$candidate" -c "$check" 2> /dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# install VENV EXTRAS PYTHON...: makes VENV with the first PYTHON that fits and installs
# dit_jax[EXTRAS] with the versions of constraints.txt; leaves VENV's interpreter in $python.
# A stamp of what was installed, and where, makes the next call free.
install() {
  local venv=$1 extras=$2 stamp=$1/installed-$2 base want
  shift 2
  if [ ! -e "$venv/bin" ]; then
    base=$(find_python "$@") || fail "found no Python 3.11 to 3.13 with venv as $*; install one"
    "$base" -m venv "$venv" || fail "$base cannot make $venv, see above"
  fi
  python=$(find_python "$PWD/$venv/bin/python") || fail "$venv has no Python 3.11 to 3.13, remove it"
  want=$({ pwd && cat setup.py constraints.txt launch/install.sh; } | cksum)
  [ "$(cat "$stamp" 2> /dev/null)" != "$want" ] || return 0
  echo "Installing dit_jax[$extras] into $venv (takes minutes the first time)"
  "$python" -m pip install -qq --disable-pip-version-check -e ".[$extras]" -c constraints.txt ||
    fail "pip could not install dit_jax[$extras], see above"
  echo "$want" > "$stamp"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
