"""Training's randomness inside the network, and all of its state: resumed, in threads, by types."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from lnsim_torch import networks
from lnsim_torch.distributed import Group
from lnsim_torch.training import randomness
from lnsim_torch.training.train import Recipe, evaluate, place, train
from small_training import CLASSES, Growing, _one_thread, same, small_data, small_images  # noqa: F401
from torch import nn

RECIPE = Recipe(steps=8, record_every=2, lr=0.1, batch_size=7, momentum=0.5, seed=3)


class Around(nn.Module):
    """A small network with `inside` in its middle."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside
        self.first, self.last = nn.Linear(192, 12), nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.last(self.inside(torch.tanh(self.first(x.flatten(1)))))


class Drawing(nn.Module):
    """h with noise from `draw`(h), in training and in eval mode alike."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, h):
        return h + 0.3 * self.draw(h)


class StochasticDepth(nn.Module):
    def forward(self, h):
        return h if self.training and torch.rand(()) < 0.5 else torch.relu(h)


class Own(nn.Module):
    """Noise of a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, h):
        return h + torch.randn(h.shape, generator=self.generator)


class Counting(nn.Module):
    """Buffers, one of them not persistent, that every pass changes and the output depends on."""

    def __init__(self, assign):
        super().__init__()
        self.assign = assign
        self.register_buffer("passes", torch.zeros(()), persistent=False)
        self.register_buffer("mean", torch.zeros(12), persistent=assign)

    def forward(self, h):
        if self.assign:
            self.passes = self.passes + 1
        else:
            self.passes += 1
        self.mean.lerp_(h.detach().mean(0), 0.1)
        return h * (1 + self.passes / 10) - self.mean


def with_noisy_gradients():
    network = Around(nn.Identity())
    network.first.weight.register_hook(lambda g: g + 0.01 * torch.randn_like(g))
    return network


def with_a_hook():
    network = networks.mlp([192, 12, CLASSES])
    network[1].register_forward_hook(lambda module, inputs, f: f + 0.1 * torch.randn_like(f))
    return network


NETWORKS = {
    "dropout": lambda: Around(nn.Dropout(0.4)),
    "functional dropout": lambda: Around(Drawing(F.dropout)),
    "rrelu": lambda: Around(nn.RReLU()),
    "gaussian": lambda: Around(Drawing(torch.randn_like)),
    "stochastic depth": lambda: Around(StochasticDepth()),
    "python's": lambda: Around(Drawing(lambda h: random.gauss(0, 1))),
    "numpy's": lambda: Around(Drawing(lambda h: np.random.randn())),  # noqa: NPY002
    "generator of its own": lambda: Around(Own()),
    "gradient hook": with_noisy_gradients,
    "hook": with_a_hook,
    "dropout alone": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, CLASSES)),
    "buffers in place": lambda: Around(Counting(assign=False)),
    "buffers assigned": lambda: Around(Counting(assign=True)),
}
DRAWING = [name for name in NETWORKS if not name.startswith("buffers")]


def made(name):
    """The network of this name, the same each time."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    network = NETWORKS[name]()
    torch.set_rng_state(state)
    return network


def seed_all(seed):
    """Other states of every global generator, with a number left over from the last pair."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.gauss(0, 1)
    np.random.randn()  # noqa: NPY002


def states():
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize(("rho", "micro_batch"), [(0.0, 0), (0.1, 0), (0.1, 1)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_does_not_depend_on_the_generators_nor_on_being_stopped(name, rho, micro_batch):
    recipe = replace(RECIPE, rho=rho, micro_batch=micro_batch)
    seed_all(1)
    kept, before = [], states()
    whole = train(made(name), small_data(), recipe, checkpoint=kept.append, checkpoint_every=0)
    assert states() == before
    assert [result.status.step for result in kept] == [0, 2, 4, 6]
    for i, earlier in enumerate(kept):
        seed_all(2 + i)
        again = train(made(name), small_data(), recipe, resume=earlier)
        same(again.records, whole.records)
        same(again.state, whole.state)
    often = train(made(name), small_data(), replace(recipe, record_every=1))
    same(often.state, whole.state)
    np.testing.assert_array_equal(often.records["test_loss"][::2], whole.records["test_loss"])


@pytest.mark.parametrize("name", DRAWING)
def test_what_is_drawn_is_another_for_another_seed(name):
    """The full batch, on clean labels: the seed is of the network's draws alone."""
    of_seeds = [
        train(made(name), small_data(), replace(RECIPE, batch_size=0, seed=seed)).records
        for seed in (0, 0, 1)
    ]
    losses = [records["train_loss"][-1] for records in of_seeds]
    assert losses[0] == losses[1] != losses[2]


class Remembering(nn.Module):
    """Dropout's masks, with what they were drawn for."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def forward(self, h):
        mask = F.dropout(torch.ones(12))
        self.masks.append((self.training, mask))
        return h * mask


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_every_step_has_draws_of_its_own_and_both_passes_of_sam_have_the_same(rho):
    inside = Remembering()
    train(Around(inside), small_data(), replace(RECIPE, rho=rho))
    of_steps = torch.stack([mask for training, mask in inside.masks if training])
    if rho:
        assert torch.equal(of_steps[::2], of_steps[1::2])
        of_steps = of_steps[::2]
    assert len(of_steps) == len(of_steps.unique(dim=0)) == RECIPE.steps
    assert 0.2 < (of_steps == 0).double().mean() < 0.8


def test_processes_draw_for_their_own_shares(monkeypatch):
    drawn = []
    for rank in (0, 1, 0):
        monkeypatch.setattr(randomness, "group", lambda rank=rank: Group(rank, 2))
        with randomness.Randomness(nn.Dropout(), 0, torch.device("cpu")).of(randomness.STEP, 5):
            drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_networks_in_threads_give_what_they_give_in_a_row():
    names = [name for name in DRAWING for _ in range(2)]
    recipes = [replace(RECIPE, steps=30, record_every=10, seed=i) for i in range(len(names))]
    data = small_data()

    def results(each):
        return list(each(lambda i: train(made_in_turn[i], data, recipes[i]), range(len(names))))

    made_in_turn = [made(name) for name in names]
    in_a_row = results(map)
    made_in_turn = [made(name) for name in names]
    seed_all(5)
    before = states()
    with ThreadPoolExecutor(8) as pool:
        side_by_side = results(pool.map)
    assert states() == before
    for ours, theirs in zip(side_by_side, in_a_row, strict=True):
        same(ours.records, theirs.records)
        same(ours.state, theirs.state)


def test_networks_that_are_known_not_to_draw_wait_for_no_lock():
    data = small_data()
    with randomness._LOCK, ThreadPoolExecutor(1) as pool:
        for network in (
            networks.mlp([192, 6, CLASSES]), networks.wide_resnet(1, classes=CLASSES),
            networks.resnet18(width=1, classes=CLASSES),
        ):  # fmt: skip
            result = pool.submit(train, network, data, replace(RECIPE, steps=1)).result(timeout=60)
            assert result.status.code == "OK"


def test_an_error_leaves_the_generators_as_they_were():
    class Failing(nn.Module):
        def forward(self, h):
            if self.training:
                torch.randn(3)
                raise KeyError("inside")
            return h

    network, before = Around(Failing()), states()
    with pytest.raises(KeyError, match="inside"):
        train(network, small_data(), RECIPE)
    assert states() == before
    # The lock is released.
    assert train(made("dropout"), small_data(), RECIPE).status.code == "OK"


def test_what_is_observed_may_draw():
    def observe(network, step):
        return {"drawn": torch.rand(()).item()}

    runs = []
    for seed in (0, 1):
        seed_all(seed)
        runs.append(train(made("dropout"), small_data(), RECIPE, observe=observe).records["drawn"])
    assert len(set(runs[0])) == len(runs[0])
    np.testing.assert_array_equal(*runs)


class WithNumpy(nn.Module):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def forward(self, h):
        return h + self.rng.standard_normal()


class WithExtraState(nn.Identity):
    def get_extra_state(self):
        return {"seen": 3}


def test_state_that_cannot_be_kept_is_refused_in_a_line():
    for inside, says in (
        (WithNumpy(), "'inside.rng' is a Generator, which cannot be reseeded at each step"),
        (WithExtraState(), "'inside' has a get_extra_state, which a checkpoint cannot hold"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            train(Around(inside), small_data(), RECIPE)
        assert "\n" not in str(error.value)
    part = train(Around(Growing()), small_data(), replace(RECIPE, steps=4))
    with pytest.raises(ValueError, match=r"the network has no 'network\.inside\.seen' of the earl"):
        train(Around(Growing()), small_data(), RECIPE, resume=part)
    with pytest.raises(ValueError, match=r"no matching state 'network\.first\.weight'"):
        train(made("dropout").double(), small_data(), RECIPE,
              resume=train(made("dropout"), small_data(), replace(RECIPE, steps=4)))  # fmt: skip


# Types of numbers.


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("make", [
    lambda: networks.mlp([192, 6, CLASSES]), lambda: networks.resnet18(width=2, classes=CLASSES),
], ids=["mlp", "resnet"])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_few_digits_are_kept_and_resumed(dtype, make, rho):
    recipe = replace(RECIPE, rho=rho, lr=0.02)
    kept = []
    network = make().to(dtype)
    whole = train(network, small_data(), recipe, checkpoint=kept.append, checkpoint_every=0)
    assert {p.dtype for p in network.parameters()} == {dtype}
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(whole.state[f"network.{name}"], tensor.double().numpy())
    again = train(make().to(dtype), small_data(), recipe, resume=kept[1])
    same(again.records, whole.records)
    same(again.state, whole.state)
    single = train(make(), small_data(), recipe).records
    # Later on, so small a batch norm has multiplied the rounding errors.
    np.testing.assert_allclose(whole.records["train_loss"][:2], single["train_loss"][:2], rtol=0.02)
    assert evaluate(network, small_data().test, "squared")[0] == whole.records["test_loss"][-1]


def test_losses_of_few_digits_are_summed_in_more():
    """The error is that of the outputs: sums of a thousand losses in bfloat16 are far worse."""
    images = small_images(train=1000)
    network = networks.mlp([192, 6, CLASSES])
    data = place(images, classes=CLASSES)
    exact, _ = evaluate(network, data.train, "squared")
    assert evaluate(network.bfloat16(), data.train, "squared")[0] == pytest.approx(exact, rel=5e-3)


KINDS = "u1 i1 <u2 >u2 <i4 >i4 >i8 >u8 <f2 >f2 <f4 >f4 >f8 <g >g"


@pytest.mark.parametrize("kind", KINDS.split())
def test_images_of_every_type_and_byte_order(kind):
    images = small_images()._replace(train_labels=small_images().train_labels.astype(">i2"))
    low = [array // 2 if array.ndim == 4 else array for array in images]
    cast = [array.astype(kind) if array.ndim == 4 else array for array in low]
    expected, found = (
        train(networks.mlp([192, 6, CLASSES]), place(sets, classes=CLASSES), RECIPE).records
        for sets in (low, cast)
    )
    np.testing.assert_allclose(found["test_loss"], expected["test_loss"], rtol=1e-5)


def test_images_may_be_lists_or_tensors():
    expected = train(networks.mlp([192, 6, CLASSES]), small_data(), RECIPE)
    for of in (lambda array: array.tolist(), torch.tensor):
        data = place([of(array) for array in small_images()], classes=CLASSES)
        same(train(networks.mlp([192, 6, CLASSES]), data, RECIPE).records, expected.records)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_images": [[1, 2], [3]]}, "train_images of images is no array"),
        ({"train_labels": np.full(25, CLASSES)}, r"train_labels of images must be in 0 \.\.\. 3"),
        ({"test_labels": [0.5] * 9}, "test_labels of images must be integers, got dtype float64"),
        ({"test_images": np.zeros((9, 5))}, "differ in shape past the first axis"),
        ({"train_images": np.full((25, 8, 8, 3), np.nan)}, "train_images of images must be finite"),
    ],
)
def test_images_that_are_refused(changes, says):
    with pytest.raises(ValueError, match=says) as error:
        place(small_images()._replace(**changes), classes=CLASSES)
    assert "\n" not in str(error.value)


def test_what_is_not_placed_is_refused():
    images, network = small_images(), networks.mlp([192, 6, CLASSES])
    with pytest.raises(TypeError, match="data must be the Data that `place` returns, got Images"):
        train(network, images, RECIPE)
    with pytest.raises(TypeError, match=r"samples must be Samples, such as data\.test, got list"):
        evaluate(network, images.test_images.tolist(), "squared")


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("batch_size", [0, 7])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_gradients_that_are_off_around_the_call_are_on_inside(mode, batch_size, loss):
    recipe = replace(RECIPE, loss=loss, batch_size=batch_size, augment=True)
    network = networks.resnet18(width=1, classes=CLASSES)
    expected = train(networks.resnet18(width=1, classes=CLASSES), small_data(), recipe)
    with mode():
        result = train(network, small_data(), recipe)
        assert evaluate(network, small_data().test, loss)[0] == result.records["test_loss"][-1]
        assert not torch.is_grad_enabled()
    same(result.records, expected.records)
    same(result.state, expected.state)


def test_a_network_of_inference_tensors_is_refused():
    with torch.inference_mode():
        network = networks.mlp([192, 6, CLASSES])
    with pytest.raises(ValueError, match="network must be made outside inference_mode"):
        train(network, small_data(), RECIPE)
