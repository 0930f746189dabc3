/*
 * The device side of the microcontroller protocol, version 1 (docs/microcontroller-protocol.md), for a board that owns a
 * robot's sensors and actuators. C99, no heap, no floating-point printing, about 400 bytes of RAM with the sizes below.
 *
 * The board gives its functions in a dpg_board, calls dpg_receive() with what the host sent and dpg_tick() at least every
 * millisecond. All calls come from one context (the main loop, not an interrupt).
 */
#ifndef DPG_LINK_H
#define DPG_LINK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef DPG_MAX_COMMANDS
#define DPG_MAX_COMMANDS 8 /* command channels, at most */
#endif
#ifndef DPG_MAX_MEASUREMENTS
#define DPG_MAX_MEASUREMENTS 16 /* measurement channels, at most */
#endif
#ifndef DPG_MAX_REPLY
#define DPG_MAX_REPLY 256 /* bytes of the longest reply before stuffing: Identity with all its names, at most 1024 */
#endif

#define DPG_VERSION 1
#define DPG_MAX_REQUEST (6 + 4 * DPG_MAX_COMMANDS + 4)

enum dpg_flag { DPG_ENABLED = 1, DPG_WATCHDOG_TRIPPED = 2, DPG_LIMIT_HIT = 4, DPG_HARDWARE_FAULT = 8 };

enum dpg_nack {
    DPG_NOT_ENABLED = 1,
    DPG_WATCHDOG = 2,
    DPG_NOT_FINITE = 3,
    DPG_OUT_OF_LIMITS = 4,
    DPG_WRONG_LENGTH = 5,
    DPG_FAULT = 6
};

typedef struct {
    const char *name; /* as in the robot's contract */
    const char *unit; /* SI: m, rad, m/s, rad/s, N, N m */
} dpg_measurement;

typedef struct {
    const char *name;
    const char *unit;
    float low, high; /* what the device accepts */
} dpg_command;

typedef struct {
    const char *name;     /* kind of device */
    const char *firmware; /* version of this program */
    uint32_t watchdog_us; /* time without an accepted command after which the effort is taken away */
    uint8_t num_measurements; /* at most DPG_MAX_MEASUREMENTS */
    uint8_t num_commands; /* at most DPG_MAX_COMMANDS */
    const dpg_measurement *measurements;
    const dpg_command *commands;
    void *context; /* handed to the functions below */
    /* Put one measurement into each of values; NaN for what could not be measured, never an old value. */
    void (*measure)(void *context, float *values);
    /* Apply commands, within their limits, from now on. */
    void (*apply)(void *context, const float *values);
    /* Take the effort from the actuators at once. */
    void (*release)(void *context);
    /* Return DPG_LIMIT_HIT and DPG_HARDWARE_FAULT as they stand; 0 for none. */
    uint16_t (*conditions)(void *context);
    /* Send bytes to the host. */
    void (*send)(void *context, const uint8_t *bytes, size_t count);
} dpg_board;

typedef struct {
    const dpg_board *board;
    uint64_t now_us, fed_us;
    uint32_t last_command;
    uint16_t flags; /* DPG_ENABLED and DPG_WATCHDOG_TRIPPED */
    float values[DPG_MAX_COMMANDS];
    uint8_t request[DPG_MAX_REQUEST];
    uint16_t received;  /* bytes of the request so far, unstuffed */
    uint8_t code, left; /* of the stuffing: the present block's code, and bytes left in it */
    uint32_t crc;       /* of these bytes */
    uint8_t reply[DPG_MAX_REPLY];
    uint16_t length; /* of the reply so far */
} dpg_link;

/* Begin with the actuators released. Returns 0, or -1 when the board has too many commands or too long names for the sizes above. */
int dpg_begin(dpg_link *link, const dpg_board *board);

/* Take what the host sent; answers requests as they are complete. */
void dpg_receive(dpg_link *link, const uint8_t *bytes, size_t count, uint64_t now_us);

/* Let time pass: takes the effort away when the watchdog expires. */
void dpg_tick(dpg_link *link, uint64_t now_us);

/* The host has gone (DTR fell, USB suspended): takes the effort away at once. */
void dpg_host_gone(dpg_link *link);

#ifdef __cplusplus
}
#endif

#endif
