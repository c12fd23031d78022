// Matrix product nodes: columns and rows are distributed among llama.cpp's threads.
#include <algorithm>

#include "nodes.h"

namespace {

// Columns are split into chunks for one call of a kernel, as equal as possible.
struct Chunks {
    int64_t columns, count;
    Chunks(int64_t columns_, int most) : columns(columns_), count((columns_ + most - 1) / most) {}
    int64_t start(int64_t i) const { return columns * i / count; }
    int size(int64_t i) const { return (int) (start(i + 1) - start(i)); }
};
constexpr int FEW = 16;              // up to this many columns, each thread computes all activations: no waiting
constexpr size_t PANEL = 384 << 10;  // bytes of activations that stay in a core's cache while rows are read

// Groups of rows in stretches, several per thread: a thread that finishes early takes another one.
struct Stretches {
    int64_t groups, size, count;
    Stretches(const Matrix & w, int threads)
        : groups(w.groups), size(std::max<int64_t>(1, groups / (threads * 8))), count((groups + size - 1) / size) {}
    int64_t start(int64_t i) const { return std::min(groups, i * size); }
};

// Location of activations: those of few columns belong to a thread, those of many are shared.
char * activations_of(const Context & ctx, size_t bytes, bool few, int thread) {
    return ctx.activations.data() + (few ? thread * aligned(bytes) : 0);
}
bool reserve_activations(Context & ctx, size_t bytes, bool few) {
    return ctx.activations.reserve(few ? ctx.threads * aligned(bytes) : bytes);
}

// y[column][row] of a group of rows; `y` is where the group begins. The last group of a matrix may have fewer rows.
void multiply_group(const Kernels & kernels, const Matrix & w, int64_t expert, int64_t g, int n,
                    const char * activations, float * const * y) {
    const int rows = (int) std::min<int64_t>(kernels.rows, w.rows - g * kernels.rows);
    float out[MOST_COLUMNS * MOST_ROWS];
    w.format->multiply[n](w.group(expert, g), w.units, activations, out, kernels.rows);
    for (int c = 0; c < n; ++c) memcpy(y[c] + g * kernels.rows, out + c * kernels.rows, rows * sizeof(float));
}

void multiply(ggml_tensor * y, int thread, int threads, void * data) {
    Context & ctx = *(Context *) data;
    const Kernels & kernels = ctx.kernels;
    const Node node(y);
    const Matrix & w = *node.weights;
    const ggml_tensor * x = y->src[1];
    Team::Turn turn = ctx.begin(thread, threads);
    const Chunks chunks(x->ne[1], kernels.columns);
    const size_t column = kernels.activation_bytes(w.format->activation, w.width);
    const bool few = chunks.columns <= FEW;
    char * activations = activations_of(ctx, column * chunks.columns, few, thread);
    if (!node.activated)
        for (int64_t i = 0; i < chunks.count; ++i) {
            const float * columns[MOST_COLUMNS];
            for (int c = 0; c < chunks.size(i); ++c)
                columns[c] = (const float *) ((const char *) x->data + (chunks.start(i) + c) * x->nb[1]);
            kernels.activate(w.format->activation, columns, chunks.size(i), w.width,
                             activations + chunks.start(i) * column, few ? 0 : thread, few ? 1 : threads);
        }
    if (!few) turn.wait();

    const Stretches rows(w, threads);
    const int64_t step = std::max<int64_t>(1, PANEL / (column * kernels.columns));
    const int64_t panels = (chunks.count + step - 1) / step;
    for (int64_t item; (item = turn.next()) < rows.count * panels;) {
        const int64_t stretch = item / panels, from = item % panels * step;
        for (int64_t g = rows.start(stretch); g < rows.start(stretch + 1); ++g)
            for (int64_t i = from; i < std::min(chunks.count, from + step); ++i) {
                float * to[MOST_COLUMNS];
                for (int c = 0; c < chunks.size(i); ++c)
                    to[c] = (float *) ((char *) y->data + (chunks.start(i) + c) * y->nb[1]);
                multiply_group(kernels, w, 0, g, chunks.size(i), activations + chunks.start(i) * column, to);
            }
    }
    if (node.next) node.next->fetch(Stretches(*node.next, threads).start(thread));
}

// The columns of each expert, from ids [used, tokens]: sorted in memory of `bytes`.
class Experts {
public:
    struct Column {
        int64_t slot, token;
    };
    static size_t bytes(int64_t experts, const ggml_tensor & ids) {
        return aligned((experts + 2 + ids.ne[0] * ids.ne[1]) * sizeof(int32_t));
    }
    Experts(int64_t experts, const ggml_tensor & ids, char * memory)
        : used_(ids.ne[0]), starts_((int32_t *) memory), columns_(starts_ + experts + 2) {
        memset(starts_, 0, (experts + 2) * sizeof(int32_t));
        const auto each = [&](auto visit) {
            for (int64_t i = 0; i < used_ * ids.ne[1]; ++i) {
                const char * at = (const char *) ids.data + i % used_ * ids.nb[0] + i / used_ * ids.nb[1];
                const int32_t expert = *(const int32_t *) at;
                if (expert >= 0 && expert < experts) visit(expert, (int32_t) i);
            }
        };
        each([&](int32_t expert, int32_t) { ++starts_[expert + 2]; });
        for (int64_t e = 0; e < experts; ++e) starts_[e + 2] += starts_[e + 1];
        each([&](int32_t expert, int32_t i) { columns_[starts_[expert + 1]++] = i; });
    }
    int64_t count(int64_t expert) const { return starts_[expert + 1] - starts_[expert]; }
    Column column(int64_t expert, int64_t i) const {
        const int32_t at = columns_[starts_[expert] + i];
        return {at % used_, at / used_};
    }

private:
    const int64_t used_;
    int32_t *const starts_, *const columns_;
};

// Matrix products with a matrix for each of several experts: x [width, 1 or used, tokens], ids [used, tokens],
// y [rows, used, tokens]. The columns of an expert are gathered; each thread computes their activations itself.
void multiply_experts(ggml_tensor * y, int thread, int threads, void * data) {
    Context & ctx = *(Context *) data;
    const Kernels & kernels = ctx.kernels;
    const Matrix & w = *Node(y).weights;
    const ggml_tensor *x = y->src[1], *ids = y->src[2];
    Team::Turn turn = ctx.begin(thread, threads);
    const Experts experts(w.experts, *ids, ctx.lists.data() + thread * Experts::bytes(w.experts, *ids));
    const size_t column = kernels.activation_bytes(w.format->activation, w.width);
    char * activations = activations_of(ctx, column * kernels.columns, true, thread);
    const Stretches rows(w, threads);

    // No expert computes these: they are cleared.
    for (int64_t i = 0; thread == 0 && i < ids->ne[0] * ids->ne[1]; ++i) {
        const int64_t slot = i % ids->ne[0], token = i / ids->ne[0];
        const int32_t expert = *(const int32_t *) ((const char *) ids->data + slot * ids->nb[0] + token * ids->nb[1]);
        if (expert < 0 || expert >= w.experts)
            memset((char *) y->data + slot * y->nb[1] + token * y->nb[2], 0, w.rows * sizeof(float));
    }
    // Work is counted over experts, then the chunks of their columns, then stretches of rows.
    int64_t item = turn.next(), first = 0;
    for (int64_t e = 0; e < w.experts; ++e) {
        const Chunks chunks(experts.count(e), kernels.columns);
        for (int64_t i = 0; i < chunks.count; ++i, first += rows.count) {
            if (item >= first + rows.count) continue;
            const float * from[MOST_COLUMNS];
            float * to[MOST_COLUMNS];
            for (int c = 0; c < chunks.size(i); ++c) {
                const auto [slot, token] = experts.column(e, chunks.start(i) + c);
                from[c] = (const float *) ((const char *) x->data + slot % x->ne[1] * x->nb[1] + token * x->nb[2]);
                to[c] = (float *) ((char *) y->data + slot * y->nb[1] + token * y->nb[2]);
            }
            kernels.activate(w.format->activation, from, chunks.size(i), w.width, activations, 0, 1);
            for (; item < first + rows.count; item = turn.next())
                for (int64_t g = rows.start(item - first); g < rows.start(item - first + 1); ++g)
                    multiply_group(kernels, w, e, g, chunks.size(i), activations, to);
        }
    }
}

bool has_hints(const ggml_tensor * t) {  // such as a precision
    static const int32_t none[GGML_MAX_OP_PARAMS / sizeof(int32_t)] = {};
    return memcmp(t->op_params, none, sizeof none) != 0;
}

}  // namespace

bool take_product(Context & ctx, ggml_tensor * y) {
    const ggml_tensor * x = y->src[1];
    if (has_hints(y) || !is_floats(x) || !is_floats(y) || x->ne[2] * x->ne[3] != 1) return false;
    Matrix * w = weights_of(ctx, y->src[0]);
    if (!w || w->experts != 1) return false;
    const Activation kind = w->format->activation;
    const size_t bytes = ctx.kernels.activation_bytes(kind, w->width) * x->ne[1];
    if (!reserve_activations(ctx, bytes, x->ne[1] <= FEW)) return false;
    Node node(multiply, ctx);
    node.weights = w;
    node.next = nullptr;
    // Not for a leaf: its values may change without a node.
    node.activated = ctx.activated == x && ctx.kind == kind && x->op != GGML_OP_NONE;
    node.put(y);
    if (ctx.product) {
        Node before(ctx.product);
        before.next = w;
        before.put(ctx.product);
    }
    ctx.product = y;
    ctx.activated = x;
    ctx.kind = kind;
    return true;
}

bool take_experts(Context & ctx, ggml_tensor * y) {
    const ggml_tensor *x = y->src[1], *ids = y->src[2];
    if (has_hints(y) || !is_floats(x) || !is_floats(y) || x->ne[3] != 1 || ids->type != GGML_TYPE_I32) return false;
    Matrix * w = weights_of(ctx, y->src[0]);
    if (!w) return false;
    const size_t column = ctx.kernels.activation_bytes(w->format->activation, w->width);
    if (!reserve_activations(ctx, column * ctx.kernels.columns, true)) return false;
    if (!ctx.lists.reserve(ctx.threads * Experts::bytes(w->experts, *ids))) return false;
    Node node(multiply_experts, ctx);
    node.weights = w;
    node.put(y);
    ctx.product = nullptr;
    ctx.activated = nullptr;
    return true;
}
