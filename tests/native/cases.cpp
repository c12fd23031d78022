// Computes cases from a file, for processors that have no Python: see tests/engines/test_own_sets.py.
//
// A case is a header of ten 64-bit numbers and what it names; results go to standard output as floats. The kernels are
// chosen by name.
#include <cstdio>
#include <cstring>
#include <vector>

#include "nodes.h"

extern "C" {
const Kernels * edgecs_kernels(int i);
int edgecs_multiply(const Kernels *, int, const uint8_t *, size_t, int64_t, int64_t, const float *, int, float *);
int edgecs_attend(const Kernels *, const Attention *, int64_t);
}

static std::vector<char> take(FILE * file, size_t bytes) {
    std::vector<char> data(bytes);
    if (fread(data.data(), 1, bytes, file) != bytes) exit(2);
    return data;
}

int main(int count, char ** arguments) {
    if (count != 3) return 2;
    const Kernels * kernels = nullptr;
    for (int i = 0; const Kernels * found = edgecs_kernels(i); ++i)
        if (!strcmp(found->name, arguments[2])) kernels = found;
    FILE * file = fopen(arguments[1], "rb");
    if (!kernels || !file) return 3;
    int64_t h[10];
    while (fread(h, sizeof h, 1, file) == 1) {
        std::vector<float> y;
        if (h[0] == 0) {  // a product: type, row's bytes, rows, width, columns
            const auto matrix = take(file, h[2] * h[3]), x = take(file, h[4] * h[5] * 4);
            y.resize(h[3] * h[5]);
            if (edgecs_multiply(kernels, (int) h[1], (const uint8_t *) matrix.data(), h[2], h[3], h[4],
                                (const float *) x.data(), (int) h[5], y.data()))
                return 4;
        } else {  // attention: type, cell's bytes, width, rows, heads, key heads, cells, together, sinks
            const auto k = take(file, h[2] * h[6] * h[7]), v = take(file, h[2] * h[6] * h[7]);
            const auto q = take(file, h[3] * h[4] * h[5] * 4), mask = take(file, h[4] * h[7] * 2);
            const auto sinks = take(file, h[9] ? h[5] * 4 : 0);
            y.resize(h[3] * h[4] * h[5]);
            const size_t heads = h[3] * 4, rows = heads * h[5], cells = h[2] * h[6];
            Attention a = {h[3], h[3], h[4], h[5], h[6], h[7], 0.25f, 0, 0, (int) h[1], (int) h[1]};
            a.query = a.output = {rows, heads};
            a.key = a.value = {cells, (size_t) h[2]};
            a.mask_row = h[7] * 2;
            a.q = q.data();
            a.k = k.data();
            a.v = v.data();
            a.mask = mask.data();
            a.sinks = h[9] ? (const float *) sinks.data() : nullptr;
            a.y = (char *) y.data();
            if (edgecs_attend(kernels, &a, h[8])) return 5;
        }
        fwrite(y.data(), sizeof(float), y.size(), stdout);
    }
    return 0;
}
