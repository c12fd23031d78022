// Attention in 32-bit floats over a KV cache of any common type, for one instruction set.
//
// The KV cache is split at fixed positions, every PIECE cells. A piece gives each row and head a partial result: the
// largest score, the sum of the weights exp(score - largest) and the weighted sum of the values. Partial results are
// folded in the order of the pieces (online softmax, arXiv 2112.05682). A row therefore depends on its query and on
// its unmasked cells, but not on the number of rows computed together, on llama.cpp's padding of the cache, or on the
// thread of a piece. A masked cell adds an exact zero.

constexpr int PIECE = 256, TILE = 32;  // cells; a tile of keys or values stays in the first-level cache
constexpr int MOST_QUERIES = 96;       // rows times heads that share a tile

// exp(x) with a relative error of about 1e-7; from -87 down it is 1e-38, from 88 up 1e38
INLINE F exp(F x) {
    x = min(all(88.f), max(all(-87.f), x));  // this order keeps a NaN
    const I n = to_int(mul(x, all(1.44269504089f)));
    const F whole = to_float(n);
    const F rest = fnma(whole, all(-2.12194440e-4f), fnma(whole, all(0.693359375f), x));
    F p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.f, 1.f})
        p = fma(p, rest, all(c));
    return mul(p, power(n));
}
INLINE F tanh(F x) { return sub(all(1.f), div(all(2.f), add(exp(add(x, x)), all(1.f)))); }
constexpr float NOTHING = -__builtin_inff();

int64_t padded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

// [0]: largest score, [1]: sum, from LANES on: the vector
size_t partial_size(const Attention & a) { return LANES + padded(a.value_width); }
int64_t piece_count(const Attention & a) { return (a.cells + PIECE - 1) / PIECE; }
int64_t panel_rows(const Attention & a) {
    const int64_t rows = MOST_QUERIES / (a.heads / a.kv_heads);
    return rows < 1 ? 1 : rows > 16 ? 16 : rows;
}
// Layout of a thread's scratch memory for a full panel, in floats.
struct Scratch {
    float *queries, *mask, *scores, *tile;
    size_t size;
    Scratch(const Attention & a, float * from) {
        const int64_t rows = panel_rows(a), queries_ = rows * (a.heads / a.kv_heads), key = padded(a.key_width);
        const int64_t value = padded(a.value_width);
        queries = from;
        mask = queries + queries_ * key;
        scores = mask + rows * PIECE;
        tile = scores + queries_ * PIECE;
        size = tile + TILE * (key > value ? key : value) - from;
    }
};
size_t attention_scratch(const Attention & a) { return Scratch(a, nullptr).size; }

// LANES numbers of a cell from number i on, as floats; numbers after the last one are zero.
INLINE F widened(int type, const char * from, int64_t i, int64_t width) {
    if (i + LANES > width) {
        float rest[LANES] = {};
        for (int j = 0; i + j < width; ++j) {
            const u32 bits = (u32) read<u16>(from + 2 * (i + j)) << 16;
            rest[j] = type == F32::type   ? read<float>(from + 4 * (i + j))
                      : type == F16::type ? half(read<u16>(from + 2 * (i + j)))
                                          : read<float>(&bits);
        }
        return load(rest);
    }
    switch (type) {
        case F32::type:
            return load((const float *) from + i);
        case F16::type:
            return halves(from + 2 * i);
        case BF16::type:
            return bfloats(from + 2 * i);
        default: {  // Q8_0, whose blocks are a half and 32 bytes; its width is a multiple of 32
            const char * block = from + i / 32 * 34;
            return mul(to_float(bytes((const i8 *) block + 2 + i % 32)), all(half(read<u16>(block))));
        }
    }
}
size_t cache_bytes(int type, int64_t width) {
    return type == F32::type ? 4 * width : type == Q8_0::type ? width / 32 * 34 : 2 * width;
}
// TILE cells as floats: keys as [number][cell], so that lanes are cells; values as [number / LANES][cell][LANES], so
// that lanes are numbers.
template <int TYPE>
void widen_keys(const char * from, size_t stride, int64_t cells, int64_t width, float * tile) {
    for (int c = 0; c < TILE; c += LANES)
        for (int64_t d = 0; d < width; d += LANES) {
            F v[LANES];
            _Pragma("GCC unroll 16") for (int i = 0; i < LANES; ++i) v[i] =
                c + i < cells ? widened(TYPE, from + (c + i) * stride, d, width) : zero();
            transpose(v);
            _Pragma("GCC unroll 16") for (int i = 0; i < LANES; ++i) store(tile + (d + i) * TILE + c, v[i]);
        }
}
template <int TYPE>
void widen_values(const char * from, size_t stride, int64_t cells, int64_t width, float * tile) {
    for (int64_t c = 0; c < TILE; ++c)
        for (int64_t d = 0; d < width; d += LANES)
            store(tile + d * TILE + c * LANES, c < cells ? widened(TYPE, from + c * stride, d, width) : zero());
}
#define FOR_TYPE(FUNCTION, type, ...) \
    switch (type) { \
        case F32::type: \
            return FUNCTION<F32::type>(__VA_ARGS__); \
        case F16::type: \
            return FUNCTION<F16::type>(__VA_ARGS__); \
        case BF16::type: \
            return FUNCTION<BF16::type>(__VA_ARGS__); \
        case Q8_0::type: \
            return FUNCTION<Q8_0::type>(__VA_ARGS__); \
    }
void widen_keys(int type, const char * from, size_t stride, int64_t cells, int64_t width, float * tile) {
    FOR_TYPE(widen_keys, type, from, stride, cells, width, tile)
}
void widen_values(int type, const char * from, size_t stride, int64_t cells, int64_t width, float * tile) {
    FOR_TYPE(widen_values, type, from, stride, cells, width, tile)
}
#undef FOR_TYPE
// Rows of the KV cache are far apart, so hardware prefetching does not work.
void ask_for_tile(const char * from, size_t stride, int64_t cells, size_t bytes) {
    for (int64_t c = 0; c < cells && c < TILE; ++c)
        for (size_t i = 0; i < bytes; i += 64) ask_for(from + c * stride + i);
}

// The slope for a head's mask (ALiBi, arXiv 2108.12409).
float slope_of(const Attention & a, int64_t head) {
    if (a.bias <= 0) return 1;
    const int64_t power = 1ll << (63 - __builtin_clzll((unsigned long long) a.heads));
    return head < power ? __builtin_powf(2.f, -a.bias / power * (head + 1))
                        : __builtin_powf(2.f, -a.bias / 2 / power * (2 * (head - power) + 1));
}

// The products of COUNT queries and a tile's keys.
template <int COUNT>
void score(const float * queries, const float * tile, int64_t width, float * scores) {
    constexpr int VECTORS = TILE / LANES;
    F acc[COUNT][VECTORS];
    for (int j = 0; j < COUNT; ++j)
        for (int v = 0; v < VECTORS; ++v) acc[j][v] = zero();
    for (int64_t d = 0; d < width; ++d) {
        F keys[VECTORS];
        for (int v = 0; v < VECTORS; ++v) keys[v] = load(tile + d * TILE + v * LANES);
        for (int j = 0; j < COUNT; ++j) {
            const F q = all(queries[j * width + d]);
            for (int v = 0; v < VECTORS; ++v) acc[j][v] = fma(q, keys[v], acc[j][v]);
        }
    }
    for (int j = 0; j < COUNT; ++j)
        for (int v = 0; v < VECTORS; ++v) store(scores + j * PIECE + v * LANES, acc[j][v]);
}
// Calls f(first, Number<count>) for parts of n, of N where possible.
template <int N, class Function>
INLINE void in_parts(int64_t n, Function f) {
    int64_t i = 0;
    for (; i + N <= n; i += N) f(i, Number<N>());
    unrolled<N>([&](auto rest) {
        if constexpr (decltype(rest)::value > 0)
            if (n - i == decltype(rest)::value) f(i, rest);
    });
}
// Converts a piece's products into weights; tiles that are masked completely are not changed.
void weigh(const Attention & a, float slope, const float * mask, const bool * seen, float * scores, float * partial) {
    const F nothing = all(NOTHING);
    F most = nothing, total = zero();
    for (int c = 0; c < PIECE; c += LANES) {
        if (!seen[c / TILE]) continue;
        const F hides = load(mask + c);
        F s = unless(hides, nothing, load(scores + c));  // a masked score may be NaN
        if (a.cap != 0) s = mul(all(a.cap), tanh(s));
        s = fma(all(slope), hides, s);
        store(scores + c, s);
        most = max(most, s);
    }
    const float top = largest(most);
    for (int c = 0; c < PIECE; c += LANES) {
        if (!seen[c / TILE]) continue;
        const F s = load(scores + c), w = unless(s, nothing, exp(sub(s, all(top))));
        store(scores + c, w);
        total = add(total, w);
    }
    partial[0] = top;
    partial[1] = sum(total);
}
// Adds a tile's values, weighted, to the partial results of COUNT queries: VECTORS vectors of them.
template <int COUNT, int VECTORS>
INLINE void add_values(const float * weights, const float * tile, float * to, size_t stride) {
    F acc[COUNT][VECTORS];
    for (int j = 0; j < COUNT; ++j)
        for (int d = 0; d < VECTORS; ++d) acc[j][d] = load(to + j * stride + LANES * d);
    for (int c = 0; c < TILE; ++c)
        for (int d = 0; d < VECTORS; ++d) {
            const F x = held(load(tile + (d * TILE + c) * LANES));
            for (int j = 0; j < COUNT; ++j) acc[j][d] = fma(all(weights[j * PIECE + c]), x, acc[j][d]);
        }
    for (int j = 0; j < COUNT; ++j)
        for (int d = 0; d < VECTORS; ++d) store(to + j * stride + LANES * d, acc[j][d]);
}
template <int COUNT>
void add_values(const float * weights, const float * tile, int64_t width, float * to, size_t stride) {
    int64_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) add_values<COUNT, 4>(weights, tile + d * TILE, to + d, stride);
    for (; d < width; d += LANES) add_values<COUNT, 1>(weights, tile + d * TILE, to + d, stride);
}

void attend_piece(const Attention & a, int64_t row, int64_t rows, int64_t kv_head, int64_t piece,
                  const char * next_keys, float * scratch, float * to) {
    const Scratch at(a, scratch);
    const int64_t group = a.heads / a.kv_heads, key = padded(a.key_width), value = padded(a.value_width);
    const int64_t first = piece * PIECE, cells = a.cells - first < PIECE ? a.cells - first : PIECE;
    const int64_t queries = rows * group;
    const size_t partial = partial_size(a);
    const char * keys = a.k + kv_head * a.key.head + first * a.key.row;
    const char * values = a.v + kv_head * a.value.head + first * a.value.row;
    const size_t key_bytes = cache_bytes(a.key_type, a.key_width),
                 value_bytes = cache_bytes(a.value_type, a.value_width);

    bool seen[PIECE / TILE] = {};  // unmasked for some row
    for (int64_t r = 0; r < rows; ++r) {
        float * mask = at.mask + r * PIECE;
        const char * from = a.mask + (row + r) * a.mask_row + first * 2;
        for (int64_t c = 0; c < PIECE; c += LANES) {
            const F m = c < cells ? widened(F16::type, from, c, cells) : all(NOTHING);
            store(mask + c, m);
        }
        for (int64_t c = cells; c < PIECE; ++c) mask[c] = NOTHING;
        for (int c = 0; c < PIECE; c += LANES) seen[c / TILE] |= largest(load(mask + c)) != NOTHING;
    }
    const F scale = all(a.cap != 0 ? a.scale / a.cap : a.scale);
    for (int64_t i = 0; i < queries; ++i) {
        const char * from = a.q + (row + i / group) * a.query.row + (kv_head * group + i % group) * a.query.head;
        for (int64_t d = 0; d < key; d += LANES)
            store(at.queries + i * key + d, mul(widened(F32::type, from, d, a.key_width), scale));
    }
    for (int c = 0; c < PIECE; c += TILE) {
        if (!seen[c / TILE]) continue;
        widen_keys(a.key_type, keys + c * a.key.row, a.key.row, cells - c, a.key_width, at.tile);
        ask_for_tile(values + c * a.value.row, a.value.row, cells - c, value_bytes);
        in_parts<QUERIES>(queries, [&](int64_t i, auto count) {
            score<decltype(count)::value>(at.queries + i * key, at.tile, key, at.scores + i * PIECE + c);
        });
    }
    for (int64_t i = 0; i < queries; ++i) {
        weigh(a, slope_of(a, kv_head * group + i % group), at.mask + i / group * PIECE, seen, at.scores + i * PIECE,
              to + i * partial);
        memset(to + i * partial + LANES, 0, value * sizeof(float));
    }
    for (int c = 0; c < PIECE; c += TILE) {
        if (!seen[c / TILE]) continue;
        widen_values(a.value_type, values + c * a.value.row, a.value.row, cells - c, a.value_width, at.tile);
        if (next_keys) ask_for_tile(next_keys + c * a.key.row, a.key.row, TILE, key_bytes);
        in_parts<4>(queries, [&](int64_t i, auto count) {
            add_values<decltype(count)::value>(at.scores + i * PIECE + c, at.tile, value, to + i * partial + LANES,
                                               partial);
        });
    }
}

// Folds the partial result of later cells into `state`.
void fold(float * state, int64_t width, float top, float sum, const float * values) {
    if (top == NOTHING) return;  // all of them are masked
    const float most = state[0] > top ? state[0] : top;
    const F before = state[0] == NOTHING ? zero() : exp(all(state[0] - most)), now = exp(all(top - most));
    state[0] = most;
    state[1] = state[1] * largest(before) + sum * largest(now);
    for (int64_t d = 0; d < width; d += LANES) {
        float * at = state + LANES + d;
        const F old = mul(before, load(at));
        store(at, values ? fma(now, load(values + d), old) : old);
    }
}
void attend_begin(const Attention & a, float * state) {
    memset(state, 0, partial_size(a) * sizeof(float));
    state[0] = NOTHING;
}
void attend_fold(const Attention & a, float * state, const float * partial) {
    fold(state, padded(a.value_width), partial[0], partial[1], partial + LANES);
}
// The attention of a row and head, from the state of all its cells.
void attend_finish(const Attention & a, int64_t row, int64_t head, float * state) {
    if (a.sinks) fold(state, padded(a.value_width), a.sinks[head], 1, nullptr);
    const float inverse = state[1] == 0 ? 0 : 1 / state[1];
    float * y = (float *) (a.y + row * a.output.row + head * a.output.head);
    const float * values = state + LANES;
    int64_t d = 0;
    for (; d + LANES <= a.value_width; d += LANES) store(y + d, mul(load(values + d), all(inverse)));
    for (; d < a.value_width; ++d) y[d] = values[d] * inverse;
}
