"""The loss of masked patch prediction is the paper's: over the corrupted patches and over no others."""

import copy
import io
import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.masked import colours, seeded, slow_corrupt, slow_labels, small_mpp
from support.unlabelled import SMALL
from torch import Tensor, nn

from vit_course.lab.data import MEAN, STD, normalise, photos
from vit_course.lab.parity import relative_error
from vit_course.mpp import MPP, draw_corruption, mean_colour_labels
from vit_course.training import fit
from vit_course.vit import ViT

# ---- the loss ----------------------------------------------------------------------------------------------


def slow_loss(model: MPP, images: Tensor, generator: torch.Generator, mistake: str = "") -> float:
    """Everything patch by patch and in float64; where a mistake is named, with it."""
    model = copy.deepcopy(model).double()
    backbone = model.backbone
    raw = images if mistake == "labels of normalised colours" else images.double() * model.std + model.mean
    raw = raw.clamp(0, 1) if mistake else raw
    labels = slow_labels(
        raw.flip(1) if mistake == "channels reversed" else raw, *backbone.patch_size, model.bits
    )
    rows, columns = (side // patch for side, patch in zip(images.shape[2:], backbone.patch_size, strict=True))
    corruption = draw_corruption(images.shape[0], rows * columns, **model.shares, generator=generator)
    embedded = backbone.patch_embed(images.double())
    token = torch.zeros_like(model.mask_token) if mistake == "zeros for the mask token" else model.mask_token
    tokens = slow_corrupt(embedded, corruption, token)
    if mistake == "not corrupted":
        tokens = embedded
    out = backbone.forward_tokens(tokens, (rows, columns))
    out = (
        out[:, : rows * columns]
        if mistake == "class token not left out"
        else out[:, backbone.num_prefix_tokens :]
    )
    total, count = 0.0, 0
    for i in range(images.shape[0]):
        for place, source, masked in zip(*(part[i].tolist() for part in corruption), strict=True):
            if mistake == "kept ones left out" and not masked and source == place:
                continue
            logits = model.head(out[i, place])
            total += (torch.logsumexp(logits, 0) - logits[labels[i][place]]).item()
            count += 1
    if mistake == "all patches":
        logits = model.head(out).flatten(0, 1)
        return F.cross_entropy(logits, torch.tensor(labels).flatten()).item()
    return total / count


def mpp_with_large_weights(backbone: nn.Module, **changes) -> MPP:
    """Weights that show a mistake: a large mask token, positions and head."""
    model = MPP(backbone, mean=MEAN, std=STD, **changes)
    with torch.no_grad():
        model.mask_token.normal_(std=3.0)
        model.head.weight.normal_(std=0.5)
        for name, parameter in backbone.named_parameters():
            if parameter.ndim > 1 and "pos_embed" not in name:
                parameter.mul_(1.5)
    return model.eval()


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("patch_size", [4, (2, 8)])
def test_loss_is_that_of_the_slow_loop(bits: int, pool: str, patch_size: int | tuple[int, int]) -> None:
    torch.manual_seed(1)
    model = mpp_with_large_weights(
        ViT(**SMALL | {"pool": pool, "patch_size": patch_size}), output_channel_bits=bits
    )
    images = normalise(colours(3, 3, 16, 24, seed=bits))  # another size than the backbone's own
    with torch.no_grad():
        loss, exact = model(images, seeded(7)), copy.deepcopy(model).double()(images.double(), seeded(7))
        wanted = slow_loss(model, images, seeded(7))
    assert abs(loss.item() - wanted) < 1e-6 * wanted
    assert abs(exact.item() - wanted) < 1e-6 * wanted


@pytest.mark.parametrize(
    "mistake",
    [
        "labels of normalised colours",
        "channels reversed",
        "zeros for the mask token",
        "not corrupted",
        "class token not left out",
        "kept ones left out",
        "all patches",
    ],
)
def test_mistakes_would_show(mistake: str) -> None:
    torch.manual_seed(1)
    model = mpp_with_large_weights(ViT(**SMALL), replace_prob=0.6, random_patch_prob=0.2)
    images = normalise(colours(4, 3, 16, 16))
    errors = []
    for seed in range(4):  # a mean over few patches may hide a mistake by chance
        with torch.no_grad():
            loss = model(images, seeded(seed)).item()
            errors.append(abs(loss - slow_loss(model, images, seeded(seed), mistake)) / loss)
    assert max(errors) > 0.01


def test_zero_logits_cost_log_512() -> None:
    model = small_mpp()
    nn.init.zeros_(model.head.weight)
    assert model(colours(4, 3, 16, 16)).item() == pytest.approx(math.log(512), abs=1e-6)
    assert math.log(512) == pytest.approx(6.2383, abs=1e-4)


def test_only_corrupted_patches_count_and_kept_ones_do() -> None:
    """A colour that changes elsewhere leaves the labels and, kept from the network, the loss as they were."""
    model, images = small_mpp(replace_prob=0.0, random_patch_prob=0.0).eval(), colours(2, 3, 16, 16)
    loss = model(images, seeded())
    logits, labels, corruption = model.predict(images, seeded())
    assert torch.equal(corruption.source, corruption.index) and not corruption.is_masked.any()
    assert loss.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item())
    _, untouched, _ = model.predict(images, seeded())
    is_corrupted = torch.zeros(2, 16, dtype=torch.bool).scatter(1, corruption.index, True)
    changed = images.clone()
    blocks = changed.view(2, 3, 4, 4, 4, 4)  # rows, p1, columns, p2
    keep = is_corrupted.view(2, 1, 4, 1, 4, 1)
    changed = torch.where(keep, blocks, 1 - blocks).view_as(images)
    assert torch.equal(model.predict(changed, seeded())[1], untouched)
    head_only = small_mpp().eval()
    head_only.backbone.forward_tokens = lambda tokens, grid: torch.ones(
        2, 17, 32
    )  # a network that sees nothing
    assert head_only(images, seeded()).item() == pytest.approx(head_only(changed, seeded()).item())
    assert head_only(images, seeded()).item() != pytest.approx(head_only(1 - images, seeded()).item())


def test_what_is_hidden_cannot_be_seen() -> None:
    """The pixels of a masked patch change nothing that the model says; those of any other patch do."""
    model, images = (
        small_mpp(mask_prob=0.5, replace_prob=1.0, random_patch_prob=0.0).eval(),
        colours(1, 3, 16, 16),
    )
    logits, _, corruption = model.predict(images, seeded())
    for patch in range(16):
        row, column = divmod(patch, 4)
        changed = images.clone()
        changed[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.9
        same = torch.equal(model.predict(changed, seeded())[0], logits)
        assert same == (patch in corruption.index[0].tolist())


@pytest.mark.parametrize("shares", [{}, {"replace_prob": 0.0}])
def test_mask_token_learns_where_something_is_masked(shares: dict) -> None:
    model = small_mpp(**shares)
    model(colours(4, 3, 16, 16)).backward()
    got = model.mask_token.grad.abs().sum()
    assert got == 0 if shares else got > 0
    assert model.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.blocks.parameters())


def test_gradient_is_softmax_minus_one_hot() -> None:
    model = small_mpp()
    logits, labels, _ = model.predict(colours(2, 3, 16, 16))
    logits = logits.detach().flatten(0, 1).requires_grad_()
    F.cross_entropy(logits, labels.flatten()).backward()
    wanted = (logits.softmax(-1) - F.one_hot(labels.flatten(), 512)) / len(logits)
    torch.testing.assert_close(logits.grad, wanted.detach())


def test_four_photographs_can_be_learnt_by_heart() -> None:
    torch.manual_seed(0)
    images = normalise(photos("train", 4).images)
    model = MPP(ViT(**SMALL | {"image_size": 32, "dim": 64, "mlp_dim": 128}), mean=MEAN, std=STD)
    history = fit(
        model, lambda generator: images, lambda model, batch: model(batch), 250, lr=3e-3, progress=False
    )
    assert history["loss"][0] > 5 and sum(history["loss"][-20:]) / 20 < 0.9


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"mean": 0.5}, ValueError, "mean and std belong together, got mean=0.5 and std=None"),
        ({"std": 0.5}, ValueError, "belong together"),
        ({"mean": (0.5, 0.5), "std": 1.0}, ValueError, r"mean must be one number or 3, .* got \[0.5, 0.5\]"),
        ({"mean": 0.5, "std": (0.2, 0.0, 0.2)}, ValueError, r"std must be above 0, got \(0.2, 0.0, 0.2\)"),
        ({"mean": math.nan, "std": 0.2}, ValueError, "mean must be finite, got nan"),
        (
            {"mean": 0.5, "std": (0.2, math.inf, 0.2)},
            ValueError,
            r"std must be finite, got \(0.2, inf, 0.2\)",
        ),
        ({"output_channel_bits": 0}, ValueError, "bits must be at least 1"),
        ({"output_channel_bits": 6}, ValueError, r"2\^18 classes, more than 2\^15"),
        ({"channels": 0}, ValueError, "channels must be at least 1"),
        ({"channels": 1}, ValueError, "must have 3 channels, got 1"),
    ],
)
def test_model_refuses_bad_arguments(arguments: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        small_mpp(**arguments)
    assert small_mpp(output_channel_bits=5).head.out_features == 32768


def test_model_refuses_bad_images() -> None:
    model = small_mpp()
    for images, error, says in [
        (torch.zeros(2, 1, 16, 16), ValueError, "must have 3 channels, got 1"),
        (torch.zeros(2, 3, 18, 16), ValueError, r"\(18, 16\) is not divisible by patch_size \(4, 4\)"),
        (torch.zeros(3, 16, 16), ValueError, r"axes \(b c h w\)"),
        (torch.zeros(2, 3, 16, 16).byte(), TypeError, "divide bytes by 255"),
        (torch.zeros(0, 3, 16, 16), ValueError, "b must be at least 1, got 0"),
        (torch.zeros(2, 3, 4, 4), ValueError, "n must be at least 2, got 1"),
        (None, TypeError, "images must be a tensor"),
    ]:
        with pytest.raises(error, match=says):
            model(images)


# ---- in earnest --------------------------------------------------------------------------------------------


def test_copies_and_stored_weights_are_the_same_and_autocast_nearly() -> None:
    model, images = small_mpp(mean=MEAN, std=STD).eval(), normalise(colours(4, 3, 16, 16))
    assert {"mean", "std", "mask_token"} <= set(model.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = small_mpp(seed=9, mean=0.1, std=0.1).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    loss = model(images, seeded())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(twin(images, seeded()), loss)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images, seeded())
    assert half.dtype == torch.float32 and relative_error(half, loss) < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_hurts_neither_the_colours_nor_the_loss(dtype: torch.dtype) -> None:
    """Colours stand just below the borders of levels; a loss of 6.27 would be cut to 6.25."""
    model, images = small_mpp(mask_prob=1.0, mean=0.5, std=0.25).eval().to(dtype), colours(8, 3, 16, 16)
    normalised = (((8 * images).round() / 8 - 2**-12 - 0.5) / 0.25).to(dtype)
    logits, labels, corruption = model.predict(normalised, seeded())
    wanted = mean_colour_labels(normalised.float() * 0.25 + 0.5, 4, 3)
    assert torch.equal(labels, wanted.take_along_dim(corruption.index, dim=1))
    loss, exact = (
        model(normalised, seeded()),
        F.cross_entropy(logits.double().flatten(0, 1), labels.flatten()),
    )
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("stop", range(4))
def test_training_stopped_anywhere_and_resumed_is_the_same(stop: int, tmp_path: Path) -> None:
    """Weights, optimiser, and the random state from which masks and dropout are drawn: bit by bit."""

    class Stop(Exception):
        pass

    def whole(seed: int) -> MPP:
        torch.manual_seed(seed)
        return MPP(ViT(**SMALL | {"dropout": 0.2}), mean=MEAN, std=STD)

    pool = normalise(colours(32, 3, 16, 16))

    def train(model: MPP, last: int | None = None, **changes) -> dict[str, list[float]]:
        def after_step(step: int) -> None:
            if step == last:
                raise Stop

        return fit(
            model,
            lambda generator: pool[torch.randint(32, (8,), generator=generator)],
            lambda model, images: model(images),
            5,
            lr=3e-3,
            after_step=after_step,
            checkpoint_every=1,
            progress=False,
            **changes,
        )

    straight, path = whole(0), tmp_path / "run.pt"
    history = train(straight)
    with pytest.raises(Stop):
        train(whole(0), last=stop + 1, checkpoint=path)
    resumed = whole(9)
    torch.manual_seed(99)
    assert train(resumed, checkpoint=path, resume=True) == history
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
