#!/usr/bin/env bash
# A three-node Patroni cluster (PostgreSQL 15, etcd 3.4 on Debian 12) with synchronous replication, on 127.0.0.1 alone.
#   patroni-cluster.sh start|status|leader|url|kill-node [NAME]|kill-postgres [NAME]|freeze-node [NAME]|freeze-postgres [NAME]|thaw-node NAME|revive NAME|wait-leader [NOT]|wait-sync|guard|stop
# Needs: apt-get install postgresql etcd-server jq openssl curl, and for Debian's Patroni: patroni python3-etcd python3-psycopg2
# Ends only processes whose pid it wrote under $HOME_DIR, and those that `guard` reads.
set -euo pipefail
HOME_DIR=${PATRONI_HOME:-/var/tmp/pinseal-patroni}
BASE=${PATRONI_BASE_PORT:-23000}           # etcd BASE+{1,2,3}0, peers +{1,2,3}1, PostgreSQL +{1,2,3}2, REST +{1,2,3}3
NODES=${PATRONI_NODES:-3}
PATIENCE=180                               # seconds
TTL=${PATRONI_TTL:-20} LOOP=${PATRONI_LOOP:-2} RETRY=${PATRONI_RETRY:-3}
PG=${PG_BIN:-$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -1)}
ME=$(id -un); RUN_AS=postgres
as() { if [ "$ME" = root ]; then exec setpriv --reuid=$RUN_AS --regid=$RUN_AS --init-groups env HOME="$HOME_DIR" "$@"; else exec "$@"; fi; } # only ever in the background: $! is then the program itself
port() { echo $((BASE + $1 * 10 + $2)); }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN{printf "%.1f", b-a}'; }
number() { echo "${1#n}"; }
all() { seq 1 "$NODES"; }
give() { [ "$ME" != root ] || chown $RUN_AS: "$@"; }

passwords() { # of each role in a file, and of those that `url` names in a file for psql; no command line ever has one
  local role; mkdir -m 700 "$HOME_DIR/passwords"
  for role in postgres replicator rewinder pinseal; do (umask 077; openssl rand -hex 16 >"$HOME_DIR/passwords/$role"); done
  (umask 077; for role in postgres pinseal; do echo "127.0.0.1:*:*:$role:$(password $role)"; done >"$HOME_DIR/passwords/pgpass")
}
password() { cat "$HOME_DIR/passwords/$1"; }

certificates() {
  [ -f "$HOME_DIR/tls/ca.pem" ] && return
  mkdir -p "$HOME_DIR/tls"; cd "$HOME_DIR/tls"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 30 -subj "/CN=test database CA" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj "/CN=localhost" 2>/dev/null
  openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -out server.pem -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n') 2>/dev/null
  chmod 600 ca.key server.key; give -R .; cd - >/dev/null
}
etcd_start() {
  local cluster="" i; for i in $(all); do cluster+="e$i=http://127.0.0.1:$(port "$i" 1),"; done
  for i in $(all); do
    as etcd --name "e$i" --data-dir "$HOME_DIR/etcd$i" --listen-client-urls "http://127.0.0.1:$(port "$i" 0)" --advertise-client-urls "http://127.0.0.1:$(port "$i" 0)" \
      --listen-peer-urls "http://127.0.0.1:$(port "$i" 1)" --initial-advertise-peer-urls "http://127.0.0.1:$(port "$i" 1)" --initial-cluster "${cluster%,}" \
      --initial-cluster-state new --initial-cluster-token "pinseal-$BASE" >"$HOME_DIR/etcd$i.log" 2>&1 & echo $! >"$HOME_DIR/etcd$i.pid"
  done
  for _ in $(seq 100); do curl -fsS -m 1 "http://127.0.0.1:$(port 1 0)/health" 2>/dev/null | grep -q true && return; sleep 0.1; done
  echo "etcd did not come up" >&2; exit 1
}
configuration() {
  local i=$1 hosts="" k; for k in $(all); do hosts+="127.0.0.1:$(port "$k" 0),"; done
  (umask 077; : >"$HOME_DIR/n$i.yml"); give "$HOME_DIR/n$i.yml"
  cat >"$HOME_DIR/n$i.yml" <<Y
scope: pinseal
namespace: /pinseal/
name: n$i
restapi: {listen: "127.0.0.1:$(port "$i" 3)", connect_address: "127.0.0.1:$(port "$i" 3)"}
etcd3: {hosts: "${hosts%,}"}
bootstrap:
  dcs:
    ttl: $TTL
    loop_wait: $LOOP
    retry_timeout: $RETRY
    maximum_lag_on_failover: 1048576
    primary_start_timeout: 0        # a crashed PostgreSQL fails over at once instead of recovering in place
    synchronous_mode: true          # only a synchronous standby may become leader
    synchronous_mode_strict: true   # no standby, no commit: never falls back to asynchronous
    synchronous_node_count: 1
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        synchronous_commit: "on"    # the standby has flushed before the client gets its answer
        fsync: "on"
        full_page_writes: "on"
        wal_level: replica
        wal_log_hints: "on"
        hot_standby: "on"
        max_connections: 60
        max_wal_senders: 8
        max_replication_slots: 8
        shared_buffers: 64MB
        password_encryption: scram-sha-256
        log_parameter_max_length: 0            # no PIN record in the server's log
        log_parameter_max_length_on_error: 0
  initdb: [{encoding: UTF8}, {locale: C.UTF-8}, data-checksums]
  pg_hba:
    - hostssl replication replicator 127.0.0.1/32 scram-sha-256
    - hostssl all all 127.0.0.1/32 scram-sha-256
postgresql:
  listen: "127.0.0.1:$(port "$i" 2)"
  connect_address: "127.0.0.1:$(port "$i" 2)"
  data_dir: "$HOME_DIR/pg$i"
  bin_dir: "$PG"
  pgpass: "$HOME_DIR/pgpass$i"
  authentication:
    superuser: {username: postgres, password: $(password postgres), sslmode: require}
    replication: {username: replicator, password: $(password replicator), sslmode: require}
    rewind: {username: rewinder, password: $(password rewinder), sslmode: require}
  parameters: {unix_socket_directories: "$HOME_DIR/run", ssl: "on", ssl_cert_file: "$HOME_DIR/tls/server.pem", ssl_key_file: "$HOME_DIR/tls/server.key", ssl_ca_file: "$HOME_DIR/tls/ca.pem", ssl_min_protocol_version: TLSv1.3}
watchdog: {mode: "off"}
Y
}
node_start() { local i=$1; as "${PATRONI_BIN:-patroni}" "$HOME_DIR/n$i.yml" >>"$HOME_DIR/n$i.log" 2>&1 & echo $! >"$HOME_DIR/n$i.pid"; }
state() { curl -sS -m 2 "http://127.0.0.1:$(port "$1" 3)/cluster" 2>/dev/null; }
status() { local i; for i in $(all); do state "$i" | jq -r '.members[]|"\(.name) \(.role) \(.state) timeline=\(.timeline // "-") lag=\(.lag // "-")"' 2>/dev/null && return; done; echo "no node answers" >&2; return 1; }
leader() { # the node that answers as the primary; the register of etcd may be older
  local i; for i in $(all); do [ "$(curl -s -o /dev/null -m 1 -w '%{http_code}' "http://127.0.0.1:$(port "$i" 3)/primary")" = 200 ] && { echo "n$i"; return; }; done; return 1; }
wait_leader() { local t l end; t=$(now) end=$((SECONDS + PATIENCE)); while [ $SECONDS -lt $end ]; do l=$(leader || true); [ -n "$l" ] && [ "$l" != "${1:-}" ] && { echo "$l after $(since "$t") s"; return; }; sleep 0.05; done; echo "no new leader in $PATIENCE s" >&2; return 1; }
wait_sync() { local t l end; t=$(now) end=$((SECONDS + PATIENCE)); while [ $SECONDS -lt $end ]; do l=$(leader || true); [ -n "$l" ] && state "$(number "$l")" | jq -e '[.members[]|select(.role=="sync_standby" and (.state=="running" or .state=="streaming"))]|length>=1' >/dev/null 2>&1 && { echo "synchronous standby after $(since "$t") s"; return; }; sleep 0.1; done; echo "no synchronous standby in $PATIENCE s" >&2; return 1; }
some_leader() { wait_leader | cut -d" " -f1; } # a busy machine may not answer the first question in time
url() { local h="" p="" i; for i in $(all); do h+="127.0.0.1,"; p+="$(port "$i" 2),"; done; echo "host=${h%,} port=${p%,} user=${2:-pinseal} passfile=$HOME_DIR/passwords/pgpass dbname=${1:-pinseal} sslmode=verify-full sslrootcert=$HOME_DIR/tls/ca.pem target_session_attrs=read-write connect_timeout=2"; }
descendants() { local c; echo "$1"; for c in $(cat "/proc/$1/task/"*/children 2>/dev/null); do descendants "$c"; done; }
postgres_of() { # PostgreSQL of the node: its postmaster and everything below
  local f; f="$HOME_DIR/pg$(number "$1")/postmaster.pid"; if [ -f "$f" ]; then descendants "$(head -1 "$f")" | sort -u; fi; }
pids_of() { # the node's Patroni, PostgreSQL, and everything below both
  local f; f="$HOME_DIR/n$(number "$1").pid"; { if [ -f "$f" ]; then descendants "$(cat "$f")"; fi; postgres_of "$1"; } | sort -u; }
with_state() { # of the processes $2..., those with a thread in a state of these
  local s=$1 p; shift; for p in "$@"; do sed -n "s/.*) [$s] .*/$p/p" "/proc/$p/task/"*/stat 2>/dev/null || true; done | sort -u; }
stop_all() { # stops the processes that `$1 $2` lists
  # A process that is not stopped yet may start another one while the list is made. So the stop is complete only when every process of
  # a list is stopped, and a second list that was made after that is the same.
  local p found left stopped="" end=$((SECONDS + PATIENCE))
  while [ $SECONDS -lt $end ]; do
    found=$("$1" "$2") left=$(with_state "^TtZX" $found)
    if [ -n "$left" ]; then
      kill -STOP $left 2>/dev/null || true
      # A process that waits for the exec of its child (vfork(2)) stops only after that: the child runs a moment more.
      for p in $(with_state D $left); do kill -CONT $(cat "/proc/$p/task/"*/children 2>/dev/null) 2>/dev/null || true; done; sleep 0.01
    elif [ "$found" = "$stopped" ]; then return
    else stopped=$found; fi
  done
  echo "the processes $left of $2 do not stop" >&2; return 1; }
case ${1:-} in
  start)
    [ ! -e "$HOME_DIR" ] || { echo "$HOME_DIR is there already: stop first" >&2; exit 1; }
    t=$(now); mkdir -m 700 "$HOME_DIR" "$HOME_DIR/run"; passwords; certificates; give "$HOME_DIR" "$HOME_DIR/run"; etcd_start; echo "etcd after $(since "$t") s"
    for i in $(all); do configuration "$i"; node_start "$i"; done
    wait_leader; wait_sync
    psql -qX -v ON_ERROR_STOP=1 "$(url postgres postgres)" <<<"create role pinseal login password '$(password pinseal)'; create database pinseal owner pinseal;"; echo "started in $(since "$t") s"; status ;;
  status) status ;;
  leader) some_leader ;;
  url) url "${2:-}" ;;
  wait-leader) wait_leader "${2:-}" ;;
  wait-sync) wait_sync ;;
  kill-node) n=${2:-$(some_leader)}; stop_all pids_of "$n"; kill -KILL $(pids_of "$n") 2>/dev/null || true; echo "$n" ;;   # the machine dies
  kill-postgres) n=${2:-$(some_leader)}; kill -KILL "$(head -1 "$HOME_DIR/pg$(number "$n")/postmaster.pid")"; echo "$n" ;;           # the database crashes
  freeze-node) n=${2:-$(some_leader)}; stop_all pids_of "$n"; echo "$n" ;;                                                     # the machine hangs, and continues as if it led
  freeze-postgres) n=${2:-$(some_leader)}; stop_all postgres_of "$n"; echo "$n" ;;                                             # its disk stalls: PostgreSQL hangs, Patroni lives
  thaw-node) pids_of "$2" | xargs kill -CONT 2>/dev/null || true ;;
  revive) i=$(number "$2"); node_start "$i" ;;
  # Ends the cluster when the process at the other end of standard input ends, whatever ended it, and the processes that it named
  # before: "+PID" for one that runs, "-PID" for one that has ended.
  guard)
    declare -A others=()
    while read -r line; do if [[ $line == +* ]]; then others[${line#+}]=1; else unset "others[${line#-}]"; fi; done
    for p in "${!others[@]}"; do kill -KILL "$p" 2>/dev/null || true; done
    exec "$0" stop ;;
  stop)
    for i in $(all); do for p in $(pids_of "n$i"); do kill -CONT "$p" 2>/dev/null || true; done; done # a frozen process ignores TERM
    for i in $(all); do kill "$(cat "$HOME_DIR/n$i.pid" 2>/dev/null)" 2>/dev/null || true; done
    for _ in $(seq 150); do live=0; for i in $(all); do kill -0 "$(cat "$HOME_DIR/n$i.pid" 2>/dev/null || echo 999999999)" 2>/dev/null && live=1; done; [ $live = 0 ] && break; sleep 0.1; done
    left=""; for i in $(all); do for p in $(pids_of "n$i"); do kill -KILL "$p" 2>/dev/null && left+=" $p"; done; kill "$(cat "$HOME_DIR/etcd$i.pid" 2>/dev/null)" 2>/dev/null && left+=" $(cat "$HOME_DIR/etcd$i.pid")"; done
    for _ in $(seq 150); do live=0; for p in $left; do kill -0 "$p" 2>/dev/null && live=1; done; [ $live = 0 ] && break; sleep 0.1; done
    for _ in $(seq 20); do rm -rf "$HOME_DIR" 2>/dev/null && break; sleep 0.5; done; [ ! -e "$HOME_DIR" ] ;;
  *) sed -n 2,4p "$0"; exit 2 ;;
esac
