// The kernels without a graph of llama.cpp, for the self-test, tests and benchmarks.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <vector>

#include "kernels.h"
#include "nodes.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

}  // namespace

extern "C" {

// y[column][row] = the rows of a matrix of ggml's type (each `stride` bytes) times x[column][width]; 1 to
// `kernels->columns` columns, in one call. Returns 0, or 1: no kernel supports the type or the width.
EXPORT int edgecs_multiply(const Kernels * kernels, int type, const uint8_t * matrix, size_t stride, int64_t rows,
                           int64_t width, const float * x, int columns, float * y) {
    const Format * end = kernels->formats + kernels->format_count;
    const Format * format = std::find_if(kernels->formats, end, [&](auto & f) { return f.type == type; });
    if (format == end || width % format->unit || columns < 1 || columns > kernels->columns) return 1;
    const int64_t units = width / format->unit, group = kernels->rows;
    Buffer packed, activations;
    if (!packed.reserve(units * format->bytes)) return 1;
    if (!activations.reserve(kernels->activation_bytes(format->activation, width) * columns)) return 1;
    const float * from[MOST_COLUMNS];
    for (int c = 0; c < columns; ++c) from[c] = x + c * width;
    kernels->activate(format->activation, from, columns, width, activations.data(), 0, 1);
    for (int64_t row = 0; row < rows; row += group) {
        const int64_t there = std::min(group, rows - row);
        std::vector<uint8_t> source(group * stride);
        std::copy_n(matrix + row * stride, there * stride, source.begin());
        format->pack(source.data(), stride, units, (uint8_t *) packed.data());
        float out[MOST_COLUMNS * MOST_ROWS];
        format->multiply[columns]((uint8_t *) packed.data(), units, activations.data(), out, group);
        for (int c = 0; c < columns; ++c) std::copy_n(out + c * group, there, y + c * rows + row);
    }
    return 0;
}

// Attention of all rows and heads of one node, `rows` (1 to the kernels' panel) at a time.
EXPORT int edgecs_attend(const Kernels * kernels, const Attention * attention, int64_t rows) {
    const Attention & a = *attention;
    const int64_t group = a.heads / a.kv_heads, pieces = kernels->piece_count(a);
    if (rows < 1 || rows > kernels->panel_rows(a)) return 1;
    const size_t partial = kernels->partial_size(a), scratch_size = (kernels->attention_scratch(a) + 63) / 64 * 64;
    Buffer memory;
    if (!memory.reserve((scratch_size + 2 * rows * group * partial) * sizeof(float))) return 1;
    float *scratch = (float *) memory.data(), *results = scratch + scratch_size;
    float * states = results + rows * group * partial;
    for (int64_t row = 0; row < a.rows; row += rows) {
        const int64_t now = std::min(rows, a.rows - row);
        for (int64_t kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
            for (int64_t j = 0; j < now * group; ++j) kernels->attend_begin(a, states + j * partial);
            for (int64_t piece = 0; piece < pieces; ++piece) {
                const bool last = piece + 1 == pieces;
                const char * next =
                    last ? nullptr : a.k + kv_head * a.key.head + (piece + 1) * kernels->piece_cells * a.key.row;
                kernels->attend_piece(a, row, now, kv_head, piece, next, scratch, results);
                for (int64_t j = 0; j < now * group; ++j)
                    kernels->attend_fold(a, states + j * partial, results + j * partial);
            }
            for (int64_t j = 0; j < now * group; ++j)
                kernels->attend_finish(a, row + j / group, kv_head * group + j % group, states + j * partial);
        }
    }
    return 0;
}

// Bytes per second that the threads together read from memory; 0: out of memory.
EXPORT double edgecs_bandwidth(const Kernels * kernels, size_t bytes, int threads, int repeats) {
    Store store(*kernels, threads, nullptr);
    uint8_t * memory = store.memory(bytes);
    if (!memory) return 0;
    const size_t share = bytes / threads / 4096 * 4096;
    std::vector<double> times;
    std::atomic<uint64_t> seen{0};
    for (int i = 0; i <= repeats; ++i) {
        std::vector<std::thread> team;
        const auto began = Clock::now();
        for (int t = 0; t < threads; ++t)
            team.emplace_back([&, t] {
                if (i == 0)
                    std::fill_n(memory + t * share, share, (uint8_t) t);  // allocates pages on the thread's NUMA node
                else seen += kernels->read(memory + t * share, share);
            });
        for (auto & thread : team) thread.join();
        if (i) times.push_back(seconds_since(began));
    }
    std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
    return (double) (share * threads) / times[repeats / 2];
}

}  // extern "C"
