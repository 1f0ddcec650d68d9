/* Tiles: matrices of 16 rows x 64 bytes in eight registers, and products of them.
 *
 * CW_TILES names who multiplies: the processor (Intel's AMX), or plain C that emulates it, so that every machine can
 * test the code around it. The sums are those of the processor: with bfloat16, even and odd values of k apart within a
 * tile, without denormal numbers (Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS).
 */
#define CW_HARDWARE 1
#define CW_EMULATED 2

#if defined(CW_TILES)
#define TILE_ROWS 16
#define TILE_BYTES 64

#if CW_TILES == CW_HARDWARE
/* The compiler's intrinsics for loads do not tell it that memory is read. */
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define TILE_LOAD(t, from, row) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"((const void *)(from)), "r"((size_t)(row)) : "memory")
#define TILE_STORE(t, to, row) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"((void *)(to)), "r"((size_t)(row)) : "memory")
#define TILE_DOT_BF16(c, a, w) __asm__ volatile("tdpbf16ps %%tmm" #w ", %%tmm" #a ", %%tmm" #c ::)
#define TILE_DOT_Q8(c, a, w) __asm__ volatile("tdpbusd %%tmm" #w ", %%tmm" #a ", %%tmm" #c ::)

/* Configure all tiles of the calling thread to their full size. */
static void begin_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        shapes.row_bytes[t] = TILE_BYTES;
        shapes.rows[t] = TILE_ROWS;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}
/* Until this, the system saves 8 KB more at each switch of threads. */
static void end_tiles(void) { __asm__ volatile("tilerelease" ::); }

/* Vectors that compute as tiles do: the processor takes denormal numbers for zero between these two. */
static unsigned without_denormals_from_here(void) {
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);
    return mode;
}
static void with_denormals_again(unsigned mode) { _mm_setcsr(mode); }
INLINE vec flushed(vec x) { return x; }

#else
typedef union {
    float floats[TILE_ROWS][16];
    int32_t whole[TILE_ROWS][16];
    uint16_t halves[TILE_ROWS][32];
    uint8_t bytes[TILE_ROWS][64];
    int8_t signed_bytes[TILE_ROWS][64];
} tile;
static _Thread_local tile tiles[8];

static void tile_load(tile *t, const void *from, size_t row) {
    for (int i = 0; i < TILE_ROWS; i++) memcpy(t->bytes[i], (const char *)from + i * row, TILE_BYTES);
}
static void tile_store(const tile *t, void *to, size_t row) {
    for (int i = 0; i < TILE_ROWS; i++) memcpy((char *)to + i * row, t->bytes[i], TILE_BYTES);
}
static float without_denormals(float x) { return x < 1.17549435e-38f && x > -1.17549435e-38f ? 0 : x; }
static float wide(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return without_denormals(x);
}
static void tile_dot_bf16(tile *c, const tile *a, const tile *w) {
    for (int m = 0; m < TILE_ROWS; m++)
        for (int n = 0; n < 16; n++) {
            float even = 0, odd = 0;
            for (int k = 0; k < 16; k++) {
                even = without_denormals(even + wide(a->halves[m][2 * k]) * wide(w->halves[k][2 * n]));
                odd = without_denormals(odd + wide(a->halves[m][2 * k + 1]) * wide(w->halves[k][2 * n + 1]));
            }
            c->floats[m][n] = without_denormals(c->floats[m][n] + without_denormals(even + odd));
        }
}
static void tile_dot_q8(tile *c, const tile *a, const tile *w) {
    for (int m = 0; m < TILE_ROWS; m++)
        for (int n = 0; n < 16; n++)
            for (int k = 0; k < 64; k++)
                c->whole[m][n] += a->bytes[m][k] * w->signed_bytes[k / 4][4 * n + k % 4];
}
#define TILE_ZERO(t) memset(&tiles[t], 0, sizeof tiles[t])
#define TILE_LOAD(t, from, row) tile_load(&tiles[t], from, row)
#define TILE_STORE(t, to, row) tile_store(&tiles[t], to, row)
#define TILE_DOT_BF16(c, a, w) tile_dot_bf16(&tiles[c], &tiles[a], &tiles[w])
#define TILE_DOT_Q8(c, a, w) tile_dot_q8(&tiles[c], &tiles[a], &tiles[w])
static void begin_tiles(void) {}
static void end_tiles(void) {}
static unsigned without_denormals_from_here(void) { return 0; }
static void with_denormals_again(unsigned mode) { (void)mode; }
INLINE vec flushed(vec x) {
    for (int i = 0; i < LANES; i++) x[i] = without_denormals(x[i]);
    return x;
}
#endif

/* c = [c +] a * w for up to 2 blocks of 16 rows and, with 1 block, 6 vectors of 16 columns, otherwise 3. Strides are in
 * bytes; a tile of a has 64 bytes of k for 16 rows, one of w the values of 16 columns for as much of k. */
typedef struct {
    const void *a;
    size_t a_block, a_step, a_row;
    const void *w;
    size_t w_vector, w_step, w_row;
    void *c;
    size_t c_row;
    int steps, adding;
} tile_product;

/* The sums are tiles 0 to 5, a is tile 6 and w is tile 7. They stay there between these three, so that other work can be
 * done meanwhile. */
INLINE void begin_sums(int blocks, int vectors, const tile_product *product) {
    const tile_product p = *product;
    const char *c = p.c, *below = c + TILE_ROWS * p.c_row;
    if (p.adding) {
        TILE_LOAD(0, c, p.c_row);
        if (vectors > 1) TILE_LOAD(1, c + 64, p.c_row);
        if (vectors > 2) TILE_LOAD(2, c + 128, p.c_row);
        if (vectors > 3) TILE_LOAD(3, c + 192, p.c_row);
        if (vectors > 4) TILE_LOAD(4, c + 256, p.c_row);
        if (vectors > 5) TILE_LOAD(5, c + 320, p.c_row);
        if (blocks > 1) TILE_LOAD(3, below, p.c_row);
        if (blocks > 1 && vectors > 1) TILE_LOAD(4, below + 64, p.c_row);
        if (blocks > 1 && vectors > 2) TILE_LOAD(5, below + 128, p.c_row);
    } else {
        TILE_ZERO(0);
        if (vectors > 1) TILE_ZERO(1);
        if (vectors > 2) TILE_ZERO(2);
        if (blocks > 1 || vectors > 3) TILE_ZERO(3);
        if (blocks > 1 || vectors > 4) TILE_ZERO(4);
        if (blocks > 1 || vectors > 5) TILE_ZERO(5);
    }
}
INLINE void end_sums(int blocks, int vectors, const tile_product *product) {
    const tile_product p = *product;
    char *c = p.c, *below = c + TILE_ROWS * p.c_row;
    TILE_STORE(0, c, p.c_row);
    if (vectors > 1) TILE_STORE(1, c + 64, p.c_row);
    if (vectors > 2) TILE_STORE(2, c + 128, p.c_row);
    if (vectors > 3) TILE_STORE(3, c + 192, p.c_row);
    if (vectors > 4) TILE_STORE(4, c + 256, p.c_row);
    if (vectors > 5) TILE_STORE(5, c + 320, p.c_row);
    if (blocks > 1) {
        TILE_STORE(3, below, p.c_row);
        if (vectors > 1) TILE_STORE(4, below + 64, p.c_row);
        if (vectors > 2) TILE_STORE(5, below + 128, p.c_row);
    }
}

/* Multiply the rows in tile 6 by a vector of w. */
#define ONE_VECTOR(v, DOT)                             \
    if (vectors > v) {                                 \
        TILE_LOAD(7, w + v * p.w_vector, p.w_row);     \
        DOT(v, 6, 7);                                  \
    }
/* Steps `from` to `to` of a product. The second block starts with the tile of w that the first one ended with. */
#define STEPS_OF_TILES(name, DOT)                                                                      \
    INLINE void name(int blocks, int vectors, const tile_product *product, int from, int to) {         \
        const tile_product p = *product;                                                               \
        const char *a = (const char *)p.a + from * p.a_step, *w = (const char *)p.w + from * p.w_step; \
        for (int step = from; step < to; step++, a += p.a_step, w += p.w_step) {                       \
            TILE_LOAD(6, a, p.a_row);                                                                  \
            ONE_VECTOR(0, DOT)                                                                         \
            ONE_VECTOR(1, DOT)                                                                         \
            ONE_VECTOR(2, DOT)                                                                         \
            ONE_VECTOR(3, DOT)                                                                         \
            ONE_VECTOR(4, DOT)                                                                         \
            ONE_VECTOR(5, DOT)                                                                         \
            if (blocks > 1) {                                                                          \
                TILE_LOAD(6, a + p.a_block, p.a_row);                                                  \
                if (vectors > 2) DOT(5, 6, 7);                                                         \
                if (vectors > 1) {                                                                     \
                    if (vectors > 2) TILE_LOAD(7, w + p.w_vector, p.w_row);                            \
                    DOT(4, 6, 7);                                                                      \
                    TILE_LOAD(7, w, p.w_row);                                                          \
                }                                                                                      \
                DOT(3, 6, 7);                                                                          \
            }                                                                                          \
        }                                                                                              \
    }
STEPS_OF_TILES(steps_bf16, TILE_DOT_BF16)
STEPS_OF_TILES(steps_q8, TILE_DOT_Q8)

#define TILES_CASE(blocks, vectors, call) \
    case (blocks) * 8 + (vectors):        \
        call(blocks, vectors);            \
        break;
#define TILES_CASES(call)                                                                                \
    TILES_CASE(1, 1, call)                                                                               \
    TILES_CASE(1, 2, call)                                                                               \
    TILES_CASE(1, 3, call)                                                                               \
    TILES_CASE(1, 4, call)                                                                               \
    TILES_CASE(1, 5, call)                                                                               \
    TILES_CASE(1, 6, call) TILES_CASE(2, 1, call) TILES_CASE(2, 2, call) TILES_CASE(2, 3, call)

#define BEGIN(blocks, vectors) begin_sums(blocks, vectors, product)
static void begin_tile_sums(int blocks, int vectors, const tile_product *product) {
    switch (blocks * 8 + vectors) { TILES_CASES(BEGIN) }
}
#define END(blocks, vectors) end_sums(blocks, vectors, product)
static void end_tile_sums(int blocks, int vectors, const tile_product *product) {
    switch (blocks * 8 + vectors) { TILES_CASES(END) }
}
#define SOME_BF16(blocks, vectors) steps_bf16(blocks, vectors, product, from, to)
static void tile_steps_bf16(int blocks, int vectors, const tile_product *product, int from, int to) {
    switch (blocks * 8 + vectors) { TILES_CASES(SOME_BF16) }
}
#define SOME_Q8(blocks, vectors) steps_q8(blocks, vectors, product, from, to)
static void tile_steps_q8(int blocks, int vectors, const tile_product *product, int from, int to) {
    switch (blocks * 8 + vectors) { TILES_CASES(SOME_Q8) }
}
#define ALL_BF16(blocks, vectors)              \
    begin_sums(blocks, vectors, product);      \
    steps_bf16(blocks, vectors, product, 0, product->steps); \
    end_sums(blocks, vectors, product)
static void multiply_tiles_bf16(int blocks, int vectors, const tile_product *product) {
    switch (blocks * 8 + vectors) { TILES_CASES(ALL_BF16) }
}
#endif
