// The entry point: replaces nodes of llama.cpp's graphs by calls of the kernels.
//
// `llama_context_params.cb_eval` is called for every node before a graph is computed. It may change the node: a node
// that the kernels support becomes GGML_OP_CUSTOM, which llama.cpp runs in its own threads, between its own nodes. By
// then all tensors are allocated, and a graph that llama.cpp reuses stays changed. Nodes of other types and shapes are
// not changed.
//
// Weights must be in host memory in the layout of the file (llama_model_params.use_extra_bufts = false). llama.cpp is
// not linked: the addresses of the required functions are passed to `edgecs_connect`.
#include "nodes.h"

#include <exception>

namespace {
Ggml ggml;
}

void connect(const Ggml & functions) { ggml = functions; }

// The packed copy of a node's weights, if it has weights in host memory.
Matrix * weights_of(Context & ctx, const ggml_tensor * w) {
    if (w->op != GGML_OP_NONE || w->view_src || !w->buffer || !ggml.is_host(w->buffer)) return nullptr;
    if (ggml.usage(w->buffer) != GGML_BACKEND_BUFFER_USAGE_WEIGHTS || w->ne[3] != 1) return nullptr;
    const bool mapped = strcmp(ggml.name(w->buffer), "CPU_Mapped") == 0;
    return ctx.store.find(w, mapped);
}
void look(Context & ctx, ggml_tensor * t) {
    if (ctx.computed) {  // another graph, or one that is reused: the state of the last one is invalid
        ctx.computed = false;
        ctx.activated = nullptr;
        ctx.product = nullptr;
    }
    if (!(t->flags & GGML_TENSOR_FLAG_COMPUTE)) return;  // a branch that is not computed
    if (t == ctx.activated) ctx.activated = nullptr;
    for (int64_t n : t->ne)
        if (n == 0) return;  // nothing is computed
    bool taken = false;
    try {
        switch (t->op) {
            case GGML_OP_MUL_MAT:
                ctx.matrices += taken = take_product(ctx, t);
                break;
            case GGML_OP_MUL_MAT_ID:
                ctx.matrices += taken = take_experts(ctx, t);
                break;
            case GGML_OP_FLASH_ATTN_EXT:
                ctx.attentions += taken = take_attention(ctx, t);
                break;
            default:
                return;
        }
    } catch (const std::exception &) {  // out of memory: llama.cpp computes the node
    }
    ctx.left += !taken;
}
