"""Pages of many runs, and of a large model: quick to make, and small."""

import time
from dataclasses import replace

from study.reports import Page, make_record, make_run

from fineprune.study.report import write_report


def test_200_runs_are_quick_and_small(tmp_path):
    methods, densities = ("magnitude", "l0", "movement", "soft_movement"), (0.3, 0.15, 0.1, 0.05, 0.03)
    records = {density: make_record(32, 3, density) for density in densities}
    for task in ("one", "two"):
        for method in methods:
            for density in densities:
                for seed in range(5):
                    name = f"{task}-{method}-{density}-s{seed}"
                    score = 0.8 + 0.01 * seed - 0.01 / density
                    make_run(tmp_path / name, method, density, score, seed, record=records[density])
    begin = time.process_time()  # the machine may be busy with other things
    path = write_report(tmp_path)
    assert time.process_time() - begin < 30
    assert path.stat().st_size < 10_000_000
    page = Page(path)
    assert len(page.table("Each run")) == 200
    assert len(page.masks) == 6
    assert "200 runs: 200 finished" in page.text


def test_the_map_of_a_bert_base_is_small(tmp_path):
    block = make_record(768, 1, 0.1)
    matrices = tuple(
        replace(matrix, name=matrix.name.replace("layer.0", f"layer.{layer}"))
        for layer in range(12)
        for matrix in block.matrices
    )
    record = replace(block, matrices=matrices)
    path = write_report(make_run(tmp_path / "run", record=record))
    assert len(Page(path).masks[0]) == 72
    assert path.stat().st_size < 5_000_000
