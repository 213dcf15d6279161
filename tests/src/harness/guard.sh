# Runs a command that must not outlive the test process: its end is the end of our standard input,
# however it came. Prints the command's pid, then waits, and exits with the command's status.
# Usage: guard.sh SIGNAL GRACE_SECONDS LOG COMMAND ARGS…
signal=$1 grace=$2 log=$3
shift 3
exec 3<&0 4>&1 >>"$log" 2>&1
"$@" </dev/null 3<&- 4>&- &
command=$!
(
    read -r _ <&3
    kill -s "$signal" "$command"
    for ((i = 0; i < grace * 20; i++)); do
        kill -0 "$command" 2>/dev/null || exit
        sleep 0.05
    done
    kill -KILL "$command" 2>/dev/null
) 4>&- &
watcher=$!
echo "$command" >&4
exec 4>&-
wait "$command"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
