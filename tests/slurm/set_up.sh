#!/bin/sh
# A SLURM of one node on this machine, of the user who calls this, in a folder of its own: accounting in MariaDB, munge,
# and nothing that a SLURM which is there already would notice (other ports, other sockets).
#
#   tests/slurm/set_up.sh --install        the packages that it needs, from Debian or Ubuntu (as root)
#   tests/slurm/set_up.sh start FOLDER     then: export SLURM_CONF=FOLDER/slurm.conf PATH=FOLDER/bin:$PATH
#   tests/slurm/set_up.sh node FOLDER      the node's daemon alone, after it was stopped
#   tests/slurm/set_up.sh stop FOLDER      ends what was started
set -eu

PACKAGES="slurm-wlm slurmdbd munge mariadb-server"
PROGRAMS="munged mariadbd slurmdbd slurmctld slurmd sbatch sacctmgr"
PATH=$PATH:/usr/sbin:/sbin

fail() {
    echo "$*" >&2
    exit 1
}

# seconds, then a command that must succeed within them
within() {
    seconds=$1
    shift
    until "$@" >/dev/null 2>&1; do
        seconds=$((seconds - 1))
        [ "$seconds" -gt 0 ] || fail "did not come up: $*. Logs: $folder/*.log"
        sleep 1
    done
}

# the name of its log, then a command, which stays in the foreground of its own session
daemon() {
    name=$1
    shift
    setsid "$@" >"$folder/$name.log" 2>&1 </dev/null &
    echo $! >"$folder/$name.pid"
}

configure() {
    me=$(id -un)
    host=$(hostname -s)
    umask 077
    dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 2>/dev/null
    # Snakemake's executor takes the variables of SLURM from its jobs before they call srun, this one included
    printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" >"$folder/bin/srun"
    chmod +x "$folder/bin/srun"
    cat >"$folder/slurm.conf" <<END
ClusterName=kd
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$me
SlurmdUser=$me
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.own.pid
SlurmdPidFile=$folder/slurmd.own.pid
# containers have no cgroups of their own
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
# a node that does not answer for so many seconds is down, and up again as soon as it does
SlurmdTimeout=10
ReturnToService=2
KillWait=20
MailProg=/bin/true
MpiDefault=none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
# the socket of munge, for what talks to slurmdbd
AccountingStoragePass=$folder/munge.socket
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000
PartitionName=cpu Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
    cat >"$folder/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=$me
PidFile=$folder/slurmdbd.own.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16306
StorageUser=slurm
StoragePass=of-this-test
StorageLoc=slurm
END
}

start_database() {
    mariadb-install-db --no-defaults --datadir="$folder/database" --user="$(id -un)" \
        --auth-root-authentication-method=normal >"$folder/mariadb-install.log" 2>&1 ||
        fail "mariadb-install-db: see $folder/mariadb-install.log"
    daemon mariadb mariadbd --no-defaults --user="$(id -un)" --datadir="$folder/database" \
        --socket="$folder/mariadb.socket" --bind-address=127.0.0.1 --port=16306 --pid-file="$folder/mariadb.own.pid"
    sql="mariadb --no-defaults --user=root --socket=$folder/mariadb.socket"
    within 60 $sql -e "SELECT 1"
    $sql -e "CREATE DATABASE slurm; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'of-this-test';
        GRANT ALL ON slurm.* TO slurm@'127.0.0.1'; CREATE USER slurm@localhost IDENTIFIED BY 'of-this-test';
        GRANT ALL ON slurm.* TO slurm@localhost;"
}

start_node() {
    daemon slurmd slurmd -D -N "$(hostname -s)"
    within 60 sh -c "sinfo -h -o %t | grep -qE 'idle|mix|alloc'"
}

start() {
    for program in $PROGRAMS; do
        command -v "$program" >/dev/null || fail "There is no $program here. As root: $0 --install ($PACKAGES)"
    done
    mkdir -p "$folder/bin" "$folder/state" "$folder/spool" "$folder/database"
    configure
    daemon munged munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.own.pid" --log-file="$folder/munged.own.log" --seed-file="$folder/munge.seed"
    within 20 munge -n --socket="$folder/munge.socket"
    start_database
    daemon slurmdbd slurmdbd -D
    within 60 sacctmgr -n show cluster
    sacctmgr -i add cluster kd >"$folder/accounts.log" 2>&1 || true
    daemon slurmctld slurmctld -D
    within 60 scontrol ping
    sacctmgr -i add account kd Cluster=kd >>"$folder/accounts.log" 2>&1
    sacctmgr -i add user "$(id -un)" Account=kd Cluster=kd >>"$folder/accounts.log" 2>&1
    start_node
    sinfo
}

stop() {
    # a daemon that ends leaves its jobs alone
    if scancel --user "$(id -un)" --signal=KILL --full 2>/dev/null; then
        within 60 sh -c 'test -z "$(squeue -h)"'
    fi
    for name in slurmd slurmctld slurmdbd mariadb munged; do
        [ -f "$folder/$name.pid" ] || continue
        kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
        rm "$folder/$name.pid"
    done
}

case ${1-} in
--install) apt-get update && apt-get install --yes --no-install-recommends $PACKAGES && exit ;;
start | node | stop) [ -n "${2-}" ] || fail "usage: $0 $1 FOLDER" ;;
*) fail "usage: $0 --install | start FOLDER | node FOLDER | stop FOLDER" ;;
esac
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF="$folder/slurm.conf"
case $1 in
start) start ;;
node) start_node ;;
stop) stop ;;
esac
