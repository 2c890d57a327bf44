"""Recipes: what ships, what can be changed, and what is refused in one helpful line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from aicsd.errors import UserError
from aicsd.losses import CrossEntropyLoss, ICSDLoss, PixelKDLoss, list_losses, loss_class
from aicsd.methods import RECIPE_FOLDER, list_methods, load_recipe

METHODS = ["ad", "aicsd", "ickd", "icsd", "kd", "none", "sp"]
COMMON = {"weight", "schedule", "at", "resolution"}
FACTS = {"student_channels", "teacher_channels", "num_classes", "class_pixels"}
"""Arguments of a loss from networks and data; no recipe holds them."""
PLACES = {"attention": "decoder", "pairwise": "aspp"}


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def refusal(method: str, overrides: Any = None) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(method, overrides)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_every_recipe_that_ships_is_listed() -> None:
    assert set(METHODS) <= set(list_methods())
    assert list_methods() == sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("method", list_methods())
def test_every_recipe_loads_and_builds(method: str) -> None:
    recipe = load_recipe(method)
    assert recipe.name == method
    losses = recipe.losses
    assert list(recipe.terms) == list(recipe.weights(0.5))
    # the others need to know the widths of the networks
    assert list(losses) == [n for n, term in recipe.terms.items() if not term.contract.channels]
    for name, loss in losses.items():
        assert type(loss) is loss_class(recipe.terms[name].contract.name)
    inputs = {key for term in recipe.terms.values() for key in term.contract.inputs}
    assert recipe.needs_teacher == ("teacher" in inputs)
    assert any(weight > 0 for weight in recipe.weights(0.5).values())


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ("none", {"cross_entropy"}),
        ("kd", {"cross_entropy", "pixel_kd"}),
        ("icsd", {"cross_entropy", "icsd"}),
        ("aicsd", {"cross_entropy", "icsd", "pixel_kd"}),
        ("ad", {"cross_entropy", "attention"}),
        ("sp", {"cross_entropy", "pairwise"}),
        ("ickd", {"cross_entropy", "correlation"}),
    ],
)
def test_terms_of_the_methods(method: str, terms: set[str]) -> None:
    recipe = load_recipe(method)
    assert set(recipe.terms) == terms
    assert recipe.needs_teacher == (method != "none")
    assert recipe.terms["cross_entropy"].weight == 1.0


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_weights_of_aicsd_are_its_adaptive_weighting(progress: float) -> None:
    content = yaml.safe_load((RECIPE_FOLDER / "aicsd.yaml").read_text())["terms"]
    lambda_ics, lambda_kd = content["icsd"]["weight"], content["pixel_kd"]["weight"]
    assert lambda_ics > 0
    assert lambda_kd > 0
    # alpha (L_CE + lambda_ics L_ICS) + (1 - alpha) lambda_kd L_KD with alpha = progress
    assert load_recipe("aicsd").weights(progress) == pytest.approx(
        {
            "cross_entropy": progress,
            "icsd": progress * lambda_ics,
            "pixel_kd": (1 - progress) * lambda_kd,
        }
    )


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"aicsd"}))
def test_the_other_methods_keep_their_weights(method: str) -> None:
    recipe = load_recipe(method)
    assert recipe.weights(0.0) == recipe.weights(0.5) == recipe.weights(1.0)


def test_icsd_and_aicsd_share_their_similarity_term() -> None:
    icsd, aicsd = (load_recipe(method).terms["icsd"] for method in ("icsd", "aicsd"))
    assert (icsd.weight, icsd.options) == (aicsd.weight, aicsd.options)


def test_overrides_change_only_what_they_name() -> None:
    overrides: dict[str, dict[str, Any]] = {
        "icsd": {"weight": 7, "temperature": 2.5},
        "pixel_kd": {"schedule": "constant"},
    }
    plain, changed = load_recipe("aicsd"), load_recipe("aicsd", overrides)
    expected = plain.to_dict()
    expected["icsd"] |= overrides["icsd"]
    expected["pixel_kd"] |= overrides["pixel_kd"]
    assert changed.to_dict() == expected
    assert changed.weights(1.0)["icsd"] == 7
    assert changed.weights(1.0)["pixel_kd"] == plain.weights(0.0)["pixel_kd"]
    assert changed.losses["icsd"].temperature == 2.5
    assert load_recipe("aicsd").to_dict() == plain.to_dict()


def test_an_override_adds_a_term() -> None:
    recipe = load_recipe("none", {"pixel_kd": {"weight": 2.0}})
    assert list(recipe.terms) == ["cross_entropy", "pixel_kd"]
    assert recipe.needs_teacher
    assert recipe.weights(0.5)["pixel_kd"] == 2.0


def test_defaults_of_a_term_without_keys(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "mine.yaml", {"terms": {"icsd": None}}))
    assert recipe.to_dict() == {
        "icsd": {
            "weight": 1.0,
            "schedule": "constant",
            "at": "logits",
            "resolution": "native",
            "temperature": 1.0,
            "normalize_rows": True,
            "per_image": False,
            "numerics": "described",
        }
    }


@pytest.mark.parametrize("name", list_losses())
def test_a_term_of_an_own_recipe_has_the_defaults_of_the_shipped_ones(
    tmp_path: Path, name: str
) -> None:
    recipe = load_recipe(write(tmp_path / "mine.yaml", {"terms": {name: None}}))
    own = recipe.to_dict()[name]
    assert own["at"] == "logits"
    declared = getattr(loss_class(name), "resolution", None)
    assert own["resolution"] == (declared or ("native" if recipe.needs_teacher else "input"))
    for method in METHODS:
        shipped = load_recipe(method).to_dict().get(name)
        if shipped is not None:
            differs = {key for key in shipped if shipped[key] != own[key]}
            written = yaml.safe_load((RECIPE_FOLDER / f"{method}.yaml").read_text())["terms"]
            assert differs == {key for key in written[name] if written[name][key] != own[key]}


def test_a_term_can_read_another_map() -> None:
    recipe = load_recipe("ad", {"attention": {"at": "aspp"}, "pairwise": {"at": "logits"}})
    assert recipe.terms["attention"].at == "aspp"
    assert recipe.to_dict()["attention"]["at"] == "aspp"
    assert recipe.terms["pairwise"].at == "logits"


@pytest.mark.parametrize("method", list_methods())
def test_every_term_of_every_method_runs_as_released(method: str) -> None:
    plain = load_recipe(method)
    with_forms = set(plain.terms) - set(plain.without_numerics)
    recipe = load_recipe(method, {name: {"numerics": "released"} for name in with_forms})
    for name in with_forms:
        assert recipe.losses[name].numerics == "released"
    assert recipe.weights(0.3) == plain.weights(0.3)


@pytest.mark.parametrize("method", list_methods())
def test_with_numerics(tmp_path: Path, method: str) -> None:
    plain = load_recipe(method)
    released = plain.with_numerics("released")
    assert plain.to_dict() == load_recipe(method).to_dict()  # a copy
    assert released.name == method
    assert released.weights(0.3) == plain.weights(0.3)
    for name, values in released.to_dict().items():
        if name in plain.without_numerics:
            assert values == plain.to_dict()[name]
            continue
        assert values["numerics"] == "released"
        assert values["resolution"] == ("native" if name in PLACES else "input")
        assert values.get("reduction", "element_mean") == "element_mean"
        assert values.get("patch", 0) == 0
    complete = {"terms": released.to_dict()}
    again = load_recipe(write(tmp_path / "again.yaml", complete))
    assert again.to_dict() == released.to_dict() == again.with_numerics("released").to_dict()
    back = released.with_numerics("described")
    assert all(
        values.get("numerics", "described") == "described" for values in back.to_dict().values()
    )
    assert back.to_dict().get("pixel_kd", {}).get("reduction", "pixel_mean") == "pixel_mean"


def test_with_numerics_adapts_a_complete_recipe(tmp_path: Path) -> None:
    terms = load_recipe("kd", {"pairwise": {"patch": 3}}).to_dict()
    assert terms["pixel_kd"]["reduction"] == "pixel_mean"
    recipe = load_recipe(write(tmp_path / "complete.yaml", {"terms": terms}))
    released = recipe.with_numerics("released").losses
    assert released["pixel_kd"].reduction == "element_mean"
    assert released["pairwise"].patch == 0


def test_with_numerics_keeps_what_fits_and_refuses_what_does_not() -> None:
    overrides: dict[str, dict[str, Any]] = {
        "cross_entropy": {"ignore_index": 11},
        "pixel_kd": {"temperature": 4.0},
    }
    losses = load_recipe("kd", overrides).with_numerics("released").losses
    assert losses["cross_entropy"].ignore_index == 11
    assert losses["pixel_kd"].temperature == 4.0
    hot = load_recipe("icsd", {"icsd": {"temperature": 2.0}})
    with pytest.raises(UserError, match=r"term 'icsd': temperature is 2.0, but numerics released"):
        hot.with_numerics("released")
    with pytest.raises(UserError, match="numerics is 'paper'"):
        hot.with_numerics("paper")


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_recipe_of_the_user(tmp_path: Path, suffix: str) -> None:
    content = {
        "terms": {
            "cross_entropy": {"weight": 2, "resolution": "input", "ignore_index": 11},
            "icsd": {"weight": 5.5, "schedule": "falling", "temperature": 4, "per_image": True},
            "pixel_kd": {"reduction": "image_sum"},
        }
    }
    recipe = load_recipe(write(tmp_path / f"mine{suffix}", content))
    assert recipe.name == "mine"
    weights = {"cross_entropy": 2, "icsd": 5.5 * 0.75, "pixel_kd": 1.0}
    assert recipe.weights(0.25) == pytest.approx(weights)
    losses = recipe.losses
    ce, icsd, kd = losses["cross_entropy"], losses["icsd"], losses["pixel_kd"]
    assert isinstance(ce, CrossEntropyLoss)
    assert ce.ignore_index == 11
    assert isinstance(icsd, ICSDLoss)
    assert (icsd.temperature, icsd.normalize_rows, icsd.per_image) == (4, True, True)
    assert isinstance(kd, PixelKDLoss)
    assert (kd.temperature, kd.reduction) == (1.0, "image_sum")
    assert recipe.terms["cross_entropy"].resolution == "input"
    assert recipe.terms["icsd"].resolution == "native"


@pytest.mark.parametrize("method", list_methods())
def test_to_dict_is_complete_and_round_trips(tmp_path: Path, method: str) -> None:
    recipe = load_recipe(method, {"icsd": {"temperature": 3}})
    terms = recipe.to_dict()
    for name, values in terms.items():
        loss = loss_class(recipe.terms[name].contract.name)
        optional = {"loss", "adapter"}
        assert set(values) - optional == COMMON | set(inspect.signature(loss).parameters) - FACTS
    again = load_recipe(write(tmp_path / "again.yaml", {"terms": terms}))
    assert again.to_dict() == terms
    assert again.weights(0.3) == recipe.weights(0.3)
    over_another = load_recipe(method, terms)
    assert over_another.to_dict() == terms


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"icds": {"weight": 1}}, ["unknown term 'icds'", "did you mean 'icsd'"]),
        ({"icsd": {"weigth": 1}}, ["'icsd'", "unknown key 'weigth'", "did you mean 'weight'"]),
        ({"icsd": {"temprature": 1}}, ["'temprature'", "did you mean 'temperature'"]),
        ({"icsd": {"reduction": "pixel_mean"}}, ["unknown key 'reduction'", "normalize_rows"]),
        ({"icsd": {"schedule": "risin"}}, ["unknown schedule 'risin'", "did you mean 'rising'"]),
        ({"icsd": {"schedule": 3}}, ["unknown schedule", "rising"]),
        ({"icsd": {"schedule": None}}, ["unknown schedule", "rising"]),
        ({"icsd": {"schedule": ["rising"]}}, ["unknown schedule", "rising"]),
        ({"icsd": {"resolution": "full"}}, ["resolution", "'full'", "native", "input"]),
        ({"icsd": {"resolution": ["input"]}}, ["resolution", "native", "input"]),
        ({"icsd": {"weight": "much"}}, ["weight", "'much'"]),
        ({"icsd": {"weight": True}}, ["weight", "True"]),
        ({"icsd": {"weight": None}}, ["weight", "None"]),
        ({"icsd": {"weight": -1}}, ["weight", "-1"]),
        ({"icsd": {"weight": float("nan")}}, ["weight", "nan"]),
        ({"icsd": {"weight": float("inf")}}, ["weight", "inf"]),
        ({"icsd": {"weight": [1]}}, ["weight", "[1]"]),
        ({"icsd": {"temperature": "hot"}}, ["temperature", "'hot'", "float"]),
        ({"icsd": {"temperature": True}}, ["temperature", "True", "float"]),
        ({"icsd": {"temperature": 0}}, ["temperature", "0"]),
        ({"icsd": {"temperature": -2.0}}, ["temperature", "-2"]),
        ({"icsd": {"normalize_rows": 1}}, ["normalize_rows", "1", "bool"]),
        ({"icsd": {"normalize_rows": "no"}}, ["normalize_rows", "'no'", "bool"]),
        ({"pixel_kd": {"reduction": "mean"}}, ["reduction", "'mean'", "pixel_mean"]),
        ({"pixel_kd": {"reduction": 1}}, ["reduction is 1", "pixel_mean, element_mean"]),
        ({"cross_entropy": {"ignore_index": 1.5}}, ["ignore_index", "1.5", "int"]),
        ({"cross_entropy": {"ignore_index": False}}, ["ignore_index", "False", "int"]),
        ({"cross_entropy": {"at": "decoder"}}, ["'cross_entropy'", "'decoder'", "logits only"]),
        ({"attention": {"at": {"student": "a"}}}, ["mapping with student and teacher"]),
        ({"attention": {"at": {"student": ["a", "b"], "teacher": "c"}}}, ["2 maps", "1 of the"]),
        ({"attention": {"at": ["decoder", "decoder"]}}, ["names a map of the student twice"]),
        ({"attention": {"at": []}}, ["at is []", "a list of them"]),
        ({"attention": {"adapter": "conv"}}, ["unknown adapter 'conv'", "did you mean 'conv1x1'"]),
        ({"cross_entropy": {"adapter": "mlp"}}, ["'mlp'", "no teacher's map"]),
        ({"extra": {"loss": "icds"}}, ["term 'extra'", "unknown loss 'icds'", "did you mean"]),
        ({"extra": {"loss": ["icsd"]}}, ["term 'extra'", "unknown loss", "icsd"]),
        ({"loss": {"loss": "icsd"}}, ["term 'loss'", "taken"]),
        ({"a.b": {"loss": "icsd"}}, ["term 'a.b'", "letters, digits and underscores"]),
        ({"keys": {"loss": "icsd"}}, ["term 'keys'", "taken"]),
        ({"attention": {"at": 3}}, ["'attention'", "at is 3", "name of a feature"]),
        (
            {"attention": {"at": "decoder", "resolution": "input"}},
            ["'decoder'", "set resolution to native"],
        ),
        ({"attention": {"patch": 2}}, ["'attention'", "unknown key 'patch'"]),
        ({"pairwise": {"patch": -1}}, ["'pairwise'", "patch is -1"]),
        ({"pairwise": {"patch": 1.5}}, ["'pairwise'", "patch is 1.5", "int"]),
        ({"pairwise": {"patch": 2, "numerics": "released"}}, ["'pairwise'", "patch is 2", "0"]),
        ({"icsd": {"numerics": "relesed"}}, ["'icsd'", "numerics is 'relesed'", "released"]),
        ({"icsd": {"numerics": 1}}, ["'icsd'", "numerics is 1", "described, released"]),
        (
            {"icsd": {"numerics": "released", "normalize_rows": False}},
            ["'icsd'", "normalize_rows is False", "leave normalize_rows out"],
        ),
        (
            {"pixel_kd": {"numerics": "released", "reduction": "pixel_mean"}},
            ["'pixel_kd'", "'pixel_mean'", "'element_mean' only"],
        ),
    ],
)
def test_wrong_overrides_are_refused(overrides: dict[str, Any], words: list[str]) -> None:
    message = refusal("aicsd", overrides)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("aisd", ["unknown method 'aisd'", "did you mean 'aicsd'", "none"]),
        ("xyzzy", ["unknown method 'xyzzy'", "aicsd", "icsd", "kd", "none"]),
        ("recipe.py", ["unknown method"]),
        ("", ["unknown method"]),
        ("no_such_file.yaml", ["no_such_file.yaml", "does not exist"]),
    ],
)
def test_unknown_methods_are_refused(method: str, words: list[str]) -> None:
    message = refusal(method)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["terms"]),
        ("just words", ["terms"]),
        ("- a\n- b\n", ["terms"]),
        ("terms: [icsd]\n", ["terms", "mapping"]),
        ("terms: {}\n", ["no terms"]),
        ("term:\n  icsd: {}\n", ["terms"]),
        ("terms:\n  icsd: {}\nweights: 3\n", ["unknown key 'weights'"]),
        ("terms:\n  icsd: {}\n3: 4\n", ["unknown key 3"]),
        ("terms:\n  3: {}\n", ["unknown term 3"]),
        ("terms:\n  icsd: {3: 4}\n", ["unknown key 3"]),
        ("terms:\n  icsd: 3\n", ["'icsd'", "3"]),
        ("terms:\n  icsd: word\n", ["'icsd'", "word"]),
        ("terms:\n  icsd: [weight]\n", ["'icsd'", "weight"]),
        ("terms:\n  icsd: {weight: 1\n", ["mine.yaml"]),
        ("terms:\n  icsd: {weight: .nan}\n", ["weight", "nan"]),
        (b"\xff\xfe\x00broken", ["mine.yaml"]),
        (b"terms: \x81\x82", ["mine.yaml"]),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: str | bytes, words: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(str(path))
    for word in words:
        assert word in message


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    assert "mine.yaml" in refusal(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/apply:subprocess.check_output [['touch', '{}']]",
        "!!python/name:os.system",
        "!!python/object/new:pathlib.Path ['{}']",
    ],
)
def test_python_in_yaml_is_refused_and_not_run(tmp_path: Path, tag: str) -> None:
    trace = tmp_path / "executed"
    text = "terms:\n  icsd:\n    weight: " + tag.format(trace) + "\n"
    assert "mine.yaml" in refusal(write(tmp_path / "mine.yaml", text))
    assert not trace.exists()
