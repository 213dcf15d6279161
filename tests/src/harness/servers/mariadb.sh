# A MariaDB server of our own in the foreground: data, socket, log and certificate in DIR, TCP on
# loopback. The account `broker` may make others; every statement is in DIR/general.log.
# Usage: mariadb.sh DIR PORT PASSWORD
set -euo pipefail
dir=$1 port=$2 password=$3
started=()
PATH="$PATH:/usr/sbin"
. "$(dirname "$0")/tls.sh"

if [ ! -d "$dir/data" ]; then
    make_certificate "$dir"
    mkdir "$dir/data"
    # One file says who there is, before anybody can connect.
    cat >"$dir/init.sql" <<SQL
CREATE USER IF NOT EXISTS 'broker'@'%' IDENTIFIED BY '$password';
GRANT ALL PRIVILEGES ON *.* TO 'broker'@'%' WITH GRANT OPTION;
CREATE DATABASE IF NOT EXISTS shop;
SQL
    chown -R mysql: "$dir"
    mariadb-install-db --no-defaults --user=mysql --datadir="$dir/data" --skip-test-db \
        --auth-root-authentication-method=normal --skip-name-resolve >"$dir/install.log" 2>&1
    started=(--init-file="$dir/init.sql")
fi
exec setpriv --reuid=mysql --regid=mysql --clear-groups mariadbd --no-defaults \
    --datadir="$dir/data" --socket="$dir/mariadb.sock" --pid-file="$dir/mariadb.pid" \
    --bind-address=127.0.0.1 --port="$port" --skip-name-resolve \
    --ssl-cert="$dir/tls.pem" --ssl-key="$dir/tls.key" --ssl-ca="$dir/ca.pem" \
    --general-log=1 --general-log-file="$dir/general.log" --event-scheduler=on \
    --innodb-buffer-pool-size=16M --innodb-log-file-size=8M --performance-schema=off \
    "${started[@]}"
