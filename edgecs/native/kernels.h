// The interface of kernels.cpp for each instruction set it is compiled for.
#pragma once
#include <cstddef>
#include <cstdint>

// Most columns of one call, for any instruction set. Fewer columns compile faster, which sanitizers need.
#ifndef EDGECS_COLUMNS
#define EDGECS_COLUMNS 12
#endif
constexpr int MOST_ROWS = 16, MOST_COLUMNS = EDGECS_COLUMNS;

// Activations in a kernel's layout: [block][column], of all columns that one call computes.
enum Activation {
    BLOCKS_OF_32,   // signed bytes, one scale per 32 numbers
    BLOCKS_OF_256,  // signed bytes, one scale per 256 numbers
    FLOATS,         // pairs of floats
    BFLOATS,        // bfloat16, in blocks of 32
};

// A packed type of weights: rows in groups, one lane each, so that a vector holds the same weights of every row of a
// group. A row is a sequence of units.
struct Format {
    int type;   // ggml_type
    int unit;   // weights; the length of a row is a multiple of it
    int bytes;  // of a unit, for all rows of a group
    Activation activation;
    // Packs one group of rows of ggml's blocks; rows are `stride` bytes apart.
    void (*pack)(const uint8_t * rows, size_t stride, int64_t units, uint8_t * packed);
    // multiply[n]: a group times n columns of activations. y[c * stride + row] for every column c.
    void (*multiply[MOST_COLUMNS + 1])(const uint8_t * packed, int64_t units, const void * activations, float * y,
                                       size_t stride);
};

// One attention node, independent of its graph. All strides are in bytes.
struct Attention {
    int64_t key_width, value_width;  // floats of a head
    int64_t rows, heads, kv_heads, cells;
    float scale, bias, cap;  // of scores; largest slope of ALiBi; cap of scores; 0: not used
    int key_type, value_type;
    struct Strides {
        size_t row, head;
    } query, key, value, output;  // of keys and values, `row` is a cell
    size_t mask_row;
    const char *q, *k, *v, *mask;
    const float * sinks;  // one score without a value per head; or null
    char * y;
};

struct Kernels {
    const char * name;
    int rows;     // of a group
    int columns;  // most columns of one call of `multiply`
    const Format * formats;
    int format_count;

    // Bytes of one column of `width` numbers.
    size_t (*activation_bytes)(Activation, int64_t width);
    // Computes one of `parts` parts of the activations of columns of numbers.
    void (*activate)(Activation, const float * const * columns, int count, int64_t width, void * to, int part,
                     int parts);

    // Attention in pieces of the KV cache, see attention.h. Partial results are folded in the order of the pieces.
    size_t (*attention_scratch)(const Attention &);  // floats, for one thread
    size_t (*partial_size)(const Attention &);       // floats, of one row and head; a state has as many
    int64_t (*panel_rows)(const Attention &);        // rows that are computed together
    int64_t (*piece_count)(const Attention &);
    // The partial results of `rows` rows from `row` on, for the heads of one key head: to[row][head of the group].
    // next_keys: of the piece that this thread computes next, or null.
    void (*attend_piece)(const Attention &, int64_t row, int64_t rows, int64_t kv_head, int64_t piece,
                         const char * next_keys, float * scratch, float * to);
    int64_t piece_cells;
    // For a row and head: the state is empty at first, folds the partial results in order, and gives the result.
    void (*attend_begin)(const Attention &, float * state);
    void (*attend_fold)(const Attention &, float * state, const float * partial);
    void (*attend_finish)(const Attention &, int64_t row, int64_t head, float * state);

    // Reads memory as fast as possible; the result prevents the compiler from removing the loop.
    uint64_t (*read)(const uint8_t * from, size_t bytes);
};

const Kernels * kernels_avx512bf16();
const Kernels * kernels_avx512();
const Kernels * kernels_avxvnni();
const Kernels * kernels_avx2();
const Kernels * kernels_i8mm();
const Kernels * kernels_dotprod();
const Kernels * kernels_portable();
