// Wakes up on a grid of absolute times and does nothing else: what the system alone makes late.
//
//   bare_loop PERIOD_NS GRID_POINTS PRIORITY
//
// Times, skipped grid points and what is asked of the system are those of dpg_robot/deploy/clock.py. Writes a line
// "SCHED_FIFO=E mlockall=E", where E is 0 if it was granted and else the error number (-1: not asked for), and then for each
// wake-up two 64-bit integers: the grid point, from 1, and by how many nanoseconds it was late.

#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S INT64_C(1000000000)

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * NS_PER_S + time.tv_nsec;
}

static void sleep_until(int64_t time_ns) {
    const struct timespec time = {.tv_sec = time_ns / NS_PER_S, .tv_nsec = time_ns % NS_PER_S};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR) {
    }
}

static int set_fifo(int priority) {
    const struct sched_param parameters = {.sched_priority = priority};
    return sched_setscheduler(0, SCHED_FIFO, &parameters) == 0 ? 0 : errno;
}

static int lock_memory(void) {
    struct rlimit limit;
    const int unlimited = geteuid() == 0 || (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY);
    return mlockall(MCL_CURRENT | (unlimited ? MCL_FUTURE : 0)) == 0 ? 0 : errno;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: bare_loop PERIOD_NS GRID_POINTS PRIORITY\n");
        return 2;
    }
    const int64_t period_ns = atoll(argv[1]), points = atoll(argv[2]);
    const int priority = atoi(argv[3]);
    int64_t(*wakeups)[2] = malloc((size_t)points * sizeof *wakeups);
    if (period_ns <= 0 || points <= 0 || wakeups == NULL) {
        fprintf(stderr, "bare_loop: PERIOD_NS and GRID_POINTS must be positive and fit into the memory\n");
        return 2;
    }
    for (int64_t i = 0; i < points; i++) {
        wakeups[i][0] = 0;  // so that the pages exist
    }
    const int fifo = priority > 0 ? set_fifo(priority) : -1;
    const int locked = priority > 0 ? lock_memory() : -1;

    int64_t count = 0;
    const int64_t start_ns = now_ns();
    for (int64_t point = 1; point <= points; point++) {
        const int64_t behind_ns = now_ns() - (start_ns + point * period_ns);
        if (behind_ns > 0) {
            point += (behind_ns + period_ns - 1) / period_ns;
            if (point > points) {
                break;
            }
        }
        sleep_until(start_ns + point * period_ns);
        wakeups[count][0] = point;
        wakeups[count][1] = now_ns() - (start_ns + point * period_ns);
        count++;
    }

    printf("SCHED_FIFO=%d mlockall=%d\n", fifo, locked);
    const size_t written = fwrite(wakeups, sizeof *wakeups, (size_t)count, stdout);
    return written == (size_t)count && fflush(stdout) == 0 ? 0 : 1;
}
