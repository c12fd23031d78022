// Data of one llama_context whose nodes are computed by the kernels.
#pragma once
#include <cstdlib>
#include <cstring>

#include "ggml-backend.h"
#include "ggml.h"
#include "kernels.h"
#include "store.h"
#include "team.h"

#define EXPORT __attribute__((visibility("default")))

// The required functions of ggml, by address: ggml is not linked.
struct Ggml {
    bool (*is_host)(ggml_backend_buffer_t);
    ggml_backend_buffer_usage (*usage)(ggml_backend_buffer_t);
    const char * (*name)(ggml_backend_buffer_t);
};

inline size_t aligned(size_t n) { return (n + 63) & ~(size_t) 63; }

// Memory that grows. Growing discards its content and fills it with zeros.
class Buffer {
public:
    ~Buffer() { free(data_); }
    bool reserve(size_t size) {
        if (size <= size_) return true;
        size = (size + 65535) & ~(size_t) 65535;
        void * larger = aligned_alloc(4096, size);
        if (!larger) return false;  // replaced nodes continue with the existing memory
        memset(larger, 0, size);
        free(data_);
        data_ = larger;
        size_ = size;
        return true;
    }
    char * data() const { return (char *) data_; }

private:
    void * data_ = nullptr;
    size_t size_ = 0;
};

struct Context {
    const Kernels & kernels;
    Store & store;
    const int threads;  // at most
    Team team;
    Buffer activations, lists, attention, finished;
    uint64_t matrices = 0, attentions = 0, left = 0;  // numbers of nodes: replaced, and left to llama.cpp

    // State while the nodes of one graph are inspected.
    bool computed = false;                    // since the last inspection
    const ggml_tensor * activated = nullptr;  // its activations are in memory when the next node begins
    Activation kind = FLOATS;
    ggml_tensor * product = nullptr;  // the last replaced matrix product

    Context(Store & store_, int threads_) : kernels(store_.kernels()), store(store_), threads(threads_) {}

    // The inspected graph is not computed completely: its nodes may be freed.
    void forget() { computed = true; }

    // Begins a thread's turn at a node.
    Team::Turn begin(int thread, int nodes_threads) {
        if (nodes_threads > threads) abort();  // each thread has its own memory, allocated for `threads`
        if (thread == 0) computed = true;
        return Team::Turn(team, thread, nodes_threads);
    }
};

// The parameters of a replaced node: ggml's for GGML_OP_CUSTOM, then those of the kernels.
struct Node {
    ggml_custom_op_t run;
    int64_t tasks;
    Context * context;
    union {
        struct {
            Matrix *weights, *next;  // next: of the matrix product that follows
            bool activated;          // whether its activations are those of the product before
        };
        struct {
            float scale, bias, cap;
        };
    };
    Node(ggml_custom_op_t run_, Context & context_) : run(run_), tasks(GGML_N_TASKS_MAX), context(&context_) {}
    explicit Node(const ggml_tensor * taken) { memcpy((void *) this, taken->op_params, sizeof *this); }
    void put(ggml_tensor * t) const {
        memcpy(t->op_params, this, sizeof *this);
        t->op = GGML_OP_CUSTOM;
    }
};
static_assert(sizeof(Node) <= GGML_MAX_OP_PARAMS, "a node's parameters have no more room");

inline bool is_floats(const ggml_tensor * t) { return t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float); }

void connect(const Ggml & functions);

// The packed copy of a node's weights, if it has weights in host memory.
Matrix * weights_of(Context & context, const ggml_tensor * weights);

// Whether a node was replaced, to be computed by the kernels. They may throw if memory runs out.
bool take_product(Context & context, ggml_tensor * node);    // GGML_OP_MUL_MAT
bool take_experts(Context & context, ggml_tensor * node);    // GGML_OP_MUL_MAT_ID
bool take_attention(Context & context, ggml_tensor * node);  // GGML_OP_FLASH_ATTN_EXT

// Inspects a node before its graph is computed, and replaces it if it is supported. Never throws.
void look(Context & context, ggml_tensor * node);
