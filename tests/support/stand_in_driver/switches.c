/* What tests set before a call, and count after it, by name. */

#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAMED(structure, field) {#field, &structure.field}

Switches switches = {
    .driver_version = 13000,
    .devices = 1,
    .capability = 90,
    .multiprocessors = 132,
    .total_memory = 80LL << 30,
    .pinned_memory = 16LL << 30,
};
Counts counts;

static const struct {
    const char *name;
    long long *value;
} named[] = {
    NAMED(switches, driver_version),
    NAMED(switches, init_result),
    NAMED(switches, context_result),
    NAMED(switches, devices),
    NAMED(switches, capability),
    NAMED(switches, multiprocessors),
    NAMED(switches, total_memory),
    NAMED(switches, other_memory),
    NAMED(switches, pinned_memory),
    NAMED(switches, refuse_captures),
    NAMED(switches, lenient),
    NAMED(counts, calls),
    NAMED(counts, captures),
    NAMED(counts, replays),
    NAMED(counts, launches),
    NAMED(counts, streams),
    NAMED(counts, events),
    NAMED(counts, graphs),
    NAMED(counts, executables),
    NAMED(counts, libraries),
    NAMED(counts, device_blocks),
    NAMED(counts, device_bytes),
    NAMED(counts, pinned_blocks),
    NAMED(counts, pinned_bytes),
};

static long long *find(const char *name) {
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        if (!strcmp(named[i].name, name)) return named[i].value;
    return NULL;
}

/* Whether there is a switch of that name, which is set. */
EXPORTED int stand_in_set(const char *name, long long value) {
    long long *found = find(name);
    if (found) *found = value;
    return found != NULL;
}

/* The value of a switch or a count; -1 if there is none of that name. */
EXPORTED long long stand_in_get(const char *name) {
    const long long *found = find(name);
    return found ? *found : -1;
}

/* Switches for a process that cannot be called: STAND_IN_DRIVER="devices=0 capability=75". */
__attribute__((constructor)) static void read_environment(void) {
    const char *given = getenv("STAND_IN_DRIVER");
    char name[64];
    long long value;
    int length;
    while (given && sscanf(given, " %63[a-z_]=%lld%n", name, &value, &length) == 2) {
        if (!stand_in_set(name, value)) {
            fprintf(stderr, "STAND_IN_DRIVER names no switch %s\n", name);
            abort();
        }
        given += length;
    }
}
