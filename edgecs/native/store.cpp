#include "store.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>

namespace {

constexpr size_t PAGE = 4096, HUGE_PAGE = 2 << 20, MAP = 256 << 20;
constexpr size_t LARGE = 64 << 20;
constexpr size_t SOON = 16 << 10;  // bytes of the next matrix that each thread prefetches

size_t rounded(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// Packs the group's rows; rows that the last group of a matrix lacks are zeros.
// filled: has room for a group.
void pack_group(const Matrix & m, int group_rows, const uint8_t * rows, size_t stride, int64_t i, uint8_t * filled,
                uint8_t * to) {
    const int64_t there = std::min<int64_t>(group_rows, m.rows - i * group_rows);
    rows += i * group_rows * stride;
    if (there == group_rows) return m.format->pack(rows, stride, m.units, to);
    memcpy(filled, rows, there * stride);
    memset(filled + there * stride, 0, (group_rows - there) * stride);
    m.format->pack(filled, stride, m.units, to);
}

// Releases the pages that lie completely inside.
void release(const void * data, size_t bytes) {
    const size_t from = rounded((size_t) data, PAGE), end = ((size_t) data + bytes) / PAGE * PAGE;
    if (end > from) madvise((void *) from, end - from, MADV_DONTNEED);
}

}  // namespace

void Matrix::fetch(int64_t i) const {
    if (i >= groups) return;
    const uint8_t *from = group(0, i), *end = std::min(from + SOON, group(0, groups));
    for (; from < end; from += 64) __builtin_prefetch(from, 0, 2);
}

Store::~Store() {
    for (auto & [at, size] : maps_) munmap(at, size);
}

uint8_t * Store::memory(size_t bytes) {
    bytes = rounded(bytes, PAGE);
    if (bytes > left_) {
        const size_t size = rounded(std::max(bytes, MAP), HUGE_PAGE);
        void * map =
            mmap(nullptr, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED) return nullptr;
        maps_.emplace_back(map, size + HUGE_PAGE);
        free_ = (uint8_t *) rounded((size_t) map, HUGE_PAGE);
        left_ = size;
        madvise(free_, size, MADV_HUGEPAGE);  // a token reads all of it: small pages cost a tenth
    }
    uint8_t * at = free_;
    free_ += bytes;
    left_ -= bytes;
    return at;
}

Matrix * Store::find(const ggml_tensor * weights, bool mapped) {
    std::lock_guard<std::mutex> guard(lock_);
    auto [place, missing] = found_.try_emplace(weights->data);
    if (missing) {
        try {
            place->second = packed(weights);
        } catch (...) {
            failed_ = true;
            found_.erase(place);
            throw;
        }
        if (place->second && mapped) release(weights->data, weights->nb[3]);
    }
    Matrix * m = place->second.get();
    // The same memory may be used with another shape.
    const bool same = m && m->format->type == (int) weights->type && m->width == weights->ne[0] &&
                      m->rows == weights->ne[1] && m->experts == weights->ne[2];
    return same ? m : nullptr;
}

std::unique_ptr<Matrix> Store::packed(const ggml_tensor * weights) {
    if (failed_) return nullptr;
    const Format * end = kernels_.formats + kernels_.format_count;
    const Format * format =
        std::find_if(kernels_.formats, end, [&](auto & f) { return f.type == (int) weights->type; });
    if (format == end || weights->ne[0] % format->unit) return nullptr;
    auto m = std::make_unique<Matrix>();
    m->format = format;
    m->width = weights->ne[0];
    m->rows = weights->ne[1];
    m->experts = weights->ne[2];
    m->units = m->width / format->unit;
    m->groups = (m->rows + kernels_.rows - 1) / kernels_.rows;
    const size_t bytes = m->group_bytes() * m->groups * m->experts, given = m->experts * weights->nb[2];
    if (bytes > LARGE && bytes / 2 > given) return nullptr;  // a group would be mostly padding
    m->data = memory(bytes);
    if (!m->data) {
        failed_ = true;
        return nullptr;
    }
    const int64_t groups = m->groups * m->experts;
    const size_t room = m->rows % kernels_.rows ? kernels_.rows * weights->nb[1] : 0;  // for each thread
    std::vector<uint8_t> filled(threads_ * room);
    std::vector<std::thread> team;
    team.reserve(threads_);
    auto work = [&](int t) {
        for (int64_t i = groups * t / threads_; i < groups * (t + 1) / threads_; ++i) {
            const int64_t expert = i / m->groups;
            pack_group(*m, kernels_.rows, (const uint8_t *) weights->data + expert * weights->nb[2], weights->nb[1],
                       i % m->groups, filled.data() + t * room, m->data + i * m->group_bytes());
        }
    };
    for (int t = 1; t < threads_; ++t) try {
            team.emplace_back(work, t);
        } catch (const std::system_error &) {  // no more threads
            work(t);
        }
    work(0);
    for (auto & thread : team) thread.join();
    bytes_ += bytes;
    if (progress_ && !progress_(bytes_)) failed_ = true;
    return m;
}
