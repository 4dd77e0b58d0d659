"""The training loop: against naive loops, and its randomness."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch import networks
from lnsim_torch.training.augment import crop_and_flip, moves_of
from lnsim_torch.training.batches import batches
from lnsim_torch.training.train import evaluate, place, train
from small_training import (  # noqa: F401
    CLASSES,
    RECIPE,
    _one_thread,
    naive_inputs,
    norm,
    small_data,
    small_images,
    small_mlp,
)

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

        def gradient(chosen, batch=batch, labels=labels, y=y):
            f = network(x[batch[chosen]])
            if recipe.loss == "squared":
                loss = 0.5 * ((f - y[chosen]) ** 2).mean()
            else:
                loss = F.cross_entropy(f, torch.tensor(labels[chosen]))
            return torch.autograd.grad(loss, weights)

        def perturbed_gradient(chosen, gradient=gradient):
            g = gradient(chosen)
            before = [w.clone() for w in weights]
            length = sum((part**2).sum() for part in g) ** 0.5 if recipe.normalized else 1.0
            with torch.no_grad():
                for w, part in zip(weights, g, strict=True):
                    w += recipe.rho * part / length
            g = gradient(chosen)
            with torch.no_grad():
                for w, value in zip(weights, before, strict=True):
                    w.copy_(value)
            return g

        if recipe.rho:
            g = [torch.zeros_like(w) for w in weights]
            together = recipe.micro_batch or len(batch)
            for start in range(0, len(batch), together):
                of_part = perturbed_gradient(slice(start, start + together))
                count = min(together, len(batch) - start)
                g = [a + count / len(batch) * b for a, b in zip(g, of_part, strict=True)]
        else:
            g = gradient(slice(None))
        with torch.no_grad():
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
    "sam un-normalised": {"rho": 0.4, "normalized": False, "tau": 0.2},
    "m-sam": {"rho": 0.4, "batch_size": 6, "micro_batch": 2, "tau": 0.2},  # 25 = 4 * 6 + 1
    "m-sam with a part left": {"rho": 0.4, "batch_size": 9, "micro_batch": 3},  # 7 = 2 * 3 + 1
    "m-sam gd": {"rho": 0.4, "batch_size": 0, "micro_batch": 5, "sigma": 0.3},
    "1-sam gd": {"rho": 0.2, "batch_size": 0, "micro_batch": 1, "normalized": False},
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
