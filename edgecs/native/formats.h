// The packed layouts: how weights of each type are stored in memory, and how a kernel reads them.
//
// The rows of a matrix are packed in groups of R, one per lane of a vector. A unit of 64 or 256 weights of a row
// becomes the scales of all rows of the group, followed by their quants, so that every load of a kernel is a whole
// aligned vector. A vector of quants has 4 adjacent weights of each row, as the dot product instructions of processors
// require; a block of 32 weights is 8 such vectors. With TILES two adjacent vectors have 8 adjacent weights of each
// row: the first one those of rows 0 and 1, the second one those of rows 2 and 3.
#pragma once
#include "vectors.h"

namespace {

constexpr int R = LANES;
constexpr int VECTOR = 4 * R;  // bytes

template <int N>
struct Number {
    static constexpr int value = N;
};
// Calls f(Number<0>), ... f(Number<N - 1>): a loop with a constant counter.
template <int N, int AT = 0, class Function>
INLINE void unrolled(Function f) {
    if constexpr (AT < N) {
        f(Number<AT>());
        unrolled<N, AT + 1>(f);
    }
}

// The vector of a block, and the 4 bytes of the vector, where the weights 4g, ..., 4g + 3 of a row are.
#if defined(TILES)
constexpr int WORDS = 2;  // in a vector, of each row
INLINE int vector_of(int g, int row) { return g / 2 * 2 + row / 2; }
INLINE int word_of(int g, int row) { return row % 2 * 2 + g % 2; }
#else
constexpr int WORDS = 1;
INLINE int vector_of(int g, int) { return g; }
INLINE int word_of(int, int row) { return row; }
#endif

// ---------------------------------------------------------------------------------------------------- quants
// Two blocks of 32 quants of 4 + EXTRA bits: the first block in the low nibbles of 8 vectors, the second one in
// the high nibbles; then the extra bits of each block in EXTRA vectors.
template <int EXTRA>
struct Nibbles {
    static constexpr int BITS = 4 + EXTRA, BYTES = VECTOR * (8 + 2 * EXTRA);

    // quants: 64 of one row, after the rows before
    static void write(const u8 * quants, int row, u8 * to) {
        u32 planes[2][2][WORDS] = {};
        for (int g = 0; g < 8; ++g) {
            const int v = vector_of(g, row);
            const u32 first = read<u32>(quants + 4 * g), second = read<u32>(quants + 32 + 4 * g);
            const u32 nibbles = (first & 0x0f0f0f0f) | (second & 0x0f0f0f0f) << 4;
            memcpy(to + VECTOR * v + 4 * word_of(g, row), &nibbles, 4);
            if constexpr (EXTRA > 0) {
                constexpr u32 MASK = (EXTRA == 1 ? 1 : 3) * 0x01010101u;
                planes[0][g * EXTRA / 8][g % WORDS] |= (first >> 4 & MASK) << v * EXTRA % 8;
                planes[1][g * EXTRA / 8][g % WORDS] |= (second >> 4 & MASK) << v * EXTRA % 8;
            }
        }
        for (int block = 0; block < 2; ++block)
            for (int i = 0; i < EXTRA; ++i)
                for (int word = 0; word < WORDS; ++word) {
                    u8 * plane = to + VECTOR * (8 + block * EXTRA + i) + 4 * word_of(word, row);
                    u32 bits = planes[block][i][word];
                    if (WORDS > 1 && row >= 2) bits |= read<u32>(plane);  // those of two vectors
                    memcpy(plane, &bits, 4);
                }
    }

    template <int BLOCK, int G>
    INLINE I get(const u8 * from) {
        const I both = load(from + VECTOR * G), nibbles = BLOCK ? high(both) : low(both);
        if constexpr (EXTRA == 0) return nibbles;
        else {
            const u8 * plane = from + VECTOR * (8 + BLOCK * EXTRA + G * EXTRA / 8);
            return insert<EXTRA, G * EXTRA % 8>(nibbles, load(plane));
        }
    }
    template <bool FIRST>
    INLINE I multiply(I sum, I weights, const i8 * x) {
        return dot<FIRST>(sum, weights, x);
    }
};

// Two blocks of 32 whole bytes, to which BYTE_OFFSET is added.
struct Bytes {
    static constexpr int BITS = 8, BYTES = VECTOR * 16;

    static void write(const u8 * quants, int row, u8 * to) {
        for (int g = 0; g < 16; ++g) {
            const u32 four = read<u32>(quants + 4 * g) ^ (BYTE_OFFSET ? 0x80808080u : 0);
            memcpy(to + VECTOR * vector_of(g, row) + 4 * word_of(g, row), &four, 4);
        }
    }
    template <int BLOCK, int G>
    INLINE I get(const u8 * from) {
        return load(from + VECTOR * (8 * BLOCK + G));
    }
    template <bool FIRST>
    INLINE I multiply(I sum, I weights, const i8 * x) {
        return dot_bytes<FIRST>(sum, weights, x);
    }
};

// Nibbles that are indices into a table of bytes, to which TABLE::OFFSET is added.
template <class TABLE>
struct Looked {
    static constexpr int BITS = TABLE::BITS, BYTES = Nibbles<0>::BYTES;

    static void write(const u8 * quants, int row, u8 * to) { Nibbles<0>::write(quants, row, to); }
    template <int BLOCK, int G>
    INLINE I get(const u8 * from) {
        return lookup(TABLE::values, Nibbles<0>::get<BLOCK, G>(from));
    }
    template <bool FIRST>
    INLINE I multiply(I sum, I weights, const i8 * x) {
        return BITS == 8 ? dot_bytes<FIRST>(sum, weights, x) : dot<FIRST>(sum, weights, x);
    }
};
struct NormalFloats {  // of IQ4_NL
    static constexpr int BITS = 8, OFFSET = BYTE_OFFSET;
    static constexpr u8 values[16] = {
        (u8) (OFFSET - 127), (u8) (OFFSET - 104), (u8) (OFFSET - 83), (u8) (OFFSET - 65),
        (u8) (OFFSET - 49),  (u8) (OFFSET - 35),  (u8) (OFFSET - 22), (u8) (OFFSET - 10),
        (u8) (OFFSET + 1),   (u8) (OFFSET + 13),  (u8) (OFFSET + 25), (u8) (OFFSET + 38),
        (u8) (OFFSET + 53),  (u8) (OFFSET + 69),  (u8) (OFFSET + 89), (u8) (OFFSET + 113),
    };
};
struct Float4 {  // of MXFP4: twice the values of the 4-bit codes
    static constexpr int BITS = 5, OFFSET = 16;
    static constexpr u8 values[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};
};

// Nibbles of ggml's blocks of 32: first the low ones, then the high ones.
INLINE void split(const u8 * nibbles, u8 * quants) {
    for (int i = 0; i < 16; ++i) {
        quants[i] = nibbles[i] & 15;
        quants[16 + i] = nibbles[i] >> 4;
    }
}

// ------------------------------------------------------------------------------------------ blocks of 32 weights
// Units of two blocks. OFFSET: difference between a quant and its value. Scales (and minima, which are added) are
// halves [block][row].

template <int TYPE, class QUANTS, int OFFSET_, bool MINIMA_, int SOURCE_>
struct Blocks {
    static constexpr int type = TYPE, UNIT = 64, OFFSET = OFFSET_, SOURCE = SOURCE_;  // bytes of ggml's block
    static constexpr bool MINIMA = MINIMA_;
    static constexpr int HEAD = (MINIMA ? 8 : 4) * R, BYTES = HEAD + QUANTS::BYTES;
    using Quants = QUANTS;

    INLINE F scale(const u8 * unit, int block) { return halves(unit + 2 * R * block); }
    INLINE F minimum(const u8 * unit, int block) { return halves(unit + 4 * R + 2 * R * block); }
    static void put(u8 * unit, int at, int block, int row, const u8 * half) {
        memcpy(unit + 4 * R * at + 2 * (R * block + row), half, 2);
    }
};

struct Q4_0 : Blocks<2, Nibbles<0>, 8, false, 18> {
    static void read_block(const u8 * from, int block, int row, u8 * unit, u8 * quants) {
        put(unit, 0, block, row, from);
        split(from + 2, quants);
    }
};
struct Q4_1 : Blocks<3, Nibbles<0>, 0, true, 20> {
    static void read_block(const u8 * from, int block, int row, u8 * unit, u8 * quants) {
        put(unit, 0, block, row, from);
        put(unit, 1, block, row, from + 2);
        split(from + 4, quants);
    }
};
INLINE void split_5(const u8 * bits, const u8 * nibbles, u8 * quants) {
    split(nibbles, quants);
    const u32 fifth = read<u32>(bits);
    for (int i = 0; i < 32; ++i) quants[i] |= (fifth >> i & 1) << 4;
}
struct Q5_0 : Blocks<6, Nibbles<1>, 16, false, 22> {
    static void read_block(const u8 * from, int block, int row, u8 * unit, u8 * quants) {
        put(unit, 0, block, row, from);
        split_5(from + 2, from + 6, quants);
    }
};
struct Q5_1 : Blocks<7, Nibbles<1>, 0, true, 24> {
    static void read_block(const u8 * from, int block, int row, u8 * unit, u8 * quants) {
        put(unit, 0, block, row, from);
        put(unit, 1, block, row, from + 2);
        split_5(from + 4, from + 8, quants);
    }
};
struct Q8_0 : Blocks<8, Bytes, BYTE_OFFSET, false, 34> {
    static void read_block(const u8 * from, int block, int row, u8 * unit, u8 * quants) {
        put(unit, 0, block, row, from);
        memcpy(quants, from + 2, 32);
    }
};
struct IQ4_NL : Blocks<20, Looked<NormalFloats>, NormalFloats::OFFSET, false, 18> {
    static void read_block(const u8 * from, int block, int row, u8 * unit, u8 * quants) {
        put(unit, 0, block, row, from);
        split(from + 2, quants);
    }
};
// The scale is a power of two, stored as an exponent byte: half of 2^(e - 127), as the table has doubled values. Two
// bytes of a float hold it.
struct MXFP4 : Blocks<39, Looked<Float4>, Float4::OFFSET, false, 17> {
    static void read_block(const u8 * from, int block, int row, u8 * unit, u8 * quants) {
        const u16 scale = *from < 2 ? 0x20 << *from : (*from - 1) << 7;
        put(unit, 0, block, row, (const u8 *) &scale);
        split(from + 1, quants);
    }
    INLINE F scale(const u8 * unit, int block) { return bfloats(unit + 2 * R * block); }
};

// --------------------------------------------------------------------------------------- superblocks of 256 weights
// Units of one superblock: d, the scale of the scales, as floats or halves; small scales; small minima, in pairs.

INLINE u8 small_scale(const u8 * s, int j) { return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4; }
INLINE u8 small_minimum(const u8 * s, int j) { return j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4; }

template <int TYPE, int EXTRA, int SOURCE_>
struct WithMinima {
    static constexpr int type = TYPE, UNIT = 256, OFFSET = 0, SCALED = 32, SOURCE = SOURCE_;
    static constexpr bool MINIMA = true;
    static constexpr int HEAD = 20 * R, BYTES = HEAD + 4 * Nibbles<EXTRA>::BYTES;
    using Quants = Nibbles<EXTRA>;

    INLINE F scale(const u8 * unit) { return halves(unit); }
    INLINE F scale(const u8 * unit, int j) { return mul(scale(unit), to_float(bytes(unit + 4 * R + R * j))); }
    INLINE const i8 * small_scales(const u8 * unit, int j) { return (const i8 *) unit + 4 * R + R * j; }  // below 64
    INLINE const u8 * minima(const u8 * unit, int pair) { return unit + 12 * R + 2 * R * pair; }
    INLINE F minimum(const u8 * unit) { return halves(unit + 2 * R); }

    static void read_head(const u8 * from, int row, u8 * unit) {
        memcpy(unit + 2 * row, from, 2);
        memcpy(unit + 2 * (R + row), from + 2, 2);
        for (int j = 0; j < 8; ++j) {
            unit[4 * R + R * j + row] = small_scale(from + 4, j);
            unit[12 * R + 2 * (R * (j / 2) + row) + j % 2] = small_minimum(from + 4, j);
        }
    }
};
struct Q4_K : WithMinima<12, 0, 144> {
    static void read_super(const u8 * from, int row, u8 * unit, u8 * quants) {
        read_head(from, row, unit);
        for (int j = 0; j < 4; ++j)  // two loops, which compilers make vectors of
            for (int i = 0; i < 32; ++i) {
                quants[64 * j + i] = from[16 + 32 * j + i] & 15;
                quants[64 * j + i + 32] = from[16 + 32 * j + i] >> 4;
            }
    }
};
struct Q5_K : WithMinima<13, 1, 176> {
    static void read_super(const u8 * from, int row, u8 * unit, u8 * quants) {
        read_head(from, row, unit);
        for (int j = 0; j < 4; ++j)
            for (int i = 0; i < 32; ++i) {
                const u8 nibbles = from[48 + 32 * j + i], bits = from[16 + i] >> 2 * j;
                quants[64 * j + i] = (nibbles & 15) | (bits & 1) << 4;
                quants[64 * j + i + 32] = nibbles >> 4 | (bits >> 1 & 1) << 4;
            }
    }
};
struct Q6_K {
    static constexpr int type = 14, UNIT = 256, OFFSET = 32, SCALED = 16, SOURCE = 210;
    static constexpr bool MINIMA = false;
    static constexpr int HEAD = 20 * R, BYTES = HEAD + 4 * Nibbles<2>::BYTES;
    using Quants = Nibbles<2>;

    INLINE F scale(const u8 * unit) { return load((const float *) unit); }
    INLINE F scale(const u8 * unit, int j) { return mul(scale(unit), to_float(bytes(small_scales(unit, j)))); }
    INLINE const i8 * small_scales(const u8 * unit, int j) { return (const i8 *) unit + 4 * R + R * j; }
    static void read_super(const u8 * from, int row, u8 * unit, u8 * quants) {
        const float d = half(read<u16>(from + 208));
        memcpy(unit + 4 * row, &d, 4);
        for (int j = 0; j < 16; ++j) unit[4 * R + R * j + row] = from[192 + j];
        for (int n = 0; n < 2; ++n)
            for (int i = 0; i < 32; ++i) {
                const u8 first = from[64 * n + i], second = from[64 * n + 32 + i], bits = from[128 + 32 * n + i];
                u8 * to = quants + 128 * n + i;
                to[0] = (first & 15) | (bits & 3) << 4;
                to[32] = (second & 15) | (bits >> 2 & 3) << 4;
                to[64] = first >> 4 | (bits >> 4 & 3) << 4;
                to[96] = second >> 4 | bits >> 6 << 4;
            }
    }
};

// ------------------------------------------------------------------------------------------------------ floats
// Units of 32 weights. `get` returns the weights 2i and 2i + 1 of every row.

struct BF16 {
    static constexpr int type = 30, UNIT = 32, BYTES = 16 * VECTOR, SOURCE = 2;
    INLINE void get(const u8 * unit, int i, F & first, F & second) {
        const I pairs = load(unit + VECTOR * i);
        first = even(pairs);
        second = odd(pairs);
    }
    static void read_pair(const u8 * from, int row, u8 * to) { memcpy(to + 4 * row, from, 4); }
};
struct F16 {
    static constexpr int type = 1, UNIT = 32, BYTES = 16 * VECTOR, SOURCE = 2;
    INLINE void get(const u8 * unit, int i, F & first, F & second) {
        first = halves(unit + VECTOR * i);
        second = halves(unit + VECTOR * i + 2 * R);
    }
    static void read_pair(const u8 * from, int row, u8 * to) {
        memcpy(to + 2 * row, from, 2);
        memcpy(to + 2 * (R + row), from + 2, 2);
    }
};
struct F32 {
    static constexpr int type = 0, UNIT = 32, BYTES = 32 * VECTOR, SOURCE = 4;
    INLINE void get(const u8 * unit, int i, F & first, F & second) {
        first = load((const float *) (unit + 2 * VECTOR * i));
        second = load((const float *) (unit + 2 * VECTOR * i + VECTOR));
    }
    static void read_pair(const u8 * from, int row, u8 * to) {
        memcpy(to + 4 * row, from, 4);
        memcpy(to + VECTOR + 4 * row, from + 4, 4);
    }
};
}  // namespace
