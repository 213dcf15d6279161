# A container engine of our own in the directory $1, its containers in the cgroup $2. On SIGTERM it
# takes everything with it: containers, shims, mounts, cgroups, the directory.
dir=$1 parent=$2
engine=

cleanup() {
    trap '' TERM
    if [ -S "$dir/docker.sock" ]; then
        timeout 10 docker -H "unix://$dir/docker.sock" ps -aq |
            xargs -r timeout 10 docker -H "unix://$dir/docker.sock" rm -fv >/dev/null
    fi
    if [ -n "$engine" ]; then
        kill "$engine"
        for ((i = 0; i < 100; i++)); do
            kill -0 "$engine" 2>/dev/null || break
            sleep 0.05
        done
        kill -KILL "$engine" 2>/dev/null
    fi
    # What an engine that was killed leaves behind: it is ours when it names our directory.
    for process in /proc/[0-9]*; do
        if [[ $(readlink "$process/exe") == *containerd* ]] &&
            tr '\0' ' ' <"$process/cmdline" | grep -qF "$dir/exec/"; then
            kill -KILL "${process#/proc/}"
        fi
    done 2>/dev/null
    awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r |
        xargs -r umount -l
    find /sys/fs/cgroup -maxdepth 2 -type d -name "$parent" 2>/dev/null | while read -r group; do
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
    done
    rm -rf "$dir"
    exit 0
}
trap cleanup TERM

# No bridge and no packet filter: the suites need no network between containers, and the machine's
# own settings stay as they are.
dockerd --add-runtime trimmed="$dir/runtime" --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" \
    --host "unix://$dir/docker.sock" --group root --cgroup-parent "/$parent" \
    --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
    --shutdown-timeout 2 &
engine=$!
wait "$engine"
status=$?
engine=
echo "dockerd ended with status $status"
( cleanup )
exit 1
