// The packed weights of one model, shared by all its contexts.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "ggml.h"
#include "kernels.h"

// A matrix, or one for each of several experts, in groups of rows.
struct Matrix {
    const Format * format;
    int64_t width, rows, experts;
    int64_t units, groups;  // of a row; of an expert
    uint8_t * data;

    size_t group_bytes() const { return (size_t) units * format->bytes; }
    // Prefetches the beginning of a group, which is needed soon.
    void fetch(int64_t group) const;
    const uint8_t * group(int64_t expert, int64_t i) const { return data + (expert * groups + i) * group_bytes(); }
};

class Store {
public:
    // Called with the number of packed bytes; returns false to stop.
    using Progress = bool (*)(uint64_t bytes);

    Store(const Kernels & kernels, int threads, Progress progress)
        : kernels_(kernels), threads_(threads), progress_(progress) {}
    ~Store();
    Store(const Store &) = delete;

    const Kernels & kernels() const { return kernels_; }
    uint64_t bytes() const { return bytes_; }
    bool failed() const { return failed_; }

    // The packed copy of weights, made at first use; null if there is no kernel, no memory, or packing was stopped.
    // `mapped`: the original is a mapped file, whose pages may be released; they can be read again.
    Matrix * find(const ggml_tensor * weights, bool mapped);

    // Memory in large pages, until the store is freed; null if memory runs out.
    uint8_t * memory(size_t bytes);

private:
    std::unique_ptr<Matrix> packed(const ggml_tensor * weights);

    const Kernels & kernels_;
    const int threads_;
    const Progress progress_;
    std::mutex lock_;
    std::unordered_map<const void *, std::unique_ptr<Matrix>> found_;
    std::vector<std::pair<void *, size_t>> maps_;
    uint8_t * free_ = nullptr;  // the rest of the last map
    size_t left_ = 0;
    std::atomic<uint64_t> bytes_{0};
    std::atomic<bool> failed_{false};
};
