import math
from collections.abc import Callable, Sized
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from imagepipe.core.errors import InputError
from imagepipe.core.manifest import ImageInfo
from imagepipe.data.batches import make_eval_loader, make_loaders, shuffle_positions
from imagepipe.models.classifier import ModelInfo, build_classifier
from imagepipe.training.loop import Fit, Row, fit, is_better, measure
from imagepipe.training.params import TrainParams
from imagepipe.training.progress import Progress
from tests.training.test_params import make_params

LN2 = math.log(2)


def make_shades(count: int, flipped: bool = False) -> TensorDataset:
    """Grey 8×8 images, dark for class 0 and bright for class 1 in turn (or the other way round)."""
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 100, (count, 1, 8, 8), generator=torch.Generator().manual_seed(count))
    images = (noise + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return TensorDataset(images, 1 - labels if flipped else labels)


def make_model(model: str = "softmax", seed: int = 1, **choices: Any) -> nn.Module:
    info = ModelInfo(
        format=2,
        model=model,
        choices=choices,
        normalize="unit",
        classes=["dark", "bright"],
        image=ImageInfo(mode="L", width=8, height=8),
        mean=[0.5],
        std=[0.5],
        manifests={},
        conversion={},
    )
    return build_classifier(info, seed)


def make_cnn(dropout: float = 0.5) -> nn.Module:
    return make_model("cnn", base=2, stem="pool", dropout=dropout)


def run_fit(
    model: nn.Module,
    train: Dataset[Any],
    val: Dataset[Any],
    params: TrainParams,
    measured: int | None = None,
    on_epoch: Callable[[Fit], None] = lambda so_far: None,
) -> Fit:
    """`fit` as the stage calls it; `measured` train images are measured after each epoch (all, where None)."""
    loaders = make_loaders(
        train,
        val,
        batch_size=len(cast("Sized", train)) if params.batch_size == "all" else params.batch_size,
        eval_batch_size=params.eval_batch_size,
        shuffle=params.shuffle,
        drop_last=params.drop_last,
        seed=params.seed,
    )
    positions = None if measured is None else range(measured)
    train_sample = make_eval_loader(train, params.eval_batch_size, positions=positions)
    with Progress(params.epochs, 1) as progress:
        return fit(model, loaders, train_sample, params, progress, on_epoch)


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def measure_logits(logits: list[list[float]], labels: list[int], batch_size: int) -> tuple[float, float]:
    """Loss and accuracy where the samples are the logits themselves."""
    loader: DataLoader[Any] = DataLoader(TensorDataset(Tensor(logits), torch.tensor(labels)), batch_size)
    score = measure(nn.Identity(), loader)
    return score.loss, score.accuracy


def test_loss_and_accuracy_are_means_over_samples_and_not_over_batches() -> None:
    """The losses are ln 2, ln 2 and ln 4 (a quarter for the right class); the mean of batch means would be 1.5 ln 2."""
    logits = [[0.0, 0.0], [0.0, 0.0], [0.0, math.log(3)]]
    loss, accuracy = measure_logits(logits, [0, 0, 0], batch_size=2)
    assert loss == pytest.approx(4 / 3 * LN2)
    assert accuracy == pytest.approx(2 / 3)


def test_a_tie_goes_to_the_lowest_class() -> None:
    assert measure_logits([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [0, 1, 1], batch_size=3)[1] == pytest.approx(1 / 3)


def test_the_loss_of_sure_logits_goes_below_the_floor_of_a_softmax_before_it() -> None:
    """Two probabilities differ by 1 at most, so taken for logits they cost ln(1 + e^-1) = 0.313 or more."""
    sure = [[10.0, -10.0], [-10.0, 10.0]]
    assert measure_logits(sure, [0, 1], batch_size=2)[0] < 1e-6
    probabilities = torch.softmax(Tensor(sure), dim=1).tolist()
    assert measure_logits(probabilities, [0, 1], batch_size=2)[0] == pytest.approx(math.log(1 + math.exp(-1)))


def test_a_fitted_model_goes_below_that_floor() -> None:
    result = run_fit(make_model(), make_shades(40), make_shades(20), make_params(epochs=30, lr=0.5))
    assert result.kept["val_loss"] < 0.1


@pytest.mark.parametrize(
    "model",
    [make_model, lambda: make_model("mlp", hidden=8), lambda: make_model("simplenet"), make_cnn],
    ids=["softmax", "mlp", "simplenet", "cnn"],
)
def test_classes_that_can_be_told_apart_are_told_apart(model: Callable[[], nn.Module]) -> None:
    result = run_fit(model(), make_shades(40), make_shades(20), make_params(epochs=20, optimizer="adam", lr=0.02))
    assert result.kept["val_accuracy"] == 1.0
    assert result.kept["train_accuracy"] == 1.0


def test_history_has_a_row_an_epoch_and_steps_have_a_row_an_update() -> None:
    result = run_fit(make_model(), make_shades(10), make_shades(5), make_params(epochs=3, batch_size=4, lr=0.25))
    assert [list(row) for row in result.history] == [
        ["epoch", "updates", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy"]
    ] * 3
    assert [(row["epoch"], row["updates"]) for row in result.history] == [(1, 3), (2, 6), (3, 9)]
    assert [list(row) for row in result.steps] == [["update", "epoch", "loss", "lr"]] * 9
    assert [row["update"] for row in result.steps] == list(range(1, 10))
    assert [row["epoch"] for row in result.steps] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert {row["lr"] for row in result.steps} == {0.25}


def test_steps_hold_the_rate_that_the_update_used() -> None:
    params = make_params(epochs=2, batch_size=2, lr=0.5, schedule="onecycle")
    result = run_fit(make_model(), make_shades(10), make_shades(4), params)
    rates = [row["lr"] for row in result.steps]
    assert len(rates) == 10
    assert rates[0] == pytest.approx(0.02)
    assert rates.index(max(rates)) == 2
    assert max(rates) == pytest.approx(0.5)


def test_history_measures_train_and_val_as_they_are_at_the_end_of_the_epoch() -> None:
    model, train, val = make_cnn(), make_shades(10), make_shades(6)
    result = run_fit(model, train, val, make_params(epochs=1))
    for name, dataset in (("train", train), ("val", val)):
        score = measure(model, make_eval_loader(dataset, 4))
        assert result.history[0][f"{name}_loss"] == pytest.approx(score.loss)
        assert result.history[0][f"{name}_accuracy"] == score.accuracy


def test_on_epoch_is_called_with_what_there_is_so_far() -> None:
    seen: list[tuple[int, int, object]] = []
    run_fit(
        make_model(),
        make_shades(8),
        make_shades(4),
        make_params(epochs=3),
        on_epoch=lambda so_far: seen.append((len(so_far.history), len(so_far.steps), so_far.history[-1]["epoch"])),
    )
    assert seen == [(1, 2, 1), (2, 4, 2), (3, 6, 3)]


@pytest.mark.parametrize(
    ("accuracy", "loss", "better"),
    [(0.9, 9.0, True), (0.8, 0.4, True), (0.8, 0.5, False), (0.8, 0.6, False), (0.7, 0.1, False)],
)
def test_the_better_epoch_has_more_right_then_less_loss_then_came_earlier(
    accuracy: float, loss: float, better: bool
) -> None:
    best: Row = {"val_accuracy": 0.8, "val_loss": 0.5}
    assert is_better({"val_accuracy": accuracy, "val_loss": loss}, best, "val_accuracy") is better


def test_the_loss_is_better_where_it_is_lower() -> None:
    best: Row = {"val_accuracy": 0.8, "val_loss": 0.5}
    assert is_better({"val_accuracy": 0.1, "val_loss": 0.4}, best, "val_loss")
    assert not is_better({"val_accuracy": 0.9, "val_loss": 0.5}, best, "val_loss")


def test_the_first_epoch_is_better_than_none() -> None:
    assert is_better({"val_accuracy": 0.0, "val_loss": 9.0}, {}, "val_accuracy")


def test_the_last_weights_are_kept_where_the_params_say_so() -> None:
    model = make_model()
    result = run_fit(model, make_shades(20), make_shades(10, flipped=True), make_params(epochs=4, lr=0.02, keep="last"))
    assert result.kept["epoch"] == 4
    assert same_weights(result.kept_weights, copy_weights(model))


def test_the_best_weights_are_those_of_the_best_epoch_and_not_of_the_last() -> None:
    """Val's labels are the wrong way round, so each epoch makes its loss worse."""
    model, weights = make_model(), list[dict[str, Tensor]]()
    result = run_fit(
        model,
        make_shades(20),
        make_shades(10, flipped=True),
        make_params(epochs=4, lr=0.02),
        on_epoch=lambda so_far: weights.append(copy_weights(model)),
    )
    losses = [row["val_loss"] for row in result.history]
    assert losses == sorted(losses)
    assert result.kept["epoch"] == 1
    assert same_weights(result.kept_weights, weights[0])
    assert not same_weights(result.kept_weights, copy_weights(model))


def test_balanced_accuracy_is_the_mean_over_the_classes_that_are_there() -> None:
    """Two of three of class 0 and the one of class 2 are right; of class 1 there is none."""
    logits = [[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]
    loader: DataLoader[Any] = DataLoader(TensorDataset(Tensor(logits), torch.tensor([0, 0, 0, 2])), 3)
    score = measure(nn.Identity(), loader)
    assert score.accuracy == pytest.approx(3 / 4)
    assert score.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)


def test_training_stops_when_patience_ends() -> None:
    """Val's labels are the wrong way round, so no epoch is better than the first."""
    params = make_params(epochs=9, lr=0.02, patience=3)
    result = run_fit(make_model(), make_shades(20), make_shades(10, flipped=True), params)
    assert len(result.history) == 4
    assert result.kept["epoch"] == result.best["epoch"] == 1


def test_the_best_epoch_is_reported_where_the_last_is_kept() -> None:
    params = make_params(epochs=4, lr=0.02, keep="last")
    result = run_fit(make_model(), make_shades(20), make_shades(10, flipped=True), params)
    assert (result.best["epoch"], result.kept["epoch"]) == (1, 4)


def test_long_gradients_are_shortened() -> None:
    """One update at a rate of 1 moves the weights by the norm that is left."""
    model, params = make_model(), make_params(epochs=1, batch_size=20, lr=1.0, clip_norm=0.001)
    before = copy_weights(model)
    run_fit(model, make_shades(20), make_shades(6), params)
    moved = [(model.state_dict()[name] - tensor).flatten() for name, tensor in before.items()]
    assert torch.cat(moved).norm().item() == pytest.approx(0.001, rel=1e-3)


def test_averaged_weights_by_hand() -> None:
    """Three updates of one batch each: the first is taken as it is, then 0.75 of the average and 0.25 of the new."""
    seen: list[Tensor] = []
    run_fit(
        model := make_model(),
        make_shades(20),
        make_shades(6),
        make_params(epochs=3, batch_size=20, keep="last"),
        on_epoch=lambda so_far: seen.append(copy_weights(model)["body.1.weight"]),
    )
    result = run_fit(
        make_model(),
        make_shades(20),
        make_shades(6),
        make_params(epochs=3, batch_size=20, keep="last", ema_decay=0.75),
    )
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    assert torch.allclose(result.kept_weights["body.1.weight"], expected, atol=1e-7)


def test_lower_precision_changes_the_steps_and_keeps_the_weights_in_float32() -> None:
    full, half = (
        run_fit(make_cnn(0.0), make_shades(20), make_shades(6), make_params(precision=precision))
        for precision in ("float32", "bfloat16")
    )
    assert full.steps[0]["loss"] != half.steps[0]["loss"]
    assert half.steps[0]["loss"] == pytest.approx(full.steps[0]["loss"], rel=0.02)
    assert {tensor.dtype for tensor in half.kept_weights.values()} <= {torch.float32, torch.int64}


def make_gap(position: int) -> TensorDataset:
    """Twelve samples of two numbers, of which the one at `position` is not a number."""
    samples = torch.ones(12, 2)
    samples[position] = torch.nan
    return TensorDataset(samples, torch.arange(12) % 2)


def test_a_loss_that_is_no_number_names_epoch_batch_and_rate() -> None:
    message = (
        r"the loss became nan in epoch 1, batch 2, at a learning rate of 0\.25; no model was written\. "
        r"Lower train\.lr, or look at train\.normalize"
    )
    params = make_params(batch_size=4, shuffle=False, lr=0.25)
    with pytest.raises(InputError, match=message):
        run_fit(nn.Linear(2, 2), make_gap(position=5), make_gap(0), params)


def test_the_epoch_and_batch_of_a_later_loss_are_counted_from_one() -> None:
    """With a batch a sample, the second epoch's order says at which batch the sample that turned bad comes."""
    dataset = TensorDataset(torch.ones(3, 2), torch.tensor([0, 1, 0]))

    def spoil(so_far: Fit) -> None:
        dataset.tensors[0][2] = torch.inf

    message = r"the loss became nan in epoch 2, batch 3, at a learning rate of 1e-05"
    params = make_params(batch_size=1, shuffle=False, lr=0.00001, epochs=3)
    with pytest.raises(InputError, match=message):
        run_fit(nn.Linear(2, 2), dataset, TensorDataset(torch.ones(1, 2), torch.tensor([0])), params, on_epoch=spoil)


def test_weights_that_the_last_update_spoiled_are_found_when_they_are_measured() -> None:
    params = make_params(epochs=1, batch_size=12, lr=1e38)
    with pytest.raises(InputError, match=r"the loss became (nan|inf) in epoch 1"):
        run_fit(make_model(), make_shades(12), make_shades(6), params)


def test_without_val_no_epoch_could_be_chosen() -> None:
    params, train = make_params(), make_shades(4)
    loaders = make_loaders(train, batch_size=2)
    with Progress(1, 1) as progress, pytest.raises(InputError, match="no val loader: the best epoch is chosen by what"):
        fit(make_model(), loaders, loaders.train, params, progress, lambda so_far: None)


def test_label_smoothing_counts_in_training_and_not_in_measuring() -> None:
    """The identity keeps the logits (0, ln 3), of which class 0 has a quarter: its loss is ln 4. Smoothed by 0.2 over
    two classes it is 0.9 · ln 4 + 0.1 · ln (4/3)."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    dataset = TensorDataset(Tensor([[0.0, math.log(3)]]), torch.tensor([0]))
    result = run_fit(model, dataset, dataset, make_params(epochs=1, lr=1e-9, label_smoothing=0.2))
    assert result.steps[0]["loss"] == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))
    assert result.history[0]["val_loss"] == pytest.approx(math.log(4))
    assert result.history[0]["train_loss"] == pytest.approx(math.log(4))


def fit_weights(model: nn.Module, **changes: Any) -> dict[str, Tensor]:
    """The last weights of a run of two epochs."""
    run_fit(model, make_shades(20), make_shades(6), make_params(**changes))
    return copy_weights(model)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first = fit_weights(make_model(), seed=1)
    assert same_weights(fit_weights(make_model(), seed=1), first)
    assert not same_weights(fit_weights(make_model(), seed=2), first)


def test_dropout_depends_on_the_seed_and_not_on_what_was_drawn_before() -> None:
    first = fit_weights(make_cnn(), shuffle=False, seed=1)
    torch.rand(5)
    assert same_weights(fit_weights(make_cnn(), shuffle=False, seed=1), first)
    assert not same_weights(fit_weights(make_cnn(), shuffle=False, seed=2), first)


def test_dropout_is_at_work_in_every_epoch_and_differs() -> None:
    """At a rate too small to move a weight, and without shuffling, nothing but dropout makes the epochs differ."""
    params = make_params(epochs=4, batch_size=20, shuffle=False, lr=1e-30)
    steps = run_fit(make_cnn(), make_shades(20), make_shades(6), params).steps
    assert len({row["loss"] for row in steps}) == 4


def test_each_epoch_takes_the_samples_in_its_own_order() -> None:
    """One sample a batch and weights that stay: the loss ln(1 + e^-x) of logits (x, 0) tells the sample."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    samples = TensorDataset(Tensor([[float(x), 0.0] for x in range(6)]), torch.zeros(6, dtype=torch.int64))
    steps = run_fit(model, samples, samples, make_params(epochs=2, batch_size=1, lr=1e-30, seed=3)).steps
    expected = [math.log(1 + math.exp(-x)) for epoch in (0, 1) for x in shuffle_positions(6, 3, epoch).tolist()]
    assert [row["loss"] for row in steps] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("val", "measured"), [(6, 1), (50, None), (6, 20)])
def test_how_much_is_measured_changes_no_weight(val: int, measured: int | None) -> None:
    """Batch-norm statistics are among the weights that are compared, and dropout draws random numbers."""
    model, other, params = make_cnn(), make_cnn(), make_params(epochs=3)
    run_fit(model, make_shades(20), make_shades(2), params, measured=2)
    run_fit(other, make_shades(20), make_shades(val), params, measured=measured)
    assert same_weights(copy_weights(model), copy_weights(other))


def test_measuring_changes_no_weight_and_draws_no_random_number() -> None:
    model = make_cnn().train()
    loader = make_eval_loader(make_shades(10), 4)
    weights, state = copy_weights(model), torch.get_rng_state()
    first, second = measure(model, loader), measure(model, loader)
    assert first == second
    assert same_weights(copy_weights(model), weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_fitting_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    fit_weights(make_cnn())
    assert torch.equal(torch.get_rng_state(), state)
