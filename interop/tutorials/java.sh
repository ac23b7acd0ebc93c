#!/bin/sh
# The classic tutorials with the RabbitMQ Java client: java.sh URI
# One line `ok java NAME` or `not ok java NAME` each; exit code 1 if any is not ok.
here=$(cd "$(dirname "$0")" && pwd)
uri=${1:-${BRAID_AMQP_URI:?usage: java.sh URI}}
uri=${uri%/} # "amqp://host:port/" would be the vhost with the empty name
suite=${JAVA_SUITE:-$here/../java}
"$suite/run.sh" --build || exit 1
failed=0
for tutorial in hello=Hello work_queue=WorkQueues publish_subscribe=PublishSubscribe routing=Routing topics=Topics rpc=Rpc \
  confirms=Confirms; do
  java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$suite/target/lib/*" "$here/java/${tutorial#*=}.java" "$uri" \
    || { echo "not ok java ${tutorial%%=*}"; failed=1; }
done
exit $failed
