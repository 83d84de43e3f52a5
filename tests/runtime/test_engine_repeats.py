"""What changes no answer, bit for bit: another run, more threads, neighbors, padding, a fork."""

import contextlib
import os
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.engines import PAIRS, EncoderCase, make_hidden, make_layers, make_linear

from fineprune_runtime import Encoder, Linear, Matrix, SparseLinear, native

everywhere = pytest.mark.parametrize(("level", "dtype"), PAIRS)
FORKS = 100 if os.environ.get("FINEPRUNE_STRESS") else 5
CASE = EncoderCase(2, 40, 3, 9, 70, 0.4, 9, 0, True, "gelu", 5, 41, 1, 1, 8)


def make_encoder(level, dtype, threads=1, case=CASE):
    return Encoder(make_layers(case), head_dim=case.head_dim, dtype=dtype, threads=threads, level=level)


@everywhere
def test_any_number_of_threads_and_run_after_run(level, dtype):
    # Fewer tokens than a tile has are spread over narrower tiles when there are threads for them.
    one = make_encoder(level, dtype)
    others = [make_encoder(level, dtype, threads) for threads in (2, 3, 7)]
    hidden, mask = make_hidden(CASE)
    for batch, length in ((5, 41), (1, 41), (1, 1), (2, 17), (5, 1)):
        part, kept = hidden[:batch, :length], mask[:batch, :length]
        expected = one(part, kept).tobytes()
        for encoder in others:
            for _ in range(3):
                assert encoder(part, kept).tobytes() == expected


@everywhere
@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 45) | st.integers(108, 130), min_size=1, max_size=6),
    padding=st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_alone_in_a_batch_and_with_padding(level, dtype, lengths, padding, seed):
    random = np.random.default_rng(seed)
    encoder = make_encoder(level, dtype, threads=int(random.integers(1, 3)))
    texts = [random.standard_normal((1, length, 40)).astype(np.float32) for length in lengths]
    longest = max(lengths) + padding
    hidden = random.standard_normal((len(texts), longest, 40)).astype(np.float32)
    mask = np.zeros((len(texts), longest), np.int64)
    for index, text in enumerate(texts):
        # Its tokens need not stand together: only their order counts, as positions are none of the encoder's.
        places = np.sort(random.permutation(longest)[: text.shape[1]])
        hidden[index, places], mask[index, places] = text[0], 1
    y = encoder(hidden, mask)
    for index, text in enumerate(texts):
        alone = encoder(text)
        assert y[index][mask[index] == 1].tobytes() == alone.tobytes()
        assert encoder(text, np.ones(text.shape[:2])).tobytes() == alone.tobytes()
    assert not y[:, 1:][mask[:, 1:] == 0].any()


@everywhere
def test_a_linear_layer_gives_each_token_its_own(level, dtype):
    given = make_linear(np.random.default_rng(0), 37, 1700, density=0.1, full=9)
    x = np.random.default_rng(1).standard_normal((130, 1700)).astype(np.float32)
    engines = [SparseLinear(given, dtype=dtype, threads=threads, level=level) for threads in (1, 2, 3)]
    expected = engines[0](x)
    for engine in engines:
        assert engine(x).tobytes() == expected.tobytes()
        for first, last in ((0, 1), (5, 70), (64, 128), (99, 130), (7, 7)):
            assert engine(x[first:last]).tobytes() == expected[first:last].tobytes()


def run_together(*jobs):
    """Each job in a thread of its own, all let go at once; raises what any of them raised."""
    begin, errors = threading.Barrier(len(jobs)), []

    def work(job):
        try:
            begin.wait(10)
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def repeated(encoder, hidden, expected):
    def job():
        for _ in range(10):
            assert encoder(hidden).tobytes() == expected

    return job


@everywhere
@pytest.mark.parametrize("threads", [1, 2])
def test_encoders_in_threads_at_once(level, dtype, threads):
    # Two encoders of other weights, and one that three threads ask.
    cases = CASE, CASE._replace(seed=9, activation="relu", length=23)
    encoders = [make_encoder(level, dtype, threads, case) for case in cases]
    asked = [make_hidden(case)[0] for case in (*cases, CASE._replace(seed=10, batch=1))]
    jobs = [
        (encoders[0], asked[0]),
        (encoders[1], asked[1]),
        (encoders[0], asked[2]),
        (encoders[0], asked[1]),
    ]
    answers = [encoder(hidden).tobytes() for encoder, hidden in jobs]
    run_together(*(repeated(*job, expected) for job, expected in zip(jobs, answers, strict=True)))


def in_child(job):
    """Whether `job()` is true in a fork of this process."""
    with warnings.catch_warnings():
        # Python warns of a fork beside threads; the engine's are what is looked at here.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # a deadlock ends the child, and not the tests
        good = False
        with contextlib.suppress(BaseException):
            good = bool(job())
        os._exit(0 if good else 1)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("level", "dtype"), PAIRS[:2])
def test_after_a_fork(level, dtype):
    encoder, (hidden, mask) = make_encoder(level, dtype, threads=2), make_hidden(CASE)
    expected = encoder(hidden, mask).tobytes()  # its threads are running now, and do not come along

    def child():
        nonlocal encoder
        good = all(encoder(hidden, mask).tobytes() == expected for _ in range(3))
        good &= make_encoder(level, dtype, threads=2)(hidden, mask).tobytes() == expected
        good &= in_child(lambda: encoder(hidden, mask).tobytes() == expected)
        encoder = None  # freed without waiting for threads that are not here
        return good

    assert in_child(child)
    assert encoder(hidden, mask).tobytes() == expected
    # One that never ran before the fork has no threads yet.
    fresh = make_encoder(level, dtype, threads=3)
    assert in_child(lambda: fresh(hidden, mask).tobytes() == expected)
    assert fresh(hidden, mask).tobytes() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", ["encoder", "linear"])
def test_forks_while_other_threads_are_in_calls(make, threads):
    level, dtype = PAIRS[0]
    if make == "encoder":
        engine, x = make_encoder(level, dtype, threads), make_hidden(CASE)[0]
    else:
        given = make_linear(np.random.default_rng(0), 200, 300, density=0.3)
        engine = SparseLinear(given, dtype=dtype, level=level, threads=threads)
        x = np.random.default_rng(1).standard_normal((130, 300)).astype(np.float32)
    expected, done = engine(x).tobytes(), threading.Event()

    def load():
        while not done.is_set():
            engine(x)

    workers = [threading.Thread(target=load, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(FORKS):
            assert in_child(lambda: engine(x).tobytes() == expected)
    finally:
        done.set()
        for worker in workers:
            worker.join()


def threads_now():
    """The ids of this process's threads. Their number may fall: one of another test may just be ending."""
    return set(os.listdir("/proc/self/task"))


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")


@needs_proc
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
@pytest.mark.skipif(native.library("portable").fp_constant(b"FP_CHECKS") == 1, reason="runs all threads")
def test_threads_that_would_share_a_core_are_not_used():
    encoder, (hidden, mask) = make_encoder(*PAIRS[0], threads=3), make_hidden(CASE)
    cores, before = os.sched_getaffinity(0), threads_now()
    os.sched_setaffinity(0, {min(cores)})
    try:
        alone = encoder(hidden, mask).tobytes()
        assert threads_now() <= before
    finally:
        os.sched_setaffinity(0, cores)
    assert encoder(hidden, mask).tobytes() == alone


@needs_proc
def test_an_encoder_that_is_freed_ends_its_threads():
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    hidden, _ = make_hidden(CASE)
    before = threads_now()
    encoder = Encoder(make_layers(CASE), head_dim=CASE.head_dim, threads=3)
    assert threads_now() <= before  # none before the first call
    encoder(hidden)
    own = threads_now() - before
    assert len(own) == 2
    encoder(hidden)
    assert threads_now() - before == own
    del encoder
    end = time.monotonic() + 30
    while threads_now() & own and time.monotonic() < end:  # one that was waited for is listed for a moment
        time.sleep(0.01)
    assert threads_now() <= before


@everywhere
@needs_proc
def test_a_text_of_one_tile_needs_no_other_threads(level, dtype):
    """They would only wait: in each layer one thread has the tile."""
    before = threads_now()
    encoder, (hidden, _) = make_encoder(level, dtype, threads=3), make_hidden(CASE)
    encoder(hidden[:1, :8])
    assert threads_now() <= before


@everywhere
def test_timing_the_kernel_says_how_many_tokens_it_ran(level, dtype):
    linear = Linear(Matrix.from_dense(np.eye(16, dtype=np.float32)), None)
    layer = SparseLinear(linear, dtype=dtype, level=level)
    seconds, tokens = layer.time_kernel(3)
    assert seconds > 0
    assert tokens % 3 == 0
    assert tokens // 3 in (8, 16, 32, 64)  # 8 where a register holds 4 numbers and bfloat16 is emulated
