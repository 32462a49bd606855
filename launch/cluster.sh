# Sourced by the launchers of clusters: goes to the repository's root and defines what they share.
source "${BASH_SOURCE[0]%/*}/install.sh"
SHIPPED=(configs constraints.txt dit_jax launch pyproject.toml README.md setup.py)

# need TOOL "$#" VARIABLE...: fails where a variable, the flags of dit_jax.main or TOOL is missing.
need() {
  local name
  for name in "${@:3}"; do
    [ "${!name:-}" ] || fail "$name is not set; put $name=... before the command"
  done
  [ "$2" -gt 0 ] || fail "got no flags for dit_jax.main; give --config=FILE.py --workdir=DIR"
  command -v "$1" > /dev/null || fail "$1 is not on PATH; install it"
}

# on_tpu_vm WORD...: sends this tree to every host of the TPU VM $NAME and calls train_here there.
on_tpu_vm() {
  archive=$(mktemp -d)/dit_jax.tgz
  trap 'rm -r "${archive%/*}"' EXIT
  tar -czf "$archive" --exclude=__pycache__ "${SHIPPED[@]}"
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:" --worker=all "${where[@]}"
  gcloud compute tpus tpu-vm ssh "$NAME" --worker=all "${where[@]}" --command="{ ${SETUP:-:}
} && mkdir -p dit_jax && tar -xzf dit_jax.tgz -C dit_jax && source dit_jax/launch/cluster.sh &&
  train_here$(printf ' %q' "$EXTRAS" "$@")"
}

# train_here EXTRAS WORD...: installs and trains. The run outlives the connection: a second call
# follows it while it lasts, and resumes it afterwards.
train_here() {
  find_python "${PYTHONS[@]}" > /dev/null || # Ubuntu 22.04 has 3.10
    { sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv; }
  install .venv "$1" "${PYTHONS[@]}"
  exec 9> run.lock
  flock -n 9 && { # the lock is this subshell's, not that of any worker that python may leave
    rm -f run.code; : > run.log # here, and not beside the tail that reads it
    (trap '' HUP; DIT_JAX_DISTRIBUTED=1 "$python" -m dit_jax.main "${@:2}" 9>&-
      echo $? > run.code) &>> run.log < /dev/null & echo $! > run.pid; }
  exec 9>&-
  tail -n +1 -f --pid="$(cat run.pid)" run.log
  return "$(cat run.code)"
}
