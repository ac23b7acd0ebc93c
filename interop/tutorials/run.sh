#!/bin/sh
# Runs the six tutorial programs of one language against a broker.
# usage: run.sh URI python|node|go|java|rust
# PYTHON: the interpreter (one that has pika). AMQPLIB, JAVA_SUITE: copies of ../amqplib and ../java that are built already.
set -eu
uri=${1:?usage: run.sh URI python|node|go|java|rust}
lang=${2:?usage: run.sh URI python|node|go|java|rust}
cd "$(dirname "$0")"
case $lang in
java | rust) exec "./$lang.sh" "$uri" ;;
python) run() { "${PYTHON:-python3}" python/tutorials.py "$uri" "$1"; } ;;
node)
    [ -d "${AMQPLIB:-../amqplib}/node_modules" ] || (cd ../amqplib && npm ci >&2)
    run() { node node/tutorials.js "$uri" "$1"; }
    ;;
go)
    binary=$(mktemp)
    trap 'rm -f "$binary"' EXIT
    (cd go && go build -o "$binary" .)
    run() { "$binary" "$uri" "$1"; }
    ;;
*)
    echo "no tutorials in $lang" >&2
    exit 2
    ;;
esac
failed=0
for name in work_queue publish_subscribe routing topics rpc confirms; do
    if error=$(run $name 2>&1); then
        echo "ok $lang $name"
    else
        failed=1
        echo "not ok $lang $name: $(echo "$error" | tail -n 3 | tr '\n' ' ')"
    fi
done
exit $failed
