#!/bin/bash
# An OCI runtime for an engine on a machine whose root lacks capabilities, as in a container or a
# sandbox: takes them out of what a container is to be given, and then is runc. With it the machine
# runs what is privileged by its engine's word, and as privileged as anything here can be. Where the
# machine lacks nothing, it changes nothing.
held=$(setpriv --dump | sed -n 's/^Capability bounding set: //p')
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    case ${arguments[i]} in
    --bundle | -b) file=${arguments[i + 1]}/config.json ;;
    # Of `docker exec`.
    --process | -p) file=${arguments[i + 1]} ;;
    *) continue ;;
    esac
    [ -f "$file" ] || continue
    for name in $(grep -o '"CAP_[A-Z_]*"' "$file" | sort -u | tr -d '"'); do
        lower=${name#CAP_}
        [[ ",$held," == *",${lower,,},"* ]] || sed -i "s/,\"$name\"//g; s/\"$name\",\{0,1\}//g" "$file"
    done
done
exec runc "$@"
