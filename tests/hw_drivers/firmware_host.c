/* Runs the firmware's protocol on this computer: reads what happens from stdin, line by line, and prints what the board does.
 *
 *   R <now_us> <hex bytes>   the host sent bytes         T <now_us>   time passes          G   the host has gone
 *   M <value> ...            what the sensors read       C <flags>    conditions of the hardware
 *
 * Answers, each on a line: S <hex bytes> sent since the last line, A <value> ... applied, X released; '.' ends a line's answers.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dpg_link.h"

#define MEASUREMENTS 3
#define COMMANDS 2

static const dpg_measurement measurements[MEASUREMENTS] = {{"cart_position", "m"}, {"pole_angle", "rad"}, {"pole_velocity", "rad/s"}};
static const dpg_command commands[COMMANDS] = {{"cart_force", "N", -10.0f, 10.0f}, {"pole_torque", "N m", -0.5f, 1.5f}};
static float sensed[MEASUREMENTS];
static uint16_t conditions_now;
static uint8_t sent[65536];
static size_t sent_count;

static void measure(void *context, float *values) {
    (void)context;
    memcpy(values, sensed, sizeof sensed);
}

static void apply(void *context, const float *values) {
    (void)context;
    printf("A");
    for (int i = 0; i < COMMANDS; i++) {
        printf(" %.9g", (double)values[i]);
    }
    printf("\n");
}

static void release(void *context) {
    (void)context;
    printf("X\n");
}

static uint16_t conditions(void *context) {
    (void)context;
    return conditions_now;
}

static void keep_sent(void *context, const uint8_t *bytes, size_t count) {
    (void)context;
    memcpy(sent + sent_count, bytes, count);
    sent_count += count;
}

static const dpg_board board = {
    "test-board", "1.2.3", 60000, MEASUREMENTS, COMMANDS, measurements, commands, NULL, measure, apply, release, conditions, keep_sent,
};

static void receive(dpg_link *link, char *text) {
    static uint8_t bytes[65536];
    uint64_t now_us = strtoull(text, &text, 10);
    size_t count = 0;
    unsigned value;
    while (*text == ' ') {
        text++;
    }
    for (; sscanf(text, "%2x", &value) == 1; text += 2) {
        bytes[count++] = (uint8_t)value;
    }
    dpg_receive(link, bytes, count, now_us);
}

int main(void) {
    static dpg_link link;
    static char line[262144];
    if (dpg_begin(&link, &board) != 0) {
        return 1;
    }
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        char *rest = line + 1;
        switch (line[0]) {
        case 'R':
            receive(&link, rest);
            break;
        case 'T':
            dpg_tick(&link, strtoull(rest, NULL, 10));
            break;
        case 'G':
            dpg_host_gone(&link);
            break;
        case 'C':
            conditions_now = (uint16_t)strtoul(rest, NULL, 10);
            break;
        case 'M':
            for (int i = 0; i < MEASUREMENTS; i++) {
                sensed[i] = strtof(rest, &rest);
            }
            break;
        default:
            return 2;
        }
        if (sent_count) {
            printf("S ");
            for (size_t i = 0; i < sent_count; i++) {
                printf("%02x", sent[i]);
            }
            printf("\n");
            sent_count = 0;
        }
        printf(".\n");
        fflush(stdout);
    }
    return 0;
}
