"""Exercises of lesson 06: cosines between channels; cross-covariance attention with a mask, and in chunks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .exercise import Exercise, Mistake


def _draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers of these shapes from a seed; PyTorch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


# -------------------------------------------------------------------------------------------- channel_cosines


def channel_cosines(q: Tensor, k: Tensor) -> Tensor:
    """Queries and keys (b, n, c) -> cosines (b, c, c): at i, j that of channel i of q and channel j of k."""
    return F.normalize(q, dim=1).mT @ F.normalize(k, dim=1)


def _dot_products(q: Tensor, k: Tensor) -> Tensor:
    return q.mT @ k


def _lengths_over_channels(q: Tensor, k: Tensor) -> Tensor:
    return F.normalize(q, dim=-1).mT @ F.normalize(k, dim=-1)


def _transposed(q: Tensor, k: Tensor) -> Tensor:
    return channel_cosines(k, q)


def _between_tokens(q: Tensor, k: Tensor) -> Tensor:
    return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT


def _mean_removed(q: Tensor, k: Tensor) -> Tensor:
    return channel_cosines(q - q.mean(dim=1, keepdim=True), k - k.mean(dim=1, keepdim=True))


def _divided_by_tokens(q: Tensor, k: Tensor) -> Tensor:
    return q.mT @ k / q.shape[1]


CHANNEL_COSINES = Exercise(
    name="channel_cosines",
    solution=channel_cosines,
    cases=(_draw(0, (2, 6, 4), (2, 6, 4)), _draw(1, (3, 9, 5), (3, 9, 5))),
    praise="One number for each pair of channels, between −1 and 1, however many tokens there are.",
    mistakes={
        "no lengths": Mistake(
            _dot_products,
            says=lambda answer: (
                f"These are dot products; the largest is {answer.abs().max():.1f}, and a cosine is never "
                "above 1. Divide each channel by its length first."
            ),
        ),
        "lengths over channels": Mistake(
            _lengths_over_channels,
            says=(
                "You divided every token by its length. A channel is a column: its length is taken over "
                "the tokens, which are axis 1 here."
            ),
        ),
        "transposed": Mistake(
            _transposed,
            says=(
                "The matrix is transposed: rows belong to the channels of q, the queries, columns to those "
                "of k."
            ),
        ),
        "between tokens": Mistake(
            _between_tokens,
            says=lambda answer: (
                f"Your matrix is {answer.shape[-2]} × {answer.shape[-1]}, a row for each token: that is "
                "lesson 02. Here the sum runs over the tokens, and a row belongs to a channel."
            ),
        ),
        "mean removed": Mistake(
            _mean_removed,
            says="You took each channel's mean away first; that is a correlation. XCA leaves the mean in.",
        ),
        "divided by the number of tokens": Mistake(
            _divided_by_tokens,
            says=(
                "Dividing by the number of tokens makes a mean of the products, not a cosine. Divide by "
                "the lengths of both channels."
            ),
        ),
    },
)


# ------------------------------------------------------------------------------------------------- masked_xca


def masked_xca(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    """Queries, keys, values (b, h, n, k), temperature (h, 1, 1), real (b, n) -> (b, h, n, k), padded by 0."""
    mask = real[:, None, :, None]
    return _xca(q * mask, k * mask, v * mask, temperature)


def _xca(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    cosines = F.normalize(q, dim=-2).mT @ F.normalize(k, dim=-2)
    return v @ (temperature * cosines).softmax(dim=-1).mT


def _unmasked(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    return _xca(q, k, v, temperature)


def _only_the_output(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    return _xca(q, k, v * real[:, None, :, None], temperature)


def _only_the_weights(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    return _xca(q * mask, k * mask, v, temperature)


def _mask_behind_the_lengths(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    q, k = F.normalize(q, dim=-2) * mask, F.normalize(k, dim=-2) * mask
    return (v * mask) @ (temperature * (q.mT @ k)).softmax(dim=-1).mT


def _exp_of_the_temperature(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    return masked_xca(q, k, v, temperature.exp(), real)


def _divided_by_the_temperature(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    return masked_xca(q, k, v, 1 / temperature, real)


def _no_lengths(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    return (v * mask) @ (temperature * ((q * mask).mT @ (k * mask))).softmax(dim=-1).mT


def _softmax_down_the_columns(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    cosines = F.normalize(q * mask, dim=-2).mT @ F.normalize(k * mask, dim=-2)
    return (v * mask) @ (temperature * cosines).softmax(dim=-2).mT


def _weights_not_transposed(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, real: Tensor) -> Tensor:
    mask = real[:, None, :, None]
    cosines = F.normalize(q * mask, dim=-2).mT @ F.normalize(k * mask, dim=-2)
    return (v * mask) @ (temperature * cosines).softmax(dim=-1)


def _masked_case(seed: int, b: int, h: int, n: int, k: int) -> tuple[Tensor, ...]:
    """Queries and keys with something in common, for uneven weights, and pictures of several lengths."""
    q, k_, v, temperature = _draw(seed, (b, h, n, k), (b, h, n, k), (b, h, n, k), (h, 1, 1))
    real = torch.arange(n) < torch.arange(n - b, n)[:, None]
    return q, k_ + 0.5 * q.flip(-1), v, 2 + temperature.abs(), real


MASKED_XCA = Exercise(
    name="masked_xca",
    solution=masked_xca,
    cases=(_masked_case(0, 2, 3, 8, 4), _masked_case(1, 3, 2, 6, 5)),
    praise=(
        "A token of zeros adds nothing to a sum over tokens: where attention between tokens needs minus "
        "infinity, this one needs a zero, in time."
    ),
    mistakes={
        "mask ignored": Mistake(
            _unmasked,
            says=(
                "`real` was not used: the padding takes part in the sums over tokens. Set it to zero in q, "
                "k and v."
            ),
        ),
        "only the output": Mistake(
            _only_the_output,
            says=(
                "Padded tokens give nothing, but they still speak in the weights: q and k need the mask "
                "too, since every cosine is a sum over tokens."
            ),
        ),
        "only the weights": Mistake(
            _only_the_weights,
            says="The weights are right. Padded tokens still have an output; mask v as well, and it is zero.",
        ),
        "mask behind the lengths": Mistake(
            _mask_behind_the_lengths,
            says=(
                "You masked after dividing by the lengths, which counted the padding. Mask first, then "
                "normalise."
            ),
        ),
        "exp of the temperature": Mistake(
            _exp_of_the_temperature,
            says=(
                "You multiplied by e to the temperature, as a well-known reimplementation does. XCiT's "
                "weights are made for the temperature itself."
            ),
        ),
        "divided by the temperature": Mistake(
            _divided_by_the_temperature,
            says=(
                "You divided by the temperature, as the paper writes it. Its code and its weights "
                "multiply: a larger number is a sharper softmax."
            ),
        ),
        "no lengths": Mistake(
            _no_lengths,
            says=(
                "The scores are dot products; divide each channel of q and k by its length over the tokens "
                "first: F.normalize(…, dim=-2)."
            ),
        ),
        "softmax down the columns": Mistake(
            _softmax_down_the_columns,
            says="Your columns sum to one, not your rows. The row is the query: softmax(dim=-1).",
        ),
        "weights not transposed": Mistake(
            _weights_not_transposed,
            says=(
                "The weights are right, but v meets them the wrong way round: row i holds what channel i "
                "*takes*, so the product is v @ weights.mT."
            ),
        ),
    },
)


# ------------------------------------------------------------------------------------------- streamed_weights


def streamed_weights(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    """Queries and keys of one head (chunks, n, k), a temperature -> the weights (k, k) of all tokens."""
    width = k_chunks.shape[-1]
    products, q_squares, k_squares = torch.zeros(width, width), torch.zeros(width), torch.zeros(width)
    for q, k in zip(q_chunks, k_chunks, strict=True):
        products = products + q.T @ k
        q_squares, k_squares = q_squares + (q**2).sum(dim=0), k_squares + (k**2).sum(dim=0)
    return (temperature * products / (q_squares[:, None] * k_squares[None]).sqrt()).softmax(dim=-1)


def _of(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    return streamed_weights(q[None], k[None], temperature)


def _mean_of_weights(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    return torch.stack([_of(q, k, temperature) for q, k in zip(q_chunks, k_chunks, strict=True)]).mean(dim=0)


def _cosines(q: Tensor, k: Tensor) -> Tensor:
    return F.normalize(q, dim=0).T @ F.normalize(k, dim=0)


def _mean_of_cosines(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    cosines = [_cosines(q, k) for q, k in zip(q_chunks, k_chunks, strict=True)]
    return (temperature * torch.stack(cosines).mean(dim=0)).softmax(dim=-1)


def _sum_of_cosines(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    cosines = [_cosines(q, k) for q, k in zip(q_chunks, k_chunks, strict=True)]
    return (temperature * torch.stack(cosines).sum(dim=0)).softmax(dim=-1)


def _last_chunk(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    return _of(q_chunks[-1], k_chunks[-1], temperature)


def _products(q_chunks: Tensor, k_chunks: Tensor) -> Tensor:
    return (q_chunks.mT @ k_chunks).sum(dim=0)


def _sum_of_lengths(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    q_lengths, k_lengths = (chunks.norm(dim=1).sum(dim=0) for chunks in (q_chunks, k_chunks))
    return (temperature * _products(q_chunks, k_chunks) / (q_lengths[:, None] * k_lengths[None])).softmax(
        dim=-1
    )


def _squared_lengths(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    q_squares, k_squares = ((chunks**2).sum(dim=(0, 1)) for chunks in (q_chunks, k_chunks))
    return (temperature * _products(q_chunks, k_chunks) / (q_squares[:, None] * k_squares[None])).softmax(
        dim=-1
    )


def _no_lengths_streamed(q_chunks: Tensor, k_chunks: Tensor, temperature: float) -> Tensor:
    return (temperature * _products(q_chunks, k_chunks)).softmax(dim=-1)


def _chunks(seed: int, chunks: int, n: int, k: int, temperature: float) -> tuple[Tensor, Tensor, float]:
    q, noise, size = _draw(seed, (chunks, n, k), (chunks, n, k), (chunks, 1, 1))
    return (
        q * size,
        (noise + q.roll(1, dims=2)) * (1 + size**2),
        temperature,
    )  # chunks of different brightness


STREAMED_WEIGHTS = Exercise(
    name="streamed_weights",
    solution=streamed_weights,
    cases=(_chunks(0, 3, 5, 4, 3.0), _chunks(1, 2, 8, 5, 5.0)),
    praise=(
        "The products and the squares of all tokens are sums, and sums can be kept up to date: memory for "
        "one chunk, whatever the picture."
    ),
    mistakes={
        "mean of weights": Mistake(
            _mean_of_weights,
            says=(
                "You made weights of each chunk and took their mean. A softmax of sums is not a mean of "
                "softmaxes: add up first, one softmax at the end."
            ),
        ),
        "mean of cosines": Mistake(
            _mean_of_cosines,
            says=(
                "You took the mean of the chunks' cosines. Each was divided by the length within its "
                "chunk; the length that counts is that over all tokens."
            ),
        ),
        "sum of cosines": Mistake(
            _sum_of_cosines,
            says=(
                "You added the chunks' cosines, so the scores grow with the number of chunks. Add dot "
                "products and squares, and divide once."
            ),
        ),
        "last chunk only": Mistake(
            _last_chunk,
            says=(
                "These are the weights of the last chunk alone: the sums start anew with each chunk, "
                "instead of going on."
            ),
        ),
        "lengths added": Mistake(
            _sum_of_lengths,
            says=(
                "The dot products are right. Lengths do not add up, their squares do: keep the sums of "
                "squares and take the root at the end."
            ),
        ),
        "no lengths": Mistake(
            _no_lengths_streamed,
            says=(
                "The sums of products are right, but nothing was divided by the lengths: keep the sums of "
                "squares as well."
            ),
        ),
        "squares not rooted": Mistake(
            _squared_lengths,
            says="You divided by the squares of the lengths; the root is missing.",
        ),
    },
)


EXERCISES = [CHANNEL_COSINES, MASKED_XCA, STREAMED_WEIGHTS]
