#!/usr/bin/env bash
# What scripts that start several processes share; they `source` it.

# exit_code_of PID: wait for a child, whatever signals come meanwhile; return its exit code.
exit_code_of() {
  local code=0
  wait "$1" || code=$?
  while kill -0 "$1" 2>/dev/null; do # a signal to this script ends `wait` too early
    code=0
    wait "$1" || code=$?
  done
  return "$code"
}
