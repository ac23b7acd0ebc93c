#!/bin/sh
# Builds the Java suite when its sources changed, then runs it with the arguments given here.
set -e
here=$(cd "$(dirname "$0")" && pwd)
jar="$here/target/interop-java.jar"
if [ ! -f "$jar" ] || [ -n "$(find "$here/src" "$here/pom.xml" -newer "$jar" -type f)" ]; then
  (cd "$here" && mvn -q -B package) >&2
fi
[ "$1" = --build ] && exit 0
exec java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$jar:$here/target/lib/*" braid.interop.Main "$@"
