// Attention nodes: rows and pieces of the KV cache are distributed among llama.cpp's threads.
#include <algorithm>
#include <atomic>

#include "nodes.h"

namespace {

// The attention of one sequence (stream) of the batch.
Attention attention_of(const ggml_tensor * y, const Node & node, int64_t stream) {
    const ggml_tensor *q = y->src[0], *k = y->src[1], *v = y->src[2], *mask = y->src[3], *sinks = y->src[4];
    Attention a = {};
    a.key_width = k->ne[0];
    a.value_width = v->ne[0];
    a.rows = q->ne[1];
    a.heads = q->ne[2];
    a.kv_heads = k->ne[2];
    a.cells = k->ne[1];
    a.scale = node.scale;
    a.bias = node.bias;
    a.cap = node.cap;
    a.key_type = k->type;
    a.value_type = v->type;
    a.query = {q->nb[1], q->nb[2]};
    a.key = {k->nb[1], k->nb[2]};
    a.value = {v->nb[1], v->nb[2]};
    a.output = {y->nb[2], y->nb[1]};
    a.mask_row = mask->nb[1];
    a.q = (const char *) q->data + stream * q->nb[3];
    a.k = (const char *) k->data + stream * k->nb[3];
    a.v = (const char *) v->data + stream * v->nb[3];
    a.mask = (const char *) mask->data + stream % mask->ne[3] * mask->nb[3];
    a.sinks = sinks ? (const float *) sinks->data : nullptr;
    a.y = (char *) y->data + stream * y->nb[3];
    return a;
}
// How the work is distributed, and the memory it needs, in floats. Rows are grouped in panels. With one panel, threads
// share the pieces of the KV cache, and the thread that computes the last piece of a key head folds them. With several
// panels, a thread computes a whole panel and key head. A row's arithmetic is the same.
struct Shares {
    int64_t pieces, panel, panels, queries;  // queries: of a panel and key head
    size_t scratch, partial, thread;         // thread: per thread

    Shares(const Kernels & kernels, const Attention & a)
        : pieces(kernels.piece_count(a)),
          panel(std::min(a.rows, kernels.panel_rows(a))),
          panels((a.rows + panel - 1) / panel),
          queries(panel * (a.heads / a.kv_heads)),
          scratch(aligned(kernels.attention_scratch(a))),
          partial(kernels.partial_size(a)),
          thread(aligned(scratch + 2 * queries * partial)) {}
    size_t partials() const { return queries * pieces * partial; }  // of one key head, if there is one panel
};

// One thread's part in one node.
class Attending {
public:
    Attending(ggml_tensor * y, int thread, int threads, Context & ctx)
        : y_(y),
          node_(y),
          threads_(threads),
          kernels_(ctx.kernels),
          turn_(ctx.begin(thread, threads)),
          first_(attention_of(y, node_, 0)),
          shares_(kernels_, first_),
          heads_(y->src[0]->ne[3] * first_.kv_heads) {
        float * memory = (float *) ctx.attention.data();
        scratch_ = memory + thread * shares_.thread;
        states_ = scratch_ + shares_.scratch;
        results_ = states_ + shares_.queries * shares_.partial;
        shared_ = memory + threads * shares_.thread;
        finished_ = (std::atomic<int> *) ctx.finished.data();
    }

    // All rows are in one panel: threads share the pieces of the KV cache. The thread that finishes the last one of a
    // key head folds them, so that no thread waits.
    void by_pieces() {
        for (int64_t item; (item = turn_.next()) < heads_ * shares_.pieces;) {
            const int64_t head = item % heads_, piece = item / heads_, next = item + threads_;
            const Attention a = stream(head);
            float * results = shared_ + head * shares_.partials();
            kernels_.attend_piece(a, 0, a.rows, head % a.kv_heads, piece, keys(next % heads_, next / heads_), scratch_,
                                  results + piece * shares_.queries * shares_.partial);
            if (finished_[head].fetch_add(1, std::memory_order_acq_rel) != shares_.pieces - 1) continue;
            finished_[head].store(0, std::memory_order_relaxed);
            begin(a, shares_.queries);
            for (int64_t i = 0; i < shares_.pieces; ++i)
                fold(a, shares_.queries, results + i * shares_.queries * shares_.partial);
            finish(a, 0, shares_.queries, head % a.kv_heads);
        }
    }

    // A thread computes whole panels, the longest rows first.
    void by_panels() {
        for (int64_t item; (item = turn_.next()) < heads_ * shares_.panels;) {
            const int64_t head = item % heads_, row = (shares_.panels - 1 - item / heads_) * shares_.panel;
            const Attention a = stream(head);
            const int64_t rows = std::min(shares_.panel, a.rows - row), queries = rows * (a.heads / a.kv_heads);
            begin(a, queries);
            for (int64_t piece = 0; piece < shares_.pieces; ++piece) {
                kernels_.attend_piece(a, row, rows, head % a.kv_heads, piece, keys(head, piece + 1), scratch_,
                                      results_);
                fold(a, queries, results_);
            }
            finish(a, row, queries, head % a.kv_heads);
        }
    }

    bool has_one_panel() const { return shares_.panels == 1; }

private:
    // `head` counts the key heads of all streams.
    Attention stream(int64_t head) const { return attention_of(y_, node_, head / first_.kv_heads); }
    const char * keys(int64_t head, int64_t piece) const {
        if (piece >= shares_.pieces) return nullptr;
        const Attention a = stream(head);
        return a.k + head % a.kv_heads * a.key.head + piece * kernels_.piece_cells * a.key.row;
    }
    void begin(const Attention & a, int64_t queries) {
        for (int64_t j = 0; j < queries; ++j) kernels_.attend_begin(a, states_ + j * shares_.partial);
    }
    void fold(const Attention & a, int64_t queries, const float * results) {
        for (int64_t j = 0; j < queries; ++j)
            kernels_.attend_fold(a, states_ + j * shares_.partial, results + j * shares_.partial);
    }
    void finish(const Attention & a, int64_t row, int64_t queries, int64_t kv_head) {
        const int64_t group = a.heads / a.kv_heads;
        for (int64_t j = 0; j < queries; ++j)
            kernels_.attend_finish(a, row + j / group, kv_head * group + j % group, states_ + j * shares_.partial);
    }

    const ggml_tensor * y_;
    const Node node_;
    const int threads_;
    const Kernels & kernels_;
    Team::Turn turn_;
    const Attention first_;
    const Shares shares_;
    const int64_t heads_;
    float *scratch_, *states_, *results_, *shared_;
    std::atomic<int> * finished_;
};

void attend(ggml_tensor * y, int thread, int threads, void * data) {
    Attending part(y, thread, threads, *(Context *) data);
    if (part.has_one_panel()) part.by_pieces();
    else part.by_panels();
}

bool is_cache(const ggml_tensor * t) {
    switch (t->type) {
        case GGML_TYPE_F32:
            return t->nb[0] == 4;
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
            return t->nb[0] == 2;
        case GGML_TYPE_Q8_0:
            return t->nb[0] == 34 && t->ne[0] % 32 == 0;
        default:
            return false;
    }
}
}  // namespace

bool take_attention(Context & ctx, ggml_tensor * y) {
    const ggml_tensor *q = y->src[0], *k = y->src[1], *v = y->src[2], *mask = y->src[3], *sinks = y->src[4];
    if (!is_floats(q) || !is_floats(y) || !is_cache(k) || !is_cache(v)) return false;
    if (!mask || mask->type != GGML_TYPE_F16 || mask->nb[0] != 2 || mask->ne[2] != 1) return false;
    if (mask->ne[0] < k->ne[1] || mask->ne[1] < q->ne[1] || (mask->ne[3] != 1 && mask->ne[3] != q->ne[3])) return false;
    if (q->ne[0] != k->ne[0] || k->ne[1] != v->ne[1] || k->ne[2] != v->ne[2] || q->ne[2] % k->ne[2]) return false;
    if (q->ne[3] != k->ne[3] || q->ne[3] != v->ne[3] || (sinks && sinks->type != GGML_TYPE_F32)) return false;
    float params[3];
    memcpy(params, y->op_params, sizeof params);
    Node node(attend, ctx);
    node.scale = params[0];
    node.bias = params[1];
    node.cap = params[2];
    const Attention a = attention_of(y, node, 0);
    const Shares shares(ctx.kernels, a);
    const size_t heads = q->ne[3] * a.kv_heads;
    const size_t floats = ctx.threads * shares.thread + (shares.panels == 1 ? heads * shares.partials() : 0);
    if (!ctx.attention.reserve(floats * sizeof(float)) || !ctx.finished.reserve(heads * sizeof(int))) return false;
    node.put(y);
    return true;
}
