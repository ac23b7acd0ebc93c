#!/bin/sh
# The classic tutorials with lapin: rust.sh URI
# One line `ok rust NAME` or `not ok rust NAME: reason` each; exit code 1 if any is not ok.
here=$(cd "$(dirname "$0")" && pwd)
uri=${1:-${BRAID_AMQP_URI:?usage: rust.sh URI}}
exec cargo run -q --manifest-path "$here/../lapin/Cargo.toml" --bin interop-tutorials -- "$uri"
