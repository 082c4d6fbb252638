from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy.stats import t

from imagepipe.core.errors import InputError
from imagepipe.evaluation.compare import compare
from tests.evaluation.made import make_table, write_params, write_run


def write_seeds(folder: Path, lr: float, rights: Sequence[int], count: int = 100) -> str:
    """A group of runs, of which each has so many of `count` images right, with the seeds 1, 2, 3 …"""
    return ",".join(
        write_run(
            folder / f"{lr}-{seed}",
            make_table([number < right for number in range(count)]),
            write_params(lr=lr, seed=seed),
        )
        for seed, right in enumerate(rights, start=1)
    )


def write_folds(folder: Path, lr: float, rights: Sequence[int], count: int = 100) -> str:
    return ",".join(
        write_run(
            folder / f"{lr}-{fold}",
            make_table([number < right for number in range(count)]).assign(
                key=[f"{fold}-{number}" for number in range(-1, count)]
            ),
            write_params(lr=lr, fold=fold),
        )
        for fold, right in enumerate(rights)
    )


def test_groups_of_seeds_by_hand(tmp_path: Path) -> None:
    """Means 0.90 and 0.94, deviations 0.01 and 0.02: t is 0.04 / sqrt(0.0005 / 3), with 50/17 degrees of freedom."""
    names = [write_seeds(tmp_path, 0.1, [89, 90, 91]), write_seeds(tmp_path, 0.2, [92, 94, 96])]
    found = compare(names, 0.95)
    assert (found.kind, len(found.runs), found.pairs) == ("seeds", 6, [])
    assert [(group.mean, group.deviation) for group in found.groups] == [
        pytest.approx((0.90, 0.01)),
        pytest.approx((0.94, 0.02)),
    ]
    (spread,) = found.spreads
    assert spread.difference.value == pytest.approx(0.04)
    assert spread.p == pytest.approx(2 * float(t.sf(0.04 / (0.0005 / 3) ** 0.5, 50 / 17)))
    assert [(change.name, change.base, change.other) for change in spread.params] == [("train.lr", "0.1", "0.2")]
    (verdict,) = found.list_verdicts()
    assert verdict.startswith(
        f"no evidence of a difference between {names[0]} and {names[1]}: +4.00 points (95 % interval"
    )
    assert verdict.endswith(" Welch's t test on 3 and 3 seeds; it says nothing of other test images.")


def test_a_group_that_is_worse_beyond_its_spread(tmp_path: Path) -> None:
    found = compare([write_seeds(tmp_path, 0.1, [89, 90, 91]), write_seeds(tmp_path, 0.2, [59, 61, 60])], 0.95)
    assert found.is_worse
    assert " by 30.00 points (95 % interval 27.73 to 32.27), p < 0.0001. Welch's" in found.list_verdicts()[0]


def test_several_groups_are_corrected_together(tmp_path: Path) -> None:
    names = [write_seeds(tmp_path, lr, rights) for lr, rights in ((0.1, [89, 91]), (0.2, [92, 96]), (0.3, [70, 70]))]
    found = compare(names, 0.95)
    alone = [compare([names[0], name], 0.95).spreads[0].p for name in names[1:]]
    assert alone[0] is not None
    assert alone[1] is not None
    assert [spread.p for spread in found.spreads] == pytest.approx([max(alone[0], 2 * alone[1]), 2 * alone[1]])
    assert "(corrected for 2 comparisons)" in found.list_verdicts()[0]


def test_one_group_alone_is_summed_up(tmp_path: Path) -> None:
    found = compare([write_seeds(tmp_path, 0.1, [89, 90, 91])], 0.95)
    assert (len(found.groups), found.spreads, found.list_verdicts()) == (1, [], [])


def test_seeds_without_a_spread_are_not_judged(tmp_path: Path) -> None:
    found = compare([write_seeds(tmp_path, 0.1, [90, 90]), write_seeds(tmp_path, 0.2, [80, 80])], 0.95)
    said = (
        ": -10.00 points, and no run of either group differs from the next, so that there is no spread to measure it "
    )
    assert found.list_verdicts()[0].endswith(f"{said}by.")
    assert not found.is_worse


def test_groups_of_folds_by_hand(tmp_path: Path) -> None:
    """Differences of 1, 3, 2, 4 and 0 points; three quarters of four other folds are train: the ratio is 1/3."""
    one = write_folds(tmp_path, 0.1, [80, 80, 80, 80, 80])
    two = write_folds(tmp_path, 0.2, [81, 83, 82, 84, 80])
    (spread,) = compare([one, ",".join(reversed(two.split(",")))], 0.95).spreads
    error = ((1 / 5 + 1 / 3) * 0.00025) ** 0.5
    assert spread.difference.value == pytest.approx(0.02)
    assert spread.difference.high == pytest.approx(0.02 + 2.7764451051977987 * error)


def test_folds_that_agree_to_the_last_image_are_not_judged(tmp_path: Path) -> None:
    """19/20 - 18/20 and 18/20 - 17/20 are the same twentieth, and as floats they are not."""
    names = [write_folds(tmp_path, 0.1, [18, 17], 20), write_folds(tmp_path, 0.2, [19, 18], 20)]
    found = compare(names, 0.95)
    assert (found.spreads[0].p, found.spreads[0].verdict) == (None, "no evidence")
    assert "+5.00 points, and all folds agree" in found.list_verdicts()[0]


def test_only_what_is_tested_counts_as_a_comparison(tmp_path: Path) -> None:
    runs = ((0.1, [18, 17]), (0.2, [19, 18]), (0.3, [19, 17]))
    found = compare([write_folds(tmp_path, lr, rights, 20) for lr, rights in runs], 0.95)
    assert [spread.p is None for spread in found.spreads] == [True, False]
    assert "corrected" not in found.list_verdicts()[1]


def test_folds_that_were_thinned_out_are_not_compared(tmp_path: Path) -> None:
    names = [write_folds(tmp_path, lr, [18, 17], 20) for lr in (0.1, 0.2)]
    for path in tmp_path.glob("*/params.yaml"):
        path.write_text(path.read_text("utf-8").replace("split:\n", "split:\n  limit_per_split: 20\n"), "utf-8")
    with pytest.raises(InputError, match=r"split\.limit_per_split is 20; folds are compared by the shares"):
        compare(names, 0.95)


def test_how_results_are_shown_makes_no_other_run(tmp_path: Path) -> None:
    names = write_seeds(tmp_path, 0.1, [89, 91])
    with (tmp_path / "0.1-2" / "params.yaml").open("a", encoding="utf-8") as file:
        file.write("evaluate:\n  gallery: 9\nbalance:\n  max_ratio: 3\n")
    assert compare([names], 0.95).kind == "seeds"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda one, two: [f"{one},"], "a name is blank; expected a run, or several with commas between them"),
        (lambda one, two: [one.split(",")[0], two], "one run, beside a group of several; give two seeds or folds"),
        (
            lambda one, two: [f"{one.split(',')[0]},{two.split(',')[0]}"],
            r"differ in train\.seed alone, or in split\.fold alone, but these differ in \(1\):\n  train\.lr",
        ),
        (lambda one, two: [",".join([one.split(",")[0]] * 2)], r"but these differ in \(1\):\n  nothing"),
        (lambda one, two: [f"{one},{one}"], r"two runs have the same train\.seed \(1, 2, 1, 2\)"),
    ],
)
def test_a_group_that_is_none_is_refused(tmp_path: Path, make: object, message: str) -> None:
    names = make(write_seeds(tmp_path, 0.1, [89, 90]), write_seeds(tmp_path, 0.2, [89, 90]))  # pyright: ignore
    with pytest.raises(InputError, match=message):
        compare(names, 0.95)


def test_seeds_and_folds_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"seeds with seeds and folds with folds \(.*: seeds, .*: folds\)"):
        compare([write_seeds(tmp_path, 0.1, [89, 90]), write_folds(tmp_path, 0.2, [89, 90])], 0.95)


def test_folds_have_to_be_the_same(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has the folds 0, 1, and .* has 0, 1, 2; expected the same"):
        compare([write_folds(tmp_path, 0.1, [89, 90]), write_folds(tmp_path, 0.2, [89, 90, 91])], 0.95)


def test_folds_of_another_strategy_are_no_folds(tmp_path: Path) -> None:
    names = [
        write_run(tmp_path / str(fold), make_table([True]), write_params(fold=fold).replace("kfold", "random"))
        for fold in (0, 1)
    ]
    with pytest.raises(InputError, match=r"split\.strategy is not `kfold`: they are the same split"):
        compare([",".join(names)], 0.95)


def test_a_group_without_params_is_refused(tmp_path: Path) -> None:
    names = [write_run(tmp_path / name, make_table([True])) for name in "ab"]
    with pytest.raises(
        InputError, match=r"without params\.yaml nobody can tell whether runs differ in their seed alone"
    ):
        compare([",".join(names)], 0.95)


def test_folds_need_the_params_that_say_how_large_they_are(tmp_path: Path) -> None:
    params = [write_params(fold=fold).replace("folds: 5", "folds: five") for fold in (0, 1)]
    groups = [
        ",".join(
            write_run(tmp_path / f"{lr}-{fold}", make_table([True]).assign(key=f"{fold}"), text.replace("0.1", lr))
            for fold, text in enumerate(params)
        )
        for lr in ("0.3", "0.4")
    ]
    with pytest.raises(InputError, match=r"split\.folds in its params\.yaml is five; expected a number"):
        compare(groups, 0.95)
