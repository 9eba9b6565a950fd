"""DistilledViT is the published DeiT, and DistillationLoss is the formula, with a teacher that nothing moves."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType

import pytest
import timm
import torch
import torch.nn.functional as F
from support.parity import DIFFERENT, SAME, disagreement, heat, relative_error
from test_models import CASES
from timm.models.deit import VisionTransformerDistilled
from timm.task import LogitDistillationTask, TokenDistillationTask
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from vit_course.attention import record_attention
from vit_course.distillation import DistillationLoss, DistilledViT
from vit_course.lab.pretrained import adapt, from_timm
from vit_course.patching import ConvStem
from vit_course.training import evaluate, fit
from vit_course.vit import ViT

SMALL = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 64,
}
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 7}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (4, 3, 16, 16)), generator=torch.Generator().manual_seed(seed))


def small_vit(**changes) -> DistilledViT:
    torch.manual_seed(0)
    return DistilledViT(**SMALL | changes)


def timm_vit(model: str | None = None, **config) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(model) if model else VisionTransformerDistilled(**TINY | config)


def suited(model: nn.Module, batch: int = 2) -> Tensor:
    return images(batch, model.patch_embed.proj.in_channels, *model.patch_embed.img_size)


# ---- equal to the published model ------------------------------------------------------------------------------------------------------

TIMM = {
    "DeiT-Ti/16": {"model": "deit_tiny_distilled_patch16_224"},
    "small": {"img_size": 32},
    "rectangular": {"img_size": (24, 48), "patch_size": (6, 8)},
    "features": {"num_classes": 0},
    "grey, narrow heads": {"in_chans": 1, "num_heads": 8, "mlp_ratio": 1.5},
    "dynamic sizes": {"dynamic_img_size": True},
}


@pytest.mark.parametrize("config", TIMM.values(), ids=TIMM.keys())
@pytest.mark.parametrize("input_scale", [1.0, 1e-3], ids=["hot", "faint"])
def test_equal_to_timm(config: dict, input_scale: float) -> None:
    theirs = heat(timm_vit(**config), input_scale=input_scale)
    ours = from_timm(theirs)
    assert type(ours) is DistilledViT
    assert disagreement(ours, theirs, suited(theirs)) < SAME


def test_both_logits_are_timms_in_training() -> None:
    theirs = heat(timm_vit()).train()
    theirs.set_distilled_training()
    ours, pixels = from_timm(theirs), suited(theirs)
    with torch.no_grad():
        errors = [relative_error(a, b) for a, b in zip(ours(pixels), theirs(pixels), strict=True)]
        assert max(errors) < SAME
        class_logits, dist_logits = ours(pixels)
        assert relative_error(class_logits, dist_logits) > DIFFERENT
        torch.testing.assert_close(ours.eval()(pixels), (class_logits + dist_logits) / 2)


def test_recorded_is_equal_to_timm_too() -> None:
    theirs = heat(timm_vit())
    ours = from_timm(theirs)
    with record_attention(ours) as record:
        assert disagreement(ours, theirs, suited(theirs)) < SAME
    assert [(layer.kind, layer.grid, layer.num_prefix_tokens) for layer in record] == [
        ("global", (4, 4), 2)
    ] * 3


def test_other_image_sizes_are_timms() -> None:
    theirs = heat(timm_vit(dynamic_img_size=True))
    ours = from_timm(theirs)
    for size in ((16, 48), (64, 40)):
        assert disagreement(ours, theirs, images(2, 3, *size)) < SAME


def test_gradients_equal_to_timm() -> None:
    theirs = heat(timm_vit())
    ours = from_timm(theirs)
    gradients = []
    for model in (ours, theirs):
        pixels = suited(theirs).requires_grad_()
        model(pixels).square().sum().backward()
        gradients.append(pixels.grad)
    assert relative_error(*gradients) < SAME
    others = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        # Keys meet every query with the same bias, which softmax does not see: both gradients of it are rounding.
        if not name.endswith("attn.qkv.bias"):
            assert relative_error(parameter.grad, others[name].grad) < 10 * SAME, name


def heads_swapped(model: DistilledViT) -> None:
    model.head, model.head_dist = model.head_dist, model.head


def _with_head(forward_head: Callable[[DistilledViT, Tensor], Tensor]) -> Callable[[DistilledViT], None]:
    def mutate(model: DistilledViT) -> None:
        model.forward_head = MethodType(forward_head, model)

    mutate.__name__ = forward_head.__name__
    return mutate


def only_class_head(model: DistilledViT, features: Tensor) -> Tensor:
    return model.head(features[:, 0])


def only_dist_head(model: DistilledViT, features: Tensor) -> Tensor:
    return model.head_dist(features[:, 1])


def sum_of_heads(model: DistilledViT, features: Tensor) -> Tensor:
    return model.head(features[:, 0]) + model.head_dist(features[:, 1])


def both_heads_on_class_token(model: DistilledViT, features: Tensor) -> Tensor:
    return (model.head(features[:, 0]) + model.head_dist(features[:, 0])) / 2


def no_position_for_dist_token(model: DistilledViT) -> None:
    model.pos_embed.data[:, 1] = 0


def positions_of_the_two_swapped(model: DistilledViT) -> None:
    model.pos_embed.data[:, :2] = model.pos_embed.data[:, :2].flip(1)


def tokens_swapped(model: DistilledViT) -> None:
    model.cls_token, model.dist_token = model.dist_token, model.cls_token


def dist_token_last(model: DistilledViT) -> None:
    """As in vit-pytorch: appended behind the patches, without a position; its head follows it there."""
    dist_token = model.dist_token.data

    def forward_tokens(self: DistilledViT, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        positions = self.positions(grid or self.grid)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + torch.cat([positions[:1], positions[2:]])
        tokens = torch.cat([tokens, dist_token.expand(len(tokens), -1, -1)], dim=1)
        return self.norm(self.blocks(tokens)).roll(1, dims=1)[:, [1, 0, *range(2, tokens.shape[1])]]

    model.forward_tokens = MethodType(forward_tokens, model)


MUTANTS = [
    heads_swapped, *map(_with_head, (only_class_head, only_dist_head, sum_of_heads, both_heads_on_class_token)),
    no_position_for_dist_token, positions_of_the_two_swapped, tokens_swapped, dist_token_last,
]  # fmt: skip


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_parity_sees_mistakes(mutate: Callable[[DistilledViT], None]) -> None:
    theirs = heat(timm_vit())
    ours = from_timm(theirs)
    assert disagreement(ours, theirs, suited(theirs)) < SAME
    mutate(ours)
    assert disagreement(ours, theirs, suited(theirs)) > DIFFERENT


VARIANTS = {"Ti": (192, 3, 5_910_800), "S": (384, 6, 22_436_432), "B": (768, 12, 87_338_192)}


@pytest.mark.parametrize(("dim", "heads", "count"), VARIANTS.values(), ids=VARIANTS.keys())
def test_parameter_counts_are_the_published_ones(dim: int, heads: int, count: int) -> None:
    sizes = {
        "image_size": 224,
        "patch_size": 16,
        "num_classes": 1000,
        "dim": dim,
        "depth": 12,
        "heads": heads,
    }
    with torch.device("meta"):
        distilled, plain = DistilledViT(**sizes, mlp_dim=4 * dim), ViT(**sizes, mlp_dim=4 * dim)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (distilled, plain)]
    assert counts[0] == count == counts[1] + 2 * dim + dim * 1000 + 1000


REFUSED = {
    "LayerScale": (lambda: timm_vit(init_values=0.1), r"blocks\.\*\.ls1, LayerScale"),
    "qk_norm": (lambda: timm_vit(qk_norm=True), r"blocks\.\*\.attn\.q_norm"),
    "attention norm": (lambda: timm_vit(scale_attn_norm=True), r"blocks\.\*\.attn\.norm"),
    "mlp norm": (lambda: timm_vit(scale_mlp_norm=True), r"blocks\.\*\.mlp\.norm"),
    "no qkv bias": (lambda: timm_vit(qkv_bias=False), r"blocks\.\*\.attn\.qkv, Linear.*bias=False"),
    "no proj bias": (lambda: timm_vit(proj_bias=False), r"blocks\.\*\.attn\.proj, Linear.*bias=False"),
    "pre-norm": (lambda: timm_vit(pre_norm=True), "norm_pre"),
    "norm after pooling": (lambda: timm_vit(fc_norm=True), "fc_norm"),
    "no final norm": (lambda: timm_vit(final_norm=False), "its norm, Identity"),
    "other eps": (lambda: timm_vit(norm_layer=partial(nn.LayerNorm, eps=1e-5)), r"blocks\.\*\.norm1, .*1e-05"),
    "ReLU": (lambda: timm_vit(act_layer=nn.ReLU), r"blocks\.\*\.mlp\.act, ReLU"),
    "approximate GELU": (lambda: timm_vit(act_layer=partial(nn.GELU, approximate="tanh")), r"approximate='tanh'"),
    "gated mlp": (lambda: timm_vit(mlp_layer=timm.layers.GluMlp), "its blocks"),
    "parallel blocks": (
        lambda: timm_vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock),
        "its blocks",
    ),
    "embedding norm": (lambda: timm_vit(embed_norm_layer=nn.LayerNorm), r"patch_embed\.norm, LayerNorm"),
    "no positions for the tokens": (lambda: timm_vit(no_embed_class=True), "no_embed_class"),
    "registers": (lambda: timm_vit(reg_tokens=2), "reg_tokens"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_ours_does_not_compute_is_refused(build: Callable, words: str) -> None:
    with pytest.raises(ValueError, match=f"DistilledViT cannot take over this model of timm.*{words}"):
        from_timm(build())


def test_one_strange_block_is_refused() -> None:
    theirs = timm_vit()
    theirs.blocks[2].mlp.act = nn.ReLU()
    with pytest.raises(ValueError, match="ReLU"):
        from_timm(theirs)


# ---- what only the DistilledViT promises -----------------------------------------------------------------------------------------------


def test_training_gives_two_logits_and_evaluation_their_mean() -> None:
    model = small_vit(patch_embedding=ConvStem(patch_size=4, dim=32))
    class_logits, dist_logits = model.train()(images())
    assert class_logits.shape == dist_logits.shape == (4, 5)
    assert relative_error(model.head.weight, model.head_dist.weight) > 1, "the two heads start alike"
    torch.testing.assert_close(model.eval()(images()), (class_logits + dist_logits) / 2)
    assert model.num_prefix_tokens == 2 and model.forward_features(images()).shape == (4, 18, 32)


def test_features_are_the_mean_of_both_tokens_in_both_modes() -> None:
    model = heat(small_vit(num_classes=0))
    tokens = model.forward_features(images())
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(images()), tokens[:, :2].mean(dim=1))


def test_each_head_reads_its_own_token() -> None:
    model = heat(small_vit()).train()
    features = images(2, 18, 32).requires_grad_()
    for index, logits in enumerate(model.forward_head(features)):
        (gradient,) = torch.autograd.grad(logits.sum(), features, retain_graph=True)
        assert gradient.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == [index]


# ---- the loss is the formula -----------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A model that gives these logits for any images; the logits can learn."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.ParameterList(nn.Parameter(part.clone()) for part in logits)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.logits[0] if len(self.logits) == 1 else tuple(self.logits)


def loss_of(loss: DistillationLoss, labels: list[int], *student: Tensor) -> Tensor:
    return loss(Fixed(*student), (images(len(labels), 1, 2, 2), torch.tensor(labels)))[0]


def logs(*odds: list[float]) -> Tensor:
    return torch.tensor(odds).log()


def test_two_classes_by_hand() -> None:
    """Teacher 16 : 1, student 1 : 4, label 1. At T = 2 the odds become their roots: 4/5, 1/5 beside 1/3, 2/3."""
    teacher, student = Fixed(logs([16.0, 1.0])), logs([1.0, 4.0])
    label = torch.tensor(5 / 4).log()
    kl = 4 / 5 * torch.tensor(12 / 5).log() + 1 / 5 * torch.tensor(3 / 10).log()
    for alpha in (0.0, 0.1, 1.0):
        soft = DistillationLoss(teacher, "soft", temperature=2.0, alpha=alpha)
        torch.testing.assert_close(loss_of(soft, [1], student), (1 - alpha) * label + alpha * 4 * kl)
        hard = DistillationLoss(teacher, "hard", alpha=alpha)
        expected = (1 - alpha) * label + alpha * torch.tensor(
            5.0
        ).log()  # its answer is class 0, and it is wrong
        torch.testing.assert_close(loss_of(hard, [1], student), expected)


def test_defaults_are_the_papers() -> None:
    soft, hard = DistillationLoss(nn.Identity()), DistillationLoss(nn.Identity(), kind="hard")
    assert (soft.kind, soft.temperature, soft.alpha, hard.alpha) == ("soft", 3.0, 0.1, 0.5)


def test_heads_get_the_target_that_is_theirs() -> None:
    """The class logits learn from the labels alone, the distillation logits from the teacher alone."""
    for kind in ("soft", "hard"):
        for alpha, silent in ((0.0, 1), (1.0, 0)):
            student = Fixed(images(4, 5, seed=1), images(4, 5, seed=2))
            loss = DistillationLoss(Fixed(images(4, 5, seed=3)), kind, alpha=alpha)
            loss(student, (images(), torch.arange(4)))[0].backward()
            sizes = [logits.grad.abs().sum().item() for logits in student.logits]
            assert sizes[silent] == 0 and sizes[1 - silent] > 0.1


def test_a_teacher_who_agrees_costs_nothing() -> None:
    logits = images(4, 5)
    for temperature in (1.0, 3.0, 10.0):
        loss = DistillationLoss(Fixed(logits), "soft", temperature, alpha=1.0)
        assert abs(loss_of(loss, [0] * 4, logits + 7)) < 1e-5  # softmax does not see a constant
        assert loss_of(loss, [0] * 4, logits.flip(1)) > 0.1


def test_hard_is_the_cross_entropy_with_the_teachers_answer() -> None:
    teacher, student = images(6, 5, seed=1), images(6, 5, seed=2)
    labels = ((teacher.argmax(1) + 1) % 5).tolist()  # the teacher is always wrong
    loss = DistillationLoss(Fixed(teacher), "hard", alpha=1.0)
    torch.testing.assert_close(loss_of(loss, labels, student), F.cross_entropy(student, teacher.argmax(1)))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_batch_twice_is_the_same_loss(kind: str) -> None:
    teacher, student, labels = images(4, 5, seed=1), images(4, 5, seed=2), [0, 3, -100, 1]
    once = loss_of(DistillationLoss(Fixed(teacher), kind), labels, student)
    twice = loss_of(DistillationLoss(Fixed(teacher.repeat(2, 1)), kind), labels * 2, student.repeat(2, 1))
    torch.testing.assert_close(once, twice)


def gradient_norm(scale: float, temperature: float) -> float:
    student = Fixed(scale * images(8, 10, seed=1))
    loss = DistillationLoss(Fixed(scale * images(8, 10, seed=2)), "soft", temperature, alpha=1.0).double()
    loss(student.double(), (images(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64)))[0].backward()
    return student.logits[0].grad.norm().item()


def test_temperature_squared_keeps_the_gradient() -> None:
    """For small logits the gradient does not depend on T; without T² it would be a hundred times smaller at T = 10."""
    norms = [gradient_norm(0.01, temperature) for temperature in (1.0, 3.0, 10.0)]
    assert max(norms) / min(norms) < 1.01
    # Large logits do feel it: at T = 1 they are saturated.
    assert gradient_norm(5.0, 10.0) > 1.5 * gradient_norm(5.0, 1.0)


def test_gradient_is_the_derived_one() -> None:
    """d/dz of T² KL is T (softmax(z/T) - softmax(v/T)) / b; for high T it is (z - v) / (K b), both centred."""
    student, teacher = images(8, 10, seed=1), images(8, 10, seed=2)
    for temperature in (1.0, 3.0, 1000.0):
        model = Fixed(student)
        loss_inputs = (images(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64))
        DistillationLoss(Fixed(teacher), "soft", temperature, 1.0)(model, loss_inputs)[0].backward()
        difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
        assert relative_error(model.logits[0].grad, temperature * difference / 8) < 1e-3
    centred = [logits - logits.mean(dim=1, keepdim=True) for logits in (student, teacher)]
    assert relative_error(model.logits[0].grad, (centred[0] - centred[1]) / 80) < 5e-3


def test_extreme_logits_are_not_clipped() -> None:
    loss = DistillationLoss(Fixed(torch.tensor([[0.0, 400.0]])), "soft", temperature=2.0, alpha=1.0)
    torch.testing.assert_close(loss_of(loss, [0], torch.tensor([[400.0, 0.0]])), torch.tensor(4 * 200.0))


def test_unlabelled_images_learn_from_the_teacher_alone() -> None:
    teacher, student, labels = images(4, 5, seed=1), images(4, 5, seed=2), torch.tensor([2, -100, 0, -100])
    for kind in ("soft", "hard"):
        loss = DistillationLoss(Fixed(teacher), kind, alpha=0.5)
        total, parts = loss(Fixed(student), (images(), labels))
        torch.testing.assert_close(parts["label_loss"], F.cross_entropy(student[[0, 2]], labels[[0, 2]]))
        torch.testing.assert_close(parts["teacher_loss"], loss.teacher_loss(student, teacher))
        torch.testing.assert_close(total, (parts["label_loss"] + parts["teacher_loss"]) / 2)
        total, parts = loss(Fixed(student), (images(), torch.full((4,), -100)))
        assert parts["label_loss"] == 0
        torch.testing.assert_close(total, parts["teacher_loss"] / 2)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_equal_to_timms_task(kind: str) -> None:
    """Loss and gradients beside timm.task, with two heads and with one."""
    teacher = timm_vit(num_classes=7)
    for student, task, weight in (
        (timm_vit(), TokenDistillationTask, {"distill_type": kind}),
        (timm.models.VisionTransformer(**TINY), LogitDistillationTask, {"loss_type": "kl"}),
    ):
        if kind == "hard" and task is LogitDistillationTask:
            continue
        for model in (student, teacher):
            model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
            heat(model, seed=1 if model is teacher else 0)
        ours = from_timm(student).train()
        theirs = task(
            student.train(), teacher, criterion=nn.CrossEntropyLoss(), task_loss_weight=0.3, temperature=4.0, verbose=False, **weight
        ).train()  # fmt: skip
        batch = (suited(student, 4), torch.tensor([0, 6, 3, 2]))
        loss, _ = DistillationLoss(teacher, kind, temperature=4.0, alpha=0.7)(ours, batch)
        expected = theirs(*batch)["loss"]
        assert relative_error(loss, expected) < SAME
        loss.backward(), expected.backward()
        others = dict(student.named_parameters())
        for name, parameter in ours.named_parameters():
            if not name.endswith("attn.qkv.bias"):
                assert relative_error(parameter.grad, others[name].grad) < 10 * SAME, name


# ---- the teacher ---------------------------------------------------------------------------------------------------------------------


def cnn_teacher() -> nn.Module:
    """With BatchNorm and dropout, both of which would show in training mode."""
    torch.manual_seed(1)
    return nn.Sequential(
        Conv2dNormActivation(3, 8, stride=2), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, 16, 16, generator=generator) + 2, torch.randint(5, (8,), generator=generator)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_teacher_is_untouched_by_training(kind: str) -> None:
    teacher, student = cnn_teacher(), small_vit()
    loss = DistillationLoss(teacher, kind).train()
    before, student_before = state(loss.teacher), state(student)
    assert any("running_mean" in name for name in before)
    fit(student, draw, loss, 5, progress=False)
    assert same(before, state(loss.teacher)) and not same(student_before, state(student))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in loss.parameters())
    assert not loss.teacher.training and not any(part.training for part in loss.teacher.modules())


def test_these_tests_would_see_a_teacher_in_training_mode() -> None:
    class Careless(DistillationLoss):
        def train(self, mode: bool = True) -> nn.Module:
            return nn.Module.train(self, mode)

    loss = Careless(cnn_teacher()).train()
    before = state(loss.teacher)
    fit(small_vit(), draw, loss, 5, progress=False)
    assert not same(before, state(loss.teacher)), "BatchNorm did not move: the test above proves nothing"


def test_teacher_stays_in_evaluation_mode_inside_other_modules() -> None:
    loss = DistillationLoss(cnn_teacher())
    around = nn.ModuleDict({"loss": loss, "student": small_vit()}).train()
    assert loss.training and not loss.teacher.training and around["student"].training
    assert not loss.eval().teacher.training and not loss.train().teacher.training
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert not twin.train().teacher.training


def test_the_callers_model_stays_the_callers() -> None:
    """The loss keeps a copy: whoever trains the original later does not move the target."""
    teacher = cnn_teacher().train()
    loss = DistillationLoss(teacher)
    assert teacher.training and all(parameter.requires_grad for parameter in teacher.parameters())
    before = state(loss.teacher)
    fit(teacher, draw, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), 3, progress=False)
    assert same(before, state(loss.teacher)) and not same(state(teacher), state(loss.teacher))


def test_a_model_can_be_its_own_teacher() -> None:
    """Born again (Furlanello et al. 2018): the copy does not follow the student."""
    student = small_vit()
    loss = DistillationLoss(student)
    before = state(loss.teacher)
    fit(student, draw, loss, 3, progress=False)
    assert same(before, state(loss.teacher)) and not same(before, state(student))


def test_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 2:
            raise RuntimeError("on purpose")

    students = [small_vit(dropout=0.1) for _ in range(2)]
    fit(students[0], draw, DistillationLoss(cnn_teacher()), 6, progress=False)
    file = tmp_path / "student.pt"
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(
            small_vit(dropout=0.1), draw, DistillationLoss(cnn_teacher()), 6, progress=False, checkpoint=file, checkpoint_every=2,
            after_step=stop,
        )  # fmt: skip
    other_teacher = nn.Sequential(*cnn_teacher()).apply(lambda part: getattr(part, "reset_parameters", int)())
    fit(students[1], draw, DistillationLoss(other_teacher), 6, progress=False, checkpoint=file, resume=True)
    assert same(state(students[0]), state(students[1])), "the checkpoint does not bring its teacher"


# ---- students ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("name", CASES)
def test_every_model_of_the_course_can_be_a_student(name: str, kind: str) -> None:
    """Two heads share the targets; one head gets both, as in Hinton et al. 2015. Each parameter learns, the teacher does not."""
    torch.manual_seed(0)
    student, loss = CASES[name].build().train(), DistillationLoss(cnn_teacher(), kind)
    labels = torch.arange(4)
    torch.manual_seed(0)
    value, parts = loss(student, (images(), labels))
    torch.testing.assert_close(
        value, (1 - loss.alpha) * parts["label_loss"] + loss.alpha * parts["teacher_loss"]
    )
    value.backward()
    for key, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert all(parameter.grad is None for parameter in loss.parameters())

    student.eval()
    with torch.no_grad():
        logits, teacher_logits = student(images()), loss.teacher(images())
        _, parts = loss(student, (images(), labels))
    torch.testing.assert_close(parts["label_loss"], F.cross_entropy(logits, labels))
    torch.testing.assert_close(parts["teacher_loss"], loss.teacher_loss(logits, teacher_logits))


FOREIGN = {
    "timm ViT": lambda: timm.models.VisionTransformer(**TINY | {"num_classes": 5}),
    "timm ViT, adapted": lambda: adapt(timm.models.VisionTransformer(**TINY | {"num_classes": 5})),
    "timm distilled": lambda: timm_vit(num_classes=5),
}


@pytest.mark.parametrize("build", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_students_learn(build: Callable[[], nn.Module]) -> None:
    """Eight pictures by heart, labelled by the teacher alone."""
    torch.manual_seed(0)
    student, pictures = build(), images(8, 3, 32, 32)
    if hasattr(student, "set_distilled_training"):
        student.set_distilled_training()
    teacher = cnn_teacher().eval()
    with torch.no_grad():
        teacher[0](pictures)
        teacher[-1].weight.mul_(20), teacher[-1].bias.sub_(teacher(pictures).mean(dim=0))
        answers = teacher(pictures).argmax(dim=1)
    assert len(answers.unique()) > 1
    loss = DistillationLoss(teacher, "hard")
    fit(student, [(pictures, answers)], loss, 40, lr=2e-3, progress=False)
    assert evaluate(student, [(pictures, answers)]) == 1


def test_bfloat16_autocast_gives_the_same_loss() -> None:
    student, loss, batch = small_vit(), DistillationLoss(cnn_teacher()), (images(), torch.arange(4))
    with torch.no_grad():
        plain = loss(student, batch)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(loss(student, batch)[0].float(), plain) < 0.02


# ---- bad input -----------------------------------------------------------------------------------------------------------------------


def call(student: nn.Module | None = None, batch: object = None, **options) -> Tensor:
    loss = DistillationLoss(cnn_teacher(), **options)
    return loss(student or small_vit(), (images(), torch.arange(4)) if batch is None else batch)


BAD_CALLS: dict[str, tuple[Callable, type[Exception], str]] = {
    "teacher": (lambda: DistillationLoss("resnet50"), TypeError, "'resnet50'"),
    "kind": (lambda: call(kind="warm"), ValueError, "'warm'"),
    "temperature": (lambda: call(temperature=0.0), ValueError, "temperature .* 0.0"),
    "negative temperature": (lambda: call(temperature=-1.0), ValueError, "-1.0"),
    "endless temperature": (lambda: call(temperature=float("inf")), ValueError, "inf"),
    "temperature type": (lambda: call(temperature="3"), TypeError, "'3'"),
    "alpha": (lambda: call(alpha=1.5), ValueError, "alpha .* 1.5"),
    "alpha type": (lambda: call(alpha="half"), TypeError, "'half'"),
    "batch": (lambda: call(batch=images()), TypeError, "pair of images and labels"),
    "batch of three": (lambda: call(batch=(images(), 1, 2)), TypeError, "pair of images and labels"),
    "bytes": (lambda: call(batch=(images().byte(), torch.arange(4))), TypeError, "uint8"),
    "labels": (lambda: call(batch=(images(), torch.arange(3))), ValueError, r"4 images .* \(3,\)"),
    "soft labels": (lambda: call(batch=(images(), torch.rand(4))), TypeError, "whole numbers .* tensor"),
    "no labels": (lambda: call(batch=(images(), None)), TypeError, "labels .* None"),
    "other classes": (lambda: call(small_vit(num_classes=7)), ValueError, r"\(4, 7\), \(4, 7\), \(4, 5\)"),
    "features": (lambda: call(small_vit(num_classes=0)), ValueError, r"\(4, 32\).*\(4, 5\)"),
    "pool": (lambda: small_vit(pool="mean"), TypeError, "pool"),
    "num_classes": (lambda: small_vit(num_classes=-1), ValueError, "-1"),
    "odd images": (lambda: small_vit()(images(4, 3, 16, 18)), ValueError, r"\(16, 18\)"),
    "token width": (lambda: small_vit().forward_tokens(images(2, 16, 31)), ValueError, r"\(2, 16, 31\)"),
    "token number": (lambda: small_vit().forward_tokens(images(2, 15, 32)), ValueError, r"\(2, 15, 32\)"),
    "token grid": (lambda: small_vit().forward_tokens(images(2, 16, 32), (2, 6)), ValueError, "2 by 6"),
    "features shape": (lambda: small_vit().forward_head(images(2, 32)), ValueError, r"\(2, 32\)"),
}


@pytest.mark.parametrize(("bad", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_input_is_named(bad: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bad()
