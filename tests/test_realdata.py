"""The main job on real text with the real model, short."""

import json
import sys

import pytest

from fineprune import cli

RECIPE = """
model: {{name: minilm, layers: 1}}
task: {{kind: classification, train: {data}/sst2/train.tsv, validation: {data}/sst2/dev.tsv, text: sentence}}
training: {{steps: 200, learning_rate: 5e-4, max_length: 64, group_by_length: true, evaluate_every: 200}}
pruning: {{method: movement, density: 0.1}}
"""


@pytest.mark.realdata
def test_sst2_from_recipe_to_prediction(realdata, tmp_path, capsys, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data=realdata), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for arguments in (["run", "recipe.yaml", "--out", "run"], ["predict", "run", "a gorgeous , witty film"]):
        monkeypatch.setattr(sys, "argv", ["fineprune", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    # Chance is 50.9 % of 872; one standard error is 1.7 points.
    assert results["score"] > 0.60
    assert results["density"] == pytest.approx(0.1, abs=1e-4)
    assert capsys.readouterr().out.splitlines()[-1].split("\t")[0] in ("0", "1")
