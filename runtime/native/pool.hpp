// The threads of one engine. They wait between calls, and die with it.
#pragma once
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "check.hpp"
#include "waiting.hpp"

namespace fp {

class Pool {
  public:
    explicit Pool(int threads) : threads_(threads) {}
    ~Pool() {
        if (crew_ && crew_->process == getpid()) crew_->dismiss();
        else crew_.release();  // after a fork the threads are not here, and cannot be joined
    }
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int threads() const { return threads_; }

    // Calls work(worker) on `workers` threads, this one among them, and returns when all are done. `work` must not
    // throw: memory is allocated before.
    void run(int workers, const std::function<void(int)> &work) {
        FP_CHECK(workers >= 1 && workers <= threads_);
        workers_ = workers;
        arrived_ = 0;
        if (workers == 1) return work(0);
        begun_ = Clock::now();
        if (crew_ && crew_->process != getpid()) crew_.release();
        if (!crew_) crew_ = std::make_unique<Crew>(threads_ - 1);
        crew_->start(workers - 1, work);
        work(0);
        crew_->finish(patience());
    }

    // Within run(): waits until all workers are here.
    void barrier() {
        if (workers_ == 1) return;
        const uint32_t round = round_.load();
        if (arrived_.fetch_add(1) + 1 == uint32_t(workers_)) {
            const auto now = Clock::now();
            lasted_ = now - begun_;
            begun_ = now;
            arrived_ = 0;
            round_.fetch_add(1);
            return at_barrier_.wake();
        }
        at_barrier_.wait([&] { return round_.load() != round; }, patience());
    }

  private:
    struct Crew {
        explicit Crew(int size) : process(getpid()) {
            try {
                for (int i = 0; i < size; i++) threads.emplace_back([this, i] { serve(i); });
            } catch (...) {
                dismiss();
                throw;
            }
        }
        void start(int workers, const std::function<void(int)> &what) {
            {
                std::lock_guard<std::mutex> hold(lock);
                work = &what;
                active = workers;
                busy = workers;
                job.fetch_add(1);
            }
            wake.notify_all();
        }
        void finish(Clock::duration patience) {
            finished.wait([&] { return busy.load() == 0; }, patience);
        }
        void serve(int index) {
            uint64_t seen = 0;
            for (;;) {
                soon([&] { return job.load() != seen; });
                bool mine;
                {
                    std::unique_lock<std::mutex> hold(lock);
                    wake.wait(hold, [&] { return job.load() != seen || over; });
                    if (over) return;
                    seen = job.load();
                    mine = index < active;
                }
                if (!mine) continue;
                (*work)(index + 1);
                if (busy.fetch_sub(1) == 1) finished.wake();
            }
        }
        void dismiss() {
            {
                std::lock_guard<std::mutex> hold(lock);
                over = true;
            }
            wake.notify_all();
            for (std::thread &thread : threads) thread.join();
        }

        const pid_t process;
        std::mutex lock;
        std::condition_variable wake;
        std::vector<std::thread> threads;
        const std::function<void(int)> *work = nullptr;
        int active = 0;
        bool over = false;
        std::atomic<uint64_t> job{0};
        std::atomic<int> busy{0};
        Meeting finished;
    };

    // How long to stay awake at a barrier: twice as long as the last phase took. A worker that falls asleep comes late to
    // the next phase, finds its tile taken by the others, and would fall asleep at every barrier from then on.
    Clock::duration patience() const { return std::clamp<Clock::duration>(2 * lasted_.load(), kNap, 10 * kNap); }

    const int threads_;
    int workers_ = 1;
    Clock::time_point begun_;                // of a phase; only who arrives last reads and writes it
    std::atomic<Clock::duration> lasted_{};  // the last phase
    std::unique_ptr<Crew> crew_;
    Meeting at_barrier_;
    std::atomic<uint32_t> arrived_{0}, round_{0};
};

}  // namespace fp
