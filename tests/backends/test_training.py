"""The training loop: against naive loops, its randomness, stop and resume, and what it refuses."""

import io
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import chi2

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch import networks
from lnsim_torch.training.augment import crop_and_flip, moves_of
from lnsim_torch.training.batches import batches
from lnsim_torch.training.train import Execution, Recipe, Result, evaluate, place, smoothed, train
from torch import nn

from lnsim.images.data import Images

CLASSES = 4
RECIPE = Recipe(steps=12, record_every=3, lr=0.2, batch_size=7)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_images(train=25, test=9, size=8, seed=0):
    """Colours of CLASSES classes, with noise."""
    rng = np.random.default_rng(seed)
    looks = rng.integers(60, 196, (CLASSES, 1, 1, 3))
    sets = []
    for count in (train, test):
        labels = rng.integers(0, CLASSES, count)
        noise = rng.integers(-50, 50, (count, size, size, 3))
        sets += [(looks[labels] + noise).astype(np.uint8), labels]
    return Images(*sets)


def small_data(**options):
    return place(small_images(), classes=CLASSES, **options)


def small_mlp(seed=0):
    return networks.mlp([192, 6, CLASSES], seed=seed).double()


def small_resnet(seed=0):
    return networks.resnet18(width=2, classes=CLASSES, seed=seed)


def parameters(network):
    return [p.detach().numpy().copy() for p in network.parameters()]


# The naive loop: the equations as they stand, words one by one.


def word(seed, stream, k):
    bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    return int(bits.random_raw(k + 1)[k])


def naive_target(recipe, label, k):
    """What draw k trains on, before the noise."""
    w = word(recipe.seed, 0, k)
    if w % 2**32 < recipe.tau * 2**32:
        if recipe.flip == "any":
            return (w >> 32) * CLASSES >> 32
        other = (w >> 32) * (CLASSES - 1) >> 32
        return other + (other >= label)
    return label


def naive_inputs(images):
    x = images.train_images.astype(np.float64)
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def naive_train(network, images, recipe):
    x, n = naive_inputs(images), len(images.train_labels)
    size = recipe.batch_size or n
    weights = list(network.parameters())
    velocity = [torch.zeros_like(w) for w in weights]
    k = epoch = 0
    order = []
    for step in range(recipe.steps):
        if not order:
            rng = np.random.default_rng([recipe.seed, 8, epoch])
            order = (rng.permutation(n) if size < n else np.arange(n)).tolist()
            epoch += 1
        batch, order = order[:size], order[size:]
        labels = [naive_target(recipe, int(images.train_labels[i]), k + j)
                  for j, i in enumerate(batch)]  # fmt: skip
        y = F.one_hot(torch.tensor(labels), CLASSES).double()
        if recipe.sigma:
            words = [word(recipe.seed, 1, k + j) for j in range(len(batch))]
            y += torch.tensor([[recipe.sigma * (1 if w >> c & 1 else -1) for c in range(CLASSES)]
                               for w in words])  # fmt: skip

        def gradient(batch=batch, labels=labels, y=y):
            f = network(x[batch])
            if recipe.loss == "squared":
                loss = 0.5 * ((f - y) ** 2).mean()
            else:
                loss = F.cross_entropy(f, torch.tensor(labels))
            return torch.autograd.grad(loss, weights)

        g = gradient()
        with torch.no_grad():
            if recipe.rho:
                before = [w.clone() for w in weights]
                norm = sum((part**2).sum() for part in g) ** 0.5
                for w, part in zip(weights, g, strict=True):
                    w += recipe.rho * part / norm
                with torch.enable_grad():
                    g = gradient()
                for w, value in zip(weights, before, strict=True):
                    w.copy_(value)
            lr = recipe.lr
            if recipe.schedule == "cosine":
                lr *= (1 + np.cos(np.pi * step / recipe.steps)) / 2
            for w, v, part in zip(weights, velocity, g, strict=True):
                v.mul_(recipe.momentum).add_(part + recipe.weight_decay * w)
                w -= lr * v
        k += len(batch)


VARIANTS = {
    "sgd": {},
    "gd": {"batch_size": 0},
    "noisy": {"tau": 0.5},
    "noisy any": {"tau": 0.9, "flip": "any", "batch_size": 0},
    "targets": {"sigma": 0.5},
    "sam": {"rho": 0.4, "tau": 0.2},
    "sam gd": {"rho": 0.4, "batch_size": 0},
    "all": {"momentum": 0.7, "weight_decay": 0.01, "schedule": "cosine", "rho": 0.1},
    "entropy": {"loss": "cross_entropy", "tau": 0.3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_train_is_the_naive_loop(variant):
    recipe = replace(RECIPE, seed=5, **VARIANTS[variant])
    network, naive = small_mlp(), small_mlp()
    result = train(network, small_data(), recipe)
    naive_train(naive, small_images(), recipe)
    assert result.status.code == "OK"
    for ours, theirs, start in zip(
        network.parameters(), naive.parameters(), small_mlp().parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        assert (ours - start).abs().max() > 1e-4
    f, labels = naive(naive_inputs(small_images())), torch.tensor(small_images().train_labels)
    if recipe.loss == "squared":
        loss = 0.5 * (f - F.one_hot(labels, CLASSES)).square().mean()
    else:
        loss = F.cross_entropy(f, labels)
    assert result.records["train_loss"][-1] == pytest.approx(loss.item(), rel=1e-9)
    accuracy = (f.argmax(1) == labels).double().mean()
    assert result.records["train_accuracy"][-1] == pytest.approx(accuracy.item())
    np.testing.assert_array_equal(result.records["step"], [0, 3, 6, 9, 12])


def test_sam_takes_running_statistics_from_the_first_pass():
    """Both passes see one batch; a step without size leaves what one pass leaves."""
    networks_of = [small_resnet() for _ in range(2)]
    for network, rho in zip(networks_of, (0.0, 0.5), strict=True):
        train(network, small_data(), replace(RECIPE, steps=1, lr=1e-30, rho=rho))
    for plain, sam in zip(*(network.buffers() for network in networks_of), strict=True):
        assert torch.equal(plain, sam)


def test_training_learns_and_evaluates():
    network = networks.resnet18(width=4, classes=CLASSES)
    data = small_data()
    recipe = replace(RECIPE, steps=80, record_every=40, loss="cross_entropy", lr=0.05)
    records = train(network, data, recipe).records
    assert records["train_loss"][-1] < 0.5 * records["train_loss"][0]
    assert records["train_accuracy"][-1] > 0.7
    loss, accuracy = evaluate(network, data.test, "cross_entropy")
    assert (loss, accuracy) == (records["test_loss"][-1], records["test_accuracy"][-1])
    assert not network.training


# Randomness.


def drawn_labels(labels, epochs, size, **law):
    """The samples and the labels drawn for them, (epochs, n) each."""
    source = batches(labels, CLASSES, size=size, seed=3, signs=False, moves=False, **law)
    n = len(labels)
    whole = [next(source) for _ in range(epochs * -(-n // (size or n)))]
    samples, drawn = (torch.cat([batch[i] for batch in whole]).view(epochs, n) for i in (0, 1))
    return samples.numpy(), drawn.numpy()


def p_value(counts, expected):
    """Of Pearson's test that `counts` are drawn with the `expected` frequencies."""
    counts, expected = np.ravel(counts), np.ravel(expected)
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1)


@pytest.mark.parametrize("size", [0, 30])
@pytest.mark.parametrize("flip", ["other", "any"])
def test_labels_flip_by_their_law_and_independently(flip, size):
    tau, n, epochs = 0.3, 100, 600
    labels = np.random.default_rng(1).integers(0, CLASSES, n)
    samples, drawn = drawn_labels(labels, epochs, size, tau=tau, flip=flip)
    true = labels[samples]
    assert (np.sort(samples, axis=1) == np.arange(n)).all()
    changed = drawn != true
    if flip == "other":
        share = np.full((CLASSES, CLASSES), tau / (CLASSES - 1))
    else:
        share = np.full((CLASSES, CLASSES), tau / CLASSES)
    np.fill_diagonal(share, 1 - share.sum(1) + share.diagonal())
    table = np.zeros((CLASSES, CLASSES))
    np.add.at(table, (true, drawn), 1)
    for row, expected in zip(table, share, strict=True):
        assert p_value(row, expected * row.sum()) > 1e-3
    # Of one sample from epoch to epoch, and of neighbours in the order of drawing.
    by_sample = np.empty_like(changed)
    np.put_along_axis(by_sample, samples, changed, axis=1)
    rate = changed.mean()
    for a, b in ((by_sample[1:], by_sample[:-1]), (changed[:, 1:], changed[:, :-1])):
        pairs = np.bincount((2 * a + b).ravel(), minlength=4)
        odds = np.outer([1 - rate, rate], [1 - rate, rate]) * pairs.sum()
        assert p_value(pairs, odds) > 1e-3


def test_under_other_every_flip_changes_the_label():
    labels = np.arange(40) % CLASSES
    samples, drawn = drawn_labels(labels, 50, 7, tau=1.0, flip="other")
    assert (drawn != labels[samples]).all()
    samples, drawn = drawn_labels(labels, 50, 7, tau=0.0, flip="other")
    assert (drawn == labels[samples]).all()


def test_draws_do_not_depend_on_where_they_begin():
    options = {"size": 7, "seed": 2, "tau": 0.5, "flip": "any", "signs": True, "moves": True}
    labels = np.arange(25) % CLASSES
    whole = batches(labels, CLASSES, **options)
    expected = [next(whole) for _ in range(11)]
    for step in (1, 4, 7):
        later = batches(labels, CLASSES, step=step, **options)
        for batch in expected[step:]:
            for a, b in zip(batch, next(later), strict=True):
                assert torch.equal(a, b)
    assert [len(batch.samples) for batch in expected[:5]] == [7, 7, 7, 4, 7]
    signs = torch.cat([batch.signs for batch in expected])
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}


def test_crop_and_flip_moves_each_image_as_its_word_says():
    words = np.random.Philox(key=7).random_raw(40)
    x = torch.randn(40, 2, 5, 6)
    found = crop_and_flip(x, torch.from_numpy(moves_of(words)))
    for w, image, moved in zip(words.tolist(), x, found, strict=True):
        down, right, mirrored = (w >> 32) * 9 >> 32, (w % 2**32) * 9 >> 32, w & 1
        image = image.flip(-1) if mirrored else image
        padded = F.pad(image, [4] * 4)
        right = 8 - right if mirrored else right
        assert torch.equal(moved, padded[:, down : down + 5, right : right + 6])
    counts = [
        np.bincount(column) for column in moves_of(np.random.Philox(key=8).random_raw(9000)).T
    ]
    for column, places in zip(counts, (9, 9, 2), strict=True):
        assert p_value(column, np.full(places, 9000 / places)) > 1e-3


@pytest.mark.parametrize("normalization", ["channel", "global"])
def test_images_are_held_as_bytes_and_normalised(normalization):
    images = small_images()
    data = small_data(normalization=normalization)
    assert data.train.images.dtype == torch.uint8
    for samples, pixels in ((data.train, images.train_images), (data.test, images.test_images)):
        of = images.train_images if normalization == "channel" else pixels
        axes = (0, 1, 2) if normalization == "channel" else None
        expected = (pixels - of.mean(axes)) / of.std(axes)
        found = samples.inputs(slice(None), torch.float64)
        np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected, rtol=1e-12, atol=1e-12)


def test_flat_images_and_a_constant_channel():
    images = small_images()
    flat = images._replace(
        train_images=np.zeros((25, 5)), test_images=np.ones((9, 5), dtype=np.float32)
    )
    data = place(flat, classes=CLASSES)
    assert torch.equal(data.test.inputs(slice(None)), torch.ones(9, 5))
    result = train(networks.mlp([5, CLASSES]), data, RECIPE)
    assert result.status.code == "OK"


# Recording, stopping, going on.

RICH = replace(
    RECIPE, momentum=0.8, rho=0.05, tau=0.4, sigma=0.1, augment=True, weight_decay=1e-3, lr=0.05
)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_stopped_run_goes_on_bit_for_bit(at):
    whole = train(small_resnet(), small_data(), RICH, observe=norm)
    asked = iter(range(0, 12, 3))
    part = train(small_resnet(), small_data(), RICH, observe=norm, stop=lambda: next(asked) == at)
    assert (part.status.code, part.status.step) == ("STOPPED", at)
    file = io.BytesIO()
    np.savez(file, **{f"records_{k}": v for k, v in part.records.items()}, **part.state)
    file.seek(0)
    loaded = dict(np.load(file, allow_pickle=False))
    records = {k.removeprefix("records_"): loaded.pop(k) for k in [*loaded] if "records_" in k}
    part = Result(records, loaded, part.status)
    rest = train(small_resnet(seed=9), small_data(), RICH, observe=norm, resume=part)
    same(rest.records, whole.records)
    same(rest.state, whole.state)
    assert rest.status == whole.status


def norm(network, step):
    return {"norm": next(network.parameters()).norm().item(), "twice": 2.0 * step}


def test_a_finished_run_can_be_made_longer():
    short = train(small_mlp(), small_data(), replace(RECIPE, steps=7))
    assert short.records["step"].tolist() == [0, 3, 6, 7]
    longer = train(small_mlp(seed=1), small_data(), RECIPE, resume=short)
    whole = train(small_mlp(), small_data(), RECIPE)
    same(longer.records, whole.records)
    same(longer.state, whole.state)
    again = train(small_mlp(seed=1), small_data(), RECIPE, resume=whole)
    same(again.records, whole.records)


def test_a_run_does_not_depend_on_when_it_records():
    often, seldom = (
        train(small_resnet(), small_data(), replace(RICH, record_every=every)) for every in (1, 5)
    )
    assert often.records["step"].tolist() == list(range(13))
    assert seldom.records["step"].tolist() == [0, 5, 10, 12]
    same(often.state, seldom.state)
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        np.testing.assert_array_equal(often.records[name][::5], seldom.records[name][:-1])


def test_checkpoints_are_results_to_go_on_from():
    kept = []
    whole = train(small_mlp(), small_data(), RECIPE, checkpoint=kept.append, checkpoint_every=0)
    assert [result.status.step for result in kept] == [0, 3, 6, 9]
    assert {result.status.code for result in kept} == {"STOPPED"}
    rest = train(small_mlp(), small_data(), RECIPE, resume=kept[1])
    same(rest.state, whole.state)
    train(small_mlp(), small_data(), RECIPE, checkpoint=kept.append, checkpoint_every=1e6)
    assert [result.status.step for result in kept[4:]] == [0]


def test_progress_where_the_error_stream_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    shown = train(small_mlp(), small_data(), RICH, progress=True)
    same(shown.records, train(small_mlp(), small_data(), RICH).records)


def test_progress_and_torch_s_own_generator():
    seen = []
    before = torch.random.get_rng_state()
    train(small_mlp(), small_data(), RICH, progress=seen.append)
    assert seen == list(range(1, 13))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_bar_counts_images(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(small_mlp(), small_data(), RECIPE, progress="tau = 0.1")
    shown = capsys.readouterr().err
    assert "tau = 0.1: 100%" in shown and "image/s, loss 0." in shown
    assert ", accuracy " in shown


def test_smoothing_weighs_the_past():
    values = np.array([1.0, 0.0, 0.0, 4.0])
    np.testing.assert_allclose(smoothed(values, 0.5), [1, 1 / 3, 1 / 7, (0.125 + 4) / 1.875])
    np.testing.assert_array_equal(smoothed(values, 0.0), values)
    result = train(small_mlp(), small_data(), replace(RECIPE, smoothing=0.6))
    expected = smoothed(result.records["test_accuracy"], 0.6)
    np.testing.assert_array_equal(result.records["smoothed_test_accuracy"], expected)


def test_the_training_loss_can_be_of_some_images():
    images = small_images()
    result = train(small_mlp(), small_data(), replace(RECIPE, steps=0, train_measured=10))
    chosen = np.arange(10) * 25 // 10
    f = small_mlp()(naive_inputs(images)[chosen])
    y = F.one_hot(torch.tensor(images.train_labels[chosen]), CLASSES)
    expected = 0.5 * (f - y).square().mean()
    assert result.records["train_loss"][0] == pytest.approx(expected.item(), rel=1e-12)


def test_evaluation_adds_batches_up(monkeypatch):
    network, data = small_mlp(), small_data()
    whole = evaluate(network, data.train, "squared")
    monkeypatch.setattr("lnsim_torch.training.evaluation.AT_ONCE", 4)
    assert evaluate(network, data.train, "squared") == pytest.approx(whole, rel=1e-12)


def test_a_diverged_run_says_so_and_shows_no_nan():
    result = train(small_mlp(), small_data(), replace(RECIPE, lr=1e80, batch_size=0))
    assert (result.status.code, result.status.step) == ("DIVERGED", 3)
    assert result.records["step"].tolist() == [0]
    assert all(np.isfinite(values).all() for values in result.records.values())
    with pytest.raises(ValueError, match="cannot resume: the earlier run diverged"):
        train(small_mlp(), small_data(), RECIPE, resume=result)


def test_memory_layout_changes_rounding_alone():
    recipe = replace(RECIPE, steps=3)
    first, last = (
        train(small_resnet().double(), small_data(), recipe, Execution(channels_last=layout))
        for layout in (False, True)
    )
    np.testing.assert_allclose(first.records["train_loss"], last.records["train_loss"], rtol=1e-9)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": -1}, "steps must be at least 0"),
        ({"record_every": 0}, "record_every must be at least 1"),
        ({"lr": 0.0}, "lr must be finite and above 0"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"lr": [0.1, 0.2]}, "lr must be one number"),
        ({"batch_size": -1}, "batch_size must be at least 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"schedule": "step"}, "schedule must be one of constant, cosine, got 'step'"),
        ({"rho": -0.1}, "rho must be finite and at least 0"),
        ({"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"loss": "hinge"}, "loss must be one of cross_entropy, squared, got 'hinge'"),
        ({"tau": 1.5}, "tau must be a probability, at most 1, got 1.5"),
        ({"tau": -0.5}, "tau must be finite and at least 0"),
        ({"flip": "same"}, "flip must be one of any, other"),
        ({"sigma": -1.0}, "sigma must be finite and at least 0"),
        ({"sigma": 1.0, "loss": "cross_entropy"}, "sigma must be 0 unless loss is squared"),
        ({"smoothing": 1.0}, "smoothing must be below 1"),
        ({"train_measured": -1}, "train_measured must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_recipes_that_are_refused(changes, says):
    with pytest.raises((ValueError, TypeError), match=says):
        replace(RECIPE, **changes)


class Hungry(nn.Module):
    """Asks for more memory than there is as soon as there are two images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, CLASSES)

    def forward(self, x):
        if len(x) > 1:
            torch.empty(2**50)
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    ("network", "recipe", "says"),
    [
        (small_mlp(), {"batch_size": 26}, "batch_size must be at most the 25 samples, got 26"),
        (networks.mlp([192, 3]), {}, r"must return 4 outputs, one for each class, got \(3,\)"),
        (networks.mlp([48, CLASSES]), {}, r"network does not take images \(3, 8, 8\): ."),
        (nn.Flatten(), {}, "network must have parameters that require grad"),
        (Hungry(), {}, "not enough memory on cpu for batch_size 7: lower batch_size"),
    ],
)
def test_networks_that_are_refused(network, recipe, says):
    with pytest.raises(ValueError, match=says) as error:
        train(network, small_data(), replace(RECIPE, **recipe))
    assert "\n" not in str(error.value)


def test_a_layout_that_crashes_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Flatten(), nn.Linear(64, CLASSES))
    with pytest.raises(ValueError, match="channels_last must be off on cpu: '0' is a strided 1x1"):
        train(network, small_data(), RECIPE)
    result = train(network, small_data(), RECIPE, Execution(channels_last=False))
    assert result.status.code == "OK"


def test_executions_that_are_refused():
    with pytest.raises(ValueError, match="precision must be one of bfloat16, float32"):
        Execution(precision="float16")
    for execution, says in (
        (Execution(precision="bfloat16"), "precision must be float32 on cpu"),
        (Execution(compile=True), "compile must be off on cpu"),
    ):
        with pytest.raises(ValueError, match=says):
            train(small_mlp(), small_data(), RECIPE, execution)
    with pytest.raises(ValueError, match="device 'cuda:99' is not available"):
        small_data(device="cuda:99")
    with pytest.raises(ValueError, match="normalization must be one of channel, global"):
        small_data(normalization="batch")
    flat = place(
        small_images()._replace(train_images=np.ones((25, 5)), test_images=np.ones((9, 5)))
    )
    with pytest.raises(ValueError, match="augment needs images"):
        train(networks.mlp([5, 10]), flat, replace(RECIPE, augment=True))


def test_resumes_that_are_refused():
    part = train(small_mlp(), small_data(), replace(RECIPE, steps=6))
    for recipe, network, says in (
        (replace(RECIPE, steps=3), small_mlp(), "at step 6, past the end"),
        (replace(RECIPE, record_every=2), small_mlp(), "recorded at other steps"),
        (
            replace(RECIPE, schedule="cosine"),
            small_mlp(),
            "schedule was for 6 steps, not 12",
        ),
        (replace(RECIPE, momentum=0.5), small_mlp(), "no matching state 'momentum.0'"),
        (RECIPE, networks.mlp([192, 5, CLASSES]), "no matching state 'network.1.1.weight'"),
    ):
        with pytest.raises(ValueError, match=f"cannot resume: .*{says}"):
            train(network, small_data(), recipe, resume=part)


def losses_with(execution, data, tau=0.1, rho=0.0):
    recipe = replace(RECIPE, steps=8, record_every=4, tau=tau, rho=rho, augment=True, lr=0.05)
    return train(small_resnet(), data, recipe, execution).records["train_loss"]


def options_change_rounding_alone(data, rho):
    plain = losses_with(Execution(), data, rho=rho)
    half = "bfloat16"
    for execution, tolerance in (
        (Execution(compile=True), 1e-2),
        (Execution(half), 0.1),
        (Execution(half, compile=True, channels_last=False), 0.1),
    ):
        found = losses_with(execution, data, rho=rho)
        np.testing.assert_allclose(found, plain, rtol=tolerance)
        assert (execution.precision == half) == (abs(found[0] / plain[0] - 1.0) > 1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_what_is_for_cuda_on_the_cpu(rho, monkeypatch):
    """As torch traces it, the graphs themselves in the compiler's place; arms share them."""
    graphs = []

    def kept(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=kept))
    monkeypatch.setattr(Execution, "check", lambda self, device: None)
    torch.compiler.reset()
    data = small_data()
    options_change_rounding_alone(data, rho)
    traced = len(graphs)
    assert traced >= 6  # of each precision: training on 7 and on 4 images, testing on 9
    losses_with(Execution(compile=True), data, tau=0.3, rho=rho)
    assert len(graphs) == traced


@pytest.mark.gpu
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_cuda_options_change_rounding_alone(rho):
    options_change_rounding_alone(small_data(device="cuda"), rho)
