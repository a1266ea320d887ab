#!/bin/bash
# SPDX-License-Identifier: MIT
#
# 20-start-stop.sh - the command line and the life cycle: what kvfs says and with which status it ends, configuration,
# lock, mount points that are missing, busy, dead; signals; unprivileged users; mount(8) and fstab; install, make run.

. "$(dirname "$0")/lib.sh"

# begin [ARGUMENTS...]: as a user does, into the background; its words go to T/said.
begin()
{
	"$KVFS" "$@" > "$T/words" 2>&1 < /dev/null || fail "kvfs $*: status $?: $(cat "$T/words")"
	is_mounted "$M" || fail "kvfs $*: ended with 0, but nothing is mounted"
}

# start [ARGUMENTS...]: the same, when a case that failed may have left its mount.
start()
{
	! is_mounted "$M" || stop
	begin "$@"
}

holder()
{
	head -n 1 "$D/lock"
}

# ended PID: the daemon goes away within 20 seconds.
ended()
{
	gone "$1" 20 || fail "process $1 does not end"
}

stop()
{
	local pid
	pid=$(holder)
	fusermount3 -u "$M" || fail "fusermount3 -u fails"
	ended "$pid"
}

case_help_and_version()
{
	"$KVFS" -h > "$T/help" || fail "-h: status $?"
	grep -q -- '-o sync=always|fsync|never' "$T/help" || fail "no sync in the help"
	"$KVFS" --version | grep -q '^kvfs [0-9]' || fail "--version"
	"$KVFS" -V | grep -q libfuse || fail "-V"
	refused "cannot write to standard output: No space left" sh -c "'$KVFS' -h > /dev/full"
	refused "cannot write to standard output: No space left" sh -c "'$KVFS' -V > /dev/full"
}

case_wrong_usage()
{
	refused usage "$KVFS"
	refused usage "$KVFS" a b c
	refused "unknown option -x" "$KVFS" -x "$M"
	refused "the mount point is an empty string" "$KVFS" "$D" ""
	refused "/: cannot be read: Is a directory" "$KVFS" -c / "$M"
	refused "did you mean 'sync'" "$KVFS" -o "data=$D,synk=x" "$M"
	refused "always|fsync|never" "$KVFS" -o "data=$D,sync=x" "$M"
	refused "a size such as" "$KVFS" -o "data=$D,max_value=12Q" "$M"
	[ "$("$KVFS" -o "data=$D,synk=x" "$M" 2>&1 | wc -l)" -eq 1 ] || fail "more than one line"
	[ ! -e "$D" ] || fail "a data directory was made"
}

case_mount_point_problems()
{
	refused "does not exist" "$KVFS" "$D" "$T/missing"
	: > "$T/file"
	refused "not a directory" "$KVFS" "$D" "$T/file"
	refused "inside one another" "$KVFS" "$T" "$M"
	refused "inside one another" "$KVFS" "$M" "$M"
	refused "inside one another" "$KVFS" "$M/data" "$M"
	[ -z "$(ls -A "$M")" ] || fail "something was made in the mount point"
	[ ! -d "$D" ] || rmdir "$D" 2> /dev/null || rm -r "$D"
}

case_data_directory_problems()
{
	refused "Not a directory" "$KVFS" "$T/file/x" "$M"
	refused "not a directory" "$KVFS" "$T/file" "$M"
	refused "No such file" "$KVFS" "$T/nothing" "$M" -o ro
	[ ! -e "$T/nothing" ] || fail "a read-only start made $T/nothing"
}

case_returns_when_usable()
{
	start "$D" "$M" -o "transport=$TRANSPORT"
	echo value > "$M/key" || fail "cannot write at once"
	equal "$(cat "$M/key")" value
	[ ! -s "$T/words" ] || fail "it said: $(cat "$T/words")"
	[ "$(stat -c %a "$D")" = 700 ] || fail "mode of the data directory is $(stat -c %a "$D")"
	equal "$(findmnt -rn -o FSTYPE,SOURCE --mountpoint "$M")" "fuse.kvfs $D"
	case ",$(findmnt -rn -o VFS-OPTIONS,FS-OPTIONS --mountpoint "$M" | tr ' ' ,)," in
	*,nosuid,nodev,*) ;;
	*) fail "mount options: $(findmnt -rn -o OPTIONS --mountpoint "$M")" ;;
	esac
}

case_data_is_locked()
{
	is_mounted "$M" || start "$D" "$M" -o "transport=$TRANSPORT"
	mkdir -p "$T/mnt2"
	refused "process $(holder) (mounted at $M)" "$KVFS" "$D" "$T/mnt2"
	refused "process $(holder)" "$KVFS" "$D" "$M"
	refused "mounted at $M already" "$KVFS" "$T/data2" "$M"
	equal "$(cat "$M/key")" value
}

case_keeps_no_descriptor_of_its_starter()
{
	local fd
	! is_mounted "$M" || stop
	exec {fd}> "$T/held"
	flock "$fd"
	start "$D" "$M" -o "transport=$TRANSPORT"
	exec {fd}>&-
	flock -n "$T/held" true || fail "the daemon holds a lock of the shell that started it"
}

# What the daemon opens must not take the numbers of closed standard descriptors.
case_starts_with_closed_standard_descriptors()
{
	! is_mounted "$M" || stop
	timeout 30 "$KVFS" "$D" "$M" -o "transport=$TRANSPORT" <&- >&- 2>&- || fail "status $?"
	equal "$(cat "$M/key")" value
	stop
	# In the foreground, with words for a standard error that is not there: they must not go into the store's files.
	"$KVFS" -f -o "$(opts log_level=debug)" "$M" <&- >&- 2>&- &
	echo $! >> "$PIDS"
	wait_for 20 is_mounted "$M" || fail "not mounted"
	equal "$(cat "$M/key")" value
	! grep -lr 'kvfs: ' "$D" || fail "messages in the store's files"
	stop
	timeout 30 "$KVFSCTL" check "$D" > "$T/words" 2>&1 || fail "$(cat "$T/words")"
	refused "" sh -c "timeout 30 '$KVFSCTL' load '$D' <&- 2>&-"
	! grep -lr 'kvfsctl: ' "$D" || fail "messages of kvfsctl in the store's files"
	timeout 30 "$KVFSCTL" check "$D" > "$T/words" 2>&1 || fail "$(cat "$T/words")"
}

case_umount_and_mount_at_once()
{
	local i
	is_mounted "$M" || start "$D" "$M" -o "transport=$TRANSPORT"
	for i in 1 2 3 4 5; do
		fusermount3 -u "$M" || fail "umount $i"
		start "$D" "$M" -o "transport=$TRANSPORT"
		equal "$(cat "$M/key")" value
	done
}

case_signals_stop_cleanly()
{
	local s pid
	is_mounted "$M" || start "$D" "$M" -o "transport=$TRANSPORT"
	for s in TERM INT HUP; do
		pid=$(holder)
		echo "$s" > "$M/signal"
		kill -s "$s" "$pid"
		ended "$pid"
		! is_mounted "$M" || fail "still mounted after SIG$s"
		start "$D" "$M" -o "transport=$TRANSPORT"
		equal "$(cat "$M/signal")" "$s"
	done
	stop
}

case_foreground_exit_status()
{
	! is_mounted "$M" || stop
	kv_mount || fail "$(tail -n 1 "$T/err")"
	kv_umount || fail "status $? after unmount"
	kv_mount || fail "$(tail -n 1 "$T/err")"
	kill "$(kv_pid)"
	kv_ended || fail "status $? after SIGTERM"
	grep -q 'stopping on signal 15' "$T/err" || fail "no word about the signal"
}

case_busy_mount_is_stopped_by_signal()
{
	local pid fd
	start "$D" "$M" -o "transport=$TRANSPORT"
	pid=$(holder)
	echo pinned > "$M/pinned"
	exec {fd}< "$M/pinned"
	! fusermount3 -u "$M" 2> /dev/null || fail "unmounted while busy"
	kill "$pid"
	ended "$pid"
	exec {fd}<&-
	! is_mounted "$M" || fail "still mounted"
}

case_dead_mount_is_replaced()
{
	local pid i
	! is_mounted "$M" || stop
	for i in 1 2 3; do
		begin "$D" "$M" -o "transport=$TRANSPORT"
		[ "$i" -eq 1 ] || grep -q 'replaced the dead mount' "$T/words" || fail "no word about the dead mount"
		echo "$i" > "$M/round"
		pid=$(holder)
		kill -9 "$pid" # and no waiting: the next start copes
	done
	begin "$D" "$M" -o "transport=$TRANSPORT"
	equal "$(cat "$M/round")" 3
	equal "$(mounts_below "$M" | wc -l)" 1 "number of mounts"
	stop
}

case_contents_that_get_hidden()
{
	: > "$M/before"
	start "$D" "$M" -o "transport=$TRANSPORT"
	grep -q 'is not empty' "$T/words" || fail "no warning"
	[ ! -e "$M/before" ] || fail "not hidden"
	stop
	rm "$M/before" || fail "it is gone"
}

case_configuration_file()
{
	printf '[default]\ntransport = %s\ndata = /nowhere/at/all\n[%s]\ndata = %s\ndefault_ttl = 1h\n[/else]\nsync = never\n' \
		"$TRANSPORT" "$M" "$D" > "$T/conf"
	start -c "$T/conf" "$M"
	echo x > "$M/mortal"
	[ "$(getfattr --only-values -n user.ttl "$M/mortal" 2> /dev/null | cut -d. -f1)" -gt 3500 ] || fail "default_ttl"
	stop
	start -c "$T/conf" "$M" -o default_ttl=none
	echo x > "$M/immortal"
	! getfattr -n user.ttl "$M/immortal" > /dev/null 2>&1 || fail "-o does not beat the file"
	stop
	echo 'sync = sometimes' >> "$T/conf"
	refused "$T/conf:9: sync = sometimes: not understood; allowed: always|fsync|never" "$KVFS" -c "$T/conf" "$M"
	refused "$T/none: No such file" "$KVFS" -c "$T/none" "$M"
}

case_read_only()
{
	start "$D" "$M" -o "transport=$TRANSPORT,ro"
	equal "$(cat "$M/key")" value
	refused "Read-only" sh -c "echo x > '$M/new'"
	stop
}

case_owner_and_mask()
{
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	start "$D" "$M" -o "transport=$TRANSPORT,uid=12345,gid=54321,umask=077,allow_other"
	equal "$(stat -c %u:%g:%a "$M/key")" 12345:54321:600
	equal "$(stat -c %u:%g "$M")" 12345:54321
	# Whoever is named can use it at once.
	setpriv --reuid=12345 --regid=54321 --clear-groups sh -c "echo mine > '$M/mine' && cat '$M/mine' '$M/key'" \
		> "$T/mine" 2>&1 || fail "the named owner: $(cat "$T/mine")"
	equal "$(tail -n 1 "$T/mine")" value
	stop
}

case_other_users()
{
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	chmod 755 "$T"
	start "$D" "$M" -o "transport=$TRANSPORT"
	refused "" setpriv --reuid=12345 --clear-groups ls "$M"
	stop
	start "$D" "$M" -o "transport=$TRANSPORT,allow_other"
	echo secret > "$M/secret"
	chmod 600 "$M/secret"
	echo open > "$M/open"
	equal "$(setpriv --reuid=12345 --clear-groups cat "$M/open")" open
	refused "Permission denied" setpriv --reuid=12345 --clear-groups cat "$M/secret"
	refused "Permission denied" setpriv --reuid=12345 --clear-groups sh -c "echo x > '$M/open'"
	stop
}

case_generic_mount_options()
{
	start "$D" "$M" -o "transport=$TRANSPORT,rw,suid,dev,noexec,noatime,_netdev,nofail,users,x-systemd.automount,fsname=a\\,b"
	equal "$(findmnt -rn -o SOURCE --mountpoint "$M")" "a,b"
	case ",$(findmnt -rn -o VFS-OPTIONS --mountpoint "$M")," in
	*,nosuid,nodev,noexec,noatime,*) ;;
	*) fail "options: $(findmnt -rn -o VFS-OPTIONS --mountpoint "$M")" ;;
	esac
	stop
}

# A private mount namespace: nothing of it stays on this machine.
case_mount_command_and_fstab()
{
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	unshare -m true 2> /dev/null || skip "no mount namespaces here"
	cat > "$T/inside" <<-INSIDE
		set -e
		mount --make-rprivate /
		mkdir -p "$T/upper" "$T/work"
		mount -t tmpfs none "$T/work"
		mkdir "$T/work/u" "$T/work/w"
		mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$T/work/u,workdir=$T/work/w" /usr/sbin
		ln -s "$(readlink -f "$KVFS")" /usr/sbin/mount.fuse.kvfs
		mount -t fuse.kvfs "$D" "$M" -o transport=$TRANSPORT,nofail
		cat "$M/key"
		pid=\$(head -n 1 "$D/lock")
		umount "$M"
		while kill -0 \$pid 2> /dev/null; do sleep 0.05; done
		echo "$D $M fuse.kvfs noauto,rw,transport=$TRANSPORT,sync=fsync 0 0" > "$T/fstab"
		mount -T "$T/fstab" "$M"
		cat "$M/key"
		umount "$M"
	INSIDE
	unshare -m bash "$T/inside" > "$T/inside.out" 2>&1 || {
		grep -q 'overlay' "$T/inside.out" && skip "no overlay file system here"
		fail "$(tail -n 1 "$T/inside.out")"
	}
	equal "$(cat "$T/inside.out")" "$(printf 'value\nvalue')"
	ended "$(holder)"
}

case_unprivileged_user()
{
	[ "$(id -u)" -eq 0 ] || skip "needs root, to become somebody else"
	unshare -m true 2> /dev/null || skip "no mount namespaces here"
	id nobody > /dev/null 2>&1 || skip "there is no user nobody"
	mkdir -p "$T/home/mnt"
	chown -R nobody:"$(id -gn nobody)" "$T/home"
	cp "$KVFS" "$T/home/kvfs"
	cat > "$T/user" <<-USER
		cd "$T/home"
		export HOME="$T/home"
		unset XDG_DATA_HOME
		./kvfs -o transport=$TRANSPORT mnt || exit 1
		echo private > mnt/key
		cat mnt/key
		stat -c %u mnt/key
		pid=\$(head -n 1 .local/share/kvfs/lock)
		kill -9 \$pid
		./kvfs -o transport=$TRANSPORT mnt 2> said || { cat said; exit 1; }
		grep -c 'replaced the dead mount' said
		cat mnt/key
		pid=\$(head -n 1 .local/share/kvfs/lock)
		fusermount3 -u mnt
		while kill -0 \$pid 2> /dev/null; do sleep 0.05; done
		stat -c %a .local/share/kvfs
	USER
	# /dev/fuse may be closed to users where no udev runs.
	cat > "$T/inside" <<-INSIDE
		mount --make-rprivate /
		mknod "$T/fuse" c 10 229 && chmod 666 "$T/fuse" && mount --bind "$T/fuse" /dev/fuse || exit 1
		exec setpriv --reuid=nobody --regid=$(id -g nobody) --clear-groups bash "$T/user"
	INSIDE
	unshare -m bash "$T/inside" > "$T/inside.out" 2>&1 || {
		fail "$(cat "$T/inside.out")"
	}
	equal "$(cat "$T/inside.out")" "$(printf 'private\n%d\n1\nprivate\n700' "$(id -u nobody)")"
}

case_plain_io_where_io_uring_is_forbidden()
{
	[ "$TRANSPORT" = dev ] || skip "the transport uring needs io_uring"
	start "$D" "$M" -o transport=dev,io=pool
	echo by hand > "$M/pool"
	equal "$(cat "$M/pool")" "by hand"
	stop
	command -v strace > /dev/null || skip "the other half needs strace"
	export ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" # which cannot work below strace
	strace -f -qq -o /dev/null -e inject=io_uring_setup:error=EPERM "$KVFS" -o "data=$D,transport=dev" "$M" \
		2> "$T/words" < /dev/null &
	wait_for 20 is_mounted "$M" || fail "not mounted without io_uring: $(cat "$T/words")"
	equal "$(cat "$M/pool")" "by hand"
	grep -q 'io_uring is not available (Operation not permitted)' "$T/words" || fail "no word of it: $(cat "$T/words")"
	refused "io_uring" strace -f -qq -o /dev/null -e inject=io_uring_setup:error=EPERM "$KVFS" -f \
		-o "data=$T/data3,io=uring,transport=dev" "$T/mnt2"
	stop
}

case_install_and_uninstall()
{
	[ -z "$QUICK" ] || skip "the ordinary build is what is installed"
	make -s -C "$TOP" BUILD="$BUILD" DESTDIR="$T/root" PREFIX=/usr install > "$T/out" 2>&1 || fail "$(tail -n 1 "$T/out")"
	"$T/root/usr/bin/kvfs" -V > /dev/null || fail "kvfs does not run"
	[ -x "$T/root/usr/bin/kvfsctl" ] || fail "no kvfsctl"
	[ -f "$T/root/usr/share/man/man5/kvfs.conf.5" ] || fail "no manual"
	[ "$(readlink "$T/root/sbin/mount.fuse.kvfs")" = /usr/bin/kvfs ] || fail "no mount helper"
	make -s -C "$TOP" BUILD="$BUILD" DESTDIR="$T/root" PREFIX=/usr uninstall > "$T/out" 2>&1 || fail "uninstall"
	equal "$(find "$T/root" ! -type d)" "" "left behind"
}

case_make_run_twice()
{
	[ -z "$QUICK" ] || skip "the ordinary build is what is run"
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	BUILD=$BUILD "$TOP/scripts/run" "$T/run/mnt" "$T/run-data" > "$T/first" 2>&1 || fail "$(cat "$T/first")"
	grep -q 'is mounted at' "$T/first" || fail "it does not say where"
	grep -A 3 '^Try:' "$T/first" | tail -n 3 > "$T/try"
	(cd "$TOP" && bash -e "$T/try") > "$T/tried" 2>&1 || fail "the three commands: $(tail -n 1 "$T/tried")"
	BUILD=$BUILD "$TOP/scripts/run" "$T/run/mnt" "$T/run-data" > "$T/second" 2>&1 || fail "twice: $(cat "$T/second")"
	grep -q 'already mounted' "$T/second" || fail "it does not say so"
	refused "with other data, $T/run-data" env BUILD="$BUILD" "$TOP/scripts/run" "$T/run/mnt" "$T/run-data2"
	umount "$T/run/mnt" || fail "umount"
	# A tilde that the shell has not expanded.
	(cd "$T" && HOME=$T/run BUILD=$BUILD SUDO_UID='' "$TOP/scripts/run" '~/mnt' '~/data') > "$T/third" 2>&1 ||
		fail "with a tilde: $(cat "$T/third")"
	grep -q "is mounted at $T/run/mnt, data in $T/run/data" "$T/third" || fail "with a tilde: $(cat "$T/third")"
	umount "$T/run/mnt" || fail "umount"
	refused "without the tilde" env SUDO_UID=1 BUILD="$BUILD" "$TOP/scripts/run" '~/mnt' '~/data'
}

run_cases 90
