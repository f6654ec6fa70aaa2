# Sourced by quickstart and test: runs the stages of a script, each announced and timed.

stages_start=$SECONDS

total_seconds() { echo $((SECONDS - stages_start)); }

# stage NAME COMMAND...: prints a heading, runs the command, prints its seconds; its exit code is
# returned.
stage() {
  local name=$1 start=$SECONDS status=0 options=$-
  shift
  printf '\n== %s\n' "$name"
  # Not `"$@" || ...`: that would switch off errexit inside a function that is a stage.
  set +e
  (set -e; "$@")
  status=$?
  case $options in *e*) set -e ;; esac
  if [ $status = 0 ]; then
    printf '== %s: %d s\n' "$name" $((SECONDS - start))
  else
    printf '== %s: failed after %d s with exit code %d\n' "$name" $((SECONDS - start)) $status >&2
  fi
  return $status
}
