#include "dpg_link.h"

#include <string.h>

#define CRC_START 0xFFFFFFFFu
#define CRC_WHOLE 0xDEBB20E3u /* what is left of a body with its own CRC behind it */
#define MAX_BODY 1024

enum { HELLO = 0x01, ENABLE, DISABLE, READ_STATE, COMMAND, IDENTITY = 0x81, STATE, ACK, NACK };

/* CRC-32 of Ethernet and zlib, four bits at a time: a table of 64 bytes instead of 1024. */
static uint32_t crc_after(uint32_t crc, uint8_t byte) {
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C,
    };
    crc = table[(crc ^ byte) & 15] ^ (crc >> 4);
    return table[(crc ^ (byte >> 4)) & 15] ^ (crc >> 4);
}

static uint32_t get_u32(const uint8_t *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static float get_f32(const uint8_t *bytes) {
    uint32_t bits = get_u32(bytes);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Fields that do not fit are counted and not written, so that dpg_begin() can refuse what would be too long. */
static void put(dpg_link *link, uint64_t value, int size) {
    for (int i = 0; i < size; i++, link->length++) {
        if (link->length < DPG_MAX_REPLY) {
            link->reply[link->length] = (uint8_t)(value >> (8 * i));
        }
    }
}

static void put_f32(dpg_link *link, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put(link, bits, 4);
}

static void put_text(dpg_link *link, const char *text) {
    size_t size = strlen(text);
    if (size > 255) {
        size = 255;
    }
    put(link, size, 1);
    for (size_t i = 0; i < size; i++) {
        put(link, (uint8_t)text[i], 1);
    }
}

static void begin_reply(dpg_link *link, uint8_t type, uint32_t sequence) {
    link->length = 0;
    put(link, DPG_VERSION, 1);
    put(link, type, 1);
    put(link, sequence, 4);
    put(link, link->now_us, 8);
}

static void send_stuffed(dpg_link *link) {
    static const uint8_t delimiter = 0;
    const dpg_board *board = link->board;
    size_t start = 0;
    uint8_t code;
    board->send(board->context, &delimiter, 1);
    for (;;) { /* a block: its code, which is its length and one, then bytes that are not zero */
        size_t size = 0;
        while (size < 254 && start + size < link->length && link->reply[start + size] != 0) {
            size++;
        }
        code = (uint8_t)(size + 1);
        board->send(board->context, &code, 1);
        board->send(board->context, link->reply + start, size);
        start += size;
        if (start >= link->length) {
            break;
        }
        if (code != 255) {
            start++; /* the zero that this block stands for */
        }
    }
    board->send(board->context, &delimiter, 1);
}

static void end_reply(dpg_link *link) {
    uint32_t crc = CRC_START;
    for (size_t i = 0; i < link->length; i++) {
        crc = crc_after(crc, link->reply[i]);
    }
    put(link, ~crc, 4);
    send_stuffed(link);
}

static void put_identity(dpg_link *link, uint32_t sequence) {
    const dpg_board *board = link->board;
    begin_reply(link, IDENTITY, sequence);
    put(link, board->watchdog_us, 4);
    put(link, board->num_measurements, 1);
    put(link, board->num_commands, 1);
    put_text(link, board->name);
    put_text(link, board->firmware);
    for (int i = 0; i < board->num_measurements; i++) {
        put_text(link, board->measurements[i].name);
        put_text(link, board->measurements[i].unit);
    }
    for (int i = 0; i < board->num_commands; i++) {
        put_text(link, board->commands[i].name);
        put_text(link, board->commands[i].unit);
        put_f32(link, board->commands[i].low);
        put_f32(link, board->commands[i].high);
    }
}

static void put_state(dpg_link *link, uint32_t sequence) {
    const dpg_board *board = link->board;
    begin_reply(link, STATE, sequence);
    put(link, link->flags | board->conditions(board->context), 2);
    put(link, link->last_command, 4);
    float values[DPG_MAX_MEASUREMENTS];
    board->measure(board->context, values);
    for (int i = 0; i < board->num_measurements; i++) {
        put_f32(link, values[i]);
    }
}

static void switch_off(dpg_link *link) {
    link->flags &= (uint16_t)~DPG_ENABLED;
    memset(link->values, 0, sizeof link->values);
    link->board->release(link->board->context);
}

static void apply(dpg_link *link) {
    link->board->apply(link->board->context, link->values);
}

static void apply_zeros(dpg_link *link) {
    memset(link->values, 0, sizeof link->values);
    apply(link);
}

/* Return why a command must not be applied, 0 if it may. */
static uint8_t refusal(const dpg_link *link, const uint8_t *payload, size_t size) {
    const dpg_board *board = link->board;
    if (board->conditions(board->context) & DPG_HARDWARE_FAULT) {
        return DPG_FAULT;
    }
    if (link->flags & DPG_WATCHDOG_TRIPPED) {
        return DPG_WATCHDOG;
    }
    if (!(link->flags & DPG_ENABLED)) {
        return DPG_NOT_ENABLED;
    }
    if (size != 4u * board->num_commands) {
        return DPG_WRONG_LENGTH;
    }
    for (int i = 0; i < board->num_commands; i++) {
        if ((get_u32(payload + 4 * i) & 0x7F800000u) == 0x7F800000u) {
            return DPG_NOT_FINITE;
        }
    }
    for (int i = 0; i < board->num_commands; i++) {
        float value = get_f32(payload + 4 * i);
        if (value < board->commands[i].low || value > board->commands[i].high) {
            return DPG_OUT_OF_LIMITS;
        }
    }
    return 0;
}

static void answer(dpg_link *link, uint32_t sequence, uint8_t reason) {
    begin_reply(link, reason ? NACK : ACK, sequence);
    if (reason) {
        put(link, reason, 1);
    }
    end_reply(link);
}

static void handle_command(dpg_link *link, uint32_t sequence, const uint8_t *payload, size_t size) {
    uint8_t reason = refusal(link, payload, size);
    if (reason) {
        if (link->flags & DPG_ENABLED) {
            apply_zeros(link); /* without feeding the watchdog */
        }
    } else {
        for (int i = 0; i < link->board->num_commands; i++) {
            link->values[i] = get_f32(payload + 4 * i);
        }
        apply(link);
        link->fed_us = link->now_us;
        link->last_command = sequence;
    }
    answer(link, sequence, reason);
}

static void handle_enable(dpg_link *link, uint32_t sequence) {
    if (link->board->conditions(link->board->context) & DPG_HARDWARE_FAULT) {
        answer(link, sequence, DPG_FAULT);
        return;
    }
    link->flags = DPG_ENABLED;
    link->fed_us = link->now_us;
    apply_zeros(link);
    answer(link, sequence, 0);
}

/* Carry out a whole request; bytes that are none are dropped without an answer. */
static void handle(dpg_link *link) {
    const uint8_t *body = link->request;
    size_t size = link->received;
    if (size < 10 || size > MAX_BODY || link->crc != CRC_WHOLE || body[0] != DPG_VERSION) {
        return;
    }
    uint32_t sequence = get_u32(body + 2);
    size_t payload = size - 10;
    if (body[1] == COMMAND ? payload % 4 != 0 : payload != 0) {
        return;
    }
    switch (body[1]) {
    case HELLO:
        switch_off(link);
        link->last_command = 0;
        put_identity(link, sequence);
        end_reply(link);
        break;
    case ENABLE:
        handle_enable(link, sequence);
        break;
    case DISABLE:
        switch_off(link);
        answer(link, sequence, 0);
        break;
    case READ_STATE:
        put_state(link, sequence);
        end_reply(link);
        break;
    case COMMAND:
        handle_command(link, sequence, body + 6, payload);
        break;
    default:
        break;
    }
}

static void begin_request(dpg_link *link) {
    link->received = 0;
    link->crc = CRC_START;
    link->code = 0;
    link->left = 0;
}

/* Of a request that is too long only the first bytes are kept, which is enough to say why it is refused. */
static void keep(dpg_link *link, uint8_t byte) {
    if (link->received < DPG_MAX_REQUEST) {
        link->request[link->received] = byte;
    }
    if (link->received <= MAX_BODY) {
        link->received++;
        link->crc = crc_after(link->crc, byte);
    }
}

static void receive_byte(dpg_link *link, uint8_t byte) {
    if (byte == 0) {
        if (link->left == 0) {
            handle(link);
        }
        begin_request(link);
    } else if (link->left > 0) {
        keep(link, byte);
        link->left--;
    } else { /* a new block; the one before stands for a zero, unless it was a longest one or there was none */
        if (link->code != 0 && link->code != 255) {
            keep(link, 0);
        }
        link->code = byte;
        link->left = (uint8_t)(byte - 1);
    }
}

int dpg_begin(dpg_link *link, const dpg_board *board) {
    memset(link, 0, sizeof *link);
    link->board = board;
    begin_request(link);
    put_identity(link, 0);
    size_t identity = link->length + 4u;
    size_t state = 20u + 4u * board->num_measurements + 4u;
    if (board->num_commands > DPG_MAX_COMMANDS || board->num_measurements > DPG_MAX_MEASUREMENTS || identity > DPG_MAX_REPLY ||
        state > DPG_MAX_REPLY) {
        return -1;
    }
    board->release(board->context);
    return 0;
}

void dpg_tick(dpg_link *link, uint64_t now_us) {
    link->now_us = now_us;
    if ((link->flags & DPG_ENABLED) && now_us - link->fed_us > link->board->watchdog_us) {
        switch_off(link);
        link->flags |= DPG_WATCHDOG_TRIPPED;
    }
}

void dpg_receive(dpg_link *link, const uint8_t *bytes, size_t count, uint64_t now_us) {
    dpg_tick(link, now_us);
    for (size_t i = 0; i < count; i++) {
        receive_byte(link, bytes[i]);
    }
}

void dpg_host_gone(dpg_link *link) {
    begin_request(link);
    switch_off(link);
}
