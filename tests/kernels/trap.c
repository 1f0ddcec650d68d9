/* The instructions of AMX on a processor without them: each raises SIGILL, whose handler reads the instruction's bytes
 * and does what it says, after Intel's manual (Instruction Set Reference: LDTILECFG, TILELOADD, TDPBF16PS, ...). So the
 * machine code that a processor with tiles runs is tested anywhere, shapes of tiles and operands included.
 *
 * Linked with check.c; `run.sh amx` builds it, for x86-64 with AVX-512.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef struct {
    int rows, row_bytes;
    uint8_t bytes[16][64];
} tile;
static _Thread_local tile tiles[8];
static _Thread_local int configured;

static void refuse(const char *why) {
    fprintf(stderr, "trap.c: %s\n", why);
    _Exit(3);
}

/* --- What the instructions do --- */

static void configure(const uint8_t *shapes) {
    if (shapes[0] != 1 || shapes[1] != 0) refuse("LDTILECFG: not palette 1, or a start row");
    for (int i = 2; i < 16; i++)
        if (shapes[i]) refuse("LDTILECFG: reserved bytes are not zero");
    for (int t = 0; t < 8; t++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, shapes + 16 + 2 * t, 2);
        tiles[t].row_bytes = row_bytes;
        tiles[t].rows = shapes[48 + t];
        if (row_bytes > 64 || tiles[t].rows > 16) refuse("LDTILECFG: a tile is too large");
        memset(tiles[t].bytes, 0, sizeof tiles[t].bytes);
    }
    configured = 1;
}
static float flushed(float x) { return x < 1.17549435e-38f && x > -1.17549435e-38f ? 0 : x; }
static float half(const uint8_t *from) {
    uint16_t bits;
    memcpy(&bits, from, 2);
    const uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return flushed(x);
}
static void check_shapes(const tile *c, const tile *a, const tile *b) {
    if (c->rows != a->rows || c->row_bytes != b->row_bytes || a->row_bytes / 4 != b->rows)
        refuse("a product of tiles whose shapes do not fit");
}
static void dot_bf16(tile *c, const tile *a, const tile *b) {
    check_shapes(c, a, b);
    for (int m = 0; m < c->rows; m++)
        for (int n = 0; n < c->row_bytes / 4; n++) {
            float even = 0, odd = 0, sum;
            for (int k = 0; k < a->row_bytes / 4; k++) {
                even = flushed(even + half(a->bytes[m] + 4 * k) * half(b->bytes[k] + 4 * n));
                odd = flushed(odd + half(a->bytes[m] + 4 * k + 2) * half(b->bytes[k] + 4 * n + 2));
            }
            memcpy(&sum, c->bytes[m] + 4 * n, 4);
            sum = flushed(sum + flushed(even + odd));
            memcpy(c->bytes[m] + 4 * n, &sum, 4);
        }
}
static void dot_unsigned_signed(tile *c, const tile *a, const tile *b) {
    check_shapes(c, a, b);
    for (int m = 0; m < c->rows; m++)
        for (int n = 0; n < c->row_bytes / 4; n++) {
            int32_t sum;
            memcpy(&sum, c->bytes[m] + 4 * n, 4);
            for (int k = 0; k < a->row_bytes; k++) sum += a->bytes[m][k] * (int8_t)b->bytes[k / 4][4 * n + k % 4];
            memcpy(c->bytes[m] + 4 * n, &sum, 4);
        }
}

/* --- Reading an instruction --- */

static const int register_at[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

typedef struct {
    int prefix, reg, rm, v, memory; /* prefix: 0 none, 1 66, 2 F3, 3 F2; reg, rm, v: numbers of tiles */
    uint8_t opcode;
    char *base;
    size_t index; /* the stride of a tile's rows */
    int length;
} instruction;

/* VEX with three bytes, map 0F38: C4, inverted R X B and the map, W vvvv L pp, opcode, ModRM, SIB, displacement. */
static instruction read_instruction(const uint8_t *code, const greg_t *registers) {
    if (code[0] == 0x62) { /* EVEX: AVX-512 */
        fprintf(stderr, "trap.c: the processor lacks an instruction of AVX-512, such as VDPBF16PS\n");
        _Exit(4);
    }
    if (code[0] != 0xC4 || (code[1] & 31) != 2) refuse("not an instruction of AMX");
    const int x = ~code[1] >> 6 & 1, b = ~code[1] >> 5 & 1;
    instruction in = {.prefix = code[2] & 3, .v = ~code[2] >> 3 & 15, .opcode = code[3], .length = 5};
    const uint8_t modrm = code[4], mode = modrm >> 6;
    in.reg = modrm >> 3 & 7;
    in.rm = modrm & 7;
    in.memory = mode != 3;
    if (!in.memory) return in;
    int base = in.rm | b << 3, has_base = 1;
    if (in.rm == 4) {
        const uint8_t sib = code[in.length++];
        const int index = (sib >> 3 & 7) | x << 3;
        base = (sib & 7) | b << 3;
        has_base = !((sib & 7) == 5 && mode == 0);
        if (index != 4) in.index = (size_t)registers[register_at[index]] << (sib >> 6);
    } else if (in.rm == 5 && mode == 0) {
        has_base = 2; /* relative to the next instruction */
    }
    int32_t displacement = 0;
    if (mode == 1) displacement = (int8_t)code[in.length++];
    if (mode == 2 || has_base != 1) {
        memcpy(&displacement, code + in.length, 4);
        in.length += 4;
    }
    const char *from = has_base == 1 ? (char *)registers[register_at[base]] : has_base == 2 ? (char *)code + in.length : 0;
    in.base = (char *)from + displacement;
    return in;
}

static void do_instruction(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const instruction in = read_instruction((const uint8_t *)registers[REG_RIP], registers);
    const int what = in.opcode << 8 | in.prefix << 4 | in.memory;
    if (what != (0x49 << 8 | 1) && !configured) refuse("a tile is used without a configuration");
    if (what == (0x49 << 8 | 1)) configure((const uint8_t *)in.base);
    else if (what == 0x49 << 8) configured = 0; /* TILERELEASE */
    else if (what == (0x49 << 8 | 3 << 4)) memset(tiles[in.reg].bytes, 0, sizeof tiles[in.reg].bytes);
    else if (what == (0x4B << 8 | 3 << 4 | 1)) { /* TILELOADD */
        for (int r = 0; r < tiles[in.reg].rows; r++)
            memcpy(tiles[in.reg].bytes[r], in.base + r * in.index, tiles[in.reg].row_bytes);
    } else if (what == (0x4B << 8 | 2 << 4 | 1)) { /* TILESTORED */
        for (int r = 0; r < tiles[in.reg].rows; r++)
            memcpy(in.base + r * in.index, tiles[in.reg].bytes[r], tiles[in.reg].row_bytes);
    } else if (what == (0x5C << 8 | 2 << 4)) dot_bf16(tiles + in.reg, tiles + in.rm, tiles + in.v); /* TDPBF16PS */
    else if (what == (0x5E << 8 | 1 << 4)) dot_unsigned_signed(tiles + in.reg, tiles + in.rm, tiles + in.v); /* TDPBUSD */
    else refuse("an instruction of AMX that the kernels do not use");
    registers[REG_RIP] += in.length;
}

__attribute__((constructor)) static void watch(void) {
    struct sigaction action = {.sa_sigaction = do_instruction, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGILL, &action, NULL)) refuse("SIGILL cannot be handled");
}
