# kvfs: a key-value store used as a directory. `make help` lists the targets.
# SPDX-License-Identifier: MIT

VERSION := 0.1.0

# ---- what you may set on the command line ----------------------------------------------------------------------
MNT    ?= /mnt/kv
DATA   ?= /var/lib/kvfs
PREFIX ?= /usr/local
DESTDIR ?=
# Where mount(8) looks for helpers; empty: do not install mount.fuse.kvfs.
MOUNT_HELPER_DIR ?= /sbin
SYSCONFDIR ?= /etc
# address, undefined or thread: builds into build-asan, build-ubsan, build-tsan; fuzz (clang): build-fuzz
SAN    ?=
WERROR ?=
CFLAGS ?= -O2 -g
LDFLAGS ?=
PKG_CONFIG ?= pkg-config
FUZZ_TIME ?= 60
FUZZ_TARGETS ?=
FUZZ_CC ?= clang

SUFFIX.address := -asan
SUFFIX.undefined := -ubsan
SUFFIX.thread := -tsan
SUFFIX.fuzz := -fuzz
BUILD  ?= build$(SUFFIX.$(SAN))

# ---- flags -----------------------------------------------------------------------------------------------------
cc-option = $(shell $(CC) -Werror $(1) -x c -c /dev/null -o /dev/null 2>/dev/null && echo $(1))

WARN := -Wall -Wextra -Wshadow -Wvla -Wmissing-prototypes -Wstrict-prototypes -Wpointer-arith -Wwrite-strings -Wundef \
	-Wformat=2
ifneq ($(filter-out 0,$(WERROR)),)
WARN += -Werror
endif

ifeq ($(SAN),)
HARDEN := -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 \
	$(call cc-option,-fstack-clash-protection) $(call cc-option,-fcf-protection)
SANFLAGS :=
else ifeq ($(SAN),address)
SANFLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
else ifeq ($(SAN),fuzz)
SANFLAGS := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
else
SANFLAGS := -fsanitize=$(SAN) -fno-omit-frame-pointer
endif

PKGS := fuse3 liburing libxxhash inih
NEED_BUILD := $(if $(MAKECMDGOALS),$(filter-out help clean uninstall run check check-asan check-tsan check-helgrind check-spin check-kernel check-layers fuzz bench,$(MAKECMDGOALS)),all)
ifneq ($(NEED_BUILD),)
MISSING := $(shell for p in $(PKGS); do $(PKG_CONFIG) --exists $$p 2>/dev/null || echo $$p; done)
ifneq ($(MISSING),)
$(error missing libraries: $(MISSING); "scripts/setup build" installs them (Debian))
endif
PKG_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PKGS))
PKG_LIBS := $(shell $(PKG_CONFIG) --libs $(PKGS)) -pthread
TEST_LIBS = $(shell $(PKG_CONFIG) --libs cmocka 2>/dev/null || echo -lcmocka)
endif

ALL_CPPFLAGS = -D_GNU_SOURCE -DKVFS_VERSION='"$(VERSION)"' -DKVFS_SYSCONFDIR='"$(SYSCONFDIR)"' -Isrc $(PKG_CFLAGS) \
	$(CPPFLAGS)
ALL_CFLAGS = -std=gnu11 $(WARN) -fPIE -pthread $(CFLAGS) $(HARDEN) $(SANFLAGS)
ALL_LDFLAGS = -pie -Wl,-z,relro,-z,now -Wl,-z,noexecstack $(SANFLAGS) $(LDFLAGS)

# ---- files -----------------------------------------------------------------------------------------------------
LIB_SRC   := $(sort $(wildcard src/base/*.c src/store/*.c src/mount/*.c))
CTL_SRC   := $(sort $(wildcard src/ctl/*.c))
TEST_SRC  := $(sort $(wildcard tests/test_*.c))
FUZZ_MAIN := tests/fuzz/libfuzzer.c
HELP_SRC  := $(sort $(filter-out $(TEST_SRC) $(FUZZ_MAIN),$(wildcard tests/*.c tests/fuzz/*.c)))
MTEST_SRC := $(sort $(wildcard tests/mount/*.c))
BENCH_SRC := $(sort $(wildcard tests/bench/*.c))
BLIB_SRC  := $(sort $(wildcard tests/bench/lib/*.c))

obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
LIB     := $(BUILD)/libkvfs.a
CTLLIB  := $(if $(filter-out src/ctl/main.c,$(CTL_SRC)),$(BUILD)/libctl.a)
TESTLIB := $(if $(HELP_SRC),$(BUILD)/tests/libtest.a)
TESTS   := $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC))
MTESTS  := $(patsubst tests/%.c,$(BUILD)/tests/%,$(MTEST_SRC))
BENCHLIB := $(if $(BLIB_SRC),$(BUILD)/tests/libbench.a)
BENCHES := $(patsubst tests/%.c,$(BUILD)/tests/%,$(BENCH_SRC))
PROGS   := $(BUILD)/kvfs $(if $(CTL_SRC),$(BUILD)/kvfsctl)

# V=1 shows the commands in full.
ifeq ($(V),)
say = @printf '  %-5s %s\n' '$(1)' '$@';
endif

.PHONY: all run check check-planted crash-campaign crash-replay check-asan check-tsan check-layers lint install uninstall
.PHONY: check-helgrind help clean bench benches tests fuzz model-campaign kill-campaign powercut-campaign check-spin check-kernel FORCE
.DELETE_ON_ERROR:
.SUFFIXES:

all: $(PROGS)

tests: $(PROGS) $(TESTS) $(MTESTS)

# The flags that the objects were made with; a change rebuilds them.
$(BUILD)/.flags: FORCE
	@mkdir -p $(BUILD)
	@printf '%s\n' '$(CC) $(CFLAGS) $(CPPFLAGS) $(SANFLAGS) $(HARDEN) $(SYSCONFDIR) $(VERSION)' > $@.$$$$; \
	if cmp -s $@.$$$$ $@; then rm -f $@.$$$$; else mv -f $@.$$$$ $@; fi

$(BUILD)/obj/%.o: %.c $(BUILD)/.flags
	@mkdir -p $(@D)
	$(call say,CC) $(CC) $(ALL_CPPFLAGS) $(TESTINC) $(RIVALDEF) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/obj/tests/%.o: TESTINC := -Itests

$(LIB): $(call obj,$(LIB_SRC))
	@rm -f $@
	$(call say,AR) $(AR) rcs $@ $^

$(BUILD)/libctl.a: $(call obj,$(filter-out src/ctl/main.c,$(CTL_SRC)))
	@rm -f $@
	$(call say,AR) $(AR) rcs $@ $^

$(BUILD)/tests/libtest.a: $(call obj,$(HELP_SRC))
	@mkdir -p $(@D)
	@rm -f $@
	$(call say,AR) $(AR) rcs $@ $^

$(BUILD)/kvfs: $(call obj,src/main.c) $(LIB)
	$(call say,LINK) $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS)

$(BUILD)/kvfsctl: $(call obj,src/ctl/main.c) $(CTLLIB) $(LIB)
	$(call say,LINK) $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

# Functions that a test program puts a wrapper around: planted bugs (tests/crash_plant.c).
CRASH_WRAP := getrandom log_store_open log_recover compact_step checkpoint_write log_sync_wait log_segment_retire log_append \
	expire_op record_decode batch_header_decode batch_trailer_check tomb_needed first_segment op_try
$(BUILD)/tests/test_crash: TEST_WRAP := $(CRASH_WRAP:%=-Wl,--wrap=%)
ALLOC_WRAP := malloc calloc realloc posix_memalign aligned_alloc
$(BUILD)/tests/test_log_direct: TEST_WRAP := -Wl,--wrap=realloc
$(BUILD)/tests/test_crash_faults $(BUILD)/tests/test_counts: TEST_WRAP := $(ALLOC_WRAP:%=-Wl,--wrap=%)

$(TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(TESTLIB) $(CTLLIB) $(LIB)
	@mkdir -p $(@D)
	$(call say,LINK) $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) $(TEST_WRAP) -o $@ $^ $(TEST_LIBS) $(PKG_LIBS) -lm

# kvfs itself, with wrappers around what flushes the log, three requests and a clock.
GATE_WRAP := io_pwritev io_fdatasync op_open op_getattr op_release mono_ns
$(BUILD)/tests/mount/kvfs-gate: TEST_WRAP := $(GATE_WRAP:%=-Wl,--wrap=%)
$(BUILD)/tests/mount/kvfs-gate: $(call obj,src/main.c)

$(MTESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(TESTLIB) $(CTLLIB) $(LIB)
	@mkdir -p $(@D)
	$(call say,LINK) $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) $(TEST_WRAP) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(PKG_LIBS) -lm

# The rivals of the benchmark are optional: what is not installed is left out, and its cells say so.
RIVAL_PKGS := $(if $(NEED_BUILD),$(shell for p in rocksdb lmdb hiredis; do $(PKG_CONFIG) --exists $$p 2>/dev/null && echo $$p; done))
RIVAL_DEFS := $(if $(filter rocksdb,$(RIVAL_PKGS)),-DHAVE_ROCKSDB) $(if $(filter lmdb,$(RIVAL_PKGS)),-DHAVE_LMDB) \
	$(if $(filter hiredis,$(RIVAL_PKGS)),-DHAVE_HIREDIS)
RIVAL_LIBS = $(if $(RIVAL_PKGS),$(shell $(PKG_CONFIG) --libs $(RIVAL_PKGS)))
BENCH_OBJ := $(call obj,$(BENCH_SRC) $(BLIB_SRC))

$(BUILD)/.rivals: FORCE
	@mkdir -p $(BUILD)
	@printf '%s\n' '$(RIVAL_PKGS)' > $@.$$$$; \
	if cmp -s $@.$$$$ $@; then rm -f $@.$$$$; else mv -f $@.$$$$ $@; fi

$(BENCH_OBJ): RIVALDEF = $(RIVAL_DEFS)
$(BENCH_OBJ): $(BUILD)/.rivals

$(BUILD)/tests/libbench.a: $(call obj,$(BLIB_SRC))
	@mkdir -p $(@D)
	@rm -f $@
	$(call say,AR) $(AR) rcs $@ $^

$(BENCHES): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(BENCHLIB) $(LIB)
	@mkdir -p $(@D)
	$(call say,LINK) $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS) $(RIVAL_LIBS) -lm
$(BUILD)/fuzz: $(call obj,$(FUZZ_MAIN)) $(TESTLIB) $(CTLLIB) $(LIB)
	$(call say,LINK) $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(PKG_LIBS)

# Keep the objects of the tests: without this, make would treat them as intermediate and delete them.
.SECONDARY:

-include $(patsubst %.o,%.d,$(call obj,src/main.c $(LIB_SRC) $(CTL_SRC) $(TEST_SRC) $(HELP_SRC) $(MTEST_SRC) $(BENCH_SRC) $(BLIB_SRC)))
-include $(patsubst %.o,%.d,$(call obj,src/main.c $(LIB_SRC) $(CTL_SRC) $(TEST_SRC) $(HELP_SRC) $(MTEST_SRC) $(BENCH_SRC) $(FUZZ_MAIN)))

# ---- run and check ---------------------------------------------------------------------------------------------
run:
	@scripts/setup build
	@$(MAKE) --no-print-directory all
	@BUILD='$(BUILD)' scripts/run '$(MNT)' '$(DATA)'

check:
	@scripts/setup build test
	@$(MAKE) --no-print-directory tests
	@BUILD='$(BUILD)' scripts/check

# Planted bugs: which of them the crash explorer finds.
check-planted: $(BUILD)/tests/test_crash
	@$(BUILD)/tests/test_crash --planted

# Power cuts: 15 workloads x SEEDS x POINTS crash points x IMAGES, from seed SEED on, in JOBS processes.
crash-campaign: $(BUILD)/tests/test_crash
	@KVFS_CRASH_SEED='$(SEED)' KVFS_CRASH_JOBS='$(JOBS)' $(BUILD)/tests/test_crash --campaign $(or $(SEEDS),20) \
		$(or $(POINTS),500) $(or $(IMAGES),6)

# One of them again: WORKLOAD SEED [POINT IMAGE]; CX_VERBOSE=1 shows what the engine says and the disk was asked to do.
crash-replay: $(BUILD)/tests/test_crash
	@$(BUILD)/tests/test_crash --replay '$(or $(WORKLOAD),small-puts)' '$(or $(SEED),1)' $(POINT) $(IMAGE)

check-asan:
	@scripts/setup build test
	@$(MAKE) --no-print-directory SAN=address BUILD=build-asan tests
	@BUILD=build-asan TRANSPORTS='$(or $(TRANSPORTS),dev)' QUICK=1 TEST_TIMEOUT='$(or $(TEST_TIMEOUT),900)' scripts/check

check-tsan:
	@scripts/setup build test
	@$(MAKE) --no-print-directory SAN=thread BUILD=build-tsan tests
	@BUILD=build-tsan TRANSPORTS='$(or $(TRANSPORTS),dev)' QUICK=1 TEST_TIMEOUT='$(or $(TEST_TIMEOUT),900)' scripts/check

check-helgrind:
	@scripts/setup build test helgrind
	@$(MAKE) --no-print-directory CFLAGS='-O1 -g -DKVFS_HELGRIND' BUILD=build-helgrind tests
	@BUILD=build-helgrind scripts/check-helgrind

# Campaigns: what `make check` does a little of, for as long as you like.
SEQUENCES ?= 10000
model-campaign: tests
	@TRANSPORTS='$(or $(TRANSPORTS),dev uring)' BUILD='$(BUILD)' TESTS_MATCH=11-model SEQUENCES='$(SEQUENCES)' \
		SEED='$(or $(SEED),$(shell date +%s))' TEST_TIMEOUT=7200 scripts/check

KILLS ?= 1000
kill-campaign: tests
	@set -- $(or $(TRANSPORTS),dev uring); \
	TRANSPORTS="$$*" BUILD='$(BUILD)' TESTS_MATCH=08-sigkill KILLS=$$(($(KILLS) / $$#)) NOTES=1 \
		SEED='$(or $(SEED),$(shell date +%s))' TEST_TIMEOUT=7200 scripts/check

ROUNDS ?= 40
CUTS ?= 25
powercut-campaign: tests
	@KVFS='$(BUILD)/kvfs' BUILD='$(BUILD)' ROUNDS='$(ROUNDS)' CUTS='$(CUTS)' SEED='$(or $(SEED),$(shell date +%s))' \
		python3 tests/campaign/powercut.py

check-spin:
	@scripts/setup spin
	@tests/spin/check

check-kernel:
	@scripts/setup build test kernel
	@$(MAKE) --no-print-directory tests
	@BUILD='$(BUILD)' scripts/check-kernel
# FUZZ_TIME: seconds for all targets together; FUZZ_TARGETS: only these; see scripts/fuzz.
fuzz:
	@scripts/setup build fuzz
	@$(MAKE) --no-print-directory SAN=fuzz CC='$(FUZZ_CC)' BUILD=build-fuzz build-fuzz/fuzz
	@BUILD=build-fuzz FUZZ_TIME='$(FUZZ_TIME)' FUZZ_TARGETS='$(FUZZ_TARGETS)' scripts/fuzz

check-layers:
	@scripts/check-layers

TIDY_SRC := src/main.c $(LIB_SRC) $(CTL_SRC)
lint: check-layers
	cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
		--suppress=missingIncludeSystem -D_GNU_SOURCE -DKVFS_VERSION='""' -DKVFS_SYSCONFDIR='""' -Isrc src
	clang-tidy --quiet --warnings-as-errors='*' $(TIDY_SRC) -- -std=gnu11 $(ALL_CPPFLAGS)

benches: all $(BENCHES)

# BENCHFLAGS: --quick, --full, --growth, --plot …; `scripts/bench --help` lists them.
bench:
	@scripts/setup build bench
	@$(MAKE) --no-print-directory benches
	@BUILD='$(BUILD)' scripts/bench $(BENCHFLAGS)

# ---- install ---------------------------------------------------------------------------------------------------
MAN5 := $(sort $(wildcard man/*.5))
MAN8 := $(sort $(wildcard man/*.8))

install: all
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/share/man/man5' '$(DESTDIR)$(PREFIX)/share/man/man8' \
		'$(DESTDIR)$(PREFIX)/share/doc/kvfs'
	install -m 755 $(PROGS) '$(DESTDIR)$(PREFIX)/bin/'
	$(if $(MAN5),install -m 644 $(MAN5) '$(DESTDIR)$(PREFIX)/share/man/man5/')
	$(if $(MAN8),install -m 644 $(MAN8) '$(DESTDIR)$(PREFIX)/share/man/man8/')
	install -m 644 kvfs.conf '$(DESTDIR)$(PREFIX)/share/doc/kvfs/kvfs.conf'
ifneq ($(MOUNT_HELPER_DIR),)
	install -d '$(DESTDIR)$(MOUNT_HELPER_DIR)'
	ln -sfn '$(PREFIX)/bin/kvfs' '$(DESTDIR)$(MOUNT_HELPER_DIR)/mount.fuse.kvfs'
endif
	@echo "Installed. The commented configuration is $(PREFIX)/share/doc/kvfs/kvfs.conf; copy it to $(SYSCONFDIR) to use it."

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/bin/kvfs' '$(DESTDIR)$(PREFIX)/bin/kvfsctl'
	rm -f $(patsubst man/%,'$(DESTDIR)$(PREFIX)/share/man/man5/%',$(MAN5))
	rm -f $(patsubst man/%,'$(DESTDIR)$(PREFIX)/share/man/man8/%',$(MAN8))
	rm -rf '$(DESTDIR)$(PREFIX)/share/doc/kvfs'
	$(if $(MOUNT_HELPER_DIR),rm -f '$(DESTDIR)$(MOUNT_HELPER_DIR)/mount.fuse.kvfs')

clean:
	rm -rf build build-asan build-ubsan build-tsan build-helgrind build-fuzz

help:
	@echo 'make                 build/kvfs and build/kvfsctl'
	@echo 'make run             install what is missing, build, mount at MNT=$(MNT) with DATA=$(DATA)'
	@echo 'make check           install what tests need, build, run every test; last line: N passed, N failed'
	@echo 'make check-planted   plant bugs in the store, one after the other: the crash explorer must find each'
	@echo 'make crash-campaign  power cuts by the hundred thousand on a simulated disk (SEED, SEEDS=20 POINTS=500 IMAGES=6 JOBS=2)'
	@echo 'make crash-replay    one of them again: WORKLOAD=name SEED=n [POINT=n IMAGE=n]'
	@echo 'make check-asan      the tests under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make check-tsan      the tests under ThreadSanitizer'
	@echo 'make check-helgrind  tests with threads and the daemon in helgrind (valgrind); reports that are not explained fail'
	@echo 'make model-campaign  SEQUENCES=$(SEQUENCES) random sequences of calls against the model of the contract (SEED=n)'
	@echo 'make kill-campaign   KILLS=$(KILLS) times SIGKILL, two fifths at random, the rest in six phases; what was acknowledged compared (SEED=n)'
	@echo 'make powercut-campaign  ROUNDS=$(ROUNDS) workloads on a recorded disk, each with CUTS=$(CUTS) power cuts (root; SEED=n)'
	@echo 'make check-spin      every interleaving of a model of the commit protocol (tests/spin)'
	@echo 'make check-kernel    a short set of mount tests on the 6.1 kernel of Debian 12, booted in qemu'
	@echo 'make fuzz            run the fuzz targets for FUZZ_TIME=$(FUZZ_TIME) seconds (clang)'
	@echo 'make lint            clang-tidy, cppcheck and the direction of includes'
	@echo 'make bench           build and run the benchmarks'
	@echo 'make install         to DESTDIR=$(DESTDIR) PREFIX=$(PREFIX); mount helper in MOUNT_HELPER_DIR=$(MOUNT_HELPER_DIR)'
	@echo 'make uninstall       take it away again (configuration and data stay)'
	@echo 'make clean           remove what was built'
	@echo
	@echo 'Variables: CC CFLAGS LDFLAGS SAN=address|undefined|thread WERROR=1 BUILD=dir TRANSPORTS="dev uring" TESTS_MATCH=text'
