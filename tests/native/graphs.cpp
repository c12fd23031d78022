// Graphs of ggml's whose nodes the kernels take: what no model that is easily made does. See
// tests/engines/test_own_graphs.py.
#include <sys/resource.h>

#include <cmath>
#include <cstdio>

#include "ggml-alloc.h"
#include "ggml-cpu.h"
#include "nodes.h"

extern "C" {
const Kernels * edgecs_kernels(int i);
void edgecs_connect(const Ggml *);
}

namespace {

constexpr int64_t WIDTH = 256, ROWS = 40, TOKENS = 3, EXPERTS = 4;

void expect(bool holds, const char * what) {
    if (holds) return;
    fprintf(stderr, "not so: %s\n", what);
    exit(1);
}

constexpr size_t SIZE = 512 << 20;
alignas(4096) char memory[SIZE];

// Tensors in one piece of memory, so that a second graph can be where the first one was.
struct Graph {
    ggml_context * ctx;

    ggml_backend_buffer_t weights;

    Graph() : ctx(ggml_init({SIZE, memory, false})), weights(ggml_backend_cpu_buffer_from_ptr(memory, SIZE)) {
        ggml_backend_buffer_set_usage(weights, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    }
    ~Graph() {
        ggml_backend_buffer_free(weights);
        ggml_free(ctx);
    }

    ggml_tensor * matrix(int64_t width, int64_t rows, int64_t experts = 1) {
        ggml_tensor * t = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, width, rows, experts);
        t->buffer = weights;
        return filled(t, 1);
    }
    static ggml_tensor * filled(ggml_tensor * t, float scale) {
        for (int64_t i = 0; i < ggml_nelements(t); ++i) ((float *) t->data)[i] = scale * std::sin((float) i);
        return t;
    }
    ggml_cgraph * of(std::initializer_list<ggml_tensor *> ends) {
        ggml_cgraph * graph = ggml_new_graph(ctx);
        for (ggml_tensor * end : ends) ggml_build_forward_expand(graph, end);
        return graph;
    }
};
void look(Context & context, ggml_cgraph * graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) look(context, ggml_graph_node(graph, i));
}
bool close(const ggml_tensor * product, const ggml_tensor * weights, const ggml_tensor * x) {
    for (int64_t column = 0; column < product->ne[1]; ++column)
        for (int64_t row = 0; row < product->ne[0]; ++row) {
            const float *w = (const float *) weights->data + row * WIDTH, *v = (const float *) x->data + column * WIDTH;
            double sum = 0;
            for (int64_t i = 0; i < WIDTH; ++i) sum += (double) w[i] * v[i];
            if (!(std::abs(((const float *) product->data)[column * product->ne[0] + row] - sum) < 1e-3)) return false;
        }
    return true;
}

void experts_out_of_range(Context & context) {
    Graph g;
    ggml_tensor * w = g.matrix(WIDTH, ROWS, EXPERTS);
    ggml_tensor * x = Graph::filled(ggml_new_tensor_3d(g.ctx, GGML_TYPE_F32, WIDTH, 1, TOKENS), 1);
    ggml_tensor * ids = ggml_new_tensor_2d(g.ctx, GGML_TYPE_I32, 2, TOKENS);
    const int32_t chosen[] = {1, -1, EXPERTS, 3, 2147483647, -2147483647};
    memcpy(ids->data, chosen, sizeof chosen);
    ggml_tensor * y = ggml_mul_mat_id(g.ctx, w, x, ids);
    Graph::filled(y, 7);
    ggml_cgraph * graph = g.of({y});
    look(context, graph);
    expect(y->op == GGML_OP_CUSTOM, "the product is taken");
    ggml_graph_compute_with_ctx(g.ctx, graph, 2);
    for (int i = 0; i < 2 * TOKENS; ++i) {
        double size = 0;
        for (int64_t row = 0; row < ROWS; ++row) size += std::abs(((float *) y->data)[i * ROWS + row]);
        const bool is_there = chosen[i] >= 0 && chosen[i] < EXPERTS;
        expect(is_there ? size > 0.1 : size == 0, "what no expert computes is zero");
    }
}

// A call that fails leaves a graph behind that was looked at and not computed. The next one has its tensors where
// that one's were, and its activations are others.
void a_graph_that_is_not_computed(Context & context) {
    for (float scale : {1.f, 2.f, 3.f}) {
        Graph g;
        ggml_tensor *first = g.matrix(WIDTH, ROWS), *second = g.matrix(WIDTH, ROWS);
        ggml_tensor * x = Graph::filled(ggml_new_tensor_2d(g.ctx, GGML_TYPE_F32, WIDTH, TOKENS), scale);
        ggml_tensor * scaled = ggml_scale(g.ctx, x, 0.5f);
        ggml_tensor *y = ggml_mul_mat(g.ctx, first, scaled), *z = ggml_mul_mat(g.ctx, second, scaled);
        ggml_cgraph * graph = g.of({y, z});
        look(context, graph);
        if (scale == 2) {
            context.forget();
            continue;
        }
        expect(!Node(y).activated && Node(z).activated, "the second product has the first one's activations");
        ggml_graph_compute_with_ctx(g.ctx, graph, 2);
        expect(close(y, first, scaled) && close(z, second, scaled), "the products are right");
    }
}

void a_node_that_is_not_to_be_computed(Context & context) {
    Graph g;
    ggml_tensor *first = g.matrix(WIDTH, ROWS), *second = g.matrix(WIDTH, ROWS);
    ggml_tensor * x = Graph::filled(ggml_new_tensor_2d(g.ctx, GGML_TYPE_F32, WIDTH, TOKENS), 1);
    ggml_tensor * scaled = ggml_scale(g.ctx, x, 0.5f);
    ggml_tensor *y = ggml_mul_mat(g.ctx, first, scaled), *z = ggml_mul_mat(g.ctx, second, scaled);
    ggml_cgraph * graph = g.of({y, z});
    y->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
    look(context, graph);
    expect(y->op == GGML_OP_MUL_MAT && z->op == GGML_OP_CUSTOM, "only what is computed is taken");
    ggml_graph_compute_with_ctx(g.ctx, graph, 2);
    expect(close(z, second, scaled), "the product is right");
}

// Its copy has a group of rows, as all have: many times as much memory as the row.
void a_matrix_of_one_long_row(Context & context) {
    Graph g;
    ggml_tensor * w = g.matrix(32 << 20, 1);
    ggml_tensor * y = ggml_mul_mat(g.ctx, w, ggml_new_tensor_2d(g.ctx, GGML_TYPE_F32, 32 << 20, 1));
    look(context, g.of({y}));
    expect(y->op == GGML_OP_MUL_MAT && context.left == 1, "llama.cpp computes it");
}

void no_memory_for_activations(Context & context) {
    Graph g;
    ggml_tensor * w = g.matrix(WIDTH, ROWS);
    ggml_tensor * few = Graph::filled(ggml_new_tensor_2d(g.ctx, GGML_TYPE_F32, WIDTH, TOKENS), 1);
    ggml_tensor * many = Graph::filled(ggml_new_tensor_2d(g.ctx, GGML_TYPE_F32, WIDTH, 100000), 1);
    ggml_tensor *y = ggml_mul_mat(g.ctx, w, few), *z = ggml_mul_mat(g.ctx, w, many);
    ggml_cgraph * graph = g.of({y, z});
    look(context, y);
    rlimit all, none = {1, RLIM_INFINITY};
    expect(!getrlimit(RLIMIT_AS, &all), "the limit can be read");
    none.rlim_max = all.rlim_max;
    expect(!setrlimit(RLIMIT_AS, &none), "memory can be limited");
    look(context, z);
    setrlimit(RLIMIT_AS, &all);
    expect(y->op == GGML_OP_CUSTOM && z->op == GGML_OP_MUL_MAT, "the large one is left to llama.cpp");
    ggml_cgraph * taken = g.of({y});
    ggml_graph_compute_with_ctx(g.ctx, taken, 1);
    expect(graph && close(y, w, few), "the small one is right");
}

const struct {
    const char * name;
    void (*test)(Context &);
} tests[] = {
#define TEST(name) {#name, name}
    TEST(experts_out_of_range),     TEST(a_graph_that_is_not_computed), TEST(a_node_that_is_not_to_be_computed),
    TEST(a_matrix_of_one_long_row), TEST(no_memory_for_activations),
};

}  // namespace

int main(int count, char ** arguments) {
    // "CPU_Mapped" would mean that the pages of weights are a file's, and can be read again.
    const auto name = [](ggml_backend_buffer_t) { return "CPU"; };
    const Ggml functions = {ggml_backend_buffer_is_host, ggml_backend_buffer_get_usage, name};
    edgecs_connect(&functions);
    for (const auto & [name, test] : tests)
        if (count == 2 && !strcmp(arguments[1], name)) {
            Store store(*edgecs_kernels(0), 2, nullptr);
            Context context(store, 2);
            test(context);
            return 0;
        }
    for (const auto & named : tests) puts(named.name);
    return count != 1;
}
