/* Whether there are tiles (AMX) to multiply bfloat16 with: in the CPU, in the build, and by leave of the system.
 *
 * Linux keeps tiles from a process until it asks, since they add 8 KiB to what a switch between threads has to keep.
 * (Linux: Documentation/arch/x86/xstate.rst.)
 */
#define _GNU_SOURCE /* syscall */
#include "strop.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

extern const int attention_amx_compiled;

enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */

static int cpu_has_tiles(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* OSXSAVE */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const int tiles = (d >> 22 & 1) && (d >> 24 & 1); /* AMX-BF16, AMX-TILE */
    if (a < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return 0;
    const int rounds = a >> 5 & 1; /* AVX512-BF16 */
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return tiles && rounds && (low >> 17 & 3) == 3; /* the system keeps their configuration and their data */
}

int strop_amx(void) {
    static int known; /* 1: no, 2: yes. Two threads that come first together ask twice. */
    if (known == 0)
        known = attention_amx_compiled && cpu_has_tiles() &&
                        syscall(SYS_arch_prctl, ASK_FOR_STATE, (unsigned long)TILE_DATA) == 0
                    ? 2
                    : 1;
    return known == 2;
}
#else
int strop_amx(void) { return 0; }
#endif
