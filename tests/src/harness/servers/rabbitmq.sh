# A RabbitMQ node of our own in the foreground, which meets no other: everything in DIR, AMQP and the
# management API (with TLS on the third port) on loopback, and an epmd (Erlang's port mapper) of its
# own, which ends with it. Usage: rabbitmq.sh DIR PORT HTTP_PORT HTTPS_PORT EPMD_PORT DIST_PORT PASSWORD
set -euo pipefail
dir=$1 port=$2 http_port=$3 https_port=$4 epmd_port=$5 dist_port=$6 password=$7
. "$(dirname "$0")/tls.sh"

if [ ! -f "$dir/rabbitmq.conf" ]; then
    make_certificate "$dir"
    cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.default = 127.0.0.1:$port
management.tcp.ip = 127.0.0.1
management.tcp.port = $http_port
management.ssl.ip = 127.0.0.1
management.ssl.port = $https_port
management.ssl.cacertfile = $dir/ca.pem
management.ssl.certfile = $dir/tls.pem
management.ssl.keyfile = $dir/tls.key
default_user = broker
default_pass = $password
log.console = true
log.console.level = info
log.file = false
disk_free_limit.absolute = 1MB
CONF
    echo '[rabbitmq_management].' >"$dir/enabled_plugins"
    : >"$dir/env.conf"
    mkdir "$dir/mnesia"
    chown -R rabbitmq: "$dir"
fi
export HOME=$dir ERL_EPMD_PORT=$epmd_port ERL_EPMD_ADDRESS=127.0.0.1
export RABBITMQ_NODENAME=mayfly-$port@localhost RABBITMQ_DIST_PORT=$dist_port
export RABBITMQ_CONF_ENV_FILE=$dir/env.conf RABBITMQ_CONFIG_FILE=$dir/rabbitmq
export RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins RABBITMQ_PID_FILE=$dir/pid
export RABBITMQ_MNESIA_BASE=$dir/mnesia RABBITMQ_LOG_BASE=$dir
# Small: few threads that wait without spinning, two schedulers.
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
as_user=(setpriv --reuid=rabbitmq --regid=rabbitmq --clear-groups)

# Before the node, which would start one that stays for ever.
while epmd -names >/dev/null 2>&1; do sleep 0.1; done
"${as_user[@]}" epmd &
until epmd -names >/dev/null 2>&1; do sleep 0.05; done
# A group of its own: nothing of it is of use when this ends, and an orderly end takes seconds.
setsid "${as_user[@]}" /usr/lib/rabbitmq/bin/rabbitmq-server &
server=$!
trap 'kill -KILL -- -$server %1' EXIT
trap exit TERM
wait "$server"
