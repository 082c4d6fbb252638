import pytest

from imagepipe.training.diagnosis import suggest_remedy


@pytest.mark.parametrize(
    ("train", "val", "baseline", "beginning"),
    [
        (0.12, 0.11, 0.10, "val is hardly better than always saying the most frequent class"),
        (1.00, 0.11, 0.10, "val is hardly better"),
        (0.97, 0.96, 0.95, "val is hardly better"),
        # Of a baseline of 0.98, half of what is left to 1 is 0.01.
        (1.00, 0.985, 0.98, "val is hardly better"),
        (1.00, 0.995, 0.98, "train and val are close, and both are good"),
        (1.00, 1.00, 0.98, "train and val are close, and both are good"),
        (1.00, 1.00, 1.00, "val is hardly better"),
        (0.70, 0.69, 0.10, "even train is not learnt (bias)"),
        (0.70, 0.60, 0.10, "even train is not learnt (bias)"),
        (0.425, 0.292, 0.10, "even train is not learnt (bias)"),
        (1.00, 0.90, 0.10, "train is learnt by heart (variance)"),
        (0.99, 0.98, 0.10, "train and val are close, and both are good"),
        (0.90, 0.95, 0.10, "train and val are close, and both are good"),
    ],
)
def test_what_is_suggested(train: float, val: float, baseline: float, beginning: str) -> None:
    assert suggest_remedy(train, val, baseline).startswith(beginning)


@pytest.mark.parametrize(("val", "is_wide"), [(0.69, False), (0.60, True)])
def test_where_train_is_not_learnt_a_wide_gap_is_said_too(val: float, is_wide: bool) -> None:
    suggestion = suggest_remedy(0.70, val, 0.10)
    assert suggestion.endswith("; the gap to val is wide, too (variance), but comes second.") == is_wide
    assert "smaller model" not in suggestion
