// How threads wait: for each other in a call, for a call of their engine, and for calls to end before a fork.
#pragma once
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#if defined(__linux__)
#include <sched.h>
#endif

#include "check.hpp"

namespace fp {

// How many of a number of threads can run at once. More of them would only wait for each other, and divide the tokens
// into narrower tiles. Builds with checks run all of them, so that tests of threads need no such machine.
inline int usable_threads(int threads) {
#if defined(__linux__)
    cpu_set_t cores;
    if (!kChecks && threads > 1 && !sched_getaffinity(0, sizeof(cores), &cores))
        return std::min(threads, CPU_COUNT(&cores));
#endif
    return threads;
}

typedef std::chrono::steady_clock Clock;

// About as long as falling asleep and waking up takes.
constexpr Clock::duration kNap = std::chrono::microseconds(50);

// Asks in a loop, for so long, whether something is true.
template <class Ready>
bool soon(Ready &&ready, Clock::duration patience = kNap) {
    const auto end = Clock::now() + patience;
    do {
        for (int i = 0; i < 16; i++) {
            if (ready()) return true;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    } while (Clock::now() < end);
    return false;
}

// Where threads of a call wait until something is true that another thread makes true. They fall asleep after a while:
// that other thread may need this core, or be kept waiting by the system for as long as it likes.
class Meeting {
  public:
    template <class Ready>
    void wait(Ready &&ready, Clock::duration patience) {
        if (soon(ready, patience)) return;
        std::unique_lock<std::mutex> hold(lock_);
        asleep_.fetch_add(1);
        changed_.wait(hold, ready);
        asleep_.fetch_sub(1);
    }
    // To be called after it has become true, by an atomic operation in sequential order, as all here are: either that
    // is seen by a thread that falls asleep, or the thread is seen here.
    void wake() {
        if (!asleep_.load()) return;
        {
            const std::lock_guard<std::mutex> hold(lock_);
        }
        changed_.notify_all();
    }

  private:
    std::mutex lock_;
    std::condition_variable changed_;
    std::atomic<int> asleep_{0};
};

// What a call holds, so that other calls of its engine wait. A fork waits as well: its child has no thread that would
// end a call, and would wait forever, or find half of what the call has written.
class CallLock {
  public:
    CallLock() {
        const std::lock_guard<std::mutex> hold(all().lock);
        all().calls.insert(this);
    }
    ~CallLock() {
        const std::lock_guard<std::mutex> hold(all().lock);
        all().calls.erase(this);
    }
    CallLock(const CallLock &) = delete;
    CallLock &operator=(const CallLock &) = delete;
    void lock() { lock_.lock(); }
    void unlock() { lock_.unlock(); }

  private:
    struct All {
        All() {
            pthread_atfork([] { all().hold(); }, [] { all().release(); }, [] { all().release(); });
        }
        void hold() {
            lock.lock();
            for (CallLock *call : calls) call->lock();
        }
        void release() {
            for (CallLock *call : calls) call->unlock();
            lock.unlock();
        }
        std::mutex lock;
        std::set<CallLock *> calls;
    };
    // Never freed: an engine may outlive what is destroyed at exit.
    static All &all() {
        static All *const one = new All;
        return *one;
    }

    std::mutex lock_;
};

}  // namespace fp
