// Matrix products for few columns, and attention, for one instruction set (see vectors.h).
//
// A kernel multiplies one group of rows with N columns. It reads and unpacks every weight once for all of them, so that
// N tokens cost little more than one while memory bandwidth is the limit. The operations for a number of the result,
// and their order, are the same for every N: a row of logits does not depend on the number of tokens in the call.
// Compile with -ffp-contract=off, or compilers may fuse differently for different N.
#include "kernels.h"

#include "formats.h"

namespace {

#define COLUMNS _Pragma("GCC unroll 12") for (int c = 0; c < N; ++c)

// ------------------------------------------------------------------------------------------------ activations
// Sums are used to undo the offset of weights, and for their minima. The scale is a float (ggml rounds it to half
// precision).
struct Block32 {
    static constexpr int SIZE = 32;
    i8 q[32];
    float d, d_sum;  // scale; scale times the sum of q
    int less;        // minus the sum of q
};
struct Block256 {
    static constexpr int SIZE = 256;
    i8 q[256];
    float d;
    i16 sums[8];  // of each 32
#if defined(SCALED_PAIRS)
    i16 less[16];  // minus the sums of each 16
#else
    int less[16];
#endif
};

// The largest magnitude, compared as bits, so that a NaN is larger than any number and is kept.
INLINE float largest_of(const float * x, int n) {
    I most = all(0);
    for (int i = 0; i < n; i += LANES) most = max(most, magnitudes(load(x + i)));
    const int bits = largest(most);
    return read<float>(&bits);
}
// NaN values overflow the sums, which is defined for unsigned integers; d is NaN then, and so is the result.
INLINE u32 round_16(const float * x, F inverse, i8 * q) {
    u32 sum = 0;
    for (int i = 0; i < 16; i += LANES) sum += (u32) store(q + i, to_int(mul(load(x + i), inverse)));
    return sum;
}
INLINE F inverse_of(float most) { return all(most > 0 ? 127.f / most : 0.f); }

INLINE void activate(const float * x, Block32 & to) {
    const float most = largest_of(x, 32);
    const F inverse = inverse_of(most);
    const u32 sum = round_16(x, inverse, to.q) + round_16(x + 16, inverse, to.q + 16);
    to.d = most / 127.f;
    to.d_sum = to.d * (float) (int) sum;
    to.less = (int) (0 - sum);
}
INLINE void activate(const float * x, Block256 & to) {
    const float most = largest_of(x, 256);
    const F inverse = inverse_of(most);
    u32 sums[16];
    for (int j = 0; j < 16; ++j) sums[j] = round_16(x + 16 * j, inverse, to.q + 16 * j);
    for (int j = 0; j < 16; ++j) to.less[j] = (int) (0 - sums[j]);
    for (int j = 0; j < 8; ++j) to.sums[j] = (i16) (sums[2 * j] + sums[2 * j + 1]);
    to.d = most / 127.f;
}

#if defined(DOTS_OF_BFLOATS)
struct Bfloats {
    static constexpr int SIZE = 32;
    u16 q[32];
};
INLINE void activate(const float * x, Bfloats & to) { store_bfloats(to.q, x); }
#endif

template <class Block>
void activate_blocks(const float * const * columns, int count, int64_t from, int64_t end, Block * to) {
    for (int64_t b = from; b < end; ++b)
        for (int c = 0; c < count; ++c) activate(columns[c] + b * Block::SIZE, to[b * count + c]);
}
void activate_floats(const float * const * columns, int count, int64_t from, int64_t end, float * to) {
    for (int64_t i = from; i < end; ++i)
        for (int c = 0; c < count; ++c) memcpy(to + 2 * (i * count + c), columns[c] + 2 * i, 8);
}

int64_t block_size(Activation kind) { return kind == FLOATS ? 2 : kind == BLOCKS_OF_256 ? 256 : 32; }
size_t activation_bytes(Activation kind, int64_t width) {
    const size_t block = kind == BLOCKS_OF_32    ? sizeof(Block32)
                         : kind == BLOCKS_OF_256 ? sizeof(Block256)
                         : kind == BFLOATS       ? 64
                                                 : 8;
    return width / block_size(kind) * block;
}
void activate(Activation kind, const float * const * columns, int count, int64_t width, void * to, int part,
              int parts) {
    const int64_t n = width / block_size(kind), from = n * part / parts, end = n * (part + 1) / parts;
    switch (kind) {
        case BLOCKS_OF_32:
            return activate_blocks(columns, count, from, end, (Block32 *) to);
        case BLOCKS_OF_256:
            return activate_blocks(columns, count, from, end, (Block256 *) to);
        case FLOATS:
            return activate_floats(columns, count, from, end, (float *) to);
        case BFLOATS:
#if defined(DOTS_OF_BFLOATS)
            activate_blocks(columns, count, from, end, (Bfloats *) to);
#endif
            return;
    }
}

// ------------------------------------------------------------------------------------------------------ kernels
// sums[c] += the products of `COUNT` vectors of a block, from vector FROM on, with column c, whose numbers are at
// x + c * STRIDE.
#if defined(TILES)
// Sums of integers are exact, so the results are those of `dot`. The last column of an odd number is computed twice.
template <class Quants, int N, int BLOCK, int FROM, int COUNT, size_t STRIDE>
INLINE void products(const u8 * quants, const i8 * x, I * sums) {
    I tiles[N + 1][2];  // the columns c and c + 1
#define PAIRS _Pragma("GCC unroll 6") for (int c = 0; c < N; c += 2)
    PAIRS tiles[c][0] = tiles[c][1] = all(0);
    unrolled<COUNT>([&](auto next) __attribute__((always_inline)) {
        constexpr int G = FROM + decltype(next)::value, HALF = G % 2;
        const I weights = Quants::template get<BLOCK, G>(quants);
        PAIRS {
            const i8 *one = x + c * STRIDE + G / 2 * 8, *other = c + 1 < N ? one + STRIDE : one;
            tiles[c][HALF] = dot_tile(tiles[c][HALF], weights, one, other);
        }
    });
    PAIRS {
        sums[c] = add(sums[c], first_column(tiles[c][0], tiles[c][1]));
        if (c + 1 < N) sums[c + 1] = add(sums[c + 1], second_column(tiles[c][0], tiles[c][1]));
    }
#undef PAIRS
}
#else
template <class Quants, int N, int BLOCK, int FROM, int COUNT, size_t STRIDE, class... Scales>
INLINE void products(const u8 * quants, const i8 * x, I * sums, Scales... scales) {
    constexpr int RUN = COUNT < run<Quants::BITS> ? COUNT : run<Quants::BITS>;
    unrolled<COUNT / RUN>([&](auto first) __attribute__((always_inline)) {
        I partial[N];
        COLUMNS partial[c] = sums[c];
        unrolled<RUN>([&](auto next) __attribute__((always_inline)) {
            constexpr int AT = decltype(next)::value, G = FROM + decltype(first)::value * RUN + AT;
            const I weights = Quants::template get<BLOCK, G>(quants);
            COLUMNS partial[c] = Quants::template multiply<AT == 0>(partial[c], weights, x + c * STRIDE + 4 * G);
        });
        COLUMNS sums[c] = end(sums[c], partial[c], scales...);
    });
}
#endif
INLINE void fetch_all(const u8 * from, int bytes) {
    for (int i = 0; i < bytes; i += 64) fetch(from + i);
}
constexpr int log2_of(int n) { return n == 1 ? 0 : 1 + log2_of(n / 2); }
// Minus OFFSET times a sum of activations, the initial value of sums.
template <int OFFSET>
INLINE I start(const int * less) {
    if constexpr (OFFSET == 0) return all(0);
    else return shifted<log2_of(OFFSET)>(less);
}

// y = sum over blocks of d_x (d sum(q x) + m sum(x)), where d and m are the scale and the minimum of 32 weights
template <class T, int N>
void multiply_blocks(const u8 * __restrict w, int64_t units, const void * activations, float * y, size_t stride) {
    F total[N];
    COLUMNS total[c] = zero();
    auto x = (const Block32 *) activations;
    for (; units; --units, w += T::BYTES) {
        fetch_all(w, T::HEAD);
        unrolled<2>([&](auto block) __attribute__((always_inline)) {
            constexpr int B = decltype(block)::value;
            fetch_all(w + T::HEAD + B * T::Quants::BYTES / 2, T::Quants::BYTES / 2);
            I sums[N];
            COLUMNS sums[c] = start<T::OFFSET>(&x[c].less);
            products<typename T::Quants, N, B, 0, 8, sizeof(Block32)>(w + T::HEAD, x->q, sums);
            const F d = T::scale(w, B);
            COLUMNS total[c] = fma(to_float(sums[c]), mul(d, all(x[c].d)), total[c]);
            if constexpr (T::MINIMA) {
                const F m = T::minimum(w, B);
                COLUMNS total[c] = fma(m, all(x[c].d_sum), total[c]);
            }
            x += N;
        });
    }
    COLUMNS store(y + c * stride, total[c]);
}

// Calls f(quants, block, part, j) for every scale j of a superblock: that of a part of one of two blocks of quants.
template <class T, class Function>
INLINE void each_scaled(const u8 * w, Function f) {
    for (int pair = 0; pair < 4; ++pair) {
        const u8 * quants = w + T::HEAD + pair * T::Quants::BYTES;
        unrolled<2>([&](auto block) __attribute__((always_inline)) {
            fetch_all(quants + decltype(block)::value * T::Quants::BYTES / 2, T::Quants::BYTES / 2);
            constexpr int PARTS = 32 / T::SCALED;
            unrolled<PARTS>([&](auto part) __attribute__((always_inline)) {
                f(quants, block, part, PARTS * (2 * pair + decltype(block)::value) + decltype(part)::value);
            });
        });
    }
}

// y = sum over superblocks of d_x (sum over blocks of d d_j sum(q x) - m sum over blocks of m_j sum(x))
template <class T, int N>
void multiply_superblocks(const u8 * __restrict w, int64_t units, const void * activations, float * y, size_t stride) {
    F total[N];
    COLUMNS total[c] = zero();
    auto x = (const Block256 *) activations;
    for (; units; --units, w += T::BYTES, x += N) {
        fetch_all(w, T::HEAD);
        F part[N];
        COLUMNS part[c] = zero();
        if constexpr (T::MINIMA) {
            I minima[N];
            COLUMNS minima[c] = all(0);
            for (int pair = 0; pair < 4; ++pair)
                COLUMNS minima[c] = dot_pairs(minima[c], T::minima(w, pair), x[c].sums + 2 * pair);
            const F m = T::minimum(w);
            COLUMNS part[c] = fnma(to_float(minima[c]), m, part[c]);
        }
        const auto add_products = [&](const u8 * quants, auto block, auto scaled, int j, I * sums,
                                      auto... scales) __attribute__((always_inline)) {
            constexpr int COUNT = T::SCALED / 4, FROM = decltype(scaled)::value * COUNT;
            const i8 * from = x->q + j * T::SCALED / 32 * 32;
            products<typename T::Quants, N, decltype(block)::value, FROM, COUNT, sizeof(Block256)>(quants, from, sums,
                                                                                                   scales...);
        };
#if defined(SCALED_PAIRS)
        I sums[N];
        COLUMNS sums[c] = all(0);
        if constexpr (T::OFFSET != 0) {
            for (int j = 0; j < 16; j += 2) {
                const I scales = in_turn(T::small_scales(w, j), T::small_scales(w, j + 1));
                COLUMNS sums[c] = dot_pairs(sums[c], scales, x[c].less + j);
            }
            COLUMNS sums[c] = doubled<log2_of(T::OFFSET)>(sums[c]);
        }
        each_scaled<T>(w, [&](const u8 * quants, auto block, auto scaled, int j) __attribute__((always_inline)) {
            const i8 * scales = T::small_scales(w, j);
            add_products(quants, block, scaled, j, sums, in_turn(scales, scales));
        });
        const F d = T::scale(w);
        COLUMNS part[c] = fma(to_float(sums[c]), d, part[c]);
#else
        each_scaled<T>(w, [&](const u8 * quants, auto block, auto scaled, int j) __attribute__((always_inline)) {
            I sums[N];
            COLUMNS sums[c] = start<T::OFFSET>(x[c].less + j);
            add_products(quants, block, scaled, j, sums);
            const F d = T::scale(w, j);
            COLUMNS part[c] = fma(to_float(sums[c]), d, part[c]);
        });
#endif
        COLUMNS total[c] = fma(part[c], all(x[c].d), total[c]);
    }
    COLUMNS store(y + c * stride, total[c]);
}

// y = sum of w x, with separate sums of even and odd numbers
template <class T, int N>
void multiply_floats(const u8 * __restrict w, int64_t units, const void * activations, float * y, size_t stride) {
    F evens[N], odds[N];
    COLUMNS evens[c] = odds[c] = zero();
    auto x = (const float *) activations;
    for (; units; --units, w += T::BYTES)
        for (int i = 0; i < T::UNIT / 2; ++i, x += 2 * N) {
            fetch_all(w + i * (2 * T::BYTES / T::UNIT), 2 * T::BYTES / T::UNIT);
            F first, second;
            T::get(w, i, first, second);
            COLUMNS evens[c] = fma(first, all(x[2 * c]), evens[c]);
            COLUMNS odds[c] = fma(second, all(x[2 * c + 1]), odds[c]);
        }
    COLUMNS store(y + c * stride, add(evens[c], odds[c]));
}

#if defined(DOTS_OF_BFLOATS)
// The same for bfloat16 activations, with separate sums of even and odd pairs
template <class T, int N>
void multiply_bfloats(const u8 * __restrict w, int64_t units, const void * activations, float * y, size_t stride) {
    F evens[N], odds[N];
    COLUMNS evens[c] = odds[c] = zero();
    auto x = (const Bfloats *) activations;
    for (; units; --units, w += T::BYTES, x += N)
        for (int pair = 0; pair < T::UNIT / 2; pair += 2) {
            const u8 * from = w + pair * VECTOR;
            fetch_all(from, 2 * VECTOR);
            const I even = load(from), odd = load(from + VECTOR);
            COLUMNS evens[c] = dot_bfloats(evens[c], even, x[c].q + 2 * pair);
            COLUMNS odds[c] = dot_bfloats(odds[c], odd, x[c].q + 2 * pair + 2);
        }
    COLUMNS store(y + c * stride, add(evens[c], odds[c]));
}
#endif

// ------------------------------------------------------------------------------------------------------ packing
template <class T>
void pack_blocks(const u8 * rows, size_t stride, int64_t units, u8 * packed) {
    for (int64_t u = 0; u < units; ++u, packed += T::BYTES)
        for (int row = 0; row < R; ++row) {
            u8 quants[64];
            const u8 * from = rows + row * stride + u * 2 * T::SOURCE;
            T::read_block(from, 0, row, packed, quants);
            T::read_block(from + T::SOURCE, 1, row, packed, quants + 32);
            T::Quants::write(quants, row, packed + T::HEAD);
        }
}
template <class T>
void pack_superblocks(const u8 * rows, size_t stride, int64_t units, u8 * packed) {
    for (int64_t u = 0; u < units; ++u, packed += T::BYTES)
        for (int row = 0; row < R; ++row) {
            u8 quants[256];
            T::read_super(rows + row * stride + u * T::SOURCE, row, packed, quants);
            for (int pair = 0; pair < 4; ++pair)
                T::Quants::write(quants + 64 * pair, row, packed + T::HEAD + pair * T::Quants::BYTES);
        }
}
template <class T>
void pack_floats(const u8 * rows, size_t stride, int64_t units, u8 * packed) {
    for (int64_t i = 0; i < units * T::UNIT / 2; ++i, packed += 2 * T::BYTES / T::UNIT)
        for (int row = 0; row < R; ++row) T::read_pair(rows + row * stride + 2 * i * T::SOURCE, row, packed);
}

// ------------------------------------------------------------------------------------------------------- tables
constexpr int MOST = WIDTH < MOST_COLUMNS ? WIDTH : MOST_COLUMNS;
template <int N, class Pick>
Format with_kernels(Format format, Pick pick) {
    unrolled<N>([&](auto n) { format.multiply[decltype(n)::value + 1] = pick(n); });
    return format;
}
template <class T>
Format blocks() {
    return with_kernels<MOST>({T::type, T::UNIT, T::BYTES, BLOCKS_OF_32, pack_blocks<T>, {}},
                              [](auto n) { return multiply_blocks<T, decltype(n)::value + 1>; });
}
template <class T>
Format superblocks() {
    return with_kernels<MOST>({T::type, T::UNIT, T::BYTES, BLOCKS_OF_256, pack_superblocks<T>, {}},
                              [](auto n) { return multiply_superblocks<T, decltype(n)::value + 1>; });
}
template <class T>
Format floats() {
    return with_kernels<MOST>({T::type, T::UNIT, T::BYTES, FLOATS, pack_floats<T>, {}},
                              [](auto n) { return multiply_floats<T, decltype(n)::value + 1>; });
}
#if defined(DOTS_OF_BFLOATS)
template <class T>
Format bfloats() {
    return with_kernels<MOST>({T::type, T::UNIT, T::BYTES, BFLOATS, pack_floats<T>, {}},
                              [](auto n) { return multiply_bfloats<T, decltype(n)::value + 1>; });
}
#else
template <class T>
Format bfloats() {
    return floats<T>();
}
#endif
uint64_t read_memory(const u8 * from, size_t bytes) {
    I seen[4] = {all(0), all(0), all(0), all(0)};
    for (size_t i = 0; i + 4 * VECTOR <= bytes; i += 4 * VECTOR)
        for (int j = 0; j < 4; ++j) {
            fetch(from + i + j * VECTOR);
            seen[j] = max(seen[j], load(from + i + j * VECTOR));
        }
    return (uint64_t) largest(max(max(seen[0], seen[1]), max(seen[2], seen[3])));
}

#include "attention.h"

}  // namespace

#define NAMED_(SET) kernels_##SET
#define NAMED(SET) NAMED_(SET)
#define TEXT_(SET) #SET
#define TEXT(SET) TEXT_(SET)

// The tables are built at the first call, not when the library is loaded: by then it is known that the processor
// supports the instructions.
const Kernels * NAMED(INSTRUCTION_SET)() {
    static const Format formats[] = {
        superblocks<Q4_K>(), superblocks<Q5_K>(), superblocks<Q6_K>(), blocks<Q8_0>(),   blocks<Q4_0>(),
        blocks<Q4_1>(),      blocks<Q5_0>(),      blocks<Q5_1>(),      blocks<IQ4_NL>(), blocks<MXFP4>(),
        bfloats<BF16>(),     floats<F16>(),       floats<F32>(),
    };
    static const Kernels kernels = {
        TEXT(INSTRUCTION_SET),
        R,
        MOST,
        formats,
        sizeof formats / sizeof *formats,
        activation_bytes,
        activate,
        attention_scratch,
        partial_size,
        panel_rows,
        piece_count,
        attend_piece,
        PIECE,
        attend_begin,
        attend_fold,
        attend_finish,
        read_memory,
    };
    return &kernels;
}
