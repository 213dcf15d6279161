# A Redis server of our own in the foreground: everything in DIR, TCP on loopback, TLS on the second
# port. The user `broker` may do all; `default` may not even come in. Users are kept in DIR/users.acl.
# Usage: redis.sh DIR PORT TLS_PORT PASSWORD
set -euo pipefail
dir=$1 port=$2 tls_port=$3 password=$4
. "$(dirname "$0")/tls.sh"

if [ ! -f "$dir/users.acl" ]; then
    make_certificate "$dir"
    printf 'user default off\nuser broker on >%s ~* &* +@all\n' "$password" >"$dir/users.acl"
    chown -R redis: "$dir"
fi
exec setpriv --reuid=redis --regid=redis --clear-groups redis-server \
    --bind 127.0.0.1 --port "$port" --tls-port "$tls_port" --tls-auth-clients no \
    --tls-cert-file "$dir/tls.pem" --tls-key-file "$dir/tls.key" --tls-ca-cert-file "$dir/ca.pem" \
    --dir "$dir" --aclfile "$dir/users.acl" --save "" --appendonly no
