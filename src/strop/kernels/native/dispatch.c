/* Which instruction set is used, and the exported functions that lead to it. */
#include "strop.h"

#include "operations.h"

#include <string.h>

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

#define DECLARE_PLAIN(result, name, parameters, arguments) result name##_plain parameters;
#define DECLARE_AVX2(result, name, parameters, arguments) result name##_avx2 parameters;
#define DECLARE_AVX512(result, name, parameters, arguments) result name##_avx512 parameters;
#define DECLARE_NEON(result, name, parameters, arguments) result name##_neon parameters;

STROP_OPERATIONS(DECLARE_PLAIN)

typedef struct {
    const char *name;
    int level;
#define FIELD(result, name, parameters, arguments) result(*name) parameters;
    STROP_OPERATIONS(FIELD)
} isa_type;

#define ENTRY_PLAIN(result, name, parameters, arguments) .name = name##_plain,
#define ENTRY_AVX2(result, name, parameters, arguments) .name = name##_avx2,
#define ENTRY_AVX512(result, name, parameters, arguments) .name = name##_avx512,
#define ENTRY_NEON(result, name, parameters, arguments) .name = name##_neon,

/* From the best to the one that every CPU has. */
#if defined(__x86_64__)
STROP_OPERATIONS(DECLARE_AVX2)
STROP_OPERATIONS(DECLARE_AVX512)
static const isa_type isas[] = {
    {"amx", LEVEL_AMX, STROP_OPERATIONS(ENTRY_AVX512)}, /* attention_amx.c alone knows more */
    {"avx512", LEVEL_AVX512, STROP_OPERATIONS(ENTRY_AVX512)},
    {"avx2", LEVEL_VECTOR, STROP_OPERATIONS(ENTRY_AVX2)},
    {"plain", LEVEL_PLAIN, STROP_OPERATIONS(ENTRY_PLAIN)},
};

static int supported(const isa_type *isa) {
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa->level == LEVEL_PLAIN) return 1;
    if (isa->level == LEVEL_VECTOR) return avx2;
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return avx512 && (isa->level == LEVEL_AVX512 || strop_amx());
}
#elif defined(__aarch64__)
STROP_OPERATIONS(DECLARE_NEON)
static const isa_type isas[] = {
    {"neon", LEVEL_VECTOR, STROP_OPERATIONS(ENTRY_NEON)},
    {"plain", LEVEL_PLAIN, STROP_OPERATIONS(ENTRY_PLAIN)},
};

static int supported(const isa_type *isa) { return isa != NULL; /* NEON is part of AArch64 */ }
#else
static const isa_type isas[] = {{"plain", LEVEL_PLAIN, STROP_OPERATIONS(ENTRY_PLAIN)}};

static int supported(const isa_type *isa) { return isa != NULL; }
#endif

enum { ISAS = sizeof isas / sizeof *isas };

/* Chosen by the first caller. Two threads that come first together choose the same. */
static const isa_type *chosen;

static const isa_type *current(void) {
    if (chosen == NULL) {
        int best = 0;
        while (!supported(&isas[best])) best++;
        chosen = &isas[best];
    }
    return chosen;
}

int strop_level(void) { return current()->level; }

STROP_API int strop_abi(void) { return STROP_ABI; }

/* "amx", "avx512", "avx2", "neon" or "plain". */
STROP_API const char *strop_isa(void) { return current()->name; }

/* Uses the instruction set of that name from now on; 0 when this CPU or build has none, and nothing changes. */
STROP_API int strop_use(const char *name) {
    for (int index = 0; index < ISAS; index++)
        if (strcmp(isas[index].name, name) == 0 && supported(&isas[index])) {
            chosen = &isas[index];
            return 1;
        }
    return 0;
}

#define EXPORT(result, name, parameters, arguments) \
    STROP_API result PASTE(strop_, name) parameters { return current()->name arguments; }
STROP_OPERATIONS(EXPORT)
