// The functions for Python. Their arguments are results of the preceding functions; none of them throws.
#include <new>

#include "nodes.h"
#if defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP2_I8MM  // not known to older C libraries
#define HWCAP2_I8MM (1 << 13)
#endif
#endif

// Contains the compiled instruction sets only, see build.py.
namespace {

#if defined(__x86_64__)
bool has_f16c() {  // not supported by __builtin_cpu_supports in all compilers
    unsigned a = 1, b, c, d;
    asm("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    return c >> 29 & 1;
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
bool has_avxvnni() {  // not supported by __builtin_cpu_supports yet
    unsigned a = 7, b, c = 1, d;
    asm("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return has_avx2() && (a >> 4 & 1);
}
#elif defined(__aarch64__)
bool has_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
bool has_i8mm() { return has_dotprod() && getauxval(AT_HWCAP2) & HWCAP2_I8MM; }
#endif
bool always() { return true; }

// Best first.
const struct {
    bool (*runs)();
    const Kernels * (*kernels)();
} sets[] = {
#if defined(EDGECS_AVX512BF16)
    {has_avx512bf16, kernels_avx512bf16},
#endif
#if defined(EDGECS_AVX512)
    {has_avx512, kernels_avx512},
#endif
#if defined(EDGECS_AVXVNNI)
    {has_avxvnni, kernels_avxvnni},
#endif
#if defined(EDGECS_AVX2)
    {has_avx2, kernels_avx2},
#endif
#if defined(EDGECS_I8MM)
    {has_i8mm, kernels_i8mm},
#endif
#if defined(EDGECS_DOTPROD)
    {has_dotprod, kernels_dotprod},
#endif
#if defined(EDGECS_PORTABLE)
    {always, kernels_portable},
#endif
};

}  // namespace

extern "C" {

// The i-th kernels that this processor supports, best first; null if there are no more.
EXPORT const Kernels * edgecs_kernels(int i) {
    for (const auto & set : sets)
        if (set.runs() && i-- == 0) return set.kernels();
    return nullptr;
}
EXPORT const char * edgecs_name(const Kernels * kernels) { return kernels->name; }

EXPORT int edgecs_columns(const Kernels * kernels) { return kernels->columns; }

EXPORT void edgecs_connect(const Ggml * functions) { connect(*functions); }

EXPORT Store * edgecs_store(const Kernels * kernels, int threads, Store::Progress progress) {
    return new (std::nothrow) Store(*kernels, threads, progress);
}
EXPORT uint64_t edgecs_store_bytes(const Store * store) { return store->bytes(); }
EXPORT bool edgecs_store_failed(const Store * store) { return store->failed(); }
EXPORT void edgecs_store_free(Store * store) { delete store; }

// threads: most threads that compute with the context.
EXPORT Context * edgecs_context(Store * store, int threads) { return new (std::nothrow) Context(*store, threads); }
// Must be called after a failed call of llama.cpp.
EXPORT void edgecs_context_forget(Context * context) { context->forget(); }
EXPORT void edgecs_context_free(Context * context) { delete context; }
// Numbers of nodes so far: matrix products and attentions computed by the kernels, nodes left to llama.cpp.
EXPORT void edgecs_context_counts(const Context * context, uint64_t * counts) {
    counts[0] = context->matrices;
    counts[1] = context->attentions;
    counts[2] = context->left;
}

// ggml_backend_sched_eval_callback; `context` is its user data.
EXPORT bool edgecs_eval(ggml_tensor * node, bool ask, void * context) {
    if (!ask) return true;
    look(*(Context *) context, node);
    return false;  // so that the graph is not split
}

}  // extern "C"
