#!/bin/sh
# Runs the Go client's own integration tests against a broker.
# usage: integration.sh [amqp://guest:guest@127.0.0.1:5672/] [more flags of go test]
# WITH_MANAGEMENT=1 runs those too that need RabbitMQ's management API (they ask localhost:15672). README.md lists them.
set -eu
uri=${1:-${BRAID_AMQP_URI:-amqp://guest:guest@127.0.0.1:5672/}}
[ $# -eq 0 ] || shift
cd "$(dirname "$0")"
module=$(go mod download -json github.com/rabbitmq/amqp091-go | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p')
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cp -R "$module/." "$work"
chmod -R u+w "$work"
management='Publish|Consume|CustomSASLPlainAuth|ChannelIDReservation|LifeCycleNotifyStateChange|CancelInterrupt|ExclusiveQueue|DeletedQueueSkip'
management="$management|TopologyOnlyTransient|MultiChannelTopology|TopologyAllEnabled|TopologyDisabled|ExhaustionDoesNotPanic|AutoDeleteTopologyForgotten"
management="$management|AutoDeleteExchangeCascade|SkipAndContinue|ConsumerNotForgottenAfterFailedResubscribe"
skip='^TestConnection_Close_WhenMemoryAlarmIsActive$'
[ -n "${WITH_MANAGEMENT:-}" ] || skip="$skip|^TestConnectionRecovery($management)\$"
cd "$work"
AMQP_URL=$uri go test -tags integration -v -count=1 -timeout 10m -skip "$skip" "$@" .
