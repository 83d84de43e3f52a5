from fineprune import PruningConfig
def test_a(make_trainer):
    t = make_trainer(PruningConfig("movement", density=0.2)); t.train()
    print(t.state.log_history)
def test_run(files, tmp_path, capsys):
    from fineprune.training.run import run_recipe, evaluate_run
    r = run_recipe(files.recipe(), tmp_path/"run", progress=False)
    print(r); print(sorted(p.name for p in (tmp_path/"run").iterdir()))
    print(evaluate_run(tmp_path/"run")); print(sorted(p.name for p in (tmp_path/"run").iterdir()))
