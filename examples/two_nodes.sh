#!/usr/bin/env bash
# A head and two workers, without shared storage: worker 1 dies in the middle of its training, and
# its trial goes on at worker 2 from the newest checkpoint that the head has.
#
# Each node is a directory here, with a home of its own; on a cluster each is a machine, and the
# commands are the same.
set -euo pipefail

command="${ASYNCSYNC:-asyncsync}"
examples="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
nodes="$(mktemp -d)"
head_pid=""
finish() {
    [ -z "$head_pid" ] || kill "$head_pid" 2>/dev/null || true
    wait
    rm -rf "$nodes"
}
trap finish EXIT
unset ASYNCSYNC_JOIN XDG_CONFIG_HOME XDG_STATE_HOME XDG_CACHE_HOME
on() { # on NODE COMMAND ...: runs a command on a node
    cd "$nodes/$1"
    HOME="$nodes/$1" exec "${@:2}"
}
mkdir "$nodes/head" "$nodes/worker1" "$nodes/worker2" "$nodes/head/trees"

# On the head: set it up and serve. The line that it prints is all that a worker needs. With
# `--listen 0.0.0.0:7420` other machines reach it.
mkfifo "$nodes/line"
(on head $command head --init --root trees --listen 127.0.0.1:0 --name 127.0.0.1 -q) >"$nodes/line" &
head_pid=$!
read -r line <"$nodes/line"

# On each worker: join. The line comes by standard input, where nobody else sees it.
for worker in worker1 worker2; do
    printf '%s\n' "$line" | (on $worker $command join -q)
done
location="$(on head $command head --status -q | head -n 1)"

# Worker 1 trains, and dies without a word while it goes on: `kill -9`, at step 6 of 10.
(on worker1 python3 "$examples/two_nodes.py" "$location/exp/trial_1" --die-at 6) ||
    echo "worker 1 died"

# Worker 2 takes the trial over: it looks for the newest checkpoint at the head, and trains on.
(on worker2 python3 "$examples/two_nodes.py" "$location/exp/trial_1")
