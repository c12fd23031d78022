// Threads of llama.cpp that share the work of one node.
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

class Team {
public:
    // A thread's part in one node. All threads of the team take part in every node, and llama.cpp starts the next one
    // only when all have finished.
    class Turn {
    public:
        Turn(Team & team, int thread, int threads) : team_(team), thread_(thread), threads_(threads) {}
        Turn(const Turn &) = delete;
        ~Turn() {  // the last thread to leave resets the state for the next node
            if (team_.left_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
                team_.left_.store(0, std::memory_order_relaxed);
                team_.next_.store(0, std::memory_order_relaxed);
            }
        }

        // The next unassigned piece of work: 0, 1, ... The first one of a thread is its own number, so that it is known
        // beforehand.
        int64_t next() {
            if (first_) {
                first_ = false;
                return thread_;
            }
            return threads_ + team_.next_.fetch_add(1, std::memory_order_relaxed);
        }

        // Waits for all threads; then `next` begins again. A waiting thread yields its core, as the thread it waits
        // for may have none: otherwise it would wait for a time slice to end.
        void wait() {
            first_ = true;
            const int round = team_.round_.load(std::memory_order_relaxed);
            if (team_.arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
                team_.arrived_.store(0, std::memory_order_relaxed);
                team_.next_.store(0, std::memory_order_relaxed);
                team_.round_.store(round + 1, std::memory_order_release);
                return;
            }
            for (int spins = 0; team_.round_.load(std::memory_order_acquire) == round; ++spins) {
                if (spins < SPINS) pause();
                else sched_yield();
            }
        }

    private:
        Team & team_;
        const int thread_, threads_;
        bool first_ = true;
    };

private:
    static constexpr int SPINS = 4000;  // tens of microseconds

    static void pause() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> arrived_{0}, left_{0};
    alignas(64) std::atomic<int> round_{0};
};
