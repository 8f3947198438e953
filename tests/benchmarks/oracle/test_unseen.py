import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import rws.benchmarks.oracle.unseen as unseen
from rws.benchmarks.oracle.unseen import (
    ARMS,
    UnseenRecipe,
    bundle_recall,
    bundle_recipe,
    leave_one_out,
    print_unseen,
    summary,
    table_without,
)
from rws.edge.bundle.bundle import Bundle
from rws.errors import FormatError, InputError
from rws.oracle.policy import ExpectedGainPolicy
from rws.training.corruptions import CORRUPTIONS
from rws.training.evaluation.frames import load_splits
from rws.training.jobs.graph import JobsFailedError
from rws.training.jobs.store import claim
from rws.training.oracle.sampling import OracleRecipe

BUNDLE = Bundle.load("cifar10")
TABLE = BUNDLE.table


@given(st.sampled_from(CORRUPTIONS), st.integers(0, 2**32 - 1))
def test_the_table_loses_one_corruption_and_nothing_else(name, seed):
    table = table_without(TABLE, name)
    assert name not in table.corruptions
    assert len(table.corruptions) == len(TABLE.corruptions) - 1
    steps = len(TABLE.levels)
    actions = {tuple(TABLE.mix(action).items()): action for action in range(len(TABLE.alpha))}
    rng = np.random.default_rng(seed)
    for state, action in rng.integers((len(table.accuracy), len(table.alpha)), size=(8, 2)):
        mix = table.mix(int(action))
        assert name not in mix
        corruption, level = divmod(int(state) - 1, steps)
        old = 0 if state == 0 else 1 + TABLE.corruptions.index(table.corruptions[corruption]) * steps + level
        assert table.accuracy[state, action] == TABLE.accuracy[old, actions[tuple(mix.items())]]


def test_every_other_action_is_still_there():
    kept = {tuple(table_without(TABLE, "fog").mix(a).items()) for a in range(len(table_without(TABLE, "fog").alpha))}
    every = {tuple(TABLE.mix(action).items()) for action in range(len(TABLE.alpha))}
    assert every - kept == {mix for mix in every if mix and mix[0][0] == "fog"}


def test_a_policy_without_the_signature_never_takes_it():
    table = table_without(TABLE, "snow")
    joint = np.random.default_rng(0).dirichlet(np.full(len(table.accuracy), 0.05), 500).astype(np.float32)
    chosen = ExpectedGainPolicy(table).choose_batch(joint)
    assert len(set(chosen.tolist())) > 5
    assert all("snow" not in table.mix(int(action)) for action in chosen)


def test_an_unknown_corruption_is_named(tmp_path):
    with pytest.raises(InputError, match="unknown corruption 'rain'"):
        table_without(TABLE, "rain")
    with pytest.raises(InputError, match="unknown corruption 'rain'"):
        leave_one_out(BUNDLE, None, UnseenRecipe(OracleRecipe()), tmp_path, only=["rain"])


def test_the_recipe_is_the_bundles_with_fewer_epochs():
    recipe = bundle_recipe(BUNDLE, 3)
    assert recipe.epochs == 3
    assert bundle_recipe(BUNDLE).widths == recipe.widths
    stripped = Bundle(BUNDLE.path, BUNDLE.manifest, BUNDLE.signatures, BUNDLE.table)
    object.__setattr__(stripped, "manifest", type("M", (), {"provenance": {}})())
    with pytest.raises(FormatError, match="build the bundle again"):
        bundle_recipe(stripped)


@pytest.fixture(scope="module")
def splits(image_folder):
    return load_splits(BUNDLE, str(image_folder))


RECIPE = UnseenRecipe(OracleRecipe(epochs=1, batch_size=32, widths=(8, 8)), limit=20, validation_limit=4)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("unseen")


@pytest.fixture(scope="module")
def result(splits, work):
    torch.manual_seed(0)
    return leave_one_out(BUNDLE, splits, RECIPE, work, only=["shot_noise", "contrast"])


def test_a_job_measures_what_remains(result):
    assert [row["corruption"] for row in result["rows"]] == ["shot_noise", "contrast"]
    assert result["missing"] == []
    for row in result["rows"]:
        assert all(len(row[arm]) == 5 for arm in ARMS)
        assert row["corruption"] not in [name for name, _ in row["chosen"]]
        assert row["neighbour"] in {*TABLE.corruptions, None} - {row["corruption"]}
        gains = np.subtract(row["ours"], row["std"])
        assert row["gain"] == pytest.approx(gains.mean(), abs=0.02)
        assert row["worst"] == pytest.approx(gains.min(), abs=0.02)
        # Of twenty images, the signature of the corruption itself, and that of a similar one, lose none.
        assert row["own"][-1] >= row["std"][-1]
        assert row["borrowed"][-1] >= row["std"][-1]
        assert row["scores"]["clean_weight"] >= 1
    assert result["mean"]["own"] > result["mean"]["std"] + 1
    assert result["mean"]["own"] == pytest.approx(np.mean([row["own"] for row in result["rows"]]), abs=0.01)
    assert json.loads(json.dumps(result)) == result


def test_finished_jobs_are_not_run_again(result, splits, work, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("rws.training.oracle.fit.fit_oracle", refuse)
    assert leave_one_out(BUNDLE, splits, RECIPE, work, only=["shot_noise", "contrast"]) == result
    # Another recipe is another job, and never reads this result.
    other = replace(RECIPE, oracle=replace(RECIPE.oracle, widths=(8, 9)))
    with pytest.raises(JobsFailedError, match="trained again"):
        leave_one_out(BUNDLE, splits, other, work, only=["contrast"])


def test_trained_oracles_and_measurements_have_separate_keys(result, splits, work, monkeypatch):
    def files(ending):
        return {file.name for file in work.glob(f"contrast-*.{ending}")}

    def run(bundle):
        found = leave_one_out(bundle, splits, RECIPE, work, only=["contrast"])["rows"][0]
        assert files("pt") == learnt
        return found

    learnt, before = files("pt"), files("json")
    assert len(learnt) == 1
    # Another policy, or another version of the code, is measured again with the existing oracle.
    never = {"kind": "expected", "margin": 0.0, "clean_weight": 1e6}
    found = run(replace(BUNDLE, manifest=replace(BUNDLE.manifest, policy=never)))
    assert len(files("json") - before) == 1
    assert found["patched"] == 0
    assert found["ours"] == found["std"]
    monkeypatch.setattr(unseen, "UNSEEN_VERSION", 0)
    assert run(BUNDLE) == result["rows"][1]
    assert len(files("json") - before) == 2


def test_the_policy_and_the_recall_are_the_bundles():
    provenance = {"recipe": {"calibration": {"clean_recall": 90}}}
    assert bundle_recall(replace(BUNDLE, manifest=replace(BUNDLE.manifest, provenance=provenance))) == 90
    assert bundle_recall(replace(BUNDLE, manifest=replace(BUNDLE.manifest, provenance={}))) == 97.5
    for wrong in ("many", 100, None):
        provenance = {"recipe": {"calibration": {"clean_recall": wrong}}}
        with pytest.raises(FormatError, match="build the bundle again"):
            bundle_recall(replace(BUNDLE, manifest=replace(BUNDLE.manifest, provenance=provenance)))


def test_a_bundle_that_no_oracle_can_be_trained_for_is_refused(tmp_path):
    names = ("rain", *TABLE.corruptions[1:])
    strange = replace(BUNDLE, table=replace(TABLE, corruptions=names))
    with pytest.raises(InputError, match="given its corruption 'rain'"):
        leave_one_out(strange, None, UnseenRecipe(OracleRecipe()), tmp_path)
    other = replace(BUNDLE, table=replace(TABLE, levels=(1.0, 2.0, 3.0, 4.0, 4.5)))
    with pytest.raises(InputError, match=r"severity levels are \(1\.0"):
        leave_one_out(other, None, UnseenRecipe(OracleRecipe()), tmp_path)


def test_a_job_that_another_process_runs_is_skipped(splits, work, monkeypatch):
    monkeypatch.setattr(unseen, "train_without", None)
    with claim(work, "fog.job", wait=True):
        found = leave_one_out(BUNDLE, splits, RECIPE, work, only=["fog"])
    assert found["missing"] == ["fog"]
    assert found["rows"] == []


def test_the_summary_names_the_worst():
    def row(name, std, ours, worst, loss):
        arms = {arm: [value] * 5 for arm, value in zip(ARMS, (std, ours, 80.0, 90.0), strict=True)}
        return {"corruption": name, **arms, "gain": ours - std, "worst": worst, "ta_loss": loss}

    found = summary([row("fog", 70.0, 76.0, -1.0, 0.1), row("snow", 50.0, 54.0, 2.0, 0.3)])
    assert found["mean"] == {"std": 60.0, "ours": 65.0, "borrowed": 80.0, "own": 90.0}
    assert found["gain_of_borrowing"] == 5.0
    assert found["share_of_own"] == pytest.approx(16.7)
    assert found["worst"] == {"corruption": "snow", "gain": 4.0}
    assert found["worst_cell"] == {"corruption": "fog", "gain": -1.0}
    assert found["ta_loss"] == 0.3


def test_the_table_prints(result):
    with open("/dev/null", "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        rows = [{**result["rows"][0], "neighbour": None, "chosen": []}, *result["rows"][1:]]
        print_unseen({**result, "rows": rows, "missing": ["fog"]}, console)
    text = console.export_text()
    assert "shot_noise" in text
    assert "not done yet: fog" in text
