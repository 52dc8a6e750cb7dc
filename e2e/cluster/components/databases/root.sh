#!/usr/bin/env bash
# Makes the two folders of an image with PostgreSQL, MariaDB and Redis, from this machine's Debian packages.
#
#   root.sh FOLDER        makes FOLDER/system, the programs with their libraries, and FOLDER/data, which becomes /data:
#                         empty databases, and a certificate for their own TLS
#   root.sh --packages    installs missing packages, and prints their versions
#
# In PostgreSQL and MariaDB user `shop` has the password `shop`, and must use TLS.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib.sh"

# As the image runs them. initdb refuses root, and users without a name.
user=nobody

main() {
  case ${1-} in
    --packages)
      need_commands mariadbd:mariadb-server-core mariadb:mariadb-client-core redis-server:redis-server
      [[ -d /usr/lib/postgresql ]] || install_packages postgresql
      find_postgres
      dpkg-query --show postgresql-{,client-}"${postgres##*/}" mariadb-{server,client}-core redis-{server,tools}
      ;;
    -h | --help) usage ;;
    *) find_postgres; make_system "$1/system"; make_data "$1/data" ;;
  esac
}

# Sets `postgres` to the folder of the newest version.
find_postgres() { postgres=$(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 | sort --version-sort | tail -1); }

make_system() {
  local root=$1 path
  local programs=("$postgres"/bin/{postgres,psql} /usr/sbin/mariadbd /usr/bin/{mariadb,redis-server,redis-cli,sleep})
  local files=("$postgres"/lib/{plpgsql,dict_snowball}.so /usr/share/postgresql/"${postgres##*/}" /usr/share/mysql)
  for path in "${programs[@]}" "${files[@]}"; do
    mkdir -p "$root$(dirname "$path")"
    cp --recursive --dereference "$path" "$root$path"
  done
  for path in "${programs[@]}"; do copy_libraries "$root" "$path"; done
  # The same name for each version.
  ln -s "$postgres/bin" "$root/postgres"
}

# The image has no shell, so the databases are made here. Their programs do not run as root, and need a folder that
# their user can enter.
make_data() {
  local work
  work=$(mktemp -d)
  mkdir "$work/tmp"
  make_certificate "$work"
  echo shop >"$work/password"
  chown --recursive "$user:" "$work"
  make_postgres "$work"
  make_mariadb "$work"
  mv "$work" "$1"
}

make_certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=databases \
    -keyout "$1/tls.key" -out "$1/tls.crt"
  chmod 600 "$1/tls.key"
}

make_postgres() {
  as_user "$postgres/bin/initdb" --pgdata "$1/postgres" --locale C --encoding UTF8 --username shop \
    --auth scram-sha-256 --pwfile "$1/password" --no-sync
  echo 'hostssl all all all scram-sha-256' >"$1/postgres/pg_hba.conf"
  cat >>"$1/postgres/postgresql.conf" <<'EOF'
listen_addresses = '*'
unix_socket_directories = '/data/tmp'
ssl = on
ssl_cert_file = '/data/tls.crt'
ssl_key_file = '/data/tls.key'
timezone = 'GMT'
log_timezone = 'GMT'
shared_buffers = 16MB
fsync = off
EOF
}

make_mariadb() {
  as_user mariadb-install-db --no-defaults --datadir="$1/mariadb" --skip-test-db --innodb-log-file-size=4M \
    --auth-root-authentication-method=normal
  cat >"$1/mariadb.cnf" <<'EOF'
[mariadbd]
datadir = /data/mariadb
tmpdir = /data/tmp
socket = /data/tmp/mariadb.sock
init_file = /data/mariadb.sql
ssl_cert = /data/tls.crt
ssl_key = /data/tls.key
innodb_log_file_size = 4M
innodb_buffer_pool_size = 16M
innodb_flush_log_at_trx_commit = 0
EOF
  cat >"$1/mariadb.sql" <<'EOF'
CREATE DATABASE IF NOT EXISTS shop;
CREATE USER IF NOT EXISTS shop@'%' IDENTIFIED BY 'shop' REQUIRE SSL;
GRANT ALL ON shop.* TO shop@'%';
EOF
}

as_user() { (cd / && setpriv --reuid "$user" --regid nogroup --clear-groups -- "$@"); }

main "$@"
