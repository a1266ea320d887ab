/* SPDX-License-Identifier: MIT */
/*
 * commit.pml - the commit protocol between those who wait, the ring and compaction (src/store/log_write.c, compact.c), as a
 * Promela model for spin. See README.md.
 *
 * Batches are numbered; two make a segment. A batch is open, then being written, written, durable (flushed), applied (the
 * index shows it, and who waited is answered). The roles writing, flushing and applying are held by one at a time; whoever
 * changes something runs drive() before he goes away. `atomic` stands for the log's lock.
 */
#ifndef BUG
#define BUG 0
#endif
#define KEYS    2
#define WRITERS 3
#define BATCHES 8
#define SEG(b)  ((b) / 2)

byte open_batch = 2;       /* takes appends; batches 0 and 1, segment 0, hold the first value of every key */
byte filled[BATCHES];      /* appends in it */
byte written = 1, durable = 1, applied = 1;
bool writing, flushing, applying;
byte being_written, being_flushed;

byte place[KEYS];          /* batch that holds the key's value, as the index says */
bool freed[5];             /* segments */
byte change_key[BATCHES];  /* what a batch does when it is applied: one change per append, bit by writer */
bool put_in[BATCHES * 2];  /* [batch * KEYS + key] a put */
bool moved_in[BATCHES * 2];/* [batch * KEYS + key] a relocation, valid if the key is still where it was */
byte moved_from[KEYS];
byte answered;

chan ring = [2] of { byte, byte }; /* operation under way: 1 write, 2 flush; batch */

inline apply_batch(b)
{
	key = 0;
	do
	:: key < KEYS ->
		if
		:: put_in[(b) * KEYS + key] -> place[key] = b
		:: else ->
			if
			:: moved_in[(b) * KEYS + key] && place[key] == moved_from[key] -> place[key] = b
			:: else -> skip
			fi
		fi;
		assert(!freed[SEG(place[key])]); /* what the index points to is there */
		key++
	:: else -> break
	od
}

/* Runs under the lock: starts what can be started. */
inline drive()
{
	if
	:: !writing && open_batch < BATCHES && filled[open_batch] > 0 ->
		writing = true;
		being_written = open_batch;
		open_batch++;
		ring ! 1, being_written
	:: else -> skip
	fi;
	if
	:: !flushing && written > durable ->
		flushing = true;
		being_flushed = written;
		ring ! 2, being_flushed
	:: else -> skip
	fi
}

/* A change goes into the open batch; answered when that is applied. */
proctype writer(byte k)
{
	byte mine;

	atomic {
		mine = open_batch;
		assert(mine < BATCHES);
		filled[mine]++;
		put_in[mine * KEYS + k] = true;
		drive()
	}
#if BUG == 1
	written >= mine;   /* answered as soon as it is written */
#else
	applied >= mine;
#endif
	assert(durable >= mine); /* an answer means that a power cut leaves it there */
	atomic { answered++ }
}

/* The ring: what is under way ends, in the order of the disk's choice. */
active proctype completions()
{
	byte op, b;

end:	do
	:: atomic { ring ?? [1, _] -> ring ?? 1, b; op = 1 };
		atomic {
			written = b;
			writing = false;
#if BUG != 3
			drive()
#endif
		}
	:: atomic { ring ?? [2, _] -> ring ?? 2, b; op = 2 };
		atomic {
			durable = b;
			flushing = false;
			drive()
		}
	od
}

/* The applying role: its callbacks run without the log's lock. */
active proctype applier()
{
	byte key, b;

end:	do
	:: atomic { !applying && durable > applied -> applying = true; b = applied + 1 };
		atomic { apply_batch(b) };
		atomic { applied = b; applying = false }
	od
}

/* Compaction of segment 0: what lives there is written anew, then the segment goes. */
proctype compactor()
{
	byte mine, key;
	bool lives;

	atomic {
		mine = open_batch;
		assert(mine < BATCHES);
		filled[mine]++;
		key = 0;
		do
		:: key < KEYS ->
			if
			:: SEG(place[key]) == 0 ->
				moved_from[key] = place[key];
				moved_in[mine * KEYS + key] = true
			:: else -> skip
			fi;
			key++
		:: else -> break
		od;
		drive()
	}
#if BUG == 2
	written >= mine; /* does not wait until the index has been told */
#else
	applied >= mine;
#endif
	atomic {
		key = 0;
		lives = false;
		do
		:: key < KEYS -> lives = lives || SEG(place[key]) == 0; key++
		:: else -> break
		od;
#if BUG == 2
		lives = false;
#endif
		if
		:: !lives -> freed[0] = true
		:: else -> skip
		fi;
		key = 0;
		do
		:: key < KEYS -> assert(!freed[SEG(place[key])]); key++
		:: else -> break
		od;
		assert(BUG != 0 || freed[0]);
		answered++
	}
}

init
{
	atomic {
		place[0] = 0;
		place[1] = 1;
		run writer(0);
		run writer(1);
		run writer(0);
		run compactor()
	}
	/* Nobody waits for ever: a state in which this is not reached and nothing can move is an error (invalid end state). */
	answered == WRITERS + 1
}
