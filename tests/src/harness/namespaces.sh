# The first process of new pid, mount, uts, ipc and net namespaces; becomes a container: its own
# cgroups, a root of its own that holds the machine's /usr read-only, then the command.
# Takes ROOT, CGROUPS and BINDS (one a line), SECRETS, PRIVILEGES, READ_ONLY from the environment.
set -e
while read -r dir; do
    [ -z "$dir" ] || echo 0 >"$dir/cgroup.procs"
done <<<"$CGROUPS"
# This /proc is still the host's, and so is the pid in it.
read -r pid _ </proc/self/stat
echo "bare: pid $pid"

# Only now, so that the namespace's root is the container's own cgroup.
exec unshare --cgroup bash -c '
set -e
mount --make-rprivate /
mount -t tmpfs -o size=16m,mode=0755 tmpfs "$ROOT"
cd "$ROOT"
mkdir -p usr etc proc dev tmp run/secrets run/mayfly old
chmod 1777 tmp
mount --bind /usr usr
mount -o remount,bind,ro usr
for link in bin sbin lib lib64; do
    [ ! -e "/$link" ] || ln -s "usr/$link" "$link"
done
printf "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n" >etc/passwd
printf "root:x:0:\napp:x:1000:\n" >etc/group
for device in null zero full random urandom; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mount -t tmpfs -o "$SECRETS" tmpfs run/secrets
while IFS="|" read -r from to mode; do
    [ -n "$from" ] || continue
    if [ -d "$from" ]; then
        mkdir -p "./$to"
    else
        mkdir -p "./$(dirname "$to")"
        touch "./$to"
    fi
    mount --bind "$from" "./$to"
    [ "$mode" = rw ] || mount -o remount,bind,ro "./$to"
done <<<"$BINDS"
mount -t proc proc proc
pivot_root . old
umount -l /old
rmdir /old
[ -z "$READ_ONLY" ] || mount -o remount,ro /
hostname bare
echo "bare: ready"
# A change of uid takes the parent-death signal away: it is set again.
exec env -i PATH=/bin:/sbin HOME=/ setpriv --pdeathsig KILL $PRIVILEGES -- "$@"
' bare "$@"
