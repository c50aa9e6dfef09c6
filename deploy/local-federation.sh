#!/usr/bin/env bash
# A whole federation on this machine, from nothing: a SuperLink on the loopback address that knows its SuperNodes by
# their keys, a front with TLS that lets SuperNodes in and nobody else (deploy/nginx.conf; left out, with a word, where
# there is no nginx), and SuperNodes that each have an interactions file, a state-dir and a key of their own. For trying
# things out, and tests.
#
#   deploy/local-federation.sh start DIR [NODES]        make what is missing in DIR, start what is not running
#   deploy/local-federation.sh up DIR [NODES]           the same in the foreground; Ctrl-C stops everything
#   deploy/local-federation.sh run DIR [OVERRIDE...]    flwr run, and follow its log
#   deploy/local-federation.sh node DIR NUMBER          start one SuperNode again, as after a kill
#   deploy/local-federation.sh status DIR
#   deploy/local-federation.sh stop DIR                 end all processes; files and state stay
#
# The environment may say: PORT (44080, of the front; node n listens on PORT + 1 + n), SUPERLINK_PORT (PORT - 1), DATA
# (overrides of the data set that is shared out by user, "dataset=synthetic"), DAYS (of the certificates, 365); and of
# sites that are made now: SITE_GROUPS (for `grouping=site`, one name for each site), POLICY (the file of what they grant,
# docs/deployment.md). DIR then holds:
#
#   ca.crt server.pem ...    certificates             superlink/   its database, log and pid, and a home for `flwr`
#   items.csv                the public item table    front/       nginx.conf, log, pid
#                                                     site-<n>/    interactions.csv, state/, key, group, log, pid
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
port=${PORT:-44080}
inner=${SUPERLINK_PORT:-$((port - 1))}
PATH=$PATH:/usr/sbin # where Debian has nginx
export FLWR_DISABLE_UPDATE_CHECK=1 FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} NO_PROXY="${NO_PROXY:+$NO_PROXY,}127.0.0.1,localhost"

fail() { echo "local-federation: $*" >&2; exit 1; }
say() { echo "local-federation: $*" >&2; }

# The interpreter beside `fedrec`, which can import it.
python=$(dirname "$(command -v fedrec || echo /)")/python
[[ -x $python ]] || python=python3

quoted() { "$python" -c 'import json, sys; print(json.dumps(sys.argv[1], ensure_ascii=False))' "$1"; } # as in TOML

need() {
    for program in "$@"; do
        command -v "$program" >/dev/null && continue
        fail "the program '$program' is not on the PATH (activate fedrec's environment)"
    done
}

# ---- processes -------------------------------------------------------------------------------------------------------

# Not kill -0: it finds a process that has ended and that nobody has waited for yet, and one that was given its number.
alive() { [[ -f $1/pid ]] && grep -qszxF "FLWR_HOME=$1/home" "/proc/$(cat "$1/pid")/environ"; }

launch() { # FOLDER COMMAND...: in the background, in a session of its own, from an empty directory
    local folder=$1
    shift
    mkdir -p "$folder/empty" "$folder/home"
    (cd "$folder/empty" && FLWR_HOME=$folder/home exec setsid "$@") >>"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
}

family() { # FOLDER: all processes that were started there, also those whose parents have been killed
    grep -lszxF "FLWR_HOME=$1/home" /proc/[0-9]*/environ 2>/dev/null | tr -dc '0-9\n' || true
}

end() { # FOLDER: ask its processes to end, and kill those that do not
    local pids
    if alive "$1"; then kill -TERM "$(cat "$1/pid")"; fi
    for signal in 0 TERM KILL; do
        for _ in $(seq 30); do
            pids=$(family "$1")
            [[ $pids ]] || break 2
            sleep 0.1
        done
        # shellcheck disable=SC2086 # several numbers
        kill -$signal $pids 2>/dev/null || true
    done
    rm -f "$1/pid"
}

wait_for() { # SECONDS WHAT COMMAND...
    local left=$1 what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((left-- > 0)) || fail "$what did not come up; see the logs in $dir"
        sleep 1
    done
}

# ---- what has to be there --------------------------------------------------------------------------------------------

certificates() {
    [[ -f $dir/server.pem ]] && return
    say "making certificates for localhost"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$dir/ca.key" -out "$dir/ca.crt" -days "${DAYS:-365}" \
        -subj "/CN=fedrec local CA" 2>/dev/null
    openssl req -newkey rsa:2048 -nodes -keyout "$dir/server.key" -out "$dir/server.csr" -subj "/CN=localhost" 2>/dev/null
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >"$dir/server.ext"
    openssl x509 -req -in "$dir/server.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -days "${DAYS:-365}" \
        -extfile "$dir/server.ext" -out "$dir/server.pem" 2>/dev/null
    chmod 600 "$dir"/*.key
}

sites() { # the data, shared out by user, and a key for each node, with its group and what it grants
    local names
    read -ra names <<<"${SITE_GROUPS:-}"
    ((${#names[@]} == 0 || ${#names[@]} == nodes)) || fail "SITE_GROUPS='$SITE_GROUPS' has ${#names[@]} names for $nodes sites"
    [[ ! ${POLICY:-} || -f $POLICY ]] || fail "POLICY=$POLICY: there is no such file"
    if [[ ! -f $dir/items.csv ]]; then
        say "sharing out ${DATA:-dataset=synthetic} among $nodes sites"
        # shellcheck disable=SC2086 # several overrides
        fedrec split "$nodes" "$dir" ${DATA:-dataset=synthetic}
    fi
    for ((n = 0; n < nodes; n++)); do
        [[ -f $dir/site-$n/interactions.csv ]] || fail "$dir was made for fewer nodes: take another folder for $nodes"
        [[ -f $dir/site-$n/key ]] && continue
        if [[ ${names[n]:-} ]]; then echo "${names[n]}" >"$dir/site-$n/group"; fi
        if [[ ${POLICY:-} ]]; then
            install -d -m 700 "$dir/site-$n/state"
            install -m 600 "$POLICY" "$dir/site-$n/state/policy.toml"
        fi
        ssh-keygen -q -t ecdsa -b 384 -N "" -C "" -f "$dir/site-$n/key"
    done
}

superlink() {
    local folder=$dir/superlink
    mkdir -p "$folder/home"
    printf '[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:%s"\nroot-certificates = %s\n' \
        "$inner" "$(quoted "$dir/ca.crt")" >"$folder/home/config.toml"
    echo "$port" >"$folder/port"
    echo "$inner" >"$folder/inner-port"
    alive "$folder" && return
    say "starting the SuperLink on 127.0.0.1:$inner"
    launch "$folder" flower-superlink --host 127.0.0.1 --port "$inner" --enable-supernode-auth \
        --ssl-ca-certfile "$dir/ca.crt" --ssl-certfile "$dir/server.pem" --ssl-keyfile "$dir/server.key" \
        --database "$folder/state.db" --disable-runtime-dependency-installation
    wait_for 90 "the SuperLink" flwr_ supernode list local
}

# nginx writes its title over its environment: it is known by the configuration that it names there.
front_alive() { [[ -f $dir/front/pid ]] && tr '\0' ' ' <"/proc/$(cat "$dir/front/pid")/cmdline" 2>/dev/null | grep -qF "$dir/front/nginx.conf"; }

front() { # with TLS, on all addresses of this machine's loopback interface: lets SuperNodes in, and nobody else
    local folder=$dir/front
    mkdir -p "$folder"
    # Relative paths, from here on: nginx would take a blank, a quote or a dollar in the folder's own path for its syntax.
    sed -e "s|listen 9092|listen 127.0.0.1:$port|" -e "s|127.0.0.1:9093|127.0.0.1:$inner|" \
        -e "s|/etc/fedrec/|../|" -e "s|/run/fedrec-front/||" "$here/deploy/nginx.conf" >"$folder/nginx.conf"
    front_alive && return
    say "starting the front on 127.0.0.1:$port"
    (cd "$folder" && exec setsid nginx -p "$folder/" -c "$folder/nginx.conf" -e stderr -g "daemon off; $(as_root)") \
        >>"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
    wait_for 30 "the front" curl --silent --fail --max-time 5 --cacert "$dir/ca.crt" "https://127.0.0.1:$port/health"
}

as_root() { # started by root, nginx would give its work to a user who may not look into this folder
    [[ $(id -u) != 0 ]] || echo "user root;"
}

end_front() {
    front_alive || return 0
    local pid
    pid=$(cat "$dir/front/pid")
    kill -TERM "$pid" # the master, which ends its workers
    for _ in $(seq 50); do
        front_alive || break
        sleep 0.1
    done
    rm -f "$dir/front/pid"
}

flwr_() { FLWR_HOME=$dir/superlink/home flwr "$@"; }

register() { # NUMBER: let the SuperLink know the node's key, once for its database
    local site=$dir/site-$1
    [[ -f $site/registered ]] && return
    flwr_ supernode register "$site/key.pub" local >"$site/registered.part" || fail "$(cat "$site/registered.part")"
    mv "$site/registered.part" "$site/registered"
}

supernode() { # NUMBER: after a kill the SuperLink refuses a key for up to a minute, while it still counts as online
    local site=$dir/site-$1
    alive "$site" && return
    # A file: on the command line Flower takes pairs apart with a pattern that knows no quote inside a value.
    printf 'interactions = %s\nstate-dir = %s\n' \
        "$(quoted "$site/interactions.csv")" "$(quoted "$site/state")" >"$site/node.toml"
    if [[ -f $site/group ]]; then echo "group = $(quoted "$(cat "$site/group")")" >>"$site/node.toml"; fi
    for _ in $(seq 12); do
        say "starting SuperNode $1"
        launch "$site" fedrec supernode --root-certificates "$dir/ca.crt" --auth-supernode-private-key "$site/key" \
            --superlink "127.0.0.1:$port" --host 127.0.0.1 --port "$((port + 1 + $1))" \
            --node-config "$site/node.toml"
        for _ in $(seq 60); do # until it has become Flower's, or has ended
            sleep 1
            alive "$site" && ! grep -qsz '/flower-supernode$' "/proc/$(cat "$site/pid")/cmdline" || break
        done
        for _ in $(seq 8); do
            sleep 1
            alive "$site" || break
        done
        alive "$site" && return
    done
    fail "SuperNode $1 does not stay up; see $site/log"
}

# ---- commands --------------------------------------------------------------------------------------------------------

start() {
    need openssl ssh-keygen setsid curl flower-superlink flower-supernode flwr fedrec
    mkdir -p "$dir"
    chmod 700 "$dir"
    certificates
    sites
    if ! command -v nginx >/dev/null; then
        say "there is no nginx here (on Debian: apt-get install nginx-light): without a front the SuperNodes come to the" \
            "SuperLink's own port, on the loopback address, where any account of this machine may do with it what you may"
        inner=$port
    fi
    superlink
    [[ $inner == "$port" ]] || front
    local starting=()
    for ((n = 0; n < nodes; n++)); do
        register "$n"
        supernode "$n" &
        starting+=($!)
    done
    for pid in "${starting[@]}"; do wait "$pid" || fail "a SuperNode did not start"; done
    say "ready: deploy/local-federation.sh run $dir"
}

stop() {
    for folder in "$dir"/site-*; do end "$folder"; done
    end_front
    end "$dir/superlink"
    say "stopped; $dir stays as it is"
}

run() {
    # Flower takes the values of a run's configuration from a file as they are: quotes in an override stay.
    local file=$dir/superlink/run-config.toml
    "$python" - "$dir" "$@" >"$file" <<'PYTHON'
import json, shlex, sys
from fedrec.config.paths import assign
folder, *given = sys.argv[1:]
keys = {text.partition("=")[0] for text in given}
place = [assign("runs_dir", f"{folder}/runs"), assign("cache_dir", f"{folder}/cache")]
items = assign("dataset.item_table", f"{folder}/items.csv")
own = ["runtime=deployment", "dataset=table", items, "dataset.text_columns=[text]"]
own = [] if "resume" in keys else [text for text in own if text.partition("=")[0] not in keys]
print("overrides =", json.dumps(shlex.join([*own, *place, *given])))
PYTHON
    local answer id
    answer=$(flwr_ run "$here" local --run-config "$file" --format json) || true
    id=$("$python" -c 'import json,sys; t=sys.argv[1]; print(json.loads(t[t.index("{"):])["run-id"])' "$answer" 2>/dev/null) ||
        fail "flwr run was refused: $answer"
    flwr_ log "$id" local --stream || true
    local status
    status=$(flwr_ ls local --run-id "$id" --format json |
        "$python" -c 'import json,sys; t=sys.stdin.read(); print(json.loads(t[t.index("{"):])["runs"][0]["status"])')
    say "run $id: $status"
    [[ $status == finished:completed ]]
}

command=${1:-}
[[ $command && ${2:-} ]] || { sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }
mkdir -p "$2"
dir=$(cd "$2" && pwd)
shift 2
if [[ $command != start && $command != up && -f $dir/superlink/port ]]; then
    port=$(cat "$dir/superlink/port")
    inner=$(cat "$dir/superlink/inner-port" 2>/dev/null || echo "$port")
fi
nodes=${1:-3}

case $command in
start | up)
    trap 'trap - INT TERM; stop; exit 130' INT TERM
    start
    [[ $command == start ]] && exit
    say "Ctrl-C stops everything"
    while alive "$dir/superlink"; do sleep 1; done
    stop
    fail "the SuperLink has ended: see $dir/superlink/log"
    ;;
run) run "$@" ;;
node) supernode "${1:?which node}" ;;
status) flwr_ supernode list local; flwr_ ls local ;;
stop) stop ;;
*) fail "there is no command '$command': start, up, run, node, status or stop" ;;
esac
