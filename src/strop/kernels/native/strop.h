/* What every file of the library shares: what is exported, the pool of threads, scratch memory, the CPU's level.
 *
 * The library has no state but this pool, its scratch memory and the chosen instruction set. It knows pointers and
 * sizes, nothing of Python or torch. Sizes are int64_t elements, strides int64_t elements from one row to the next.
 */
#ifndef STROP_H
#define STROP_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define STROP_API __declspec(dllexport)
#else
#define STROP_API __attribute__((visibility("default")))
#endif

/* Raised whenever an exported function changes: library.py refuses a library that says another number. */
#define STROP_ABI 3

/* Files that are compiled once for every instruction set (hatch_build.py names them) get -DISA=avx512 and so on;
 * ISA_NAME(rows) is then rows_avx512. */
#define STROP_JOIN_(name, isa) name##_##isa
#define STROP_JOIN(name, isa) STROP_JOIN_(name, isa)
#define ISA_NAME(name) STROP_JOIN(name, ISA)

/* The instruction set in use. LEVEL_VECTOR is AVX2 with FMA and F16C on x86-64, NEON on AArch64; LEVEL_AMX is AVX-512
 * with its bfloat16, and tiles that multiply it. */
enum { LEVEL_PLAIN = 0, LEVEL_VECTOR = 1, LEVEL_AVX512 = 2, LEVEL_AMX = 3 };
int strop_level(void);

/* Whether this CPU, system and build have AMX; the system is asked for it once. */
int strop_amx(void);

/* --- pool.c ------------------------------------------------------------------------------------------------------ */

#define STROP_MAX_THREADS 256

typedef void (*strop_task)(void *context, int task, int worker);

/* Runs tasks 0 … tasks-1 on the pool and returns when all are done. Tasks are taken one by one, in order, by whoever is
 * free; the caller is worker 0. A call from inside a task runs inline, as that task's worker (and on its scratch); a
 * call from another thread waits for its turn. */
void strop_parallel(int tasks, strop_task run, void *context);

/* The threads that take part, the caller included. They start with the first call that needs them, and sleep between
 * calls. */
STROP_API int strop_threads(void);
STROP_API void strop_set_threads(int threads);

/* At least `bytes` of memory, aligned to 64 bytes, that belongs to a worker until it asks again: growing loses what it
 * held. NULL when there is none. Only inside a task. */
void *strop_scratch(int worker, size_t bytes);

/* Frees all scratch memory. */
STROP_API void strop_release(void);

#endif
